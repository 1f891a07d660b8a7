//! What bounds an answer that is drained: memory, the client's own pace, the end of the process, a
//! fault of our own.

use crate::drained::{
    COST, DRAIN, SOON, ask_and_fall_silent, ask_and_leave, at_rest, config, held, only_row,
    scripted, seen_leaving, start,
};
use crate::support::*;
use serde_json::json;
use std::time::{Duration, Instant};
use tollbar_loadtest::provider::{Gate, Script};

/// What nobody wants is read, and not kept.
#[tokio::test]
async fn a_drained_answer_takes_no_memory() {
    const SIZE: usize = 80 << 20;
    let provider = provider();
    let server = Server::start(&config(&provider, DRAIN, ""));
    for (n, name) in ["h1", "h2"].into_iter().enumerate() {
        provider.clear();
        let gate = Gate::new();
        let script = Script { size: Some(SIZE), chunks: Some(1024), ..scripted(&gate) };
        provider.script(&format!("sim-{name}"), vec![script]);
        ask_and_fall_silent(&server, &provider, &chat_stream(name), &gate).await;
        let before = peak(&server);
        gate.open();
        let line = server.log(n + 1).await.pop().unwrap();
        assert_eq!(cost(&only_row(&server, &line).await), COST, "{line}");
        // What the kernel says is a little behind the truth: it may seem to shrink.
        let grown = peak(&server).saturating_sub(before);
        assert!(grown < SIZE as u64 * 2 / 3, "upstream {name}: {grown} bytes");
    }
}

/// A request's deadline is that of its draining too.
#[tokio::test]
async fn an_answer_that_does_not_begin_is_drained_until_the_deadline() {
    let provider = provider();
    let server = start(&(config(&provider, DRAIN, "") + "attempts: { deadline: 1s }\n"));
    for (left, name) in (1..).zip(["h1", "h2"]) {
        provider.clear();
        let gate = Gate::new();
        provider.script(&format!("sim-{name}"), vec![scripted(&gate)]);
        ask_and_leave(&server, &provider, left == 2, &chat(name), &gate).await;
        seen_leaving(&server, left).await;
        let line = server.log(2 * left - 1).await.pop().unwrap();
        assert_eq!((&line["status"], &line["client_gone"]), (&json!(499), &json!(true)), "{line}");
        let row = only_row(&server, &line).await;
        assert_eq!(row["outcome"], "deadline", "upstream {name}: {row}");
        assert_eq!(provider.requests().len(), 1, "{line}");
        at_rest(&server, &provider).await;
    }
}

/// The most memory that the process has had, in bytes.
fn peak(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// A client that reads slowly has not left. When it does leave, the write that it kept waiting is
/// what tells.
#[tokio::test]
async fn a_slow_reader_has_not_left_until_it_does() {
    const SIZE: usize = 32 << 20;
    let provider = provider();
    let server = start(&config(&provider, DRAIN, ""));
    for leaves in [false, true] {
        provider.clear();
        let script = Script { size: Some(SIZE), chunks: Some(1024), ..scripted(&Gate::new()) };
        provider.script("sim-h1", vec![Script { gate: None, ..script }]);
        let url = server.url("/v1/chat/completions");
        let mut answer = post(&client(), url, chat_stream("h1").to_string()).await;
        assert!(answer.chunk().await.unwrap().is_some());
        // It stands still once the sockets between them are full.
        let sent = || provider.requests()[0].bytes_sent;
        let (mut before, mut still) = (sent(), 0);
        let until = Instant::now() + SOON;
        while still < 20 {
            assert!(Instant::now() < until, "it never stands still");
            tokio::time::sleep(Duration::from_millis(10)).await;
            still = if sent() == before { still + 1 } else { 0 };
            before = sent();
        }
        assert!((before as usize) < SIZE, "nothing holds the provider back");
        if leaves {
            drop(answer);
        } else {
            while answer.chunk().await.unwrap().is_some() {}
        }
        let line = server.log(if leaves { 3 } else { 1 }).await.pop().unwrap();
        assert_eq!(line["client_gone"], leaves, "{line}");
        let row = only_row(&server, &line).await;
        assert_eq!((cost(&row), &row["client_gone"]), (COST, &json!(leaves)), "{row}");
        assert!(provider.requests()[0].finished_at.is_some());
        at_rest(&server, &provider).await;
    }
}

/// What is drained is waited for when the process ends, as any request is, and no longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_waits_for_what_is_drained_within_its_grace() {
    let provider = provider();
    for (grace, ends) in [("20s", true), ("1s", false)] {
        provider.clear();
        let config = config(&provider, DRAIN, "").replace("drain: 20s", &format!("drain: {grace}"));
        let mut server = start(&(config + "state: { path: state.db }\n"));
        let gate = Gate::new();
        provider.script("sim-h1", vec![scripted(&gate)]);
        ask_and_leave(&server, &provider, false, &chat_stream("h1"), &gate).await;
        seen_leaving(&server, 1).await;
        server.signal("TERM");
        let told = || server.stderr().iter().any(|line| line.contains("draining: 1 requests run"));
        eventually(SOON, told).await;
        if ends {
            gate.open();
        }
        let status = server.wait_exit(SOON).expect("it ends");
        assert!(status.success(), "{status}");
        let server = server.again();
        let until = Instant::now() + SOON;
        while admin(&server, "/budgets").await["data"].as_array().unwrap().is_empty() {
            assert!(Instant::now() < until, "no account");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(held(&server).await, 0, "{grace}");
        if ends {
            let found = admin(&server, "/requests").await;
            let row = &found["data"][0];
            assert_eq!((cost(row), &row["client_gone"]), (COST, &json!(true)), "{found}");
        }
    }
}

/// A fault of our own while nobody listens: the money is not held for ever, nor the place.
#[tokio::test]
async fn a_panic_while_draining_leaves_nothing_behind() {
    let provider = provider();
    for point in ["relay", "settle"] {
        provider.clear();
        let panics = format!("{point}:1.0");
        let vars = [("TOLLBAR_TEST_PANICS", panics.as_str()), ("TOLLBAR_LOG", "debug")];
        let server = Server::start_with(&config(&provider, DRAIN, ""), &vars);
        for round in 1..=2 {
            provider.clear();
            let gate = Gate::new();
            provider.script("sim-h1", vec![scripted(&gate)]);
            // The second one gets the place that the first one had.
            ask_and_leave(&server, &provider, false, &chat("h1"), &gate).await;
            seen_leaving(&server, round).await;
            assert!(held(&server).await > 0, "{point}");
            gate.open();
            let until = Instant::now() + SOON;
            while admin(&server, "/status").await["requests_running"] != 0 {
                assert!(Instant::now() < until, "a request runs on");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let panicked = server.stderr().iter().filter(|line| line.contains("injected")).count();
            assert_eq!(panicked, round, "{point}");
            assert_eq!(held(&server).await, 0, "{point}");
            assert_eq!(server.metric("tollbar_inflight").await, 0.0, "{point}");
        }
    }
}
