//! generateContent and streamGenerateContent, as Google's front end frames them.

use super::ask::Ask;
use super::feed::{Feed, Framing, Part};
use super::generation::{Finish, Generation};
use super::json::{Json, Maybe, obj};

/// The body of an answer that is not streamed.
pub(crate) fn whole(made: &Generation) -> Json {
    let output = made.usage.output.saturating_sub(made.usage.reasoning);
    chunk(made, vec![part(made, &made.whole())], true, output)
}

/// The events of a streamed answer; without `alt=sse` one growing array.
pub(crate) fn stream(ask: &Ask, made: &Generation) -> Feed {
    let framing = if ask.sse { Framing::DataCrlf } else { Framing::Array };
    let mut feed = Feed::new(framing);
    let visible = made.usage.output.saturating_sub(made.usage.reasoning);
    let count = made.chunks.len();
    if made.tool.is_some() {
        // Calls arrive whole, in one chunk.
        let event = chunk(made, vec![part(made, &made.whole())], false, visible);
        feed.event(Part::Content(made.usage.output), "", &event);
    } else {
        let mut sent = 0;
        for (at, text) in made.chunks.iter().enumerate() {
            sent += super::text::share(visible, at, count);
            let tokens = super::text::share(made.usage.output, at, count);
            let event = chunk(made, vec![part(made, text)], false, sent);
            feed.event(Part::Content(tokens), "", &event);
        }
    }
    let last = chunk(made, vec![obj! { "text": "" }], true, visible);
    feed.event(Part::Tail, "", &last);
    if !ask.sse {
        feed.bytes(Part::Tail, "]\r\n");
    }
    feed
}

/// The counts so far: cumulative, zero counts left out.
fn chunk(made: &Generation, parts: Vec<Json>, last: bool, visible: u64) -> Json {
    let finish = match made.finish {
        Finish::Length => "MAX_TOKENS",
        Finish::Stop | Finish::Tool => "STOP",
    };
    let candidate = obj! {
        "content": obj! { "parts": parts, "role": "model" },
        "finishReason": Maybe(last.then_some(finish)),
        "index": 0usize,
    };
    let usage = &made.usage;
    let some = |count: u64| Maybe((count > 0).then_some(count));
    let report = obj! {
        "promptTokenCount": some(usage.input),
        "cachedContentTokenCount": some(usage.cached),
        "candidatesTokenCount": some(visible),
        "thoughtsTokenCount": some(usage.reasoning),
        "totalTokenCount": some(usage.input + visible + usage.reasoning),
        "promptTokensDetails": [obj! { "modality": "TEXT", "tokenCount": usage.input }],
    };
    obj! {
        "candidates": [candidate],
        "usageMetadata": Maybe(made.report.then_some(report)),
        "modelVersion": made.model,
        "responseId": format!("gsim{}", made.seq),
    }
}

fn part(made: &Generation, text: &str) -> Json {
    let Some(name) = &made.tool else {
        return obj! { "text": text };
    };
    let args = match serde_json::from_str::<serde_json::Value>(text) {
        Ok(value) if value.is_object() => Json(text.to_owned()),
        _ => obj! {},
    };
    let call = obj! { "name": name, "args": args, "id": format!("fcsim{}", made.seq) };
    obj! { "functionCall": call, "thoughtSignature": "RmFrZVNpZ25hdHVyZQ==" }
}

/// The answer of `:countTokens`.
pub(crate) fn token_count(tokens: u64) -> Json {
    obj! { "totalTokens": tokens }
}

/// The list of models.
pub(crate) fn models(ids: &[&str]) -> Json {
    let model = |id: &&str| {
        obj! {
            "name": format!("models/{id}"),
            "displayName": *id,
            "inputTokenLimit": 1_048_576u64,
            "outputTokenLimit": 65_536u64,
            "supportedGenerationMethods": ["generateContent", "countTokens"],
        }
    };
    let models: Vec<Json> = ids.iter().map(model).collect();
    obj! { "models": models }
}
