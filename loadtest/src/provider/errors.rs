//! Error bodies, in the words of each provider.

use super::ask::{Ask, Dialect};
use super::feed::{Feed, Framing, Part};
use super::json::{Json, Maybe, Null, obj};
use super::script::Script;

/// The error object of a dialect for a status.
pub(crate) fn body(
    dialect: Dialect,
    status: u16,
    message: &str,
    seq: u64,
    script: &Script,
) -> Json {
    match dialect {
        Dialect::OpenAi => openai(status, message),
        Dialect::Anthropic => anthropic(status, message, seq),
        Dialect::Gemini => gemini(status, message, script.header_value("retry-after")),
    }
}

/// What a status means, in one sentence.
pub(crate) fn sentence(status: u16, model: &str) -> String {
    match status {
        400 => "The request is not valid.".to_owned(),
        401 => "Incorrect API key provided: sim-****.".to_owned(),
        403 => "Country, region, or territory not supported.".to_owned(),
        404 => format!("The model '{model}' does not exist or you do not have access to it."),
        429 => format!("Rate limit reached for {model}. Please try again later."),
        503 | 529 => "Overloaded".to_owned(),
        500..600 => "The server had an error processing your request.".to_owned(),
        _ => format!("Scripted status {status}."),
    }
}

fn openai(status: u16, message: &str) -> Json {
    let (kind, code) = match status {
        401 => ("invalid_request_error", Some("invalid_api_key")),
        403 => ("request_forbidden", Some("unsupported_country_region_territory")),
        404 => ("invalid_request_error", Some("model_not_found")),
        429 => ("tokens", Some("rate_limit_exceeded")),
        503 => ("service_unavailable_error", Some("server_is_overloaded")),
        500..600 => ("server_error", None),
        _ => ("invalid_request_error", None),
    };
    let error = obj! { "message": message, "type": kind, "param": Null, "code": code };
    obj! { "error": error }
}

fn anthropic(status: u16, message: &str, seq: u64) -> Json {
    let kind = match status {
        401 => "authentication_error",
        402 => "billing_error",
        403 => "permission_error",
        404 => "not_found_error",
        409 => "conflict_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        504 => "timeout_error",
        529 => "overloaded_error",
        500..600 => "api_error",
        _ => "invalid_request_error",
    };
    obj! {
        "type": "error",
        "error": obj! { "type": kind, "message": message },
        "request_id": format!("req_sim{seq}"),
    }
}

fn gemini(status: u16, message: &str, retry_after: Option<&str>) -> Json {
    let name = match status {
        401 => "UNAUTHENTICATED",
        403 => "PERMISSION_DENIED",
        404 => "NOT_FOUND",
        429 => "RESOURCE_EXHAUSTED",
        500 => "INTERNAL",
        503 => "UNAVAILABLE",
        504 => "DEADLINE_EXCEEDED",
        _ => "INVALID_ARGUMENT",
    };
    let details = retry_after.map(|seconds| {
        vec![obj! {
            "@type": "type.googleapis.com/google.rpc.RetryInfo",
            "retryDelay": format!("{seconds}s"),
        }]
    });
    let error =
        obj! { "code": status, "message": message, "status": name, "details": Maybe(details) };
    obj! { "error": error }
}

/// A key that is not accepted: Gemini says so with 400.
pub(crate) fn bad_key(dialect: Dialect, seq: u64) -> (u16, Json) {
    match dialect {
        Dialect::OpenAi => (401, openai(401, &sentence(401, ""))),
        Dialect::Anthropic => (401, anthropic(401, "invalid x-api-key", seq)),
        Dialect::Gemini => {
            let message = "API key not valid. Please pass a valid API key.";
            let reason = obj! {
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": "API_KEY_INVALID",
                "domain": "googleapis.com",
            };
            let error = obj! {
                "code": 400u16, "message": message, "status": "INVALID_ARGUMENT", "details": [reason],
            };
            (400, obj! { "error": error })
        }
    }
}

/// The in-band error of a stream that has already begun; `written` events precede it.
pub(crate) fn event(ask: &Ask, named: bool, written: usize, seq: u64) -> Feed {
    const MESSAGE: &str = "The server had an error while it was working on this request.";
    match (ask.dialect, named) {
        (Dialect::OpenAi, true) => {
            let error = obj! {
                "type": "service_unavailable_error", "code": "server_is_overloaded",
                "message": MESSAGE, "param": Null,
            };
            let mut feed = Feed::new(Framing::Named);
            let sequence = written as u64;
            feed.event(
                Part::Tail,
                "error",
                &obj! { "type": "error", "error": error, "sequence_number": sequence },
            );
            feed
        }
        (Dialect::OpenAi, false) => {
            let mut feed = Feed::new(Framing::Data);
            feed.event(Part::Tail, "", &openai(500, MESSAGE));
            feed.bytes(Part::Tail, "data: [DONE]\n\n");
            feed
        }
        (Dialect::Anthropic, _) => {
            let mut feed = Feed::new(Framing::Named);
            feed.event(Part::Tail, "error", &anthropic(529, "Overloaded", seq));
            feed
        }
        (Dialect::Gemini, _) => {
            let error = gemini(503, "The model is overloaded. Please try again later.", None);
            let mut feed = Feed::new(Framing::DataCrlf);
            if ask.sse {
                feed.event(Part::Tail, "", &error);
            } else {
                feed.bytes(Part::Tail, format!(",\r\n{}]\r\n", error.0));
            }
            feed
        }
    }
}
