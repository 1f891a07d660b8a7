//! Counting a request's text with a tokenizer, where its bytes can't tell.
//!
//! The tables are OpenAI's. Other vendors' tokenizers make other numbers of the same text, so what
//! is counted is turned into bounds with a margin each way; where a text is not in ASCII nothing is
//! known of them but that a byte is a token at most.

use super::text_len::{self, Contents, Shown};
use std::sync::OnceLock;
use tiktoken_rs::CoreBPE;

/// The longest text that is counted at once, in bytes: a tokenizer's time can grow faster than
/// its input on text without spaces.
const PIECE: usize = 4096;

/// Bytes of the longest token in the tables: one of spaces.
const LONGEST: u64 = 128;

/// Tokens that a message or a part of one costs beside its text, at most.
const PER_OBJECT: u64 = 8;

/// What the text of a request comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Certainly no fewer tokens than this.
    pub least: u64,
    /// Hardly more tokens than this.
    pub most: u64,
}

/// Whose tokenizer it is that will count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vendor {
    /// OpenAI's own models since GPT-4o, at OpenAI or at Azure: `o200k_base`.
    OpenAi,
    /// Those before, and its embeddings: `cl100k_base`, which makes up to five times as many
    /// tokens of Indic scripts.
    OpenAiBefore,
    /// Anybody else's, whatever API they speak.
    Other,
}

/// Bounds of the tokens of a JSON request's text; `None` where it is no JSON.
///
/// Takes about a millisecond for every 10 KiB, and longer the first time.
pub fn of(body: &[u8], vendor: Vendor) -> Option<Bounds> {
    let table = table(vendor)?;
    let (mut texts, mut json, mut foreign) = (0_u64, 0_u64, 0_u64);
    let contents = text_len::walk(body, |shown| {
        let (text, counted) = match shown {
            Shown::Text(text) => (text, &mut texts),
            Shown::Json(text) => (text, &mut json),
        };
        for piece in pieces(text) {
            *counted += table.encode_ordinary(piece).len() as u64;
        }
        if vendor == Vendor::Other {
            foreign += unlike(text);
        }
    })?;
    // Percent of what is counted. Anthropic's and Google's tokenizers are said by their users to
    // make up to two fifths more of English text and code.
    let (least, most) = match vendor {
        Vendor::OpenAi | Vendor::OpenAiBefore => (80, 115),
        Vendor::Other => (70, 150),
    };
    Some(Bounds {
        // JSON may be shown in fewer words than it has.
        least: texts * least / 100,
        most: (texts + json) * most / 100 + foreign + contents.objects * PER_OBJECT + PER_OBJECT,
    })
}

/// What [`Bounds::most`] is no less than, without counting: far below it, but for long runs of spaces.
pub fn fewest(contents: &Contents) -> u64 {
    contents.text / LONGEST
}

/// Tokens that other tables may make of a text beside the margin: one for each byte that is not
/// ASCII and each digit (many tables have no longer numbers than that), and some for long runs of
/// one byte.
fn unlike(text: &str) -> u64 {
    let bytes = text.as_bytes();
    let single = bytes.iter().filter(|byte| !byte.is_ascii() || byte.is_ascii_digit()).count();
    let repeats = bytes.windows(2).filter(|pair| pair.first() == pair.last()).count();
    (single + repeats / 4) as u64
}

fn table(vendor: Vendor) -> Option<&'static CoreBPE> {
    static NOW: OnceLock<Option<CoreBPE>> = OnceLock::new();
    static BEFORE: OnceLock<Option<CoreBPE>> = OnceLock::new();
    match vendor {
        Vendor::OpenAiBefore => BEFORE.get_or_init(|| tiktoken_rs::cl100k_base().ok()),
        Vendor::OpenAi | Vendor::Other => NOW.get_or_init(|| tiktoken_rs::o200k_base().ok()),
    }
    .as_ref()
}

/// Pieces of at most [`PIECE`] bytes. A cut can only add tokens.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut end = rest.len().min(PIECE);
        while !rest.is_char_boundary(end) {
            end -= 1;
        }
        let (piece, after) = rest.split_at(end);
        rest = after;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn prose_is_far_below_its_bytes() {
        let text = "The quick brown fox jumps over the lazy dog. ".repeat(100);
        let body = json!({"messages": [{"role": "user", "content": text}]}).to_string();
        let bounds = of(body.as_bytes(), Vendor::OpenAi).unwrap();
        // Ten tokens a sentence, by OpenAI's own tokenizer.
        assert!((800..=1000).contains(&bounds.least), "{bounds:?}");
        assert!((1000..1400).contains(&bounds.most), "{bounds:?}");
        assert!(bounds.most < body.len() as u64 / 3);
    }

    #[test]
    fn scripts_that_older_tables_hardly_know_are_counted_with_their_own() {
        let text = "ગુજરાતી ભાષામાં લખેલું એક વાક્ય. ".repeat(50);
        let body = json!({"input": text}).to_string();
        let most = |vendor| of(body.as_bytes(), vendor).unwrap().most;
        let own = table(Vendor::OpenAiBefore).unwrap().encode_ordinary(&text).len() as u64;
        assert!(own > 2 * table(Vendor::OpenAi).unwrap().encode_ordinary(&text).len() as u64);
        assert!(most(Vendor::OpenAi) < own);
        assert!(most(Vendor::OpenAiBefore) >= own);
        assert!(most(Vendor::Other) >= own);
    }

    /// Some tables have a token for each digit, and none for long runs of spaces.
    #[test]
    fn figures_and_runs_have_more_tokens_in_other_tables() {
        for (text, least) in [("123456789012,".repeat(1_000), 13_000), (" ".repeat(8_000), 2_000)] {
            let body = json!({"input": text}).to_string();
            let most = |vendor| of(body.as_bytes(), vendor).unwrap().most;
            assert!(most(Vendor::Other) >= least, "{}", most(Vendor::Other));
            assert!(most(Vendor::OpenAi) < least);
        }
    }

    #[test]
    fn no_count_is_below_the_fewest() {
        let runs = [" ", "-", "=", "*", "\n", "\t", "\r\n", "/", "_", ".", "a", "0", "━", "🚀"];
        let runs = runs.map(|run| run.repeat(10_000));
        for text in runs.into_iter().chain(["The quick brown fox. ".repeat(1_000)]) {
            let body = json!({"input": text, "tools": [{"parameters": {"x": text}}]}).to_string();
            let fewest = fewest(&text_len::contents(body.as_bytes()).unwrap());
            for vendor in [Vendor::OpenAi, Vendor::OpenAiBefore, Vendor::Other] {
                let most = of(body.as_bytes(), vendor).unwrap().most;
                assert!(0 < fewest && fewest <= most, "{fewest} {most} {text:.4}");
            }
        }
    }

    #[test]
    fn text_without_spaces_and_cut_characters_is_counted() {
        let body = json!({"input": "🚀".repeat(3000)}).to_string();
        let bounds = of(body.as_bytes(), Vendor::Other).unwrap();
        assert!(bounds.most >= 3000, "{bounds:?}");
        assert_eq!(of(b"no json", Vendor::OpenAi), None);
    }
}
