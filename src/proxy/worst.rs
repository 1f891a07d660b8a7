//! The most that an attempt can cost: what is held before it starts.
//!
//! Text is at most one token per byte (a byte-level tokenizer never makes more). Pictures and
//! files have bounds of their own, and whatever makes a provider add input that the gateway can't
//! see (a stored conversation, a search) is bounded by the model's window only.

use super::exchange::{BodyFields, Call};
use super::{admit, count, pictures, upstream};
use crate::catalog::Service;
use crate::config::snapshot::{Model, Target};
use crate::units::{Dialect, NanoUsd};
use crate::wire::beyond::Beyond;
use crate::wire::marks::{self, Marks};
use crate::wire::route::Endpoint;
use crate::wire::scan::CapName;
use crate::wire::text_len::{self, Contents};
use crate::wire::tokens::{self, Vendor};

/// Searches that a provider makes for one request at most, where it may search at all and the
/// request doesn't say how often.
const MOST_SEARCHES: u64 = 10;

/// The same of a model that does research: some dozens are usual.
const RESEARCHES: u64 = 100;

/// How often a provider runs a model for one request whose tools it runs itself: Anthropic pauses
/// the turn then (its guide on stop reasons). The others publish no bound; they are taken to do the
/// same where the request has none.
const MOST_ROUNDS: u64 = 10;

/// Tokens of sound for each byte of a text that is read aloud: `/audio/speech` knows no cap. OpenAI's
/// speech has 1,250 a minute (its price list), so that a byte may take 0.8 s. Digits, read one by
/// one, take half of that; ordinary words a tenth.
const SPOKEN_TOKENS: u64 = 16;

/// A container with a GiB of memory, for 20 minutes; all sizes cost so much a GiB.
const CONTAINER_GIB: NanoUsd = NanoUsd(30_000_000);

/// A search in stored files.
const FILE_SEARCH: NanoUsd = NanoUsd(2_500_000);

/// Tokens that Anthropic adds where a request has tools: up to 530 that explain their use, and for its
/// own (bash, text editor, computer, memory) up to 700 each that are in no body (its pages on them).
const TOOLS_EXPLAINED: u64 = 3_500;

/// A body that takes a millisecond or more to be read, in bytes.
const LONG_BODY: usize = 256 * 1024;

/// How closely a prompt is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// By its bytes.
    Bytes,
    /// By the fewest tokens that a count could come to: no bound, but it says whether to count.
    Fewest,
    /// By a tokenizer's count, with a margin.
    Count,
}

/// What bounds the cost of an attempt.
pub struct Worst<'a> {
    target: &'a Target,
    input: u64,
    /// Output in tokens, of every answer together.
    output: u64,
    answers: u64,
    units: NanoUsd,
    regional: bool,
    /// How often all of that is read and written: once more where what was said is summed up first.
    samplings: u64,
}

/// Why nothing says what an attempt can cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unbounded {
    /// Its output has no end.
    Output,
    /// It works on for as long as it likes, reading more and more.
    Input,
    /// The provider may draw pictures on the way, and doesn't say how many tokens they have.
    Pictures,
    /// A faster service is asked for, and nobody has said what it costs.
    Service,
    /// Another model may work for the answer, at a price of its own.
    OtherModel,
}

impl<'a> Worst<'a> {
    /// The bounds of a request at a target.
    ///
    /// # Errors
    /// There are none.
    pub fn of(
        call: &Call,
        model: &Model,
        target: &'a Target,
        look: Look,
    ) -> Result<Worst<'a>, Unbounded> {
        if let Some(why) = unpriceable(call, target) {
            return Err(why);
        }
        let pictures = pictures::made(&target.model);
        let asked = match is_overlooked(call, target) {
            true => model.max_output_tokens.map(|most| most.saturating_mul(answers(call))),
            false => admit::output(call.endpoint, model, &call.fields),
        };
        let output = match asked {
            _ if !call.metered => 0,
            // Their endpoint knows no cap.
            _ if call.endpoint == Endpoint::ImageGenerations && pictures.is_some() => {
                pictures.unwrap_or_default().saturating_mul(answers(call))
            }
            _ if call.endpoint == Endpoint::AudioSpeech && !output_is_free(target) => {
                let spoken = (call.body.len() as u64).saturating_mul(SPOKEN_TOKENS);
                let most = target.card.as_ref().and_then(|card| card.max_output_tokens);
                most.map_or(spoken, |most| most.min(spoken))
            }
            Some(output) => output,
            None if output_is_free(target) => 0,
            None => {
                let largest = largest_output(call, model, target).ok_or(Unbounded::Output)?;
                largest.saturating_mul(answers(call))
            }
        };
        let input = input(call, model, target, look)?;
        let searches = searches(call, target);
        let price = target.price.searched_by(searches_by_preview(call));
        let units = price.units_worst(answers(call), call.body.len() as u64, searches);
        let units = units.saturating_add(container(call, target));
        let most = tool_calls(call, target).unwrap_or(MOST_SEARCHES);
        let units = match marks(call).beyond.files {
            true => units.saturating_add(file_searches(most, target)),
            false => units,
        };
        Ok(Worst {
            target,
            input,
            output,
            answers: answers(call),
            units,
            regional: is_regional(call, target),
            samplings: 1 + u64::from(marks(call).beyond.compacts),
        })
    }

    /// The most that it can cost.
    pub fn cost(&self) -> NanoUsd {
        self.with(self.output)
    }

    /// The largest output of each answer, in tokens, that can't cost more than is left; never
    /// more than is asked for.
    pub fn affordable(&self, left: NanoUsd) -> u64 {
        let (mut fits, mut too_much) = (0, self.output / self.answers + 1);
        while fits + 1 < too_much {
            let middle = fits + (too_much - fits) / 2;
            match self.capped(middle) <= left {
                true => fits = middle,
                false => too_much = middle,
            }
        }
        fits
    }

    /// The most that it can cost with this cap on each answer, in tokens.
    pub fn capped(&self, cap: u64) -> NanoUsd {
        self.with(cap.saturating_mul(self.answers).min(self.output))
    }

    /// What is asked for of each answer, in tokens.
    pub fn asked(&self) -> u64 {
        self.output / self.answers
    }

    fn with(&self, output: u64) -> NanoUsd {
        // Priority service is the dearest, and a provider may put a request there by default.
        let services = [Service::Standard, Service::Priority];
        let price = &self.target.price;
        let input = self.input.saturating_mul(self.samplings);
        let output = output.saturating_mul(self.samplings);
        let worst = services.map(|service| price.worst_case(input, output, service));
        let worst = worst.into_iter().max().unwrap_or_default().saturating_add(self.units);
        in_region(self.regional, worst)
    }
}

/// How often the provider runs its own tools for the request at most, where the request says so in
/// a way that this provider heeds.
fn tool_calls(call: &Call, target: &Target) -> Option<u64> {
    let loops = marks(call).beyond.loops;
    let maker = target.card.as_ref().map(|card| card.provider.as_str());
    match (target.dialect, call.endpoint) {
        (Dialect::Anthropic, _) if loops.any() && maker == Some("anthropic") => loops.uses(),
        (Dialect::OpenAi, Endpoint::Responses) if matches!(maker, Some("openai" | "azure")) => {
            loops.calls()
        }
        _ => None,
    }
}

/// How often the model is run for the request at most, each time with all of its input.
fn rounds(call: &Call, target: &Target) -> Result<u64, Unbounded> {
    let said = tool_calls(call, target).map(|calls| calls.saturating_add(1));
    if target.habits.researches {
        return said.ok_or(Unbounded::Input);
    }
    Ok(match target.dialect {
        _ if !marks(call).beyond.loops.any() => 1,
        // What it finds is no input of a next round.
        Dialect::Gemini => 1,
        Dialect::Anthropic => said.unwrap_or(MOST_ROUNDS).min(MOST_ROUNDS),
        Dialect::OpenAi => said.unwrap_or(MOST_ROUNDS),
    })
}

/// Searches that may have to be paid for.
fn searches(call: &Call, target: &Target) -> u64 {
    let unsaid = if target.habits.researches { RESEARCHES } else { MOST_SEARCHES };
    match marks(call).beyond.search || target.habits.searches {
        true => tool_calls(call, target).unwrap_or(unsaid),
        false => 0,
    }
}

/// Whether they may be by a tool of OpenAI's previews.
pub fn searches_by_preview(call: &Call) -> bool {
    marks(call).beyond.preview
}

/// What a container costs in which OpenAI runs code for the request, by its memory: for 20 minutes
/// (its price list). Booked, too, whether the model has used it or not: its answer doesn't say.
pub fn container(call: &Call, target: &Target) -> NanoUsd {
    match marks(call).beyond.container {
        Some(gib) if bills_tools(target) => NanoUsd(CONTAINER_GIB.0.saturating_mul(gib)),
        _ => NanoUsd(0),
    }
}

/// What so many searches in files stored at OpenAI cost (its price list).
pub fn file_searches(count: u64, target: &Target) -> NanoUsd {
    NanoUsd(if bills_tools(target) { FILE_SEARCH.0.saturating_mul(count) } else { 0 })
}

/// Whether OpenAI's tools are billed here by its price list.
fn bills_tools(target: &Target) -> bool {
    let maker = target.card.as_ref().map(|card| card.provider.as_str());
    matches!(maker, Some("openai" | "azure")) && target.price.is_listed()
}

/// What a request asks for that has no known price at this target.
fn unpriceable(call: &Call, target: &Target) -> Option<Unbounded> {
    let beyond = marks(call).beyond;
    // An operator's own price is for whatever the operator lets through.
    let faster = matches!(&call.fields, BodyFields::Json(fields) if fields.priority)
        && target.price.is_listed()
        && target.price.priority.is_none();
    match beyond {
        Beyond { others: true, .. } => Some(Unbounded::OtherModel),
        Beyond { draws: true, .. } if !target.price.free => Some(Unbounded::Pictures),
        _ => faster.then_some(Unbounded::Service),
    }
}

/// Whether the target takes no notice of the one cap that says something: the older ones may say nothing,
/// and aren't all silent, so that they aren't given the newer one's number.
fn is_overlooked(call: &Call, target: &Target) -> bool {
    let BodyFields::Json(fields) = &call.fields else { return false };
    upstream::knows_older_cap_only(call.endpoint, target)
        && fields.caps.iter().any(|cap| cap.name == CapName::MaxTokens)
        && !fields.is_silent(CapName::MaxTokens)
        && fields.capped(CapName::MaxTokens).is_none_or(|tokens| tokens == 0)
}

/// Whether the request is served in a region of somebody's choice, which is dearer.
pub fn is_regional(call: &Call, target: &Target) -> bool {
    if target.habits.resides && target.price.is_listed() {
        return true;
    }
    call.endpoint == Endpoint::Messages
        && matches!(&call.fields, BodyFields::Json(fields) if fields.regional)
}

/// A cost with what a region adds: a tenth of all token rates at Anthropic (`inference_geo`), and
/// at OpenAI's and xAI's hosts for regions.
pub fn in_region(regional: bool, cost: NanoUsd) -> NanoUsd {
    if regional { NanoUsd(cost.0.saturating_add(cost.0.div_ceil(10))) } else { cost }
}

/// Whether output costs nothing here, as where sound or characters are billed instead.
fn output_is_free(target: &Target) -> bool {
    let with = |output| target.price.worst_case(0, output, Service::Priority);
    with(1_000_000) == with(0)
}

/// What one answer can have at most.
pub fn largest_output(call: &Call, model: &Model, target: &Target) -> Option<u64> {
    if call.endpoint == Endpoint::ImageGenerations {
        return None;
    }
    let card = target.card.as_ref();
    card.and_then(|card| card.max_output_tokens).or(model.context_window)
}

/// Whether a provider may add input to the request's.
pub fn adds_input(call: &Call) -> bool {
    marks(call).beyond.unseen
}

/// Looked for once, however many attempts there are. Forms have fields for what they can ask for.
fn marks(call: &Call) -> Marks {
    if !matches!(call.fields, BodyFields::Json(_)) {
        return Marks::default();
    }
    *call.marks.get_or_init(|| marks::of(&call.body))
}

fn input(call: &Call, model: &Model, target: &Target, look: Look) -> Result<u64, Unbounded> {
    let window = target.card.as_ref().and_then(|card| card.max_input_tokens);
    let window = window.or(model.context_window);
    let bytes = call.body.len() as u64;
    if !call.endpoint.is_billed() {
        return Ok(0);
    }
    if !matches!(call.fields, BodyFields::Json(_)) {
        // Sound has far fewer tokens than bytes: what doesn't fit is not heard.
        return Ok(bytes.min(window.unwrap_or(bytes)));
    }
    let marks = marks(call);
    let seen = match look {
        Look::Bytes if !marks.picture => bytes,
        look => contents(call, target, look),
    };
    let explained = matches!(&call.fields, BodyFields::Json(fields) if fields.tools)
        && target.dialect == Dialect::Anthropic;
    let seen = if explained { seen.saturating_add(TOOLS_EXPLAINED) } else { seen };
    if !(marks.beyond.unseen || target.habits.reads) {
        return Ok(seen);
    }
    // Nobody pays for it, or the operator has said what it may come to.
    if target.price.free {
        return Ok(seen);
    }
    if let Some(agreed) = model.unseen_input_tokens {
        return Ok(seen.max(agreed));
    }
    let most = window.unwrap_or(u64::MAX).saturating_mul(rounds(call, target)?);
    Ok(seen.max(most))
}

/// Whether a prompt may have more than so many tokens, at whatever target: looked at more closely
/// the nearer it is.
pub fn may_exceed(body: &[u8], tokens: u64) -> bool {
    let marks = marks::of(body);
    if marks.beyond.unseen {
        return true;
    }
    if body.len() as u64 <= tokens && !marks.picture {
        return false;
    }
    let Some(Contents { text, pictures, data, .. }) = measure(body) else {
        return true;
    };
    let beside = pictures.saturating_mul(pictures::MOST_PICTURE).saturating_add(data);
    if beside > tokens {
        return true;
    }
    if text.saturating_add(beside) <= tokens {
        return false;
    }
    count::tokens(body, Vendor::Other)
        .is_none_or(|bounds| bounds.most.min(text).saturating_add(beside) > tokens)
}

/// What a body holds. Other requests don't wait while a long one is read.
pub fn measure(body: &[u8]) -> Option<Contents> {
    match body.len() < LONG_BODY {
        true => text_len::contents(body),
        false => tokio::task::block_in_place(|| text_len::contents(body)),
    }
}

/// Text as it is looked at; pictures by their dialect's bound; other data by its bytes.
fn contents(call: &Call, target: &Target, look: Look) -> u64 {
    let Some(found) = measure(&call.body) else {
        // Nobody knows how many pictures there are: no more than bytes.
        let each = if marks(call).picture { pictures::MOST_PICTURE } else { 1 };
        return (call.body.len() as u64).saturating_mul(each);
    };
    let Contents { text, pictures, data, .. } = found;
    let picture = pictures::seen(target);
    let counted = match look {
        Look::Bytes => None,
        Look::Fewest => Some(tokens::fewest(&found)),
        Look::Count => count::tokens(&call.body, vendor(target)).map(|bounds| bounds.most),
    };
    let text = counted.map_or(text, |counted| counted.min(text));
    text + pictures.saturating_mul(picture) + data
}

/// Whose tokenizer counts at this target. Many serve other vendors' models by OpenAI's API.
pub fn vendor(target: &Target) -> Vendor {
    match target.card.as_ref().map(|card| card.provider.as_str()) {
        Some("openai" | "azure") if is_before_4o(&target.model) => Vendor::OpenAiBefore,
        Some("openai" | "azure") => Vendor::OpenAi,
        _ => Vendor::Other,
    }
}

/// Whether a model of OpenAI's is older than GPT-4o, or makes vectors.
fn is_before_4o(id: &str) -> bool {
    let id = id.rsplit('/').next().unwrap_or(id);
    let id = id.strip_prefix("ft:").unwrap_or(id);
    let four = id.strip_prefix("gpt-4");
    let older = ["gpt-3", "text-embedding", "davinci", "babbage"];
    four.is_some_and(|rest| !rest.starts_with(['o', '.']))
        || older.iter().any(|start| id.starts_with(start))
}

/// Answers, or pictures, that the request asks for.
pub fn answers(call: &Call) -> u64 {
    match &call.fields {
        BodyFields::Json(fields) => admit::answers(fields),
        BodyFields::Form(..) | BodyFields::Opaque => 1,
    }
}
