//! The configuration as it is written: every key of the file is one line here, and nowhere
//! else. What is absent is `None`; defaults, secrets and rules belong to [`super::resolve`].

use super::problem::{Place, Report};
use super::read::{
    At, Factor, Fields, Named, Positive, Rate, Read, SIZES, Share, Size, parsed, with_unit, word,
    wrong,
};
use super::snapshot::{Http2, MaxMemory, OnDisconnect, OnFailure};
use super::yaml::{Kind, Node};
use crate::keys::LowBudget;
use crate::scope::Per;
use crate::units::{Dialect, NanoUsd};
use std::time::Duration;

/// Defines a section: its struct, the list of its keys and its reader. One key, one place.
macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($key:ident: $type:ty,)* }) => {
        $(#[$doc])*
        // Not every section's own place is needed by a rule.
        #[allow(dead_code)]
        #[derive(Debug, Clone, Default)]
        pub(crate) struct $name {
            pub place: Place,
            /// The keys that are there, readable or not: a value that was already reported is
            /// not also called missing.
            pub given: Vec<&'static str>,
            $(pub $key: Option<$type>,)*
        }

        impl $name {
            pub(crate) const KEYS: &'static [&'static str] = &[$(stringify!($key)),*];

            /// Whether a key is there, readable or not.
            #[allow(dead_code)]
            pub(crate) fn has(&self, key: &str) -> bool {
                self.given.contains(&key)
            }
        }

        impl Read for $name {
            fn read(node: &Node, path: &str, report: &mut Report) -> Option<Self> {
                let fields = Fields::open(node, path, Self::KEYS, report)?;
                Some($name {
                    place: fields.place(),
                    given: fields.given(Self::KEYS),
                    $($key: fields.take(stringify!($key), report),)*
                })
            }
        }
    };
}

section! { File {
    listeners: Vec<Listener>,
    admin: Admin,
    state: State,
    server: Server,
    timezone: At<String>,
    providers: Named<Provider>,
    tiers: Vec<Tier>,
    models: Named<Model>,
    attempts: Attempts,
    breaker: Breaker,
    admission: Admission,
    keys: Vec<Key>,
    teams: Named<Scope>,
    users: Named<Scope>,
    global: Scope,
    alerts: Alerts,
    prices: Prices,
}}

section! { Listener { address: At<String>, tls: Tls, }}
section! { Tls { cert: At<String>, key: At<String>, }}
section! { Admin { address: At<String>, token: At<String>, }}
section! { State { path: At<String>, on_failure: OnFailure, retention: At<Duration>, }}
section! { Server {
    threads: At<Threads>,
    max_body_bytes: At<Size>,
    max_buffered_bytes: At<Size>,
    max_memory: At<MaxMemory>,
    drain: Duration,
    header_timeout: At<Duration>,
    idle_timeout: At<Duration>,
}}
section! { Provider {
    dialect: Dialect,
    base_url: At<String>,
    api_key: At<String>,
    headers: Named<At<String>>,
    connect_timeout: At<Duration>,
    read_timeout: At<Duration>,
    http2: Http2,
    ca_file: At<String>,
    limits: Limits,
    budgets: Vec<Budget>,
    on_disconnect: OnDisconnect,
    passthrough: Passthrough,
}}
section! { Passthrough { unmetered: Vec<At<String>>, }}
section! { Tier { name: At<String>, max_blended: At<Rate>, }}
section! { Model {
    targets: At<Vec<Target>>,
    fallbacks: Fallbacks,
    fallback_order: Order,
    max_output_tokens: Positive,
    context_window: Positive,
    unseen_input_tokens: Positive,
    first_token_timeout: At<Duration>,
    latency_budget: At<Duration>,
    limits: Limits,
    budgets: Vec<Budget>,
}}
section! { Target {
    provider: At<String>,
    model: At<String>,
    weight: At<Weight>,
    rollback_on: Rollback,
    price: At<Price>,
}}
section! { Rollback { error_rate: Share, window: At<Duration>, }}
section! { PriceMap {
    input: Rate,
    output: Rate,
    cached_input: Rate,
    cache_write: Rate,
    cache_write_1h: Rate,
    reasoning: Rate,
    audio_input: Rate,
    audio_output: Rate,
    cached_audio_input: Rate,
    per_request: NanoUsd,
    per_image: NanoUsd,
    per_second: NanoUsd,
    per_character: NanoUsd,
    per_search: NanoUsd,
    per_searched_request: NanoUsd,
    steps: Vec<PriceStep>,
    context_window: At<Positive>,
    max_output_tokens: At<Positive>,
}}
section! { PriceStep {
    above_input_tokens: Positive,
    input: Rate,
    output: Rate,
    cached_input: Rate,
    cache_write: Rate,
    cache_write_1h: Rate,
    reasoning: Rate,
    audio_input: Rate,
    audio_output: Rate,
}}
section! { Attempts { max: At<u32>, deadline: At<Duration>, same_target: u32, }}
section! { Breaker { failures: At<u32>, window: At<Duration>, cooldown: Duration, }}
section! { Admission { wait: Duration, }}
section! { Key {
    id: At<String>,
    hash: At<String>,
    key: At<Forbidden>,
    team: At<String>,
    user: At<String>,
    models: At<Vec<At<String>>>,
    limits: Limits,
    budgets: Vec<Budget>,
    unlimited: bool,
    expires: At<String>,
    metadata: Metadata,
    low_budget: LowBudget,
}}
section! { Scope { limits: Limits, budgets: Vec<Budget>, }}
section! { Limits { rpm: Positive, tpm: Positive, parallel: Positive, }}
section! { Budget { usd: At<NanoUsd>, per: Per, }}
section! { Alerts {
    webhooks: Vec<Webhook>,
    budget_at: Vec<Share>,
    fallback_rate: Share,
    spend_velocity: Factor,
}}
section! { Webhook { url: At<String>, secret: At<String>, }}
section! { Prices { file: At<String>, }}

/// Every section's keys, for the test that `conf/reference.yaml` shows all of them.
#[cfg(test)]
pub(crate) const SCHEMA: &[&[&str]] = &[
    File::KEYS,
    Listener::KEYS,
    Tls::KEYS,
    Admin::KEYS,
    State::KEYS,
    Server::KEYS,
    Provider::KEYS,
    Passthrough::KEYS,
    Tier::KEYS,
    Model::KEYS,
    Target::KEYS,
    PriceMap::KEYS,
    PriceStep::KEYS,
    Rollback::KEYS,
    Attempts::KEYS,
    Breaker::KEYS,
    Admission::KEYS,
    Key::KEYS,
    Scope::KEYS,
    Limits::KEYS,
    Budget::KEYS,
    Alerts::KEYS,
    Webhook::KEYS,
    Prices::KEYS,
];

/// `threads: auto`, or how many.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Threads {
    Auto,
    Exactly(usize),
}

impl Read for Threads {
    fn read(node: &Node, path: &str, report: &mut Report) -> Option<Self> {
        let threads = ("`auto` or a number from 1 to 1024", "`auto`");
        parsed(node, path, threads, report, |text| match text.parse() {
            _ if text == "auto" => Ok(Threads::Auto),
            Ok(n @ 1..=1024) => Ok(Threads::Exactly(n)),
            _ => Err(""),
        })
    }
}

impl Read for MaxMemory {
    fn read(node: &Node, path: &str, report: &mut Report) -> Option<Self> {
        let words = [("auto", MaxMemory::Auto), ("none", MaxMemory::Unlimited)];
        if let Kind::Scalar(text) = &node.kind
            && let Some((_, meant)) = words.iter().find(|(word, _)| *word == text.as_str())
        {
            return Some(*meant);
        }
        let size = ("`auto`, `none` or a size", "`auto`, or one like 2GiB");
        parsed(node, path, size, report, |text| with_unit(text, SIZES)).map(MaxMemory::Bytes)
    }
}

/// `weight: 2` beside other weights, or `weight: 5%` of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weight {
    Parts(u32),
    Percent(u32),
}

impl Read for Weight {
    fn read(node: &Node, path: &str, report: &mut Report) -> Option<Self> {
        let weight =
            ("a whole number up to 1000, or a share such as 5%", "`1`, or `5%` for a canary");
        parsed(node, path, weight, report, |text| match text.strip_suffix('%') {
            Some(share) => match share.trim().parse() {
                Ok(percent @ 1..=99) => Ok(Weight::Percent(percent)),
                _ => Err("out of range"),
            },
            None => match text.parse() {
                Ok(parts @ 0..=1000) => Ok(Weight::Parts(parts)),
                _ => Err(""),
            },
        })
    }
}

/// `price: free`, or what each kind costs.
#[derive(Debug, Clone)]
pub(crate) enum Price {
    Free,
    Map(Box<PriceMap>),
}

impl Read for Price {
    fn read(node: &Node, path: &str, report: &mut Report) -> Option<Self> {
        match &node.kind {
            Kind::Scalar(text) if text == "free" => Some(Price::Free),
            Kind::Map(_) => PriceMap::read(node, path, report).map(|map| Price::Map(Box::new(map))),
            _ => {
                let example = "`{ input: 0.15, output: 0.60 }` (US dollars per million tokens)";
                wrong(node, path, "a map of prices, or `free`", example, report)
            }
        }
    }
}

/// `fallbacks: auto`, or names of models.
#[derive(Debug, Clone)]
pub(crate) enum Fallbacks {
    Auto,
    Listed(Vec<At<String>>),
}

impl Read for Fallbacks {
    fn read(node: &Node, path: &str, report: &mut Report) -> Option<Self> {
        match &node.kind {
            Kind::Scalar(text) if text == "auto" => Some(Fallbacks::Auto),
            Kind::Seq(_) => Vec::read(node, path, report).map(Fallbacks::Listed),
            _ => wrong(node, path, "a list of models, or `auto`", "`[model-a, model-b]`", report),
        }
    }
}

/// The order in which fallbacks are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Cheapest,
    Written,
}

impl Read for Order {
    fn read(node: &Node, path: &str, report: &mut Report) -> Option<Self> {
        let words = [("cheapest", Order::Cheapest), ("written", Order::Written)];
        word(node, path, &words, report)
    }
}

/// A key that must not be there, and whose value must not be repeated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Forbidden;

impl Read for Forbidden {
    fn read(_: &Node, _: &str, _: &mut Report) -> Option<Self> {
        Some(Forbidden)
    }
}

/// Anything, as a compact JSON object.
#[derive(Debug, Clone)]
pub(crate) struct Metadata(pub String);

impl Read for Metadata {
    fn read(node: &Node, path: &str, report: &mut Report) -> Option<Self> {
        if !matches!(node.kind, Kind::Map(_)) {
            return wrong(node, path, "a map", "`{ app: storefront }`", report);
        }
        Some(Metadata(json(node).to_string()))
    }
}

fn json(node: &Node) -> serde_json::Value {
    match &node.kind {
        Kind::Null => serde_json::Value::Null,
        Kind::Scalar(text) => text.as_str().into(),
        Kind::Seq(items) => items.iter().map(json).collect(),
        Kind::Map(entries) => {
            entries.iter().map(|entry| (entry.key.clone(), json(&entry.value))).collect()
        }
    }
}

impl Read for Http2 {
    fn read(node: &Node, path: &str, report: &mut Report) -> Option<Self> {
        let words = [("auto", Http2::Auto), ("never", Http2::Never), ("always", Http2::Always)];
        word(node, path, &words, report)
    }
}

impl Read for OnDisconnect {
    fn read(node: &Node, path: &str, report: &mut Report) -> Option<Self> {
        let words = [("cancel", OnDisconnect::Cancel), ("drain", OnDisconnect::Drain)];
        word(node, path, &words, report)
    }
}

impl Read for OnFailure {
    fn read(node: &Node, path: &str, report: &mut Report) -> Option<Self> {
        word(node, path, &[("closed", OnFailure::Closed), ("open", OnFailure::Open)], report)
    }
}

impl Read for LowBudget {
    fn read(node: &Node, path: &str, report: &mut Report) -> Option<Self> {
        word(node, path, &[("refuse", LowBudget::Refuse), ("clamp", LowBudget::Clamp)], report)
    }
}
