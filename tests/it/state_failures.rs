//! The state file can't be written: budgets refuse, nothing crashes, and when it can be written
//! again everything that was spent is in the books.

use crate::support::*;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tollbar_loadtest::provider::Provider;

/// Ten tokens of output are one cent; input costs nothing.
const CENT: u64 = 10_000_000;

fn config(provider: &Provider, on_failure: &str) -> String {
    let base = provider.base();
    format!(
        "{}state: {{ path: state/tollbar.db, on_failure: {on_failure} }}\n\
         providers:\n  p: {{ dialect: openai, base_url: \"{base}/v1\" }}\n\
         models:\n  gpt: {{ targets: [ {{ provider: p, model: sim-gpt, price: {{ input: 0, output: 1000 }} }} ] }}\n",
        head().replace("unlimited: true", "budgets: [ { usd: 100, per: total } ]")
    )
}

async fn ask(server: &Server) -> (u16, Value) {
    let body = json!({"model": "gpt", "max_tokens": 10, "messages": []});
    let request = client().post(server.url("/v1/chat/completions")).bearer_auth(KEY).json(&body);
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

/// Asks until the status is this; how many were served on the way.
async fn ask_until(server: &Server, status: u16) -> (usize, Value) {
    let until = Instant::now() + Duration::from_secs(20);
    let mut served = 0;
    loop {
        let (got, body) = ask(server).await;
        served += usize::from(got == 200);
        if got == status {
            return (served, body);
        }
        assert!([200, 503].contains(&got), "{got} {body}");
        assert!(Instant::now() < until, "no {status}: {}", server.stderr().join("\n"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn healthy(server: &Server, wanted: f64) {
    let until = Instant::now() + Duration::from_secs(20);
    while server.metric("tollbar_ledger_healthy").await != wanted {
        assert!(Instant::now() < until, "not {wanted}: {}", server.stderr().join("\n"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What was billed is in the ledger, in the account and in the metric, and nothing is held.
async fn books_agree(server: &Server, provider: &Provider) {
    let billed = provider.billed().requests * CENT;
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let spend = admin(server, "/spend").await;
        if cost(&spend["data"][0]) == billed {
            break;
        }
        assert!(Instant::now() < until, "{billed} were billed: {spend}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let account = &admin(server, "/budgets").await["data"][0];
    assert_eq!(nano(&account["spent_usd"].to_string()), billed, "{account}");
    assert_eq!(account["held_usd"].as_f64(), Some(0.0), "{account}");
    let metric = server.metric("tollbar_cost_usd_total").await;
    assert_eq!((metric * 1e9).round() as u64, billed);
}

/// Requests before, during and after a failure of the state file.
async fn through(
    server: &Server,
    provider: &Provider,
    on_failure: &str,
    said: &str,
    fail: impl FnOnce(),
    mend: impl FnOnce(),
) {
    assert_eq!(ask(server).await.0, 200);
    // Its row is there: what fails afterwards is not the first commit.
    ask_until(server, 200).await;
    books_agree(server, provider).await;
    fail();
    if on_failure == "closed" {
        // What the lease still covers is served; then nothing is.
        let (_, body) = ask_until(server, 503).await;
        assert_eq!(body["error"]["code"], "state_unavailable", "{body}");
        healthy(server, 0.0).await;
        let before = provider.requests().len();
        for _ in 0..5 {
            assert_eq!(ask(server).await.0, 503);
        }
        assert_eq!(provider.requests().len(), before, "a refused request made no call");
    } else {
        let until = Instant::now() + Duration::from_secs(20);
        while server.metric("tollbar_ledger_healthy").await != 0.0 {
            let (status, body) = ask(server).await;
            assert_eq!(status, 200, "{body}");
            assert!(Instant::now() < until, "{}", server.stderr().join("\n"));
        }
        for _ in 0..5 {
            assert_eq!(ask(server).await.0, 200);
        }
    }
    let ready = client().get(server.admin_url("/readyz")).send().await.unwrap().status();
    assert_eq!(ready, if on_failure == "closed" { 503 } else { 200 });
    logs(server, &[said]).await;
    assert_eq!(client().get(server.url("/healthz")).send().await.unwrap().status(), 200);
    mend();
    healthy(server, 1.0).await;
    assert_eq!(client().get(server.admin_url("/readyz")).send().await.unwrap().status(), 200);
    assert_eq!(ask(server).await.0, 200);
    books_agree(server, provider).await;
    let log = server.stderr().join("\n");
    assert!(!log.contains("panicked"), "{log}");
}

fn start(provider: &Provider, on_failure: &str) -> Server {
    Server::start_after(&config(provider, on_failure), &[], "mkdir -p state")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locked_by_another_process() {
    for on_failure in ["closed", "open"] {
        let provider = provider();
        let server = start(&provider, on_failure);
        let other = rusqlite::Connection::open(server.scratch.0.join("state/tollbar.db")).unwrap();
        other.busy_timeout(Duration::from_secs(10)).unwrap();
        let run = |sql: &str| other.execute_batch(sql).unwrap();
        let said = "locked by another process";
        let (fail, mend) = (|| run("BEGIN EXCLUSIVE"), || run("ROLLBACK"));
        through(&server, &provider, on_failure, said, fail, mend).await;
    }
}

/// Files can't grow: the process's limit on their size is set to nothing, and lifted again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_can_not_grow() {
    for on_failure in ["closed", "open"] {
        let provider = provider();
        // A write past the limit is an error, as on a full disk, and not the end of the process.
        let shell = "mkdir -p state";
        let server = Server::start_after(&config(&provider, on_failure), &[], shell);
        let pid = server.pid().to_string();
        let limit = |size: &str| {
            let limited = Command::new("prlimit").args(["--pid", &pid, size]).status().unwrap();
            assert!(limited.success());
        };
        let (fail, mend) =
            (|| limit("--fsize=1:unlimited"), || limit("--fsize=unlimited:unlimited"));
        through(&server, &provider, on_failure, "ledger: ", fail, mend).await;
    }
}

/// A file system of its own for the state, where mounting is permitted.
const MOUNTING: [&str; 2] = ["unshare", "-rm"];

fn may_mount(what: &str) -> bool {
    let probe = "d=$(mktemp -d) && mount -t tmpfs none $d";
    let tried = Command::new(MOUNTING[0]).args(&MOUNTING[1..]).args(["sh", "-c", probe]).output();
    let may = tried.is_ok_and(|tried| tried.status.success());
    if !may {
        eprintln!("skipped, mounts are not permitted here: {what}");
    }
    may
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disk_full() {
    if !may_mount("disk_full") {
        return;
    }
    for on_failure in ["closed", "open"] {
        let provider = provider();
        let shell = "mkdir -p state && mount -t tmpfs -o size=2m none state";
        let server = Server::start_after(&config(&provider, on_failure), &MOUNTING, shell);
        let filler = inside(&server).join("filler");
        let fill = || {
            // To the last byte: the write that doesn't fit is the end of it.
            let mut file = std::fs::File::create(&filler).unwrap();
            while std::io::Write::write(&mut file, &[1; 4096]).is_ok_and(|n| n > 0) {}
        };
        let mend = || std::fs::remove_file(&filler).unwrap();
        through(&server, &provider, on_failure, "ledger: ", fill, mend).await;
    }
}

/// The state directory as the process sees it.
fn inside(server: &Server) -> PathBuf {
    let dir = server.scratch.0.canonicalize().unwrap().join("state");
    Path::new("/proc")
        .join(server.pid().to_string())
        .join("root")
        .join(dir.strip_prefix("/").unwrap())
}

/// The server doesn't start: what it says, and that it says what to do.
fn refused(dir: &Path, shell: &str, unshare: &[&str]) -> String {
    let mut words = unshare.iter().copied().chain(["sh", "-c"]);
    let out = Command::new(words.next().unwrap())
        .args(words)
        .arg(format!("{shell} && exec \"$0\" run -c tollbar.yaml"))
        .arg(env!("CARGO_BIN_EXE_tollbar"))
        .current_dir(dir)
        .output()
        .unwrap();
    let said = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(!said.contains("panicked") && !said.contains("admin on"), "{said}");
    assert!(said.contains("state.path"), "no remedy: {said}");
    said
}

#[tokio::test]
async fn a_start_without_a_usable_file_says_why_and_ends() {
    let provider = provider();
    let scratch = Scratch::new();
    let file = scratch.0.join("state/tollbar.db");
    std::fs::write(scratch.0.join("tollbar.yaml"), config(&provider, "open")).unwrap();
    let check = || {
        let out = Command::new(env!("CARGO_BIN_EXE_tollbar"))
            .args(["check", "-c", "tollbar.yaml"])
            .current_dir(&scratch.0)
            .output()
            .unwrap();
        assert!(out.status.success(), "{out:?}");
        String::from_utf8(out.stdout).unwrap()
    };
    let missing = || check().contains("state.path: there is no directory");
    assert!(missing());
    let file_here = config(&provider, "open").replace("state/tollbar.db", "tollbar.db");
    std::fs::write(scratch.0.join("tollbar.yaml"), file_here).unwrap();
    assert!(!missing());
    std::fs::write(scratch.0.join("tollbar.yaml"), config(&provider, "open")).unwrap();
    std::fs::create_dir(scratch.0.join("state")).unwrap();
    assert!(!missing());
    // Also where failures are tolerated: an operator is there at a start.
    std::fs::write(&file, b"this is no database at all, it only has its name".repeat(100)).unwrap();
    assert!(refused(&scratch.0, "true", &[]).contains("not a Tollbar database, or damaged"));
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    assert!(check().contains("state.path: state/tollbar.db is a directory"), "{}", check());
    assert!(refused(&scratch.0, "true", &[]).contains("can't be opened or written"));
    std::fs::remove_dir(&file).unwrap();
    // Nobody, not even root, can create a file there.
    let nowhere = config(&provider, "open").replace("state/tollbar.db", "/proc/tollbar.db");
    std::fs::write(scratch.0.join("tollbar.yaml"), nowhere).unwrap();
    assert!(refused(&scratch.0, "true", &[]).contains("can't be opened or written"));
}

/// The first page is in order, and nothing after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_damaged_behind_its_header_is_told_as_well() {
    let provider = provider();
    let mut server = start(&provider, "closed");
    assert_eq!(ask(&server).await.0, 200);
    server.signal("TERM");
    assert!(server.wait_exit(Duration::from_secs(10)).is_some_and(|status| status.success()));
    let file = server.scratch.0.join("state/tollbar.db");
    let mut bytes = std::fs::read(&file).unwrap();
    let pages = bytes.len() / 4096;
    assert!(pages > 8, "{pages} pages");
    bytes[4096..].fill(0xa5);
    std::fs::write(&file, bytes).unwrap();
    let dir = &server.scratch.0;
    assert!(refused(dir, "true", &[]).contains("not a Tollbar database, or damaged"));
}

#[tokio::test]
async fn a_read_only_directory_is_told_at_the_start() {
    if !may_mount("a_read_only_directory_is_told_at_the_start") {
        return;
    }
    let provider = provider();
    let scratch = Scratch::new();
    std::fs::write(scratch.0.join("tollbar.yaml"), config(&provider, "closed")).unwrap();
    let empty = "mkdir -p state && mount -t tmpfs none state && mount -o remount,ro state";
    assert!(refused(&scratch.0, empty, &MOUNTING).contains("can't be opened or written"));
    // With a database that an earlier start has left there.
    let server = start(&provider, "closed");
    let left = server.scratch.0.join("state/tollbar.db").display().to_string();
    let copied = format!(
        "mkdir -p state && mount -t tmpfs none state && cp {left} state/ && mount -o remount,ro state"
    );
    assert!(refused(&scratch.0, &copied, &MOUNTING).contains("can't be opened or written"));
}
