//! Between the header of an answer and its first byte: another target may still give it.

use crate::raw::{Raw, canned};
use crate::support::*;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::net::TcpListener;
use tollbar_loadtest::provider::{Provider, Script};

/// A provider that sends a header and nothing more; `closes`: but the end of the connection.
async fn header_only(kind: &str, closes: bool) -> String {
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: 600\r\nx-from: first\r\n\r\n"
    );
    canned(head.into_bytes(), closes).await
}

/// `m` at the provider that sends a header only, and `spare` at the other.
fn config(first: &str, provider: &Provider, more: &str) -> String {
    let price = "price: { input: 1, output: 2 }";
    format!(
        "{}providers:\n  first: {{ dialect: openai, base_url: \"{first}\", api_key: sk-provider }}\n  \
           p: {{ dialect: openai, base_url: \"{}/v1\", api_key: sk-provider }}\n\
         models:\n  m: {{ targets: [ {{ provider: first, model: sim, {price} }} ], fallbacks: [spare]{more} }}\n  \
           spare: {{ targets: [ {{ provider: p, model: sim-spare, {price} }} ] }}\n",
        head(),
        provider.base()
    )
}

async fn ask(server: &Server, body: &Value) -> reqwest::Response {
    post(&client(), server.url("/v1/chat/completions"), body.to_string()).await
}

#[tokio::test]
async fn a_connection_that_ends_after_the_header_is_no_answer() {
    let provider = provider();
    let server =
        Server::start(&config(&header_only("application/json", true).await, &provider, ""));
    let answer = ask(&server, &chat("m")).await;
    assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
    assert_eq!(answer.headers()["x-tollbar-target"], "p/sim-spare");
    let line = server.log(1).await.pop().unwrap();
    assert_eq!(line["attempts"][0]["outcome"], "read_error", "{line}");
}

/// The client sees one answer, and that is the second target's, with whatever it says.
#[tokio::test]
async fn a_stream_that_never_begins_leaves_no_header() {
    let provider = provider();
    let first = header_only("text/event-stream", false).await;
    let server = Server::start(&config(&first, &provider, ", first_token_timeout: 200ms"));
    let answer = ask(&server, &chat_stream("m")).await;
    assert_eq!(answer.status(), 200);
    assert!(!answer.headers().contains_key("x-from"), "{:?}", answer.headers());
    assert_eq!(answer.headers()["x-tollbar-target"], "p/sim-spare");
    assert_eq!(answer.headers()["x-tollbar-attempts"], "2");
    assert!(answer.text().await.unwrap().ends_with("data: [DONE]\n\n"));
    for status in [400, 500] {
        provider.set_default("sim-spare", Script::status(status));
        let answer = ask(&server, &chat_stream("m")).await;
        let told = answer.status().as_u16();
        assert_eq!(told, if status == 400 { 400 } else { 502 });
        let error: Value = answer.json().await.unwrap();
        assert!(error["error"].is_object(), "{error}");
    }
}

/// One that has to be tried again because its connection was dead keeps its fallback.
#[tokio::test]
async fn a_dead_connection_takes_no_fallbacks_place() {
    let provider = provider();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let first = format!("http://127.0.0.1:{}", listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        for connection in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            let mut raw = Raw::over(stream);
            tokio::spawn(async move {
                while raw.request().await.is_some() {
                    let (status, body) = match connection {
                        0 => (
                            "200 OK",
                            json!({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}),
                        ),
                        _ => ("503 Service Unavailable", json!({})),
                    };
                    let body = body.to_string();
                    let answer = format!(
                        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                        body.len()
                    );
                    raw.send(answer.as_bytes()).await;
                    if connection == 0 {
                        // The next request on it is read, and never answered.
                        raw.request().await;
                        return;
                    }
                }
            });
        }
    });
    let server = Server::start(&config(&first, &provider, ""));
    assert_eq!(ask(&server, &chat("m")).await.status(), 200);
    let answer = ask(&server, &chat("m")).await;
    assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
    assert_eq!(answer.headers()["x-tollbar-target"], "p/sim-spare");
}

/// Comments keep a connection open while a provider's queue is long (OpenRouter sends them): they
/// are no first token.
#[tokio::test]
async fn comments_are_no_first_token() {
    let provider = provider();
    for answers in [false, true] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let first = format!("http://127.0.0.1:{}", listener.local_addr().unwrap().port());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let mut raw = Raw::over(stream);
                if raw.request().await.is_none() {
                    continue;
                }
                raw.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n").await;
                for _ in 0..10 {
                    raw.send(b": PROCESSING\n\n").await;
                    tokio::time::sleep(Duration::from_millis(30)).await;
                    if answers {
                        break;
                    }
                }
                let event = json!({"choices": [{"index": 0, "delta": {"content": "ok"}, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": 1, "completion_tokens": 1}});
                raw.send(format!("data: {event}\n\ndata: [DONE]\n\n").as_bytes()).await;
            }
        });
        let config = config(&first, &provider, ", first_token_timeout: 200ms");
        let server = Server::start(&config);
        let answer = ask(&server, &chat_stream("m")).await;
        let target = if answers { "first/sim" } else { "p/sim-spare" };
        assert_eq!(answer.headers()["x-tollbar-target"], target);
        let text = answer.text().await.unwrap();
        assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
        assert_eq!(text.matches(": PROCESSING\n\n").count(), usize::from(answers), "{text}");
        let line = server.log(1).await.pop().unwrap();
        let outcome = if answers { "ok" } else { "first_token_timeout" };
        assert_eq!(line["attempts"][0]["outcome"], outcome, "{line}");
        if answers {
            let row = row(&server, line["request_id"].as_str().unwrap()).await;
            assert!(row["first_token_ms"].as_u64().unwrap() >= 30, "{row}");
        }
    }
}

/// A call has an answer: where there is none, another target may give it.
#[tokio::test]
async fn an_empty_answer_is_none() {
    let provider = provider();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let first = format!("http://127.0.0.1:{}", listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        loop {
            let mut raw = Raw::over(listener.accept().await.unwrap().0);
            tokio::spawn(async move {
                while let Some((_, body)) = raw.request().await {
                    let stream = String::from_utf8_lossy(&body).contains("\"stream\":true");
                    let kind = if stream { "text/event-stream" } else { "application/json" };
                    let body: Value = serde_json::from_slice(&body).unwrap();
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\n");
                    let empty = match body["n"].as_u64() {
                        Some(1) => "HTTP/1.1 204 No Content\r\n\r\n".to_owned(),
                        Some(2) => head + "transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
                        _ => head + "content-length: 0\r\n\r\n",
                    };
                    raw.send(empty.as_bytes()).await;
                }
            });
        }
    });
    let server = Server::start(&config(&first, &provider, ""));
    let [mut no_content, mut chunked] = [chat("m"), chat("m")];
    no_content["n"] = json!(1);
    chunked["n"] = json!(2);
    for body in [chat("m"), chat_stream("m"), no_content, chunked] {
        let answer = ask(&server, &body).await;
        assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
        assert_eq!(answer.headers()["x-tollbar-target"], "p/sim-spare");
        assert!(!answer.text().await.unwrap().is_empty());
    }
}
