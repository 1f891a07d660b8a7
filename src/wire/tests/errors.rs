use serde_json::Value;

use crate::units::Dialect;
use crate::wire::errors::{ErrorText, body, stream_event, stream_event_after};
use crate::wire::meter::{End, Meter};
use crate::wire::route::Endpoint;

use super::fixtures::play;

const MESSAGE: &str = "no \"more\"\nthan 5 € – \u{1}";

fn error(status: u16, code: &str) -> ErrorText<'_> {
    ErrorText { status, code, message: MESSAGE, param: Some("max_tokens"), request_id: "req-1" }
}

fn json(dialect: Dialect, status: u16, code: &str) -> Value {
    serde_json::from_slice(&body(dialect, &error(status, code))).unwrap()
}

#[test]
fn bodies_in_each_dialect() {
    let openai = json(Dialect::OpenAi, 400, "invalid_request");
    assert_eq!(openai["error"]["message"], MESSAGE);
    assert_eq!(openai["error"]["param"], "max_tokens");
    assert_eq!(openai["error"]["code"], "invalid_request");
    let anthropic = json(Dialect::Anthropic, 400, "invalid_request");
    assert_eq!(anthropic["type"], "error");
    assert_eq!(anthropic["request_id"], "req-1");
    assert_eq!(anthropic["error"]["details"]["error_code"], "invalid_request");
    assert_eq!(anthropic["error"]["message"], MESSAGE);
    let gemini = json(Dialect::Gemini, 404, "model_not_found");
    assert_eq!(gemini["error"]["code"], 404);
    assert_eq!(gemini["error"]["message"], MESSAGE);
}

#[test]
fn types_by_status() {
    for (status, code, openai, anthropic, gemini) in [
        (400, "x", "invalid_request_error", "invalid_request_error", "INVALID_ARGUMENT"),
        (401, "x", "authentication_error", "authentication_error", "UNAUTHENTICATED"),
        (403, "x", "permission_error", "permission_error", "PERMISSION_DENIED"),
        (404, "x", "not_found_error", "not_found_error", "NOT_FOUND"),
        (411, "x", "invalid_request_error", "invalid_request_error", "INVALID_ARGUMENT"),
        (413, "x", "invalid_request_error", "request_too_large", "INVALID_ARGUMENT"),
        (429, "x", "rate_limit_error", "rate_limit_error", "RESOURCE_EXHAUSTED"),
        (429, "budget_exceeded", "insufficient_quota", "rate_limit_error", "RESOURCE_EXHAUSTED"),
        (502, "x", "server_error", "api_error", "INTERNAL"),
        (503, "x", "server_error", "overloaded_error", "UNAVAILABLE"),
        (504, "x", "server_error", "timeout_error", "DEADLINE_EXCEEDED"),
    ] {
        assert_eq!(json(Dialect::OpenAi, status, code)["error"]["type"], openai);
        assert_eq!(json(Dialect::Anthropic, status, code)["error"]["type"], anthropic);
        assert_eq!(json(Dialect::Gemini, status, code)["error"]["status"], gemini);
    }
}

/// Our own meter must read our own errors as failures: so do the SDKs, by the same rules.
#[test]
fn a_stream_that_broke_anywhere_ends_in_a_failure() {
    for &(name, endpoint, bytes) in super::fixtures::STREAMS {
        if name.contains("error") || name.contains("failed") {
            continue;
        }
        for at in 0..=bytes.len() {
            let mut meter = Meter::stream(endpoint, false);
            meter.chunk(bytes[..at].to_vec().into());
            let error = error(502, "upstream_error");
            for event in [
                stream_event(endpoint, &error),
                stream_event_after(meter.closing(), endpoint, &error),
            ] {
                assert!(!event.windows(6).any(|found| found == b"[DONE]"));
                let report = play(Meter::stream(endpoint, false), &[&bytes[..at], &event]).1;
                match report.end {
                    End::Failed { message, .. } => assert_eq!(message, MESSAGE, "{name} at {at}"),
                    other => panic!("{name} at {at}: {other:?}"),
                }
            }
        }
    }
}

#[test]
fn events_are_one_line_of_data() {
    for endpoint in Endpoint::ALL {
        let event = stream_event_after(b"", endpoint, &error(504, "upstream_timeout"));
        let event = String::from_utf8(event).unwrap();
        let named = event.starts_with("event: error\ndata: {");
        assert!(named || event.starts_with("data: {"), "{event}");
        assert!(event.ends_with("}\n\n"));
        let json: Value = serde_json::from_str(event.split_once("data: ").unwrap().1).unwrap();
        // The OpenAI and Anthropic SDKs raise what has this member.
        assert_eq!(json["error"]["message"], MESSAGE);
        assert_eq!(named, json["type"] == "error", "{event}");
    }
}
