use proptest::prelude::*;
use serde_json::Value;

use super::fixtures::cuts;
use crate::wire::sift::{MAX_MEMBER, Sifter};
use crate::wire::tap::{Found, SHORT, Tap};

const WANTED: &[&str] = &["usage", "error", "n"];

/// What is sifted out of the pieces. A tap finds the same, and so does one of a long answer.
fn tap(pieces: &[&[u8]]) -> Sifter {
    let (mut sifter, mut tap) = (Sifter::new(WANTED), Tap::new(WANTED));
    for piece in pieces {
        sifter.feed(piece);
        tap.feed(piece);
    }
    let found = tap.found(|cursor| cursor.skip());
    assert_eq!(found.is_complete(), sifter.complete());
    assert_eq!(found.values(), sifter.values());
    sifter
}

#[test]
fn a_tap_finds_the_same_on_both_sides_of_its_bound() {
    for around in [0, 1, 2, 10, 20, 30, 40, 100] {
        let space = " ".repeat(SHORT - around);
        for json in [r#"{"usage":{"a":1},"n":"x"}"#, r#"{"usage":1,"n":2"#, "7"] {
            for text in [format!("{space}{json}"), format!("{json}{space}")] {
                let middle = text.split_at(SHORT - 101);
                tap(&[text.as_bytes()]);
                tap(&[middle.0.as_bytes(), middle.1.as_bytes()]);
                let pieces: Vec<&[u8]> = text.as_bytes().chunks(7).collect();
                tap(&pieces);
            }
        }
    }
}

#[test]
fn only_a_whole_object_is_walked() {
    for (json, walked) in [
        ("{}", true),
        (" {\"n\":1} and more", true),
        ("{\"n\":1", false),
        ("[{\"n\":1}]", false),
        ("{\"n\":1:2}", false),
        ("{\"n\":\"\n\"}", false),
    ] {
        let mut tap = Tap::new(WANTED);
        tap.feed(json.as_bytes());
        assert_eq!(
            matches!(tap.found(|cursor| cursor.skip()), Found::Walked(..)),
            walked,
            "{json}"
        );
    }
}

fn kept<'a>(tap: &'a Sifter, name: &str) -> Option<&'a [u8]> {
    let at = WANTED.iter().position(|wanted| *wanted == name).unwrap();
    tap.values()[at]
}

fn text<'a>(tap: &'a Sifter, name: &str) -> Option<&'a str> {
    kept(tap, name).map(|value| std::str::from_utf8(value).unwrap())
}

#[test]
fn members_at_every_cut() {
    for (json, usage, n) in [
        (r#"{"usage":{"a":[1,"}"]},"n":5}"#, Some(r#"{"a":[1,"}"]}"#), Some("5")),
        ("\n\n \r\n{ \"n\" : 7 , \"usage\" : null }\n", Some("null"), Some("7")),
        (
            r#"{"x":{"usage":1,"n":[{"usage":2}]},"y":"\"usage\":3,\\","n":"\\\"é"}"#,
            None,
            Some(r#""\\\"é""#),
        ),
        (r#"{"us\u0061ge":1,"n":true,"n":false}"#, Some("1"), Some("false")),
        (r#"[{"usage":{"a":1},"n":1},{"usage":{"a":2}}]"#, Some(r#"{"a":2}"#), Some("1")),
        (r#"[1,"{",[{"n":9}],{"n":2,"usage":[]}]"#, Some("[]"), Some("2")),
        (r#"{}"#, None, None),
        (r#"[]"#, None, None),
        (r#"{"usage":{"a":{"b":{}}},"z":1} {"n":4}"#, Some(r#"{"a":{"b":{}}}"#), None),
    ] {
        for pieces in cuts(json.as_bytes()) {
            let tap = tap(&pieces);
            assert_eq!(text(&tap, "usage"), usage, "{json}");
            assert_eq!(text(&tap, "n"), n, "{json}");
            assert!(tap.complete(), "{json}");
        }
    }
}

#[test]
fn a_text_that_stops_is_not_complete() {
    let json = r#"{"usage":{"a":1},"n":12}"#;
    for at in 0..json.len() {
        let tap = tap(&[&json.as_bytes()[..at]]);
        assert!(!tap.complete());
        assert_eq!(kept(&tap, "n"), None, "half of a number is not the number");
    }
}

#[test]
fn what_is_no_object_has_no_members() {
    for json in ["7", "\"usage\"", "null", "not json {\"usage\":1}", ""] {
        let tap = tap(&[json.as_bytes()]);
        assert_eq!(kept(&tap, "usage"), None, "{json}");
        assert!(!tap.complete(), "{json}");
    }
}

#[test]
fn a_byte_order_mark_is_none_of_the_text() {
    let json = "\u{feff}{\"usage\":1}";
    for pieces in cuts(json.as_bytes()) {
        assert_eq!(text(&tap(&pieces), "usage"), Some("1"), "{pieces:?}");
    }
}

#[test]
fn too_large_a_member_is_not_kept_and_the_rest_is() {
    let big = "x".repeat(MAX_MEMBER - 2);
    let fits = format!("{{\"usage\":\"{big}\",\"n\":1}}");
    assert!(kept(&tap(&[fits.as_bytes()]), "usage").is_some());
    let over = format!("{{\"usage\":\"{big}y\",\"n\":1}}");
    let tap = tap(&[over.as_bytes()]);
    assert_eq!(kept(&tap, "usage"), None);
    assert_eq!(text(&tap, "n"), Some("1"));
}

proptest! {
    #![proptest_config(super::fixtures::random(512))]

    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(
        prop_oneof![Just(b'{'), Just(b'}'), Just(b'['), Just(b']'), Just(b'"'), Just(b'\\'), Just(b','), Just(b':'), Just(b'n'), any::<u8>()],
        0..60,
    )) {
        let whole = tap(&[&bytes]);
        let pieces: Vec<&[u8]> = bytes.chunks(1).collect();
        let cut = tap(&pieces);
        prop_assert_eq!(whole.complete(), cut.complete());
        for name in WANTED {
            prop_assert_eq!(kept(&whole, name), kept(&cut, name));
        }
    }

    #[test]
    fn any_object_gives_what_a_parser_gives(value in super::scan_any::object(), pretty: bool, size in 1usize..40) {
        let json = if pretty { serde_json::to_vec_pretty(&value) } else { serde_json::to_vec(&value) }.unwrap();
        let pieces: Vec<&[u8]> = json.chunks(size).collect();
        let tap = tap(&pieces);
        prop_assert!(tap.complete());
        for name in WANTED {
            let got: Option<Value> = kept(&tap, name).map(|raw| serde_json::from_slice(raw).unwrap());
            prop_assert_eq!(got.as_ref(), value.get(name));
        }
    }
}
