//! Chat completions and legacy completions, as OpenAI frames them.

use super::ask::{Ask, Endpoint};
use super::feed::{Feed, Framing, Part};
use super::generation::{CREATED, Finish, Generation, Usage};
use super::json::{Json, Maybe, Null, Wire, empty, obj};

/// The body of an answer that is not streamed.
pub(crate) fn whole(ask: &Ask, made: &Generation) -> Json {
    let chat = ask.endpoint == Endpoint::Chat;
    let choices: Vec<Json> = (0..made.choices).map(|index| choice(chat, made, index)).collect();
    obj! {
        "id": id(chat, made),
        "object": if chat { "chat.completion" } else { "text_completion" },
        "created": CREATED,
        "model": made.model,
        "choices": choices,
        "usage": Maybe(made.report.then(|| usage(&made.usage))),
        "service_tier": "default",
        "system_fingerprint": Null,
    }
}

fn choice(chat: bool, made: &Generation, index: usize) -> Json {
    let finish = finish(made.finish);
    if !chat {
        return obj! { "text": made.whole(), "index": index, "logprobs": Null, "finish_reason": finish };
    }
    let content = made.tool.is_none().then(|| made.whole());
    let calls = made.tool.as_ref().map(|name| {
        let function = obj! { "name": name, "arguments": made.whole() };
        vec![obj! { "id": call_id(made, index), "type": "function", "function": function }]
    });
    let message = obj! {
        "role": "assistant",
        "content": content,
        "tool_calls": Maybe(calls),
        "refusal": Null,
        "annotations": empty(),
    };
    obj! { "index": index, "message": message, "logprobs": Null, "finish_reason": finish }
}

/// The events of a streamed answer.
pub(crate) fn stream(ask: &Ask, made: &Generation) -> Feed {
    let chat = ask.endpoint == Endpoint::Chat;
    let with_usage = ask.include_usage && made.report;
    let mut feed = Feed::new(Framing::Data);
    // Asked for usage, every chunk but the last says `"usage":null`.
    let chunk =
        |choices: Vec<Json>, last: Option<Json>| chunk(chat, made, choices, with_usage, last);
    if chat {
        for index in 0..made.choices {
            let delta = first_delta(made, index);
            feed.event(Part::Lead, "", &chunk(vec![delta_choice(index, delta, None)], None));
        }
    }
    for (index, text, tokens) in made.turns() {
        let choice = match (chat, &made.tool) {
            (true, Some(_)) => delta_choice(index, arguments_delta(text), None),
            (true, None) => delta_choice(index, obj! { "content": text }, None),
            (false, _) => text_choice(index, text, None),
        };
        feed.event(Part::Content(tokens), "", &chunk(vec![choice], None));
    }
    for index in 0..made.choices {
        let finish = Some(finish(made.finish));
        let choice = match chat {
            true => delta_choice(index, obj! {}, finish),
            false => text_choice(index, "", finish),
        };
        feed.event(Part::Tail, "", &chunk(vec![choice], None));
    }
    if with_usage {
        feed.event(Part::Tail, "", &chunk(Vec::new(), Some(usage(&made.usage))));
    }
    feed.bytes(Part::Tail, "data: [DONE]\n\n");
    feed
}

fn chunk(
    chat: bool,
    made: &Generation,
    choices: Vec<Json>,
    with_usage: bool,
    last: Option<Json>,
) -> Json {
    let object = if chat { "chat.completion.chunk" } else { "text_completion" };
    obj! {
        "id": id(chat, made),
        "object": object,
        "created": CREATED,
        "model": made.model,
        "service_tier": "default",
        "system_fingerprint": Null,
        "choices": choices,
        "usage": Maybe(with_usage.then_some(last)),
    }
}

fn first_delta(made: &Generation, index: usize) -> Json {
    let Some(name) = &made.tool else {
        return obj! { "role": "assistant", "content": "", "refusal": Null };
    };
    let call = obj! {
        "index": 0usize,
        "id": call_id(made, index),
        "type": "function",
        "function": obj! { "name": name, "arguments": "" },
    };
    obj! { "role": "assistant", "content": Null, "tool_calls": [call], "refusal": Null }
}

fn arguments_delta(text: &str) -> Json {
    let call = obj! { "index": 0usize, "function": obj! { "arguments": text } };
    obj! { "tool_calls": [call] }
}

fn delta_choice(index: usize, delta: Json, finish: Option<&str>) -> Json {
    obj! { "index": index, "delta": delta, "logprobs": Null, "finish_reason": finish }
}

fn text_choice(index: usize, text: &str, finish: Option<&str>) -> Json {
    obj! { "text": text, "index": index, "logprobs": Null, "finish_reason": finish }
}

fn finish(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::Tool => "tool_calls",
    }
}

fn usage(usage: &Usage) -> Json {
    let prompt = obj! {
        "cached_tokens": usage.cached,
        "cache_write_tokens": usage.cache_write,
        "audio_tokens": 0u64,
    };
    let completion = obj! {
        "reasoning_tokens": usage.reasoning,
        "audio_tokens": 0u64,
        "accepted_prediction_tokens": 0u64,
        "rejected_prediction_tokens": 0u64,
    };
    obj! {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
        "prompt_tokens_details": prompt,
        "completion_tokens_details": completion,
    }
}

fn id(chat: bool, made: &Generation) -> impl Wire {
    format!("{}-sim{}", if chat { "chatcmpl" } else { "cmpl" }, made.seq)
}

fn call_id(made: &Generation, index: usize) -> String {
    format!("call_sim{}_{index}", made.seq)
}
