//! Attempts whose usage nobody reports: they cost what was seen of them, and are attempts.

use crate::support::*;
use serde_json::{Value, json};
use std::time::Duration;
use tollbar_loadtest::provider::{Cut, Provider, Script};

/// Nano-dollars a token.
const IN: u64 = 11;
const OUT: u64 = 13;

fn config(provider: &Provider) -> String {
    let base = provider.base();
    let price = "price: { input: 0.011, output: 0.013 }";
    format!(
        "{}attempts: {{ max: 3, same_target: 0 }}\nproviders:\n  \
           p: {{ dialect: openai, base_url: \"{base}/v1\" }}\n  \
           a: {{ dialect: anthropic, base_url: \"{base}\" }}\n\
         models:\n  \
           gpt: {{ targets: [ {{ provider: p, model: sim-gpt, {price} }} ] }}\n  \
           claude: {{ targets: [ {{ provider: a, model: sim-claude, {price} }} ] }}\n",
        head()
    )
}

/// A pooled connection that breaks within a round trip was dead before, and the request is sent
/// again. One that breaks later has carried it: that is an attempt, and it may be billed.
#[tokio::test]
async fn a_pooled_connection_that_breaks_late_was_an_attempt() {
    let provider = provider();
    let server = Server::start(&config(&provider));
    let http = client();
    let ask = || post(&http, server.url("/v1/chat/completions"), chat("gpt").to_string());
    for (round, (delay_ms, attempts)) in [(0, None), (1_300, Some(1))].into_iter().enumerate() {
        provider.clear();
        assert_eq!(ask().await.status(), 200);
        // Once it is in the log, its connection is in the pool.
        server.log(2 * round + 1).await;
        let cut = Script { delay_ms, cut: Some(Cut::Headers), ..Script::default() };
        provider.script("sim-gpt", vec![cut]);
        let answer = ask().await;
        let made = provider.requests();
        let used: Vec<u64> = made.iter().map(|request| request.connection_id).collect();
        assert_eq!(used[0], used[1], "the second went over a pooled connection");
        let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
        let rows = rows(&server, &id).await;
        if attempts.is_none() {
            assert_eq!((answer.status().as_u16(), made.len(), rows.len()), (200, 3, 1));
            continue;
        }
        assert_eq!((answer.status().as_u16(), made.len(), rows.len()), (502, 2, 1));
        let error: Value = answer.json().await.unwrap();
        assert_eq!(error["error"]["code"], "upstream_error", "{error}");
        let sent = made[1].body.len() as u64;
        assert_eq!(
            (&rows[0]["outcome"], &rows[0]["usage_source"]),
            (&json!("read_error"), &json!("estimated"))
        );
        assert_eq!(cost(&rows[0]), sent.div_ceil(3) * IN, "it may have read the prompt");
    }
}

/// A stream without usage costs at least the text that went past, by three bytes a token.
#[tokio::test]
async fn a_stream_without_usage_costs_what_was_streamed() {
    let provider = provider();
    let server = Server::start(&config(&provider));
    // 40 bytes; with é, 41.
    let text = "The quick brown fox jumps over the lazé.";
    assert_eq!(text.len(), 41);
    let script =
        Script { omit_usage: true, text: Some(text.into()), chunks: Some(5), ..Script::default() };
    provider.set_default("sim-gpt", script);
    provider.set_default(
        "sim-claude",
        // The prompt is told at the start; the end, which has the output, says nothing.
        Script::raw([
            "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"m\",\"type\":\"message\",\"role\":\"assistant\",\"content\":[],\"usage\":{\"input_tokens\":50,\"output_tokens\":1}}}\n\n".to_owned(),
            format!("event: content_block_delta\ndata: {{\"type\":\"content_block_delta\",\"index\":0,\"delta\":{{\"type\":\"text_delta\",\"text\":\"{text}\"}}}}\n\n"),
            "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"}}\n\n".to_owned(),
            "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n".to_owned(),
        ]),
    );
    for (path, model) in
        [("/v1/chat/completions", "gpt"), ("/v1/completions", "gpt"), ("/v1/messages", "claude")]
    {
        provider.clear();
        let mut body = chat_stream(model);
        body["max_tokens"] = 99.into();
        body["prompt"] = "Hello".into();
        let answer = post(&client(), server.url(path), body.to_string()).await;
        let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
        assert_eq!(answer.status(), 200);
        answer.bytes().await.unwrap();
        let row = row(&server, &id).await;
        let input = match model {
            "claude" => 50,
            _ => (provider.requests()[0].body.len() as u64).div_ceil(3),
        };
        assert_eq!(
            (&row["outcome"], &row["usage_source"]),
            (&json!("ok"), &json!("estimated")),
            "{path}"
        );
        assert_eq!(row["output_tokens"], 14, "{path}: 41 bytes");
        assert_eq!(cost(&row), input * IN + 14 * OUT, "{path}: {row}");
    }
    assert!(provider.wait_idle(Duration::from_secs(5)).await);
}

/// OpenAI bills a minute of speech as 1,250 tokens. Uncompressed it is 48,000 bytes a second; of any
/// other format 160 bytes are taken for a token.
#[tokio::test]
async fn sound_without_usage_costs_what_was_spoken() {
    let provider = provider();
    let price = "price: { input: 0.011, output: 0.013, audio_output: 0.037 }";
    let config = config(&provider).replace("price: { input: 0.011, output: 0.013 }", price);
    let server = Server::start(&config);
    let spoken = |bytes: usize| {
        let (data, transcript) = ("A".repeat(bytes / 3 * 4), "eighteen bytes for");
        json!({"choices": [{"delta": {"audio": {"data": data, "transcript": transcript}}}]})
    };
    let stream = |event: Value, end: &str| Script::raw([format!("data: {event}\n\n{end}")]);
    let done =
        "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
    let raw = Script {
        body: Some("x".repeat(16_000)),
        content_type: Some("audio/mpeg".into()),
        ..Script::default()
    };
    let half = json!({"type": "speech.audio.delta", "audio": "A".repeat(20_000)});
    let chat = |format: &str| {
        let mut body = chat_stream("gpt");
        body["audio"] = json!({"voice": "alloy", "format": format});
        ("/v1/chat/completions", body)
    };
    let speech = |more: Value| {
        let mut body = json!({"model": "gpt", "input": "Hello", "voice": "alloy"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ("/v1/audio/speech", body)
    };
    for ((path, body), script, text, sound) in [
        // Ten seconds.
        (chat("pcm16"), stream(spoken(480_000), done), 6, 209),
        (chat("pcm16"), stream(spoken(480_000), ""), 6, 209),
        (chat("opus"), stream(spoken(48_000), done), 6, 300),
        (speech(json!({"stream_format": "sse"})), stream(half, ""), 0, 94),
        (speech(json!({})), raw.clone(), 0, 100),
        (speech(json!({"response_format": "wav"})), raw, 0, 7),
    ] {
        provider.clear();
        provider.set_default("sim-gpt", script);
        let answer = post(&client(), server.url(path), body.to_string()).await;
        let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
        let _ = answer.bytes().await;
        let row = row(&server, &id).await;
        let sent = (provider.requests()[0].body.len() as u64).div_ceil(3);
        assert_eq!(row["usage_source"], "estimated", "{path}: {row}");
        assert_eq!(row["output_tokens"], text + sound, "{path}: {row}");
        assert_eq!(cost(&row), sent * IN + text * OUT + sound * 37, "{path}: {row}");
    }
}
