//! What a command says goes wherever it is told to, also where nobody takes it.

use crate::support::*;
use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

/// A disk without room.
fn full() -> Stdio {
    OpenOptions::new().write(true).open("/dev/full").unwrap().into()
}

/// A pipe whose reader has gone.
fn closed() -> Stdio {
    let (read, write) = std::io::pipe().unwrap();
    drop(read);
    OwnedFd::from(write).into()
}

/// Runs the binary to its end: its exit code, and what it says on standard error.
fn run(args: &[&str], server: &Server, stdout: Stdio, stderr: Stdio) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollbar"));
    command.args(args).current_dir(&server.scratch.0).env_remove("TOLLBAR_CONFIG");
    let child = command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).spawn().unwrap();
    let out = child.wait_with_output().unwrap();
    (out.status.code(), String::from_utf8(out.stderr).unwrap())
}

/// A full disk is an error with its cause and its remedy; a reader that has gone has had enough.
#[tokio::test]
async fn where_nobody_takes_what_is_said_nothing_panics() {
    let server = Server::start(&config(&provider()));
    for args in [&["keygen"][..], &["check", "-c", "tollbar.yaml"], &["spend"], &["demo"]] {
        let (code, said) = run(args, &server, full(), Stdio::piped());
        assert_eq!(code, Some(1), "{args:?}: {said}");
        let why = "tollbar: standard output can't be written: No space left on device";
        assert!(said.contains(why) && !said.contains("panicked"), "{args:?}: {said}");
        let (code, said) = run(args, &server, closed(), Stdio::piped());
        assert_eq!(code, Some(0), "{args:?}: {said}");
        assert!(!said.contains("standard output") && !said.contains("panicked"), "{said}");
    }
    for args in [&["check", "-c", "none.yaml"][..], &["spend", "-c", "none.yaml"]] {
        assert_eq!(run(args, &server, Stdio::null(), full()).0, Some(1), "{args:?}");
    }
}
