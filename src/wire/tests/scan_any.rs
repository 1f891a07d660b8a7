//! Any JSON at all: the scan agrees with a parser, and a splice changes only what it should.

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::wire::scan::{CapName, scan};
use crate::wire::splice::{Wanted, edits, splice};

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        // Eighths: serde_json reads others with a rounding error.
        any::<i32>().prop_map(|n| Value::from(f64::from(n) / 8.0)),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        let name = prop_oneof![any::<String>(), Just("model".to_owned()), Just("role".to_owned())];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::vec((name, inner), 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// An object of any shape; some of its names are ones that taps look for.
pub fn object() -> impl Strategy<Value = Value> {
    let name = prop_oneof![
        any::<String>(),
        Just("usage".to_owned()),
        Just("n".to_owned()),
        Just("error".to_owned()),
    ];
    proptest::collection::vec((name, value()), 0..8)
        .prop_map(|members| Value::Object(members.into_iter().collect()))
}

/// A request: anything, and the fields that matter with values that can be used.
fn request() -> impl Strategy<Value = Value> {
    let count = prop_oneof![Just(Value::Null), any::<u32>().prop_map(Value::from)];
    let options = prop_oneof![
        Just(Value::Null),
        Just(json!({})),
        Just(json!({"include_usage": true})),
        Just(json!({"x": [1], "include_usage": null})),
    ];
    let ours = (
        proptest::option::of(any::<String>()),
        proptest::option::of(any::<bool>()),
        proptest::option::of(options),
        proptest::option::of(count.clone()),
        proptest::option::of(count),
    );
    // In front of any name, so that it can't be one of ours (it was: a bare "n").
    let other = any::<String>().prop_map(|name| format!("~{name}"));
    let others = proptest::collection::vec((other, value()), 0..6);
    (others, value(), ours).prop_map(|(others, messages, (model, stream, options, chat, short))| {
        let mut all: Map<String, Value> = others.into_iter().collect();
        let mut put = |name: &str, value: Option<Value>| {
            value.map(|value| all.insert(name.to_owned(), value));
        };
        put("messages", Some(messages));
        put("model", model.map(Value::from));
        put("stream", stream.map(Value::from));
        put("stream_options", options);
        put("max_completion_tokens", chat);
        put("max_tokens", short);
        Value::Object(all)
    })
}

/// What the edits should come to, on the parsed value.
fn changed(mut request: Value, model: &str, cap: u64) -> Value {
    let all = request.as_object_mut().unwrap();
    all.insert("model".to_owned(), model.into());
    let mut capped = false;
    for name in ["max_tokens", "max_completion_tokens"] {
        if let Some(value) = all.get_mut(name) {
            *value = value.as_u64().map_or(cap, |now| now.min(cap)).into();
            capped = true;
        }
    }
    if !capped {
        all.insert("max_completion_tokens".to_owned(), cap.into());
    }
    let options = all.entry("stream_options").or_insert(Value::Null);
    if options.is_null() {
        *options = json!({});
    }
    options["include_usage"] = true.into();
    request
}

proptest! {
    #![proptest_config(super::fixtures::random(512))]

    #[test]
    fn a_splice_changes_the_wanted_fields_and_no_other_byte(
        request in request(), pretty: bool, model: String, cap: u32,
    ) {
        let text = if pretty { serde_json::to_vec_pretty(&request) } else { serde_json::to_vec(&request) };
        let body = Bytes::from(text.unwrap());
        let fields = scan(&body).unwrap();
        prop_assert_eq!(fields.model.as_deref(), request.get("model").and_then(Value::as_str));
        let wanted = Wanted {
            model: Some(&model),
            cap_name: Some(CapName::MaxCompletionTokens), output_cap: Some(cap.into()),
            include_usage: true,
            ..Wanted::default()
        };
        let edits = edits(&fields, &wanted);
        let out = splice(&body, &edits);
        let got: Value = serde_json::from_slice(&out).unwrap();
        prop_assert_eq!(got, changed(request, &model, cap.into()));
        // Taking the edits back gives the body.
        let (mut back, mut from, mut at) = (Vec::new(), 0, 0);
        for edit in &edits {
            prop_assert!(edit.at.start >= from, "sorted and disjoint");
            let kept = edit.at.start - from;
            back.extend_from_slice(&out[at..at + kept]);
            prop_assert_eq!(&out[at + kept..at + kept + edit.with.len()], edit.with.as_slice());
            back.extend_from_slice(&body[edit.at.clone()]);
            at += kept + edit.with.len();
            from = edit.at.end;
        }
        back.extend_from_slice(&out[at..]);
        prop_assert_eq!(back, body.to_vec());
        // Once is enough.
        let again = scan(&out).unwrap();
        prop_assert_eq!(super::super::splice::edits(&again, &wanted), vec![]);
    }

    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = scan(&bytes);
    }

    #[test]
    fn the_scan_agrees_with_a_parser(parts in proptest::collection::vec(
        prop_oneof![
            Just("{"), Just("}"), Just("["), Just("]"), Just(","), Just(":"), Just("\"a\""), Just("\""),
            Just("\\"), Just("\\u0041"), Just("1"), Just("-"), Just("0"), Just("."), Just("e"), Just("true"),
            Just("null"), Just(" "), Just("\n"), Just("é"), Just("\t"),
        ],
        0..14,
    )) {
        let body = format!("{{\"a\":{}}}", parts.concat());
        let parsed = serde_json::from_str::<Value>(&body);
        prop_assert_eq!(scan(body.as_bytes()).is_ok(), parsed.is_ok(), "{}", body);
    }
}
