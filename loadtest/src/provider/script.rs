//! What the provider is to do with one request.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

/// Instructions for one request. Everything is optional: the default script is
/// a correct, prompt answer of sixteen words.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Script {
    /// HTTP status. Anything but 2xx answers with the error shape of the endpoint's dialect.
    pub status: Option<u16>,
    /// Extra response headers; a name given here replaces the usual value.
    pub headers: Vec<(String, String)>,
    /// These bytes instead of a generated body, with their content-length.
    pub body: Option<String>,
    /// These stream bytes instead of a generated stream, one write per member.
    pub raw_chunks: Option<Vec<String>>,
    /// As `raw_chunks`, for bytes that are not text. Wins over it.
    #[serde(skip)]
    pub raw: Option<Vec<Bytes>>,
    /// Milliseconds before the response headers.
    pub delay_ms: u64,
    /// Milliseconds between the headers and the first byte of the body.
    pub first_ms: u64,
    /// Milliseconds before every content chunk but the first.
    pub gap_ms: u64,
    /// Number of content chunks of a stream. Without `tokens` also the number of words.
    pub chunks: Option<usize>,
    /// Number of words, one token each. Without `chunks` also the number of content chunks.
    pub tokens: Option<u64>,
    /// Break the connection (HTTP/2: the stream) instead of finishing the answer.
    pub cut: Option<Cut>,
    /// Report no usage anywhere.
    pub omit_usage: bool,
    /// Write the body in pieces of at most this many bytes, each on its own.
    pub split: Option<usize>,
    /// The answer's text is the request body.
    pub echo: bool,
    /// The answer's text.
    pub text: Option<String>,
    /// The answer's text has this many bytes.
    pub size: Option<usize>,
    /// End the body in good order but without the dialect's end: no finish, no usage, no end mark.
    /// A body that is not streamed ends in its middle, with a matching content-length.
    pub truncate: bool,
    /// After this many content chunks one in-band error event, then the end.
    /// A body that is not streamed is an error object under status 200.
    pub error_event: Option<usize>,
    /// Content type of the response.
    pub content_type: Option<String>,
    /// Answer with a call of the request's first tool, if it has tools.
    pub tool: bool,
    /// Arguments of that call, as JSON text (or as text that is not JSON).
    pub tool_arguments: Option<String>,
    /// Reported input tokens, cached and cache-written ones included.
    pub input: Option<u64>,
    /// Reported output tokens, reasoning included.
    pub output: Option<u64>,
    /// Part of the input reported as read from the cache.
    pub cached: u64,
    /// Part of the input reported as written to the cache.
    pub cache_write: u64,
    /// Reasoning tokens: part of the reported output, never of the text.
    pub reasoning: u64,
    /// Keys accepted for this request, instead of the provider's.
    pub keys: Option<HashSet<String>>,
    /// Holds the answer back: see [`Gate`].
    #[serde(skip)]
    pub gate: Option<Gate>,
}

impl Script {
    /// An answer with this status, in the error shape of the endpoint unless it is 2xx.
    pub fn status(status: u16) -> Self {
        Self { status: Some(status), ..Self::default() }
    }

    /// An answer with this text.
    pub fn text(text: impl Into<String>) -> Self {
        Self { text: Some(text.into()), ..Self::default() }
    }

    /// A stream of exactly these bytes, one write per member.
    pub fn raw<B: Into<Bytes>>(chunks: impl IntoIterator<Item = B>) -> Self {
        Self { raw: Some(chunks.into_iter().map(Into::into).collect()), ..Self::default() }
    }

    /// Adds a response header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The value of a response header of this script; `name` in lower case.
    pub(crate) fn header_value(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// The stream bytes given word for word, if any.
    pub(crate) fn raw_bytes(&self) -> Option<Vec<Bytes>> {
        if let Some(raw) = &self.raw {
            return Some(raw.clone());
        }
        let texts = self.raw_chunks.as_ref()?;
        Some(texts.iter().map(|t| Bytes::from(t.clone())).collect())
    }

    /// True when the status is absent or 2xx.
    pub(crate) fn succeeds(&self) -> bool {
        self.status.is_none_or(|s| (200..300).contains(&s))
    }
}

/// Where an answer breaks off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "CutText", into = "CutText")]
pub enum Cut {
    /// Before any byte of the answer. In JSON: `"headers"`.
    Headers,
    /// After this many content chunks; 0 is after the headers. In JSON: the number.
    After(usize),
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum CutText {
    After(usize),
    Word(String),
}

impl TryFrom<CutText> for Cut {
    type Error = String;

    fn try_from(text: CutText) -> Result<Self, String> {
        match text {
            CutText::After(n) => Ok(Self::After(n)),
            CutText::Word(word) => word.parse(),
        }
    }
}

impl From<Cut> for CutText {
    fn from(cut: Cut) -> Self {
        match cut {
            Cut::After(n) => Self::After(n),
            Cut::Headers => Self::Word("headers".to_owned()),
        }
    }
}

impl std::str::FromStr for Cut {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "headers" {
            return Ok(Self::Headers);
        }
        match text.parse() {
            Ok(n) => Ok(Self::After(n)),
            Err(_) => Err(format!("cut: `{text}` is neither `headers` nor a number")),
        }
    }
}

/// Lets a test release an answer piece by piece.
///
/// A stream takes one permit for each content chunk. What precedes the first
/// chunk (role chunk, `message_start`) goes out with it, and what follows the
/// last one needs no permit: no permit, no byte of the body. An answer that is
/// not streamed takes one permit before its headers.
#[derive(Clone, Debug)]
pub struct Gate(Arc<Semaphore>);

impl Gate {
    /// A closed gate.
    #[expect(
        clippy::new_without_default,
        reason = "a default gate would say nothing about being closed"
    )]
    pub fn new() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }

    /// Lets `n` more chunks pass.
    pub fn release(&self, n: usize) {
        self.0.add_permits(n);
    }

    /// Lets everything pass from now on.
    pub fn open(&self) {
        self.0.close();
    }

    pub(crate) async fn pass(&self) {
        // A closed semaphore is an open gate.
        if let Ok(permit) = self.0.acquire().await {
            permit.forget();
        }
    }
}

/// The timing part of a script.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    pub(crate) delay: Duration,
    pub(crate) first: Duration,
    pub(crate) gap: Duration,
    pub(crate) cut: Option<Cut>,
    pub(crate) gate: Option<Gate>,
}

impl From<&Script> for Pace {
    fn from(script: &Script) -> Self {
        Self {
            delay: Duration::from_millis(script.delay_ms),
            first: Duration::from_millis(script.first_ms),
            gap: Duration::from_millis(script.gap_ms),
            cut: script.cut,
            gate: script.gate.clone(),
        }
    }
}
