//! The Responses API, as OpenAI frames it.

use super::feed::{Feed, Framing, Part};
use super::generation::{CREATED, Finish, Generation};
use super::json::{Json, Maybe, Null, empty, obj};

/// The body of an answer that is not streamed.
pub(crate) fn whole(made: &Generation) -> Json {
    response(made, true)
}

/// The events of a streamed answer.
pub(crate) fn stream(made: &Generation) -> Feed {
    let mut events = Events { feed: Feed::new(Framing::Named), sequence: 0 };
    let (lead, tail) = (Part::Lead, Part::Tail);
    events.add(lead, "response.created", |head, n| {
        obj! { "type": head, "response": response(made, false), "sequence_number": n }
    });
    events.add(lead, "response.in_progress", |head, n| {
        obj! { "type": head, "response": response(made, false), "sequence_number": n }
    });
    events.add(lead, "response.output_item.added", |head, n| {
        obj! { "type": head, "output_index": 0usize, "item": item(made, false), "sequence_number": n }
    });
    match made.tool {
        Some(_) => call_events(&mut events, made),
        None => text_events(&mut events, made),
    }
    events.add(tail, "response.output_item.done", |head, n| {
        obj! { "type": head, "output_index": 0usize, "item": item(made, true), "sequence_number": n }
    });
    let last = match made.finish {
        Finish::Length => "response.incomplete",
        Finish::Stop | Finish::Tool => "response.completed",
    };
    events.add(tail, last, |head, n| {
        obj! { "type": head, "response": response(made, true), "sequence_number": n }
    });
    events.feed
}

struct Events {
    feed: Feed,
    sequence: u64,
}

impl Events {
    fn add(&mut self, part: Part, name: &str, event: impl FnOnce(&str, u64) -> Json) {
        let json = event(name, self.sequence);
        self.sequence += 1;
        self.feed.event(part, name, &json);
    }
}

fn text_events(events: &mut Events, made: &Generation) {
    events.add(Part::Lead, "response.content_part.added", |head, n| {
        obj! {
            "type": head, "item_id": item_id(made), "output_index": 0usize, "content_index": 0usize,
            "part": part(""), "sequence_number": n,
        }
    });
    for (at, text) in made.chunks.iter().enumerate() {
        // One answer only: `n` does not exist here, but a foreign one must not lose tokens.
        let tokens = super::text::share(made.usage.output, at, made.chunks.len());
        events.add(Part::Content(tokens), "response.output_text.delta", |head, n| {
            obj! {
                "type": head, "item_id": item_id(made), "output_index": 0usize, "content_index": 0usize,
                "delta": text, "logprobs": empty(), "sequence_number": n,
            }
        });
    }
    events.add(Part::Tail, "response.output_text.done", |head, n| {
        obj! {
            "type": head, "item_id": item_id(made), "output_index": 0usize, "content_index": 0usize,
            "text": made.whole(), "logprobs": empty(), "sequence_number": n,
        }
    });
    events.add(Part::Tail, "response.content_part.done", |head, n| {
        obj! {
            "type": head, "item_id": item_id(made), "output_index": 0usize, "content_index": 0usize,
            "part": part(&made.whole()), "sequence_number": n,
        }
    });
}

fn call_events(events: &mut Events, made: &Generation) {
    for (at, text) in made.chunks.iter().enumerate() {
        let tokens = super::text::share(made.usage.output, at, made.chunks.len());
        events.add(Part::Content(tokens), "response.function_call_arguments.delta", |head, n| {
            obj! {
                "type": head, "item_id": item_id(made), "output_index": 0usize,
                "delta": text, "sequence_number": n,
            }
        });
    }
    events.add(Part::Tail, "response.function_call_arguments.done", |head, n| {
        obj! {
            "type": head, "item_id": item_id(made), "output_index": 0usize,
            "name": made.tool, "arguments": made.whole(), "sequence_number": n,
        }
    });
}

fn response(made: &Generation, done: bool) -> Json {
    let cut = made.finish == Finish::Length;
    let status = match (done, cut) {
        (false, _) => "in_progress",
        (true, true) => "incomplete",
        (true, false) => "completed",
    };
    let reason = (done && cut).then(|| obj! { "reason": "max_output_tokens" });
    let output = if done { vec![item(made, true)] } else { Vec::new() };
    let usage = (done && made.report).then(|| usage(made));
    obj! {
        "id": format!("resp_sim{}", made.seq),
        "object": "response",
        "created_at": CREATED,
        "status": status,
        "background": false,
        "error": Null,
        "incomplete_details": reason,
        "instructions": Null,
        "max_output_tokens": Null,
        "metadata": obj! {},
        "model": made.model,
        "output": output,
        "parallel_tool_calls": true,
        "previous_response_id": Null,
        "reasoning": obj! { "effort": "medium", "summary": Null },
        "service_tier": "default",
        "store": true,
        "temperature": 1.0f32,
        "text": obj! { "format": obj! { "type": "text" } },
        "tool_choice": "auto",
        "tools": empty(),
        "top_p": 1.0f32,
        "truncation": "disabled",
        "usage": usage,
        "user": Null,
        "completed_at": Maybe((done && !cut).then_some(CREATED)),
    }
}

fn item(made: &Generation, done: bool) -> Json {
    let status = match (done, made.finish) {
        (false, _) => "in_progress",
        (true, Finish::Length) => "incomplete",
        (true, _) => "completed",
    };
    if let Some(name) = &made.tool {
        return obj! {
            "id": item_id(made),
            "type": "function_call",
            "status": status,
            "arguments": if done { made.whole() } else { String::new() },
            "call_id": format!("call_sim{}_0", made.seq),
            "name": name,
        };
    }
    let content = if done { vec![part(&made.whole())] } else { Vec::new() };
    obj! {
        "id": item_id(made),
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": content,
    }
}

fn part(text: &str) -> Json {
    obj! { "type": "output_text", "annotations": empty(), "logprobs": empty(), "text": text }
}

fn item_id(made: &Generation) -> String {
    let kind = if made.tool.is_some() { "fc" } else { "msg" };
    format!("{kind}_sim{}", made.seq)
}

fn usage(made: &Generation) -> Json {
    let usage = &made.usage;
    obj! {
        "input_tokens": usage.input,
        "input_tokens_details": obj! {
            "cached_tokens": usage.cached,
            "cache_write_tokens": usage.cache_write,
        },
        "output_tokens": usage.output,
        "output_tokens_details": obj! { "reasoning_tokens": usage.reasoning },
        "total_tokens": usage.input + usage.output,
    }
}
