//! Past `server.max_memory` new work is refused, what runs goes on, and there is a way back.

use crate::support::*;
use crate::systemd::Systemd;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tollbar_loadtest::provider::{Gate, Provider, Script};

const SOON: Duration = Duration::from_secs(20);

fn with_memory(provider: &Provider, max: &str) -> String {
    let head = head_with(&format!("threads: 2, max_memory: {max}"), "");
    config_of(&head, provider, "", &model("gpt", "sim-gpt", ""))
}

async fn reload(server: &Server, text: &str) {
    std::fs::write(server.config_file(), text).unwrap();
    let request = client().post(server.admin_url("/reload")).bearer_auth(ADMIN_TOKEN);
    assert_eq!(request.send().await.unwrap().status(), 200);
}

/// Waits until a small request is answered with this status; returns the answer.
async fn until(server: &Server, status: u16) -> reqwest::Response {
    let (http, until) = (client(), Instant::now() + SOON);
    loop {
        let body = chat("gpt").to_string();
        let answer = post(&http, server.url("/v1/chat/completions"), body).await;
        if answer.status() == status {
            return answer;
        }
        assert!(Instant::now() < until, "{:?}\n{}", answer, server.stderr().join("\n"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Huge pages would have it grow by 2 MiB at a time.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn memory_comes_in_small_pages() {
    let provider = provider();
    let server = Server::start(&with_memory(&provider, "none"));
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    assert!(status.lines().any(|line| line == "THP_enabled:\t0"), "{status}");
    let maps = std::fs::read_to_string(format!("/proc/{}/smaps", server.pid())).unwrap();
    let huge = maps.lines().filter_map(|line| line.strip_prefix("AnonHugePages:"));
    let huge: u64 =
        huge.map(|size| size.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap()).sum();
    assert!(huge <= 4096, "{huge} KiB, more than before the start");
}

/// A tree of it would take a hundred times as much, before any limit is asked.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_body_is_counted_without_a_tree_of_it() {
    let provider = provider();
    let budget = "budgets: [ { usd: 0.000001, per: total } ]";
    let model = "models: { gpt: { context_window: 100000000, max_output_tokens: 1, targets: [ { provider: p, model: m, price: { input: 1, output: 1 } } ] } }";
    let config = format!(
        "{}providers: {{ p: {{ dialect: openai, base_url: \"{}/v1\" }} }}\n{model}\n",
        head().replace("unlimited: true", budget),
        provider.base()
    );
    let server = Server::start(&config);
    let body =
        format!(r#"{{"model":"gpt","messages":[],"x":[{}0]}}"#, r#"{"":0},"#.repeat(1 << 20));
    let answer = post(&client(), server.url("/v1/chat/completions"), body).await;
    assert_eq!(answer.status(), 429);
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let most: u64 = most.trim().strip_suffix(" kB").unwrap().parse().unwrap();
    assert!(most < 300 * 1024, "{most} KiB for a body of 7 MiB");
}

#[tokio::test]
async fn over_the_watermark_only_what_runs_goes_on() {
    let provider = provider();
    let server = Server::start(&with_memory(&provider, "none"));
    assert_eq!(server.metric("tollbar_memory_limit_bytes").await, 0.0);
    assert_eq!(server.metric("tollbar_memory_refusing").await, 0.0);
    let gate = Gate::new();
    let script = Script { gate: Some(gate.clone()), chunks: Some(4), ..Script::default() };
    provider.script("sim-gpt", vec![script]);
    gate.release(1);
    let stream = chat_stream("gpt").to_string();
    let mut running = post(&client(), server.url("/v1/chat/completions"), stream).await;
    let mut got = running.chunk().await.unwrap().unwrap().to_vec();

    reload(&server, &with_memory(&provider, "1MiB")).await;
    let refused = until(&server, 503).await;
    assert_eq!(refused.headers()["retry-after"], "2");
    let error: Value = refused.json().await.unwrap();
    assert_eq!(error["error"]["code"], "overloaded", "{error}");
    assert!(error["error"]["message"].as_str().unwrap().contains("server.max_memory"));
    // Also a body that is not small, and in the other dialect: the connection stays usable.
    let text = "x".repeat(300_000);
    let body = json!({"model": "gpt", "messages": [{"role": "user", "content": text}]});
    let mut raw = Raw::connect(server.data[0]).await;
    for _ in 0..2 {
        let body = body.to_string();
        let head = format!(
            "POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        raw.send(head.as_bytes()).await;
        raw.send(body.as_bytes()).await;
        let (status, _, answer) = raw.answer().await.unwrap();
        assert_eq!(status, 503);
        assert_eq!(serde_json::from_slice::<Value>(&answer).unwrap()["type"], "error");
    }
    for url in [server.url("/healthz"), server.admin_url("/healthz"), server.admin_url("/readyz")] {
        assert_eq!(client().get(&url).send().await.unwrap().status(), 200, "{url}");
    }
    assert_eq!(server.metric("tollbar_memory_limit_bytes").await, f64::from(1 << 20));
    assert_eq!(server.metric("tollbar_memory_refusing").await, 1.0);
    let resident = server.metric("tollbar_memory_bytes").await;
    assert!(resident > f64::from(4 << 20), "{resident}");
    // Two, if one that asked whether it refuses yet was still under way.
    let tells = |line: &String| {
        let goes_on = ["1 go on", "2 go on"].iter().any(|count| line.contains(count));
        line.contains("max_memory") && goes_on
    };
    eventually(SOON, || server.stderr().iter().any(tells)).await;

    gate.open();
    while let Some(more) = running.chunk().await.unwrap() {
        got.extend_from_slice(&more);
    }
    assert!(got.ends_with(b"data: [DONE]\n\n"));
    // Nothing runs, and it is still too much: that has to be told, too.
    let hint = "less than this configuration needs";
    eventually(SOON, || server.stderr().iter().any(|line| line.contains(hint))).await;
    assert_eq!(until(&server, 503).await.status(), 503);

    reload(&server, &with_memory(&provider, "16GiB")).await;
    until(&server, 200).await;
    let told = || server.stderr().iter().any(|line| line.contains("taken again"));
    eventually(Duration::from_secs(10), told).await;
}

/// The most that the process has had resident, in MiB.
#[cfg(target_os = "linux")]
fn peak(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() >> 10
}

/// Parsed, a text may take a hundred times its own memory, and a provider chooses the text.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn no_answer_grows_in_memory() {
    let provider = provider();
    let server = Server::start(&with_memory(&provider, "none"));
    until(&server, 200).await;
    let large = format!("[{}0]", "{\"a\":1},".repeat(400_000));
    for (status, body, stream) in [
        (400, format!("{{\"error\":{large}}}"), false),
        (400, format!("{{\"error\":{{\"message\":{large}}}}}"), false),
        (200, format!("{{\"duration\":{large}}}"), false),
        (200, format!("{{\"usage\":{{\"seconds\":{large}}}}}"), false),
        (200, format!("{{\"usage\":{{\"cost\":{large}}}}}"), false),
        (200, format!("{{\"usage\":{{\"x\":{large},\"y\":\"\\u0061\"}}}}"), false),
        (200, format!("data: {{\"error\":{large}}}\n\n"), true),
        (200, format!("data: {{\"object\":\"error\",\"x\":{large}}}\n\n"), true),
    ] {
        let what = body.chars().take(30).collect::<String>();
        let kind = if stream { "text/event-stream" } else { "application/json" };
        let script =
            Script { body: Some(body), content_type: Some(kind.into()), ..Script::status(status) };
        provider.script("sim-gpt", vec![script]);
        let before = peak(&server);
        let ask = if stream { chat_stream("gpt") } else { chat("gpt") };
        let answer = post(&client(), server.url("/v1/chat/completions"), ask.to_string()).await;
        assert_eq!(answer.status(), status, "{what}");
        answer.bytes().await.unwrap();
        // The kernel's count is not exact.
        let grown = peak(&server).saturating_sub(before);
        assert!(grown < 64, "{what}: {grown} MiB for {} bytes", large.len());
    }
}

/// The allocator keeps what was freed. It is asked for it, so that refusing has an end. What
/// systemd shows is then what it was before: that a reload was refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_recovers_by_itself_once_the_work_is_done() {
    let provider = provider();
    let systemd = Systemd::new();
    let server = systemd.start(&with_memory(&provider, "none"), &[]);
    until(&server, 200).await;
    eventually(SOON, || !server.stdout().is_empty()).await;
    let idle = server.metric("tollbar_memory_bytes").await;
    let mib = |bytes: f64| bytes as u64 >> 20;
    let mark = mib(idle) + 60;
    reload(&server, &with_memory(&provider, &format!("{mark}MiB"))).await;
    let gate = Gate::new();
    provider.set_default("sim-gpt", Script { gate: Some(gate.clone()), ..Script::default() });
    // Bodies that wait for their answers, until one is refused; none so large that the refusal
    // comes with the end of its connection.
    let text = "y".repeat(900_000);
    let body = json!({"model": "gpt", "messages": [{"role": "user", "content": text}]});
    let body = bytes::Bytes::from(body.to_string());
    let mut running = Vec::new();
    while running.len() < 300 {
        let (url, body) = (server.url("/v1/chat/completions"), body.clone());
        let before = provider.requests().len();
        running.push(tokio::spawn(async move { post(&client(), url, body).await.status() }));
        let new = running.last().unwrap();
        eventually(SOON, || provider.requests().len() > before || new.is_finished()).await;
        if new.is_finished() {
            break;
        }
    }
    assert_eq!(running.pop().unwrap().await.unwrap(), 503, "{} bodies fit", running.len());
    std::fs::write(server.config_file(), "listeners: 1").unwrap();
    let refused = client().post(server.admin_url("/reload")).bearer_auth(ADMIN_TOKEN);
    assert_eq!(refused.send().await.unwrap().status(), 400);
    let most = server.metric("tollbar_memory_bytes").await;
    assert!(mib(most) > mib(idle) + 20 && running.len() > 5, "{most} with {}", running.len());
    gate.open();
    let began = Instant::now();
    let held = running.len();
    for request in running {
        assert_eq!(request.await.unwrap(), 200);
    }
    until(&server, 200).await;
    let after = server.metric("tollbar_memory_bytes").await;
    println!(
        "idle {} MiB, {held} bodies: {} MiB, {} MiB {:?} after",
        mib(idle),
        mib(most),
        mib(after),
        began.elapsed()
    );
    assert!(mib(after) < mark);
    while !systemd.next().join(" ").starts_with("READY=1 STATUS=reload refused") {}
    let mut said = std::iter::repeat_with(|| systemd.next().join(" "));
    let last = said.find(|said| !said.contains("over server.max_memory")).unwrap();
    assert!(last.starts_with("STATUS=reload refused, configuration generation 2"), "{last}");
}
