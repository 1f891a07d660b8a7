//! Anthropic's answers.

use serde_json::Value;

use super::look::{count, is_something, member, owned, parse, text_len};
use super::openai;
use super::seen::Seen;
use super::tap::Tap;
use crate::wire::anthropic::Counts;
use crate::wire::seen::{Failure, Verdict};
use crate::wire::sse::Event;

/// The members of a JSON answer that matter.
pub const MEMBERS: &[&str] = &["usage", "error", "type"];

/// The numbers of a `usage`. What they come to together is counted in one place only.
fn counts_in(all: &Value) -> Counts {
    let part = |outer: &str, name: &str| all.get(outer)?.get(name).and_then(count);
    Counts {
        uncached: summed(all, "input_tokens"),
        read: summed(all, "cache_read_input_tokens"),
        written: summed(all, "cache_creation_input_tokens"),
        written_5m: part("cache_creation", "ephemeral_5m_input_tokens"),
        written_1h: part("cache_creation", "ephemeral_1h_input_tokens"),
        output: summed(all, "output_tokens"),
        thinking: part("output_tokens_details", "thinking_tokens"),
        searches: part("server_tool_use", "web_search_requests"),
    }
}

/// A number that the top level may give for the last iteration only (beta `iterations[]`):
/// then the iterations' sum is what is billed.
fn summed(all: &Value, name: &str) -> Option<u64> {
    let top = all.get(name).and_then(count);
    let iterations = all.get("iterations").and_then(Value::as_array);
    let sum = iterations.and_then(|iterations| {
        let each = iterations.iter().filter_map(|one| count(one.get(name)?));
        each.reduce(u64::saturating_add)
    });
    top.max(sum)
}

/// Reads one event.
pub fn event(seen: &mut Seen, event: Event<'_>) -> Verdict {
    let data = event.data;
    let kind = member(data, "type").and_then(owned);
    let kind = kind.unwrap_or_else(|| String::from_utf8_lossy(event.name).into_owned());
    match kind.as_str() {
        "content_block_delta" => {
            let delta = member(data, "delta").unwrap_or_default();
            for name in ["text", "thinking", "partial_json"] {
                seen.text_bytes += member(delta, name).map_or(0, text_len);
            }
        }
        "content_block_start" => {
            let block = member(data, "content_block").unwrap_or_default();
            for name in ["name", "text", "thinking"] {
                seen.text_bytes += member(block, name).map_or(0, text_len);
            }
        }
        "message_start" => {
            let message = member(data, "message").unwrap_or_default();
            let mut first = counts(seen, member(message, "usage"));
            // A number between 1 and 8 that only says that it began.
            first.output = None;
            first.thinking = None;
            replace(seen, first);
        }
        "message_delta" => {
            let later = counts(seen, member(data, "usage"));
            replace(seen, later);
        }
        "message_stop" => seen.finished = true,
        "error" => seen.fail(error(data)),
        _ => {}
    }
    Verdict::Keep
}

fn counts(seen: &mut Seen, raw: Option<&[u8]>) -> Counts {
    let all = raw.map(parse).unwrap_or_default();
    if let Some(tier) = all.get("service_tier").and_then(Value::as_str) {
        seen.service_tier = Some(tier.to_owned());
    }
    counts_in(&all)
}

fn replace(seen: &mut Seen, later: Counts) {
    seen.counts = seen.counts.replaced_by(later);
    seen.usage = seen.counts.usage();
}

/// Reads what was kept of a JSON answer.
pub fn answer(seen: &mut Seen, tap: &Tap) {
    let found = counts(seen, tap.value("usage"));
    seen.usage = found.usage();
    let failed = tap.value("type") == Some(b"\"error\"");
    match tap.value("error").filter(|error| is_something(error)) {
        Some(raw) => seen.fail(openai::error(raw)),
        None if failed => seen.fail(openai::error(b"\"the server answered an error\"")),
        None => {}
    }
}

/// The error of an `{"type":"error","error":{"type","message"}}`.
pub fn error(raw: &[u8]) -> Failure {
    openai::error(member(raw, "error").unwrap_or(raw))
}
