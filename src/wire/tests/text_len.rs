//! What is counted of a request.

use serde_json::json;

use crate::wire::text_len::{SHOWN, Shown, contents, walk};

#[test]
fn pictures_are_counted_and_their_bytes_are_not() {
    let data = "A".repeat(100_000);
    let url = format!("data:image/png;base64,{data}");
    let body = json!({"messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}},
        {"image_url": {"url": url}},
        {"type": "text", "text": "five"},
    ]}]});
    let found = contents(body.to_string().as_bytes()).unwrap();
    assert_eq!((found.pictures, found.data), (4, 0));
    assert!(found.text < 400, "{found:?}");
}

#[test]
fn what_is_said_beside_a_picture_is_text() {
    let long = "AbCdEfGh1".repeat(1_000);
    let body = json!({"messages": [{"role": "user", "type": "image", "content": long}]});
    let found = contents(body.to_string().as_bytes()).unwrap();
    assert_eq!((found.pictures, found.data), (1, 9_000));
}

/// A picture stands for its own data only.
#[test]
fn what_stands_beside_a_picture_is_not_free() {
    let (prose, sound) = (format!("data: {}", "word ".repeat(1_000)), "A".repeat(5_000));
    for part in [
        json!({"image": 0, "refusal": prose}),
        json!({"image": 0, "reasoning_content": prose, "content": "Hi"}),
        json!({"type": "image", "source": {"url": "https://a"}, "tool_calls": [{"id": prose}]}),
        json!({"image": 0, "input_audio": {"data": sound, "format": "mp3"}}),
        json!({"image": 0, "inlineData": {"mimeType": "audio/flac", "data": sound}}),
        json!({"image_url": [prose]}),
        json!({"image": 0, "args": {"data": prose}}),
    ] {
        let body = json!({"messages": [part]}).to_string();
        let found = contents(body.as_bytes()).unwrap();
        assert_eq!(found.pictures, 1, "{body:.80}");
        assert!(found.text + found.data >= 5_000, "{found:?}: {body:.80}");
    }
}

#[test]
fn what_a_tool_was_given_is_text_whatever_it_looks_like() {
    let long = "AbCdEfGh1".repeat(1_000);
    for body in [
        json!({"content": [{"input": {"type": "image", "x": long}, "type": "tool_use"}]}),
        json!({"input": [{"input": long, "type": "custom_tool_call"}]}),
        json!({"functionCall": {"args": {"mimeType": "image/png", "x": long}}}),
        json!({"functionResponse": {"response": {"type": "image", "x": long}}}),
    ] {
        let found = contents(body.to_string().as_bytes()).unwrap();
        assert_eq!((found.pictures, found.data), (0, 0), "{body}");
        assert!(found.text > 9_000, "{body}");
    }
}

/// A model reads it, too.
#[test]
fn what_json_is_made_of_counts() {
    let list = |item: &str| vec![item; 1_000].join(",");
    let call =
        |input: String| format!(r#"{{"content": [{{"type": "tool_use", "input": {input}}}]}}"#);
    for (body, least) in [
        (call(format!(r#"{{"x": [{}]}}"#, list("true"))), 5_000),
        (call(format!(r#"{{"x": [{}]}}"#, list("[]"))), 3_000),
        (call(format!(r#"{{"x": [{}]}}"#, list("1"))), 3_000),
        (format!(r#"{{"chat_template_kwargs": {{"x": [{}]}}}}"#, list("null")), 5_000),
    ] {
        let found = contents(body.as_bytes()).unwrap();
        assert!(found.text + found.data >= least, "{found:?}: {body:.80}");
        assert!(found.text + found.data <= body.len() as u64 + 1_100, "{found:?}: {body:.80}");
    }
}

#[test]
fn a_long_number_counts_as_it_is_written() {
    let body = format!(r#"{{"prompt": [1{}, 0.1{}]}}"#, "0".repeat(300), "1".repeat(100));
    assert_eq!(contents(body.as_bytes()).unwrap().data, 301 + 103 + 2);
}

#[test]
fn a_member_that_comes_twice_counts_twice() {
    let twice = format!(r#"{{"prompt": "{}", "prompt": "\"c:d"}}"#, "x".repeat(400));
    assert_eq!(contents(twice.as_bytes()).unwrap().text, 6 + 400 + 6 + 4);
    let sound = "A".repeat(5_000);
    for (first, last) in [("image", "x"), ("x", "image")] {
        let part =
            format!(r#"{{"type": "{first}", "source": {{"data": "{sound}"}}, "type": "{last}"}}"#);
        let body = format!(r#"{{"messages": [{part}]}}"#);
        let found = contents(body.as_bytes()).unwrap();
        assert_eq!((found.pictures, found.data), (1, 5_000));
    }
}

/// What the parsers of some providers refuse, and those of others take.
#[test]
fn odd_bodies_are_counted_like_others() {
    let (open, close) = ("[".repeat(200), "]".repeat(200));
    let picture = r#"{"image_url": {"url": "https://a"}}"#;
    for odd in ["1e999", r#""\ud800""#, r#"{"\udc00\udc00": 1}"#, &format!("{open}{close}")] {
        for member in ["x", "args"] {
            let body = format!(r#"{{"messages": [{picture}], "{member}": {odd}}}"#);
            let found = contents(body.as_bytes()).unwrap();
            assert_eq!(found.pictures, 1, "{body}");
            let counted = found.text + found.data;
            assert!((30..=body.len() as u64 + 200).contains(&counted), "{found:?}: {body}");
        }
    }
    let halves = |count| format!(r#"{{"messages": "{}"}}"#, r"\udc00".repeat(count));
    assert!(contents(halves(100).as_bytes()).unwrap().text >= 300);
    let deep = format!("{}{}", "[".repeat(257), "]".repeat(257));
    assert_eq!(contents(deep.as_bytes()), None);
}

/// However long it is, of what a tool was given no more is kept than is shown at once.
#[test]
fn json_is_shown_in_pieces() {
    let body = format!(r#"{{"args": [{}[1]]}}"#, r#"{"":0},"#.repeat(50_000));
    let mut pieces = Vec::new();
    let found = walk(body.as_bytes(), |shown| {
        if let Shown::Json(json) = shown {
            pieces.push(json.len());
        }
    });
    assert!(pieces.len() > 5 && pieces.iter().all(|len| *len < SHOWN + 10), "{pieces:?}");
    assert_eq!(found.unwrap().text, 4 + pieces.iter().sum::<usize>() as u64);
}

#[test]
fn only_what_is_said_has_pictures() {
    let prose = format!("data: {}", "word ".repeat(1_000));
    for body in [
        json!({"image": 0, "prompt": prose}),
        json!({"tools": [{"function": {"image": 0, "description": prose}}]}),
    ] {
        let found = contents(body.to_string().as_bytes()).unwrap();
        assert_eq!(found.pictures, 0, "{found:?}");
        assert!(found.text + found.data > 5_000, "{found:?}");
    }
}

#[test]
fn numbers_may_be_tokens() {
    let body = json!({"prompt": [1, 22, 50_256]}).to_string();
    assert_eq!(contents(body.as_bytes()).unwrap().data, 8 + 3);
}

#[test]
fn other_data_counts_by_its_bytes() {
    let body = json!({"input_audio": {"data": "A".repeat(1000), "format": "wav"}});
    assert_eq!(contents(body.to_string().as_bytes()).unwrap().data, 1000);
}
