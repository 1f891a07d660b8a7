//! The price catalogue: list prices, limits and retirement dates of the providers' models.
//!
//! The built-in one is `conf/catalog.jsonl`, produced by `conf/build_catalog.py`. A row is
//! parsed when it is first asked for: a start needs a handful of two thousand.

pub mod decimal;
mod habits;
mod host;
mod price;
mod row;
#[cfg(test)]
mod tests;

pub use habits::Habits;
pub use host::provider_of;
pub use price::{Price, Rates, Service, Step, Units, most_seconds};

use ahash::AHashMap;
use chrono::NaiveDate;
use std::sync::{Arc, OnceLock};

/// What is known of one model at one provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelCard {
    /// The provider's own id.
    pub id: String,
    /// The catalogue's name of the provider: `openai`, `anthropic`, `together_ai` …
    pub provider: String,
    /// `chat`, `embedding`, `image_generation`, `audio_transcription` …
    pub mode: String,
    /// The longest input, in tokens.
    pub max_input_tokens: Option<u64>,
    /// The longest output, in tokens.
    pub max_output_tokens: Option<u64>,
    /// Input and output together, in tokens. Never smaller than the truth.
    pub context_window: Option<u64>,
    /// When the provider stops serving it.
    pub deprecation: Option<NaiveDate>,
    /// The list price.
    pub price: Price,
}

/// Prices by provider and model: a file's own on top of the built-in ones.
#[derive(Debug, Clone)]
pub struct Catalog {
    own: AHashMap<(String, String), Arc<ModelCard>>,
    builtin: &'static Index,
}

/// The built-in rows by provider and id, unparsed.
#[derive(Debug)]
struct Index {
    rows: AHashMap<(&'static str, &'static str), &'static str>,
    version: Arc<str>,
}

const BUILTIN: &str = include_str!("../../conf/catalog.jsonl");

impl Catalog {
    /// The built-in catalogue alone.
    pub fn builtin() -> Arc<Catalog> {
        static BUILTIN: OnceLock<Arc<Catalog>> = OnceLock::new();
        Arc::clone(BUILTIN.get_or_init(|| Arc::new(Catalog::with(Vec::new()))))
    }

    /// The built-in catalogue with `own` cards on top. A card's provider is a catalogue name
    /// or the name of a configured provider.
    pub fn with(own: Vec<ModelCard>) -> Catalog {
        Catalog {
            own: own
                .into_iter()
                .map(|card| ((card.provider.clone(), card.id.clone()), Arc::new(card)))
                .collect(),
            builtin: index(),
        }
    }

    /// The card of a provider's `model`, where `provider` is a catalogue name (see
    /// [`provider_of`]), possibly followed by `@region`. No near match is tried: the price of
    /// another model is not a price. An OpenAI fine-tune (`ft:base:org::id`) has its base's.
    pub fn find(&self, provider: &str, model: &str) -> Option<Arc<ModelCard>> {
        let (provider, region) = match provider.split_once('@') {
            Some((provider, region)) => (provider, Some(region)),
            None => (provider, None),
        };
        let model = model.strip_prefix("models/").unwrap_or(model);
        let regional = region.map(|region| format!("{region}/{model}"));
        regional
            .as_deref()
            .into_iter()
            .chain([model])
            .chain(fine_tuned(model))
            .find_map(|id| self.exact(provider, id))
    }

    /// The card that was put on top of the built-in ones under exactly this name.
    pub fn own(&self, provider: &str, model: &str) -> Option<Arc<ModelCard>> {
        let key = (provider.to_owned(), model.to_owned());
        self.own.get(&key).map(Arc::clone)
    }

    /// Ids of a provider's models, for suggestions.
    pub fn ids<'a>(&'a self, provider: &'a str) -> impl Iterator<Item = &'a str> {
        let provider = provider.split('@').next().unwrap_or(provider);
        let own = self.own.keys().filter(move |(p, _)| p == provider);
        let built = self.builtin.rows.keys().filter(move |(p, _)| *p == provider);
        own.map(|(_, id)| id.as_str()).chain(built.map(|(_, id)| *id))
    }

    fn exact(&self, provider: &str, id: &str) -> Option<Arc<ModelCard>> {
        if let Some(card) = self.own.get(&(provider.to_owned(), id.to_owned())) {
            return Some(Arc::clone(card));
        }
        let line = self.builtin.rows.get(&(provider, id))?;
        row::parse(line, &self.builtin.version).map(Arc::new)
    }
}

/// `ft:gpt-4o-mini-2024-07-18` of `ft:gpt-4o-mini-2024-07-18:acme::abc`.
fn fine_tuned(model: &str) -> Option<&str> {
    let rest = model.strip_prefix("ft:")?;
    let end = rest.find(':')?;
    Some(&model[..3 + end])
}

/// Whether the catalogue knows a provider of this name.
pub fn knows_provider(name: &str) -> bool {
    index().rows.keys().any(|(provider, _)| *provider == name)
}

/// Cuts the file into rows by the fixed beginning of its lines; parses none of them.
fn index() -> &'static Index {
    static INDEX: OnceLock<Index> = OnceLock::new();
    INDEX.get_or_init(|| {
        let mut lines = BUILTIN.lines();
        let version = lines.next().and_then(row::version).unwrap_or_default();
        let rows = lines
            .filter_map(|line| {
                let rest = line.strip_prefix(r#"{"p":""#)?;
                let (provider, rest) = rest.split_once(r#"","id":""#)?;
                let (id, _) = rest.split_once('"')?;
                Some(((provider, id), line))
            })
            .collect();
        Index { rows, version: format!("catalogue-{version}").into() }
    })
}
