//! One row of the ledger: an upstream attempt, and the words its columns are written in.

use super::store::MAX_COST;
use crate::json_line::{JsonLine, field};
use crate::scope::{Per, ScopeKind};
use crate::units::{NanoUsd, UsageSource};
use chrono::{DateTime, SecondsFormat, TimeZone, Utc};
use serde::de::{Deserialize, Deserializer, Error};
use serde::ser::{Serialize, Serializer};
use std::borrow::Cow;

/// One upstream attempt, as table `attempts` has it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Row {
    /// Unique over all processes of one database; given by the ledger.
    pub id: i64,
    /// The client's request; its attempts share it.
    pub request_id: String,
    /// When the attempt's money was held: this decides the budget windows it counts in.
    #[serde(with = "micros")]
    pub at: DateTime<Utc>,
    /// The virtual key.
    pub key_id: String,
    /// The key's team.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<String>,
    /// The key's user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The model served, by the name clients use.
    pub model: String,
    /// The provider tried.
    pub provider: String,
    /// The model's name at the provider.
    pub target_model: String,
    /// 1 for the request's first attempt.
    pub attempt: u32,
    /// How it ended, in one word; `lost` when the process did not live to see it.
    pub outcome: Cow<'static, str>,
    /// The provider's status, if it answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Whether the answer was streamed.
    pub stream: bool,
    /// All input tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_tokens: Option<u64>,
    /// Of them read from the provider's cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_input_tokens: Option<u64>,
    /// Of them written to the provider's cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_write_tokens: Option<u64>,
    /// All output tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_tokens: Option<u64>,
    /// Of them spent on reasoning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_tokens: Option<u64>,
    /// Where the token numbers are from.
    #[serde(with = "word")]
    pub usage_source: UsageSource,
    /// What it cost.
    #[serde(with = "nano")]
    pub cost_nano_usd: NanoUsd,
    /// The price list the cost was computed with.
    pub price_version: String,
    /// Until the first byte of the answer, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_token_ms: Option<u64>,
    /// The whole attempt, in milliseconds.
    pub duration_ms: u64,
    /// The client had left before the end.
    pub client_gone: bool,
    /// The key's metadata: a JSON object or nothing.
    pub metadata: String,
}

impl Row {
    /// A row of which nothing is known but when.
    pub fn new(at: DateTime<Utc>) -> Row {
        Row {
            id: 0,
            request_id: String::new(),
            at,
            key_id: String::new(),
            team: None,
            user: None,
            model: String::new(),
            provider: String::new(),
            target_model: String::new(),
            attempt: 1,
            outcome: Cow::Borrowed(""),
            status: None,
            stream: false,
            input_tokens: None,
            cached_input_tokens: None,
            cache_write_tokens: None,
            output_tokens: None,
            reasoning_tokens: None,
            usage_source: UsageSource::None,
            cost_nano_usd: NanoUsd(0),
            price_version: String::new(),
            first_token_ms: None,
            duration_ms: 0,
            client_gone: false,
            metadata: String::new(),
        }
    }

    /// Writes it for the journal, as it is read again; what is unknown is left out.
    pub(super) fn write(&self, line: &mut JsonLine) {
        line.number(field!("id"), self.id);
        line.text(field!("request_id"), &self.request_id);
        line.number(field!("at"), self.at.timestamp_micros());
        line.text(field!("key_id"), &self.key_id);
        for (name, text) in [(field!("team"), &self.team), (field!("user"), &self.user)] {
            if let Some(text) = text {
                line.text(name, text);
            }
        }
        line.text(field!("model"), &self.model);
        line.text(field!("provider"), &self.provider);
        line.text(field!("target_model"), &self.target_model);
        line.number(field!("attempt"), self.attempt);
        line.text(field!("outcome"), &self.outcome);
        line.flag(field!("stream"), self.stream);
        let numbers = [
            (field!("status"), self.status.map(u64::from)),
            (field!("input_tokens"), self.input_tokens),
            (field!("cached_input_tokens"), self.cached_input_tokens),
            (field!("cache_write_tokens"), self.cache_write_tokens),
            (field!("output_tokens"), self.output_tokens),
            (field!("reasoning_tokens"), self.reasoning_tokens),
            (field!("first_token_ms"), self.first_token_ms),
        ];
        for (name, number) in numbers {
            if let Some(number) = number {
                line.number(name, number);
            }
        }
        line.text(field!("usage_source"), self.usage_source.word());
        line.number(field!("cost_nano_usd"), self.cost_nano_usd.0);
        line.text(field!("price_version"), &self.price_version);
        line.number(field!("duration_ms"), self.duration_ms);
        line.flag(field!("client_gone"), self.client_gone);
        line.text(field!("metadata"), &self.metadata);
    }

    /// The column that names a scope of this kind; `None` where the attempt has none.
    pub fn scope(&self, kind: ScopeKind) -> Option<&str> {
        match kind {
            ScopeKind::Key => Some(&self.key_id),
            ScopeKind::User => self.user.as_deref(),
            ScopeKind::Team => self.team.as_deref(),
            ScopeKind::Model => Some(&self.model),
            ScopeKind::Provider => Some(&self.provider),
            ScopeKind::Global => Some(""),
        }
    }

    /// Fills in the column that names a scope of this kind.
    pub(super) fn name_scope(&mut self, kind: ScopeKind, id: String) {
        match kind {
            ScopeKind::Key => self.key_id = id,
            ScopeKind::User => self.user = Some(id),
            ScopeKind::Team => self.team = Some(id),
            ScopeKind::Model => self.model = id,
            ScopeKind::Provider => self.provider = id,
            ScopeKind::Global => {}
        }
    }
}

/// A moment as the ledger writes it: UTC, in microseconds, so that text order is time order.
pub fn instant(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// A word of a small vocabulary, as configuration, ledger and journal spell it.
pub(super) trait Word: Copy {
    fn word(self) -> &'static str;
    fn read(word: &str) -> Option<Self>;
}

impl Word for ScopeKind {
    fn word(self) -> &'static str {
        self.as_str()
    }
    fn read(word: &str) -> Option<Self> {
        ScopeKind::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}

impl Word for Per {
    fn word(self) -> &'static str {
        self.as_str()
    }
    fn read(word: &str) -> Option<Self> {
        Per::ALL.into_iter().find(|per| per.as_str() == word)
    }
}

impl Word for UsageSource {
    fn word(self) -> &'static str {
        self.as_str()
    }
    fn read(word: &str) -> Option<Self> {
        let all = [UsageSource::Reported, UsageSource::Estimated, UsageSource::None];
        all.into_iter().find(|source| source.as_str() == word)
    }
}

/// A [`Word`] for serde.
pub(super) mod word {
    use super::{Cow, Deserialize, Deserializer, Error, Serializer, Word};

    pub(in super::super) fn serialize<T: Word, S: Serializer>(
        t: &T,
        s: S,
    ) -> Result<S::Ok, S::Error> {
        s.serialize_str(t.word())
    }

    pub(in super::super) fn deserialize<'de, T: Word, D: Deserializer<'de>>(
        d: D,
    ) -> Result<T, D::Error> {
        let word = Cow::<str>::deserialize(d)?;
        T::read(&word).ok_or_else(|| D::Error::custom(format!("unknown word {word:?}")))
    }
}

/// Money for serde.
mod nano {
    use super::{Deserialize, Deserializer, MAX_COST, NanoUsd, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(t: &NanoUsd, s: S) -> Result<S::Ok, S::Error> {
        t.0.serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<NanoUsd, D::Error> {
        u64::deserialize(d).map(|nano| NanoUsd(nano).min(MAX_COST))
    }
}

/// A moment for serde, in microseconds since 1970.
pub(super) mod micros {
    use super::{DateTime, Deserialize, Deserializer, Error, Serialize, Serializer, TimeZone, Utc};

    pub(in super::super) fn serialize<S: Serializer>(
        t: &DateTime<Utc>,
        s: S,
    ) -> Result<S::Ok, S::Error> {
        t.timestamp_micros().serialize(s)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        d: D,
    ) -> Result<DateTime<Utc>, D::Error> {
        let micros = i64::deserialize(d)?;
        Utc.timestamp_micros(micros).single().ok_or_else(|| D::Error::custom("no such time"))
    }
}
