//! Messages, as Anthropic frames them.

use super::feed::{Feed, Framing, Part};
use super::generation::{Finish, Generation};
use super::json::{Json, Maybe, Null, obj};

/// Output tokens already counted in `message_start`; included in the final count.
const FIRST_OUTPUT: u64 = 1;

/// The body of an answer that is not streamed.
pub(crate) fn whole(made: &Generation) -> Json {
    let block = match &made.tool {
        Some(name) => obj! {
            "type": "tool_use",
            "id": tool_id(made),
            "name": name,
            "input": input(&made.whole()),
        },
        None => obj! { "type": "text", "text": made.whole() },
    };
    message(made, vec![block], Some(stop(made.finish)), made.usage.output)
}

/// The events of a streamed answer.
pub(crate) fn stream(made: &Generation) -> Feed {
    let mut feed = Feed::new(Framing::Named);
    let first = made.usage.output.min(FIRST_OUTPUT);
    let start = obj! { "type": "message_start", "message": message(made, Vec::new(), None, first) };
    feed.event(Part::Lead, "message_start", &start);
    let block = match &made.tool {
        Some(name) => {
            obj! { "type": "tool_use", "id": tool_id(made), "name": name, "input": obj! {} }
        }
        None => obj! { "type": "text", "text": "" },
    };
    let start = obj! { "type": "content_block_start", "index": 0usize, "content_block": block };
    feed.event(Part::Lead, "content_block_start", &start);
    feed.event(Part::Lead, "ping", &Json(r#"{"type": "ping"}"#.to_owned()));
    for (at, text) in made.chunks.iter().enumerate() {
        let tokens = super::text::share(made.usage.output, at, made.chunks.len());
        let delta = match made.tool {
            Some(_) => obj! { "type": "input_json_delta", "partial_json": text },
            None => obj! { "type": "text_delta", "text": text },
        };
        let event = obj! { "type": "content_block_delta", "index": 0usize, "delta": delta };
        feed.event(Part::Content(tokens), "content_block_delta", &event);
    }
    let end = obj! { "type": "content_block_stop", "index": 0usize };
    feed.event(Part::Tail, "content_block_stop", &end);
    feed.event(Part::Tail, "message_delta", &message_delta(made));
    feed.event(Part::Tail, "message_stop", &obj! { "type": "message_stop" });
    feed
}

fn message_delta(made: &Generation) -> Json {
    let usage = &made.usage;
    let report = obj! {
        "input_tokens": uncached(made),
        "cache_creation_input_tokens": usage.cache_write,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.output,
        "output_tokens_details": Maybe(thinking(made)),
    };
    let delta = obj! {
        "stop_reason": stop(made.finish),
        "stop_sequence": Null,
        "stop_details": Null,
    };
    obj! { "type": "message_delta", "delta": delta, "usage": Maybe(made.report.then_some(report)) }
}

fn message(made: &Generation, content: Vec<Json>, stop: Option<&str>, output: u64) -> Json {
    let usage = &made.usage;
    let done = stop.is_some();
    let report = obj! {
        "input_tokens": uncached(made),
        "cache_creation_input_tokens": usage.cache_write,
        "cache_read_input_tokens": usage.cached,
        "cache_creation": obj! {
            "ephemeral_5m_input_tokens": usage.cache_write,
            "ephemeral_1h_input_tokens": 0u64,
        },
        "output_tokens": output,
        "output_tokens_details": Maybe(thinking(made).filter(|_| done)),
        "service_tier": "standard",
    };
    obj! {
        "id": format!("msg_sim{}", made.seq),
        "type": "message",
        "role": "assistant",
        "model": made.model,
        "content": content,
        "stop_reason": stop,
        "stop_sequence": Null,
        "stop_details": Null,
        "usage": Maybe(made.report.then_some(report)),
    }
}

/// Anthropic's `input_tokens` are only those neither read from nor written to the cache.
fn uncached(made: &Generation) -> u64 {
    let cached = made.usage.cached + made.usage.cache_write;
    made.usage.input.saturating_sub(cached)
}

fn thinking(made: &Generation) -> Option<Json> {
    let tokens = made.usage.reasoning;
    (tokens > 0).then(|| obj! { "thinking_tokens": tokens })
}

fn stop(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "end_turn",
        Finish::Length => "max_tokens",
        Finish::Tool => "tool_use",
    }
}

/// A tool's input is an object here, not text: arguments that are no JSON become `{}`.
fn input(arguments: &str) -> Json {
    match serde_json::from_str::<serde_json::Value>(arguments) {
        Ok(value) if value.is_object() => Json(arguments.to_owned()),
        _ => obj! {},
    }
}

fn tool_id(made: &Generation) -> String {
    format!("toolu_sim{}", made.seq)
}

/// The list of models.
pub(crate) fn models(ids: &[&str]) -> Json {
    let model = |id: &&str| {
        obj! { "type": "model", "id": *id, "display_name": *id, "created_at": "2026-11-21T00:00:00Z" }
    };
    let data: Vec<Json> = ids.iter().map(model).collect();
    obj! {
        "data": data,
        "has_more": false,
        "first_id": ids.first().copied(),
        "last_id": ids.last().copied(),
    }
}
