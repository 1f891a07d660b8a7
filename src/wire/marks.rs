//! What in a body says what bounds its cost: whether it may hold pictures or files, and whether a
//! provider may add what the gateway can't see. One pass looks for words; only where there are
//! some, a second one looks where they are.

use std::sync::LazyLock;

use super::beyond::{self, Beyond};
use super::json::Cursor;
use super::walk;
use super::words::Words;

/// How a picture begins. Each word begins a string, as `Words` wants it.
const PICTURE: [&str; 4] = ["\"image", "\"input_image", "\"computer_screenshot", "\"data:"];

/// Escapes of plain letters, and of what else is in those words, which no encoder writes: whoever
/// does may be hiding one.
const HIDDEN: [&str; 8] =
    ["\\u002d", "\\u002f", "\\u0032", "\\u003a", "\\u004", "\\u005", "\\u006", "\\u007"];

/// What is stored at a provider may be named by no more than its id, as an item of the input, or as
/// a sound. Every call of a tool has an id, too, and Anthropic's have their input beside it.
const STORED: [&str; 3] = [ID, INPUT, "\"audio\""];
const ID: &str = "\"id\"";
const INPUT: &str = "\"input\"";

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
static WORDS: LazyLock<Option<(Words, usize)>> = LazyLock::new(|| {
    let mut words: Vec<String> = beyond::words().collect();
    let asking = words.len();
    words.extend(PICTURE.iter().chain(&HIDDEN).map(|word| (*word).to_owned()));
    words.extend(STORED.iter().map(|word| (*word).to_owned()));
    Some((Words::new(&words)?, asking))
});

/// Looks through a body of JSON.
pub fn of(body: &[u8]) -> Marks {
    let Some((picture, asks)) = search(body) else {
        return Marks { picture: true, beyond: Beyond::ALL };
    };
    let beyond = if asks { beyond::of(body).unwrap_or(Beyond::ALL) } else { Beyond::default() };
    Marks { picture, beyond }
}

/// The first pass: whether the body may hold a picture, and whether it may ask for more.
fn search(body: &[u8]) -> Option<(bool, bool)> {
    let (words, asking) = WORDS.as_ref()?;
    let (pictures, hidden) = (*asking, asking + PICTURE.len());
    let stored = hidden + HIDDEN.len();
    let (mut picture, mut asks) = (false, false);
    let (mut id, mut place, mut object) = (false, false, false);
    for (word, end) in words.find(body) {
        match word.checked_sub(stored).and_then(|word| STORED.get(word)) {
            Some(&ID) => id = true,
            Some(&INPUT) if opens(body, end) == Some(b'{') => object = true,
            Some(_) => place |= opens(body, end).is_some(),
            None => {
                asks |= word < pictures || word >= hidden;
                picture |= word >= pictures;
            }
        }
        if picture && asks {
            break;
        }
    }
    Some((picture, asks || (id && (place || (object && has_input(body))))))
}

/// What opens the object or the list that a name's value is; the name ends at `at`.
fn opens(body: &[u8], at: usize) -> Option<u8> {
    let mut cursor = Cursor::new(body.get(at..)?);
    cursor.space();
    if !cursor.take(b':') {
        return None;
    }
    cursor.space();
    cursor.peek().filter(|byte| matches!(byte, b'{' | b'['))
}

/// Whether the request itself has an `input` that is an object; deeper ones are what tools were
/// called with. Where that can't be told, it is assumed.
fn has_input(body: &[u8]) -> bool {
    let mut has = false;
    let whole = walk::object(body, |cursor, name| {
        has |= name == b"input" && cursor.peek() == Some(b'{');
        cursor.skip()
    });
    has || !whole
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

    /// What names something stored by its id alone, and what has an id for another reason.
    #[test]
    fn an_id_asks_for_what_is_stored_only_where_that_can_be() {
        for stored in [
            r#"{"input":[{"id":"msg_1"}]}"#,
            r#"{"id":1,"input" : [ [{"id":"msg_1"}] ]}"#,
            r#"{"input":{"id":"msg_1"}}"#,
            r#"{"messages":[{"input":[{"id":"msg_1"}]}]}"#,
            r#"{"messages":[{"role":"assistant","audio":{"id":"a"}}]}"#,
            r#"{"messages":[{"role":"assistant","audio":[{"id":"a"}]}]}"#,
            r#"{"\u0069nput":[{"id":"msg_1"}]}"#,
            r#"{"input":[{"i\u0064":"msg_1"}]}"#,
        ] {
            assert!(of(stored.as_bytes()).beyond.unseen, "{stored}");
        }
        for (other, looks) in [
            (r#"{"messages":[{"tool_calls":[{"id":"c","type":"function"}]}]}"#, false),
            (
                r#"{"messages":[{"content":[{"type":"tool_use","id":"t","input":{"id":"x"}}]}]}"#,
                false,
            ),
            (r#"{"input":"audio","user":{"id":"x"},"modalities":["audio"]}"#, false),
            (r#"{"input":[{"type":"message","id":"m"}]}"#, true),
        ] {
            assert_eq!(of(other.as_bytes()), Marks::default(), "{other}");
            assert_eq!(search(other.as_bytes()), Some((false, looks)), "{other}");
        }
    }

    /// The first pass must find whatever the second one would.
    #[test]
    fn every_word_is_looked_for_however_it_is_written() {
        for word in beyond::words() {
            let word = word.trim_start_matches('"').trim_end_matches('"');
            let hidden =
                word.char_indices().filter(|_| !word.contains('\\')).map(|(at, letter)| {
                    let (before, after) = (word.get(..at).unwrap(), word.get(at + 1..).unwrap());
                    format!("{before}\\u{:04x}{after}", u32::from(letter))
                });
            for written in [word.to_owned(), word.to_uppercase()].into_iter().chain(hidden) {
                let body = format!("{{\"{written}\":1}}");
                assert!(of(body.as_bytes()).beyond != Beyond::default(), "{body}");
                let body = format!("{{\"tools\":[{{\"type\":\"{written}\"}}]}}");
                assert!(of(body.as_bytes()).beyond != Beyond::default(), "{body}");
            }
        }
    }
}
