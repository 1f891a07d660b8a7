//! Anthropic's answers.

use crate::units::Usage;

use super::fault::ScanError;
use super::json::Cursor;
use super::json_text::Text;
use super::look::{is_something, member};
use super::openai;
use super::seen::{Failure, Seen, Verdict};
use super::sse::Event;
use super::tap::Tap;
use super::walk;

/// The members of a JSON answer that matter, in the order in which `answer` takes them.
pub const MEMBERS: &[&str] = &["usage", "error", "type"];

/// The numbers as Anthropic writes them: each part of the input for itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Input neither read from nor written to the cache.
    pub(super) uncached: Option<u64>,
    pub(super) read: Option<u64>,
    pub(super) written: Option<u64>,
    pub(super) written_5m: Option<u64>,
    pub(super) written_1h: Option<u64>,
    pub(super) output: Option<u64>,
    pub(super) thinking: Option<u64>,
    pub(super) searches: Option<u64>,
}

/// The numbers that an object gives for each iteration, too.
#[derive(Debug, Clone, Copy, Default)]
struct Summed {
    uncached: Option<u64>,
    read: Option<u64>,
    written: Option<u64>,
    output: Option<u64>,
}

impl Summed {
    /// Takes a member's value.
    fn member(&mut self, cursor: &mut Cursor, name: &[u8]) -> Result<(), ScanError> {
        let number = match name {
            b"input_tokens" => &mut self.uncached,
            b"cache_read_input_tokens" => &mut self.read,
            b"cache_creation_input_tokens" => &mut self.written,
            b"output_tokens" => &mut self.output,
            _ => return cursor.skip(),
        };
        *number = walk::count(cursor)?;
        Ok(())
    }

    fn with(self, other: Summed, both: impl Fn(Option<u64>, Option<u64>) -> Option<u64>) -> Summed {
        Summed {
            uncached: both(self.uncached, other.uncached),
            read: both(self.read, other.read),
            written: both(self.written, other.written),
            output: both(self.output, other.output),
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

/// Reads a usage object: its numbers and the tier that it names. `None` if it is not an object.
fn read(raw: &[u8]) -> Option<(Counts, Option<Text<'_>>)> {
    let (mut counts, mut tier) = (Counts::default(), None);
    let (mut top, mut iterations) = (Summed::default(), Summed::default());
    walk::figures(raw, |cursor, name| {
        match name {
            b"cache_creation" => {
                (counts.written_5m, counts.written_1h) = (None, None);
                return walk::members(cursor, |cursor, name| {
                    let number = match name {
                        b"ephemeral_5m_input_tokens" => &mut counts.written_5m,
                        b"ephemeral_1h_input_tokens" => &mut counts.written_1h,
                        _ => return cursor.skip(),
                    };
                    *number = walk::count(cursor)?;
                    Ok(())
                });
            }
            b"output_tokens_details" => {
                counts.thinking = walk::count_of(cursor, b"thinking_tokens")?;
            }
            b"server_tool_use" => {
                counts.searches = walk::count_of(cursor, b"web_search_requests")?;
            }
            b"iterations" => {
                iterations = Summed::default();
                return walk::elements(cursor, |cursor| {
                    let mut one = Summed::default();
                    walk::members(cursor, |cursor, name| one.member(cursor, name))?;
                    iterations = iterations.with(one, sum);
                    Ok(())
                });
            }
            b"service_tier" => tier = walk::text(cursor)?,
            _ => return top.member(cursor, name),
        }
        Ok(())
    })?;
    // The top level may give a number for the last iteration only (beta `iterations[]`): then
    // the iterations' sum is what is billed.
    let billed = top.with(iterations, Option::max);
    let Summed { uncached, read, written, output } = billed;
    Some((Counts { uncached, read, written, output, ..counts }, tier))
}

impl Counts {
    /// A later report replaces what it names and leaves the rest: it never adds. It may move tokens
    /// from one part of the input to another; but where it makes the whole of it smaller, its zeros
    /// say nothing, as of gateways that have written them for what they leave out
    /// (envoyproxy/ai-gateway #1631).
    pub(super) fn replaced_by(self, later: Counts) -> Counts {
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

    pub(super) fn usage(self) -> Usage {
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

/// The members of an event that matter.
#[derive(Default)]
struct Members<'a> {
    kind: Option<Text<'a>>,
    /// Bytes of text in `delta`, and in `content_block`.
    delta: u64,
    block: u64,
    message: Option<&'a [u8]>,
    usage: Option<&'a [u8]>,
}

impl<'a> Members<'a> {
    fn member(&mut self, cursor: &mut Cursor<'a>, name: &[u8]) -> Result<(), ScanError> {
        match name {
            b"type" => self.kind = walk::text(cursor)?,
            b"delta" => self.delta = said(cursor, [b"text", b"thinking", b"partial_json"])?,
            b"content_block" => self.block = said(cursor, [b"name", b"text", b"thinking"])?,
            b"message" => self.message = Some(cursor.slice()?),
            b"usage" => self.usage = Some(cursor.slice()?),
            _ => return cursor.skip(),
        }
        Ok(())
    }
}

/// Bytes of text in an object's members of these names; of each the last one.
fn said(cursor: &mut Cursor, names: [&[u8]; 3]) -> Result<u64, ScanError> {
    let mut lengths = [0; 3];
    walk::members(cursor, |cursor, name| {
        let wanted = names.iter().zip(&mut lengths).find(|(wanted, _)| **wanted == name);
        let Some((_, length)) = wanted else {
            return cursor.skip();
        };
        *length = walk::text_len(cursor)?;
        Ok(())
    })?;
    Ok(lengths.iter().sum())
}

/// Reads one event.
pub fn event(seen: &mut Seen, event: Event<'_>) -> Verdict {
    let mut of = Members::default();
    walk::object(event.data, |cursor, name| of.member(cursor, name));
    let kind = of.kind.as_ref().and_then(|kind| kind.decode());
    match &*kind.unwrap_or_else(|| String::from_utf8_lossy(event.name)) {
        "content_block_delta" => seen.text_bytes += of.delta,
        "content_block_start" => seen.text_bytes += of.block,
        "message_start" => {
            let message = of.message.unwrap_or_default();
            let mut first = counts(seen, member(message, "usage"));
            // A number between 1 and 8 that only says that it began.
            first.output = None;
            first.thinking = None;
            replace(seen, first);
        }
        "message_delta" => {
            let later = counts(seen, of.usage);
            replace(seen, later);
        }
        "message_stop" => seen.finished = true,
        "error" => seen.fail(error(event.data)),
        _ => {}
    }
    Verdict::Keep
}

fn counts(seen: &mut Seen, raw: Option<&[u8]>) -> Counts {
    let (counts, tier) = raw.and_then(read).unwrap_or_default();
    if let Some(tier) = tier {
        seen.served_by(&tier);
    }
    counts
}

fn replace(seen: &mut Seen, later: Counts) {
    seen.counts = seen.counts.replaced_by(later);
    seen.usage = seen.counts.usage();
}

/// Reads a JSON answer.
pub fn answer(seen: &mut Seen, tap: &Tap) {
    let found = tap.found(|cursor| cursor.skip());
    let [usage, error, kind, ..] = found.values();
    seen.finished = found.is_complete();
    seen.usage = counts(seen, usage).usage();
    match error.filter(|error| is_something(error)) {
        Some(raw) => seen.fail(openai::error(raw)),
        None if kind == Some(b"\"error\"") => {
            seen.fail(openai::error(b"\"the server answered an error\""));
        }
        None => {}
    }
}

/// The error of an `{"type":"error","error":{"type","message"}}`.
pub fn error(raw: &[u8]) -> Failure {
    openai::error(member(raw, "error").unwrap_or(raw))
}
