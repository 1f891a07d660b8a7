use proptest::prelude::*;
use serde_json::Value;

use super::fixtures::cuts;
use crate::wire::tap::{MAX_MEMBER, Tap};

const WANTED: &[&str] = &["usage", "error", "n"];

fn tap(pieces: &[&[u8]]) -> Tap {
    let mut tap = Tap::new(WANTED);
    for piece in pieces {
        tap.feed(piece);
    }
    tap
}

fn text<'a>(tap: &'a Tap, name: &str) -> Option<&'a str> {
    tap.value(name).map(|value| std::str::from_utf8(value).unwrap())
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
        assert_eq!(tap.value("n"), None, "half of a number is not the number");
    }
}

#[test]
fn what_is_no_object_has_no_members() {
    for json in ["7", "\"usage\"", "null", "not json {\"usage\":1}", "", "\u{feff}{\"usage\":1}"] {
        let tap = tap(&[json.as_bytes()]);
        assert_eq!(tap.value("usage"), None, "{json}");
        assert!(!tap.complete(), "{json}");
    }
}

#[test]
fn too_large_a_member_is_not_kept_and_the_rest_is() {
    let big = "x".repeat(MAX_MEMBER - 2);
    let fits = format!("{{\"usage\":\"{big}\",\"n\":1}}");
    assert!(tap(&[fits.as_bytes()]).value("usage").is_some());
    let over = format!("{{\"usage\":\"{big}y\",\"n\":1}}");
    let tap = tap(&[over.as_bytes()]);
    assert_eq!(tap.value("usage"), None);
    assert_eq!(text(&tap, "n"), Some("1"));
}

proptest! {
    #![proptest_config(super::fixtures::any_config())]

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
            prop_assert_eq!(whole.value(name), cut.value(name));
        }
    }

    #[test]
    fn any_object_gives_what_a_parser_gives(value in super::scan_any::object(), pretty: bool, size in 1usize..40) {
        let json = if pretty { serde_json::to_vec_pretty(&value) } else { serde_json::to_vec(&value) }.unwrap();
        let pieces: Vec<&[u8]> = json.chunks(size).collect();
        let tap = tap(&pieces);
        prop_assert!(tap.complete());
        for name in WANTED {
            let got: Option<Value> = tap.value(name).map(|raw| serde_json::from_slice(raw).unwrap());
            prop_assert_eq!(got.as_ref(), value.get(name));
        }
    }
}
