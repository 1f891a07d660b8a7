//! The gateway's configuration for a scenario.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::request::KEY_PREFIX;

/// The token of the admin listener.
pub(crate) const ADMIN_TOKEN: &str = "q7Xv2mKp9RtL4wZs8BnD3fHj6CgY5aUe";

/// What the gateway is to know and to check.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// All controls on, or none of the optional ones.
    pub(crate) controls: bool,
    pub(crate) keys: u64,
    pub(crate) models: Vec<Model>,
    /// Budget and limits on each key, too; many keys have their team's only.
    pub(crate) per_key: bool,
    /// Tokens that fit the models. A body with more bytes than this is counted by a tokenizer.
    pub(crate) context_window: u64,
    /// How long clients may take for a head, and between two reads; `None`: the usual.
    pub(crate) patience: Option<Duration>,
    /// More lines at the top level.
    pub(crate) more: String,
}

/// A model that clients ask for.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) name: String,
    /// Ids at the provider, in the order of trying.
    pub(crate) targets: Vec<String>,
}

impl Model {
    /// A model with the same name at the provider.
    pub(crate) fn same(name: &str) -> Self {
        Self { name: name.to_owned(), targets: vec![name.to_owned()] }
    }
}

/// Where everybody listens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    pub(crate) data: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) provider: SocketAddr,
}

/// More than any body of ours has bytes: no text is counted.
const WIDE: u64 = 10_000_000;
const LIMITS: &str = "limits: { rpm: 1000000000, tpm: 1000000000000, parallel: 1000000 }";
const BUDGETS: &str = "budgets: [ { usd: 1000000, per: day } ]";

impl Settings {
    /// One key, all controls on, these models.
    pub(crate) fn all_controls(models: Vec<Model>) -> Self {
        Self {
            controls: true,
            keys: 1,
            models,
            per_key: true,
            context_window: WIDE,
            patience: None,
            more: String::new(),
        }
    }

    /// The configuration file.
    pub(crate) fn yaml(&self, at: Addresses) -> String {
        let patience = self.patience.map(|time| {
            let seconds = time.as_secs();
            format!(", header_timeout: {seconds}s, idle_timeout: {seconds}s")
        });
        let mut text = format!(
            "listeners: [ {{ address: \"{}\" }} ]\n\
             admin: {{ address: \"{}\", token: {ADMIN_TOKEN} }}\n\
             state: {{ path: tollbar.db }}\n\
             server: {{ threads: 1, max_buffered_bytes: 4096MiB, drain: 60s{} }}\n\
             providers:\n  p: {{ dialect: openai, base_url: \"http://{}/v1\", api_key: sk-load }}\n{}",
            at.data,
            at.admin,
            patience.unwrap_or_default(),
            at.provider,
            self.more
        );
        text += "models:\n";
        for model in &self.models {
            let _ = writeln!(text, "  \"{}\":\n    targets:", model.name);
            for (n, target) in model.targets.iter().enumerate() {
                // As good as every conversation begins at the first.
                let weight = if n == 0 { 1000 } else { 1 };
                let more = format!("weight: {weight}, price: {{ input: 0.15, output: 0.60 }}");
                let _ = writeln!(text, "      - {{ provider: p, model: \"{target}\", {more} }}");
            }
            let window = self.context_window;
            let _ = writeln!(text, "    max_output_tokens: 4096\n    context_window: {window}");
        }
        self.callers(&mut text);
        text
    }

    fn callers(&self, text: &mut String) {
        text.push_str("keys:\n");
        for number in 0..self.keys {
            let hash = hex::encode(Sha256::digest(format!("{KEY_PREFIX}{number:07}")));
            let control = match (self.controls, self.per_key) {
                (false, _) => "unlimited: true".to_owned(),
                (true, false) => "team: load".to_owned(),
                (true, true) => format!("team: load, user: load, {LIMITS}, {BUDGETS}"),
            };
            let _ = writeln!(
                text,
                "  - {{ id: k{number:07}, hash: \"sha256:{hash}\", models: [\"*\"], {control} }}"
            );
        }
        if self.controls {
            let _ = write!(
                text,
                "teams:\n  load: {{ {LIMITS}, {BUDGETS} }}\n\
                 users:\n  load: {{ {LIMITS}, {BUDGETS} }}\n\
                 global: {{ {LIMITS}, {BUDGETS} }}\n"
            );
        }
    }
}
