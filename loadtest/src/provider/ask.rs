//! Reads what a request asks for: endpoint, model, limits, size.

use bytes::Bytes;
use hyper::http::request::Parts;
use serde_json::Value;

use super::multipart;

/// Which error shape and which header names an endpoint uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    OpenAi,
    Anthropic,
    Gemini,
}

/// What a path asks for; any prefix before it is fine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Chat,
    Completions,
    Responses,
    Embeddings,
    Moderations,
    Images,
    Transcription,
    Speech,
    Messages,
    CountTokens,
    Generate,
    GeminiCountTokens,
    Models,
    Unknown,
}

/// The longer suffix stands before the shorter one it ends with.
const SUFFIXES: [(&str, Endpoint); 15] = [
    ("/chat/completions", Endpoint::Chat),
    ("/completions", Endpoint::Completions),
    ("/responses", Endpoint::Responses),
    ("/embeddings", Endpoint::Embeddings),
    ("/moderations", Endpoint::Moderations),
    ("/images/generations", Endpoint::Images),
    ("/audio/transcriptions", Endpoint::Transcription),
    ("/audio/translations", Endpoint::Transcription),
    ("/audio/speech", Endpoint::Speech),
    ("/messages/count_tokens", Endpoint::CountTokens),
    ("/messages", Endpoint::Messages),
    (":generateContent", Endpoint::Generate),
    (":streamGenerateContent", Endpoint::Generate),
    (":countTokens", Endpoint::GeminiCountTokens),
    ("/models", Endpoint::Models),
];

/// A request as the answering code sees it.
pub(crate) struct Ask {
    pub(crate) endpoint: Endpoint,
    pub(crate) dialect: Dialect,
    /// The model id, directives included; the path for an endpoint without a model.
    pub(crate) model: String,
    pub(crate) stream: bool,
    /// Chat and completions: `stream_options.include_usage`.
    pub(crate) include_usage: bool,
    /// Gemini: `alt=sse`.
    pub(crate) sse: bool,
    /// The caller's limit on output tokens.
    pub(crate) max_tokens: Option<u64>,
    /// Number of choices.
    pub(crate) n: usize,
    /// ceil(bytes of text in the prompt / 4).
    pub(crate) input_tokens: u64,
    /// Name of the first tool offered.
    pub(crate) tool: Option<String>,
    /// The credential, from whichever header or query member it came.
    pub(crate) key: Option<String>,
    /// The body as JSON; null if it is none.
    pub(crate) json: Value,
    /// Multipart: `response_format` and the size of the file.
    pub(crate) form: multipart::Form,
    pub(crate) body: Bytes,
    /// What the real server would refuse with 400, told in its words.
    pub(crate) complaint: Option<&'static str>,
}

impl Ask {
    pub(crate) fn read(head: &Parts, body: Bytes) -> Self {
        let path = decode(head.uri.path());
        let endpoint = endpoint_of(&path);
        let form = multipart::read(head, &body);
        let json: Value = match endpoint {
            Endpoint::Transcription => Value::Null,
            _ => serde_json::from_slice(&body).unwrap_or_default(),
        };
        let stream = path.ends_with(":streamGenerateContent") || json["stream"] == true;
        let mut ask = Self {
            endpoint,
            dialect: dialect_of(endpoint, head, &path),
            model: model_of(endpoint, &path, &json, &form),
            stream,
            include_usage: json["stream_options"]["include_usage"] == true,
            sse: query(head, "alt").as_deref() == Some("sse"),
            max_tokens: max_tokens(&json),
            n: usize::try_from(json["n"].as_u64().unwrap_or(1)).unwrap_or(1).clamp(1, 128),
            input_tokens: text_bytes(&json).div_ceil(4),
            tool: tool_name(&json),
            key: key_of(head),
            json,
            form,
            body,
            complaint: None,
        };
        ask.complaint = ask.find_complaint(head);
        ask
    }

    /// The checks of the real servers that a proxy gets wrong most easily.
    fn find_complaint(&self, head: &Parts) -> Option<&'static str> {
        use Endpoint::{Models, Transcription, Unknown};
        if matches!(self.endpoint, Models | Transcription | Unknown) {
            return None;
        }
        if !self.json.is_object() {
            return Some("We could not parse the JSON body of your request.");
        }
        let anthropic = self.dialect == Dialect::Anthropic;
        let version = head.headers.get("anthropic-version").and_then(|v| v.to_str().ok());
        if anthropic && version.is_none() {
            return Some("anthropic-version: header is required");
        }
        if self.endpoint == Endpoint::Messages && self.json.get("max_tokens").is_none() {
            return Some("max_tokens: Field required");
        }
        let sampling = ["temperature", "top_p", "top_k"];
        if anthropic
            && version == Some("2026-10-21")
            && sampling.iter().any(|name| self.json.get(name).is_some())
        {
            return Some("temperature, top_p and top_k: Extra inputs are not permitted");
        }
        if !anthropic && !self.stream && self.json["stream_options"].is_object() {
            return Some(
                "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            );
        }
        None
    }
}

fn endpoint_of(path: &str) -> Endpoint {
    let found = SUFFIXES.iter().find(|(suffix, _)| path.ends_with(suffix));
    found.map_or(Endpoint::Unknown, |(_, endpoint)| *endpoint)
}

fn dialect_of(endpoint: Endpoint, head: &Parts, path: &str) -> Dialect {
    match endpoint {
        Endpoint::Messages | Endpoint::CountTokens => Dialect::Anthropic,
        Endpoint::Generate | Endpoint::GeminiCountTokens => Dialect::Gemini,
        // The one path two dialects share: the headers tell them apart.
        Endpoint::Models if head.headers.contains_key("anthropic-version") => Dialect::Anthropic,
        Endpoint::Models if path.contains("/v1beta/") && !path.contains("/openai/") => {
            Dialect::Gemini
        }
        _ => Dialect::OpenAi,
    }
}

fn model_of(endpoint: Endpoint, path: &str, json: &Value, form: &multipart::Form) -> String {
    if endpoint == Endpoint::Models {
        return "/models".to_owned();
    }
    if let Some(model) = json["model"].as_str() {
        return model.to_owned();
    }
    if let Some(model) = &form.model {
        return model.clone();
    }
    if let Some((_, rest)) = path.rsplit_once("/models/") {
        return rest.rsplit_once(':').map_or(rest, |(model, _)| model).to_owned();
    }
    // Azure names the model in the path only.
    if let Some((_, rest)) = path.split_once("/deployments/") {
        return rest.split('/').next().unwrap_or_default().to_owned();
    }
    path.to_owned()
}

fn max_tokens(json: &Value) -> Option<u64> {
    let names = ["max_completion_tokens", "max_output_tokens", "max_tokens"];
    let openai = names.iter().find_map(|name| json[*name].as_u64());
    openai
        .or_else(|| json["generationConfig"]["maxOutputTokens"].as_u64())
        .or_else(|| json["generation_config"]["max_output_tokens"].as_u64())
}

/// Bytes of text in the prompt, whatever the dialect; a token id counts four.
fn text_bytes(json: &Value) -> u64 {
    const ROOTS: [&str; 9] = [
        "messages",
        "prompt",
        "input",
        "instructions",
        "system",
        "contents",
        "systemInstruction",
        "system_instruction",
        "content",
    ];
    ROOTS.iter().filter_map(|root| json.get(root)).map(text_of).sum()
}

fn text_of(value: &Value) -> u64 {
    const INSIDE: [&str; 5] = ["text", "content", "parts", "output", "refusal"];
    match value {
        Value::String(text) => text.len() as u64,
        Value::Number(_) => 4,
        Value::Array(items) => items.iter().map(text_of).sum(),
        Value::Object(_) => INSIDE.iter().filter_map(|name| value.get(name)).map(text_of).sum(),
        Value::Null | Value::Bool(_) => 0,
    }
}

fn tool_name(json: &Value) -> Option<String> {
    let tool = json["tools"].get(0)?;
    let places = ["/function/name", "/custom/name", "/name", "/functionDeclarations/0/name"];
    let name = places.iter().find_map(|place| tool.pointer(place)?.as_str());
    name.map(str::to_owned)
}

fn key_of(head: &Parts) -> Option<String> {
    let header = |name: &str| head.headers.get(name).and_then(|v| v.to_str().ok());
    let bearer = header("authorization").map(|v| v.strip_prefix("Bearer ").unwrap_or(v));
    let key = bearer
        .or_else(|| header("x-api-key"))
        .or_else(|| header("x-goog-api-key"))
        .or_else(|| header("api-key"));
    key.map(str::to_owned).or_else(|| query(head, "key"))
}

fn query(head: &Parts, name: &str) -> Option<String> {
    let pairs = head.uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
    let mut found = pairs.filter(|(key, _)| *key == name);
    found.next().map(|(_, value)| decode(value))
}

/// Percent-decodes once; `+` stays `+`, it separates directives.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = tail.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        let byte = hex.and_then(|two| u8::from_str_radix(two, 16).ok());
        match (*first, byte) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn prompts_of_all_dialects_are_counted() {
        let count = |text: &str| text_bytes(&serde_json::from_str(text).unwrap());
        assert_eq!(count(r#"{"messages":[{"role":"user","content":"12345"}]}"#), 5);
        assert_eq!(
            count(
                r#"{"system":[{"type":"text","text":"ab"}],"messages":[{"role":"user","content":[{"type":"text","text":"cd"}]}]}"#
            ),
            4
        );
        assert_eq!(count(r#"{"contents":[{"parts":[{"text":"äö"}]}]}"#), 4);
        assert_eq!(count(r#"{"input":[[1,2,3]]}"#), 12);
    }

    #[test]
    fn paths_name_endpoint_and_model() {
        assert_eq!(endpoint_of("/any/base/v1/chat/completions"), Endpoint::Chat);
        assert_eq!(endpoint_of("/v1/completions"), Endpoint::Completions);
        assert_eq!(endpoint_of("/v1/messages/count_tokens"), Endpoint::CountTokens);
        let path = decode("/v1beta/models/sim-g%2Bgap=1ms%3AgenerateContent");
        assert_eq!(endpoint_of(&path), Endpoint::Generate);
        let form = multipart::Form::default();
        assert_eq!(model_of(Endpoint::Generate, &path, &Value::Null, &form), "sim-g+gap=1ms");
    }
}
