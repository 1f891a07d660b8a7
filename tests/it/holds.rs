//! What is held before an attempt, for the requests whose worst case is not plain to see.

use crate::support::*;
use serde_json::{Value, json};
use std::time::Duration;
use tollbar_loadtest::provider::{Gate, Provider, Script};

/// Input costs nothing; a thousand tokens of output are a dollar.
const PRICE: &str = "price: { input: 0, output: 1000 }";

fn config(provider: &Provider) -> String {
    let base = provider.base();
    format!(
        "{}providers:\n  openai: {{ dialect: openai, base_url: \"{base}/v1\" }}\n  \
           anthropic: {{ dialect: anthropic, base_url: \"{base}\" }}\n\
         models:\n  \
         claude: {{ targets: [ {{ provider: anthropic, model: c, {PRICE} }} ] }}\n  \
         reader: {{ targets: [ {{ provider: openai, model: r, price: {{ input: 1, output: 0 }} }} ] }}\n  \
         whisper: {{ context_window: 2000, targets: [ {{ provider: openai, model: w, {PRICE} }} ] }}\n  \
         endless: {{ targets: [ {{ provider: openai, model: e, {PRICE} }} ] }}\n  \
         gpt: {{ context_window: 1000, targets: [ {{ provider: openai, model: g, {PRICE} }} ] }}\n  \
         listed: {{ max_output_tokens: 9, targets: [ {{ provider: openai, model: gpt-5.6 }} ] }}
  \
         seen: {{ max_output_tokens: 1, targets: [ {{ provider: openai, model: gpt-4o-2024-08-06 }} ] }}\n  \
         say: {{ max_output_tokens: 9, targets: [ {{ provider: openai, model: gpt-4o-mini-tts }} ] }}\n  \
         gpt-image-1: {{ targets: [ {{ provider: openai, model: gpt-image-1 }} ] }}\n  \
         gpt-image-2: {{ targets: [ {{ provider: openai, model: gpt-image-2 }} ] }}\n  \
         bounded: {{ max_output_tokens: 9000, targets: [ {{ provider: openai, model: gpt-image-2 }} ] }}\n",
        head().replace("unlimited: true", "budgets: [ { usd: 100, per: total } ]")
    )
}

/// What is held while the provider is asked, and the bytes that it was sent; or the refusal.
async fn held(
    server: &Server,
    provider: &Provider,
    request: reqwest::RequestBuilder,
) -> Result<(u64, u64), Value> {
    let gate = Gate::new();
    provider.clear();
    provider.set_default("*", Script { gate: Some(gate.clone()), ..Script::default() });
    let sent = tokio::spawn(request.bearer_auth(KEY).send());
    while !provider.wait_for(1, Duration::from_millis(20)).await {
        if sent.is_finished() {
            let answer = sent.await.unwrap().unwrap();
            assert_eq!(answer.status(), 400);
            return Err(answer.json().await.unwrap());
        }
    }
    let account = &admin(server, "/budgets").await["data"][0];
    let held = nano(&account["held_usd"].to_string());
    gate.open();
    sent.await.unwrap().unwrap().bytes().await.unwrap();
    Ok((held, provider.requests()[0].body.len() as u64))
}

fn transcription(server: &Server, model: &str) -> reqwest::RequestBuilder {
    let form = format!(
        "--x\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\n{model}\r\n--x\r\n\
         content-disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\nRIFF\r\n--x--\r\n"
    );
    let request = client().post(server.url("/v1/audio/transcriptions"));
    request.header("content-type", "multipart/form-data; boundary=x").body(form)
}

#[tokio::test]
async fn a_transcription_holds_all_the_text_that_it_may_make() {
    let provider = provider();
    let server = Server::start(&config(&provider));
    let (nano, _) = held(&server, &provider, transcription(&server, "whisper")).await.unwrap();
    assert_eq!(nano, 2_000_000_000, "2,000 tokens at $1 a thousand");
    let refused = held(&server, &provider, transcription(&server, "endless")).await.unwrap_err();
    assert!(refused["error"]["message"].as_str().unwrap().contains("nothing bounds the output"));
}

/// A cap under a name that the endpoint doesn't know is obeyed by nobody.
#[tokio::test]
async fn a_cap_of_another_endpoint_bounds_nothing() {
    let provider = provider();
    let server = Server::start(&config(&provider));
    let dollar = 1_000_000_000;
    let cent = 10_000_000;
    let cases = [
        ("/v1/chat/completions", "max_tokens", cent),
        ("/v1/chat/completions", "max_completion_tokens", cent),
        ("/v1/chat/completions", "max_output_tokens", dollar),
        ("/v1/completions", "max_tokens", cent),
        ("/v1/completions", "max_completion_tokens", dollar),
        ("/v1/responses", "max_output_tokens", cent),
        ("/v1/responses", "max_tokens", dollar),
    ];
    for (path, cap, wanted) in cases {
        let mut body = json!({"model": "gpt", "messages": [], "prompt": "Hi", "input": "Hi"});
        body[cap] = 10.into();
        let request = client().post(server.url(path)).json(&body);
        let (nano, _) = held(&server, &provider, request).await.unwrap();
        assert_eq!(nano, wanted, "{path} {cap}");
    }
}

/// Both tools are held as the same windows; a search in OpenAI's files is $2.50 a thousand beside.
#[tokio::test]
async fn searches_in_stored_files_are_held_as_often_as_they_may_be() {
    let provider = provider();
    let server = Server::start(&config(&provider));
    let with = |tool: &str| {
        let body = json!({"model": "listed", "input": "Hi", "max_tool_calls": 3,
            "tools": [{"type": tool}]});
        client().post(server.url("/v1/responses")).json(&body)
    };
    let (other, _) = held(&server, &provider, with("mcp")).await.unwrap();
    let (files, _) = held(&server, &provider, with("file_search")).await.unwrap();
    assert_eq!(files, other + 3 * 2_500_000);
}

/// gpt-image-1: $5 a million in, $40 out; a picture is 6,563 tokens at most.
#[tokio::test]
async fn a_picture_holds_its_makers_bound_or_is_refused() {
    let provider = provider();
    let server = Server::start(&config(&provider));
    let draw = |model: &str, n: u64| {
        let body = json!({"model": model, "prompt": "A cat", "n": n});
        client().post(server.url("/v1/images/generations")).json(&body)
    };
    for n in [1, 4] {
        let (nano, sent) = held(&server, &provider, draw("gpt-image-1", n)).await.unwrap();
        let drawn = n * 6_563 * 40_000;
        assert!((drawn + 1..=drawn + sent * 5_000).contains(&nano), "{nano} {sent}");
    }
    let refused = held(&server, &provider, draw("gpt-image-2", 1)).await.unwrap_err();
    assert!(refused["error"]["message"].as_str().unwrap().contains("max_output_tokens"));
    // The operator's word: $5 a million in, $30 out.
    let (nano, sent) = held(&server, &provider, draw("bounded", 2)).await.unwrap();
    let drawn = 2 * 9_000 * 30_000;
    assert!((drawn + 1..=drawn + sent * 5_000).contains(&nano), "{nano} {sent}");
}

/// Seconds of a processor that the server has used.
fn processor(server: &Server) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.pid())).unwrap();
    // Behind the name come the state and ten others, then user and system time in hundredths.
    let (_, rest) = stat.rsplit_once(')').unwrap();
    let ticks = rest.split_whitespace().skip(11).take(2);
    ticks.map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() / 100.0
}

/// Who is refused pays nothing, and no limit of requests counts it: it must cost little here, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_text_is_not_counted_for_a_budget_that_no_count_would_fit() {
    let provider = provider();
    let keys = |clamps: &str| {
        let key = |id: &str, usd: &str| {
            format!(
                "  - {{ id: {id}, hash: \"{}\", models: [\"*\"]{clamps}, budgets: [ {{ usd: {usd}, per: total }} ] }}\n",
                hash(id)
            )
        };
        key("poor", "0.000001") + &key("near", "0.05")
    };
    let text = "The quick brown fox jumps over the lazy dog. ".repeat(10_000);
    for clamps in ["", ", low_budget: clamp"] {
        let head = head_with("threads: 2", &keys(clamps));
        let server = Server::start(&config_of(&head, &provider, "", &model("gpt", "g", "")));
        let (http, server) = (client(), &server);
        let body = json!({"model": "gpt", "max_tokens": 100,
            "messages": [{"role": "user", "content": text}]});
        let used = async |key: &str| {
            let before = processor(server);
            for _ in 0..5 {
                let url = server.url("/v1/chat/completions");
                let answer = http.post(url).bearer_auth(key).json(&body).send().await.unwrap();
                assert_eq!(answer.status(), 429);
                let refused: Value = answer.json().await.unwrap();
                assert_eq!(refused["error"]["code"], "budget_exceeded", "{refused}");
            }
            processor(server) - before
        };
        // The first count reads the tables.
        used("near").await;
        let (near, poor) = (used("near").await, used("poor").await);
        assert!(poor < near / 2.0, "{poor} s beside {near} s");
    }
}

/// A text that is read aloud bounds the sound, since its endpoint knows no cap.
#[tokio::test]
async fn speech_is_held_by_its_text() {
    let provider = provider();
    let server = Server::start(&config(&provider));
    let body = json!({"model": "say", "voice": "v", "input": "7".repeat(1_000)});
    let request = client().post(server.url("/v1/audio/speech")).json(&body);
    let (nano, _) = held(&server, &provider, request).await.unwrap();
    let sound = 1_000 * 16 * 12_000;
    assert!((sound..sound + sound / 10).contains(&nano), "{nano}");
}

/// GPT-4o counts 1,445 tokens at most, at $2.50 a million; priority service is dearer.
#[tokio::test]
async fn a_picture_is_held_by_what_its_model_counts() {
    let provider = provider();
    let server = Server::start(&config(&provider));
    let picture = json!({"type": "image_url", "image_url": {"url": "https://example.com/a.png"}});
    let body = json!({"model": "seen", "messages": [{"role": "user", "content": [picture]}]});
    let request = client().post(server.url("/v1/chat/completions")).json(&body);
    let (nano, _) = held(&server, &provider, request).await.unwrap();
    assert!((1_445 * 2_500..4 * 1_445 * 2_500).contains(&nano), "{nano}");
}

/// A dollar a million tokens in; a picture is 48,169 at most.
#[tokio::test]
async fn a_picture_is_held_in_whatever_body_it_comes() {
    let provider = provider();
    let server = Server::start(&config(&provider));
    let picture = r#"{"type":"image_url","image_url":{"url":"https://example.com/a.png"}}"#;
    let (open, close) = ("[".repeat(200), "]".repeat(200));
    for beside in [
        String::from(r#""metadata":{"user_id":"a"}"#),
        String::from(r#""metadata":{"user_id":"a","user_id":"a"}"#),
        String::from(r#""top_p":1e999"#),
        String::from(r#""user":"\ud800""#),
        format!(r#""metadata":{open}{close}"#),
    ] {
        let body = format!(
            r#"{{"model":"reader","messages":[{{"role":"user","content":[{picture},{picture}]}}],{beside}}}"#
        );
        let request = client().post(server.url("/v1/chat/completions")).body(body);
        let (nano, sent) = held(&server, &provider, request).await.unwrap();
        let pictures = 2 * 48_169;
        assert!((pictures..=pictures + 2 * sent).contains(&(nano / 1_000)), "{nano}: {beside}");
    }
}

/// The summary is written by the same model, from all that was said.
#[tokio::test]
async fn a_summary_made_first_is_held_as_another_answer() {
    let provider = provider();
    let server = Server::start(&config(&provider));
    for (path, model, compaction) in [
        ("/v1/responses", "gpt", json!([{"type": "compaction", "compact_threshold": 1000}])),
        ("/v1/messages", "claude", json!({"edits": [{"type": "compact_20260112"}]})),
    ] {
        let with = |context_management: Value| {
            let body = json!({"model": model, "input": "Hi", "messages": [], "max_tokens": 10,
                "max_output_tokens": 10, "context_management": context_management});
            client().post(server.url(path)).json(&body)
        };
        let (once, _) = held(&server, &provider, with(json!(null))).await.unwrap();
        let (twice, _) = held(&server, &provider, with(compaction)).await.unwrap();
        assert_eq!((once, twice), (10_000_000, 20_000_000), "{path}");
    }
}
