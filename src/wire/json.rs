//! A strict JSON cursor (RFC 8259): finds where values are without building them.
//!
//! It never recurses, so hostile nesting costs no stack, and it copies nothing but the
//! strings that somebody asks for.

use super::fault::{ScanError, Span};
use super::json_text::Text;

/// How many containers may be open at once. OpenAI and Anthropic refuse less.
pub const MAX_DEPTH: usize = 256;

/// An object that members can be added to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectAt {
    /// All of it, braces included.
    pub span: Span,
    /// The offset just after its `{`.
    pub start: usize,
    /// Whether it has no members: then an added one needs no comma.
    pub empty: bool,
}

/// A place in a JSON text.
#[derive(Debug, Clone)]
pub struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// The start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Cursor<'a> {
        Cursor { bytes, at: 0 }
    }

    /// The offset of the next byte.
    pub fn at(&self) -> usize {
        self.at
    }

    /// The next byte, not taken.
    pub fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    /// Whether everything has been read.
    pub fn is_end(&self) -> bool {
        self.at >= self.bytes.len()
    }

    /// Skips white space.
    pub fn space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    /// Takes `byte` if it is next.
    pub fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    /// Takes `byte`, which must be next.
    pub fn expect(&mut self, byte: u8, what: &'static str) -> Result<(), ScanError> {
        if self.take(byte) { Ok(()) } else { Err(ScanError::syntax(self.at, what)) }
    }

    /// Takes a string.
    pub fn string(&mut self) -> Result<Text<'a>, ScanError> {
        let from = self.at;
        let mut escaped = false;
        self.expect(b'"', "a string was expected")?;
        loop {
            let rest = self.bytes.get(self.at..).unwrap_or_default();
            self.at += plain_run(rest);
            match self.bytes.get(self.at) {
                Some(b'"') => break,
                Some(b'\\') => {
                    escaped = true;
                    self.escape()?;
                }
                Some(_) => {
                    let what = "a raw control character in a string";
                    return Err(ScanError::syntax(self.at, what));
                }
                None => return Err(ScanError::syntax(self.at, "a string has no end quote")),
            }
        }
        self.at += 1;
        let span = from..self.at;
        let quoted = self.bytes.get(span.clone()).unwrap_or_default();
        Ok(Text { quoted, span, escaped })
    }

    /// Takes one escape sequence, its backslash first.
    fn escape(&mut self) -> Result<(), ScanError> {
        let taken = match self.bytes.get(self.at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => 2,
            Some(b'u') => {
                let hex = self.bytes.get(self.at + 2..self.at + 6).unwrap_or_default();
                if hex.len() == 4 && hex.iter().all(u8::is_ascii_hexdigit) { 6 } else { 0 }
            }
            _ => 0,
        };
        if taken == 0 {
            return Err(ScanError::syntax(self.at, "an unknown escape in a string"));
        }
        self.at += taken;
        Ok(())
    }

    /// Takes a number and returns it as written.
    pub fn number(&mut self) -> Result<&'a [u8], ScanError> {
        let from = self.at;
        self.take(b'-');
        if !self.take(b'0') && self.digits() == 0 {
            return Err(ScanError::syntax(self.at, "a digit was expected"));
        }
        if self.take(b'.') && self.digits() == 0 {
            return Err(ScanError::syntax(self.at, "a digit was expected"));
        }
        if self.take(b'e') || self.take(b'E') {
            let _sign = self.take(b'+') || self.take(b'-');
            if self.digits() == 0 {
                return Err(ScanError::syntax(self.at, "a digit was expected"));
            }
        }
        Ok(self.bytes.get(from..self.at).unwrap_or_default())
    }

    fn digits(&mut self) -> usize {
        let from = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        self.at - from
    }

    /// Takes `word` (`true`, `false` or `null`).
    pub fn literal(&mut self, word: &'static [u8]) -> Result<(), ScanError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        if !rest.starts_with(word) {
            return Err(ScanError::syntax(self.at, "a value was expected"));
        }
        self.at += word.len();
        Ok(())
    }

    /// Takes a member's name, its colon and the white space around them.
    pub fn key(&mut self) -> Result<Text<'a>, ScanError> {
        self.space();
        let key = self.string()?;
        self.space();
        self.expect(b':', "a ':' was expected")?;
        self.space();
        Ok(key)
    }

    /// Checks and takes any value. `open` containers are open around it already.
    pub fn value(&mut self, open: usize) -> Result<Span, ScanError> {
        self.space();
        let from = self.at;
        let mut nest = Nest::new(open);
        loop {
            self.space();
            match self.peek() {
                Some(b'{') => {
                    nest.push(true, self.at)?;
                    self.at += 1;
                    self.space();
                    if self.peek() != Some(b'}') {
                        self.key()?;
                        continue;
                    }
                }
                Some(b'[') => {
                    nest.push(false, self.at)?;
                    self.at += 1;
                    self.space();
                    if self.peek() != Some(b']') {
                        continue;
                    }
                }
                _ => self.scalar()?,
            }
            if !self.next_place(&mut nest)? {
                return Ok(from..self.at);
            }
        }
    }

    /// After a value: closes what ends here. Whether another value is to come.
    fn next_place(&mut self, nest: &mut Nest) -> Result<bool, ScanError> {
        while let Some(object) = nest.top() {
            self.space();
            match (self.peek(), object) {
                (Some(b'}'), true) | (Some(b']'), false) => {
                    self.at += 1;
                    nest.pop();
                }
                (Some(b','), _) => {
                    self.at += 1;
                    if object {
                        self.key()?;
                    }
                    return Ok(true);
                }
                (_, true) => return Err(ScanError::syntax(self.at, "',' or '}' was expected")),
                (_, false) => return Err(ScanError::syntax(self.at, "',' or ']' was expected")),
            }
        }
        Ok(false)
    }

    fn scalar(&mut self) -> Result<(), ScanError> {
        match self.peek() {
            Some(b'"') => self.string().map(drop),
            Some(b'-' | b'0'..=b'9') => self.number().map(drop),
            Some(b't') => self.literal(b"true"),
            Some(b'f') => self.literal(b"false"),
            _ => self.literal(b"null"),
        }
    }

    /// Takes an object, calling `member` at each value, which it must take.
    pub fn object(
        &mut self,
        mut member: impl FnMut(&mut Cursor<'a>, &Text<'a>) -> Result<(), ScanError>,
    ) -> Result<ObjectAt, ScanError> {
        let from = self.at;
        self.expect(b'{', "a JSON object was expected")?;
        let start = self.at;
        self.space();
        let empty = self.take(b'}');
        let mut more = !empty;
        while more {
            let key = self.key()?;
            member(self, &key)?;
            self.space();
            more = self.take(b',');
            if !more {
                self.expect(b'}', "',' or '}' was expected")?;
            }
        }
        Ok(ObjectAt { span: from..self.at, start, empty })
    }

    /// Takes an array, calling `element` at each value, which it must take.
    pub fn array(
        &mut self,
        mut element: impl FnMut(&mut Cursor<'a>) -> Result<(), ScanError>,
    ) -> Result<(), ScanError> {
        self.expect(b'[', "a JSON array was expected")?;
        self.space();
        if self.take(b']') {
            return Ok(());
        }
        loop {
            self.space();
            element(self)?;
            self.space();
            if !self.take(b',') {
                return self.expect(b']', "',' or ']' was expected");
            }
        }
    }
}

/// How many bytes come before the next quote, backslash or control character, or the end.
fn plain_run(rest: &[u8]) -> usize {
    // Between two escapes there is little; between two quotes there may be a picture.
    let (mut words, mut at) = (rest.as_chunks::<8>().0.iter(), 0);
    for word in words.by_ref().take(NEAR) {
        if let Some(place) = first_special(*word) {
            return at + place;
        }
        at += 8;
    }
    let far = rest.get(at..).unwrap_or_default();
    let clean = far.as_chunks::<64>().0.iter().take_while(|block| !has_special(block)).count();
    at += clean * 64;
    let (words, last) = rest.get(at..).unwrap_or_default().as_chunks::<8>();
    for word in words {
        if let Some(place) = first_special(*word) {
            return at + place;
        }
        at += 8;
    }
    at + last.iter().take_while(|byte| !is_special(**byte)).count()
}

/// Words that are looked at one by one before whole blocks are.
const NEAR: usize = 8;

fn is_special(byte: u8) -> bool {
    (byte == b'"') | (byte == b'\\') | (byte < 0x20)
}

/// Without an early exit it runs on whole vectors.
fn has_special(block: &[u8; 64]) -> bool {
    block.iter().fold(false, |found, &byte| found | is_special(byte))
}

/// The place of the first special byte of eight, all looked at at once: a byte's highest bit is
/// set in `marks` where it is one. A borrow may set marks wrongly, but only above a right one.
/// (Mycroft's test for a zero byte.)
fn first_special(word: [u8; 8]) -> Option<usize> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    let bytes = u64::from_le_bytes(word);
    let zero = |x: u64| x.wrapping_sub(ONES) & !x;
    let same = |byte: u8| zero(bytes ^ (ONES * u64::from(byte)));
    let control = bytes.wrapping_sub(ONES * 0x20) & !bytes;
    let marks = (same(b'"') | same(b'\\') | control) & HIGH;
    (marks != 0).then(|| marks.trailing_zeros() as usize / 8)
}

/// The open containers: one bit each, set for an object.
struct Nest {
    bits: [u64; MAX_DEPTH / 64],
    len: usize,
    open: usize,
}

impl Nest {
    fn new(open: usize) -> Nest {
        Nest { bits: [0; MAX_DEPTH / 64], len: 0, open }
    }

    fn push(&mut self, object: bool, at: usize) -> Result<(), ScanError> {
        match self.bits.get_mut(self.len / 64) {
            Some(word) if self.open + self.len < MAX_DEPTH => {
                let bit = 1u64 << (self.len % 64);
                *word = if object { *word | bit } else { *word & !bit };
                self.len += 1;
                Ok(())
            }
            _ => Err(ScanError::syntax(at, "nested deeper than 256 levels")),
        }
    }

    fn pop(&mut self) {
        self.len = self.len.saturating_sub(1);
    }

    fn top(&self) -> Option<bool> {
        let last = self.len.checked_sub(1)?;
        let word = self.bits.get(last / 64)?;
        Some(word >> (last % 64) & 1 == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_ends_at_the_first_special_byte_wherever_it_is() {
        for length in [0, 1, 7, 8, 9, 63, 64, 65, 127, 128, 129, 200, 300] {
            // Bytes whose bits lie near those that are looked for.
            for plain in [b'a', b'!', b'#', b' ', 0x7f, 0x80, 0xa2, 0xdc, 0xff] {
                let clean = vec![plain; length];
                assert_eq!(plain_run(&clean), length, "{plain} × {length}");
                for at in 0..length {
                    for special in [b'"', b'\\', 0, 0x1f, b'\n'] {
                        let mut text = clean.clone();
                        text[at] = special;
                        text.iter_mut().skip(at + 3).step_by(5).for_each(|byte| *byte = b'"');
                        assert_eq!(plain_run(&text), at, "{special} at {at} of {length}");
                    }
                }
            }
        }
    }
}
