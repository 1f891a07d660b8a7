//! Clients that never finish what they begin take nothing from those that do.

use crate::raw::Raw;
use crate::support::*;
use std::time::{Duration, Instant};
use tollbar_loadtest::provider::{Gate, Script};

const SLOW: usize = 500;

/// What has come of the slow bodies.
const BEGUN: &str = r#"{"model":"#;

/// Half-open connections, half headers, half bodies and HTTP/2 that says nothing: none of them
/// holds a permit, a share of the byte budget that others need, or a thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_dawdlers_are_in_nobodys_way() {
    let provider = provider();
    // So little that slow bodies would fill it, were it taken before they come.
    let head = head_with("threads: 2, max_body_bytes: 64KiB, max_buffered_bytes: 48MiB", "");
    let limited = head.replace("unlimited: true", "unlimited: true, limits: { parallel: 4 }");
    let models = model("gpt", "sim-gpt", "") + &model("slow", "sim-slow", "");
    let server = Server::start(&config_of(&limited, &provider, "", &models));
    let begin = |n: usize| match n % 4 {
        0 => Vec::new(),
        1 => b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthor".to_vec(),
        2 => format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\n\
             content-length: 60000\r\n\r\n{BEGUN}"
        )
        .into_bytes(),
        _ => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec(),
    };
    let mut dawdlers = Vec::new();
    for n in 0..SLOW {
        let mut raw = Raw::connect(server.data[0]).await;
        assert!(raw.send(&begin(n)).await);
        dawdlers.push(raw);
    }
    let bodies = (SLOW / 4 * 60_000) as f64;
    buffered(&server, |bytes| bytes >= bodies).await;
    // A stream that is open meanwhile, and requests on both protocols.
    let gate = Gate::new();
    let script = Script { gate: Some(gate.clone()), chunks: Some(3), ..Script::default() };
    provider.script("sim-slow", vec![script]);
    gate.release(1);
    let url = server.url("/v1/chat/completions");
    let mut stream = post(&client(), url.clone(), chat_stream("slow").to_string()).await;
    assert!(stream.chunk().await.unwrap().is_some());
    let (h1, h2) = (client(), h2_client());
    for n in 0..100 {
        let http = if n % 2 == 0 { &h1 } else { &h2 };
        let answer = post(http, url.clone(), chat("gpt").to_string()).await;
        assert_eq!(answer.status(), 200, "request {n}: {}", answer.text().await.unwrap());
    }
    gate.open();
    while stream.chunk().await.unwrap().is_some() {}
    // One of them finishes after all, and is served.
    let rest = r#""gpt","messages":[{"role":"user","content":"Hello"}]}"#;
    assert!(dawdlers[2].send(format!("{rest:0$}", 60_000 - BEGUN.len()).as_bytes()).await);
    let (status, _, body) = dawdlers[2].answer().await.unwrap();
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    drop(dawdlers);
    buffered(&server, |bytes| bytes == 0.0).await;
    assert_eq!(post(&h1, url, chat("gpt").to_string()).await.status(), 200);
}

const OTHER: &str = "tb-other-key";

/// Settings of `server`, and a second key with these limits and models.
fn with_other(server: &str, of_key: &str) -> String {
    let key = format!("  - {{ id: other, hash: \"{}\", {of_key} }}\n", hash(OTHER));
    head_with(server, &key)
}

/// Says that `length` bytes come, and sends so many of them.
async fn unfinished(server: &Server, length: usize, sent: usize) -> Raw {
    let mut raw = Raw::connect(server.data[0]).await;
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-api-key: {OTHER}\r\n\
         content-length: {length}\r\n\r\n"
    );
    assert!(raw.send(head.as_bytes()).await && raw.send(&vec![b'x'; sent]).await);
    raw
}

/// A promise is no body: with one byte of each of eight, a key that may use hardly anything shut
/// out everybody.
#[tokio::test]
async fn bodies_that_are_only_announced_shut_nobody_out() {
    let provider = provider();
    let limits = "models: [spare], unlimited: true, limits: { rpm: 1, parallel: 1 }";
    let head = with_other("threads: 2", limits);
    let models = model("gpt", "sim-gpt", "") + &model("spare", "sim-spare", "");
    let server = Server::start(&config_of(&head, &provider, "", &models));
    let mut idle = Vec::new();
    for _ in 0..8 {
        idle.push(unfinished(&server, 64 << 20, 1).await);
    }
    buffered(&server, |bytes| bytes >= f64::from(8 << 16)).await;
    let answer = post(&client(), server.url("/v1/chat/completions"), chat("gpt").to_string()).await;
    assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
}

/// Nor do those that have come almost whole: of the buffer one key's have half.
#[tokio::test]
async fn unfinished_bodies_of_one_key_fill_half_of_the_buffer() {
    const SIZE: usize = 2 << 20;
    let provider = provider();
    let server = "threads: 2, max_body_bytes: 2MiB, max_buffered_bytes: 8MiB";
    let head = with_other(server, "models: [gpt], unlimited: true");
    let server = Server::start(&config_of(&head, &provider, "", &model("gpt", "sim-gpt", "")));
    let mut slow = Vec::new();
    for _ in 0..2 {
        slow.push(unfinished(&server, SIZE, SIZE - 1).await);
    }
    buffered(&server, |bytes| bytes >= (2 * SIZE) as f64).await;
    let mut third = unfinished(&server, SIZE, 0).await;
    let (status, head, body) = third.answer().await.unwrap();
    assert_eq!(status, 503);
    assert!(head.contains("retry-after: 1"), "{head}");
    let error: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(error["error"]["code"], "overloaded");
    let message = error["error"]["message"].as_str().unwrap();
    assert!(message.contains("`other`") && message.contains("max_buffered_bytes"), "{message}");
    let mut large = chat("gpt");
    large["messages"][0]["content"] = "x".repeat(SIZE - 1000).into();
    let answer = post(&client(), server.url("/v1/chat/completions"), large.to_string()).await;
    assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
    // One that is complete makes room for the next.
    assert!(slow[0].send(b"x").await);
    assert_eq!(slow[0].answer().await.unwrap().0, 400);
    let mut fourth = unfinished(&server, SIZE, SIZE).await;
    assert_eq!(fourth.answer().await.unwrap().0, 400, "it is read, and no JSON");
    drop(slow);
    buffered(&server, |bytes| bytes == 0.0).await;
}

/// A body that doesn't come to its end before the drain does is refused, and logged as any other;
/// so is one that is only read away.
#[tokio::test]
async fn a_slow_body_is_told_of_the_end() {
    let provider = provider();
    let head = with_other("threads: 2, drain: 1s", "models: [gpt], unlimited: true");
    let config = config_of(&head, &provider, "", &model("gpt", "sim-gpt", ""));
    let mut server = Server::start(&config);
    let mut slow = unfinished(&server, 60_000, 1).await;
    let mut stranger = Raw::connect(server.data[0]).await;
    let request = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 60000\r\n\r\n{";
    assert!(stranger.send(request.as_bytes()).await);
    let until = Instant::now() + Duration::from_secs(10);
    while admin(&server, "/status").await["requests_running"] != 2 {
        assert!(Instant::now() < until, "two requests never run");
    }
    server.signal("TERM");
    let (status, _, body) = slow.answer().await.expect("it is told");
    assert_eq!(status, 503, "{}", String::from_utf8_lossy(&body));
    let (status, ..) = stranger.answer().await.expect("so is a stranger");
    assert_eq!(status, 401);
    assert!(server.wait_exit(Duration::from_secs(20)).expect("it ends").success());
    let log = server.log(2).await;
    let mut codes: Vec<_> = log.iter().map(|line| line["code"].as_str().unwrap()).collect();
    codes.sort_unstable();
    assert_eq!(codes, ["draining", "invalid_api_key"], "{log:?}");
}

async fn buffered(server: &Server, enough: impl Fn(f64) -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !enough(server.metric("tollbar_buffered_bytes").await) {
        assert!(Instant::now() < until, "bytes in memory are not what they should be");
    }
}

/// A client that has stopped reading keeps an answer, and what is held for it, no longer than
/// `idle_timeout`.
#[tokio::test]
async fn who_does_not_read_is_let_go() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://127.0.0.1:{}", listener.local_addr().unwrap().port());
    let endless = tokio::spawn(async move {
        let mut raw = Raw::over(listener.accept().await.unwrap().0);
        raw.request().await;
        raw.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n").await;
        let event = format!("data: {}\n\n", "x".repeat(64 * 1024));
        while raw.send(event.as_bytes()).await {}
    });
    let server = Server::start(&format!(
        "{}providers:\n  p: {{ dialect: openai, base_url: \"{base}\" }}\nmodels:\n{}",
        head_with("threads: 2, idle_timeout: 1s", ""),
        model("gpt", "sim-gpt", "")
    ));
    let mut deaf = Raw::connect(server.data[0]).await;
    let body = chat_stream("gpt").to_string();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    deaf.send(request.as_bytes()).await;
    let ended = tokio::time::timeout(Duration::from_secs(20), endless).await;
    assert!(ended.is_ok(), "the provider still sends");
    let line = server.log(1).await.pop().unwrap();
    assert_eq!(line["client_gone"], true, "{line}");
}

/// The same before anybody knows who it is: refusals are answers, too.
#[tokio::test]
async fn who_does_not_read_refusals_is_let_go() {
    let provider = provider();
    let head = head_with("threads: 2, idle_timeout: 1s", "");
    let server = Server::start(&config_of(&head, &provider, "", &model("gpt", "sim-gpt", "")));
    let mut deaf = Raw::connect(server.data[0]).await;
    let request = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-api-key: tb-no\r\n\
                   content-length: 2\r\n\r\n{}";
    let requests = request.repeat(100);
    let sent = async { while deaf.send(requests.as_bytes()).await {} };
    let let_go = tokio::time::timeout(Duration::from_secs(60), sent).await;
    assert!(let_go.is_ok(), "the server waits for a client that reads nothing");
}
