//! OpenAI's answers, and those of the many servers that speak its API.

use serde_json::Value;

use crate::units::Usage;

use super::fault::ScanError;
use super::json::Cursor;
use super::json_text::Text;
use super::look::{elements, is_object, is_something, member, members, owned, parse, text};
use super::route::Endpoint;
use super::seen::{Failure, Seen, Verdict};
use super::sse::Event;
use super::tap::Tap;
use super::walk;

/// The members of a JSON answer that matter.
pub const MEMBERS: &[&str] =
    &["usage", "error", "status", "service_tier", "output", "duration", "object"];

/// Usage as chat, Responses, embeddings, images and audio report it.
///
/// `None` if it is not an object. Input includes cached tokens and output includes reasoning
/// already (OpenAI API reference, `usage`).
pub fn usage(raw: &[u8]) -> Option<Usage> {
    let mut said = Said::default();
    walk::figures(raw, |cursor, name| said.member(cursor, name))?;
    let input = said.prompt.or(said.input);
    let mut output = said.completion.or(said.output);
    if let (Some(input), Some(said), Some(total)) = (input, output, said.total) {
        // Gemini's and xAI's compatible servers leave reasoning out of the output, not out of
        // the total, and bill it.
        output = Some(said.max(total.saturating_sub(input)));
    }
    let of = |details: &[Details], which: fn(&Details) -> Entry| {
        details.iter().find_map(which).flatten()
    };
    Some(Usage {
        input,
        cached_input: of(&said.inputs, |of| of.cached).max(said.cache_hit),
        cache_write: of(&said.inputs, |of| of.written),
        cache_write_1h: None,
        audio_input: of(&said.inputs, |of| of.audio),
        output,
        reasoning: of(&said.outputs, |of| of.reasoning),
        audio_output: of(&said.outputs, |of| of.audio),
        duration_ms: said.seconds.and_then(|seconds| milliseconds(&parse(seconds))),
        web_searches: said.searches,
    })
}

/// A usage object's numbers, under the names that servers have for them.
#[derive(Default)]
struct Said<'a> {
    prompt: Option<u64>,
    input: Option<u64>,
    completion: Option<u64>,
    output: Option<u64>,
    total: Option<u64>,
    /// DeepSeek's own name for cached tokens; its `cached_tokens` may be missing or 0.
    cache_hit: Option<u64>,
    searches: Option<u64>,
    seconds: Option<&'a [u8]>,
    /// Parts of the input, in the order in which their names are asked.
    inputs: [Details; 3],
    outputs: [Details; 3],
}

/// A member that is there, and its number if it is one: null hides what other names say.
type Entry = Option<Option<u64>>;

#[derive(Default)]
struct Details {
    cached: Entry,
    written: Entry,
    audio: Entry,
    reasoning: Entry,
}

impl<'a> Said<'a> {
    fn member(&mut self, cursor: &mut Cursor<'a>, name: &[u8]) -> Result<(), ScanError> {
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
            b"seconds" => {
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

/// Reads one event.
pub fn event(endpoint: Endpoint, seen: &mut Seen, event: Event<'_>) -> Verdict {
    match endpoint {
        Endpoint::ChatCompletions | Endpoint::Completions => chunk(seen, event.data),
        _ => {
            named(seen, event);
            Verdict::Keep
        }
    }
}

/// Reads what was kept of a JSON answer.
pub fn answer(seen: &mut Seen, tap: &Tap) {
    if let Some(found) = tap.value("usage").and_then(usage) {
        seen.usage = found;
    }
    let tokens = seen.usage.input.or(seen.usage.output);
    if tokens.is_none() && seen.usage.duration_ms.is_none() {
        // `verbose_json` transcriptions have the seconds beside the text.
        let seconds = tap.value("duration").map(parse);
        seen.usage.duration_ms = seconds.as_ref().and_then(milliseconds);
    }
    seen.service_tier = tap.value("service_tier").and_then(owned);
    if let Some(output) = tap.value("output") {
        seen.usage.web_searches = seen.usage.web_searches.or(searches(output));
    }
    let says = |name: &str, word: &str| {
        let value = tap.value(name).and_then(text);
        value.is_some_and(|value| value.decode().as_deref() == Some(word))
    };
    match tap.value("error").filter(|error| is_something(error)) {
        Some(raw) => seen.fail(error(raw)),
        None if says("status", "failed") => seen.fail(error(b"\"the response failed\"")),
        None if says("object", "error") => seen.fail(error(b"\"the server answered an error\"")),
        None => {}
    }
}

/// An error's value: an object in one of many shapes, or a bare string.
pub fn error(raw: &[u8]) -> Failure {
    let value = parse(raw);
    let word = |value: Option<&Value>| match value {
        Some(Value::String(word)) if !word.is_empty() && word != "error" => Some(word.clone()),
        Some(Value::Number(number)) => Some(number.to_string()),
        _ => None,
    };
    let metadata = value.get("metadata");
    let message = value.get("message").and_then(Value::as_str);
    let written = || String::from_utf8_lossy(raw.get(..512).unwrap_or(raw)).into_owned();
    Failure {
        message: message.or(value.as_str()).map_or_else(written, str::to_owned),
        kind: word(value.get("type"))
            .or_else(|| word(metadata?.get("error_type")))
            .or_else(|| word(value.get("code"))),
    }
}

/// One chunk of chat or completions.
fn chunk(seen: &mut Seen, data: &[u8]) -> Verdict {
    let mut said = Choices::default();
    let (mut found, mut nested, mut failure) = (None, None, None);
    let whole = walk::object(data, |cursor, name| {
        match name {
            b"choices" => {
                // Broken choices say nothing: they count when they have been read to their end.
                let mut more = said;
                walk::elements(cursor, |cursor| more.choice(cursor))?;
                said = more;
            }
            b"usage" if cursor.peek() == Some(b'{') => found = usage(cursor.slice()?),
            b"usage" => {
                found = None;
                return cursor.skip();
            }
            b"x_groq" => nested = member(cursor.slice()?, "usage").and_then(usage),
            b"service_tier" => {
                if let Some(tier) = walk::text(cursor)? {
                    seen.served_by(&tier);
                }
            }
            b"error" => {
                let raw = cursor.slice()?;
                if is_something(raw) {
                    failure = Some(error(raw));
                }
            }
            // vLLM's older form: the error is the whole chunk.
            b"object" if cursor.slice()? == b"\"error\"" => failure = Some(error(data)),
            b"object" => {}
            _ => return cursor.skip(),
        }
        Ok(())
    });
    seen.text_bytes += said.bytes;
    seen.finished |= said.finished;
    let reason: &[u8] = b"\"the provider stopped with finish_reason error\"";
    let failure = failure.or_else(|| said.stopped.then(|| error(reason)));
    let usage_only = whole && said.choices == 0 && found.is_some() && failure.is_none();
    // The latest is the whole: snapshots grow, and Groq says the same twice.
    if let Some(usage) = found.or(nested) {
        seen.usage = usage;
    }
    if let Some(failure) = failure {
        seen.fail(failure);
    }
    if usage_only { Verdict::UsageOnly } else { Verdict::Keep }
}

/// What a chunk's choices say.
#[derive(Clone, Copy, Default)]
struct Choices {
    choices: usize,
    /// Bytes of text, reasoning and tool arguments.
    bytes: u64,
    finished: bool,
    /// One stopped because of an error.
    stopped: bool,
}

impl Choices {
    fn choice(&mut self, cursor: &mut Cursor) -> Result<(), ScanError> {
        self.choices += 1;
        walk::members(cursor, |cursor, name| {
            match name {
                b"delta" => return walk::members(cursor, |cursor, name| self.delta(cursor, name)),
                b"text" => self.bytes += walk::text_len(cursor)?,
                b"finish_reason" => match walk::text(cursor)? {
                    Some(reason) if reason.raw() == b"error" => self.stopped = true,
                    Some(reason) => self.finished |= !reason.is_empty(),
                    None => {}
                },
                _ => return cursor.skip(),
            }
            Ok(())
        })
    }

    /// A member of a delta.
    fn delta(&mut self, cursor: &mut Cursor, name: &[u8]) -> Result<(), ScanError> {
        match name {
            b"content" if cursor.peek() == Some(b'[') => {
                return cursor.array(|cursor| self.part(cursor));
            }
            b"content" | b"reasoning_content" | b"reasoning" | b"refusal" => {
                self.bytes += walk::text_len(cursor)?;
            }
            b"tool_calls" => {
                return walk::elements(cursor, |cursor| {
                    walk::members(cursor, |cursor, name| match name {
                        b"function" | b"custom" => self.strings(cursor),
                        _ => cursor.skip(),
                    })
                });
            }
            b"function_call" => return self.strings(cursor),
            b"audio" => self.bytes += walk::text_len_of(cursor, b"transcript")?,
            _ => return cursor.skip(),
        }
        Ok(())
    }

    /// Mistral: `{"type":"text","text"}` or `{"type":"thinking","thinking":[{"text"}]}`.
    fn part(&mut self, cursor: &mut Cursor) -> Result<(), ScanError> {
        walk::members(cursor, |cursor, name| {
            match name {
                b"text" => self.bytes += walk::text_len(cursor)?,
                b"thinking" => {
                    return walk::elements(cursor, |cursor| {
                        self.bytes += walk::text_len_of(cursor, b"text")?;
                        Ok(())
                    });
                }
                _ => return cursor.skip(),
            }
            Ok(())
        })
    }

    /// All strings that are members of the object.
    fn strings(&mut self, cursor: &mut Cursor) -> Result<(), ScanError> {
        walk::members(cursor, |cursor, _| {
            self.bytes += walk::text_len(cursor)?;
            Ok(())
        })
    }
}

/// The members of a named event that matter.
#[derive(Default)]
struct Named<'a> {
    kind: Option<Text<'a>>,
    /// Bytes of text in `delta`.
    delta: u64,
    error: Option<&'a [u8]>,
    usage: Option<&'a [u8]>,
    item: Option<&'a [u8]>,
    response: Option<&'a [u8]>,
}

impl<'a> Named<'a> {
    fn member(&mut self, cursor: &mut Cursor<'a>, name: &[u8]) -> Result<(), ScanError> {
        let slice = match name {
            b"type" => {
                self.kind = walk::text(cursor)?;
                return Ok(());
            }
            b"delta" => {
                self.delta = walk::text_len(cursor)?;
                return Ok(());
            }
            b"error" => &mut self.error,
            b"usage" => &mut self.usage,
            b"item" => &mut self.item,
            b"response" => &mut self.response,
            _ => return cursor.skip(),
        };
        *slice = Some(cursor.slice()?);
        Ok(())
    }
}

/// An event that says its own type: Responses, images, audio.
fn named(seen: &mut Seen, event: Event<'_>) {
    let mut of = Named::default();
    walk::object(event.data, |cursor, name| of.member(cursor, name));
    let kind = of.kind.as_ref().and_then(|kind| kind.decode());
    match &*kind.unwrap_or_else(|| String::from_utf8_lossy(event.name)) {
        "error" => {
            let nested = of.error.filter(|error| is_object(error));
            seen.fail(error(nested.unwrap_or(event.data)));
        }
        // Audio is base64, not text.
        "response.audio.delta" | "speech.audio.delta" => {}
        "transcript.text.done"
        | "speech.audio.done"
        | "image_generation.completed"
        | "image_edit.completed" => {
            seen.finished = true;
            seen.usage = of.usage.and_then(usage).unwrap_or(seen.usage);
        }
        "response.output_item.done" => {
            if is_search(of.item.unwrap_or_default()) {
                let before = seen.usage.web_searches.unwrap_or(0);
                seen.usage.web_searches = Some(before + 1);
            }
        }
        kind if kind.ends_with(".delta") => seen.text_bytes += of.delta,
        kind => {
            if let Some(raw) = of.error.filter(|error| is_something(error)) {
                seen.fail(error(raw));
            }
            if let Some(response) = of.response {
                self::response(seen, kind, response);
            }
        }
    }
}

/// The response object of an event that has one; the terminal ones have it with usage.
fn response(seen: &mut Seen, kind: &str, raw: &[u8]) {
    let mut failed = matches!(kind, "response.failed" | "response.cancelled");
    let mut why = error(b"\"the response failed\"");
    let counted = seen.usage.web_searches;
    members(raw, |name, value| match name {
        "usage" => {
            if let Some(found) = usage(value) {
                seen.usage = found;
            }
        }
        "service_tier" => seen.service_tier = owned(value).or(seen.service_tier.take()),
        "error" if is_something(value) => {
            failed = true;
            why = error(value);
        }
        _ => {}
    });
    seen.usage.web_searches = seen.usage.web_searches.or(counted);
    if failed {
        seen.fail(why);
    }
    seen.finished |= matches!(kind, "response.completed" | "response.incomplete");
}

/// How many web searches an `output` array holds; `None` for none.
fn searches(output: &[u8]) -> Option<u64> {
    let mut total = 0;
    elements(output, |item| total += u64::from(is_search(item)));
    (total > 0).then_some(total)
}

/// Whether an item is a search that is billed: opening a page that was found is not.
fn is_search(item: &[u8]) -> bool {
    let is_call = member(item, "type") == Some(b"\"web_search_call\"");
    let action = member(item, "action").and_then(|action| member(action, "type"));
    is_call && action.is_none_or(|action| action == b"\"search\"")
}

/// Seconds, also fractions of them, in milliseconds.
fn milliseconds(seconds: &Value) -> Option<u64> {
    let seconds = match seconds {
        // whisper-1 has written it as a string.
        Value::String(text) => text.parse().ok()?,
        other => other.as_f64()?,
    };
    (0.0..1e9).contains(&seconds).then(|| (seconds * 1000.0).round() as u64)
}
