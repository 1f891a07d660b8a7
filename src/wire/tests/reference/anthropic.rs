//! Anthropic's answers.

use serde_json::Value;

use crate::units::Usage;

use super::look::{count, is_something, member, owned, parse, text_len};
use super::openai;
use super::seen::Seen;
use super::tap::Tap;
use crate::wire::seen::{Failure, Verdict};
use crate::wire::sse::Event;

/// The members of a JSON answer that matter.
pub const MEMBERS: &[&str] = &["usage", "error", "type"];

/// The numbers as Anthropic writes them: each part of the input for itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Input neither read from nor written to the cache.
    uncached: Option<u64>,
    read: Option<u64>,
    written: Option<u64>,
    written_5m: Option<u64>,
    written_1h: Option<u64>,
    output: Option<u64>,
    thinking: Option<u64>,
    searches: Option<u64>,
}

impl Counts {
    fn of(all: &Value) -> Counts {
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

    /// A later report replaces what it names and leaves the rest: it never adds. It may move tokens
    /// from one part of the input to another; but where it makes the whole of it smaller, its zeros
    /// say nothing, as of gateways that have written them for what they leave out
    /// (envoyproxy/ai-gateway #1631).
    fn replaced_by(self, later: Counts) -> Counts {
        let named = self.with(later, |before, later| later.or(before));
        if named.input() >= self.input() {
            return named;
        }
        self.with(later, |before, later| later.filter(|count| *count > 0).or(before).or(later))
    }

    /// Both, with each part of the input as `part` has it. What an answer has used only grows.
    fn with(self, later: Counts, part: impl Fn(Option<u64>, Option<u64>) -> Option<u64>) -> Counts {
        let split = later.written_5m.max(later.written_1h) > Some(0);
        let (first, second) = if split { (later, self) } else { (self, later) };
        Counts {
            uncached: part(self.uncached, later.uncached),
            read: part(self.read, later.read),
            written: part(self.written, later.written),
            written_5m: first.written_5m.or(second.written_5m),
            written_1h: first.written_1h.or(second.written_1h),
            output: self.output.max(later.output),
            thinking: self.thinking.max(later.thinking),
            searches: self.searches.max(later.searches),
        }
    }

    /// All of the input.
    fn input(self) -> u64 {
        let parts = [self.uncached, self.read, self.written()];
        parts.into_iter().flatten().fold(0, u64::saturating_add)
    }

    /// What was written to the cache, every lifetime together.
    fn written(self) -> Option<u64> {
        self.written.or(sum(self.written_5m, self.written_1h))
    }

    /// The part of it that is kept for an hour: all, where it has grown past a split in which there
    /// was no other kind.
    fn written_1h(self) -> Option<u64> {
        let only = self.written_1h > Some(0) && self.written_5m.unwrap_or(0) == 0;
        if only { self.written() } else { self.written_1h.min(self.written()) }
    }

    fn usage(self) -> Usage {
        let written = self.written();
        let beside = |uncached: u64| {
            uncached.saturating_add(self.read.unwrap_or(0)).saturating_add(written.unwrap_or(0))
        };
        Usage {
            input: self.uncached.map(beside),
            cached_input: self.read,
            cache_write: written,
            cache_write_1h: self.written_1h(),
            output: self.output,
            reasoning: self.thinking,
            web_searches: self.searches,
            ..Usage::default()
        }
    }
}

/// The sum of what is known.
fn sum(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.saturating_add(b)),
        (a, b) => a.or(b),
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
    Counts::of(&all)
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
