//! Gemini's answers.

use crate::units::Usage;

use super::fault::ScanError;
use super::json::Cursor;
use super::json_text::Text;
use super::look::{elements, is_something, member, members, owned, text, text_len};
use super::openai;
use super::seen::{Failure, Seen, Verdict};
use super::sse::Event;
use super::tap::Tap;
use super::walk;

/// The members of a JSON answer that matter.
pub const MEMBERS: &[&str] = &["usageMetadata", "error", "candidates"];

/// Usage out of a `usageMetadata`. `None` if it is not an object.
///
/// Input includes cached tokens; tokens of built-in tools come on top. A count of 0 is not
/// written (proto3 JSON), so a missing output is 0.
pub fn usage(raw: &[u8]) -> Option<Usage> {
    read(raw).map(|(usage, _)| usage)
}

/// The usage, and the tier if it is named.
fn read(raw: &[u8]) -> Option<(Usage, Option<Text<'_>>)> {
    let mut said = Said::default();
    walk::figures(raw, |cursor, name| said.member(cursor, name))?;
    let output = said.candidates.or(said.response).unwrap_or(0);
    let input = said.prompt.unwrap_or(0).saturating_add(said.tools.unwrap_or(0));
    // Some back ends count the thoughts among the candidates; the total gives it away.
    let inclusive = said.total == Some(input.saturating_add(output));
    let thoughts = if inclusive { 0 } else { said.thoughts.unwrap_or(0) };
    let usage = Usage {
        input: said.prompt.map(|_| input),
        cached_input: said.cached,
        audio_input: said.audio_input,
        output: Some(output.saturating_add(thoughts)),
        reasoning: said.thoughts,
        audio_output: said.audio_output,
        ..Usage::default()
    };
    Some((usage, said.tier))
}

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
    members(data, |name, value| match name {
        // Looked at first everywhere: an error chunk also reads as an empty response.
        "error" if is_something(value) => seen.fail(error(value)),
        "usageMetadata" => metadata(seen, value),
        "candidates" => elements(value, |value| candidate(seen, value)),
        // A blocked prompt has no candidates to finish.
        "promptFeedback" => {
            seen.finished |= member(value, "blockReason").is_some_and(is_something);
        }
        _ => {}
    });
}

/// The latest snapshot stands for all before: they are cumulative.
fn metadata(seen: &mut Seen, raw: &[u8]) {
    let searches = seen.usage.web_searches;
    let tier = match read(raw) {
        Some((found, tier)) => {
            seen.usage = found;
            seen.usage.web_searches = searches;
            tier
        }
        // Broken in one place, it may still say the tier in another.
        None => member(raw, "serviceTier").and_then(text),
    };
    if let Some(tier) = tier {
        seen.served_by(&tier);
    }
}

fn candidate(seen: &mut Seen, raw: &[u8]) {
    members(raw, |name, value| match name {
        "content" => {
            let parts = member(value, "parts").unwrap_or_default();
            elements(parts, |part| seen.text_bytes += part_len(part));
        }
        "finishReason" => {
            let named = text(value).is_some_and(|reason| !reason.is_empty());
            seen.finished |= named && value != b"\"FINISH_REASON_UNSPECIFIED\"";
        }
        "groundingMetadata" => {
            let mut queries = 0;
            let list = member(value, "webSearchQueries").unwrap_or_default();
            elements(list, |_| queries += 1);
            if queries > 0 {
                seen.usage.web_searches = seen.usage.web_searches.max(Some(queries));
            }
        }
        _ => {}
    });
}

/// Bytes of text, or of a call or code as it is written.
fn part_len(raw: &[u8]) -> u64 {
    let mut total = 0;
    members(raw, |name, value| match name {
        "text" => total += text_len(value),
        "functionCall" | "executableCode" => total += value.len() as u64,
        _ => {}
    });
    total
}

/// Reads what was kept of a JSON answer, or of an array of them.
pub fn answer(seen: &mut Seen, tap: &Tap) {
    let whole = seen.finished;
    let length = seen.text_bytes;
    if let Some(raw) = tap.value("usageMetadata") {
        metadata(seen, raw);
    }
    if let Some(raw) = tap.value("candidates") {
        elements(raw, |value| candidate(seen, value));
    }
    if let Some(raw) = tap.value("error").filter(|error| is_something(error)) {
        seen.fail(error(raw));
    }
    // An answer is whole when its JSON is, whatever its candidates say.
    seen.finished = whole;
    seen.text_bytes = length;
}

/// The error of an `{"error":{"code","message","status"}}`.
pub fn error(raw: &[u8]) -> Failure {
    let failure = openai::error(raw);
    let status = member(raw, "status").and_then(owned);
    Failure { kind: status.or(failure.kind), ..failure }
}
