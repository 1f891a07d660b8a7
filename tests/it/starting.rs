//! Signals that come before the process serves.

use crate::support::*;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

/// Renewed certificates and rotated logs don't wait until a start is over.
#[tokio::test]
async fn a_reload_that_is_asked_for_too_early_comes_after_the_start() {
    let provider = provider();
    let scratch = Scratch::new();
    // It hangs on a secret until that is written.
    let (key, written) = (scratch.0.join("key"), scratch.0.join("key.new"));
    assert!(Command::new("mkfifo").arg(&key).status().unwrap().success());
    let secret = format!("file:{}", key.display());
    let text = config_of(&head(), &provider, "", &model("gpt", "sim-gpt", ""));
    let mut server = Server::begin(scratch, &text.replace("sk-provider", &secret));
    // Opening it waits for the other end.
    let pipe = key.clone();
    let open = move || fs::OpenOptions::new().write(true).open(pipe).unwrap();
    let mut pipe = tokio::task::spawn_blocking(open).await.unwrap();
    server.signal("HUP");
    fs::write(&written, "sk-second").unwrap();
    fs::rename(&written, &key).unwrap();
    std::io::Write::write_all(&mut pipe, b"sk-first").unwrap();
    drop(pipe);
    server.wait_ready();
    let until = Instant::now() + Duration::from_secs(20);
    while server.metric("tollbar_config_generation").await != 2.0 {
        assert!(Instant::now() < until, "{}", server.stderr().join("\n"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
