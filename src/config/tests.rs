//! Whole files in, problems or snapshots out.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod alike;
mod bad;
mod good;
mod secrets;
mod shipped;

use super::{Environment, Invalid, Loaded, load_text};
use std::collections::HashMap;
use std::io::{Error, ErrorKind};
use std::path::Path;

/// Variables and files that exist only in a test.
#[derive(Default)]
pub(crate) struct Fake {
    vars: HashMap<String, String>,
    files: HashMap<String, String>,
}

impl Fake {
    fn var(mut self, name: &str, value: &str) -> Fake {
        self.vars.insert(name.into(), value.into());
        self
    }

    fn file(mut self, path: &str, content: &str) -> Fake {
        self.files.insert(path.into(), content.into());
        self
    }
}

impl Environment for Fake {
    fn var(&self, name: &str) -> Option<String> {
        self.vars.get(name).cloned()
    }

    fn read(&self, path: &Path) -> std::io::Result<String> {
        let found = self.files.get(path.to_str().unwrap());
        found.cloned().ok_or_else(|| Error::from(ErrorKind::NotFound))
    }

    fn now(&self) -> chrono::DateTime<chrono::Utc> {
        "2026-11-21T00:00:00Z".parse().unwrap()
    }
}

fn load(text: &str, env: &Fake) -> Result<Loaded, Invalid> {
    load_text(text, "tollbar.yaml", Path::new("/etc/tollbar"), env, None)
}

fn good(text: &str) -> Loaded {
    load(text, &Fake::default()).unwrap_or_else(|invalid| panic!("{invalid}"))
}

fn bad(text: &str) -> Invalid {
    load(text, &Fake::default()).expect_err("should not load")
}

/// A small configuration that loads, with parts to replace. `%models` and the like are the
/// sections' bodies.
const BASE: &str = r#"listeners: [ { address: "127.0.0.1:8080" } ]
providers:
  openai: { dialect: openai, base_url: "https://api.openai.com/v1" }
  local: { dialect: openai, base_url: "http://127.0.0.1:1/v1" }
models:
  mini: { targets: [ { provider: openai, model: gpt-4o-mini } ] }
keys:
  - { id: a, hash: "sha256:0000000000000000000000000000000000000000000000000000000000000001", models: ["*"], budgets: [ { usd: 1, per: day } ] }
"#;

/// [`BASE`] with one text replaced by another; it has to be there.
fn with(from: &str, to: &str) -> String {
    assert!(BASE.contains(from), "{from}");
    BASE.replacen(from, to, 1)
}
