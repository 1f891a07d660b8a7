use crate::wire::scan::{CapName, Fields, ScanError, scan};

fn ok(body: &str) -> Fields {
    scan(body.as_bytes()).unwrap_or_else(|error| panic!("{error}: {body}"))
}

fn bad(body: &[u8]) -> ScanError {
    scan(body).expect_err("it was taken")
}

#[test]
fn finds_the_fields_of_a_pretty_printed_body() {
    let body = "\n{\n  \"messages\" : [ {\"role\":\"system\",\"content\":\"s\"}, {\"content\":\"hé\",\"role\":\"user\"}, {\"role\":\"user\"} ],\n  \"stream\" : true ,\n \"max_tokens\" : 100,\n \"n\": 2, \"best_of\":3,\"prompt_cache_key\":\"k\\n\",\n \"stream_options\": { \"x\": [1], \"include_usage\" : false },\n  \"model\" : \"gpt-x\"\n}\n";
    let fields = ok(body);
    assert_eq!(fields.model.as_deref(), Some("gpt-x"));
    assert_eq!(&body[fields.models[0].clone()], "\"gpt-x\"");
    assert!(fields.stream);
    assert_eq!((fields.n, fields.best_of), (Some(2), Some(3)));
    assert_eq!(fields.prompt_cache_key.as_deref(), Some("k\n"));
    assert_eq!(&body[fields.caps[0].value.clone()], "100");
    assert_eq!(fields.caps[0].tokens, Some(100));
    assert_eq!(fields.caps[0].name, CapName::MaxTokens);
    let options = fields.stream_options.as_ref().unwrap();
    let (at, wanted) = options.include_usage.clone().unwrap();
    assert_eq!((&body[at], wanted), ("false", false));
    assert!(!fields.wants_usage());
    assert!(body[..fields.prefix_end].ends_with("\"role\":\"user\"}"));
    assert!(body[fields.prefix_end..].starts_with(", {\"role\":\"user\"}"));
    assert_eq!(&body[fields.object_start - 1..fields.object_start], "{");
    assert_eq!(fields.text_bytes, body.len());
}

#[test]
fn escaped_names_and_repeated_fields_are_all_found() {
    let body = r#"{"model":"a","mod\u0065l":"b\u00e9","stream":true,"\u0073tream":null,"max_tokens":1,"max\u005ftokens":null}"#;
    let fields = ok(body);
    assert_eq!(fields.model.as_deref(), Some("bé"));
    let values: Vec<&str> = fields.models.iter().map(|at| &body[at.clone()]).collect();
    assert_eq!(values, ["\"a\"", r#""b\u00e9""#]);
    assert!(!fields.stream);
    let caps: Vec<Option<u64>> = fields.caps.iter().map(|cap| cap.tokens).collect();
    assert_eq!(caps, [Some(1), None]);
}

#[test]
fn look_alikes_inside_other_values_are_left_alone() {
    let fields = ok(
        r#"{"messages":[{"role":"user","content":"\"model\":\"x\"","model":"no","max_tokens":1}],"tools":[{"model":"no","stream":true,"function":{"parameters":{"max_tokens":5}}}],"metadata":{"model":"no","stream_options":{"include_usage":true}}}"#,
    );
    assert_eq!((fields.model, fields.models.len()), (None, 0));
    assert!(!fields.stream && fields.caps.is_empty() && fields.stream_options.is_none());
}

#[test]
fn gemini_caps_in_both_spellings() {
    let fields = ok(
        r#"{"contents":[{"parts":[]},{"role":"user"}],"generation_config":{"max_output_tokens":"7","candidateCount":2},"generationConfig":{"maxOutputTokens":9,"x":{"maxOutputTokens":1}},"n":1}"#,
    );
    let caps: Vec<_> = fields.caps.iter().map(|cap| (cap.name, cap.tokens)).collect();
    let name = CapName::GenerationConfig;
    assert_eq!(caps, [(name, Some(7)), (name, Some(9))]);
    assert_eq!(fields.n, Some(2));
    assert_eq!(fields.generation_configs.len(), 2);
    // Without a role it is the user's.
    assert_eq!(fields.prefix_end, r#"{"contents":[{"parts":[]}"#.len());
}

#[test]
fn of_several_caps_each_has_to_be_one() {
    use CapName::*;
    for (body, name, capped) in [
        (r#"{"max_tokens":9,"max_tokens":8}"#, MaxTokens, Some(9)),
        (r#"{"max_tokens":9,"max_tokens":null}"#, MaxTokens, None),
        (r#"{"max_tokens":null,"max_completion_tokens":3}"#, MaxCompletionTokens, Some(3)),
        (r#"{"max_tokens":9}"#, MaxOutputTokens, None),
        (r#"{"generationConfig":{"maxOutputTokens":9}}"#, GenerationConfig, Some(9)),
        (
            r#"{"generationConfig":{"maxOutputTokens":9},"generation_config":{}}"#,
            GenerationConfig,
            None,
        ),
        (
            r#"{"generationConfig":{},"generation_config":{"maxOutputTokens":9}}"#,
            GenerationConfig,
            None,
        ),
        (
            r#"{"generationConfig":{"maxOutputTokens":9,"max_output_tokens":7},"generation_config":{"maxOutputTokens":8}}"#,
            GenerationConfig,
            Some(9),
        ),
        (
            r#"{"generationConfig":{"maxOutputTokens":9},"generationConfig":null}"#,
            GenerationConfig,
            None,
        ),
    ] {
        assert_eq!(ok(body).capped(name), capped, "{body}");
    }
}

#[test]
fn odd_but_legal_json_is_taken() {
    for body in [
        "{}",
        " { } ",
        r#"{"seed":123456789012345678901234567890,"temperature":1E-400,"x":-0.0e+9}"#,
        r#"{"messages":[{"role":"user","content":"日本 \ud83d\ude00 \ud83d \u0000 "}]}"#,
        r#"{"a":[[],{},[{}],"",null,true,false]}"#,
        "{\"\":1,\"a\":\"\u{7f}\u{2028}\"}",
        r#"{"messages":"not a list","input":{"role":"user"},"contents":[[{"role":"user"}],7]}"#,
        r#"{"stream_options":null,"generationConfig":null,"n":null,"stream":null}"#,
    ] {
        ok(body);
    }
    assert!(ok(" { } ").empty_object);
    assert_eq!(ok(" { } ").object_start, 2);
}

#[test]
fn broken_json_is_refused_where_it_breaks() {
    for (body, offset) in [
        ("", 0),
        ("[]", 0),
        ("null", 0),
        ("\u{feff}{}", 0),
        ("{}x", 2),
        ("{} {}", 3),
        ("{}\0", 2),
        ("{\"a\":1,}", 7),
        ("{,}", 1),
        ("{\"a\" 1}", 5),
        ("{\"a\":[1,]}", 8),
        ("{\"a\":[1 2]}", 8),
        ("{\"a\":{\"b\":1]}", 11),
        ("{\"a\":01}", 6),
        ("{\"a\":+1}", 5),
        ("{\"a\":1.}", 7),
        ("{\"a\":.5}", 5),
        ("{\"a\":1e}", 7),
        ("{\"a\":-}", 6),
        ("{\"a\":NaN}", 5),
        ("{\"a\":tru}", 5),
        ("{'a':1}", 1),
        ("{\"a\":\"\\x\"}", 6),
        ("{\"a\":\"\\u12g4\"}", 6),
        ("{\"a\":\"x\ty\"}", 7),
        ("{\"a\":\"\0\"}", 6),
        ("{\"a\":1} // c", 8),
        ("{\"a\":/**/1}", 5),
        ("{\"a\\\":1}", 8),
    ] {
        let error = bad(body.as_bytes());
        assert_eq!((error.offset, error.field), (offset, None), "{body:?}: {error}");
    }
    for bytes in
        [b"{\"a\":\"\xff\"}".as_slice(), b"{\"a\":\"\xed\xa0\x80\"}", b"{\"a\":\"\xc0\xaf\"}"]
    {
        assert_eq!(bad(bytes), ScanError::syntax(6, "not UTF-8"));
    }
    assert_eq!(bad(b"{\"a\":1,}").to_string(), "invalid JSON at byte 7: a string was expected");
}

#[test]
fn unusable_values_name_their_field() {
    for (body, field) in [
        (r#"{"model":7}"#, "model"),
        (r#"{"model":null}"#, "model"),
        (r#"{"model":"\ud800"}"#, "model"),
        (r#"{"stream":"true"}"#, "stream"),
        (r#"{"stream":1}"#, "stream"),
        (r#"{"stream_options":true}"#, "stream_options"),
        (r#"{"stream_options":{"include_usage":1}}"#, "stream_options.include_usage"),
        (r#"{"max_tokens":-1}"#, "max_tokens"),
        (r#"{"max_tokens":1.5}"#, "max_tokens"),
        (r#"{"max_tokens":1e3}"#, "max_tokens"),
        (r#"{"max_tokens":"9"}"#, "max_tokens"),
        (r#"{"max_tokens":99999999999999999999}"#, "max_tokens"),
        (r#"{"max_completion_tokens":[]}"#, "max_completion_tokens"),
        (r#"{"max_output_tokens":{}}"#, "max_output_tokens"),
        (r#"{"generationConfig":{"maxOutputTokens":"x"}}"#, "generationConfig.maxOutputTokens"),
        (r#"{"generationConfig":[]}"#, "generationConfig"),
        (r#"{"max_token\u017f":1}"#, "max_tokens"),
        (r#"{"max_to\u212aens":1}"#, "max_tokens"),
        (r#"{"stream_options":{"Include_Usage":false}}"#, "stream_options.include_usage"),
        (r#"{"n":-2}"#, "n"),
        (r#"{"best_of":0.5}"#, "best_of"),
        (r#"{"background":true}"#, "background"),
        (r#"{"background":1}"#, "background"),
        (r#"{"background":0}"#, "background"),
        (r#"{"background":{}}"#, "background"),
        (r#"{"background":null,"background":"true"}"#, "background"),
        (r#"{"deferred":"true"}"#, "deferred"),
        (r#"{"deferred":[true]}"#, "deferred"),
    ] {
        assert_eq!(bad(body.as_bytes()).field, Some(field), "{body}");
    }
    assert_eq!(bad(br#"{"n":0.5}"#).to_string(), "`n` must be a whole number (at byte 5)");
    ok(r#"{"background":false,"deferred":null}"#);
    assert_eq!(bad(br#"{"background":farce}"#).field, None);
}

#[test]
fn depth_is_bounded_and_costs_no_stack() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let nested = |depth: usize| {
            let inner = if open == "[" { "" } else { "1" };
            format!("{{\"x\":{}{inner}{}}}", open.repeat(depth), close.repeat(depth))
        };
        ok(&nested(255));
        let error = bad(nested(256).as_bytes());
        assert_eq!(error.what, "nested deeper than 256 levels");
        bad(nested(10_000).as_bytes());
        bad(nested(1_000_000).as_bytes());
    }
    let deep = "[".repeat(254);
    let shut = "]".repeat(254);
    bad(format!("{{\"messages\":[{{\"x\":{deep}{shut}}}]}}").as_bytes());
    bad(format!("{{\"stream_options\":{{\"x\":{deep}[{shut}]}}}}").as_bytes());
    ok(&format!("{{\"stream_options\":{{\"x\":{deep}{shut}}}}}"));
}

#[test]
fn a_body_cut_anywhere_is_an_error() {
    let body = r#"{"model":"a\n","messages":[{"role":"user","content":"é\u00e9 [\"x\"]"}],"max_tokens":12,"stream":true,"stream_options":{"include_usage":false},"generationConfig":{"maxOutputTokens":1.0e2"#;
    for at in 0..body.len() {
        bad(&body.as_bytes()[..at]);
    }
    let body = r#"{"model":"m","stream":true,"x":[1,{"y":null}]}"#;
    ok(body);
    for at in 0..body.len() {
        bad(&body.as_bytes()[..at]);
    }
}
