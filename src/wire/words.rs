//! Words that begin a string or an escape, looked for in a body.
//!
//! A search for so many words at every byte costs more than reading the body as JSON. These begin
//! at a `"` or a `\`, which is where is looked, and two bytes more tell nearly all others off.

use aho_corasick::{AhoCorasick, Anchored, Input, MatchKind, StartKind};
use memchr::memchr2_iter;

/// A list of words, in any case.
#[derive(Debug)]
pub struct Words {
    all: AhoCorasick,
    /// A bit for each two bytes that are the second and the third of a word.
    after: Box<[u64]>,
}

impl Words {
    /// Words of at least three bytes, the first a `"` or a `\`. `None` for others.
    pub fn new(words: &[String]) -> Option<Words> {
        let mut after = vec![0; 1 << 10].into_boxed_slice();
        for word in words {
            let &[b'"' | b'\\', second, third, ..] = word.as_bytes() else { return None };
            for second in [second.to_ascii_lowercase(), second.to_ascii_uppercase()] {
                for third in [third.to_ascii_lowercase(), third.to_ascii_uppercase()] {
                    let (at, bit) = place(second, third);
                    *after.get_mut(at)? |= bit;
                }
            }
        }
        let mut builder = AhoCorasick::builder();
        builder.ascii_case_insensitive(true).match_kind(MatchKind::LeftmostLongest);
        builder.start_kind(StartKind::Anchored);
        Some(Words { all: builder.build(words).ok()?, after })
    }

    /// Where one of them is, and which: the longest, by its place in the list, and where it ends.
    pub fn find(&self, body: &[u8]) -> impl Iterator<Item = (usize, usize)> {
        memchr2_iter(b'"', b'\\', body).filter_map(move |from| {
            let &[_, second, third, ..] = body.get(from..)? else { return None };
            let (at, bit) = place(second, third);
            if self.after.get(at)? & bit == 0 {
                return None;
            }
            let found = self.all.find(Input::new(body).range(from..).anchored(Anchored::Yes))?;
            Some((found.pattern().as_usize(), found.end()))
        })
    }
}

fn place(second: u8, third: u8) -> (usize, u64) {
    let two = usize::from(u16::from_be_bytes([second, third]));
    (two >> 6, 1 << (two & 63))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(list: &[&str]) -> Option<Words> {
        Words::new(&list.iter().map(|&word| word.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn the_longest_word_is_found_wherever_it_begins() {
        let words = words(&["\"id\"", "\"file", "\"file_id", "\\u006", "\"_x"]).unwrap();
        let found = |body: &str| words.find(body.as_bytes()).collect::<Vec<_>>();
        assert_eq!(found(r#"{"file_id":"file"}"#), [(2, 9), (1, 16)]);
        assert_eq!(found(r#""ID""Id""iD""#), [(0, 4), (0, 8), (0, 12)]);
        assert_eq!(found(r#"\\u0066"\u0066"#), [(3, 6), (3, 13)]);
        assert_eq!(found(r#"""""_X"#), [(4, 6)]);
        assert_eq!(found(r#"file_id"i "fil"f"#), []);
        assert_eq!(found("\""), []);
        assert_eq!(found("\"id"), []);
        assert_eq!(found(""), []);
    }

    #[test]
    fn what_begins_elsewhere_is_no_such_word() {
        assert!(words(&["id\""]).is_none());
        assert!(words(&["\"i"]).is_none());
    }
}
