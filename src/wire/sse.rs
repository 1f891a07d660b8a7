//! Server-sent events out of bytes that are cut anywhere (WHATWG HTML, section 9.2).
//!
//! Lines are found as bytes and never decoded: a cut inside a character can't hurt.

use memchr::memchr2;

/// The most bytes of one line or of one event's data. More is dropped up to the next event.
pub const MAX_EVENT: usize = 16 * 1024 * 1024;

/// Buffers above this size are given back after use.
const KEPT: usize = 64 * 1024;

/// One event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event<'a> {
    /// Its name; empty when it has none (which means `message`).
    pub name: &'a [u8],
    /// Its data; several lines are joined with LF.
    pub data: &'a [u8],
}

/// Called at each end of an event: the event if it had data, and the offset in the bytes just
/// given at which it ends.
pub type FrameSink<'s> = dyn FnMut(Option<Event<'_>>, usize) + 's;

/// Finds events.
#[derive(Debug, Default)]
pub struct SseParser {
    /// The line that has not ended yet.
    line: Vec<u8>,
    name: Vec<u8>,
    /// Data of the event that has not ended yet.
    data: Vec<u8>,
    has_data: bool,
    /// Whether the event has any line yet.
    started: bool,
    /// The last byte was CR: a LF that follows belongs to it.
    after_cr: bool,
    /// A line has ended: a byte order mark can't come any more.
    past_first_line: bool,
    /// The event is too large and is being dropped.
    oversize: bool,
    overflowed: bool,
}

impl SseParser {
    /// At the start of a stream.
    pub fn new() -> SseParser {
        SseParser::default()
    }

    /// Calls `sink` for every event completed by these bytes.
    pub fn feed(&mut self, bytes: &[u8], sink: &mut dyn FnMut(Event<'_>)) {
        self.frames(bytes, &mut |event, _| {
            if let Some(event) = event {
                sink(event);
            }
        });
    }

    /// As `feed`, and tells where each event ends, also those without data (comments).
    pub fn frames(&mut self, bytes: &[u8], sink: &mut FrameSink<'_>) {
        // The only data line so far, as long as it needn't be copied.
        let mut only: Option<&[u8]> = None;
        let mut rest = bytes;
        if self.after_cr && !bytes.is_empty() {
            self.after_cr = false;
            rest = rest.strip_prefix(b"\n").unwrap_or(rest);
        }
        while let Some(at) = memchr2(b'\n', b'\r', rest) {
            let (line, end) = rest.split_at(at);
            rest = end.strip_prefix(b"\r\n").or(end.get(1..)).unwrap_or_default();
            self.after_cr = end == b"\r";
            if self.line.is_empty() {
                self.line_ended(line, Some(line), &mut only);
            } else {
                self.keep_line(line);
                let whole = std::mem::take(&mut self.line);
                self.line_ended(&whole, None, &mut only);
                self.line = recycled(whole);
            }
            if !self.started {
                self.dispatch(only.take(), bytes.len() - rest.len(), sink);
            }
        }
        self.keep_line(rest);
        if let Some(value) = only {
            self.keep_data(value);
        }
    }

    /// Adds to the unfinished line.
    fn keep_line(&mut self, bytes: &[u8]) {
        if self.line.len() + bytes.len() > MAX_EVENT {
            self.overflow();
            // What is left of this line is no field, and no end of the event either.
            self.line.extend_from_slice(b":");
            return;
        }
        self.line.extend_from_slice(bytes);
    }

    fn overflow(&mut self) {
        self.overflowed = true;
        self.oversize = true;
        self.line = Vec::new();
        self.data = Vec::new();
    }

    /// Reads one line. `lasting` is the line if it lives as long as the bytes being fed.
    /// Leaves `started` false when the line ends an event.
    fn line_ended<'b>(
        &mut self,
        line: &[u8],
        lasting: Option<&'b [u8]>,
        only: &mut Option<&'b [u8]>,
    ) {
        let mut line = line;
        let mut lasting = lasting;
        if !self.past_first_line {
            self.past_first_line = true;
            line = line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line);
            // It may have lost its mark just now: copied, once per stream.
            lasting = None;
        }
        self.started = !line.is_empty();
        match field(line) {
            Some((b"data", value)) => {
                let first = !self.has_data && only.is_none();
                match lasting.and_then(field) {
                    Some((_, value)) if first => *only = Some(value),
                    _ => {
                        if let Some(earlier) = only.take() {
                            self.keep_data(earlier);
                        }
                        self.keep_data(value);
                    }
                }
            }
            Some((b"event", value)) => {
                self.name.clear();
                self.name.extend_from_slice(value.get(..256).unwrap_or(value));
            }
            // `id` and `retry` matter to who reconnects; nobody here does.
            _ => {}
        }
    }

    fn keep_data(&mut self, value: &[u8]) {
        if self.oversize || self.data.len() + value.len() > MAX_EVENT {
            self.overflow();
            return;
        }
        if self.has_data {
            self.data.push(b'\n');
        }
        self.has_data = true;
        self.data.extend_from_slice(value);
    }

    fn dispatch(&mut self, only: Option<&[u8]>, end: usize, sink: &mut FrameSink<'_>) {
        let kept = self.has_data.then_some(self.data.as_slice());
        let data = only.or(kept).filter(|_| !self.oversize);
        let name = &self.name;
        sink(data.map(|data| Event { name, data }), end);
        self.name.clear();
        self.data = recycled(std::mem::take(&mut self.data));
        self.has_data = false;
        self.oversize = false;
    }

    /// At the end of the stream: hands out the event that was never ended, if it has data.
    ///
    /// A browser would drop it. It may be cut short; see whether it is whole before using it.
    pub fn finish(&mut self, sink: &mut dyn FnMut(Event<'_>)) {
        if !self.line.is_empty() {
            let line = std::mem::take(&mut self.line);
            self.line_ended(&line, None, &mut None);
        }
        if self.has_data {
            self.dispatch(None, 0, &mut |event, _| {
                if let Some(event) = event {
                    sink(event);
                }
            });
        }
        self.started = false;
    }

    /// Whether an event was larger than 16 MiB, and dropped.
    pub fn overflowed(&self) -> bool {
        self.overflowed
    }

    /// Whether a LF now would still belong to the line end before it.
    pub fn is_after_cr(&self) -> bool {
        self.after_cr
    }

    /// What must come before an event that is added after the bytes so far.
    ///
    /// As little as possible: an OpenAI SDK fails on an event without data, so `event: x`
    /// must not be ended by a blank line. An event cut inside its data has to be ended, and
    /// will fail to parse at the client: nothing can take back what was sent.
    pub fn closing(&self) -> &'static [u8] {
        let value_begun = matches!(field(&self.line), Some((b"data", value)) if !value.is_empty());
        // After CR the first LF would only be the rest of that line end.
        let at_line_start = self.line.is_empty() && !self.after_cr;
        match (self.has_data || value_begun, at_line_start) {
            (false, true) => b"",
            (false, false) | (true, true) => b"\n",
            (true, false) => b"\n\n",
        }
    }
}

/// A line's field and value. `None` for a comment.
fn field(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let Some(colon) = memchr::memchr(b':', line) else {
        return Some((line, b""));
    };
    let (name, rest) = line.split_at(colon);
    let value = rest.get(1..).unwrap_or_default();
    let value = value.strip_prefix(b" ").unwrap_or(value);
    (colon != 0).then_some((name, value))
}

/// The buffer, emptied; a new one if it has grown large.
fn recycled(mut buffer: Vec<u8>) -> Vec<u8> {
    if buffer.capacity() > KEPT {
        return Vec::new();
    }
    buffer.clear();
    buffer
}
