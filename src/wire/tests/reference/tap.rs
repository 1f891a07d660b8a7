//! Chosen members of a JSON answer, out of pieces, without keeping the rest.

use std::borrow::Cow;

use memchr::memchr2;

/// The most bytes kept of one member; a longer one is not kept at all.
pub const MAX_MEMBER: usize = 2 * 1024 * 1024;

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
        while let Some(&byte) = rest.first() {
            let taken = match self.string {
                Quoted::No => {
                    self.outside(byte);
                    1
                }
                Quoted::Yes => self.inside(rest),
                Quoted::Escape => {
                    self.string = Quoted::Yes;
                    self.keep(rest.get(..1).unwrap_or_default());
                    1
                }
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

    /// Bytes inside a string; returns how many were taken.
    fn inside(&mut self, rest: &[u8]) -> usize {
        let Some(at) = memchr2(b'"', b'\\', rest) else {
            self.keep(rest);
            return rest.len();
        };
        let (run, _) = rest.split_at(at + 1);
        if rest.get(at) == Some(&b'\\') {
            self.keep(run);
            self.string = Quoted::Escape;
            return run.len();
        }
        self.string = Quoted::No;
        if self.place == Place::Key {
            self.keep(run.get(..at).unwrap_or_default());
            self.named();
        } else {
            self.keep(run);
        }
        run.len()
    }

    /// A name has been read.
    fn named(&mut self) {
        let raw = std::mem::take(&mut self.key);
        let name = match memchr::memchr(b'\\', &raw) {
            None => Cow::Borrowed(raw.as_slice()),
            Some(_) => {
                let quoted = [b"\"", raw.as_slice(), b"\""].concat();
                let decoded: Option<String> = serde_json::from_slice(&quoted).ok();
                Cow::Owned(decoded.unwrap_or_default().into_bytes())
            }
        };
        let is_it = |wanted: &&str| wanted.as_bytes() == &*name;
        self.current = self.wanted.iter().position(is_it);
        if let Some(kept) = self.current.and_then(|at| self.kept.get_mut(at)) {
            *kept = Kept::default();
        }
        self.place = Place::Value;
    }

    /// One byte outside of strings.
    fn outside(&mut self, byte: u8) {
        match (self.place, byte) {
            (Place::End | Place::Other, _) => {}
            (Place::Start, b' ' | b'\t' | b'\n' | b'\r' | 0xEF | 0xBB | 0xBF) => {}
            (Place::Start, b'{') => self.open_object(),
            (Place::Start, b'[') => {
                self.depth = 1;
                self.level = 2;
                self.place = Place::Value;
            }
            (Place::Start, _) => self.place = Place::Other,
            (Place::Key, b'"') => self.string = Quoted::Yes,
            (Place::Key, b'}') => self.close(),
            (Place::Key, _) => {}
            (Place::Value, b':') if self.depth == self.level => {}
            (Place::Value, b',') if self.depth == self.level => self.value_ended(),
            (Place::Value, b'{') if self.depth + 1 == self.level => self.open_object(),
            (Place::Value, b'{' | b'[') => {
                self.keep(&[byte]);
                self.depth += 1;
            }
            (Place::Value, b'}' | b']') if self.depth <= self.level => {
                self.value_ended();
                self.close();
            }
            (Place::Value, b'}' | b']') => {
                self.depth -= 1;
                self.keep(&[byte]);
            }
            (Place::Value, byte) => {
                if byte == b'"' {
                    self.string = Quoted::Yes;
                }
                self.keep(&[byte]);
            }
        }
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

    /// Adds to the name or the value that is being read.
    fn keep(&mut self, bytes: &[u8]) {
        let (buffer, most) = if self.place == Place::Key {
            (&mut self.key, MAX_KEY)
        } else {
            match self.current.and_then(|at| self.kept.get_mut(at)) {
                Some(kept) => (&mut kept.bytes, MAX_MEMBER),
                None => return,
            }
        };
        // One byte over the bound marks it as too long.
        let room = (most + 1).saturating_sub(buffer.len());
        buffer.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
    }
}
