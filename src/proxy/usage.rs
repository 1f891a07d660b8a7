//! What an attempt has used: as it was reported, and as it is estimated where nobody said.

use super::exchange::{Attempt, AttemptRecord, BodyFields, Call, Exchange, Failure};
use super::pledge::Pledge;
use super::{admit, pictures, worst};
use crate::catalog::{Service, Units, most_seconds};
use crate::ledger::MAX_COST;
use crate::units::{NanoUsd, Usage, UsageSource};
use crate::wire::heard;
use crate::wire::look::{member, says};
use crate::wire::meter::{End, Report};
use crate::wire::route::Endpoint;
use serde::Deserialize;

/// Bytes of text per token, for estimates: low, so that an estimate is not below the truth.
const BYTES_PER_TOKEN: u64 = 3;

/// Bytes of speech per token of it, for estimates: OpenAI bills a minute of speech as some 1,250
/// tokens ($0.015 at $12 a million, by its price list for gpt-4o-mini-tts; a little more than the
/// one for 50 ms that its guide on realtime costs has), and its most compressed format has some
/// 4,000 bytes a second.
const BYTES_PER_SOUND_TOKEN: u64 = 160;

/// The same without compression: 24,000 samples of two bytes a second.
const BYTES_PER_PCM_TOKEN: u64 = 48_000 * 60 / 1_250;

/// Tokens of sound that is heard, for estimates: one for 100 ms (OpenAI's guide on realtime costs).
const TOKENS_PER_HEARD_SECOND: u64 = 10;

/// A request that was sent and never answered may have been worked on, and be billed: its input
/// is booked as an estimate.
pub fn presume(exchange: &Exchange, attempt: &Attempt, record: &mut AttemptRecord) {
    let sent = attempt.hold.as_ref().is_none_or(Pledge::is_sent) && !attempt.refused;
    let may_have_run = sent && record.failure.as_ref().is_some_and(may_have_run);
    // Without an endpoint it is nothing that can be metered.
    let billed = exchange.endpoint.is_some_and(Endpoint::is_billed);
    if may_have_run && billed && record.status.is_none() {
        assume_input(&mut record.usage, exchange, attempt);
        record.source = UsageSource::Estimated;
        let mut units = Units::default();
        if let Some(call) = &exchange.call {
            // What is made by the piece is made whole, whoever waits for it.
            units = self::units(exchange);
            record.usage.output = pictures(call, attempt);
            hear(call, attempt, record);
        }
        let price = &attempt.candidate.target.price;
        let cost = price.cost_of(&record.usage, units, Service::Standard).min(MAX_COST);
        record.cost = guessed(attempt, cost);
    }
}

/// Whether a provider that was sent an attempt may have worked on it, whoever it was that failed.
fn may_have_run(failure: &Failure) -> bool {
    !matches!(failure, Failure::Connect(_) | Failure::NoSocket(_) | Failure::Status(..))
}

/// What an answer has cost.
pub fn charged(
    exchange: &Exchange,
    attempt: &Attempt,
    report: &Report,
    record: &AttemptRecord,
) -> NanoUsd {
    let preview = exchange.call.as_ref().is_some_and(worst::searches_by_preview);
    let price = &*attempt.candidate.target.price.searched_by(preview);
    let (units, service) = (units(exchange), service(report.service_tier.as_deref()));
    let target = &attempt.candidate.target;
    let (regional, container) = match &exchange.call {
        Some(call) => (worst::is_regional(call, target), worst::container(call, target)),
        None => (false, NanoUsd(0)),
    };
    let cost = |usage: &Usage| {
        let files = worst::file_searches(usage.file_searches.unwrap_or(0), target);
        let cost = price.cost_of(usage, units, service);
        // A region makes tokens dearer, and nothing else.
        let told = Usage { web_searches: None, ..*usage };
        let tokens = price.cost_of(&told, Units::default(), service);
        let region = NanoUsd(worst::in_region(regional, tokens).0.saturating_sub(tokens.0));
        [container, files, region].into_iter().fold(cost, NanoUsd::saturating_add).min(MAX_COST)
    };
    // Who says what it bills knows better than a catalogue, but not than the operator; and what the
    // catalogue comes to may still be more.
    let said = report.usage.billed.filter(|_| price.is_listed()).unwrap_or_default().min(MAX_COST);
    let mut used = record.usage;
    if report.usage.billed.is_none() && attempt.candidate.target.habits.searches {
        // It has searched before it answered, and doesn't say so.
        used.web_searches = used.web_searches.or(used.output.is_some_and(|n| n > 0).then_some(1));
    }
    let cost_of_all = cost(&used);
    match record.source {
        UsageSource::Estimated => guessed(attempt, cost_of_all).max(cost(&report.usage)),
        _ => cost_of_all,
    }
    .max(said)
}

/// An estimate can't be more than the attempt can cost at most, which is what is held.
fn guessed(attempt: &Attempt, cost: NanoUsd) -> NanoUsd {
    match attempt.hold.as_ref().map(Pledge::amount) {
        Some(held) if held > NanoUsd(0) => cost.min(held),
        _ => cost,
    }
}

/// Tokens of the pictures that were asked for, where their maker says how many those are.
fn pictures(call: &Call, attempt: &Attempt) -> Option<u64> {
    if call.endpoint != Endpoint::ImageGenerations {
        return None;
    }
    let each = pictures::made(&attempt.candidate.target.model)?;
    Some(each.saturating_mul(worst::answers(call)))
}

/// The input where nobody said how much of it there was. Of sound no more is heard than fits the
/// model's window.
fn assume_input(usage: &mut Usage, exchange: &Exchange, attempt: &Attempt) {
    let bytes = attempt.body.len() as u64;
    let call = exchange.call.as_ref();
    let Some((call, BodyFields::Form(form, _))) = call.map(|call| (call, &call.fields)) else {
        usage.input = Some(tokens(bytes));
        return;
    };
    let told = usage.duration_ms.map(|millis| millis.div_ceil(1_000));
    let sound = match told.or_else(|| seconds(call)) {
        Some(seconds) => seconds.saturating_mul(TOKENS_PER_HEARD_SECOND),
        None => tokens(form.file_bytes as u64),
    };
    let candidate = &attempt.candidate;
    let window = candidate.target.card.as_ref().and_then(|card| card.max_input_tokens);
    let window = window.or(candidate.model.context_window).unwrap_or(u64::MAX);
    let text = tokens(bytes.saturating_sub(form.file_bytes as u64));
    usage.input = Some(text.saturating_add(sound).min(window));
    usage.audio_input = Some(sound.min(window));
}

/// The length of the one file that was sent, where it can be read.
fn seconds(call: &Call) -> Option<u64> {
    let BodyFields::Form(form, _) = &call.fields else { return None };
    let [file] = form.files.as_slice() else { return None };
    heard::seconds(call.body.get(file.clone())?)
}

/// Sound whose seconds nobody told: as many as the file has or, where that can't be read, as many as
/// it can have, as they were held. Tokens that were told instead do where they have a price.
pub fn hear(call: &Call, attempt: &Attempt, record: &mut AttemptRecord) {
    let price = &attempt.candidate.target.price;
    if call.endpoint.multipart()
        && price.per_second.is_some()
        && (record.source == UsageSource::Estimated || price.blended() == 0)
        && record.usage.duration_ms.is_none()
    {
        let most = || most_seconds(attempt.body.len() as u64);
        let seconds = seconds(call).unwrap_or_else(most);
        record.usage.duration_ms = Some(seconds.saturating_mul(1_000));
    }
}

/// Tokens of output, as they are estimated.
#[derive(Debug, Clone, Copy, Default)]
pub struct Made {
    /// All of them.
    output: u64,
    /// Those of sound.
    sound: u64,
}

impl Made {
    fn text(output: u64) -> Made {
        Made { output, sound: 0 }
    }

    fn sound(output: u64) -> Made {
        Made { output, sound: output }
    }
}

/// What the attempt consumed: as reported where it was, else estimated from what went past.
pub fn consumed(
    report: &Report,
    exchange: &Exchange,
    attempt: &Attempt,
    failure: Option<&Failure>,
    unreported: Made,
) -> (Usage, UsageSource) {
    let mut usage = report.usage;
    let whole = report.end == End::Complete;
    let cut = failure.is_some()
        && !whole
        && usage.output.is_none_or(|n| n.saturating_mul(16) < report.text_bytes);
    let streamed = attempt.relay.as_ref().is_some_and(|relay| relay.events);
    let makes = exchange.call.as_ref().is_none_or(|call| admit::makes_output(call.endpoint));
    let said = report.text_bytes > 0 || report.sound_bytes > 0;
    // Of a stream what was made alone is counted: what was sent has used something. A whole answer
    // has a frame, too, and may say nothing at all; but then it says so.
    let untold = match usage.output {
        None => makes && said,
        Some(0) => streamed && said,
        Some(_) => false,
    };
    if usage.input.is_some() && !cut && !untold {
        return (usage, UsageSource::Reported);
    }
    if usage.input.is_none() {
        assume_input(&mut usage, exchange, attempt);
    }
    usage.output = Some(usage.output.unwrap_or(0).max(unreported.output));
    usage.audio_output = usage.audio_output.max(Some(unreported.sound).filter(|n| *n > 0));
    (usage, UsageSource::Estimated)
}

/// Tokens of output, where nothing but the answer's bytes says how many: no fewer than were sent.
pub fn unreported(exchange: &Exchange, attempt: &Attempt, report: &Report) -> Made {
    let Some(call) = &exchange.call else {
        return Made::text(tokens(report.text_bytes));
    };
    let streamed = attempt.relay.as_ref().is_some_and(|relay| relay.events);
    match call.endpoint {
        endpoint if !admit::makes_output(endpoint) => Made::default(),
        // The bytes are those of the error, not of anything that was made.
        _ if !streamed && matches!(report.end, End::Failed { .. }) => Made::default(),
        Endpoint::ImageGenerations if !report.first_error_only => {
            let each = pictures::made(&attempt.candidate.target.model);
            Made::text(each.unwrap_or(0).saturating_mul(worst::answers(call)))
        }
        Endpoint::AudioSpeech if streamed => Made::sound(spoken(call, report.sound_bytes)),
        Endpoint::AudioSpeech => Made::sound(spoken(call, report.text_bytes)),
        endpoint => {
            let asked = admit::output(endpoint, &attempt.candidate.model, &call.fields);
            let each = attempt.clamped.map(|cap| cap.saturating_mul(worst::answers(call)));
            let most = asked.into_iter().chain(each).min();
            let unread = attempt
                .relay
                .as_ref()
                .is_some_and(|relay| relay.unread || relay.meter.unreadable().is_some());
            if unread && call.metered && report.text_bytes > 0 {
                // How much it says nobody knows.
                let target = &attempt.candidate.target;
                let largest = worst::largest_output(call, &attempt.candidate.model, target);
                let largest = largest.map(|each| each.saturating_mul(worst::answers(call)));
                return Made::text(most.or(largest).unwrap_or(report.text_bytes));
            }
            let most = most.unwrap_or(u64::MAX);
            let sound = spoken(call, report.sound_bytes).min(most);
            Made { output: tokens(report.text_bytes).saturating_add(sound).min(most), sound }
        }
    }
}

/// So many bytes of text as tokens.
fn tokens(bytes: u64) -> u64 {
    bytes.div_ceil(BYTES_PER_TOKEN)
}

/// So many bytes of sound, in the format that was asked for, as tokens.
fn spoken(call: &Call, bytes: u64) -> u64 {
    if bytes == 0 {
        return 0;
    }
    let format = match call.endpoint {
        Endpoint::AudioSpeech => member(&call.body, "response_format"),
        _ => member(&call.body, "audio").and_then(|audio| member(audio, "format")),
    };
    let plain = |format: &[u8]| ["pcm", "pcm16", "wav"].iter().any(|name| says(format, name));
    bytes.div_ceil(match format.is_some_and(plain) {
        true => BYTES_PER_PCM_TOKEN,
        false => BYTES_PER_SOUND_TOKEN,
    })
}

/// What is billed by the piece, and known from the request.
fn units(exchange: &Exchange) -> Units {
    let Some(call) = &exchange.call else {
        return Units::default();
    };
    let fields = match &call.fields {
        BodyFields::Json(fields) => fields,
        BodyFields::Form(..) | BodyFields::Opaque => return Units::default(),
    };
    match call.endpoint {
        Endpoint::ImageGenerations => {
            Units { images: fields.n.unwrap_or(1).max(1), ..Units::default() }
        }
        Endpoint::AudioSpeech => {
            let text = serde_json::from_slice::<Speech>(&call.body).map(|body| body.input);
            let characters = text.map_or(call.body.len(), |text| text.chars().count());
            Units { characters: characters as u64, ..Units::default() }
        }
        _ => Units::default(),
    }
}

#[derive(Deserialize)]
struct Speech {
    input: String,
}

/// The service tier that the answer says it was served at.
fn service(told: Option<&str>) -> Service {
    match told {
        Some("flex") => Service::Flex,
        Some("priority" | "fast") => Service::Priority,
        _ => Service::Standard,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_may_have_run_unless_its_provider_says_no() {
        let why = || "why".to_owned();
        let may = [
            Failure::Broken(why()),
            Failure::Stale,
            Failure::Timeout,
            Failure::FirstToken,
            Failure::Deadline,
            Failure::Interrupted(why()),
            Failure::ClientGone,
            Failure::Cut,
            Failure::Internal(why()),
        ];
        assert!(may.iter().all(may_have_run));
        assert!(![Failure::Connect(why()), Failure::Status(429, None)].iter().any(may_have_run));
    }
}
