//! Gemini's answers.

use crate::units::Usage;

use super::fault::ScanError;
use super::json::Cursor;
use super::json_text::Text;
use super::look::{elements, is_something, member, owned, says, text};
use super::openai;
use super::seen::{Failure, Seen, Verdict};
use super::sse::Event;
use super::tap::Tap;
use super::walk;

/// The members of a JSON answer that matter, in the order in which `answer` takes them.
pub const MEMBERS: &[&str] = &["usageMetadata", "error", "candidates"];

/// What a `usageMetadata` says.
#[derive(Default)]
struct Said<'a> {
    prompt: Option<u64>,
    tools: Option<u64>,
    candidates: Option<u64>,
    response: Option<u64>,
    thoughts: Option<u64>,
    total: Option<u64>,
    cached: Option<u64>,
    audio_input: Option<u64>,
    audio_output: Option<u64>,
    tier: Option<Text<'a>>,
}

impl<'a> Said<'a> {
    /// Input includes cached tokens; tokens of built-in tools come on top. A count of 0 is not
    /// written (proto3 JSON), so a missing output is 0.
    fn usage(&self) -> Usage {
        let output = self.candidates.or(self.response).unwrap_or(0);
        let input = self.prompt.unwrap_or(0).saturating_add(self.tools.unwrap_or(0));
        // Some back ends count the thoughts among the candidates; the total gives it away.
        let inclusive = self.total == Some(input.saturating_add(output));
        let thoughts = if inclusive { 0 } else { self.thoughts.unwrap_or(0) };
        Usage {
            input: self.prompt.map(|_| input),
            cached_input: self.cached,
            audio_input: self.audio_input,
            output: Some(output.saturating_add(thoughts)),
            reasoning: self.thoughts,
            audio_output: self.audio_output,
            ..Usage::default()
        }
    }

    fn member(&mut self, cursor: &mut Cursor<'a>, name: &[u8]) -> Result<(), ScanError> {
        let number = match name {
            b"promptTokenCount" => &mut self.prompt,
            b"toolUsePromptTokenCount" => &mut self.tools,
            b"candidatesTokenCount" => &mut self.candidates,
            b"responseTokenCount" => &mut self.response,
            b"thoughtsTokenCount" => &mut self.thoughts,
            b"totalTokenCount" => &mut self.total,
            b"cachedContentTokenCount" => &mut self.cached,
            b"promptTokensDetails" => {
                self.audio_input = audio(cursor)?;
                return Ok(());
            }
            b"candidatesTokensDetails" => {
                self.audio_output = audio(cursor)?;
                return Ok(());
            }
            b"serviceTier" => {
                self.tier = walk::text(cursor)?;
                return Ok(());
            }
            _ => return cursor.skip(),
        };
        *number = walk::count(cursor)?;
        Ok(())
    }
}

/// The count of the first part that is audio.
fn audio(cursor: &mut Cursor) -> Result<Option<u64>, ScanError> {
    let mut first = None;
    walk::elements(cursor, |cursor| {
        let (mut is_audio, mut tokens) = (false, None);
        walk::members(cursor, |cursor, name| {
            match name {
                b"modality" => {
                    let modality = walk::text(cursor)?;
                    is_audio = modality.is_some_and(|it| *it.name() == *b"AUDIO");
                }
                b"tokenCount" => tokens = walk::count(cursor)?,
                _ => return cursor.skip(),
            }
            Ok(())
        })?;
        if is_audio && first.is_none() {
            first = Some(tokens);
        }
        Ok(())
    })?;
    Ok(first.flatten())
}

/// Reads one event: a whole response, with only what is new in its parts.
pub fn event(seen: &mut Seen, event: Event<'_>) -> Verdict {
    if event.data.trim_ascii_start().first() == Some(&b'[') {
        elements(event.data, |one| response(seen, one));
    } else {
        response(seen, event.data);
    }
    Verdict::Keep
}

fn response(seen: &mut Seen, data: &[u8]) {
    walk::object(data, |cursor, name| {
        match name {
            // Looked at first everywhere: an error chunk also reads as an empty response.
            b"error" => {
                let raw = cursor.slice()?;
                if is_something(raw) {
                    seen.fail(error(raw));
                }
            }
            b"usageMetadata" => {
                let (mut said, from) = (Said::default(), cursor.at());
                let sound = walk::figures_at(cursor, |cursor, name| said.member(cursor, name))?;
                metadata(seen, sound.then_some(said), cursor.taken(from));
            }
            b"candidates" => {
                // Broken candidates say nothing: they count when they have been read to their end.
                let mut text = Candidates::default();
                walk::elements(cursor, |cursor| text.candidate(cursor))?;
                seen.text_bytes += text.bytes;
                seen.finished |= text.finished;
                searched(seen, text.searches);
            }
            // A blocked prompt has no candidates to finish.
            b"promptFeedback" => {
                let feedback = cursor.slice()?;
                seen.finished |= member(feedback, "blockReason").is_some_and(is_something);
            }
            _ => return cursor.skip(),
        }
        Ok(())
    });
}

/// Notes what a `usageMetadata` said, if it was sound. They are cumulative; the last may have
/// nothing but the kind of traffic.
fn metadata(seen: &mut Seen, said: Option<Said>, raw: &[u8]) {
    let tier = match said {
        Some(said) => {
            let web_searches = seen.usage.web_searches;
            seen.used(Usage { web_searches, ..said.usage() });
            said.tier
        }
        // With one number that can't be, it may still say the tier.
        None => member(raw, "serviceTier").and_then(text),
    };
    if let Some(tier) = tier {
        seen.served_by(&tier);
    }
}

fn searched(seen: &mut Seen, queries: u64) {
    if queries > 0 {
        seen.usage.web_searches = seen.usage.web_searches.max(Some(queries));
    }
}

/// What candidates say.
#[derive(Default)]
struct Candidates {
    /// Bytes of text, or of a call or code as it is written.
    bytes: u64,
    finished: bool,
    /// The most searches of any of them.
    searches: u64,
}

impl Candidates {
    fn candidate(&mut self, cursor: &mut Cursor) -> Result<(), ScanError> {
        walk::members(cursor, |cursor, name| {
            match name {
                b"content" => self.bytes += content_len(cursor)?,
                b"finishReason" => {
                    let named = |reason: Text| {
                        !reason.is_empty() && reason.raw() != b"FINISH_REASON_UNSPECIFIED"
                    };
                    self.finished |= walk::text(cursor)?.is_some_and(named);
                }
                b"groundingMetadata" => self.searches = self.searches.max(queries(cursor)?),
                _ => return cursor.skip(),
            }
            Ok(())
        })
    }
}

/// Bytes of text, or of a call or code as it is written.
fn content_len(cursor: &mut Cursor) -> Result<u64, ScanError> {
    let mut total = 0;
    walk::members(cursor, |cursor, name| {
        if name != b"parts" {
            return cursor.skip();
        }
        total = 0;
        walk::elements(cursor, |cursor| {
            walk::members(cursor, |cursor, name| {
                match name {
                    b"text" => total += walk::text_len(cursor)?,
                    b"functionCall" | b"executableCode" => total += cursor.slice()?.len() as u64,
                    _ => return cursor.skip(),
                }
                Ok(())
            })
        })
    })?;
    Ok(total)
}

/// How many searches a grounding tells of. Google Maps may have been asked without one that is told:
/// that is one, at the price of Search, which is no lower.
fn queries(cursor: &mut Cursor) -> Result<u64, ScanError> {
    let (mut count, mut maps) = (0, false);
    walk::members(cursor, |cursor, name| match name {
        b"webSearchQueries" => {
            count = 0;
            walk::elements(cursor, |cursor| {
                count += 1;
                cursor.skip()
            })
        }
        b"groundingChunks" => {
            maps = false;
            walk::elements(cursor, |cursor| {
                walk::members(cursor, |cursor, name| {
                    maps |= name == b"maps";
                    cursor.skip()
                })
            })
        }
        _ => cursor.skip(),
    })?;
    Ok(count.max(u64::from(maps)))
}

/// Reads what was kept of a JSON answer, or of an array of them.
pub fn answer(seen: &mut Seen, tap: &Tap) {
    let found = tap.found(|cursor| cursor.skip());
    let [usage, failure, candidates, ..] = found.values();
    seen.finished = found.is_complete();
    if let Some(raw) = usage {
        let mut said = Said::default();
        let sound = walk::figures(raw, |cursor, name| said.member(cursor, name));
        metadata(seen, sound.map(|()| said), raw);
    }
    if let Some(raw) = candidates {
        // An answer is whole when its JSON is, and as long, whatever its candidates say.
        let mut text = Candidates::default();
        elements(raw, |value| {
            let _ = text.candidate(&mut Cursor::new(value));
        });
        searched(seen, text.searches);
    }
    if let Some(raw) = failure.filter(|error| is_something(error)) {
        seen.fail(error(raw));
    }
}

/// The error of an `{"error":{"code","message","status"}}`.
pub fn error(raw: &[u8]) -> Failure {
    let failure = openai::error(raw);
    let status = member(raw, "status").and_then(owned);
    Failure { kind: status.or(failure.kind), ..failure }
}

/// Whether an error says that the key is none: Google has a 400 for that, and this reason in it.
pub fn refuses_key(body: &[u8]) -> bool {
    let mut refused = false;
    let mut look = |one: &[u8]| {
        let details = member(one, "error").and_then(|error| member(error, "details"));
        elements(details.unwrap_or_default(), |detail| {
            let reason = member(detail, "reason");
            refused |= reason.is_some_and(|reason| says(reason, "API_KEY_INVALID"));
        });
    };
    // A stream without events is an array, and so are errors behind OpenAI's API.
    match body.trim_ascii_start().first() {
        Some(b'[') => elements(body, look),
        _ => look(body),
    }
    refused
}
