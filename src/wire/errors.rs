//! What an error of the gateway looks like in the client's dialect.

use serde_json::{Value, json};

use crate::units::Dialect;

use super::route::Endpoint;

/// An error to be told to a client.
#[derive(Debug, Clone, Copy)]
pub struct ErrorText<'a> {
    /// The HTTP status.
    pub status: u16,
    /// Our own name for it, e.g. `budget_exceeded`.
    pub code: &'a str,
    /// What happened and what to do.
    pub message: &'a str,
    /// The field of the request that is to blame.
    pub param: Option<&'a str>,
    /// The id that is also in the `x-request-id` header and in the log.
    pub request_id: &'a str,
}

/// The body of an error answer: JSON.
pub fn body(dialect: Dialect, e: &ErrorText) -> Vec<u8> {
    value(dialect, e).to_string().into_bytes()
}

fn value(dialect: Dialect, e: &ErrorText) -> Value {
    match dialect {
        Dialect::OpenAi => json!({ "error": openai(e) }),
        Dialect::Anthropic => json!({
            "type": "error",
            "error": {
                "type": anthropic_type(e.status),
                "message": e.message,
                "details": { "error_code": e.code },
            },
            "request_id": e.request_id,
        }),
        Dialect::Gemini => json!({
            "error": {
                "code": e.status,
                "message": e.message,
                "status": gemini_status(e.status),
            },
        }),
    }
}

fn openai(e: &ErrorText) -> Value {
    json!({
        "message": e.message,
        "type": openai_type(e),
        "param": e.param,
        "code": e.code,
    })
}

fn openai_type(e: &ErrorText) -> &'static str {
    match e.status {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        429 if e.code == "budget_exceeded" => "insufficient_quota",
        429 => "rate_limit_error",
        500.. => "server_error",
        _ => "invalid_request_error",
    }
}

fn anthropic_type(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        402 => "billing_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 | 529 => "overloaded_error",
        504 => "timeout_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    }
}

fn gemini_status(status: u16) -> &'static str {
    match status {
        401 => "UNAUTHENTICATED",
        403 => "PERMISSION_DENIED",
        404 => "NOT_FOUND",
        429 => "RESOURCE_EXHAUSTED",
        503 => "UNAVAILABLE",
        504 => "DEADLINE_EXCEEDED",
        500.. => "INTERNAL",
        _ => "INVALID_ARGUMENT",
    }
}

/// The event that ends a stream that broke, wherever it broke.
///
/// It begins with two line ends: the first ends a line that was cut, the second its event.
/// Where the meter still knows the place, `stream_event_after` is gentler: an OpenAI SDK
/// fails on an event that has a name but no data.
pub fn stream_event(endpoint: Endpoint, e: &ErrorText) -> Vec<u8> {
    stream_event_after(b"\n\n", endpoint, e)
}

/// The event that ends a stream that broke, after `closing` (see `Meter::closing`).
///
/// There is no `[DONE]` after it: that would look like success.
pub fn stream_event_after(closing: &[u8], endpoint: Endpoint, e: &ErrorText) -> Vec<u8> {
    let (name, value) = match endpoint {
        Endpoint::Messages | Endpoint::CountTokens => {
            ("event: error\n", value(Dialect::Anthropic, e))
        }
        Endpoint::GeminiGenerate | Endpoint::GeminiStream => ("", value(Dialect::Gemini, e)),
        Endpoint::ChatCompletions | Endpoint::Completions => ("", value(Dialect::OpenAi, e)),
        _ => ("event: error\n", named(e)),
    };
    [closing, format!("{name}data: {value}\n\n").as_bytes()].concat()
}

/// An `error` event of the Responses API, in both of its forms: the typed one is flat, but the
/// SDKs only raise what has an `error` member.
fn named(e: &ErrorText) -> Value {
    json!({
        "type": "error",
        "code": e.code,
        "message": e.message,
        "param": e.param,
        "sequence_number": 0,
        "error": openai(e),
    })
}
