//! What a newcomer types: the README's commands and the scripts behind `make`.

use crate::support::*;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Runs a script of `build/` where there are no other programs than these.
fn script(name: &str, args: &[&str], programs: &[(&str, &str)]) -> (Output, Scratch) {
    let scratch = Scratch::new();
    for (program, does) in programs {
        let file = scratch.0.join(program);
        std::fs::write(&file, format!("#!/bin/sh\n{does}\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = Command::new("/bin/bash");
    command.arg(format!("{ROOT}/build/{name}")).args(args);
    (command.env("PATH", &scratch.0).current_dir(&scratch.0).output().unwrap(), scratch)
}

#[test]
fn elsewhere_than_on_linux_nothing_is_installed() {
    let programs = [("uname", "echo Darwin"), ("id", "echo 0"), ("brew", ": > installed")];
    let (out, scratch) = script("tools.sh", &[], &programs);
    assert_eq!(out.status.code(), Some(1));
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(said.starts_with("Tollbar needs Linux"), "{said}");
    assert!(!scratch.0.join("installed").exists());
}

#[test]
fn without_apt_venv_says_what_to_install() {
    let programs = [("python3", "exit 1"), ("id", "echo 0")];
    let (out, _scratch) = script("venv.sh", &[".venv", "requirements.txt"], &programs);
    assert_eq!(out.status.code(), Some(1));
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(said.contains("install Python 3 with its venv"), "{said}");
}

#[test]
fn the_readme_asks_the_state_file_of_its_configuration() {
    let conf = std::fs::read_to_string(format!("{ROOT}/conf/tollbar.yaml")).unwrap();
    assert!(!conf.contains("state:"), "the default is beside the configuration");
    let readme = std::fs::read_to_string(format!("{ROOT}/README.md")).unwrap();
    let asked: Vec<_> = readme.lines().filter(|line| line.starts_with("sqlite3 ")).collect();
    assert!(!asked.is_empty());
    assert!(asked.iter().all(|line| line.starts_with("sqlite3 conf/tollbar.db ")), "{asked:?}");
}
