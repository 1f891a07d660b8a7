//! Strings that refer to something outside the file: variables and secrets.

use super::Environment;
use super::problem::{Place, Report};
use super::read::At;
use crate::secret::Secret;
use std::path::{Path, PathBuf};

/// Resolves strings against an environment and the directory of the configuration file.
#[derive(Clone, Copy)]
pub(crate) struct Texts<'a> {
    pub env: &'a dyn Environment,
    pub dir: &'a Path,
}

/// A secret, and whether its plain text stands in the file.
pub(crate) struct Found {
    pub secret: Secret,
    pub inline: bool,
}

impl Texts<'_> {
    /// Puts in `${VAR}` and `${VAR:-default}`; `$${` stands for `${`.
    pub(crate) fn text(&self, raw: &At<String>, report: &mut Report) -> Option<String> {
        let mut out = String::with_capacity(raw.value.len());
        let mut rest = raw.value.as_str();
        while let Some(at) = rest.find("${") {
            let escaped = rest[..at].ends_with('$');
            out.push_str(&rest[..at - usize::from(escaped)]);
            if escaped {
                out.push_str("${");
                rest = &rest[at + 2..];
                continue;
            }
            let Some(end) = rest[at..].find('}') else {
                report.problem(&raw.place, "`${` without `}`", "Write `${NAME}`");
                return None;
            };
            out.push_str(&self.reference(&rest[at + 2..at + end], &raw.place, report)?);
            rest = &rest[at + end + 1..];
        }
        out.push_str(rest);
        if out.is_empty() {
            report.problem(&raw.place, "is empty", "Write a value");
            return None;
        }
        Some(out)
    }

    /// A path, relative to the configuration's directory.
    pub(crate) fn path(&self, raw: &At<String>, report: &mut Report) -> Option<PathBuf> {
        self.text(raw, report).map(|path| self.dir.join(path))
    }

    /// The path and the content of a file that has to be readable.
    pub(crate) fn file(&self, raw: &At<String>, report: &mut Report) -> Option<(PathBuf, String)> {
        let path = self.path(raw, report)?;
        match self.env.read(&path) {
            Ok(content) => Some((path, content)),
            Err(why) => {
                let message = format!("cannot read {}: {}", path.display(), reason(&why));
                let fix = "Put the file there and let this process read it";
                report.problem(&raw.place, message, fix);
                None
            }
        }
    }

    /// A secret: `${VAR}`, `os.environ/VAR`, `env.VAR`, `file:PATH`, or plain text. No message
    /// repeats any part of what is not a reference.
    pub(crate) fn secret(&self, raw: &At<String>, report: &mut Report) -> Option<Found> {
        let text = raw.value.as_str();
        let variable = text.strip_prefix("os.environ/").or_else(|| text.strip_prefix("env."));
        let plain = if let Some(name) = variable {
            self.variable(name, &raw.place, report)?
        } else if let Some(path) = text.strip_prefix("file:") {
            let path = At { value: path.to_owned(), place: raw.place.clone() };
            let (_, content) = self.file(&path, report)?;
            content.trim_end_matches(['\r', '\n']).to_owned()
        } else {
            self.text(raw, report)?
        };
        if plain.trim().is_empty() {
            let fix = "Put the secret in, or leave the key out";
            report.problem(&raw.place, "the secret is empty", fix);
            return None;
        }
        // It goes into a header, where anything else would be refused at the first request.
        if !plain.bytes().all(|b| (0x20..0x7f).contains(&b)) {
            let fix = "Secrets are printable ASCII on one line";
            report.problem(&raw.place, "the secret has characters that no header can carry", fix);
            return None;
        }
        Some(Found {
            secret: Secret::new(plain),
            inline: variable.is_none() && !text.starts_with("file:") && !text.contains("${"),
        })
    }

    /// What stands between `${` and `}`.
    fn reference(&self, inner: &str, at: &Place, report: &mut Report) -> Option<String> {
        match inner.split_once(":-") {
            Some((name, default)) if is_name(name) => {
                let set = self.env.var(name).filter(|value| !value.is_empty());
                Some(set.unwrap_or_else(|| default.to_owned()))
            }
            _ => self.variable(inner, at, report),
        }
    }

    fn variable(&self, name: &str, at: &Place, report: &mut Report) -> Option<String> {
        if !is_name(name) {
            let fix = "Names are letters, digits and `_`, as in `${OPENAI_API_KEY}`";
            report.problem(at, "not the name of a variable", fix);
            return None;
        }
        let missing = match self.env.var(name) {
            Some(value) if !value.is_empty() => return Some(value),
            Some(_) => "is empty",
            None => "is not set",
        };
        let message = format!("the environment variable {name} {missing}");
        report.problem(
            at,
            message,
            format!("Set {name}, or write `file:PATH` where a secret is expected"),
        );
        None
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// What the system said, without its error number.
pub(crate) fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((words, _)) => words.to_owned(),
        None => text,
    }
}
