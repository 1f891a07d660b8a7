//! From the located tree to the types of [`super::file`]: strict, and never stopping at the
//! first problem.

use super::problem::{Place, Report, join};
use super::suggest::{self, shown};
use super::yaml::{Kind, Node};
use crate::catalog::decimal;
use crate::scope::Per;
use crate::units::{Dialect, NanoUsd};
use std::time::Duration;

/// Something that a node can be read as. `None` after a problem was reported.
pub(crate) trait Read: Sized {
    fn read(node: &Node, path: &str, report: &mut Report) -> Option<Self>;
}

/// A value with its place.
#[derive(Debug, Clone)]
pub(crate) struct At<T> {
    pub value: T,
    pub place: Place,
}

impl<T: Read> Read for At<T> {
    fn read(node: &Node, path: &str, report: &mut Report) -> Option<Self> {
        T::read(node, path, report).map(|value| At { value, place: place(node, path) })
    }
}

/// A map whose keys are names that the user chose, in the order of the file.
#[derive(Debug, Clone)]
pub(crate) struct Named<T>(pub Vec<(String, At<T>)>);

const MERGE: &str = "YAML merge keys are not supported";

impl<T> Default for Named<T> {
    fn default() -> Self {
        Named(Vec::new())
    }
}

impl<T: Read> Read for Named<T> {
    fn read(node: &Node, path: &str, report: &mut Report) -> Option<Self> {
        let Kind::Map(entries) = &node.kind else {
            return wrong(node, path, "a map from names", "`name: { … }`", report);
        };
        let read = entries.iter().filter_map(|entry| {
            let path = join(path, &shown(&entry.key));
            if entry.key == "<<" {
                let at = Place { line: Some(entry.line), path };
                report.problem(&at, MERGE, "Write the keys out");
                return None;
            }
            let value = T::read(&entry.value, &path, report)?;
            let place = Place { line: Some(entry.line), path };
            Some((entry.key.clone(), At { value, place }))
        });
        Some(Named(read.collect()))
    }
}

impl<T: Read> Read for Vec<T> {
    fn read(node: &Node, path: &str, report: &mut Report) -> Option<Self> {
        let Kind::Seq(items) = &node.kind else {
            return wrong(node, path, "a list", "`[ … ]`", report);
        };
        let read = items
            .iter()
            .enumerate()
            .filter_map(|(i, item)| T::read(item, &format!("{path}[{i}]"), report));
        Some(read.collect())
    }
}

/// The keys of a map that has a fixed set of them.
pub(crate) struct Fields<'n> {
    node: &'n Node,
    path: &'n str,
}

impl<'n> Fields<'n> {
    /// Opens a map, reporting keys that are not `known`.
    pub(crate) fn open(
        node: &'n Node,
        path: &'n str,
        known: &[&str],
        report: &mut Report,
    ) -> Option<Self> {
        let Kind::Map(entries) = &node.kind else {
            let fix = format!("`{{ {}: … }}`", known.first().unwrap_or(&"key"));
            return wrong(node, path, "a map", &fix, report);
        };
        for entry in entries.iter().filter(|e| !known.contains(&e.key.as_str())) {
            let at = Place { line: Some(entry.line), path: join(path, &shown(&entry.key)) };
            let fix = match entry.key.as_str() {
                "<<" => format!("{MERGE}: write the keys out"),
                key => suggest::fix(key, known.iter().copied()),
            };
            report.problem(&at, "unknown key", fix);
        }
        Some(Fields { node, path })
    }

    /// The value of a key, if it is there and can be read.
    pub(crate) fn take<T: Read>(&self, key: &str, report: &mut Report) -> Option<T> {
        let Kind::Map(entries) = &self.node.kind else {
            return None;
        };
        let entry = entries.iter().find(|entry| entry.key == key)?;
        T::read(&entry.value, &join(self.path, key), report)
    }

    /// Those of `known` that are there.
    pub(crate) fn given(&self, known: &[&'static str]) -> Vec<&'static str> {
        let Kind::Map(entries) = &self.node.kind else {
            return Vec::new();
        };
        let there = |key: &&&str| entries.iter().any(|entry| entry.key == ***key);
        known.iter().filter(there).copied().collect()
    }

    /// The place of the map itself.
    pub(crate) fn place(&self) -> Place {
        place(self.node, self.path)
    }
}

pub(crate) fn place(node: &Node, path: &str) -> Place {
    Place { line: Some(node.line), path: path.to_owned() }
}

/// Reports a value of the wrong type.
pub(crate) fn wrong<T>(
    node: &Node,
    path: &str,
    expected: &str,
    example: &str,
    report: &mut Report,
) -> Option<T> {
    let message = format!("expected {expected}, found {}", node.what());
    report.problem(&place(node, path), message, format!("Write {example}"));
    None
}

/// The text of a scalar that is not empty.
pub(crate) fn scalar<'n>(
    node: &'n Node,
    path: &str,
    expected: &str,
    example: &str,
    report: &mut Report,
) -> Option<&'n str> {
    match &node.kind {
        Kind::Scalar(text) if !text.is_empty() => Some(text),
        Kind::Scalar(_) => {
            let message = format!("expected {expected}, found an empty string");
            report.problem(&place(node, path), message, format!("Write {example}"));
            None
        }
        _ => wrong(node, path, expected, example, report),
    }
}

/// A scalar that `parse` understands; its error says why not.
pub(crate) fn parsed<T, E: std::fmt::Display>(
    node: &Node,
    path: &str,
    (expected, example): (&str, &str),
    report: &mut Report,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Option<T> {
    let text = scalar(node, path, expected, example, report)?;
    match parse(text) {
        Ok(value) => Some(value),
        Err(why) => {
            let why = why.to_string();
            let because = if why.is_empty() { String::new() } else { format!(" ({why})") };
            let message = format!("expected {expected}, found `{}`{because}", shown(text));
            report.problem(&place(node, path), message, format!("Write {example}"));
            None
        }
    }
}

/// One of a few words.
pub(crate) fn word<T: Copy>(
    node: &Node,
    path: &str,
    words: &[(&str, T)],
    report: &mut Report,
) -> Option<T> {
    let names: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
    let all = names.join(", ");
    let text = scalar(node, path, &format!("one of {all}"), names.first()?, report)?;
    let found = words.iter().find(|(name, _)| *name == text);
    if found.is_none() {
        let message = format!("expected one of {all}, found `{}`", shown(text));
        report.problem(&place(node, path), message, suggest::fix(text, names));
    }
    found.map(|(_, value)| *value)
}

impl Read for String {
    fn read(node: &Node, path: &str, report: &mut Report) -> Option<Self> {
        scalar(node, path, "text", "`\"…\"`", report).map(str::to_owned)
    }
}

impl Read for bool {
    fn read(node: &Node, path: &str, report: &mut Report) -> Option<Self> {
        word(node, path, &[("true", true), ("false", false)], report)
    }
}

/// A whole number, zero included.
impl Read for u64 {
    fn read(node: &Node, path: &str, report: &mut Report) -> Option<Self> {
        let whole = ("a whole number", "digits only, such as 100");
        parsed(node, path, whole, report, |text| {
            if text.bytes().all(|b| b.is_ascii_digit()) {
                text.parse().map_err(|_| "too large")
            } else {
                Err("")
            }
        })
    }
}

/// A whole number of at least one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Positive(pub u64);

impl Read for Positive {
    fn read(node: &Node, path: &str, report: &mut Report) -> Option<Self> {
        let n = u64::read(node, path, report)?;
        if n == 0 {
            let fix = "Write at least 1, or leave the key out for no limit";
            report.problem(&place(node, path), "must be more than zero", fix);
            return None;
        }
        Some(Positive(n))
    }
}

/// A number of times.
impl Read for u32 {
    fn read(node: &Node, path: &str, report: &mut Report) -> Option<Self> {
        let n = u64::read(node, path, report)?;
        match u32::try_from(n) {
            Ok(n) => Some(n),
            Err(_) => {
                report.problem(&place(node, path), format!("{n} is too large"), "");
                None
            }
        }
    }
}

/// A number with a unit behind it: `(unit, factor)`, the units' longest first.
pub(crate) fn with_unit(text: &str, units: &[(&str, u64)]) -> Result<u64, &'static str> {
    let found = units.iter().find_map(|(unit, factor)| {
        let number = text.strip_suffix(unit)?.trim_end();
        (!number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
            .then_some((number, factor))
    });
    let (number, factor) = found.ok_or(if text.bytes().all(|b| b.is_ascii_digit()) {
        "the unit is missing"
    } else {
        ""
    })?;
    number.parse::<u64>().ok().and_then(|n| n.checked_mul(*factor)).ok_or("too large")
}

const TIMES: &[(&str, u64)] =
    &[("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// A duration, if the text is one.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    with_unit(text, TIMES).ok().map(Duration::from_millis)
}

impl Read for Duration {
    fn read(node: &Node, path: &str, report: &mut Report) -> Option<Self> {
        let duration = ("a duration", "one like 500ms, 20s, 5m, 1h or 1d");
        parsed(node, path, duration, report, |text| with_unit(text, TIMES))
            .map(Duration::from_millis)
    }
}

/// A number of bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size(pub u64);

pub(crate) const SIZES: &[(&str, u64)] =
    &[("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("B", 1)];

impl Read for Size {
    fn read(node: &Node, path: &str, report: &mut Report) -> Option<Self> {
        let size = ("a size", "one like 64KiB or 64MiB");
        parsed(node, path, size, report, |text| with_unit(text, SIZES)).map(Size)
    }
}

/// Dollars, to the nano-dollar.
impl Read for NanoUsd {
    fn read(node: &Node, path: &str, report: &mut Report) -> Option<Self> {
        let money = (
            "an amount in US dollars",
            "one like 50 or 0.25, with at most nine digits after the point",
        );
        parsed(node, path, money, report, |text| decimal::exact(text, 9)).map(NanoUsd)
    }
}

/// What no provider charges: $0.001 per million tokens, in picodollars per token. Prices per token
/// are below it, and would be taken for a millionth of what they are.
const LEAST_RATE: u64 = 1_000;

/// Dollars per million tokens, in picodollars per token.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate(pub u64);

impl Read for Rate {
    fn read(node: &Node, path: &str, report: &mut Report) -> Option<Self> {
        let rate = ("US dollars per million tokens", "one like 0.15");
        let read = parsed(node, path, rate, report, |text| decimal::rounded_up(text, 6))?;
        if (1..LEAST_RATE).contains(&read) {
            let message =
                "less than $0.001 per million tokens: a price per token, as LiteLLM has it";
            report.problem(
                &place(node, path),
                message,
                "Write it per million: 0.15, not 0.00000015",
            );
            return None;
        }
        Some(Rate(read))
    }
}

/// A share of one, in millionths.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Share(pub u32);

impl Read for Share {
    fn read(node: &Node, path: &str, report: &mut Report) -> Option<Self> {
        let share = ("a share between 0 and 1", "one like 0.8");
        parsed(node, path, share, report, |text| {
            let millionths = decimal::exact(text, 6).map_err(|e| e.to_string())?;
            match u32::try_from(millionths) {
                Ok(n @ 1..=1_000_000) => Ok(Share(n)),
                _ => Err("out of range".to_owned()),
            }
        })
    }
}

/// So many times something else, in millionths.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Factor(pub u64);

impl Read for Factor {
    fn read(node: &Node, path: &str, report: &mut Report) -> Option<Self> {
        let factor = ("a number above 1 and up to 1000", "one like 5 or 2.5");
        parsed(node, path, factor, report, |text| {
            match decimal::exact(text, 6).map_err(|e| e.to_string())? {
                n @ 1_000_001..=1_000_000_000 => Ok(Factor(n)),
                _ => Err("out of range".to_owned()),
            }
        })
    }
}

impl Read for Per {
    fn read(node: &Node, path: &str, report: &mut Report) -> Option<Self> {
        word(node, path, &Per::ALL.map(|per| (per.as_str(), per)), report)
    }
}

impl Read for Dialect {
    fn read(node: &Node, path: &str, report: &mut Report) -> Option<Self> {
        word(node, path, &Dialect::ALL.map(|d| (d.as_str(), d)), report)
    }
}
