//! A file in which something was put, or left out, anywhere.

use super::*;

/// What is put somewhere into a text, or everywhere where the same stands before it.
const EDITS: &[&str] = &[
    "\"",
    "'",
    "{",
    "}",
    "[",
    "]",
    ",",
    " ",
    "\n",
    "\n  ",
    "\n    ",
    "\n  - ",
    "- ",
    ": ",
    ":",
    "#",
    " # ",
    "|",
    "|\n",
    ">",
    "&a ",
    "*a ",
    "!!str ",
    "!",
    "? ",
    "\t",
    "%",
    "---\n",
    "...\n",
    "id: k7",
    "id:",
    "\"id\":",
    "user: u",
    "expires: 2028-01-01T00:00:00Z",
    "hash: ",
    "keys:",
    "\nkeys:\n",
    "\\",
    "\\\"",
    "\u{85}",
    "\u{2028}",
    "\0",
    "\u{FEFF}",
    "@",
    "`",
    "<<: ",
    "null",
    "~",
    "metadata: { a: ",
    "\" }",
    "x",
    "\r\n",
    "  ",
];

type Edit = (prop::sample::Index, usize, &'static str, bool);

fn edit() -> impl Strategy<Value = Edit> {
    (any::<prop::sample::Index>(), 0usize..4, prop::sample::select(EDITS), any::<bool>())
}

fn edited(text: &str, edits: &[Edit]) -> String {
    let (head, list) = text.split_at(text.find("keys:").unwrap_or(0));
    let mut list = list.to_owned();
    for (at, deleted, new, everywhere) in edits {
        let at = list.floor_char_boundary(at.index(list.len() + 1));
        let end = list.ceil_char_boundary(at + deleted);
        let context = list.floor_char_boundary(at.saturating_sub(4));
        let old = list[context..end].to_owned();
        if *everywhere && !old.is_empty() {
            let new = format!("{}{new}", &list[context..at]);
            list = list.replace(&old, &new);
        } else {
            list.replace_range(at..end, new);
        }
    }
    format!("{head}{list}")
}

proptest! {
    #![proptest_config(crate::wire::random(2_000))]

    #[test]
    fn a_spoilt_file_is_read_as_the_parser_reads_it(
        text in text(),
        edits in prop::collection::vec(edit(), 1..5),
    ) {
        let text = edited(&text, &edits);
        both(&text);
        prop_assert_eq!(outcome(&text), outcome(&whole(&text)), "{}", text);
    }
}
