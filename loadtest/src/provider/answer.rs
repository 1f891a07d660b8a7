//! From a request and a script to the exact bytes of the answer.

use bytes::Bytes;

use super::ask::{Ask, Dialect, Endpoint};
use super::feed::{self, Part, Piece};
use super::generation::Generation;
use super::json::Json;
use super::script::{Cut, Script};
use super::{anthropic, errors, gemini, openai, others, responses, text};

const EVENTS: &str = "text/event-stream; charset=utf-8";
const JSON: &str = "application/json; charset=UTF-8";
const SPEECH_CHUNKS: usize = 4;

/// An answer, ready to be paced.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) pieces: Vec<Piece>,
    /// Sent without a content-length.
    pub(crate) streamed: bool,
    /// Input tokens billed with the first byte of the body; `None` bills nothing.
    pub(crate) input: Option<u64>,
}

/// Body pieces before headers are added.
struct Body {
    content_type: String,
    pieces: Vec<Piece>,
    streamed: bool,
    input: Option<u64>,
}

/// The answer a script demands.
pub(crate) fn build(ask: &Ask, script: &Script, seq: u64) -> Answer {
    let status = script.status.unwrap_or(200);
    let body = body(ask, script, status, seq);
    let status = match &body {
        Ok(_) => status,
        Err((status, _)) => *status,
    };
    let body = body.unwrap_or_else(|(_, json)| whole("application/json", json.0, 0, None, script));
    finish(ask.dialect, status, body, script, seq)
}

/// The answer to a key that is not accepted.
pub(crate) fn refusal(ask: &Ask, seq: u64) -> Answer {
    let script = Script::default();
    let (status, json) = errors::bad_key(ask.dialect, seq);
    let body = whole("application/json", json.0, 0, None, &script);
    finish(ask.dialect, status, body, &script, seq)
}

/// The answer to a request the provider cannot follow.
pub(crate) fn complaint(ask: &Ask, message: &str, seq: u64) -> Answer {
    let script = Script::default();
    let json = errors::body(ask.dialect, 400, message, seq, &script);
    let body = whole("application/json", json.0, 0, None, &script);
    finish(ask.dialect, 400, body, &script, seq)
}

fn body(ask: &Ask, script: &Script, status: u16, seq: u64) -> Result<Body, (u16, Json)> {
    let given = script.input.unwrap_or(ask.input_tokens);
    let input = script.succeeds().then_some(given);
    if let Some(chunks) = script.raw_bytes() {
        return Ok(raw(chunks, input, script));
    }
    if let Some(text) = &script.body {
        let output = script.output.unwrap_or(0);
        return Ok(whole("application/json", text.clone(), output, input, script));
    }
    if !script.succeeds() {
        let message = errors::sentence(status, &ask.model);
        return Err((status, errors::body(ask.dialect, status, &message, seq, script)));
    }
    if let Some(message) = ask.complaint {
        return Err((400, errors::body(ask.dialect, 400, message, seq, script)));
    }
    if script.error_event.is_some() && !ask.stream {
        let message = errors::sentence(500, &ask.model);
        return Err((status, errors::body(ask.dialect, 500, &message, seq, script)));
    }
    if let Some(plain) = others::answer(ask, script, seq) {
        return Ok(other(ask, script, plain));
    }
    let made = Generation::new(ask, script, seq);
    if ask.stream {
        return match events(ask, script, &made) {
            // Gemini's stream is an array, unless it is asked for events.
            Some(pieces) if ask.endpoint == Endpoint::Generate && !ask.sse => {
                Ok(streamed(JSON, pieces, input))
            }
            Some(pieces) => Ok(streamed(EVENTS, pieces, input)),
            None => Err(unknown(ask, seq, script)),
        };
    }
    let json = match ask.endpoint {
        Endpoint::Chat | Endpoint::Completions => openai::whole(ask, &made),
        Endpoint::Responses => responses::whole(&made),
        Endpoint::Messages => anthropic::whole(&made),
        Endpoint::Generate => gemini::whole(&made),
        _ => return Err(unknown(ask, seq, script)),
    };
    Ok(whole("application/json", json.0, made.usage.output, input, script))
}

fn unknown(ask: &Ask, seq: u64, script: &Script) -> (u16, Json) {
    let message = "Unknown request URL. Please check the URL for typos.";
    (404, errors::body(ask.dialect, 404, message, seq, script))
}

fn events(ask: &Ask, script: &Script, made: &Generation) -> Option<Vec<Piece>> {
    let feed = match ask.endpoint {
        Endpoint::Chat | Endpoint::Completions => openai::stream(ask, made),
        Endpoint::Responses => responses::stream(made),
        Endpoint::Messages => anthropic::stream(made),
        Endpoint::Generate => gemini::stream(ask, made),
        _ => return None,
    };
    let mut pieces = feed.pieces;
    if let Some(chunks) = script.error_event {
        feed::keep_content(&mut pieces, chunks);
        let named = ask.endpoint == Endpoint::Responses;
        let error = errors::event(ask, named, pieces.len(), made.seq);
        pieces.extend(error.pieces);
    } else if script.truncate {
        feed::without_tail(&mut pieces);
    }
    if let Some(size) = script.split {
        pieces = feed::split(pieces, size);
    }
    Some(pieces)
}

fn raw(chunks: Vec<Bytes>, input: Option<u64>, script: &Script) -> Body {
    let (output, count) = (script.output.unwrap_or(0), chunks.len());
    let piece = |(at, bytes)| Piece { bytes, part: Part::Content(text::share(output, at, count)) };
    let mut pieces: Vec<Piece> = chunks.into_iter().enumerate().map(piece).collect();
    if let Some(size) = script.split {
        pieces = feed::split(pieces, size);
    }
    streamed(EVENTS, pieces, input)
}

fn other(ask: &Ask, script: &Script, plain: others::Plain) -> Body {
    let free = matches!(
        ask.endpoint,
        Endpoint::Models
            | Endpoint::Moderations
            | Endpoint::CountTokens
            | Endpoint::GeminiCountTokens
    );
    let input = (!free).then_some(plain.usage.input);
    if ask.endpoint != Endpoint::Speech {
        return whole(plain.content_type, plain.bytes, plain.usage.output, input, script);
    }
    // Speech is sent while it is made: no length is known.
    let chunks = script.chunks.unwrap_or(SPEECH_CHUNKS).max(1);
    let size = plain.bytes.len().div_ceil(chunks).max(1);
    streamed(plain.content_type, cut_up(plain.bytes, size, plain.usage.output), input)
}

fn streamed(content_type: &str, pieces: Vec<Piece>, input: Option<u64>) -> Body {
    Body { content_type: content_type.to_owned(), pieces, streamed: true, input }
}

/// A body with a length: one piece, unless it is to be split or cut.
fn whole(
    content_type: &str,
    bytes: impl Into<Bytes>,
    output: u64,
    input: Option<u64>,
    script: &Script,
) -> Body {
    let mut bytes = bytes.into();
    if script.truncate {
        bytes.truncate(bytes.len() / 2);
    }
    let size = match (script.split, script.cut) {
        (Some(size), _) => size.max(1),
        // Something must be missing after the cut.
        (None, Some(Cut::After(n))) => (bytes.len() / (n + 1)).max(1),
        (None, _) => bytes.len().max(1),
    };
    Body {
        content_type: content_type.to_owned(),
        pieces: cut_up(bytes, size, output),
        streamed: false,
        input,
    }
}

fn cut_up(bytes: Bytes, size: usize, output: u64) -> Vec<Piece> {
    let count = bytes.len().div_ceil(size);
    let piece = |at: usize| Piece {
        bytes: bytes.slice(at * size..bytes.len().min((at + 1) * size)),
        part: Part::Content(text::share(output, at, count)),
    };
    (0..count).map(piece).collect()
}

fn finish(dialect: Dialect, status: u16, body: Body, script: &Script, seq: u64) -> Answer {
    let content_type = script.content_type.clone().unwrap_or(body.content_type);
    let mut headers = vec![("content-type".to_owned(), content_type)];
    let mut usual = |name: &str, value: String| headers.push((name.to_owned(), value));
    match dialect {
        Dialect::OpenAi => {
            usual("x-request-id", format!("req_sim{seq}"));
            usual("openai-version", "2020-10-01".to_owned());
        }
        Dialect::Anthropic => usual("request-id", format!("req_sim{seq}")),
        Dialect::Gemini => {}
    }
    if body.streamed {
        usual("cache-control", "no-cache".to_owned());
    } else {
        let length: usize = body.pieces.iter().map(|piece| piece.bytes.len()).sum();
        usual("content-length", length.to_string());
    }
    headers.retain(|(name, _)| script.header_value(name).is_none());
    headers.extend(script.headers.iter().cloned());
    Answer { status, headers, pieces: body.pieces, streamed: body.streamed, input: body.input }
}
