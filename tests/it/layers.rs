//! The map in `src/lib.rs` is true: imports go up its list only, and only the edge knows Pingora.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// The modules in the order of `src/lib.rs`, with the layer comment each stands under.
fn map() -> Vec<(String, String)> {
    let text = fs::read_to_string(format!("{ROOT}/src/lib.rs")).unwrap();
    let mut layer = String::new();
    let mut modules = Vec::new();
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("// ") {
            layer = comment.split(':').next().unwrap().to_owned();
        } else if let Some(rest) = line.strip_prefix("pub mod ") {
            modules.push((rest.trim_end_matches(';').to_owned(), layer.clone()));
        }
    }
    modules
}

/// The top-level modules that a file names as `crate::x`.
fn imports(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let group = group.split('}').next().unwrap();
            found.extend(
                group.split(',').map(|item| item.trim().split("::").next().unwrap().to_owned()),
            );
        } else {
            found.push(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
    }
    found
}

#[test]
fn imports_go_up_the_list_and_only_the_edge_knows_pingora() {
    let modules = map();
    let rank: HashMap<&str, usize> =
        modules.iter().enumerate().map(|(i, (name, _))| (name.as_str(), i)).collect();
    let mut files = Vec::new();
    let src = PathBuf::from(format!("{ROOT}/src"));
    sources(&src, &mut files);
    let mut wrong = Vec::new();
    let mut seen = 0;
    for file in files {
        let relative = file.strip_prefix(&src).unwrap();
        let first = relative.components().next().unwrap().as_os_str().to_str().unwrap();
        let module = first.trim_end_matches(".rs");
        if module == "lib" || module == "main" {
            continue;
        }
        let Some(own) = rank.get(module) else {
            wrong.push(format!("src/lib.rs doesn't list `{module}`"));
            continue;
        };
        seen += 1;
        let text = fs::read_to_string(&file).unwrap();
        for import in imports(&text) {
            match rank.get(import.as_str()) {
                Some(other) if other <= own => {}
                Some(_) => {
                    wrong.push(format!("{}: imports `{import}` from below", relative.display()))
                }
                None => {}
            }
        }
        let edge = modules[*own].1 == "edge" || modules[*own].1 == "the command line";
        if !edge && text.contains("pingora") && text.contains("use pingora") {
            wrong.push(format!("{}: imports pingora", relative.display()));
        }
    }
    assert!(seen > 30, "only {seen} files were looked at");
    let layers: std::collections::HashSet<_> = modules.iter().map(|(_, layer)| layer).collect();
    assert!(layers.len() >= 5, "{layers:?}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
