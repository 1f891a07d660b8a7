//! What in a body says what bounds its cost: whether it may hold pictures or files, and whether a
//! provider may add what the gateway can't see. One pass looks for words; only where there are
//! some, a second one looks where they are.

use aho_corasick::{AhoCorasick, MatchKind};
use std::sync::LazyLock;

use super::beyond::{self, Beyond};

/// How a picture begins. Each word begins a string, so that the search leaps from quote to quote.
const PICTURE: [&str; 4] = ["\"image", "\"input_image", "\"computer_screenshot", "\"data:"];

/// Escapes of plain letters, and of what else is in those words, which no encoder writes: whoever
/// does may be hiding one.
const HIDDEN: [&str; 7] = ["\\u002d", "\\u002f", "\\u003a", "\\u004", "\\u005", "\\u006", "\\u007"];

/// What a body's words say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Marks {
    /// It may hold a picture.
    pub picture: bool,
    /// What it asks for beyond itself.
    pub beyond: Beyond,
}

/// All words, and how many of them ask for something; `None` is a bug, and everything is assumed
/// of a body then.
static WORDS: LazyLock<Option<(AhoCorasick, usize)>> = LazyLock::new(|| {
    let mut words: Vec<String> = beyond::words().collect();
    // What is stored at a provider may be named by no more than its id.
    words.push("\"id\"".to_owned());
    let asking = words.len();
    words.extend(PICTURE.iter().chain(&HIDDEN).map(|word| (*word).to_owned()));
    let mut builder = AhoCorasick::builder();
    builder.ascii_case_insensitive(true).match_kind(MatchKind::LeftmostLongest);
    Some((builder.build(words).ok()?, asking))
});

/// Looks through a body of JSON.
pub fn of(body: &[u8]) -> Marks {
    let Some((words, asking)) = WORDS.as_ref() else {
        return Marks { picture: true, beyond: Beyond::ALL };
    };
    let hidden = asking + PICTURE.len();
    let (mut picture, mut asks) = (false, false);
    for found in words.find_iter(body) {
        let word = found.pattern().as_usize();
        asks |= word < *asking || word >= hidden;
        picture |= word >= *asking;
        if picture && asks {
            break;
        }
    }
    let beyond = if asks { beyond::of(body).unwrap_or(Beyond::ALL) } else { Beyond::default() };
    Marks { picture, beyond }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_seen_however_it_is_sent() {
        for part in [
            r#"{"type":"image_url","image_url":{"url":"https://example.com/a.png"}}"#,
            r#"{"image_url":{"url":"https://example.com/a.png"},"type":"\u0069mage_url"}"#,
            r#"{"type":"input_image","image_url":"https://example.com/a.png"}"#,
            r#"{"type":"computer_screenshot"}"#,
            r#"{"image_url":{"url":"https://example.com/a.png"}}"#,
            r#"{"image":"https://example.com/a.png"}"#,
            r#"{"inlineData":{"mimeType":"image\/png","data":"A"}}"#,
            r#"{"type":"image_generation"},{"type":"image"}"#,
        ] {
            assert!(of(format!("[{part}]").as_bytes()).picture, "{part}");
            let part = part.replace("\":", "\" : ");
            assert!(of(format!("[{part}]").as_bytes()).picture, "{part}");
        }
        assert_eq!(of(b"{\"a\":\"an image, web_search\"}"), Marks::default());
    }

    /// The first pass must find whatever the second one would.
    #[test]
    fn every_word_is_looked_for_however_it_is_written() {
        for word in beyond::words() {
            let word = word.trim_start_matches('"').trim_end_matches('"');
            let first = u32::from(*word.as_bytes().first().unwrap());
            let hidden = format!("\\u{first:04x}{}", word.get(1..).unwrap());
            for written in [word.to_owned(), word.to_uppercase(), hidden] {
                let body = format!("{{\"{written}\":1}}");
                assert!(of(body.as_bytes()).beyond != Beyond::default(), "{body}");
                let body = format!("{{\"tools\":[{{\"type\":\"{written}\"}}]}}");
                assert!(of(body.as_bytes()).beyond != Beyond::default(), "{body}");
            }
        }
    }
}
