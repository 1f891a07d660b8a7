//! Whoever reads the logs may hang: that stops neither requests nor reloads, nor the end.

use crate::support::*;
use rusqlite::Connection;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tollbar_loadtest::provider::Provider;

/// Two bounds of two seconds each, and what a busy machine adds.
const SOON: Duration = Duration::from_secs(15);

fn small(provider: &Provider) -> String {
    let head = head_with("threads: 2, drain: 3s", "");
    let model =
        model("gpt", "sim-gpt", ", max_output_tokens: 100, budgets: [ { usd: 100, per: day } ]");
    config_of(&head, provider, "", &model) + "state: { path: state.db }\n"
}

async fn reload(server: &Server) -> u16 {
    let request = client().post(server.admin_url("/reload")).bearer_auth(ADMIN_TOKEN);
    request.timeout(SOON).send().await.expect("an answer").status().as_u16()
}

async fn ask(server: &Server) -> u16 {
    let url = server.url("/v1/chat/completions");
    post(&client(), url, chat("gpt").to_string()).await.status().as_u16()
}

/// The ledger is closed before that: no lease is left, which the next start would count as spent.
#[tokio::test]
async fn nobody_reads_the_access_log_and_the_process_ends() {
    let provider = provider();
    let stdout = Unread::new();
    stdout.fill();
    let mut server = Server::start_unlogged(&small(&provider), &stdout);
    for _ in 0..3 {
        assert_eq!(ask(&server).await, 200);
    }
    server.signal("TERM");
    let exit = server.wait_exit(SOON).expect("it ends without a reader");
    assert_eq!(exit.code(), Some(0));
    let said = server.stderr().join("\n");
    assert!(said.contains("3 lines of the access log are lost"), "{said}");
    let db = Connection::open(server.state_file()).unwrap();
    let leases: i64 = db.query_row("SELECT count(*) FROM leases", (), |row| row.get(0)).unwrap();
    assert_eq!(leases, 0);
}

/// A key that a reload takes away is gone, whether or not somebody hears of it.
#[tokio::test]
async fn nobody_reads_the_log_and_reloads_and_the_end_come_through() {
    let provider = provider();
    let stderr = Unread::new();
    let good = small(&provider);
    let server = Server::start_unread(&good, &stderr);
    assert_eq!(ask(&server).await, 200);
    stderr.fill();
    std::fs::write(server.config_file(), good.replace("sim-gpt", "${NOT_SET}")).unwrap();
    assert_eq!(reload(&server).await, 400);
    let other = good.replace(&hash(KEY), &hash("tb-another-key-0000000000000"));
    std::fs::write(server.config_file(), &other).unwrap();
    assert_eq!(reload(&server).await, 200);
    assert_eq!(ask(&server).await, 401);
    // What waited is there once somebody reads, in its order.
    let lines = stderr.read();
    let at = |what: &str| lines.lock().unwrap().iter().position(|line| line.contains(what));
    eventually(SOON, || at("configuration reloaded: generation 2").is_some()).await;
    assert!(at("reload refused") < at("configuration reloaded"), "{:?}", lines.lock().unwrap());
}

#[tokio::test]
async fn nobody_reads_the_log_and_the_process_ends() {
    let provider = provider();
    let stderr = Unread::new();
    let mut server = Server::start_unread(&small(&provider), &stderr);
    stderr.fill();
    server.signal("TERM");
    let exit = server.wait_exit(SOON).expect("it ends without a reader");
    assert_eq!(exit.code(), Some(0));
}

/// Why it didn't start is nobody's to hear, and the exit code says that it didn't.
#[test]
fn nobody_reads_why_it_does_not_start() {
    let scratch = Scratch::new();
    std::fs::write(scratch.0.join("tollbar.yaml"), "listeners: []\n").unwrap();
    let stderr = Unread::new();
    stderr.fill();
    let mut child = Command::new(env!("CARGO_BIN_EXE_tollbar"))
        .args(["run", "-c", "tollbar.yaml"])
        .current_dir(&scratch.0)
        .stdin(Stdio::null())
        .stderr(stderr.end())
        .spawn()
        .unwrap();
    let until = Instant::now() + SOON;
    let ended = loop {
        match child.try_wait().unwrap() {
            Some(status) => break Some(status),
            None if Instant::now() >= until => break None,
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    let _ = child.kill();
    let _ = child.wait();
    assert_eq!(ended.and_then(|status| status.code()), Some(1));
}
