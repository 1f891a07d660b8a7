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
