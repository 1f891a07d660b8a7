//! Whether a request can fit a model's context window at all.
//!
//! A token is between one and about eight bytes of text, so bytes give cheap bounds. Only where
//! they can't tell is the text counted with a tokenizer; what may fit is sent.

use super::exchange::BodyFields;
use super::{count, worst};
use crate::plan::Candidate;
use crate::reject::{Reason, Reject};
use crate::wire::route::Endpoint;
use crate::wire::text_len::Contents;
use crate::wire::tokens::Vendor;

/// The longest that a token of text usually is, in bytes, but for runs of one byte.
const BYTES_PER_TOKEN: u64 = 8;

/// Counting a megabyte of text takes a tenth of a second: it is worth that only where the text
/// would not fit if its tokens were this short. Few texts' are. (One that is denser is sent, and
/// its provider says no.)
const LIKELY_BYTES_PER_TOKEN: u64 = 2;

/// Leaves out the candidates whose window is certainly too small.
///
/// # Errors
/// `context_length_exceeded`, with the numbers, when none is left.
pub fn fitting(
    plan: Vec<Candidate>,
    endpoint: Endpoint,
    fields: &BodyFields,
    body: &[u8],
) -> Result<Vec<Candidate>, Reject> {
    let BodyFields::Json(fields) = fields else {
        return Ok(plan);
    };
    // Of a list of texts each has the whole window; and who counts wants to hear the number.
    if matches!(endpoint, Endpoint::Embeddings | Endpoint::CountTokens) {
        return Ok(plan);
    }
    let output = fields.caps.iter().filter_map(|cap| cap.tokens).max().unwrap_or(1);
    let smallest = plan.iter().filter_map(window).min().unwrap_or(u64::MAX);
    // A byte is at most one token: what fits by its bytes fits.
    if (body.len() as u64).saturating_add(asked(output, &plan)) <= smallest {
        return Ok(plan);
    }
    let Contents { text, changes, .. } = worst::measure(body).unwrap_or_default();
    let largest = plan.iter().filter_map(window).max().unwrap_or(0);
    let bytes_say = changes / BYTES_PER_TOKEN;
    let with = |input: u64| input.saturating_add(asked(output, &plan));
    let input = if with(bytes_say) > largest || with(text / LIKELY_BYTES_PER_TOKEN) <= smallest {
        bytes_say
    } else {
        let vendor = plan.first().map_or(Vendor::Other, |first| worst::vendor(&first.target));
        count::tokens(body, vendor).map_or(bytes_say, |bounds| bounds.least.max(bytes_say))
    };
    let left: Vec<Candidate> = plan
        .into_iter()
        .filter(|candidate| {
            let output = candidate.model.max_output_tokens.map_or(output, |cap| cap.min(output));
            window(candidate).is_none_or(|window| input.saturating_add(output) <= window)
        })
        .collect();
    if !left.is_empty() {
        return Ok(left);
    }
    let message = format!(
        "the request doesn't fit: its {text} bytes of text are at least {input} tokens, and {output} tokens of output are asked for; the largest window is {largest} tokens. Shorten the input or ask for less output."
    );
    Err(Reject::new(Reason::ContextLengthExceeded, message).param("messages"))
}

/// The output that will be asked for at most, once the models' caps are applied.
fn asked(output: u64, plan: &[Candidate]) -> u64 {
    let caps = plan.iter().map(|candidate| candidate.model.max_output_tokens.unwrap_or(u64::MAX));
    output.min(caps.max().unwrap_or(u64::MAX))
}

fn window(candidate: &Candidate) -> Option<u64> {
    candidate.model.context_window
}
