//! Every directive, proven over a real socket.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::Duration;

use common::{chat, chat_stream, only, post_chat, provider};
use serde_json::json;
use tollbar_loadtest::provider::Billed;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[tokio::test]
async fn a_plain_model_answers_with_true_usage() {
    let p = provider();
    let raw = post_chat(&p, &chat("sim-small")).await;
    assert_eq!(raw.status, 200);
    assert_eq!(raw.header("content-length").unwrap(), raw.body.len().to_string());
    let json = raw.json();
    let text = json["choices"][0]["message"]["content"].as_str().unwrap();
    assert_eq!(text.split(' ').count(), 16);
    // "Hello, who are you?" is 19 bytes.
    assert_eq!(json["usage"]["prompt_tokens"], 5);
    assert_eq!(json["usage"]["completion_tokens"], 16);
    let billed = Billed { requests: 1, input_tokens: 5, output_tokens: 16 };
    assert_eq!(p.billed(), billed);
    let record = only(&p).await;
    assert_eq!(record.json(), chat("sim-small"));
    assert!(record.finished_at.is_some());
}

#[tokio::test]
async fn status_and_headers() {
    let p = provider();
    let raw = post_chat(&p, &chat("sim-small+status=429+retry-after=60+header=x-a:b")).await;
    assert_eq!(
        (raw.status, raw.header("retry-after"), raw.header("x-a")),
        (429, Some("60"), Some("b"))
    );
    assert_eq!(raw.json()["error"]["code"], "rate_limit_exceeded");
    assert_eq!(p.billed(), Billed::default());
}

#[tokio::test]
async fn delay_is_before_the_headers_and_first_is_after_them() {
    let p = provider();
    let raw = post_chat(&p, &chat_stream("sim+delay=200ms+chunks=1")).await;
    assert!(raw.head_after >= ms(195), "{:?}", raw.head_after);
    let raw = post_chat(&p, &chat_stream("sim+first=300ms+chunks=1")).await;
    let between = raw.body_after - raw.head_after;
    assert!(between >= ms(250), "{between:?}");
    assert!(raw.body_after >= ms(295), "{:?}", raw.body_after);
}

#[tokio::test]
async fn gap_is_between_chunks_and_every_chunk_is_timed() {
    let p = provider();
    let raw = post_chat(&p, &chat_stream("sim+gap=40ms+chunks=4")).await;
    assert!(raw.took >= ms(118), "{:?}", raw.took);
    let record = only(&p).await;
    assert_eq!(record.chunks_sent, 4);
    for pair in record.chunk_times.windows(2) {
        assert!(pair[1] - pair[0] >= ms(39));
    }
}

#[tokio::test]
async fn chunks_and_tokens() {
    let p = provider();
    let raw = post_chat(&p, &chat_stream("sim+chunks=50")).await;
    // Role, 50 chunks, finish, usage, [DONE]: each an HTTP chunk of its own.
    assert_eq!(raw.chunks.len(), 54);
    assert_eq!(raw.events()[52]["usage"]["completion_tokens"], 50);
    let raw = post_chat(&p, &chat_stream("sim+tokens=40+chunks=7")).await;
    assert_eq!(raw.chunks.len(), 11);
    assert_eq!(raw.chat_text().split(' ').count(), 40);
    assert_eq!(p.billed().output_tokens, 90);
    let same = post_chat(&p, &chat("sim+tokens=40")).await.json();
    assert_eq!(same["choices"][0]["message"]["content"], raw.chat_text());
}

#[tokio::test]
async fn the_callers_limit_is_kept() {
    let p = provider();
    let mut body = chat_stream("sim+chunks=50");
    body["max_tokens"] = json!(10);
    let raw = post_chat(&p, &body).await;
    let events = raw.events();
    assert_eq!(events[11]["choices"][0]["finish_reason"], "length");
    assert_eq!(events[12]["usage"]["completion_tokens"], 10);
}

#[tokio::test]
async fn cut_before_the_headers() {
    let p = provider();
    let raw = post_chat(&p, &chat("sim+cut=headers")).await;
    assert_eq!((raw.head.as_str(), raw.body.len()), ("", 0));
    let record = only(&p).await;
    assert!(record.cut_at.is_some() && record.peer_closed_at.is_none());
}

#[tokio::test]
async fn cut_in_mid_stream() {
    let p = provider();
    for n in [0, 1, 3, 99] {
        p.clear();
        let raw = post_chat(&p, &chat_stream(&format!("sim+cut={n}+chunks=10"))).await;
        assert_eq!(raw.status, 200);
        assert!(!raw.whole, "no terminating chunk");
        let texts =
            raw.events().iter().filter(|e| e["choices"][0]["delta"]["content"].is_string()).count();
        assert_eq!(texts, if n == 0 { 0 } else { n.min(10) + 1 });
        assert_eq!(only(&p).await.chunks_sent, n.min(10));
    }
}

#[tokio::test]
async fn cut_in_mid_json() {
    let p = provider();
    for n in [0, 1, 2] {
        let raw = post_chat(&p, &chat(&format!("sim+cut={n}"))).await;
        let length: usize = raw.header("content-length").unwrap().parse().unwrap();
        assert!(!raw.whole && raw.body.len() < length);
        assert_eq!(raw.body.is_empty(), n == 0);
    }
}

#[tokio::test]
async fn nousage() {
    let p = provider();
    assert!(post_chat(&p, &chat("sim+nousage")).await.json().get("usage").is_none());
    let raw = post_chat(&p, &chat_stream("sim+nousage")).await;
    assert!(raw.events().iter().all(|e| e.get("usage").is_none()));
    assert!(raw.text().ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn usage_in_streams_only_when_asked_for() {
    let p = provider();
    let mut body = chat_stream("sim+chunks=2");
    let asked = post_chat(&p, &body).await;
    assert_eq!(asked.text().matches("\"usage\":null").count(), 4);
    body["stream_options"] = json!({ "include_usage": false });
    assert!(!post_chat(&p, &body).await.text().contains("usage"));
}

#[tokio::test]
async fn split_writes_byte_by_byte() {
    let p = provider();
    let raw = post_chat(&p, &chat_stream("sim+split=1+chunks=2")).await;
    assert!(raw.chunks.iter().all(|size| *size == 1));
    assert_eq!(raw.chunks.len(), raw.body.len());
    assert_eq!(raw.chat_text(), "lorem ipsum");
    let raw = post_chat(&p, &chat("sim+split=7")).await;
    assert_eq!(raw.json()["object"], "chat.completion");
}

#[tokio::test]
async fn echo_and_size() {
    let p = provider();
    let mut body = chat_stream("sim+echo+chunks=9");
    body["messages"][0]["content"] = json!("Zürich 東京 👩🏽‍🔬");
    let raw = post_chat(&p, &body).await;
    assert_eq!(raw.chat_text(), body.to_string());
    let raw = post_chat(&p, &chat("sim+size=100000")).await;
    let json = raw.json();
    assert_eq!(json["choices"][0]["message"]["content"].as_str().unwrap().len(), 100_000);
    assert_eq!(json["usage"]["completion_tokens"], 25_000);
}

#[tokio::test]
async fn truncate_ends_well_for_http_and_badly_for_the_dialect() {
    let p = provider();
    let raw = post_chat(&p, &chat_stream("sim+truncate+chunks=3")).await;
    assert!(raw.whole);
    assert!(!raw.text().contains("[DONE]") && !raw.text().contains("\"stop\""));
    assert_eq!(raw.chunks.len(), 4);
    let raw = post_chat(&p, &chat("sim+truncate")).await;
    assert!(raw.whole && serde_json::from_slice::<serde_json::Value>(&raw.body).is_err());
}

#[tokio::test]
async fn errorevent() {
    let p = provider();
    let raw = post_chat(&p, &chat_stream("sim+errorevent=2+chunks=9")).await;
    let events = raw.events();
    assert_eq!((raw.status, events.len()), (200, 4));
    assert_eq!(events[3]["error"]["type"], "server_error");
    assert_eq!(p.billed().output_tokens, 2, "two chunks were delivered, and no more");
}

#[tokio::test]
async fn reported_usage() {
    let p = provider();
    let raw =
        post_chat(&p, &chat_stream("sim+input=1000+output=70+cached=900+reasoning=64+chunks=3"))
            .await;
    let usage = &raw.events()[5]["usage"];
    assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"]), (&json!(1000), &json!(70)));
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 900);
    assert_eq!(usage["completion_tokens_details"]["reasoning_tokens"], 64);
    let billed = Billed { requests: 1, input_tokens: 1000, output_tokens: 70 };
    assert_eq!(p.billed(), billed);
}

#[tokio::test]
async fn tool_calls_come_in_pieces() {
    let p = provider();
    let mut body = chat_stream("sim+tool+chunks=4");
    body["tools"] = json!([{ "type": "function", "function": { "name": "get_weather" } }]);
    let events = post_chat(&p, &body).await.events();
    let call = |e: &serde_json::Value| e["choices"][0]["delta"]["tool_calls"][0].clone();
    assert_eq!(call(&events[0])["function"]["name"], "get_weather");
    let arguments: String = events
        .iter()
        .filter_map(|e| call(e)["function"]["arguments"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(serde_json::from_str::<serde_json::Value>(&arguments).unwrap()["city"], "Zürich");
    assert_eq!(events[5]["choices"][0]["finish_reason"], "tool_calls");
    body["tools"] = json!([]);
    assert!(post_chat(&p, &body).await.text().contains("lorem"));
}

#[tokio::test]
async fn several_choices_take_turns() {
    let p = provider();
    let mut body = chat_stream("sim+chunks=3");
    body["n"] = json!(2);
    let events = post_chat(&p, &body).await.events();
    let order: Vec<_> = events.iter().filter_map(|e| e["choices"][0]["index"].as_u64()).collect();
    assert_eq!(order, [0, 1, 0, 1, 0, 1, 0, 1, 0, 1]);
    assert_eq!(events[10]["usage"]["completion_tokens"], 6);
}

#[tokio::test]
async fn a_mistake_in_a_directive_is_a_400() {
    let p = provider();
    let raw = post_chat(&p, &chat("sim+cutt=3")).await;
    assert_eq!(raw.status, 400);
    assert!(raw.text().contains("cutt"));
}
