//! YAML text to a small tree in which everything knows its line and numbers keep their digits.

use super::problem::{Place, Report};
use crate::turns;
use ahash::{AHashMap, AHashSet};
use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Tag};

/// A value and where it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub line: usize,
    pub kind: Kind,
}

/// What a value is. Scalars are text: what they should be is for their reader to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Null,
    Scalar(String),
    Seq(Vec<Node>),
    Map(Vec<Entry>),
}

/// One key of a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub key: String,
    pub line: usize,
    pub value: Node,
}

impl Node {
    /// What it is, in words.
    pub(crate) fn what(&self) -> &'static str {
        match &self.kind {
            Kind::Null => "nothing",
            Kind::Scalar(_) => "a single value",
            Kind::Seq(_) => "a list",
            Kind::Map(_) => "a map",
        }
    }

    /// The value of a key of this map, if it is a map and has it.
    pub(crate) fn entry_mut(&mut self, key: &str) -> Option<&mut Entry> {
        let Kind::Map(entries) = &mut self.kind else { return None };
        entries.iter_mut().find(|entry| entry.key == key)
    }
}

/// Which line of the file a line of the text is that is parsed: parts may have been left out.
#[derive(Debug, Default)]
pub(crate) struct Lines(Vec<(usize, usize)>);

impl Lines {
    /// From line `parsed` on the text is that from line `file` on. Called in ascending order.
    pub(crate) fn push(&mut self, parsed: usize, file: usize) {
        self.0.push((parsed, file));
    }

    fn file(&self, line: usize) -> usize {
        let after = self.0.partition_point(|(parsed, _)| *parsed <= line);
        let piece = after.checked_sub(1).and_then(|before| self.0.get(before));
        piece.map_or(line, |(parsed, file)| file + (line - parsed))
    }
}

/// More duplicate keys than this are not all reported.
const MAX_DUPLICATES: usize = 100;

/// Nodes that aliases may stand for, all together: a few lines can be made to mean billions.
const MAX_ALIASED: usize = 100_000;

/// A map with more keys than this looks them up by hash to find duplicates.
const FEW: usize = 16;

/// Reads one YAML document. `None` after a syntax error or an empty file, which are reported.
pub(crate) fn parse(text: &str, report: &mut Report) -> Option<Node> {
    match tree(text, &Lines::default(), report) {
        Ok(root) => root,
        Err(error) => {
            report.problem(&line(error.marker().line()), syntax(error.info()), "");
            None
        }
    }
}

/// As [`parse`], but a syntax error is returned, and nothing else is reported then.
pub(crate) fn tree(
    text: &str,
    lines: &Lines,
    report: &mut Report,
) -> Result<Option<Node>, ScanError> {
    let mut builder = Builder::new(lines);
    let mut parser = Parser::new_from_iter(text.chars());
    while let Some(event) = parser.next_event() {
        let (event, span) = event?;
        turns::step();
        builder.take(event, span.start)?;
    }
    Ok(builder.finish(report))
}

/// The parser's words, and the one trap that people fall into.
fn syntax(info: &str) -> String {
    let tab = if info.contains("tab") { "; YAML is indented with spaces" } else { "" };
    format!("not valid YAML: {info}{tab}")
}

fn line(number: usize) -> Place {
    Place { line: Some(number), path: String::new() }
}

/// Puts events together.
struct Builder<'a> {
    lines: &'a Lines,
    report: Report,
    open: Vec<Frame>,
    anchors: AHashMap<usize, Node>,
    aliased: usize,
    duplicates: usize,
    root: Option<Node>,
    /// The line of a second document.
    second: Option<usize>,
}

/// A list or map that has not ended.
struct Frame {
    kind: Open,
    line: usize,
    /// The line of the key that it, or the list that it is in, is the value of.
    above: usize,
    anchor: usize,
    /// It will be dropped: its problems are nobody's.
    muted: bool,
}

enum Open {
    Seq(Vec<Node>),
    Map { entries: Vec<Entry>, names: AHashSet<String>, next: Next },
}

/// What a map waits for.
enum Next {
    Key,
    Value {
        key: String,
        line: usize,
    },
    /// The value of a key that was reported.
    Nothing {
        line: usize,
    },
}

impl<'a> Builder<'a> {
    fn new(lines: &'a Lines) -> Self {
        Builder {
            lines,
            report: Report::default(),
            open: Vec::new(),
            anchors: AHashMap::new(),
            aliased: 0,
            duplicates: 0,
            root: None,
            second: None,
        }
    }

    fn take(&mut self, event: Event<'_>, at: Marker) -> Result<(), ScanError> {
        let line = self.lines.file(at.line());
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.put(scalar(&text, style, tag.as_deref()), line, anchor);
            }
            Event::SequenceStart(anchor, _) => {
                self.begin(Open::Seq(Vec::new()), line, anchor);
            }
            Event::MappingStart(anchor, _) => {
                let names = AHashSet::new();
                let map = Open::Map { entries: Vec::new(), names, next: Next::Key };
                self.begin(map, line, anchor);
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(frame) = self.open.pop() else { return Ok(()) };
                let kind = match frame.kind {
                    Open::Seq(items) => Kind::Seq(items),
                    Open::Map { entries, .. } => Kind::Map(entries),
                };
                self.put(kind, frame.line, frame.anchor);
            }
            Event::Alias(anchor) => {
                let known = self.anchors.get(&anchor);
                if known.is_some_and(|node| !count(node, &mut self.aliased)) {
                    let why = "alias expansion exceeded the maximum node budget (possible billion-laughs attack)";
                    return Err(ScanError::new_str(at, why));
                }
                let kind = known.map_or(Kind::Null, |node| node.kind.clone());
                self.put(kind, line, 0);
            }
            Event::DocumentEnd => {
                // An empty document has no event of its own.
                self.root.get_or_insert(Node { line, kind: Kind::Null });
            }
            _ => {}
        }
        Ok(())
    }

    fn begin(&mut self, kind: Open, line: usize, anchor: usize) {
        let above = self.above(line);
        let muted = self.open.last().is_some_and(|frame| {
            frame.muted || matches!(&frame.kind, Open::Map { next: Next::Nothing { .. }, .. })
        });
        self.open.push(Frame { kind, line, above, anchor, muted });
    }

    /// The line of the key, for a value that has no place of its own.
    fn above(&self, own: usize) -> usize {
        match self.open.last() {
            None => 0,
            Some(Frame { kind: Open::Seq(_), above, .. }) => *above,
            Some(Frame { kind: Open::Map { next, .. }, .. }) => match next {
                Next::Key => own,
                Next::Value { line, .. } | Next::Nothing { line } => *line,
            },
        }
    }

    /// A value is complete.
    fn put(&mut self, kind: Kind, own: usize, anchor: usize) {
        let line = match (&kind, own) {
            (Kind::Null, _) | (_, 0) => self.above(own).max(1),
            (_, line) => line,
        };
        let node = Node { line, kind };
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        let Some(frame) = self.open.last_mut() else {
            match self.root {
                None => self.root = Some(node),
                Some(_) => _ = self.second.get_or_insert(own),
            }
            return;
        };
        let (entries, names, next) = match &mut frame.kind {
            Open::Seq(items) => return items.push(node),
            Open::Map { entries, names, next } => (entries, names, next),
        };
        match std::mem::replace(next, Next::Key) {
            Next::Value { key, line } => entries.push(Entry { key, line, value: node }),
            Next::Nothing { .. } => {}
            Next::Key => {
                let Kind::Scalar(key) = node.kind else {
                    *next = Next::Nothing { line: own };
                    if !frame.muted {
                        let at = self::line(own);
                        self.report.problem(
                            &at,
                            "a key that is not a word",
                            "Keys are plain words",
                        );
                    }
                    return;
                };
                if is_new(&key, entries, names) {
                    *next = Next::Value { key, line: own };
                    return;
                }
                *next = Next::Nothing { line: own };
                self.duplicates += 1;
                if !frame.muted {
                    let message = format!("duplicate key `{}`", super::suggest::shown(&key));
                    let fix = "Write it once; the second one would silently win";
                    self.report.problem(&self::line(own), message, fix);
                }
            }
        }
    }

    fn finish(self, report: &mut Report) -> Option<Node> {
        if let Some(second) = self.second {
            report.problem(&line(second), "a second YAML document", "Remove the `---` line");
            return None;
        }
        if self.duplicates >= MAX_DUPLICATES {
            report.problem(&line(1), "too many duplicate keys", "Write each key once");
            return None;
        }
        report.problems.extend(self.report.problems);
        let root = self.root.filter(|node| !matches!(node.kind, Kind::Null));
        if root.is_none() {
            let fix = "Start from conf/tollbar.yaml, or try `tollbar demo`";
            report.problem(&line(1), "the file is empty", fix);
        }
        root
    }
}

/// Whether the map doesn't have this key yet.
fn is_new(key: &str, entries: &[Entry], names: &mut AHashSet<String>) -> bool {
    if entries.len() < FEW {
        return entries.iter().all(|entry| entry.key != key);
    }
    if names.is_empty() {
        names.extend(entries.iter().map(|entry| entry.key.clone()));
    }
    names.insert(key.to_owned())
}

/// Adds what an alias stands for. `false`: too much.
fn count(node: &Node, aliased: &mut usize) -> bool {
    *aliased += 1;
    *aliased <= MAX_ALIASED
        && match &node.kind {
            Kind::Null | Kind::Scalar(_) => true,
            Kind::Seq(items) => items.iter().all(|item| count(item, aliased)),
            Kind::Map(entries) => entries.iter().all(|entry| count(&entry.value, aliased)),
        }
}

/// The core schema, as far as it matters here: numbers stay as they were written, since a float
/// would lose digits.
fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Kind {
    let own = || Kind::Scalar(text.to_owned());
    if style != ScalarStyle::Plain {
        return own();
    }
    if let Some(tag) = tag.filter(|tag| tag.is_yaml_core_schema()) {
        let fits = match tag.suffix.as_str() {
            "bool" => text.parse::<bool>().is_ok(),
            "int" => text.parse::<i64>().is_ok(),
            "float" => text.parse::<f64>().is_ok(),
            "str" => true,
            _ => false,
        };
        return if fits { own() } else { Kind::Null };
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Kind::Null,
        "true" | "True" | "TRUE" => Kind::Scalar("true".to_owned()),
        "false" | "False" | "FALSE" => Kind::Scalar("false".to_owned()),
        _ => own(),
    }
}
