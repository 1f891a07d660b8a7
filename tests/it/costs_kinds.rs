//! What kinds of usage cost that no recorded answer has: audio, long prompts, service tiers, units.

use crate::support::*;
use serde_json::{Value, json};
use tollbar_loadtest::provider::{Provider, Script};

/// Nano-dollars a token, a different prime for every kind.
const IN: u64 = 11;
const OUT: u64 = 13;
const READ: u64 = 17;
const REASON: u64 = 29;
const AUDIO_IN: u64 = 31;
const AUDIO_OUT: u64 = 37;
const AUDIO_READ: u64 = 41;
/// The same above 1,000 tokens of input.
const LONG_IN: u64 = 43;
const LONG_OUT: u64 = 47;
const LONG_READ: u64 = 53;
/// Nano-dollars each.
const REQUEST: u64 = 101;
const IMAGE: u64 = 103;
const SECOND: u64 = 107;
const CHARACTER: u64 = 109;
const SEARCH: u64 = 113;

fn config(provider: &Provider) -> String {
    let base = provider.base();
    let units = "per_request: 0.000000101, per_image: 0.000000103, per_second: 0.000000107, \
        per_character: 0.000000109, per_search: 0.000000113";
    let own = "input: 0.011, output: 0.013, cached_input: 0.017, reasoning: 0.029, \
        audio_input: 0.031, audio_output: 0.037, cached_audio_input: 0.041, \
        steps: [ { above_input_tokens: 1000, input: 0.043, output: 0.047, cached_input: 0.053 } ]";
    format!(
        "{}providers:\n  openai: {{ dialect: openai, base_url: \"{base}/v1\" }}\n\
         models:\n  \
         own: {{ targets: [ {{ provider: openai, model: own, price: {{ {own}, {units} }} }} ] }}\n  \
         units: {{ targets: [ {{ provider: openai, model: units, price: {{ {units} }} }} ] }}\n  \
         gpt-5.6: {{ targets: [ {{ provider: openai, model: gpt-5.6 }} ] }}\n  \
         gpt-4o: {{ targets: [ {{ provider: openai, model: gpt-4o }} ] }}\n  \
         tts-1: {{ targets: [ {{ provider: openai, model: tts-1 }} ] }}\n",
        head()
    )
}

/// The cost of a request that is answered so, its ledger row, and its bytes upstream.
async fn play(
    server: &Server,
    provider: &Provider,
    request: reqwest::RequestBuilder,
    answer: Option<&Value>,
) -> (u64, Value, u64) {
    let body = answer.map(ToString::to_string);
    provider.clear();
    provider.script("*", vec![Script { body, ..Script::default() }]);
    let answer = request.bearer_auth(KEY).send().await.unwrap();
    assert_eq!(answer.status(), 200, "{:?}", answer.text().await);
    let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    answer.bytes().await.unwrap();
    let row = row(server, &id).await;
    (cost(&row), row, provider.requests()[0].body.len() as u64)
}

fn ask(server: &Server, path: &str, body: &Value) -> reqwest::RequestBuilder {
    client().post(server.url(path)).json(body)
}

fn chat_answer(usage: &Value, tier: Option<&str>) -> Value {
    json!({"object": "chat.completion", "choices": [], "usage": usage, "service_tier": tier})
}

#[tokio::test]
async fn audio_and_long_prompts() {
    let provider = provider();
    let server = Server::start(&config(&provider));
    let usage = |input: u64, cached: u64, audio: u64, output: u64, reasoning: u64, spoken: u64| {
        json!({
            "prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output,
            "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": audio},
            "completion_tokens_details": {"reasoning_tokens": reasoning, "audio_tokens": spoken},
        })
    };
    let cases = [
        // 100 in: 40 read, 50 heard, 10 text. 50 out: 20 reasoning, 25 spoken, 5 text.
        (
            usage(100, 40, 50, 50, 20, 25),
            10 * IN + 50 * AUDIO_IN + 40 * READ + 5 * OUT + 20 * REASON + 25 * AUDIO_OUT,
        ),
        // 70 heard and 60 not read: 10 of them were read from the cache.
        (usage(100, 40, 70, 5, 0, 0), 60 * AUDIO_IN + 10 * AUDIO_READ + 30 * READ + 5 * OUT),
        // The step holds for all of the prompt, and from the next token on only.
        (usage(1000, 400, 0, 7, 0, 0), 600 * IN + 400 * READ + 7 * OUT),
        (usage(1001, 400, 0, 7, 0, 0), 601 * LONG_IN + 400 * LONG_READ + 7 * LONG_OUT),
    ];
    for (usage, wanted) in cases {
        let asked = ask(&server, "/v1/chat/completions", &chat("own"));
        let (cost, row, _) =
            play(&server, &provider, asked, Some(&chat_answer(&usage, None))).await;
        assert_eq!(cost, wanted + REQUEST, "{row}");
    }
}

/// OpenAI runs code in a container that it bills, whatever the answer says.
#[tokio::test]
async fn code_is_run_in_a_container_that_costs() {
    let provider = provider();
    let server = Server::start(&config(&provider));
    let answer = json!({"object": "response", "output": [],
        "usage": {"input_tokens": 10, "output_tokens": 10, "total_tokens": 20}});
    let mut costs = Vec::new();
    for (model, container) in [
        ("gpt-5.6", None),
        ("gpt-5.6", Some(json!({"type": "auto"}))),
        ("gpt-5.6", Some(json!({"type": "auto", "memory_limit": "4g"}))),
        ("gpt-5.6", Some(json!({"type": "auto", "memory_limit": "much"}))),
        ("own", None),
        ("own", Some(json!({"type": "auto", "memory_limit": "4g"}))),
    ] {
        let mut body =
            json!({"model": model, "input": "Hello", "max_output_tokens": 20, "max_tool_calls": 1});
        if let Some(container) = container {
            body["tools"] = json!([{"type": "code_interpreter", "container": container}]);
        }
        let asked = ask(&server, "/v1/responses", &body);
        costs.push(play(&server, &provider, asked, Some(&answer)).await.0);
    }
    let gib = 30_000_000;
    let more = |n: u64| costs[0] + n * gib;
    assert_eq!(costs[1..4], [more(1), more(4), more(64)], "{costs:?}");
    assert_eq!(costs[4], costs[5], "an operator's price is for everything");
}

/// A search in files that OpenAI stores costs $2.50 per thousand.
#[tokio::test]
async fn searches_in_stored_files_cost() {
    let provider = provider();
    let server = Server::start(&config(&provider));
    let usage = json!({"input_tokens": 10, "output_tokens": 10, "total_tokens": 20});
    let call = json!({"type": "file_search_call", "id": "fs_1", "status": "completed"});
    let mut costs = Vec::new();
    for (model, calls) in [("gpt-5.6", 0), ("gpt-5.6", 1), ("gpt-5.6", 3), ("own", 0), ("own", 3)] {
        let body = json!({"model": model, "input": "Hello", "max_output_tokens": 20,
            "max_tool_calls": 3, "tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]});
        let answer = json!({"object": "response", "output": vec![&call; calls], "usage": usage});
        let asked = ask(&server, "/v1/responses", &body);
        costs.push(play(&server, &provider, asked, Some(&answer)).await.0);
    }
    let each = 2_500_000;
    assert_eq!(costs[1..3], [costs[0] + each, costs[0] + 3 * each], "{costs:?}");
    assert_eq!(costs[3], costs[4], "an operator's price is for everything");
}

/// gpt-5.6: $4, $0.40 read, $20; flex $2, $0.20, $10; priority $8, $0.80, $40. Above 272,000
/// tokens $8, $0.80, $30.
#[tokio::test]
async fn the_service_tier_that_the_answer_names_is_charged() {
    let provider = provider();
    let server = Server::start(&config(&provider));
    let usage = |input: u64, cached: u64| {
        json!({"prompt_tokens": input, "completion_tokens": 10, "total_tokens": input + 10,
            "prompt_tokens_details": {"cached_tokens": cached}})
    };
    let list = 60 * 4_000 + 40 * 400 + 10 * 20_000;
    let long = 272_000;
    let cases = [
        (Some("default"), usage(100, 40), list),
        (None, usage(100, 40), list),
        (Some("flex"), usage(100, 40), 60 * 2_000 + 40 * 200 + 10 * 10_000),
        (Some("priority"), usage(100, 40), 60 * 8_000 + 40 * 800 + 10 * 40_000),
        // Paid beforehand, or not to be had here: never less than the list price.
        (Some("scale"), usage(100, 40), list),
        (Some("batch"), usage(100, 40), list),
        (Some("default"), usage(long, 1), (long - 1) * 4_000 + 400 + 10 * 20_000),
        (Some("default"), usage(long + 1, 1), long * 8_000 + 800 + 10 * 30_000),
        // Half of it, as flex is.
        (Some("flex"), usage(long + 1, 1), long * 4_000 + 400 + 10 * 15_000),
    ];
    for (tier, usage, wanted) in cases {
        let asked = ask(&server, "/v1/chat/completions", &chat("gpt-5.6"));
        let answer = chat_answer(&usage, tier);
        let (cost, row, _) = play(&server, &provider, asked, Some(&answer)).await;
        assert_eq!(cost, wanted, "{tier:?}: {row}");
    }
}

#[tokio::test]
async fn images_seconds_characters_and_searches() {
    let provider = provider();
    let server = Server::start(&config(&provider));
    let three = json!({"model": "units", "prompt": "A cat", "n": 3});
    let asked = ask(&server, "/v1/images/generations", &three);
    let made = json!({"created": 1, "data": [{"url": "https://x.invalid/1.png"}]});
    assert_eq!(play(&server, &provider, asked, Some(&made)).await.0, 3 * IMAGE + REQUEST);

    // Five characters, seven bytes.
    for (model, wanted) in [("units", 5 * CHARACTER + REQUEST), ("tts-1", 5 * 15_000)] {
        let say = json!({"model": model, "input": "Grüße", "voice": "alloy"});
        let asked = ask(&server, "/v1/audio/speech", &say);
        assert_eq!(play(&server, &provider, asked, None).await.0, wanted, "{model}");
    }

    let form = "--x\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\nMODEL\r\n--x\r\n\
        content-disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\nRIFF\r\n--x--\r\n";
    let transcribe = |model: &str| {
        let request = client().post(server.url("/v1/audio/transcriptions"));
        request
            .header("content-type", "multipart/form-data; boundary=x")
            .body(form.replace("MODEL", model))
    };
    let told = json!({"text": "a", "usage": {"type": "duration", "seconds": 9}});
    let (cost, ..) = play(&server, &provider, transcribe("units"), Some(&told)).await;
    assert_eq!(cost, 9 * SECOND + REQUEST);
    let told = json!({"text": "a", "usage": {"type": "tokens", "input_tokens": 14,
        "input_token_details": {"text_tokens": 4, "audio_tokens": 10}, "output_tokens": 45}});
    let (cost, ..) = play(&server, &provider, transcribe("own"), Some(&told)).await;
    assert_eq!(cost, 4 * IN + 10 * AUDIO_IN + 45 * OUT + REQUEST, "seconds are not paid on top");

    let search = json!({"type": "web_search_call", "action": {"type": "search"}});
    let told = json!({"object": "response", "status": "completed", "output": [search, search],
        "usage": {"input_tokens": 7, "output_tokens": 3}});
    let asked = ask(&server, "/v1/responses", &json!({"model": "own", "input": "Hi"}));
    let (cost, ..) = play(&server, &provider, asked, Some(&told)).await;
    assert_eq!(cost, 7 * IN + 3 * OUT + 2 * SEARCH + REQUEST);

    // The tool of OpenAI's previews is dearer with models that don't reason.
    for (tool, each) in [("web_search", 10_000_000), ("web_search_preview_2025_03_11", 25_000_000)]
    {
        let body = json!({"model": "gpt-4o", "input": "Hi", "tools": [{"type": tool}]});
        let asked = ask(&server, "/v1/responses", &body);
        let (cost, ..) = play(&server, &provider, asked, Some(&told)).await;
        assert_eq!(cost, 7 * 2_500 + 3 * 10_000 + 2 * each, "{tool}");
    }
}

/// A vector is no output, however long it is.
#[tokio::test]
async fn embeddings_are_input_only() {
    let provider = provider();
    let server = Server::start(&config(&provider));
    let body = json!({"model": "own", "input": "Hello"});
    let vector: Vec<f64> = (0..1536).map(f64::from).collect();
    for told in [true, false] {
        let mut answer = json!({"object": "list", "data": [{"index": 0, "embedding": vector}]});
        if told {
            answer["usage"] = json!({"prompt_tokens": 8, "total_tokens": 8});
        }
        let asked = ask(&server, "/v1/embeddings", &body);
        let (cost, row, sent) = play(&server, &provider, asked, Some(&answer)).await;
        let input = if told { 8 } else { sent.div_ceil(3) };
        assert_eq!(cost, input * IN + REQUEST, "{row}");
        assert_eq!(row["usage_source"], if told { "reported" } else { "estimated" });
    }
}

/// Ten minutes of an MP3 with 128 kbit/s, whose transcript says nothing of its length, and as many
/// bytes of something else.
#[tokio::test]
async fn sound_is_booked_by_its_own_length_where_nobody_tells() {
    let provider = provider();
    let listed = "models:\n  gpt-4o-transcribe: { targets: [ { provider: openai, model: gpt-4o-transcribe } ] }\n  \
        whisper-1: { targets: [ { provider: openai, model: whisper-1 } ] }\n";
    let server = Server::start(&config(&provider).replace("models:\n", listed));
    // A frame is 1,152 samples of 44,100 a second: 23,000 of them are 600.8 seconds.
    let frame: Vec<u8> = [0xFF, 0xFB, 0x90, 0].into_iter().chain([0; 413]).collect();
    let sound = frame.repeat(23_000);
    let other = vec![b's'; sound.len()];
    let file = sound.len() as u64;
    for (model, sound, told) in [
        ("whisper-1", &sound, "1\n00:00:00,000 --> 00:00:02,000\nHello\n"),
        ("whisper-1", &sound, "{\"text\":\"Hello\"}"),
        ("whisper-1", &other, "Hello world"),
        ("gpt-4o-transcribe", &sound, "Hello world"),
        ("gpt-4o-transcribe", &other, "Hello world"),
    ] {
        let head = format!(
            "--x\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\n{model}\r\n--x\r\n\
             content-disposition: form-data; name=\"file\"; filename=\"a.mp3\"\r\n\r\n"
        );
        let form = [head.as_bytes(), sound, b"\r\n--x--\r\n"].concat();
        provider.clear();
        let kind = if told.starts_with('{') { "application/json" } else { "text/plain" };
        provider.script(
            "*",
            vec![Script {
                body: Some(told.into()),
                content_type: Some(kind.into()),
                ..Script::default()
            }],
        );
        let request = client().post(server.url("/v1/audio/transcriptions")).bearer_auth(KEY);
        let request = request.header("content-type", "multipart/form-data; boundary=x").body(form);
        let answer = request.send().await.unwrap();
        let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
        answer.bytes().await.unwrap();
        let row = row(&server, &id).await;
        let sent = provider.requests()[0].body.len() as u64;
        let wanted = match (model, sound == &other) {
            ("whisper-1", false) => 601 * 100_000,
            // It may be as long as what was held for it.
            ("whisper-1", true) => (sent / 500 + 1) * 100_000,
            // A token for 100 ms.
            (_, false) => (6_010 + (sent - file).div_ceil(3)) * 2_500 + 4 * 10_000,
            // More than its window it doesn't hear.
            (_, true) => 16_000 * 2_500 + 4 * 10_000,
        };
        assert_eq!((cost(&row), &row["usage_source"]), (wanted, &json!("estimated")), "{row}");
    }
}
