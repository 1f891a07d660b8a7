//! How long a client's connection lives: one with a request as long as that takes.

use crate::raw::Raw;
use crate::support::*;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tokio::time::timeout;

/// Far longer than what is waited for, and far shorter than any default.
const LONG: Duration = Duration::from_secs(15);

fn with(server: &str) -> String {
    format!(
        "{}providers:\n  p: {{ dialect: openai, base_url: \"http://127.0.0.1:1/v1\", api_key: \"file:key\" }}\nmodels:\n{}",
        head_with(&format!("threads: 2, {server}"), ""),
        model("gpt", "sim-gpt", "")
    )
}

fn start(server: &str) -> Server {
    let scratch = Scratch::new();
    std::fs::write(scratch.0.join("key"), "sk-x").unwrap();
    Server::start_here(scratch, &with(server), &[])
}

async fn healthy(raw: &mut Raw) {
    raw.send(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let (status, ..) = raw.answer().await.unwrap();
    assert_eq!(status, 200);
}

/// Holds up whoever reads this file, until something is written to it.
fn hold_up(file: &Path) {
    std::fs::remove_file(file).unwrap();
    assert!(Command::new("mkfifo").arg(file).status().unwrap().success());
}

/// A reload of many keys takes seconds, and so may a key that is made while the disk is slow: who
/// asked for it is told what came of it, whatever a header may take.
#[tokio::test]
async fn an_admin_request_takes_as_long_as_it_takes() {
    let server = start("header_timeout: 300ms, idle_timeout: 1s");
    let key = server.scratch.0.join("key");
    hold_up(&key);
    let mut raw = Raw::connect(server.admin).await;
    let reload =
        format!("POST /reload HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ADMIN_TOKEN}\r\n\r\n");
    raw.send(reload.as_bytes()).await;
    let early = timeout(Duration::from_secs(2), raw.answer()).await;
    assert!(early.is_err(), "cut off: {early:?}");
    // Opening it waits for the reload to open it, too.
    tokio::task::spawn_blocking(move || std::fs::write(key, "sk-y")).await.unwrap().unwrap();
    let (status, _, body) = timeout(LONG, raw.answer()).await.unwrap().unwrap();
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    healthy(&mut raw).await;
}
