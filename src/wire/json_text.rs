//! A JSON string as it is written.

use std::borrow::Cow;

use super::fault::Span;

/// A string as it is written.
#[derive(Debug, Clone)]
pub struct Text<'a> {
    /// With its quotes.
    pub quoted: &'a [u8],
    /// Where it is, quotes included.
    pub span: Span,
    /// Whether it has a backslash in it.
    pub escaped: bool,
}

impl<'a> Text<'a> {
    /// The bytes between the quotes.
    pub fn raw(&self) -> &'a [u8] {
        self.quoted.get(1..self.quoted.len().saturating_sub(1)).unwrap_or_default()
    }

    /// What it says; `None` for a lone surrogate or bytes that are not UTF-8.
    pub fn decode(&self) -> Option<Cow<'a, str>> {
        if self.escaped {
            serde_json::from_slice(self.quoted).ok().map(Cow::Owned)
        } else {
            std::str::from_utf8(self.raw()).ok().map(Cow::Borrowed)
        }
    }

    /// What it says, as bytes to compare a name with; empty where `decode` has nothing.
    pub fn name(&self) -> Cow<'a, [u8]> {
        if self.escaped { self.decoded() } else { Cow::Borrowed(self.raw()) }
    }

    #[cold]
    fn decoded(&self) -> Cow<'a, [u8]> {
        Cow::Owned(self.decode().unwrap_or_default().into_owned().into_bytes())
    }

    /// The length in bytes of what it says, without decoding it.
    pub fn len(&self) -> usize {
        let mut rest = self.raw();
        if !self.escaped {
            return rest.len();
        }
        let mut total = 0;
        while let Some(at) = memchr::memchr(b'\\', rest) {
            let (said, taken) = match rest.get(at + 1) {
                Some(b'u') => (code_unit_len(rest.get(at + 2..at + 6)), 6),
                _ => (1, 2),
            };
            total += at + said;
            rest = rest.get(at + taken..).unwrap_or_default();
        }
        total + rest.len()
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.raw().is_empty()
    }
}

/// UTF-8 bytes that one escape by number adds. The first of a surrogate pair counts for both.
fn code_unit_len(hex: Option<&[u8]>) -> usize {
    let unit = hex
        .and_then(|hex| std::str::from_utf8(hex).ok())
        .and_then(|hex| u16::from_str_radix(hex, 16).ok());
    match unit {
        Some(0..0x80) => 1,
        Some(0x80..0x800) => 2,
        Some(0xD800..0xDC00) => 4,
        Some(0xDC00..0xE000) => 0,
        _ => 3,
    }
}
