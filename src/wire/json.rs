//! A strict JSON cursor (RFC 8259): finds where values are without building them.
//!
//! It never recurses, so hostile nesting costs no stack, and it copies nothing but the
//! strings that somebody asks for.

use std::borrow::Cow;

use super::fault::{ScanError, Span};
use super::json_text::Text;
use super::nest::Nest;
use super::runs;

/// Digits that any number type takes, be it rounded.
const LONG_NUMBER: usize = 64;

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
    /// Containers that `object` and `array` are in.
    depth: usize,
    /// Something was taken that a parser may still refuse.
    odd: bool,
}

impl<'a> Cursor<'a> {
    /// The start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Cursor<'a> {
        Cursor { bytes, at: 0, depth: 0, odd: false }
    }

    /// What has been taken from `from` on.
    pub fn taken(&self, from: usize) -> &'a [u8] {
        self.bytes.get(from..self.at).unwrap_or_default()
    }

    /// Whether something was taken, since this was asked last, that is well-formed and that a
    /// parser may still refuse: an escape, which may be half of a character, a number that may be
    /// larger than any, or deep nesting.
    pub fn was_odd(&mut self) -> bool {
        std::mem::take(&mut self.odd)
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
    #[inline]
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
    #[inline]
    pub fn require(&mut self, byte: u8, what: &'static str) -> Result<(), ScanError> {
        if self.take(byte) { Ok(()) } else { Err(ScanError::syntax(self.at, what)) }
    }

    /// Takes a string.
    #[inline]
    pub fn string(&mut self) -> Result<Text<'a>, ScanError> {
        let from = self.at;
        if self.plain_string().is_none() {
            return self.odd_string();
        }
        Ok(Text { quoted: self.taken(from), span: from..self.at, escaped: false })
    }

    /// Takes a string without escapes, and returns what is between its quotes. Takes nothing if
    /// there is no such string.
    #[inline]
    fn plain_string(&mut self) -> Option<&'a [u8]> {
        let (quote, text) = self.bytes.get(self.at..)?.split_first()?;
        let run = runs::plain(text);
        let (inside, after) = text.split_at_checked(run)?;
        if *quote != b'"' || after.first() != Some(&b'"') {
            return None;
        }
        self.at += run + 2;
        Some(inside)
    }

    /// Takes a string that has an escape in it, or is none.
    fn odd_string(&mut self) -> Result<Text<'a>, ScanError> {
        let from = self.at;
        let mut escaped = false;
        self.require(b'"', "a string was expected")?;
        loop {
            let rest = self.bytes.get(self.at..).unwrap_or_default();
            self.at += runs::plain(rest);
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
        self.odd = true;
        Ok(())
    }

    /// Takes a number and returns it as written.
    #[inline]
    pub fn number(&mut self) -> Result<&'a [u8], ScanError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (number, after) = rest.split_at(digits);
        let plain = digits < LONG_NUMBER && !matches!(after, [b'.' | b'e' | b'E', ..]);
        if plain && matches!(number, [b'0'] | [b'1'..=b'9', ..]) {
            self.at += digits;
            return Ok(number);
        }
        self.odd_number()
    }

    fn odd_number(&mut self) -> Result<&'a [u8], ScanError> {
        let from = self.at;
        self.take(b'-');
        if !self.take(b'0') && self.digits() == 0 {
            return Err(ScanError::syntax(self.at, "a digit was expected"));
        }
        if self.take(b'.') && self.digits() == 0 {
            return Err(ScanError::syntax(self.at, "a digit was expected"));
        }
        if self.take(b'e') || self.take(b'E') {
            self.odd = true;
            let _sign = self.take(b'+') || self.take(b'-');
            if self.digits() == 0 {
                return Err(ScanError::syntax(self.at, "a digit was expected"));
            }
        }
        self.odd |= self.at - from > LONG_NUMBER;
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
    #[inline]
    pub fn key(&mut self) -> Result<Text<'a>, ScanError> {
        self.space();
        let key = self.string()?;
        self.colon()?;
        Ok(key)
    }

    #[inline]
    fn colon(&mut self) -> Result<(), ScanError> {
        self.space();
        self.require(b':', "a ':' was expected")?;
        self.space();
        Ok(())
    }

    /// Checks and takes any value inside of those that `object` and `array` are in.
    #[inline]
    pub fn skip(&mut self) -> Result<(), ScanError> {
        match self.peek() {
            Some(b'{' | b'[') => self.value(self.depth).map(drop),
            _ => self.scalar(),
        }
    }

    /// Checks and takes any value, and returns it as written.
    pub fn slice(&mut self) -> Result<&'a [u8], ScanError> {
        let from = self.at;
        self.skip()?;
        Ok(self.taken(from))
    }

    /// Checks and takes any value. `open` containers are open around it already.
    pub fn value(&mut self, open: usize) -> Result<Span, ScanError> {
        self.space();
        let from = self.at;
        let mut nest = Nest::new(open);
        loop {
            match self.peek() {
                Some(b'{') => {
                    nest.push(true, self.at)?;
                    self.at += 1;
                    self.space();
                    if self.peek() != Some(b'}') {
                        self.skip_key()?;
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
                self.odd |= nest.is_deep();
                return Ok(from..self.at);
            }
        }
    }

    /// After a value: closes what ends here. Whether another value is to come, which is next.
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
                    self.space();
                    if object {
                        self.skip_key()?;
                    }
                    return Ok(true);
                }
                (_, true) => return Err(ScanError::syntax(self.at, "',' or '}' was expected")),
                (_, false) => return Err(ScanError::syntax(self.at, "',' or ']' was expected")),
            }
        }
        Ok(false)
    }

    /// Takes a name that nobody asks for, up to its value.
    #[inline]
    fn skip_key(&mut self) -> Result<(), ScanError> {
        match self.plain_string() {
            Some(_) => self.colon(),
            None => self.key().map(drop),
        }
    }

    fn scalar(&mut self) -> Result<(), ScanError> {
        match self.peek() {
            Some(b'"') if self.plain_string().is_some() => Ok(()),
            Some(b'"') => self.odd_string().map(drop),
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
        self.require(b'{', "a JSON object was expected")?;
        let start = self.at;
        self.space();
        let empty = self.take(b'}');
        self.depth += 1;
        let mut more = !empty;
        while more {
            let key = self.key()?;
            member(self, &key)?;
            self.space();
            more = self.take(b',');
            if !more {
                self.require(b'}', "',' or '}' was expected")?;
            }
        }
        self.depth -= 1;
        Ok(ObjectAt { span: from..self.at, start, empty })
    }

    /// As `object`, with the names as `Text::name` has them.
    pub fn members(
        &mut self,
        mut member: impl FnMut(&mut Cursor<'a>, &[u8]) -> Result<(), ScanError>,
    ) -> Result<(), ScanError> {
        self.require(b'{', "a JSON object was expected")?;
        self.depth += 1;
        self.space();
        let mut more = !self.take(b'}');
        while more {
            self.space();
            let name = match self.plain_string() {
                Some(name) => {
                    self.colon()?;
                    Cow::Borrowed(name)
                }
                None => self.key()?.name(),
            };
            member(self, &name)?;
            self.space();
            more = self.take(b',');
            if !more {
                self.require(b'}', "',' or '}' was expected")?;
            }
        }
        self.depth -= 1;
        Ok(())
    }

    /// Takes an array, calling `element` at each value, which it must take.
    pub fn array(
        &mut self,
        mut element: impl FnMut(&mut Cursor<'a>) -> Result<(), ScanError>,
    ) -> Result<(), ScanError> {
        self.require(b'[', "a JSON array was expected")?;
        self.space();
        if self.take(b']') {
            return Ok(());
        }
        self.depth += 1;
        loop {
            self.space();
            element(self)?;
            self.space();
            if !self.take(b',') {
                self.depth -= 1;
                return self.require(b']', "',' or ']' was expected");
            }
        }
    }
}
