//! Deterministic text, and the cutting of text into chunks.

const WORDS: [&str; 32] = [
    "lorem",
    "ipsum",
    "dolor",
    "sit",
    "amet",
    "consectetur",
    "adipiscing",
    "elit",
    "sed",
    "do",
    "eiusmod",
    "tempor",
    "incididunt",
    "ut",
    "labore",
    "et",
    "dolore",
    "magna",
    "aliqua",
    "enim",
    "ad",
    "minim",
    "veniam",
    "quis",
    "nostrud",
    "exercitation",
    "ullamco",
    "laboris",
    "nisi",
    "aliquip",
    "ex",
    "commodo",
];

/// The word number `at`, with the space that precedes it.
fn word(at: u64) -> (&'static str, &'static str) {
    let word = WORDS[usize::try_from(at).unwrap_or(0) % WORDS.len()];
    (if at == 0 { "" } else { " " }, word)
}

/// Text of `count` words.
pub(crate) fn words(count: u64) -> String {
    let mut text = String::new();
    for at in 0..count {
        let (space, word) = word(at);
        text.push_str(space);
        text.push_str(word);
    }
    text
}

/// Text of exactly `bytes` bytes.
pub(crate) fn sized(bytes: usize) -> String {
    let mut text = String::with_capacity(bytes + 16);
    let mut at = 0;
    while text.len() < bytes {
        let (space, word) = word(at);
        text.push_str(space);
        text.push_str(word);
        at += 1;
    }
    text.truncate(bytes);
    text
}

/// Cuts a text into `count` pieces: between words where there are enough,
/// between characters otherwise. The pieces together are the text.
pub(crate) fn pieces(text: &str, count: usize) -> Vec<String> {
    if count == 0 {
        return Vec::new();
    }
    let mut starts: Vec<usize> = text.match_indices(' ').map(|(at, _)| at).collect();
    starts.insert(0, 0);
    if starts.len() < count {
        starts = text.char_indices().map(|(at, _)| at).collect();
    }
    let at = |k: usize| {
        let index = starts.len() * k / count;
        if k == 0 { 0 } else { starts.get(index).copied().unwrap_or(text.len()) }
    };
    (0..count).map(|k| text[at(k)..at(k + 1).max(at(k))].to_owned()).collect()
}

/// The share of part `at` when `total` is spread over `count` parts.
pub(crate) fn share(total: u64, at: usize, count: usize) -> u64 {
    let upto = |k: usize| (u128::from(total) * k as u128 / count.max(1) as u128) as u64;
    upto(at + 1) - upto(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_the_text_again() {
        for text in ["", "ü", "one two three", "日本語のテキスト", &words(40), &sized(1000)]
        {
            for count in [1, 2, 3, 7, 50] {
                let cut = pieces(text, count);
                assert_eq!(cut.len(), count);
                assert_eq!(cut.concat(), text, "{count}");
            }
        }
        assert_eq!(pieces("one two three", 3), ["one", " two", " three"]);
    }

    #[test]
    fn sizes_and_shares_are_exact() {
        assert_eq!(sized(777).len(), 777);
        assert_eq!(words(3), "lorem ipsum dolor");
        for (total, count) in [(0, 3), (10, 3), (5, 50), (1_000_003, 7)] {
            assert_eq!((0..count).map(|at| share(total, at, count)).sum::<u64>(), total);
        }
    }
}
