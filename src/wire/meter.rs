//! Watches one answer go past: what it used, whether it is whole, how much it said.

use bytes::Bytes;

use crate::units::Dialect;

use super::array::Elements;
use super::hold::Hold;
use super::packed::{Coding, Packed};
use super::route::Endpoint;
use super::seen::{Seen, Verdict};
use super::sse::{Event, SseParser};
use super::tap::Tap;
use super::{anthropic, gemini, look, openai};

pub use super::seen::{End, Report};

/// Watches one answer.
#[derive(Debug)]
pub struct Meter {
    endpoint: Endpoint,
    seen: Seen,
    how: How,
}

#[derive(Debug)]
enum How {
    Stream {
        parser: SseParser,
        hold: Option<Hold>,
    },
    Json {
        tap: Tap,
    },
    /// A stream of Gemini's without events.
    Array(Elements),
    Opaque,
    Packed(Box<Packed>),
    /// Not labelled as what it is, perhaps: its first byte will tell.
    Unlabelled,
}

impl Meter {
    /// For `text/event-stream`. `hide_usage` (chat and completions only): the client didn't
    /// ask for the event with the usage, so it is taken out.
    pub fn stream(endpoint: Endpoint, hide_usage: bool) -> Meter {
        let hides = matches!(endpoint, Endpoint::ChatCompletions | Endpoint::Completions);
        let hold = (hide_usage && hides).then(Hold::default);
        let parser = SseParser::new();
        Meter::new(endpoint, How::Stream { parser, hold })
    }

    /// For `application/json`.
    pub fn json(endpoint: Endpoint) -> Meter {
        let tap = Tap::new(match endpoint.dialect() {
            Dialect::OpenAi => openai::MEMBERS,
            Dialect::Anthropic => anthropic::MEMBERS,
            Dialect::Gemini => gemini::MEMBERS,
        });
        Meter::new(endpoint, How::Json { tap })
    }

    /// For an answer whose label says little: read as what it turns out to be.
    pub fn unlabelled(endpoint: Endpoint) -> Meter {
        Meter::new(endpoint, How::Unlabelled)
    }

    /// For what can't be read (audio, plain text): only counts bytes.
    pub fn opaque(endpoint: Endpoint) -> Meter {
        Meter::new(endpoint, How::Opaque)
    }

    /// For an answer like that, compressed: what it is metered by is in it, but nothing can be taken
    /// out of it or put behind it.
    pub fn packed(self, coding: Coding) -> Meter {
        let endpoint = self.endpoint;
        match Packed::new(coding, self) {
            Ok(packed) => Meter::new(endpoint, How::Packed(Box::new(packed))),
            Err(_) => Meter::opaque(endpoint),
        }
    }

    fn new(endpoint: Endpoint, how: How) -> Meter {
        let seen = Seen::default();
        Meter { endpoint, seen, how }
    }

    /// Watches `chunk` and returns what the client gets for it: the same memory, unless
    /// something has to be held back or taken out.
    pub fn chunk(&mut self, chunk: Bytes) -> Bytes {
        if matches!(self.how, How::Unlabelled) && !chunk.trim_ascii().is_empty() {
            self.how = sniffed(self.endpoint, &chunk);
        }
        let (endpoint, seen) = (self.endpoint, &mut self.seen);
        match &mut self.how {
            How::Stream { parser, hold: None } => {
                parser.feed(&chunk, &mut |event| {
                    read(endpoint, seen, event);
                });
                chunk
            }
            How::Stream { parser, hold: Some(hold) } => {
                let was_after_cr = parser.is_after_cr();
                let mut ends = Vec::new();
                parser.frames(&chunk, &mut |event, end| {
                    let verdict = event.map(|event| read(endpoint, seen, event));
                    ends.push((end, verdict == Some(Verdict::UsageOnly)));
                });
                hold.release(chunk, was_after_cr, &ends)
            }
            How::Json { tap } => {
                tap.feed(&chunk);
                seen.text_bytes += chunk.len() as u64;
                chunk
            }
            How::Packed(packed) => {
                packed.feed(&chunk);
                chunk
            }
            How::Array(elements) => {
                elements.feed(&chunk, &mut |data| {
                    read(endpoint, seen, Event { name: b"", data });
                });
                chunk
            }
            How::Opaque | How::Unlabelled => {
                seen.text_bytes += chunk.len() as u64;
                chunk
            }
        }
    }

    /// The end of the upstream's body. Returns the bytes that were held back.
    pub fn end(&mut self) -> Bytes {
        let (endpoint, seen) = (self.endpoint, &mut self.seen);
        match &mut self.how {
            How::Stream { parser, hold } => {
                let closing = parser.closing();
                let mut verdict = Verdict::Keep;
                parser.finish(&mut |event| {
                    // Without its blank line it may be cut short.
                    if is_end_mark(event.data) || look::is_whole(event.data) {
                        verdict = read(endpoint, seen, event);
                    }
                });
                match hold {
                    Some(hold) => hold.finish(verdict, closing),
                    None => Bytes::new(),
                }
            }
            How::Json { .. } => Bytes::new(),
            How::Array(elements) => {
                seen.finished |= elements.has_ended();
                Bytes::new()
            }
            How::Packed(packed) => {
                packed.end();
                Bytes::new()
            }
            How::Opaque | How::Unlabelled => {
                seen.finished = true;
                Bytes::new()
            }
        }
    }

    /// What must come before an event that the gateway adds now, after what the client has
    /// got so far (an error event, when the upstream broke off). To be asked before `end`,
    /// whose bytes are then not sent; or after it, when they were.
    pub fn closing(&self) -> &'static [u8] {
        match &self.how {
            How::Stream { parser, hold: None } => parser.closing(),
            How::Stream { parser, hold: Some(hold) } => hold.closing(parser.closing()),
            How::Json { .. } | How::Array(_) | How::Packed(_) | How::Opaque | How::Unlabelled => {
                b""
            }
        }
    }

    /// What kept a compressed answer from being read to its end.
    pub fn unreadable(&self) -> Option<&std::io::Error> {
        match &self.how {
            How::Packed(packed) => packed.broken(),
            _ => None,
        }
    }

    /// Whether the answer has begun: a stream's comments, which keep a connection open while
    /// nothing is there yet, are none of it.
    pub fn has_begun(&self) -> bool {
        match &self.how {
            How::Stream { .. } | How::Array(_) => self.seen.events > 0 || self.seen.finished,
            How::Packed(packed) => packed.has_begun(),
            How::Json { .. } | How::Opaque | How::Unlabelled => true,
        }
    }

    /// Whether the answer has been said to its end, and only its usage is to come: in chat it has
    /// an event of its own.
    pub fn awaits_usage(&self) -> bool {
        match &self.how {
            How::Packed(packed) => packed.meter().awaits_usage(),
            _ => self.seen.finished && self.seen.usage.output.is_none(),
        }
    }

    /// What is known so far; also in mid-stream, when the client has gone.
    pub fn report(&self) -> Report {
        if let How::Packed(packed) = &self.how {
            return packed.report();
        }
        let mut seen = self.seen.clone();
        if let How::Json { tap } = &self.how {
            match self.endpoint.dialect() {
                Dialect::OpenAi => openai::answer(&mut seen, tap),
                Dialect::Anthropic => anthropic::answer(&mut seen, tap),
                Dialect::Gemini => gemini::answer(&mut seen, tap),
            }
        }
        seen.report()
    }
}

/// What an answer is by the bytes that it begins with.
fn sniffed(endpoint: Endpoint, bytes: &[u8]) -> How {
    let text = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes).trim_ascii_start();
    let fields: [&[u8]; 4] = [b"data:", b"event:", b"id:", b":"];
    if endpoint == Endpoint::GeminiStream && text.starts_with(b"[") {
        How::Array(Elements::default())
    } else if text.starts_with(b"{") || text.starts_with(b"[") {
        Meter::json(endpoint).how
    } else if fields.iter().any(|field| text.starts_with(field) || field.starts_with(text)) {
        Meter::stream(endpoint, false).how
    } else {
        How::Opaque
    }
}

/// `[DONE]`, as OpenAI's SDKs recognise it: by its start.
fn is_end_mark(data: &[u8]) -> bool {
    data.trim_ascii_start().starts_with(b"[DONE]")
}

fn read(endpoint: Endpoint, seen: &mut Seen, event: Event<'_>) -> Verdict {
    let dialect = endpoint.dialect();
    if is_end_mark(event.data) {
        // The other APIs have end marks of their own; servers that add this one mean nothing.
        seen.finished |= matches!(endpoint, Endpoint::ChatCompletions | Endpoint::Completions);
        return Verdict::Keep;
    }
    seen.events += 1;
    match dialect {
        Dialect::OpenAi => openai::event(endpoint, seen, event),
        Dialect::Anthropic => anthropic::event(seen, event),
        Dialect::Gemini => gemini::event(seen, event),
    }
}
