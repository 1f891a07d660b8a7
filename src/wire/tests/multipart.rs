use bytes::Bytes;
use proptest::prelude::*;

use crate::wire::multipart::{boundary, edits, scan};
use crate::wire::splice::splice;

const FILE: &str = "Content-Disposition: form-data; name=\"file\"; filename=\"a;\\\"name=model\\\".wav\"\r\nContent-Type: audio/wav\r\n\r\nRIFF\r\n--\r\n\u{0}--B";

fn field(name: &str, value: &str) -> String {
    format!("content-disposition: form-data; name=\"{name}\"\r\n\r\n{value}")
}

fn form(parts: &[&str]) -> String {
    let parts: String = parts.iter().map(|part| format!("--B7\r\n{part}\r\n")).collect();
    format!("{parts}--B7--\r\n")
}

fn with_model(body: &str, model: &str) -> String {
    let body = Bytes::copy_from_slice(body.as_bytes());
    let edits = edits(&scan(&body, "B7").unwrap(), "B7", model);
    String::from_utf8(splice(&body, &edits).to_vec()).unwrap()
}

#[test]
fn boundaries() {
    for (header, wanted) in [
        ("multipart/form-data; boundary=B7", Some("B7")),
        ("Multipart/Form-Data;charset=utf-8;BOUNDARY=\"a b:c\" ; x=y", Some("a b:c")),
        ("multipart/form-data; x=\"; boundary=no\"; boundary=yes", Some("yes")),
        ("multipart/form-data; boundary=", None),
        ("multipart/form-data; boundary=a; boundary=b", None),
        ("multipart/form-data; boundary=\"a", None),
        ("multipart/form-data; boundary=\"a\\\"\"", None),
        ("multipart/form-data; boundary=a\u{e9}", None),
        ("multipart/form-data; boundary=\"a \"", None),
        ("multipart/form-data", None),
        ("multipart/mixed; boundary=a", None),
        ("application/json; boundary=a", None),
    ] {
        assert_eq!(boundary(header).as_deref(), wanted, "{header}");
    }
    let long = |n: usize| boundary(&format!("multipart/form-data; boundary={}", "x".repeat(n)));
    assert!(long(70).is_some() && long(71).is_none());
}

#[test]
fn the_model_before_and_after_the_file() {
    let (model, stream) = (field("model", "whisper-1"), field("stream", "true"));
    for parts in [[FILE, &*model, &*stream], [&*model, FILE, &*stream], [&*stream, &*model, FILE]] {
        let body = form(&parts);
        let found = scan(body.as_bytes(), "B7").unwrap();
        assert_eq!(found.model.as_deref(), Some("whisper-1"));
        assert_eq!(&body[found.models[0].clone()], "whisper-1");
        assert!(found.stream);
        assert_eq!(found.file_bytes, "RIFF\r\n--\r\n\u{0}--B".len());
        assert_eq!(with_model(&body, "whisper-1"), body);
        assert_eq!(with_model(&body, "x"), body.replace("whisper-1", "x"));
    }
}

#[test]
fn repeated_and_missing_models() {
    let (one, two) = (field("model", "a"), field("model", "b"));
    let body = form(&[&one, FILE, &two]);
    assert_eq!(scan(body.as_bytes(), "B7").unwrap().model.as_deref(), Some("b"));
    assert_eq!(with_model(&body, "b"), form(&[&two, FILE, &two]));
    let added = "Content-Disposition: form-data; name=\"model\"\r\n\r\nm";
    assert_eq!(with_model(&form(&[FILE]), "m"), form(&[added, FILE]));
    assert_eq!(
        with_model(&format!("\r\n{}", form(&[FILE])), "m"),
        format!("\r\n{}", form(&[added, FILE]))
    );
}

#[test]
fn forms_that_could_be_read_in_two_ways_are_refused() {
    let model = field("model", "a");
    for body in [
        String::new(),
        "--B7".to_owned(),
        "--B7--".repeat(2),
        form(&[]).replace("--B7--", "--B8--"),
        format!("preamble\r\n{}", form(&[&model])),
        format!("{}more", form(&[&model])),
        form(&[&model]).replace("--B7--\r\n", ""),
        form(&[&model]).replace("\r\n", "\n"),
        form(&["no head"]),
        form(&["content-type: text/plain\r\n\r\na"]),
        form(&["content-disposition: form-data\r\n\r\na"]),
        form(&["content-disposition: form-data; name=\"model\"; name=\"x\"\r\n\r\na"]),
        form(&[
            "content-disposition: form-data; name=\"x\"\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\na",
        ]),
        form(&["content-disposition: form-data; name=\"model\"; filename=\"m\"\r\n\r\na"]),
        form(&[
            "content-disposition: form-data; name=\"model\"\r\ncontent-transfer-encoding: base64\r\n\r\nYQ==",
        ]),
        form(&[&field("model", "a\r\nb")]),
        form(&["content-disposition: form-data;\r\n name=\"model\"\r\n\r\na"]),
        form(&["content-disposition: form-data; name=\"x\"; name*=utf-8''model\r\n\r\na"]),
        form(&[&model, &field("url", "https://example.com/ten-hours.mp3")]),
        form(&[&model, &field("file", "https://example.com/ten-hours.mp3")]),
        form(&[&model, &field("file_id", "file_1")]),
        form(&[&field("x", "a\r\n--B7x\r\nb")]),
        form(&[&field("x", "a\r\n--B7 \r\nb")]),
    ] {
        scan(body.as_bytes(), "B7").expect_err(&body);
    }
    let bad = [b"--B7\r\n".as_slice(), field("model", "").as_bytes(), b"\xff\r\n--B7--"].concat();
    assert_eq!(scan(&bad, "B7").unwrap_err().field, Some("model"));
    let error = scan(b"x", "B7").unwrap_err();
    assert_eq!(
        error.to_string(),
        "invalid multipart form at byte 0: the form's boundary was expected"
    );
}

#[test]
fn a_form_cut_anywhere_is_an_error() {
    let body = form(&[FILE, &field("model", "a")]);
    for at in 0..body.len() - 2 {
        assert!(scan(&body.as_bytes()[..at], "B7").is_err(), "{at}");
    }
}

proptest! {
    #![proptest_config(super::fixtures::random(512))]

    #[test]
    fn any_bytes_are_survived(parts in proptest::collection::vec(
        prop_oneof![
            Just(b"--B7".to_vec()), Just(b"\r\n".to_vec()), Just(b"--".to_vec()), Just(b"\r\n\r\n".to_vec()),
            Just(b"content-disposition: form-data; name=\"model\"".to_vec()), Just(b"=\";".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..5),
        ],
        0..12,
    )) {
        let body = Bytes::from(parts.concat());
        if let Ok(form) = scan(&body, "B7") {
            let out = splice(&body, &edits(&form, "B7", "wanted"));
            let again = scan(&out, "B7").unwrap();
            prop_assert_eq!(again.model.as_deref(), Some("wanted"));
        }
    }

    #[test]
    fn any_header_is_survived(header: String) {
        let _ = boundary(&format!("multipart/form-data;{header}"));
    }
}
