//! OpenAI's answers, and those of the many servers that speak its API.

use serde_json::Value;

use crate::units::Usage;

use super::fault::ScanError;
use super::json::Cursor;
use super::json_text::Text;
use super::look::{elements, is_object, is_something, member, members, owned, parse, says};
use super::openai_usage::{Said, milliseconds, usage};
use super::route::Endpoint;
use super::seen::{Failure, Seen, Verdict};
use super::sse::Event;
use super::tap::{Found, Tap};
use super::walk;

/// The members of a JSON answer that matter, in the order in which `answer` takes them.
pub const MEMBERS: &[&str] =
    &["usage", "error", "status", "service_tier", "output", "duration", "object"];

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

/// Reads a JSON answer.
pub fn answer(seen: &mut Seen, tap: &Tap) {
    let (mut said, mut sound) = (Said::default(), false);
    let found = tap.found(|cursor| {
        (said, sound) = (Said::default(), false);
        sound = walk::figures_at(cursor, |cursor, name| said.member(cursor, name))?;
        Ok(())
    });
    let [raw_usage, failure, status, tier, output, duration, object, _] = found.values();
    let usage = match &found {
        Found::Walked(_) => sound.then(|| said.usage()),
        Found::Sifted(_) => raw_usage.and_then(usage),
    };
    seen.finished = found.is_complete();
    seen.usage = usage.unwrap_or(seen.usage);
    let tokens = seen.usage.input.or(seen.usage.output);
    if tokens.is_none() && seen.usage.duration_ms.is_none() {
        // `verbose_json` transcriptions have the seconds beside the text.
        let seconds = duration.map(parse);
        seen.usage.duration_ms = seconds.as_ref().and_then(milliseconds);
    }
    seen.service_tier = tier.and_then(owned);
    if let Some(output) = output {
        let mut searches = Searches::default();
        elements(output, |item| searches.add(item));
        searches.fill(&mut seen.usage);
    }
    match failure.filter(|error| is_something(error)) {
        Some(raw) => seen.fail(error(raw)),
        None if status.is_some_and(|status| says(status, "failed")) => {
            seen.fail(error(b"\"the response failed\""));
        }
        None if object.is_some_and(|object| says(object, "error")) => {
            seen.fail(error(b"\"the server answered an error\""));
        }
        None => {}
    }
}

/// An error's value: an object in one of many shapes, or a bare string. Of one that can't be parsed,
/// or is too long for that, the message is how it begins.
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
                cursor.skip()?;
                found = None;
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
    seen.sound_bytes += said.sound;
    seen.finished |= said.finished;
    let reason: &[u8] = b"\"the provider stopped with finish_reason error\"";
    let failure = failure.or_else(|| said.stopped.then(|| error(reason)));
    let usage_only = whole && said.choices == 0 && found.is_some() && failure.is_none();
    // Groq says the same twice.
    if let Some(usage) = found.or(nested) {
        seen.used(usage);
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
    /// Bytes of sound.
    sound: u64,
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
            b"audio" => return self.audio(cursor),
            _ => return cursor.skip(),
        }
        Ok(())
    }

    /// What is spoken: `{"data","transcript"}`.
    fn audio(&mut self, cursor: &mut Cursor) -> Result<(), ScanError> {
        let (mut transcript, mut data) = (0, 0);
        walk::members(cursor, |cursor, name| {
            match name {
                b"transcript" => transcript = walk::text_len(cursor)?,
                b"data" => data = walk::text_len(cursor)?,
                _ => return cursor.skip(),
            }
            Ok(())
        })?;
        self.bytes += transcript;
        self.sound += decoded(data);
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

/// How many bytes so many characters of base64 stand for.
fn decoded(characters: u64) -> u64 {
    characters * 3 / 4
}

/// The members of a named event that matter.
#[derive(Default)]
struct Named<'a> {
    kind: Option<Text<'a>>,
    /// Bytes of text in `delta`.
    delta: u64,
    /// Characters of base64 in `audio`.
    audio: u64,
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
            b"audio" => {
                self.audio = walk::text_len(cursor)?;
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
    let kind = kind.unwrap_or_else(|| String::from_utf8_lossy(event.name));
    match &*kind {
        "error" => {
            let nested = of.error.filter(|error| is_object(error));
            seen.fail(error(nested.unwrap_or(event.data)));
        }
        "response.audio.delta" => seen.sound_bytes += decoded(of.delta),
        "speech.audio.delta" => seen.sound_bytes += decoded(of.audio),
        "transcript.text.done"
        | "speech.audio.done"
        | "image_generation.completed"
        | "image_edit.completed" => {
            seen.finished = true;
            seen.usage = of.usage.and_then(usage).unwrap_or(seen.usage);
            if kind == "speech.audio.done" {
                // All that it makes is sound, and its usage has no details.
                seen.usage.audio_output = seen.usage.audio_output.or(seen.usage.output);
            }
        }
        "response.output_item.done" => {
            let mut searches = Searches::of(&seen.usage);
            searches.add(of.item.unwrap_or_default());
            searches.tell(&mut seen.usage);
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
    let counted = Searches::of(&seen.usage);
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
    counted.fill(&mut seen.usage);
    if failed {
        seen.fail(why);
    }
    seen.finished |= matches!(kind, "response.completed" | "response.incomplete");
}

/// The searches among the items of an `output`; `None` for none.
#[derive(Default)]
struct Searches {
    web: Option<u64>,
    files: Option<u64>,
}

impl Searches {
    /// Those that are known already.
    fn of(usage: &Usage) -> Searches {
        Searches { web: usage.web_searches, files: usage.file_searches }
    }

    /// Counts an item that is a search.
    fn add(&mut self, item: &[u8]) {
        let count = match member(item, "type") {
            Some(b"\"web_search_call\"") => {
                // Opening a page that was found is not billed.
                let action = member(item, "action").and_then(|action| member(action, "type"));
                action.is_none_or(|action| action == b"\"search\"").then_some(&mut self.web)
            }
            Some(b"\"file_search_call\"") => Some(&mut self.files),
            _ => None,
        };
        if let Some(count) = count {
            *count = Some(count.unwrap_or(0) + 1);
        }
    }

    /// Writes what was counted.
    fn tell(self, usage: &mut Usage) {
        (usage.web_searches, usage.file_searches) = (self.web, self.files);
    }

    /// Writes what was counted, where the usage says nothing of it.
    fn fill(self, usage: &mut Usage) {
        usage.web_searches = usage.web_searches.or(self.web);
        usage.file_searches = usage.file_searches.or(self.files);
    }
}
