//! Words in a body that say what bounds its cost: whether it may hold pictures or files, and
//! whether a provider may add input that the gateway can't see. All of them in one pass.

use aho_corasick::{AhoCorasick, MatchKind};
use std::sync::LazyLock;

/// Members and tools that stand for input the gateway can't see, or whose bytes don't bound it (a
/// page of a document is a picture, too). Inside a text their quotes would be escaped. The last
/// three are escapes of plain letters, which no encoder writes: whoever does may be hiding one of
/// these names.
const UNSEEN: [&str; 31] = [
    "\"previous_response_id\"",
    "\"conversation\"",
    "\"file_id\"",
    "\"file_url\"",
    "\"file_uri\"",
    "\"fileUri\"",
    "\"file_search",
    "\"fileSearch",
    "\"web_search",
    "\"web_fetch",
    "\"enterprise_web_search",
    "\"enterpriseWebSearch",
    "\"google_search",
    "\"googleSearch",
    "\"google_maps",
    "\"googleMaps",
    "\"url_context",
    "\"urlContext",
    "\"code_execution",
    "\"codeExecution",
    "\"code_interpreter",
    "\"cached_content\"",
    "\"cachedContent\"",
    "\"pmpt_",
    "\"plugins\"",
    "\"document\"",
    "\"application/pdf",
    "\"mcp",
    "\\u005",
    "\\u006",
    "\\u007",
];

/// Searches by a provider, wherever they are asked for.
const SEARCH: [&str; 4] = ["web_search", "WebSearch", "google_search", "googleSearch"];

/// Words without which a body holds neither picture nor file.
const MEDIA: [&str; 6] = ["image", "file", "document", "audio", "video", "inline"];

/// What a body's words say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Marks {
    /// It may hold a picture, a file or sound.
    pub media: bool,
    /// The provider may add input that isn't in it.
    pub unseen: bool,
    /// The provider may search the web for it.
    pub search: bool,
}

/// All words, the quoted ones first: where two begin at one place, the first is found. `None` is a
/// bug, and everything is assumed of a body then.
static WORDS: LazyLock<Option<AhoCorasick>> = LazyLock::new(|| {
    let words = UNSEEN.into_iter().chain(SEARCH).chain(MEDIA);
    AhoCorasick::builder().match_kind(MatchKind::LeftmostFirst).build(words).ok()
});

/// Looks through a body.
pub fn of(body: &[u8]) -> Marks {
    let Some(words) = WORDS.as_ref() else {
        return Marks { media: true, unseen: true, search: true };
    };
    let mut marks = Marks::default();
    for found in words.find_iter(body) {
        // A longer word hides the shorter ones in it.
        let text = std::str::from_utf8(body.get(found.range()).unwrap_or_default());
        let text = text.unwrap_or_default();
        let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
        marks.unseen |= found.pattern().as_usize() < UNSEEN.len();
        marks.search |= has(&SEARCH);
        marks.media |= has(&MEDIA);
        if marks == (Marks { media: true, unseen: true, search: true }) {
            break;
        }
    }
    marks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_word_is_found_for_what_it_means() {
        let has = |text: &str, words: &[&str]| words.iter().any(|word| text.contains(word));
        let all = UNSEEN.iter().chain(&SEARCH).chain(&MEDIA);
        for word in all.chain(&["", "nothing", "\\\"mcp", "imag", "web-search"]) {
            for text in [
                format!("{{\"a\":{word}}}"),
                format!("{{\"a\":\"x {word}\",\"b\":1}}"),
                format!("{word}{word}"),
                format!("{{\"input\":\"a file\",{word}:1}}"),
            ] {
                let expected = Marks {
                    media: has(&text, &MEDIA),
                    unseen: has(&text, &UNSEEN),
                    search: has(&text, &SEARCH),
                };
                assert_eq!(of(text.as_bytes()), expected, "{text}");
            }
        }
    }
}
