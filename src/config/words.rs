//! The words in which items of `keys:` differ: where they are in the text of an item.
//!
//! Nothing here knows YAML. What is found may be something else; [`super::alike`] asks the parser.

use memchr::memchr_iter;
use std::ops::Range;

/// The longest word. A parser gives up on some things after 1024 characters.
const MAX_WORD: usize = 200;

/// The words that may differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    Id,
    Hash,
    User,
    Expires,
}

impl Word {
    pub(crate) const ALL: [Word; 4] = [Word::Id, Word::Hash, Word::User, Word::Expires];

    /// The key that it is the value of.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Word::Id => "id",
            Word::Hash => "hash",
            Word::User => "user",
            Word::Expires => "expires",
        }
    }

    /// The length of the word that begins here, if it is one: of characters that mean nothing to
    /// YAML, wherever such a word may stand.
    pub(crate) fn length(self, text: &[u8]) -> Option<usize> {
        let pattern = |pattern: &[u8]| {
            let fits = |(byte, p): (&u8, &u8)| match p {
                b'0' => byte.is_ascii_digit(),
                b'f' => byte.is_ascii_hexdigit(),
                p => byte == p,
            };
            let begins = text.len() >= pattern.len() && text.iter().zip(pattern).all(fits);
            begins.then_some(pattern.len())
        };
        match self {
            Word::Hash => {
                let digits = text.strip_prefix(b"sha256:")?.get(..64)?;
                digits.iter().all(u8::is_ascii_hexdigit).then_some(7 + 64)
            }
            Word::Expires => pattern(b"0000-00-00T00:00:00Z"),
            Word::Id | Word::User => {
                let plain = |b: &u8| b.is_ascii_alphanumeric() || b"_-.@+/".contains(b);
                let length = text.iter().take_while(|b| plain(b)).count();
                let word = &text[..length];
                let begins = word.first().is_some_and(u8::is_ascii_alphanumeric);
                let means = [&b"null"[..], b"true", b"false"]
                    .iter()
                    .any(|other| word.eq_ignore_ascii_case(other));
                (begins && length <= MAX_WORD && !means).then_some(length)
            }
        }
    }
}

/// A word in an item.
pub(crate) struct Found {
    pub word: Word,
    pub range: Range<usize>,
}

/// The words of an item, in order. Of two of a kind the first one.
pub(crate) fn find(item: &[u8], found: &mut Vec<Found>) {
    found.clear();
    let flow = item.trim_ascii_start().starts_with(b"- {");
    for colon in memchr_iter(b':', item) {
        let word = Word::ALL.into_iter().find(|word| is_key(item, colon, word.key()));
        let Some(word) = word.filter(|word| found.iter().all(|other| other.word != *word)) else {
            continue;
        };
        if let Some(range) = value(item, colon, word, flow) {
            found.push(Found { word, range });
        }
    }
}

/// Whether this is the name before the colon, with or without quotes.
fn is_key(item: &[u8], colon: usize, name: &str) -> bool {
    let before = &item[..colon];
    let (quote, before) = match before {
        [before @ .., quote @ (b'"' | b'\'')] => (Some(*quote), before),
        _ => (None, before),
    };
    match before.strip_suffix(name.as_bytes()) {
        Some([.., last]) => match quote {
            Some(quote) => *last == quote,
            None => matches!(last, b' ' | b'{' | b','),
        },
        _ => false,
    }
}

/// Where the word after the colon is, if it is one and nothing else.
fn value(item: &[u8], colon: usize, word: Word, flow: bool) -> Option<Range<usize>> {
    let rest = &item[colon + 1..];
    let skipped = spaces(rest);
    let quote = match rest.get(skipped) {
        Some(quote @ (b'"' | b'\'')) => Some(*quote),
        _ => None,
    };
    let start = colon + 1 + skipped + usize::from(quote.is_some());
    let end = start + word.length(&item[start..])?;
    let after = &item[end..];
    let complete = match quote {
        Some(quote) => after.first() == Some(&quote),
        None => match after.get(spaces(after)) {
            Some(b'\n') | None => true,
            // Outside of braces these would belong to the word.
            Some(b',' | b'}') => flow,
            Some(b'#') => after.starts_with(b" "),
            Some(_) => false,
        },
    };
    (complete && (skipped > 0 || quote.is_some())).then_some(start..end)
}

/// How many spaces it begins with.
pub(crate) fn spaces(text: &[u8]) -> usize {
    text.iter().take_while(|byte| **byte == b' ').count()
}
