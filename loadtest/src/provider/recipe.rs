//! An answer taken out of the provider: for a server that gives it many times.

use std::time::Duration;

use bytes::Bytes;
use hyper::http::request::Parts;

use super::ask::Ask;
use super::feed::Part;
use super::script::{Pace, Script};
use super::{answer, directives};

/// What the provider would answer to a request, and when.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// The status.
    pub status: u16,
    /// All headers; a `content-length` is among them unless the answer is streamed.
    pub headers: Vec<(String, String)>,
    /// Pieces of the body, each so long after the one before.
    pub pieces: Vec<(Duration, Bytes)>,
    /// The answer has no length.
    pub streamed: bool,
}

/// The answer that the directives in the model id demand; cuts and gates are left out.
///
/// `input` is the number of input tokens reported, unless the model id says another.
pub fn recipe(head: &Parts, body: Bytes, input: u64) -> Recipe {
    let ask = Ask::read(head, body);
    let answer = match directives::parse(&ask.model) {
        Ok(mut script) => {
            script.input = script.input.or(Some(input));
            let pace = Pace::from(&script);
            return with_times(answer::build(&ask, &script, 0), &pace);
        }
        Err(message) => answer::complaint(&ask, &message, 0),
    };
    with_times(answer, &Pace::from(&Script::default()))
}

fn with_times(answer: answer::Answer, pace: &Pace) -> Recipe {
    let mut chunks = 0;
    let mut pieces = Vec::with_capacity(answer.pieces.len());
    for piece in answer.pieces {
        let chunk = matches!(piece.part, Part::Content(_) | Part::Begun);
        let wait = match pieces.is_empty() {
            true => pace.delay + pace.first,
            false if chunk && chunks > 0 => pace.gap,
            false => Duration::ZERO,
        };
        chunks += usize::from(chunk);
        pieces.push((wait, piece.bytes));
    }
    Recipe { status: answer.status, headers: answer.headers, pieces, streamed: answer.streamed }
}
