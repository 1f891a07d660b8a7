//! One line of `conf/catalog.jsonl`.

use super::ModelCard;
use super::decimal;
use super::price::{Price, Rates, Step};
use crate::units::NanoUsd;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Numbers by kind, as text: a float would lose digits.
type Kinds<'a> = BTreeMap<Cow<'a, str>, &'a RawValue>;

#[derive(Deserialize)]
struct Row<'a> {
    p: String,
    id: String,
    mode: String,
    #[serde(rename = "in")]
    max_input: Option<u64>,
    #[serde(rename = "out")]
    max_output: Option<u64>,
    win: Option<u64>,
    dep: Option<chrono_date::Date>,
    #[serde(default)]
    free: bool,
    #[serde(borrow, default)]
    usd: Kinds<'a>,
    #[serde(borrow, default)]
    above: BTreeMap<Cow<'a, str>, Kinds<'a>>,
    #[serde(borrow, default)]
    unit: Kinds<'a>,
}

/// chrono is built without serde: a date is read from its text.
mod chrono_date {
    use serde::{Deserialize, Deserializer};

    pub struct Date(pub chrono::NaiveDate);

    impl<'de> Deserialize<'de> for Date {
        fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            let text = String::deserialize(from)?;
            text.parse().map(Date).map_err(serde::de::Error::custom)
        }
    }
}

/// The version in the first line.
pub(super) fn version(line: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct First {
        version: String,
    }
    serde_json::from_str::<First>(line).ok().map(|f| f.version)
}

/// The card of one line; `None` for a line that is not one (a test parses them all).
pub(super) fn parse(line: &str, version: &Arc<str>) -> Option<ModelCard> {
    let row: Row<'_> = serde_json::from_str(line).ok()?;
    let price = price(&row, version)?;
    Some(ModelCard {
        id: row.id,
        provider: row.p,
        mode: row.mode,
        max_input_tokens: row.max_input,
        max_output_tokens: row.max_output,
        context_window: row.win,
        deprecation: row.dep.map(|d| d.0),
        price,
    })
}

/// A thousand searches are $10 at OpenAI and Anthropic.
const SEARCH: NanoUsd = NanoUsd(10_000_000);

/// With OpenAI's search models before GPT-5, and by the tool of that time (`web_search_preview`) for
/// models that don't reason, a thousand are $25, and what they find is free
/// (<https://platform.openai.com/docs/pricing>).
const SEARCH_MODEL: NanoUsd = NanoUsd(25_000_000);

/// At Perplexity, a thousand requests are up to $14, $22 with Sonar Pro, by how much is searched;
/// with deep research a thousand searches are $5 (<https://docs.perplexity.ai/guides/pricing>).
const SONAR: NanoUsd = NanoUsd(14_000_000);
const SONAR_PRO: NanoUsd = NanoUsd(22_000_000);
const SONAR_RESEARCH: NanoUsd = NanoUsd(5_000_000);

/// At Google, a thousand are $14 with Gemini 3 and later; …
const GOOGLE_SEARCH: NanoUsd = NanoUsd(14_000_000);

/// … with those before, a thousand requests that search are $35, however often each does
/// (<https://ai.google.dev/gemini-api/docs/pricing>). Both have some for nothing first.
const GOOGLE_SEARCHED: NanoUsd = NanoUsd(35_000_000);

/// Seconds of sound that Groq bills a request for at least
/// (<https://console.groq.com/docs/speech-to-text>).
const GROQ_LEAST: u64 = 10;

/// The price of each search, and of each request that searches.
fn searches(row: &Row<'_>) -> (Option<NanoUsd>, Option<NanoUsd>) {
    let id = row.id.rsplit('/').next().unwrap_or_default();
    let by_request = ["gemini-1", "gemini-2"].iter().any(|old| id.starts_with(old));
    match row.p.as_str() {
        "openai" | "azure" if id.contains("-search-preview") => (Some(SEARCH_MODEL), None),
        "openai" | "anthropic" | "azure" => (Some(SEARCH), None),
        "perplexity" if id == "sonar-deep-research" => (Some(SONAR_RESEARCH), None),
        "perplexity" if id == "sonar-pro" => (None, Some(SONAR_PRO)),
        "perplexity" if id.starts_with("sonar") && row.unit.is_empty() => (None, Some(SONAR)),
        "gemini" | "vertex_ai" if by_request => (None, Some(GOOGLE_SEARCHED)),
        "gemini" | "vertex_ai" if id.starts_with("gemini") => (Some(GOOGLE_SEARCH), None),
        _ => (None, None),
    }
}

/// The price of each search by OpenAI's older tool, where it is another.
fn preview_searches(row: &Row<'_>) -> Option<NanoUsd> {
    let id = row.id.rsplit('/').next().unwrap_or_default();
    let reasons = !["gpt-3", "gpt-4", "chatgpt"].iter().any(|old| id.starts_with(old));
    let it_is = matches!(row.p.as_str(), "openai" | "azure");
    (it_is && (!reasons || id.contains("-chat"))).then_some(SEARCH_MODEL)
}

fn price(row: &Row<'_>, version: &Arc<str>) -> Option<Price> {
    let base = rates(&row.usd, "")?;
    let service = |prefix: &str| {
        // Where pictures are the output, the list has the other tiers' rates for text only.
        let any =
            row.mode != "image_generation" && row.usd.keys().any(|kind| kind.starts_with(prefix));
        any.then(|| rates(&row.usd, prefix)).flatten()
    };
    let (per_search, per_searched_request) = searches(row);
    let per_second = each(&row.unit, "second")?;
    let mut steps = Vec::new();
    for (above, kinds) in &row.above {
        let mut rates = rates(kinds, "")?;
        if row.mode == "image_generation" {
            rates.output = rates.output.max(base.output);
        }
        steps.push(Step { above_input_tokens: above.parse().ok()?, rates });
    }
    Some(Price {
        input: base.input,
        output: base.output,
        cached_input: base.cached_input,
        cache_write: base.cache_write,
        cache_write_1h: base.cache_write_1h,
        reasoning: base.reasoning,
        audio_input: base.audio_input,
        audio_output: base.audio_output,
        cached_audio_input: base.cached_audio_input,
        per_request: each(&row.unit, "request")?,
        per_image: each(&row.unit, "image")?,
        per_second,
        least_seconds: if row.p == "groq" && per_second.is_some() { GROQ_LEAST } else { 0 },
        per_character: each(&row.unit, "character")?,
        per_search,
        per_preview_search: preview_searches(row),
        per_searched_request,
        steps,
        flex: service("flex_"),
        priority: service("priority_"),
        free: row.free,
        version: Arc::clone(version),
    })
}

/// The kinds that begin with `prefix`; `None` if one of them is not a number. A service tier
/// that lists only one of input and output has the list price for the other.
fn rates(kinds: &Kinds<'_>, prefix: &str) -> Option<Rates> {
    let get = |kind: &str| -> Option<Option<u64>> {
        match kinds.get(format!("{prefix}{kind}").as_str()) {
            Some(raw) => decimal::rounded_up(raw.get(), 6).ok().map(Some),
            None => Some(None),
        }
    };
    let plain = |kind: &str| -> Option<u64> {
        match kinds.get(kind) {
            Some(raw) => decimal::rounded_up(raw.get(), 6).ok(),
            None => Some(0),
        }
    };
    Some(Rates {
        input: get("input")?.map_or_else(|| plain("input"), Some)?,
        output: get("output")?.map_or_else(|| plain("output"), Some)?,
        cached_input: get("cached_input")?,
        cache_write: get("cache_write")?,
        cache_write_1h: get("cache_write_1h")?,
        reasoning: get("reasoning")?,
        audio_input: get("audio_input")?,
        audio_output: get("audio_output")?,
        cached_audio_input: get("cached_audio_input")?,
    })
}

fn each(units: &Kinds<'_>, name: &str) -> Option<Option<NanoUsd>> {
    match units.get(name) {
        Some(raw) => decimal::rounded_up(raw.get(), 9).ok().map(|n| Some(NanoUsd(n))),
        None => Some(None),
    }
}
