//! What a model costs, and what a request came to. Integers throughout.

use crate::units::{NanoUsd, Usage};
use std::borrow::Cow;
use std::sync::Arc;

/// The price of one model at one place. Rates are picodollars per token: $0.15 per million
/// tokens is 150 000.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Price {
    /// A token of input that is none of the kinds below.
    pub input: u64,
    /// A token of output that is none of the kinds below.
    pub output: u64,
    /// Read from the provider's prompt cache. Absent: as `input`.
    pub cached_input: Option<u64>,
    /// Written to that cache. Absent: as `input`.
    pub cache_write: Option<u64>,
    /// Written to be kept for an hour. Absent: as `cache_write`.
    pub cache_write_1h: Option<u64>,
    /// Reasoning. Absent: as `output`.
    pub reasoning: Option<u64>,
    /// Audio heard. Absent: as `input`.
    pub audio_input: Option<u64>,
    /// Audio spoken. Absent: as `output`.
    pub audio_output: Option<u64>,
    /// Audio read from the cache. Absent: as `cached_input`.
    pub cached_audio_input: Option<u64>,
    /// Each request.
    pub per_request: Option<NanoUsd>,
    /// Each image made.
    pub per_image: Option<NanoUsd>,
    /// Each second of audio, where no tokens are reported for it.
    pub per_second: Option<NanoUsd>,
    /// Seconds of audio that a request is billed for at least.
    pub least_seconds: u64,
    /// Each character of text to be spoken.
    pub per_character: Option<NanoUsd>,
    /// Each server-side search.
    pub per_search: Option<NanoUsd>,
    /// Each search by a tool of OpenAI's previews. Absent: as `per_search`.
    pub per_preview_search: Option<NanoUsd>,
    /// Each request for which there was a search, however many there were.
    pub per_searched_request: Option<NanoUsd>,
    /// Rates for long prompts, in any order.
    pub steps: Vec<Step>,
    /// Rates of the slow service tier.
    pub flex: Option<Rates>,
    /// Rates of the fast service tier.
    pub priority: Option<Rates>,
    /// Said to cost nothing, as opposed to not being known.
    pub free: bool,
    /// Where the price is from, for the ledger: `catalogue-2026-11`, `config`, `prices-1f0c…`.
    pub version: Arc<str>,
}

/// Rates that hold for the whole request once its input is longer than a threshold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Step {
    /// The rates hold for inputs of more tokens than this.
    pub above_input_tokens: u64,
    /// The rates. A kind that is absent here moves as `input` or `output` does.
    pub rates: Rates,
}

/// Picodollars per token, by kind. See [`Price`] for what an absent kind costs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Rates {
    pub input: u64,
    pub output: u64,
    pub cached_input: Option<u64>,
    pub cache_write: Option<u64>,
    pub cache_write_1h: Option<u64>,
    pub reasoning: Option<u64>,
    pub audio_input: Option<u64>,
    pub audio_output: Option<u64>,
    pub cached_audio_input: Option<u64>,
}

/// The service tier that a request asks a provider for (`service_tier`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Service {
    /// List price.
    #[default]
    Standard,
    /// Slower and cheaper.
    Flex,
    /// Faster and dearer.
    Priority,
}

/// What is billed beside tokens and is known from the request, not from the usage report.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Units {
    /// Images asked for.
    pub images: u64,
    /// Characters to be spoken.
    pub characters: u64,
}

impl Price {
    /// The price of a model that costs nothing, and whose owner said so.
    pub fn free() -> Price {
        Price { free: true, version: "free".into(), ..Price::default() }
    }

    /// Whether it is the built-in catalogue's, and not the operator's own.
    pub fn is_listed(&self) -> bool {
        !self.free && self.version.starts_with("catalogue")
    }

    /// The price for a request whose searches may be by a tool of OpenAI's previews, or not.
    pub fn searched_by(&self, preview: bool) -> Cow<'_, Price> {
        match self.per_preview_search.filter(|_| preview) {
            Some(each) => Cow::Owned(Price { per_search: Some(each), ..self.clone() }),
            None => Cow::Borrowed(self),
        }
    }

    /// What tiers compare: (3 × input + output) / 4, in picodollars per token, rounded up.
    pub fn blended(&self) -> u64 {
        let sum = 3 * u128::from(self.input) + u128::from(self.output);
        u64::try_from(sum.div_ceil(4)).unwrap_or(u64::MAX)
    }

    /// The same for a prompt of so many tokens.
    pub fn blended_at(&self, input_tokens: u64) -> u64 {
        let rates = self.rates(input_tokens, Service::Standard);
        let sum = 3 * u128::from(rates.input) + u128::from(rates.output);
        u64::try_from(sum.div_ceil(4)).unwrap_or(u64::MAX)
    }

    /// Whether there is anything to bill by, or the word that there is not.
    pub fn is_known(&self) -> bool {
        self.free || *self != Price { version: self.version.clone(), ..Price::default() }
    }

    /// What `usage` costs at the standard service tier.
    pub fn cost(&self, usage: &Usage) -> NanoUsd {
        self.cost_of(usage, Units::default(), Service::Standard)
    }

    /// What `usage` and `units` cost. Every token has exactly one rate; the sum is rounded up
    /// to a nano-dollar once.
    pub fn cost_of(&self, usage: &Usage, units: Units, service: Service) -> NanoUsd {
        let rates = self.rates(usage.input.unwrap_or(0), service);
        let tokens = rates.input_cost(usage) + rates.output_cost(usage);
        let each = |count: u64, price: Option<NanoUsd>| {
            1_000 * u128::from(count) * u128::from(price.unwrap_or_default().0)
        };
        // Seconds and tokens are two units for the same thing: tokens where they are reported.
        let seconds = match (tokens, self.per_second) {
            (0, Some(price)) => {
                let least = |told: u64| told.max(self.least_seconds * 1_000);
                u128::from(usage.duration_ms.map_or(0, least)) * u128::from(price.0)
            }
            _ => 0,
        };
        let searches = usage.web_searches.unwrap_or(0);
        let pico = tokens
            + seconds
            + each(1, self.per_request)
            + each(units.images, self.per_image)
            + each(units.characters, self.per_character)
            + each(searches, self.per_search)
            + each(searches.min(1), self.per_searched_request);
        nano(pico)
    }

    /// The most that `input` and `output` tokens can come to, whatever their kinds turn out to
    /// be and whichever length step they fall in. Units are not included.
    pub fn worst_case(&self, input: u64, output: u64, service: Service) -> NanoUsd {
        let lengths = self.steps.iter().map(|s| s.above_input_tokens + 1);
        let pico = lengths
            .filter(|length| *length <= input)
            .chain([0])
            .map(|length| {
                let rates = self.rates(length, service);
                u128::from(input) * u128::from(rates.dearest_input())
                    + u128::from(output) * u128::from(rates.dearest_output())
            })
            .max();
        nano(pico.unwrap_or(0)).saturating_add(self.per_request.unwrap_or_default())
    }

    /// The most that a request's units can come to: so many images, `bytes` of text to be spoken
    /// or of sound to be heard, and searches.
    pub fn units_worst(&self, images: u64, bytes: u64, searches: u64) -> NanoUsd {
        let each = |count: u64, price: Option<NanoUsd>| {
            NanoUsd(count.saturating_mul(price.unwrap_or_default().0))
        };
        each(images, self.per_image)
            .saturating_add(each(bytes, self.per_character))
            .saturating_add(each(most_seconds(bytes).max(self.least_seconds), self.per_second))
            .saturating_add(each(searches, self.per_search))
            .saturating_add(each(searches.min(1), self.per_searched_request))
    }

    /// The rates for a request with so many tokens of input.
    pub fn rates(&self, input_tokens: u64, service: Service) -> Rates {
        let base = self.base();
        let step = self
            .steps
            .iter()
            .filter(|step| input_tokens > step.above_input_tokens)
            .max_by_key(|step| step.above_input_tokens);
        let long = step.map_or(base, |step| step.rates.completed(&base));
        let served = match service {
            Service::Standard => None,
            Service::Flex => self.flex,
            Service::Priority => self.priority,
        };
        match (served, step) {
            (None, _) => long,
            (Some(served), None) => served.completed(&base),
            // Nobody lists long prompts per service tier: both factors apply.
            (Some(served), Some(_)) => Rates {
                input: ratio(long.input, served.input, base.input),
                output: ratio(long.output, served.output, base.output),
                ..Rates::default()
            }
            .completed(&long),
        }
    }

    fn base(&self) -> Rates {
        Rates {
            input: self.input,
            output: self.output,
            cached_input: self.cached_input,
            cache_write: self.cache_write,
            cache_write_1h: self.cache_write_1h,
            reasoning: self.reasoning,
            audio_input: self.audio_input,
            audio_output: self.audio_output,
            cached_audio_input: self.cached_audio_input,
        }
    }
}

impl Rates {
    /// Fills in the kinds that `base` prices and `self` does not, in proportion.
    fn completed(self, base: &Rates) -> Rates {
        let like_input = |own: Option<u64>, base_kind: Option<u64>| {
            own.or_else(|| base_kind.map(|kind| ratio(kind, self.input, base.input)))
        };
        let like_output = |own: Option<u64>, base_kind: Option<u64>| {
            own.or_else(|| base_kind.map(|kind| ratio(kind, self.output, base.output)))
        };
        Rates {
            cached_input: like_input(self.cached_input, base.cached_input),
            cache_write: like_input(self.cache_write, base.cache_write),
            cache_write_1h: like_input(self.cache_write_1h, base.cache_write_1h),
            reasoning: like_output(self.reasoning, base.reasoning),
            audio_input: like_input(self.audio_input, base.audio_input),
            audio_output: like_output(self.audio_output, base.audio_output),
            cached_audio_input: like_input(self.cached_audio_input, base.cached_audio_input),
            ..self
        }
    }

    /// Picodollars for the input side.
    fn input_cost(&self, usage: &Usage) -> u128 {
        let cached = usage.cached_input.unwrap_or(0);
        let kept_1h = usage.cache_write_1h.unwrap_or(0);
        let written = usage.cache_write.unwrap_or(0).max(kept_1h);
        // `input` includes both; where a report contradicts itself, the larger number stands.
        let fresh = usage.input.unwrap_or(0).saturating_sub(cached).saturating_sub(written);
        // Which of the audio came from the cache is not reported: as little as possible.
        let audio = usage.audio_input.unwrap_or(0);
        let fresh_audio = audio.min(fresh);
        let cached_audio = (audio - fresh_audio).min(cached);
        let write = self.cache_write.unwrap_or(self.input);
        let read = self.cached_input.unwrap_or(self.input);
        sum(&[
            (fresh - fresh_audio, self.input),
            (fresh_audio, self.audio_input.unwrap_or(self.input)),
            (cached - cached_audio, read),
            (cached_audio, self.cached_audio_input.unwrap_or(read)),
            (written - kept_1h, write),
            (kept_1h, self.cache_write_1h.unwrap_or(write)),
        ])
    }

    /// Picodollars for the output side.
    fn output_cost(&self, usage: &Usage) -> u128 {
        let reasoning = usage.reasoning.unwrap_or(0);
        let audio = usage.audio_output.unwrap_or(0);
        let text = usage.output.unwrap_or(0).saturating_sub(reasoning).saturating_sub(audio);
        sum(&[
            (text, self.output),
            (reasoning, self.reasoning.unwrap_or(self.output)),
            (audio, self.audio_output.unwrap_or(self.output)),
        ])
    }

    /// The most that one token of input can cost.
    pub fn dearest_input(&self) -> u64 {
        [
            self.cached_input,
            self.cache_write,
            self.cache_write_1h,
            self.audio_input,
            self.cached_audio_input,
        ]
        .into_iter()
        .flatten()
        .fold(self.input, u64::max)
    }

    /// The most that one token of output can cost.
    pub fn dearest_output(&self) -> u64 {
        [self.reasoning, self.audio_output].into_iter().flatten().fold(self.output, u64::max)
    }
}

fn sum(parts: &[(u64, u64)]) -> u128 {
    parts.iter().map(|(tokens, rate)| u128::from(*tokens) * u128::from(*rate)).sum()
}

/// `kind` × `of` / `base`, rounded up; `kind` itself where `base` is zero.
fn ratio(kind: u64, of: u64, base: u64) -> u64 {
    if base == 0 {
        return kind;
    }
    let scaled = (u128::from(kind) * u128::from(of)).div_ceil(u128::from(base));
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

/// How many seconds so many bytes of sound can last: the slowest codec makes 500 bytes a second.
pub fn most_seconds(bytes: u64) -> u64 {
    bytes / 500 + 1
}

/// Picodollars to nano-dollars, rounded up.
fn nano(pico: u128) -> NanoUsd {
    NanoUsd(u64::try_from(pico.div_ceil(1_000)).unwrap_or(u64::MAX))
}
