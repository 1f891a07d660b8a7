//! What every recorded answer costs, against sums done by hand.
//!
//! The prices of `own` are a different prime for every kind, in nano-dollars a token, so that a
//! token counted as another kind, twice, or not at all shows in the sum.

use crate::support::*;
use serde_json::{Value, json};
use tollbar_loadtest::provider::{Provider, Script};

/// Nano-dollars a token; in the configuration they are dollars per million, a thousandth.
const IN: u64 = 11;
const OUT: u64 = 13;
const READ: u64 = 17;
const WRITE: u64 = 19;
const WRITE_1H: u64 = 23;
const REASON: u64 = 29;
/// Nano-dollars a search.
const SEARCH: u64 = 113;

const OWN: &str = "price: { input: 0.011, output: 0.013, cached_input: 0.017, cache_write: 0.019, \
    cache_write_1h: 0.023, reasoning: 0.029, per_search: 0.000000113 }";

/// What an attempt is to cost, in nano-dollars.
enum Cost {
    /// All of it was reported.
    Sum(u64),
    /// Nothing was reported: a token for every three bytes that were sent, rounded up, and so
    /// many of output.
    Estimated(u64),
    /// The input was reported, the rest is estimated.
    Partly(u64),
}
use Cost::{Estimated, Partly, Sum};

/// File, what it costs at [`OWN`], and what at a model's list price.
type Sample = (&'static str, Cost, Option<(&'static str, u64)>);

/// In the order of the README of the fixtures.
fn streams() -> Vec<Sample> {
    vec![
        // 1,210 in: 1,024 read, 128 written, 58 neither. 61 out: 24 reasoning, 37 text.
        // gpt-5.6 is $4 in, $0.40 read, $5 written, $20 out; reasoning is output.
        (
            "openai_chat.stream.sse",
            Sum(58 * IN + 1024 * READ + 128 * WRITE + 37 * OUT + 24 * REASON),
            Some(("gpt-5.6", 58 * 4_000 + 1024 * 400 + 128 * 5_000 + 61 * 20_000)),
        ),
        // gpt-4.1-mini is $0.40 and $1.60. Both answers of n = 2 are in the usage.
        (
            "openai_chat.stream_n2.sse",
            Sum(11 * IN + 4 * OUT),
            Some(("gpt-4.1-mini-2025-04-14", 11 * 400 + 4 * 1_600)),
        ),
        // "The first three primes are 2, ": 30 bytes.
        ("openai_chat.stream_error.sse", Estimated(10 * OUT), None),
        // "Half an ans": 11 bytes.
        ("openai_chat.stream_truncated.sse", Estimated(4 * OUT), None),
        // 2,048 in: 1,920 read. 95 out: 64 reasoning.
        (
            "openai_responses.stream.sse",
            Sum(128 * IN + 1920 * READ + 31 * OUT + 64 * REASON),
            Some(("gpt-5.6", 128 * 4_000 + 1920 * 400 + 95 * 20_000)),
        ),
        // Cut by max_output_tokens: 16 out, 13 of them reasoning.
        (
            "openai_responses.stream_incomplete.sse",
            Sum(40 * IN + 3 * OUT + 13 * REASON),
            Some(("gpt-5.6", 40 * 4_000 + 16 * 20_000)),
        ),
        // Failed before a word was said.
        ("openai_responses.stream_failed.sse", Estimated(0), None),
        ("openai_responses.stream_error_event.sse", Estimated(0), None),
        // 21 + 1,800 read + 512 written for five minutes. 143 out, 58 of them thinking; not the
        // 3 of message_start on top. claude-opus-5-5: $4, $0.20, $5, $20.
        (
            "anthropic.stream.sse",
            Sum(21 * IN + 1800 * READ + 512 * WRITE + 85 * OUT + 58 * REASON),
            Some(("claude-opus-5-5", 21 * 4_000 + 1800 * 200 + 512 * 5_000 + 143 * 20_000)),
        ),
        // 1,104 + 4,096 read: the late report replaces the early one.
        ("anthropic.stream_late_split.sse", Sum(1104 * IN + 4096 * READ + 37 * OUT), None),
        // 64 in; then "Well, ", 6 bytes, and an error.
        ("anthropic.stream_error.sse", Partly(64 * IN + 2 * OUT), None),
        // 310 in, 256 of them read. 42 + 118 thoughts out. gemini-3.5-flash: $1.50, $0.15, $9.
        (
            "gemini.stream.sse",
            Sum(54 * IN + 256 * READ + 42 * OUT + 118 * REASON),
            Some(("gemini-3.5-flash", 54 * 1_500 + 256 * 150 + 160 * 9_000)),
        ),
        // The last snapshot stands: 44 in and 3 out.
        ("gemini.stream_error.sse", Sum(44 * IN + 3 * OUT), None),
        // gpt-4o-2024-11-20 is $2.50 and $10.
        (
            "azure.stream.sse",
            Sum(28 * IN + 9 * OUT),
            Some(("gpt-4o-2024-11-20", 28 * 2_500 + 9 * 10_000)),
        ),
        // 1,472 hit + 28 missed; 96 out, 71 of them reasoning. $0.30, $0.006, $1.20.
        (
            "deepseek.stream.sse",
            Sum(28 * IN + 1472 * READ + 25 * OUT + 71 * REASON),
            Some(("deepseek-v4-flash", 28 * 300 + 1472 * 6 + 96 * 1_200)),
        ),
        ("openrouter.stream.sse", Sum(172 * IN + 640 * READ + 34 * OUT), None),
        // "Counting: one, two": 18 bytes.
        ("openrouter.stream_error.sse", Estimated(6 * OUT), None),
        ("openrouter.stream_error_empty_choices.sse", Estimated(0), None),
        // Usage comes twice and counts once. openai/gpt-oss-120b is $0.15 and $0.60 at Groq.
        (
            "groq.stream.sse",
            Sum(187 * IN + 23 * OUT),
            Some(("openai/gpt-oss-120b", 187 * 150 + 23 * 600)),
        ),
        ("groq.stream_error.sse", Estimated(0), None),
    ]
}

fn answers() -> Vec<Sample> {
    vec![
        // 2,006 in: 1,920 read, none written. 300 out: 256 reasoning.
        (
            "openai_chat.response.json",
            Sum(86 * IN + 1920 * READ + 44 * OUT + 256 * REASON),
            Some(("gpt-5.6", 86 * 4_000 + 1920 * 400 + 300 * 20_000)),
        ),
        // 12 uncached and 500 written. 70 out: 32 reasoning.
        (
            "openai_responses.response.json",
            Sum(12 * IN + 500 * WRITE + 38 * OUT + 32 * REASON),
            Some(("gpt-5.6", 12 * 4_000 + 500 * 5_000 + 70 * 20_000)),
        ),
        // 12 + 2,000 read + 100 written for five minutes + 200 for an hour, one search.
        // claude-sonnet-4-6: $3, $0.30, $3.75, $6, $15, and $10 for a thousand searches.
        (
            "anthropic.response.json",
            Sum(12 * IN + 2000 * READ + 100 * WRITE + 200 * WRITE_1H + 48 * OUT + SEARCH),
            Some((
                "claude-sonnet-4-6",
                12 * 3_000 + 2000 * 300 + 100 * 3_750 + 200 * 6_000 + 48 * 15_000 + 10_000_000,
            )),
        ),
        // 25 + 90 of a tool in; 60 + 35 thoughts out.
        (
            "gemini.response.json",
            Sum(115 * IN + 60 * OUT + 35 * REASON),
            Some(("gemini-3.5-flash", 115 * 1_500 + 95 * 9_000)),
        ),
        // Here the 44 thoughts are within the 50.
        ("gemini.response_inclusive.json", Sum(20 * IN + 6 * OUT + 44 * REASON), None),
        // A blocked prompt is read and billed, and nothing is said.
        ("gemini.response_blocked.json", Sum(12 * IN), None),
        (
            "azure.response.json",
            Sum(40 * IN + 1280 * READ + 4 * OUT),
            Some(("gpt-4o-2024-11-20", 40 * 2_500 + 1280 * 1_250 + 4 * 10_000)),
        ),
        (
            "deepseek.response.json",
            Sum(30 * IN + 7 * OUT + 5 * REASON),
            Some(("deepseek-v4-flash", 30 * 300 + 12 * 1_200)),
        ),
        (
            "deepseek.response_with_leading_blank_lines.txt",
            Sum(30 * IN + 7 * OUT + 5 * REASON),
            None,
        ),
        ("openrouter.response.json", Sum(20 * IN + 3 * OUT), None),
        // An error under status 200: the prompt may have been read, nothing was said.
        ("openrouter.response_200_error.json", Estimated(0), None),
        ("groq.response.json", Sum(36 * IN + 3 * OUT), None),
    ]
}

/// The provider that a model is listed at; its name is the catalogue's.
const LISTED: [(&str, &str); 8] = [
    ("openai", "gpt-5.6"),
    ("openai", "gpt-4.1-mini-2025-04-14"),
    ("azure", "gpt-4o-2024-11-20"),
    ("deepseek", "deepseek-v4-flash"),
    ("groq", "openai/gpt-oss-120b"),
    ("anthropic", "claude-opus-5-5"),
    ("anthropic", "claude-sonnet-4-6"),
    ("gemini", "gemini-3.5-flash"),
];

fn config(provider: &Provider) -> String {
    let base = provider.base();
    let mut providers = String::from("providers:\n");
    for name in ["openai", "azure", "deepseek", "groq"] {
        providers += &format!("  {name}: {{ dialect: openai, base_url: \"{base}/v1\" }}\n");
    }
    for name in ["anthropic", "gemini"] {
        providers += &format!("  {name}: {{ dialect: {name}, base_url: \"{base}\" }}\n");
    }
    let mut models = String::from("models:\n");
    for dialect in ["openai", "anthropic", "gemini"] {
        models += &format!(
            "  own-{dialect}: {{ targets: [ {{ provider: {dialect}, model: own, {OWN} }} ] }}\n"
        );
    }
    for (provider, model) in LISTED {
        models += &format!(
            "  \"{model}\": {{ targets: [ {{ provider: {provider}, model: \"{model}\" }} ] }}\n"
        );
    }
    format!("{}{providers}breaker: {{ failures: 10000 }}\n{models}", head())
}

/// The path and body of a request whose answer such a file is.
fn ask(file: &str, model: &str, stream: bool) -> (String, Value) {
    let messages = json!([{"role": "user", "content": "Hello"}]);
    match file.split('.').next().unwrap() {
        "openai_responses" => {
            ("/v1/responses".into(), json!({"model": model, "stream": stream, "input": "Hello"}))
        }
        "anthropic" => (
            "/v1/messages".into(),
            json!({"model": model, "stream": stream, "max_tokens": 9, "messages": messages}),
        ),
        "gemini" if stream => {
            (format!("/v1beta/models/{model}:streamGenerateContent?alt=sse"), json!({}))
        }
        "gemini" => (format!("/v1beta/models/{model}:generateContent"), json!({})),
        _ => (
            "/v1/chat/completions".into(),
            json!({"model": model, "stream": stream, "messages": messages}),
        ),
    }
}

fn dialect(file: &str) -> &'static str {
    match file.split('.').next().unwrap() {
        "anthropic" => "anthropic",
        "gemini" => "gemini",
        _ => "openai",
    }
}

/// Plays a file to a request; its row in the ledger, and how many bytes were sent upstream.
async fn play(server: &Server, provider: &Provider, file: &str, model: &str) -> (Value, u64) {
    let dir = format!("{}/tests/fixtures/wire", env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(format!("{dir}/{file}")).unwrap();
    let stream = file.ends_with(".sse");
    let script = if stream {
        Script::raw([bytes])
    } else {
        Script { body: Some(String::from_utf8(bytes).unwrap()), ..Script::default() }
    };
    provider.clear();
    provider.script("*", vec![script]);
    let (path, body) = ask(file, model, stream);
    let answer = post(&client(), server.url(&path), body.to_string()).await;
    let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    let told = answer.headers().get("x-tollbar-cost-usd").map(|v| v.to_str().unwrap().to_owned());
    let _ = answer.bytes().await;
    let row = row(server, &id).await;
    if let Some(told) = told {
        assert_eq!(nano(&told), cost(&row), "{file}: the header says something else");
    }
    (row, provider.requests()[0].body.len() as u64)
}

#[tokio::test]
async fn every_fixture_costs_what_was_calculated_by_hand() {
    let provider = provider();
    let server = Server::start(&config(&provider));
    let mut sum = 0;
    let all: Vec<Sample> = streams().into_iter().chain(answers()).collect();
    assert_eq!(all.len(), 32, "every file that is an answer");
    for (file, expected, listed) in all {
        let own = format!("own-{}", dialect(file));
        let (row, sent) = play(&server, &provider, file, &own).await;
        let (wanted, source) = match expected {
            Sum(nano) => (nano, "reported"),
            Estimated(output) => (sent.div_ceil(3) * IN + output, "estimated"),
            Partly(nano) => (nano, "estimated"),
        };
        assert_eq!(cost(&row), wanted, "{file}: {row}");
        assert_eq!(row["usage_source"], source, "{file}: {row}");
        sum += wanted;
        if let Some((model, wanted)) = listed {
            let (row, _) = play(&server, &provider, file, model).await;
            assert_eq!(cost(&row), wanted, "{file} at the price of {model}: {row}");
            assert_eq!(row["price_version"], "catalogue-2026-11");
            sum += wanted;
        }
    }
    let spend = admin(&server, "/spend").await;
    assert_eq!(nano(&spend["data"][0]["cost_usd"].to_string()), sum);
}
