//! What OpenAI's answers used, in the many names that servers have for it.

use serde_json::Value;

use crate::units::{NanoUsd, Usage};

use super::fault::ScanError;
use super::json::Cursor;
use super::look::{member, parse};
use super::walk;

/// Usage as chat, Responses, embeddings, images and audio report it.
///
/// `None` if it is not an object. Input includes cached tokens and output includes reasoning
/// already (OpenAI API reference, `usage`).
pub fn usage(raw: &[u8]) -> Option<Usage> {
    let mut said = Said::default();
    walk::figures(raw, |cursor, name| said.member(cursor, name))?;
    Some(said.usage())
}

/// A usage object's numbers, under the names that servers have for them.
#[derive(Debug, Default)]
pub struct Said<'a> {
    prompt: Option<u64>,
    input: Option<u64>,
    completion: Option<u64>,
    output: Option<u64>,
    total: Option<u64>,
    /// DeepSeek's own name for cached tokens; its `cached_tokens` may be missing or 0.
    cache_hit: Option<u64>,
    searches: Option<u64>,
    cost: Option<NanoUsd>,
    ticks: Option<NanoUsd>,
    seconds: Option<&'a [u8]>,
    /// Parts of the input, in the order in which their names are asked.
    inputs: [Details; 3],
    outputs: [Details; 3],
}

/// A member that is there, and its number if it is one: null hides what other names say.
type Entry = Option<Option<u64>>;

#[derive(Debug, Default)]
struct Details {
    cached: Entry,
    written: Entry,
    audio: Entry,
    reasoning: Entry,
}

impl<'a> Said<'a> {
    /// What they come to.
    pub fn usage(&self) -> Usage {
        let input = self.prompt.or(self.input);
        let mut output = self.completion.or(self.output);
        if let (Some(input), Some(said), Some(total)) = (input, output, self.total) {
            // Gemini's and xAI's compatible servers leave reasoning out of the output, not out of
            // the total, and bill it.
            output = Some(said.max(total.saturating_sub(input)));
        }
        let of = |details: &[Details], which: fn(&Details) -> Entry| {
            details.iter().find_map(which).flatten()
        };
        Usage {
            input,
            cached_input: of(&self.inputs, |of| of.cached).max(self.cache_hit),
            cache_write: of(&self.inputs, |of| of.written),
            cache_write_1h: None,
            audio_input: of(&self.inputs, |of| of.audio),
            output,
            reasoning: of(&self.outputs, |of| of.reasoning),
            audio_output: of(&self.outputs, |of| of.audio),
            duration_ms: self.seconds.and_then(|seconds| milliseconds(&parse(seconds))),
            web_searches: self.searches,
            file_searches: None,
            billed: self.cost.max(self.ticks),
        }
    }

    /// Takes a member's value.
    pub fn member(&mut self, cursor: &mut Cursor<'a>, name: &[u8]) -> Result<(), ScanError> {
        let number = match name {
            b"prompt_tokens" => &mut self.prompt,
            b"input_tokens" => &mut self.input,
            b"completion_tokens" => &mut self.completion,
            b"output_tokens" => &mut self.output,
            b"total_tokens" => &mut self.total,
            b"prompt_cache_hit_tokens" => &mut self.cache_hit,
            _ => return self.details(cursor, name),
        };
        *number = walk::count(cursor)?;
        Ok(())
    }

    fn details(&mut self, cursor: &mut Cursor<'a>, name: &[u8]) -> Result<(), ScanError> {
        let ([prompt, input, one_input], [completion, output, one_output]) =
            (&mut self.inputs, &mut self.outputs);
        let details = match name {
            b"prompt_tokens_details" => prompt,
            b"input_tokens_details" => input,
            // Transcriptions write it in the singular.
            b"input_token_details" => one_input,
            b"completion_tokens_details" => completion,
            b"output_tokens_details" => output,
            b"output_token_details" => one_output,
            b"server_tool_use" => {
                self.searches = walk::count_of(cursor, b"web_search_requests")?;
                return Ok(());
            }
            b"cost" => {
                // OpenRouter's, in dollars; Perplexity's has parts and their sum.
                self.cost = match cursor.peek() {
                    Some(b'{') => member(cursor.slice()?, "total_cost").and_then(dollars),
                    _ => dollars(cursor.slice()?),
                };
                return Ok(());
            }
            b"cost_in_usd_ticks" => {
                // xAI's: ten to a nano-dollar (https://docs.x.ai/developers/cost-tracking).
                let ticks = walk::number(cursor)?.map(|ticks| NanoUsd(ticks.div_ceil(10)));
                self.ticks = ticks.filter(|cost| *cost < TOO_DEAR);
                return Ok(());
            }
            // The second is Mistral's.
            b"seconds" | b"prompt_audio_seconds" => {
                self.seconds = Some(cursor.slice()?);
                return Ok(());
            }
            _ => return cursor.skip(),
        };
        *details = Details::default();
        walk::members(cursor, |cursor, name| {
            let entry = match name {
                b"cached_tokens" => &mut details.cached,
                b"cache_write_tokens" => &mut details.written,
                b"audio_tokens" => &mut details.audio,
                b"reasoning_tokens" => &mut details.reasoning,
                _ => return cursor.skip(),
            };
            *entry = Some(walk::count(cursor)?);
            Ok(())
        })
    }
}

/// No answer costs a million dollars.
const TOO_DEAR: NanoUsd = NanoUsd(1_000_000_000_000_000);

/// Dollars, rounded up to a nano-dollar. `None` below zero, and from a million on: no answer costs
/// that.
pub fn dollars(raw: &[u8]) -> Option<NanoUsd> {
    let dollars = parse(raw).as_f64().filter(|dollars| (0.0..1e6).contains(dollars))?;
    // What a float adds to a written number is far below a nano-dollar.
    Some(NanoUsd((dollars * 1e9 - 1e-3).ceil().max(0.0) as u64))
}

/// Seconds, also fractions of them, in milliseconds.
pub fn milliseconds(seconds: &Value) -> Option<u64> {
    let seconds = match seconds {
        // whisper-1 has written it as a string.
        Value::String(text) => text.parse().ok()?,
        other => other.as_f64()?,
    };
    (0.0..1e9).contains(&seconds).then(|| (seconds * 1000.0).round() as u64)
}
