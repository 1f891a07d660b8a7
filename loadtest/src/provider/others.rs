//! The endpoints that generate no prose: vectors, images, audio, lists.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::Value;

use super::ask::{Ask, Dialect, Endpoint};
use super::generation::{CREATED, Usage};
use super::json::{Json, Maybe, obj};
use super::script::Script;
use super::{anthropic, gemini, text};

const DIMENSIONS: u64 = 8;
const IMAGE_TOKENS: u64 = 272;
const MODELS: [&str; 3] = ["sim-small", "sim-large", "sim-embed"];
/// A PNG of one pixel.
const PIXEL: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";

/// A body, its content type and what it cost.
pub(crate) struct Plain {
    pub(crate) content_type: &'static str,
    pub(crate) bytes: Bytes,
    pub(crate) usage: Usage,
}

/// Answers an endpoint of this module; `None` for any other.
pub(crate) fn answer(ask: &Ask, script: &Script, seq: u64) -> Option<Plain> {
    let usage = Usage {
        input: script.input.unwrap_or(ask.input_tokens),
        output: script.output.unwrap_or(0),
        ..Usage::default()
    };
    let free = Usage::default();
    let (json, usage) = match ask.endpoint {
        Endpoint::Embeddings => (embeddings(ask, script, &usage), usage),
        Endpoint::Moderations => (moderations(ask, seq), free),
        Endpoint::Images => images(ask, script, usage),
        Endpoint::Models => (models(ask.dialect), free),
        Endpoint::CountTokens => (obj! { "input_tokens": usage.input }, free),
        Endpoint::GeminiCountTokens => (gemini::token_count(usage.input), free),
        Endpoint::Transcription => return Some(transcription(ask, script, usage)),
        Endpoint::Speech => return Some(speech(script, usage)),
        _ => return None,
    };
    Some(plain("application/json", json.0, usage))
}

fn plain(content_type: &'static str, bytes: impl Into<Bytes>, usage: Usage) -> Plain {
    Plain { content_type, bytes: bytes.into(), usage }
}

/// Input members: a string or one array of token ids is one, anything else is a list.
fn inputs(ask: &Ask) -> usize {
    match &ask.json["input"] {
        Value::Array(items) if !items.iter().all(Value::is_number) => items.len(),
        _ => 1,
    }
}

fn embeddings(ask: &Ask, script: &Script, usage: &Usage) -> Json {
    let dimensions = ask.json["dimensions"].as_u64().unwrap_or(DIMENSIONS).min(8192);
    let base64 = ask.json["encoding_format"] == "base64";
    let row = |index: usize| {
        // Some direction that depends on the place only.
        let vector: Vec<f32> =
            (0..dimensions).map(|d| ((index as u64 + d) % 7) as f32 / 8.0 - 0.25).collect();
        if base64 {
            let bytes: Vec<u8> = vector.iter().flat_map(|v| v.to_le_bytes()).collect();
            return obj! { "object": "embedding", "index": index, "embedding": STANDARD.encode(bytes) };
        }
        obj! { "object": "embedding", "index": index, "embedding": vector }
    };
    let data: Vec<Json> = (0..inputs(ask)).map(row).collect();
    let report = obj! { "prompt_tokens": usage.input, "total_tokens": usage.input };
    obj! {
        "object": "list",
        "data": data,
        "model": ask.model,
        "usage": Maybe((!script.omit_usage).then_some(report)),
    }
}

/// Text that contains `sim-flag` is flagged.
fn moderations(ask: &Ask, seq: u64) -> Json {
    let flagged = |input: &Value| input.to_string().contains("sim-flag");
    let result = |input: &Value| {
        let hit = flagged(input);
        let score = if hit { 0.875f32 } else { 0.0 };
        obj! {
            "flagged": hit,
            "categories": obj! { "violence": hit, "self-harm/intent": false },
            "category_scores": obj! { "violence": score, "self-harm/intent": 0.0f32 },
            "category_applied_input_types": obj! { "violence": ["text"], "self-harm/intent": ["text"] },
        }
    };
    let results: Vec<Json> = match &ask.json["input"] {
        Value::Array(items) if items.iter().all(Value::is_string) => {
            items.iter().map(result).collect()
        }
        one => vec![result(one)],
    };
    obj! { "id": format!("modr-sim{seq}"), "model": ask.model, "results": results }
}

/// dall-e is priced by image and reports nothing, as at OpenAI.
fn images(ask: &Ask, script: &Script, mut usage: Usage) -> (Json, Usage) {
    usage.output = script.output.unwrap_or(IMAGE_TOKENS * ask.n as u64);
    let url = ask.json["response_format"] == "url";
    let image = |index: usize| match url {
        true => obj! { "url": format!("https://images.invalid/sim/{index}.png") },
        false => obj! { "b64_json": PIXEL },
    };
    let data: Vec<Json> = (0..ask.n).map(image).collect();
    let report = obj! {
        "input_tokens": usage.input,
        "input_tokens_details": obj! { "text_tokens": usage.input, "image_tokens": 0u64 },
        "output_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
    };
    let told = !script.omit_usage && !ask.model.contains("dall-e");
    (obj! { "created": CREATED, "data": data, "usage": Maybe(told.then_some(report)) }, usage)
}

/// Usage by duration: one second for every started 32,000 bytes of the file.
fn transcription(ask: &Ask, script: &Script, usage: Usage) -> Plain {
    let words = text::words(script.tokens.unwrap_or(16));
    let text = script.text.clone().unwrap_or(words);
    match ask.form.response_format.as_deref() {
        Some("text" | "srt" | "vtt") => {
            plain("text/plain; charset=utf-8", format!("{text}\n"), usage)
        }
        _ => {
            let seconds = ask.form.file_bytes.div_ceil(32_000);
            let report = obj! { "type": "duration", "seconds": seconds };
            let json =
                obj! { "text": text, "usage": Maybe((!script.omit_usage).then_some(report)) };
            plain("application/json", json.0, usage)
        }
    }
}

/// Bytes that are no UTF-8 on purpose: 4096 of them unless `size` says otherwise.
fn speech(script: &Script, usage: Usage) -> Plain {
    let size = script.size.unwrap_or(4096);
    let bytes: Vec<u8> = (0..size).map(|at| (at * 7 % 256) as u8 | 0x80).collect();
    plain("audio/mpeg", bytes, usage)
}

fn models(dialect: Dialect) -> Json {
    match dialect {
        Dialect::Anthropic => anthropic::models(&MODELS),
        Dialect::Gemini => gemini::models(&MODELS),
        Dialect::OpenAi => {
            let model = |id: &&str| {
                obj! { "id": *id, "object": "model", "created": CREATED, "owned_by": "tollbar" }
            };
            let data: Vec<Json> = MODELS.iter().map(model).collect();
            obj! { "object": "list", "data": data }
        }
    }
}
