use bytes::Bytes;

use crate::wire::scan::{CapName, scan};
use crate::wire::splice::{Edit, Wanted, edits, quote, splice};

fn edited(body: &str, wanted: &Wanted) -> String {
    let body = Bytes::copy_from_slice(body.as_bytes());
    let edits = edits(&scan(&body).unwrap(), wanted);
    String::from_utf8(splice(&body, &edits).to_vec()).unwrap()
}

fn model(body: &str, id: &str) -> String {
    edited(body, &Wanted { model: Some(id), ..Wanted::default() })
}

fn cap(body: &str, name: CapName, most: u64) -> String {
    edited(body, &Wanted { cap_name: Some(name), output_cap: Some(most), ..Wanted::default() })
}

fn usage(body: &str) -> String {
    edited(body, &Wanted { include_usage: true, ..Wanted::default() })
}

#[test]
fn nothing_wanted_is_the_same_memory() {
    let body = Bytes::from_static(
        br#"{"model":"a","max_tokens":5,"stream_options":{"include_usage":true}}"#,
    );
    let wanted = Wanted {
        model: Some("a"),
        cap_name: Some(CapName::MaxTokens),
        output_cap: Some(5),
        include_usage: true,
        ..Wanted::default()
    };
    let edits = edits(&scan(&body).unwrap(), &wanted);
    assert_eq!(edits, []);
    assert_eq!(splice(&body, &edits).as_ptr(), body.as_ptr());
}

#[test]
fn models() {
    assert_eq!(
        model(r#"{ "model" : "a" , "x":1}"#, "long/er"),
        r#"{ "model" : "long/er" , "x":1}"#
    );
    assert_eq!(
        model(r#"{"mod\u0065l":"a","x":"model"}"#, "b"),
        r#"{"mod\u0065l":"b","x":"model"}"#
    );
    // Another reader may take the first of two.
    assert_eq!(model(r#"{"model":"x","model":"b"}"#, "b"), r#"{"model":"b","model":"b"}"#);
    assert_eq!(model(r#"{"messages":[]}"#, "b"), r#"{"model":"b","messages":[]}"#);
    assert_eq!(model(" { } ", "b"), " {\"model\":\"b\" } ");
    assert_eq!(
        model(r#"{"model":"a"}"#, "q\"\\\n\u{1}é"),
        "{\"model\":\"q\\\"\\\\\\u000a\\u0001é\"}"
    );
    assert_eq!(quote("a\"b"), b"\"a\\\"b\"");
}

#[test]
fn caps() {
    use CapName::*;
    assert_eq!(cap(r#"{"max_tokens":100}"#, MaxTokens, 7), r#"{"max_tokens":7}"#);
    assert_eq!(cap(r#"{"max_tokens":5}"#, MaxTokens, 7), r#"{"max_tokens":5}"#);
    assert_eq!(cap(r#"{"max_tokens":null}"#, MaxCompletionTokens, 7), r#"{"max_tokens":7}"#);
    assert_eq!(
        cap(r#"{"max_tokens":9,"max_completion_tokens":3}"#, MaxTokens, 7),
        r#"{"max_tokens":7,"max_completion_tokens":3}"#
    );
    // A server that takes no notice of the newer name gets the older.
    let older = Wanted { cap_name: Some(MaxTokens), older_cap: true, ..Wanted::default() };
    let capped = Wanted { output_cap: Some(7), ..older };
    assert_eq!(edited(r#"{"max_completion_tokens":9}"#, &capped), r#"{"max_tokens":7}"#);
    assert_eq!(edited(r#"{"max_c\u006fmpletion_tokens":9}"#, &older), r#"{"max_tokens":9}"#);
    assert_eq!(edited(r#"{"x":1}"#, &older), r#"{"x":1}"#);
    // To some servers 0 is no cap.
    let zero = Wanted { zero_is_none: true, output_cap: Some(7), ..older };
    assert_eq!(edited(r#"{"max_tokens":0}"#, &zero), r#"{"max_tokens":7}"#);
    assert_eq!(cap(r#"{"max_tokens":0}"#, MaxTokens, 7), r#"{"max_tokens":0}"#);
    assert_eq!(cap(r#"{"x":1}"#, MaxCompletionTokens, 7), r#"{"max_completion_tokens":7,"x":1}"#);
    assert_eq!(cap("{}", MaxOutputTokens, 7), r#"{"max_output_tokens":7}"#);
    // A cap that the target doesn't know is no cap.
    assert_eq!(
        cap(r#"{"max_tokens":1}"#, MaxOutputTokens, 7),
        r#"{"max_output_tokens":7,"max_tokens":1}"#
    );
    assert_eq!(
        cap(r#"{"max_tokens":1}"#, GenerationConfig, 7),
        r#"{"generationConfig":{"maxOutputTokens":7},"max_tokens":1}"#
    );
    assert_eq!(
        cap(r#"{"generationConfig":{"topK":1}}"#, GenerationConfig, 7),
        r#"{"generationConfig":{"maxOutputTokens":7,"topK":1}}"#
    );
    assert_eq!(
        cap(r#"{"max_tokens":9,"max_tokens":null}"#, MaxTokens, 7),
        r#"{"max_tokens":7,"max_tokens":7}"#
    );
    assert_eq!(
        cap(
            r#"{"generationConfig":{"maxOutputTokens":9},"generation_config":{}}"#,
            GenerationConfig,
            7
        ),
        r#"{"generationConfig":{"maxOutputTokens":7},"generation_config":{"maxOutputTokens":7}}"#
    );
    assert_eq!(
        cap(r#"{"generation_config":{ }}"#, GenerationConfig, 7),
        r#"{"generation_config":{"maxOutputTokens":7 }}"#
    );
    assert_eq!(
        cap(r#"{"generationConfig":null}"#, GenerationConfig, 7),
        r#"{"generationConfig":{"maxOutputTokens":7}}"#
    );
    assert_eq!(
        cap(r#"{"generationConfig":{"max_output_tokens":"90"}}"#, GenerationConfig, 7),
        r#"{"generationConfig":{"max_output_tokens":7}}"#
    );
}

#[test]
fn asking_for_usage() {
    assert_eq!(
        usage(r#"{"stream":true}"#),
        r#"{"stream_options":{"include_usage":true},"stream":true}"#
    );
    assert_eq!(usage(r#"{"stream_options":null}"#), r#"{"stream_options":{"include_usage":true}}"#);
    assert_eq!(usage(r#"{"stream_options":{}}"#), r#"{"stream_options":{"include_usage":true}}"#);
    assert_eq!(
        usage(r#"{"stream_options":{"a":1}}"#),
        r#"{"stream_options":{"include_usage":true,"a":1}}"#
    );
    assert_eq!(
        usage(r#"{"stream_options":{"include_usage":null}}"#),
        r#"{"stream_options":{"include_usage":true}}"#
    );
    assert_eq!(
        usage(
            r#"{"stream_options":{"include_usage":false,"include_usage":true},"stream_options":null}"#
        ),
        r#"{"stream_options":{"include_usage":true,"include_usage":true},"stream_options":{"include_usage":true}}"#
    );
}

#[test]
fn all_at_once_adds_first_in_the_object() {
    let wanted = Wanted {
        model: Some("m"),
        cap_name: Some(CapName::MaxTokens),
        output_cap: Some(1),
        include_usage: true,
        ..Wanted::default()
    };
    assert_eq!(
        edited(r#"{"x":"é"}"#, &wanted),
        r#"{"model":"m","max_tokens":1,"stream_options":{"include_usage":true},"x":"é"}"#
    );
    assert_eq!(
        edited("{}", &wanted),
        r#"{"model":"m","max_tokens":1,"stream_options":{"include_usage":true}}"#
    );
}

#[test]
fn impossible_edits_are_left_out() {
    let body = Bytes::from_static(b"abcdef");
    let edit = |at: std::ops::Range<usize>| Edit { at, with: b"-".to_vec() };
    let out = splice(&body, &[edit(1..3), edit(2..4), edit(5..9), edit(90..91)]);
    assert_eq!(out, "a-def");
}
