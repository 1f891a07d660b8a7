//! Chosen members of a JSON text, out of pieces, without keeping the rest.

use super::runs;
use super::tap::Values;

/// The most bytes kept of one member; a longer one is not kept at all. As an event of a stream may
/// have: pictures stand beside what was searched for.
pub const MAX_MEMBER: usize = 16 * 1024 * 1024;

/// The longest member name that is looked at.
const MAX_KEY: usize = 128;

/// Watches a JSON text go past and keeps some of its top-level members.
///
/// In a top-level array it looks into every element that is an object; the last one that has
/// the member wins, as with Gemini's array of cumulative snapshots. Not a validator: what is
/// kept is parsed by whoever reads it.
#[derive(Debug, Clone)]
pub struct Sifter {
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

#[derive(Debug, Clone, Default)]
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

impl Sifter {
    /// Keeps the members of these names, at most [`MOST`](super::tap::MOST).
    pub fn new(wanted: &'static [&'static str]) -> Sifter {
        Sifter {
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
                Place::Value => self.value(rest),
                Place::End | Place::Other => return,
            };
            rest = rest.get(taken..).unwrap_or_default();
        }
    }

    /// What was kept of the wanted members, in their order.
    pub fn values(&self) -> Values<'_> {
        let mut values = Values::default();
        for (value, kept) in values.iter_mut().zip(&self.kept) {
            *value = kept.whole.then(|| kept.bytes.trim_ascii());
        }
        values
    }

    /// Whether the top-level value has ended.
    pub fn complete(&self) -> bool {
        self.place == Place::End
    }

    /// The first byte of the text that is no white space tells what it is. Each of these takes
    /// some bytes, at least one, and returns how many.
    fn start(&mut self, rest: &[u8]) -> usize {
        match rest.first() {
            // A byte order mark is none of it; some servers send one.
            Some(b' ' | b'\t' | b'\n' | b'\r' | 0xEF | 0xBB | 0xBF) => {}
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
        let mut from = 0;
        if self.string == Quoted::No {
            let Some(at) = rest.iter().position(|byte| matches!(byte, b'"' | b'}')) else {
                return rest.len();
            };
            from = at + 1;
            if rest.get(at) == Some(&b'}') {
                self.close();
                return from;
            }
            self.string = Quoted::Yes;
        }
        let text = rest.get(from..).unwrap_or_default();
        let at = match self.string {
            Quoted::Escape => 0,
            _ => runs::quoted(text),
        };
        let (run, end) = text.split_at(at);
        match (self.string, end.first()) {
            (_, None) => self.keep_name(run),
            (Quoted::Yes, Some(b'"')) => {
                self.string = Quoted::No;
                self.named(run);
            }
            (state, Some(_)) => {
                self.keep_name(text.get(..=at).unwrap_or_default());
                self.string = if state == Quoted::Yes { Quoted::Escape } else { Quoted::Yes };
            }
        }
        rest.len().min(from + at + 1)
    }

    /// Adds to a name that comes in pieces, or with escapes.
    fn keep_name(&mut self, part: &[u8]) {
        // One byte over the bound marks it as too long.
        let room = (MAX_KEY + 1).saturating_sub(self.key.len());
        self.key.extend_from_slice(part.get(..room).unwrap_or(part));
    }

    /// A name has been read; this is its last part, and all of it if nothing was kept.
    fn named(&mut self, last: &[u8]) {
        self.current = if self.key.is_empty() {
            self.wanted.iter().position(|wanted| wanted.as_bytes() == last)
        } else {
            self.keep_name(last);
            self.kept_name()
        };
        if let Some(kept) = self.current.and_then(|at| self.kept.get_mut(at)) {
            *kept = Kept::default();
        }
        self.place = Place::Value;
    }

    /// Which of the members the name is that was kept.
    #[cold]
    fn kept_name(&mut self) -> Option<usize> {
        let raw = std::mem::take(&mut self.key);
        let name = match memchr::memchr(b'\\', &raw) {
            None => raw,
            Some(_) => {
                let quoted = [b"\"", raw.as_slice(), b"\""].concat();
                let decoded: Option<String> = serde_json::from_slice(&quoted).ok();
                decoded.unwrap_or_default().into_bytes()
            }
        };
        self.wanted.iter().position(|wanted| wanted.as_bytes() == name)
    }

    /// In a value, or between elements: up to where it ends, or to the end of the bytes. What is
    /// kept of it is kept in one piece.
    fn value(&mut self, rest: &[u8]) -> usize {
        let (mut from, mut at) = (0, 0);
        if self.string != Quoted::No {
            at = self.text(rest, at);
        }
        loop {
            if self.depth > self.level {
                at += runs::quiet(rest.get(at..).unwrap_or_default());
            }
            let Some(&byte) = rest.get(at) else { break };
            at += 1;
            match byte {
                b'"' => at = self.text(rest, at),
                b'{' if self.depth + 1 == self.level => {
                    self.open_object();
                    return at;
                }
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' if self.depth > self.level => self.depth -= 1,
                b'}' | b']' => {
                    self.keep(rest.get(from..at - 1).unwrap_or_default());
                    self.value_ended();
                    self.close();
                    return at;
                }
                b',' if self.depth == self.level => {
                    self.keep(rest.get(from..at - 1).unwrap_or_default());
                    self.value_ended();
                    return at;
                }
                b':' if self.depth == self.level => {
                    self.keep(rest.get(from..at - 1).unwrap_or_default());
                    from = at;
                }
                _ => {}
            }
        }
        self.keep(rest.get(from..).unwrap_or_default());
        rest.len()
    }

    /// In a string of a value, from `at`: where it goes on after its end, or the end of the bytes.
    fn text(&mut self, rest: &[u8], at: usize) -> usize {
        let mut at = at + usize::from(self.string == Quoted::Escape);
        loop {
            at += runs::quoted(rest.get(at..).unwrap_or_default());
            match rest.get(at) {
                Some(b'"') => {
                    self.string = Quoted::No;
                    return at + 1;
                }
                Some(_) if at + 1 == rest.len() => {
                    self.string = Quoted::Escape;
                    return at + 1;
                }
                Some(_) => at += 2,
                None => {
                    self.string = Quoted::Yes;
                    return rest.len();
                }
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

    /// Adds to the value that is being read, if it is wanted.
    fn keep(&mut self, bytes: &[u8]) {
        if let Some(kept) = self.current.and_then(|at| self.kept.get_mut(at)) {
            // One byte over the bound marks it as too long.
            let room = (MAX_MEMBER + 1).saturating_sub(kept.bytes.len());
            kept.bytes.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
        }
    }
}
