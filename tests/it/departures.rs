//! A client that leaves takes its upstream call with it, within a second.

use crate::drained::seen_leaving;
use crate::raw::Raw;
use crate::support::*;
use serde_json::json;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tollbar_loadtest::provider::{Gate, Script};

/// Client and upstream in both HTTP versions; streamed, and waiting for the answer's header.
#[tokio::test]
async fn the_upstream_call_ends_when_the_client_leaves() {
    let provider = provider();
    let base = provider.base();
    let price = "price: { input: 1, output: 2 }";
    let config = format!(
        "{}providers:\n  \
           h1: {{ dialect: openai, base_url: \"{base}/v1\", http2: never }}\n  \
           h2: {{ dialect: openai, base_url: \"{base}/v1\", http2: always }}\n\
         models:\n  \
           m1: {{ targets: [ {{ provider: h1, model: sim-m1, {price} }} ] }}\n  \
           m2: {{ targets: [ {{ provider: h2, model: sim-m2, {price} }} ] }}\n",
        head()
    );
    let server = Server::start(&config);
    let mut left = 0;
    for name in ["m1", "m2"] {
        for h2 in [false, true] {
            for stream in [false, true] {
                // A second is short for a machine that compiles at the same time: the best of three.
                for last in [false, false, true] {
                    left += 1;
                    let what = format!("upstream {name}, client h2 {h2}, streamed {stream}");
                    provider.clear();
                    let gate = Gate::new();
                    let script =
                        Script { gate: Some(gate.clone()), chunks: Some(50), ..Script::default() };
                    provider.script(&format!("sim-{name}"), vec![script]);
                    let http = if h2 { h2_client() } else { client() };
                    let body = if stream { chat_stream(name) } else { chat(name) };
                    let (own, url) = (http.clone(), server.url("/v1/chat/completions"));
                    let waiting =
                        tokio::spawn(async move { post(&own, url, body.to_string()).await });
                    assert!(provider.wait_for(1, Duration::from_secs(10)).await, "{what}");
                    if stream {
                        gate.release(2);
                        let mut answer = waiting.await.unwrap();
                        // The first event has only the role: the second one has text.
                        let mut seen = Vec::new();
                        while seen.iter().filter(|byte| **byte == b'\n').count() < 4 {
                            seen.extend(answer.chunk().await.unwrap().unwrap());
                        }
                        drop(answer);
                    } else {
                        waiting.abort();
                    }
                    let at = Instant::now();
                    let gone = |all: &[tollbar_loadtest::provider::Recorded]| {
                        all[0].peer_closed_at.is_some()
                    };
                    assert!(
                        provider.wait_until(Duration::from_secs(10), gone).await,
                        "{what}: the upstream call goes on"
                    );
                    let closed = provider.requests()[0].peer_closed_at.unwrap();
                    let took = closed.saturating_duration_since(at);
                    let line = server.log(left).await.pop().unwrap();
                    assert_eq!(
                        (&line["client_gone"], &line["outcome"]),
                        (&true.into(), &"client_gone".into()),
                        "{what}"
                    );
                    if stream {
                        assert!(
                            line["output_tokens"].as_u64().unwrap() >= 1,
                            "{what}: what was delivered counts"
                        );
                    }
                    assert_eq!(provider.requests().len(), 1, "{what}");
                    if took < Duration::from_secs(1) {
                        break;
                    }
                    assert!(!last, "{what}: {took:?}");
                }
            }
        }
    }
    assert_eq!(server.metric("tollbar_inflight{model=\"sim-m1\"").await, 0.0);
    let abandoned =
        server.metric("tollbar_abandoned_streams_total{model=\"sim-m1\",provider=\"h1\"}").await;
    assert!(abandoned >= 2.0, "{abandoned}");
    at_zero(&server, "tollbar_buffered_bytes").await;
}

/// A provider that ends one answer of a chat, tells what becomes of the connection then, and sends
/// the usage when it is let.
async fn one_answer_ends() -> (String, oneshot::Sender<()>, oneshot::Receiver<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://127.0.0.1:{}", listener.local_addr().unwrap().port());
    let (go, let_go) = oneshot::channel::<()>();
    let (closed, is_closed) = oneshot::channel::<()>();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut raw = Raw::over(stream);
        raw.request().await.unwrap();
        let said =
            json!({"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}]});
        let head =
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
        raw.send(format!("{head}data: {said}\n\n").as_bytes()).await;
        tokio::select! {
            next = raw.request() => {
                assert!(next.is_none());
                closed.send(()).unwrap();
            }
            Ok(()) = let_go => {
                let usage = json!({"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 30_000}});
                raw.send(format!("data: {usage}\n\ndata: [DONE]\n\n").as_bytes()).await;
            }
        }
    });
    (base, go, is_closed)
}

/// Asks for `n` answers and leaves when one has ended.
async fn leave_with_the_last_word(base: &str, n: u64) -> Server {
    let config = format!(
        "{}providers:\n  p: {{ dialect: openai, base_url: \"{base}\" }}\nmodels:\n  \
           m: {{ targets: [ {{ provider: p, model: sim, price: {{ input: 1, output: 2 }} }} ] }}\n",
        head()
    );
    let server = Server::start_with(&config, &[("TOLLBAR_LOG", "debug")]);
    let mut body = chat_stream("m");
    body["n"] = n.into();
    let url = server.url("/v1/chat/completions");
    let mut answer = post(&client(), url, body.to_string()).await;
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("stop") {
        seen.extend(answer.chunk().await.unwrap().unwrap());
    }
    server
}

/// Many a client leaves with the last word of its answer. The usage comes behind that, and says what
/// nobody could see: reasoning.
#[tokio::test]
async fn who_leaves_with_the_last_word_leaves_the_usage_to_come() {
    let (base, go, _closed) = one_answer_ends().await;
    let server = leave_with_the_last_word(&base, 1).await;
    seen_leaving(&server, 1).await;
    go.send(()).unwrap();
    let line = server.log(1).await.pop().unwrap();
    assert_eq!(line["client_gone"], true, "{line}");
    assert_eq!(
        (&line["usage_source"], &line["output_tokens"]),
        (&json!("reported"), &json!(30_000)),
        "{line}"
    );
}

/// Of several answers others go on: nobody reads them, and nobody is to pay for them.
#[tokio::test]
async fn who_leaves_with_the_first_of_several_answers_ends_the_others() {
    let (base, _go, closed) = one_answer_ends().await;
    let server = leave_with_the_last_word(&base, 2).await;
    tokio::time::timeout(Duration::from_secs(10), closed).await.unwrap().unwrap();
    let line = server.log(1).await.pop().unwrap();
    assert_eq!(line["outcome"], "client_gone", "{line}");
}

/// What the end of a drain cuts says so to its client and in the log, and costs what it had.
#[tokio::test]
async fn what_the_end_of_the_process_cuts_is_told_and_booked() {
    let provider = provider();
    for (signal, stream) in [("TERM", true), ("INT", true), ("TERM", false)] {
        provider.clear();
        let gap_ms = 200;
        let script = Script { gap_ms, tokens: Some(1000), chunks: Some(1000), ..Script::default() };
        let waits = Script { gate: Some(Gate::new()), ..Script::default() };
        provider.set_default("sim-gpt", if stream { script } else { waits });
        let head = head_with("threads: 2, drain: 1s", "")
            .replace("unlimited: true", "budgets: [ { usd: 1, per: total } ]");
        let models = model("gpt", "sim-gpt", ", max_output_tokens: 5000");
        let config = config_of(&head, &provider, "", &models) + "state: { path: state.db }\n";
        let mut server = Server::start(&config);
        let body = if stream { chat_stream("gpt") } else { chat("gpt") };
        let url = server.url("/v1/chat/completions");
        let asked = tokio::spawn(async move {
            let answer = post(&client(), url, body.to_string()).await;
            (answer.status().as_u16(), answer.headers().clone(), answer.text().await)
        });
        assert!(provider.wait_for(1, Duration::from_secs(5)).await);
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.signal(signal);
        let (status, headers, text) = asked.await.unwrap();
        let text = text.expect("a whole answer");
        assert!(server.wait_exit(Duration::from_secs(9)).expect("it ends").success());
        let line = &server.log(1).await[0];
        let (wanted, code) = if stream { (200, "stream_interrupted") } else { (503, "draining") };
        assert_eq!(status, wanted, "{signal}: {text}");
        assert!(text.contains(code), "{signal}: {text}");
        if !stream {
            // As any refusal of a process that ends: it says when to come back, on another connection.
            assert_eq!(headers["retry-after"], "1", "{signal}");
            assert_eq!(headers["connection"], "close", "{signal}");
            assert!(
                text.contains("shutting down") && text.contains("p/sim-gpt: interrupted after")
            );
        }
        assert_eq!(line["outcome"], if stream { "interrupted" } else { "refused" }, "{line}");
        let id = line["request_id"].as_str().unwrap().to_owned();
        let server = server.again();
        let row = row(&server, &id).await;
        assert_eq!(
            (&row["outcome"], &row["usage_source"]),
            (&"interrupted".into(), &"estimated".into())
        );
        assert!(row["output_tokens"].as_u64().unwrap_or(0) < 100, "not its worst case: {row}");
    }
}

/// What comes behind the last word is waited for, and not for ever.
#[tokio::test]
async fn a_provider_that_says_nothing_behind_the_last_word_is_left() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://127.0.0.1:{}", listener.local_addr().unwrap().port());
    let silent = tokio::spawn(async move {
        let mut raw = Raw::over(listener.accept().await.unwrap().0);
        raw.request().await;
        raw.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n").await;
        let event =
            r#"data: {"choices":[{"index":0,"delta":{"content":"ok"},"finish_reason":"stop"}]}"#;
        raw.send(format!("{event}\n\n").as_bytes()).await;
        raw.rest().await;
    });
    let server = Server::start(&format!(
        "{}providers:\n  p: {{ dialect: openai, base_url: \"{base}\" }}\nmodels:\n{}",
        head(),
        model("gpt", "sim-gpt", "")
    ));
    let url = server.url("/v1/chat/completions");
    let mut answer = post(&client(), url, chat_stream("gpt").to_string()).await;
    assert!(answer.chunk().await.unwrap().is_some());
    drop(answer);
    let left = tokio::time::timeout(Duration::from_secs(15), silent).await;
    assert!(left.is_ok(), "the call goes on");
    let line = server.log(1).await.pop().unwrap();
    assert_eq!(line["client_gone"], true, "{line}");
}
