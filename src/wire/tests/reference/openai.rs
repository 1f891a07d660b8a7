//! OpenAI's answers, and those of the many servers that speak its API.

use serde_json::Value;

use crate::units::{NanoUsd, Usage};

use super::look::{
    count, is_object, is_something, member, members, number, owned, parse, text_len,
};
use super::look::{elements, text};
use super::seen::Seen;
use super::tap::Tap;
use crate::wire::route::Endpoint;
use crate::wire::seen::{Failure, Verdict};
use crate::wire::sse::Event;

/// The members of a JSON answer that matter.
pub const MEMBERS: &[&str] =
    &["usage", "error", "status", "service_tier", "output", "duration", "object"];

/// Usage as chat, Responses, embeddings, images and audio report it.
///
/// `None` if it is not an object. Input includes cached tokens and output includes reasoning
/// already (OpenAI API reference, `usage`).
pub fn usage(raw: &[u8]) -> Option<Usage> {
    let all = parse(raw);
    all.as_object()?;
    let first = |names: &[&str]| names.iter().find_map(|name| count(all.get(name)?));
    let of = |details: &[&str], name: &str| {
        let found = details.iter().find_map(|details| all.get(details)?.get(name));
        found.and_then(count)
    };
    // Transcriptions write the first one in the singular.
    let input_details = ["prompt_tokens_details", "input_tokens_details", "input_token_details"];
    let output_details =
        ["completion_tokens_details", "output_tokens_details", "output_token_details"];
    let input = first(&["prompt_tokens", "input_tokens"]);
    let mut output = first(&["completion_tokens", "output_tokens"]);
    if let (Some(input), Some(said), Some(total)) = (input, output, first(&["total_tokens"])) {
        // Gemini's and xAI's compatible servers leave reasoning out of the output, not out of
        // the total, and bill it.
        output = Some(said.max(total.saturating_sub(input)));
    }
    // DeepSeek's own name for cached tokens; its `cached_tokens` may be missing or 0.
    let hit = first(&["prompt_cache_hit_tokens"]);
    Some(Usage {
        input,
        cached_input: of(&input_details, "cached_tokens").max(hit),
        cache_write: of(&input_details, "cache_write_tokens"),
        cache_write_1h: None,
        audio_input: of(&input_details, "audio_tokens"),
        output,
        reasoning: of(&output_details, "reasoning_tokens"),
        audio_output: of(&output_details, "audio_tokens"),
        duration_ms: all.get("seconds").and_then(milliseconds),
        web_searches: of(&["server_tool_use"], "web_search_requests"),
        file_searches: None,
        billed: billed(&all),
    })
}

pub fn total(usage: &Usage) -> u64 {
    usage.input.unwrap_or(0).saturating_add(usage.output.unwrap_or(0))
}

fn billed(all: &Value) -> Option<NanoUsd> {
    let cost = all.get("cost").and_then(|cost| {
        let dollars = cost.get("total_cost").unwrap_or(cost).as_f64()?;
        let nano = (dollars * 1e9 - 1e-3).ceil().max(0.0);
        (0.0..1e6).contains(&dollars).then_some(NanoUsd(nano as u64))
    });
    let ticks = all.get("cost_in_usd_ticks").and_then(number);
    let ticks = ticks.map(|ticks| NanoUsd(ticks.div_ceil(10)));
    cost.max(ticks.filter(|cost| cost.0 < 1_000_000_000_000_000))
}

/// Reads one event.
pub fn event(endpoint: Endpoint, seen: &mut Seen, event: Event<'_>) -> Verdict {
    match endpoint {
        Endpoint::ChatCompletions | Endpoint::Completions => chunk(seen, event.data),
        _ => {
            named(seen, event);
            Verdict::Keep
        }
    }
}

/// Reads what was kept of a JSON answer.
pub fn answer(seen: &mut Seen, tap: &Tap) {
    if let Some(found) = tap.value("usage").and_then(usage) {
        seen.usage = found;
    }
    let tokens = seen.usage.input.or(seen.usage.output);
    if tokens.is_none() && seen.usage.duration_ms.is_none() {
        // `verbose_json` transcriptions have the seconds beside the text.
        let seconds = tap.value("duration").map(parse);
        seen.usage.duration_ms = seconds.as_ref().and_then(milliseconds);
    }
    seen.service_tier = tap.value("service_tier").and_then(owned);
    if let Some(output) = tap.value("output") {
        seen.usage.web_searches = seen.usage.web_searches.or(searches(output));
        seen.usage.file_searches = file_searches(output);
    }
    let says = |name: &str, word: &str| {
        let value = tap.value(name).and_then(owned);
        value.as_deref() == Some(word)
    };
    match tap.value("error").filter(|error| is_something(error)) {
        Some(raw) => seen.fail(error(raw)),
        None if says("status", "failed") => seen.fail(error(b"\"the response failed\"")),
        None if says("object", "error") => seen.fail(error(b"\"the server answered an error\"")),
        None => {}
    }
}

/// An error's value: an object in one of many shapes, or a bare string.
pub fn error(raw: &[u8]) -> Failure {
    let value = parse(raw);
    let word = |value: Option<&Value>| match value {
        Some(Value::String(word)) if !word.is_empty() && word != "error" => Some(word.clone()),
        Some(Value::Number(number)) => Some(number.to_string()),
        _ => None,
    };
    let metadata = value.get("metadata");
    let message = value.get("message").and_then(Value::as_str);
    let written = || String::from_utf8_lossy(raw.get(..512).unwrap_or(raw)).into_owned();
    Failure {
        message: message.or(value.as_str()).map_or_else(written, str::to_owned),
        kind: word(value.get("type"))
            .or_else(|| word(metadata?.get("error_type")))
            .or_else(|| word(value.get("code"))),
    }
}

/// One chunk of chat or completions.
fn chunk(seen: &mut Seen, data: &[u8]) -> Verdict {
    let (mut choices, mut stopped) = (0, false);
    let (mut found, mut nested, mut failure) = (None, None, None);
    let whole = members(data, |name, value| match name {
        "choices" => elements(value, |value| {
            choices += 1;
            stopped |= choice(seen, value);
        }),
        "usage" => found = usage(value),
        "x_groq" => nested = member(value, "usage").and_then(usage),
        "service_tier" => seen.service_tier = owned(value).or(seen.service_tier.take()),
        "error" if is_something(value) => failure = Some(error(value)),
        // vLLM's older form: the error is the whole chunk.
        "object" if value == b"\"error\"" => failure = Some(error(data)),
        _ => {}
    });
    let reason: &[u8] = b"\"the provider stopped with finish_reason error\"";
    let failure = failure.or_else(|| stopped.then(|| error(reason)));
    let usage_only = whole && choices == 0 && found.is_some() && failure.is_none();
    // The latest is the whole: snapshots grow, and Groq says the same twice.
    if let Some(usage) = found.or(nested).filter(|later| total(later) >= total(&seen.usage)) {
        seen.usage = usage;
    }
    if let Some(failure) = failure {
        seen.fail(failure);
    }
    if usage_only { Verdict::UsageOnly } else { Verdict::Keep }
}

/// One choice; whether it stopped because of an error.
fn choice(seen: &mut Seen, raw: &[u8]) -> bool {
    let mut stopped = false;
    members(raw, |name, value| match name {
        "delta" => {
            seen.text_bytes += delta_len(value);
            seen.sound_bytes += sound_len(value);
        }
        "text" => seen.text_bytes += text_len(value),
        "finish_reason" if value == b"\"error\"" => stopped = true,
        "finish_reason" => seen.finished |= text(value).is_some_and(|reason| !reason.is_empty()),
        _ => {}
    });
    stopped
}

/// Bytes of text, reasoning and tool arguments in one delta.
fn delta_len(raw: &[u8]) -> u64 {
    let mut total = 0;
    members(raw, |name, value| match name {
        "content" if value.first() == Some(&b'[') => {
            elements(value, |part| total += part_len(part));
        }
        "content" | "reasoning_content" | "reasoning" | "refusal" => total += text_len(value),
        "tool_calls" => elements(value, |call| {
            members(call, |name, value| {
                if matches!(name, "function" | "custom") {
                    total += strings_len(value);
                }
            });
        }),
        "function_call" => total += strings_len(value),
        "audio" => total += member(value, "transcript").map_or(0, text_len),
        _ => {}
    });
    total
}

/// Bytes of sound in one delta.
fn sound_len(raw: &[u8]) -> u64 {
    let mut total = 0;
    members(raw, |name, value| {
        if name == "audio" {
            total += member(value, "data").map_or(0, text_len) * 3 / 4;
        }
    });
    total
}

/// Mistral: `{"type":"text","text"}` or `{"type":"thinking","thinking":[{"text"}]}`.
fn part_len(raw: &[u8]) -> u64 {
    let mut total = 0;
    members(raw, |name, value| match name {
        "text" => total += text_len(value),
        "thinking" => elements(value, |part| {
            total += member(part, "text").map_or(0, text_len);
        }),
        _ => {}
    });
    total
}

/// All strings that are members of the object.
fn strings_len(raw: &[u8]) -> u64 {
    let mut total = 0;
    members(raw, |_, value| total += text_len(value));
    total
}

/// An event that says its own type: Responses, images, audio.
fn named(seen: &mut Seen, event: Event<'_>) {
    let data = event.data;
    let kind = member(data, "type").and_then(owned);
    let kind = kind.unwrap_or_else(|| String::from_utf8_lossy(event.name).into_owned());
    match kind.as_str() {
        "error" => {
            let nested = member(data, "error").filter(|error| is_object(error));
            seen.fail(error(nested.unwrap_or(data)));
        }
        "response.audio.delta" => {
            seen.sound_bytes += member(data, "delta").map_or(0, text_len) * 3 / 4;
        }
        "speech.audio.delta" => {
            seen.sound_bytes += member(data, "audio").map_or(0, text_len) * 3 / 4;
        }
        "transcript.text.done"
        | "speech.audio.done"
        | "image_generation.completed"
        | "image_edit.completed" => {
            seen.finished = true;
            seen.usage = member(data, "usage").and_then(usage).unwrap_or(seen.usage);
            if kind == "speech.audio.done" {
                seen.usage.audio_output = seen.usage.audio_output.or(seen.usage.output);
            }
        }
        "response.output_item.done" => {
            let item = member(data, "item").unwrap_or_default();
            if is_search(item) {
                let before = seen.usage.web_searches.unwrap_or(0);
                seen.usage.web_searches = Some(before + 1);
            }
            if is_file_search(item) {
                let before = seen.usage.file_searches.unwrap_or(0);
                seen.usage.file_searches = Some(before + 1);
            }
        }
        kind if kind.ends_with(".delta") => {
            seen.text_bytes += member(data, "delta").map_or(0, text_len);
        }
        kind => {
            if let Some(raw) = member(data, "error").filter(|error| is_something(error)) {
                seen.fail(error(raw));
            }
            if let Some(response) = member(data, "response") {
                self::response(seen, kind, response);
            }
        }
    }
}

/// The response object of an event that has one; the terminal ones have it with usage.
fn response(seen: &mut Seen, kind: &str, raw: &[u8]) {
    let mut failed = matches!(kind, "response.failed" | "response.cancelled");
    let mut why = error(b"\"the response failed\"");
    let (counted, files) = (seen.usage.web_searches, seen.usage.file_searches);
    members(raw, |name, value| match name {
        "usage" => {
            if let Some(found) = usage(value) {
                seen.usage = found;
            }
        }
        "service_tier" => seen.service_tier = owned(value).or(seen.service_tier.take()),
        "error" if is_something(value) => {
            failed = true;
            why = error(value);
        }
        _ => {}
    });
    seen.usage.web_searches = seen.usage.web_searches.or(counted);
    seen.usage.file_searches = files;
    if failed {
        seen.fail(why);
    }
    seen.finished |= matches!(kind, "response.completed" | "response.incomplete");
}

/// How many web searches an `output` array holds; `None` for none.
fn searches(output: &[u8]) -> Option<u64> {
    let mut total = 0;
    elements(output, |item| total += u64::from(is_search(item)));
    (total > 0).then_some(total)
}

fn file_searches(output: &[u8]) -> Option<u64> {
    let mut total = 0;
    elements(output, |item| total += u64::from(is_file_search(item)));
    (total > 0).then_some(total)
}

fn is_file_search(item: &[u8]) -> bool {
    member(item, "type") == Some(b"\"file_search_call\"")
}

/// Whether an item is a search that is billed: opening a page that was found is not.
fn is_search(item: &[u8]) -> bool {
    let is_call = member(item, "type") == Some(b"\"web_search_call\"");
    let action = member(item, "action").and_then(|action| member(action, "type"));
    is_call && action.is_none_or(|action| action == b"\"search\"")
}

/// Seconds, also fractions of them, in milliseconds.
fn milliseconds(seconds: &Value) -> Option<u64> {
    let seconds = match seconds {
        // whisper-1 has written it as a string.
        Value::String(text) => text.parse().ok()?,
        other => other.as_f64()?,
    };
    (0.0..1e9).contains(&seconds).then(|| (seconds * 1000.0).round() as u64)
}
