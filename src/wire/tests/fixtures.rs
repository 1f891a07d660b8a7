//! The recorded answers, and every way to cut them.

use bytes::Bytes;
use serde_json::Value;

use crate::units::Usage;
use crate::wire::meter::{Meter, Report};
use crate::wire::route::Endpoint;

macro_rules! files {
    ($($name:literal => $endpoint:ident,)*) => {
        &[$((
            $name,
            Endpoint::$endpoint,
            include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/wire/", $name)) as &[u8],
        )),*]
    };
}

/// A file's name, the endpoint that gives such an answer, and its bytes.
pub type Fixture = (&'static str, Endpoint, &'static [u8]);

pub const STREAMS: &[Fixture] = files! {
    "openai_chat.stream.sse" => ChatCompletions,
    "openai_chat.stream_n2.sse" => ChatCompletions,
    "openai_chat.stream_error.sse" => ChatCompletions,
    "openai_chat.stream_truncated.sse" => ChatCompletions,
    "openai_responses.stream.sse" => Responses,
    "openai_responses.stream_incomplete.sse" => Responses,
    "openai_responses.stream_failed.sse" => Responses,
    "openai_responses.stream_error_event.sse" => Responses,
    "anthropic.stream.sse" => Messages,
    "anthropic.stream_late_split.sse" => Messages,
    "anthropic.stream_error.sse" => Messages,
    "gemini.stream.sse" => GeminiStream,
    "gemini.stream_error.sse" => GeminiStream,
    "azure.stream.sse" => ChatCompletions,
    "deepseek.stream.sse" => ChatCompletions,
    "openrouter.stream.sse" => ChatCompletions,
    "openrouter.stream_error.sse" => ChatCompletions,
    "openrouter.stream_error_empty_choices.sse" => ChatCompletions,
    "groq.stream.sse" => ChatCompletions,
    "groq.stream_error.sse" => ChatCompletions,
};

pub const ANSWERS: &[Fixture] = files! {
    "openai_chat.response.json" => ChatCompletions,
    "openai_responses.response.json" => Responses,
    "anthropic.response.json" => Messages,
    "gemini.response.json" => GeminiGenerate,
    "gemini.response_inclusive.json" => GeminiGenerate,
    "gemini.response_blocked.json" => GeminiGenerate,
    "azure.response.json" => ChatCompletions,
    "deepseek.response.json" => ChatCompletions,
    "deepseek.response_with_leading_blank_lines.txt" => ChatCompletions,
    "openrouter.response.json" => ChatCompletions,
    "openrouter.response_200_error.json" => ChatCompletions,
    "groq.response.json" => ChatCompletions,
};

pub const EDGE: &[u8] =
    include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/wire/edge.sse"));

/// What `expected.json` says about a file; null if nothing.
pub fn expected(name: &str) -> Value {
    let all =
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/wire/expected.json"));
    serde_json::from_str::<Value>(all).unwrap()[name].clone()
}

/// The whole, every cut in two, and pieces of several sizes.
pub fn cuts(bytes: &[u8]) -> Vec<Vec<&[u8]>> {
    let mut all = vec![vec![bytes]];
    for at in 0..=bytes.len() {
        let (a, b) = bytes.split_at(at);
        all.push(vec![a, b]);
    }
    for size in [1, 2, 3, 5, 7, 11, 13, 64] {
        all.push(bytes.chunks(size).collect());
    }
    all
}

/// Feeds pieces; what the client got, and the report.
pub fn play(mut meter: Meter, pieces: &[&[u8]]) -> (Vec<u8>, Report) {
    let mut got = Vec::new();
    for piece in pieces {
        got.extend_from_slice(&meter.chunk(Bytes::copy_from_slice(piece)));
    }
    got.extend_from_slice(&meter.end());
    (got, meter.report())
}

/// Compares the five numbers that `expected.json` has.
pub fn assert_usage(name: &str, usage: &Usage, expected: &Value) {
    let number = |key: &str| expected[key].as_u64();
    assert_eq!(usage.input, number("input_total"), "{name}: input");
    assert_eq!(usage.cached_input, number("cache_read"), "{name}: cached");
    assert_eq!(usage.cache_write, number("cache_write"), "{name}: written");
    assert_eq!(usage.output, number("output_total"), "{name}: output");
    assert_eq!(usage.reasoning, number("reasoning"), "{name}: reasoning");
}

/// Random inputs of that many cases, `PROPTEST_CASES` if it is set, and no files written beside
/// the sources. `make test` seeds them, so that it judges a change and not its luck; what hunts
/// for more is `make random`.
pub fn random(cases: u32) -> proptest::test_runner::Config {
    let asked = proptest::test_runner::Config { failure_persistence: None, ..Default::default() };
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => asked,
        None => proptest::test_runner::Config { cases, ..asked },
    }
}
