//! Chosen members of a JSON answer, out of pieces, without keeping the rest.

use super::runs;

/// The most bytes kept of one member; a longer one is not kept at all.
pub const MAX_MEMBER: usize = 256 * 1024;

/// The longest member name that is looked at.
const MAX_KEY: usize = 128;

/// Watches a JSON text go past and keeps some of its top-level members.
///
/// In a top-level array it looks into every element that is an object; the last one that has
/// the member wins, as with Gemini's array of cumulative snapshots. Not a validator: what is
/// kept is parsed by whoever reads it.
#[derive(Debug)]
pub struct Tap {
    wanted: &'static [&'static str],
    kept: Vec<Kept>,
    place: Place,
    /// Containers open now.
    depth: usize,
    /// The depth of the members that are looked at: 1, or 2 in a top-level array.
    level: usize,
    string: Quoted,
    key: Vec<u8>,
    /// Which of `kept` the current value goes to.
    current: Option<usize>,
}

#[derive(Debug, Default)]
struct Kept {
    bytes: Vec<u8>,
    whole: bool,
}

/// Where in the text it is, outside of strings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before the first value.
    Start,
    /// In an object that is looked at, where a name may come.
    Key,
    /// In a value, or between elements.
    Value,
    /// The text has ended.
    End,
    /// It is not an object or an array.
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quoted {
    No,
    Yes,
    /// After a backslash.
    Escape,
}

impl Tap {
    /// Keeps the members of these names.
    pub fn new(wanted: &'static [&'static str]) -> Tap {
        Tap {
            wanted,
            kept: wanted.iter().map(|_| Kept::default()).collect(),
            place: Place::Start,
            depth: 0,
            level: 1,
            string: Quoted::No,
            key: Vec::new(),
            current: None,
        }
    }

    /// The next bytes of the text.
    pub fn feed(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let taken = match self.place {
                Place::Start => self.start(rest),
                Place::Key => self.name(rest),
                Place::Value => self.values(rest),
                Place::End | Place::Other => return,
            };
            rest = rest.get(taken..).unwrap_or_default();
        }
    }

    /// The member's value as it was written; `None` if it didn't come, or not all of it, or
    /// if it was too large.
    pub fn value(&self, name: &str) -> Option<&[u8]> {
        let at = self.wanted.iter().position(|wanted| *wanted == name)?;
        let kept = self.kept.get(at)?;
        kept.whole.then(|| kept.bytes.trim_ascii())
    }

    /// Whether the top-level value has ended.
    pub fn complete(&self) -> bool {
        self.place == Place::End
    }

    /// The first byte of the text that is no white space tells what it is. Each of these takes
    /// some bytes, at least one, and returns how many.
    fn start(&mut self, rest: &[u8]) -> usize {
        match rest.first() {
            Some(b' ' | b'\t' | b'\n' | b'\r') => {}
            Some(b'{') => self.open_object(),
            Some(b'[') => {
                self.depth = 1;
                self.level = 2;
                self.place = Place::Value;
            }
            _ => self.place = Place::Other,
        }
        1
    }

    /// Where a name may come, or in one.
    fn name(&mut self, rest: &[u8]) -> usize {
        let at = match self.string {
            Quoted::No => rest.iter().position(|byte| matches!(byte, b'"' | b'}')),
            Quoted::Yes => Some(runs::quoted(rest)),
            Quoted::Escape => Some(0),
        };
        let at = at.unwrap_or(rest.len());
        let (run, end) = rest.split_at(at);
        let Some(byte) = end.first() else {
            self.keep_name(run);
            return at;
        };
        match (self.string, byte) {
            (Quoted::No, b'}') => self.close(),
            (Quoted::No, _) => self.string = Quoted::Yes,
            (Quoted::Yes, b'"') => {
                self.string = Quoted::No;
                self.named(run);
            }
            (state, _) => {
                let next = if state == Quoted::Yes { Quoted::Escape } else { Quoted::Yes };
                self.keep_name(rest.get(..=at).unwrap_or_default());
                self.string = next;
            }
        }
        at + 1
    }

    /// Adds to a name that comes in pieces, or with escapes.
    fn keep_name(&mut self, part: &[u8]) {
        if self.string != Quoted::No {
            // One byte over the bound marks it as too long.
            let room = (MAX_KEY + 1).saturating_sub(self.key.len());
            self.key.extend_from_slice(part.get(..room).unwrap_or(part));
        }
    }

    /// A name has been read: what was kept of it, and its last part.
    fn named(&mut self, last: &[u8]) {
        let mut kept = std::mem::take(&mut self.key);
        let raw = if kept.is_empty() {
            last
        } else {
            kept.extend_from_slice(last);
            kept.as_slice()
        };
        self.current = if raw.len() > MAX_KEY {
            None
        } else if memchr::memchr(b'\\', raw).is_none() {
            self.wanted.iter().position(|wanted| wanted.as_bytes() == raw)
        } else {
            let decoded: Option<String> =
                serde_json::from_slice(&[b"\"", raw, b"\""].concat()).ok();
            self.wanted.iter().position(|wanted| decoded.as_deref() == Some(*wanted))
        };
        if let Some(kept) = self.current.and_then(|at| self.kept.get_mut(at)) {
            *kept = Kept::default();
        }
        self.place = Place::Value;
    }

    /// In a value, or between elements: up to where it ends, or to the end of the bytes. What is
    /// kept of it is kept in one piece.
    fn values(&mut self, rest: &[u8]) -> usize {
        let mut at = 0;
        while let Some(left) = rest.get(at..).filter(|left| !left.is_empty()) {
            at += match self.string {
                Quoted::No if self.depth > self.level => runs::quiet(left),
                Quoted::No => 0,
                Quoted::Yes => runs::quoted(left),
                Quoted::Escape => 0,
            };
            let Some(&byte) = rest.get(at) else { break };
            at += 1;
            match (self.string, byte) {
                (Quoted::Yes, b'"') => self.string = Quoted::No,
                (Quoted::Yes, _) => self.string = Quoted::Escape,
                (Quoted::Escape, _) => self.string = Quoted::Yes,
                (Quoted::No, b'"') => self.string = Quoted::Yes,
                (Quoted::No, b'{' | b'[') => {
                    if byte == b'{' && self.depth + 1 == self.level {
                        self.open_object();
                        return at;
                    }
                    self.depth += 1;
                }
                (Quoted::No, b'}' | b']') if self.depth > self.level => self.depth -= 1,
                (Quoted::No, b'}' | b']') => {
                    self.keep(rest, at - 1);
                    self.value_ended();
                    self.close();
                    return at;
                }
                (Quoted::No, b',' | b':') if self.depth == self.level => {
                    self.keep(rest, at - 1);
                    if byte == b',' {
                        self.value_ended();
                    }
                    return at;
                }
                _ => {}
            }
        }
        self.keep(rest, at);
        at
    }

    /// An object whose members are looked at begins.
    fn open_object(&mut self) {
        self.depth += 1;
        self.place = Place::Key;
    }

    /// The container around ends: the object that is looked at, or the array around those.
    fn close(&mut self) {
        self.depth = self.depth.saturating_sub(1);
        self.place = if self.depth == 0 { Place::End } else { Place::Value };
    }

    fn value_ended(&mut self) {
        if self.depth != self.level {
            return;
        }
        if let Some(kept) = self.current.take().and_then(|at| self.kept.get_mut(at)) {
            kept.whole = kept.bytes.len() <= MAX_MEMBER;
        }
        self.place = Place::Key;
    }

    /// Adds the first `count` of these bytes to the value that is being read, if it is wanted.
    fn keep(&mut self, bytes: &[u8], count: usize) {
        if let Some(kept) = self.current.and_then(|at| self.kept.get_mut(at)) {
            // One byte over the bound marks it as too long.
            let room = (MAX_MEMBER + 1).saturating_sub(kept.bytes.len());
            kept.bytes.extend_from_slice(bytes.get(..count.min(room)).unwrap_or_default());
        }
    }
}
