//! Counting a request's text with a tokenizer, where its bytes can't tell.
//!
//! The table is OpenAI's `o200k_base`. Other vendors' tokenizers make other numbers of the same
//! text, so what is counted is turned into bounds with a margin each way.

use super::text_len;
use std::sync::OnceLock;
use tiktoken_rs::CoreBPE;

/// The longest text that is counted at once, in bytes: a tokenizer's time can grow faster than
/// its input on text without spaces.
const PIECE: usize = 4096;

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
    /// OpenAI's own models, at OpenAI or at Azure.
    OpenAi,
    /// Anybody else's, whatever API they speak.
    Other,
}

/// Bounds of the tokens of a JSON request's text; `None` where it is no JSON.
///
/// Takes about a millisecond for every 10 KiB, and longer the first time.
pub fn of(body: &[u8], vendor: Vendor) -> Option<Bounds> {
    let table = table()?;
    let mut counted = 0_u64;
    let contents = text_len::walk(body, |text| {
        for piece in pieces(text) {
            counted += table.encode_ordinary(piece).len() as u64;
        }
    })?;
    // Percent of o200k's count: OpenAI's older tables make up to a tenth more; Anthropic's and
    // Google's are said by their users to make up to two fifths more. Of others nothing is known.
    let (least, most) = match vendor {
        Vendor::OpenAi => (80, 115),
        Vendor::Other => (70, 150),
    };
    Some(Bounds {
        least: counted * least / 100,
        most: counted * most / 100 + contents.objects * PER_OBJECT + PER_OBJECT,
    })
}

fn table() -> Option<&'static CoreBPE> {
    static TABLE: OnceLock<Option<CoreBPE>> = OnceLock::new();
    TABLE.get_or_init(|| tiktoken_rs::o200k_base().ok()).as_ref()
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
    fn text_without_spaces_and_cut_characters_is_counted() {
        let body = json!({"input": "🚀".repeat(3000)}).to_string();
        let bounds = of(body.as_bytes(), Vendor::Other).unwrap();
        assert!(bounds.most >= 3000, "{bounds:?}");
        assert_eq!(of(b"no json", Vendor::OpenAi), None);
    }
}
