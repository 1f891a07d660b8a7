//! Gemini's answers.

use serde_json::Value;

use crate::units::Usage;

use super::look::{count, elements, is_something, member, members, owned, parse, text, text_len};
use super::openai::{self, total};
use super::seen::Seen;
use super::tap::Tap;
use crate::wire::seen::{Failure, Verdict};
use crate::wire::sse::Event;

/// The members of a JSON answer that matter.
pub const MEMBERS: &[&str] = &["usageMetadata", "error", "candidates"];

/// Usage out of a `usageMetadata`. `None` if it is not an object.
///
/// Input includes cached tokens; tokens of built-in tools come on top. A count of 0 is not
/// written (proto3 JSON), so a missing output is 0.
pub fn usage(raw: &[u8]) -> Option<Usage> {
    let all = parse(raw);
    all.as_object()?;
    let one = |name: &str| all.get(name).and_then(count);
    let prompt = one("promptTokenCount");
    let tools = one("toolUsePromptTokenCount").unwrap_or(0);
    let said = one("candidatesTokenCount").or(one("responseTokenCount"));
    let said = said.unwrap_or(0);
    let thoughts = one("thoughtsTokenCount");
    let input = prompt.unwrap_or(0).saturating_add(tools);
    // Some back ends count the thoughts among the candidates; the total gives it away.
    let inclusive = one("totalTokenCount") == Some(input.saturating_add(said));
    let output = if inclusive { said } else { said.saturating_add(thoughts.unwrap_or(0)) };
    Some(Usage {
        input: prompt.map(|_| input),
        cached_input: one("cachedContentTokenCount"),
        audio_input: audio(&all, "promptTokensDetails"),
        output: Some(output),
        reasoning: thoughts,
        audio_output: audio(&all, "candidatesTokensDetails"),
        ..Usage::default()
    })
}

fn audio(all: &Value, details: &str) -> Option<u64> {
    let parts = all.get(details)?.as_array()?;
    let is_audio = |part: &&Value| part.get("modality").and_then(Value::as_str) == Some("AUDIO");
    count(parts.iter().find(is_audio)?.get("tokenCount")?)
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

/// The latest snapshot stands for all before, unless it says less: they are cumulative.
fn metadata(seen: &mut Seen, raw: &[u8]) {
    let searches = seen.usage.web_searches;
    if let Some(found) = usage(raw).filter(|found| total(found) >= total(&seen.usage)) {
        seen.usage = found;
        seen.usage.web_searches = searches;
    }
    let tier = member(raw, "serviceTier").and_then(owned);
    seen.service_tier = tier.or(seen.service_tier.take());
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
            let mut maps = false;
            elements(member(value, "groundingChunks").unwrap_or_default(), |chunk| {
                maps |= member(chunk, "maps").is_some();
            });
            queries = queries.max(u64::from(maps));
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
