//! YAML text to a small tree in which everything knows its line and numbers keep their digits.

use super::problem::{Place, Report};
use saphyr::{LoadableYamlNode, MarkedYaml, Scalar, YamlData};

/// A value and where it begins.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub line: usize,
    pub kind: Kind,
}

/// What a value is. Scalars are text: what they should be is for their reader to say.
#[derive(Debug, Clone)]
pub(crate) enum Kind {
    Null,
    Scalar(String),
    Seq(Vec<Node>),
    Map(Vec<Entry>),
}

/// One key of a map.
#[derive(Debug, Clone)]
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
}

/// Put before a duplicate key to make it unique, so that reading goes on behind it. A private
/// use character: it stands in no real key.
const MARK: char = '\u{E0F7}';

/// More duplicate keys than this are not all reported.
const MAX_DUPLICATES: usize = 100;

/// Reads one YAML document. `None` after a syntax error or an empty file, which are reported.
pub(crate) fn parse(text: &str, report: &mut Report) -> Option<Node> {
    let mut chars: Vec<char> = text.strip_prefix('\u{FEFF}').unwrap_or(text).chars().collect();
    for _ in 0..MAX_DUPLICATES {
        let source: String = chars.iter().collect();
        match MarkedYaml::load_from_str(&source) {
            Ok(documents) => return one_document(&documents, &chars, report),
            Err(error) => {
                let at = error.marker().index();
                if !error.info().contains("duplicated key") || at > chars.len() {
                    report.problem(&line(error.marker().line()), syntax(error.info()), "");
                    return None;
                }
                chars.insert(at, MARK);
            }
        }
    }
    report.problem(&line(1), "too many duplicate keys", "Write each key once");
    None
}

fn one_document(documents: &[MarkedYaml<'_>], chars: &[char], report: &mut Report) -> Option<Node> {
    let mut tree = Tree { chars, report, anchors: Vec::new() };
    match documents {
        [] => None,
        [only] => Some(tree.node(only, 0)),
        [_, second, ..] => {
            let at = line(second.span.start.line());
            tree.report.problem(&at, "a second YAML document", "Remove the `---` line");
            None
        }
    }
    .filter(|node| !matches!(node.kind, Kind::Null))
    .or_else(|| {
        if documents.len() < 2 {
            let fix = "Start from conf/tollbar.yaml, or try `tollbar demo`";
            report.problem(&line(1), "the file is empty", fix);
        }
        None
    })
}

/// saphyr's words, and the one trap that people fall into.
fn syntax(info: &str) -> String {
    let tab = if info.contains("tab") { "; YAML is indented with spaces" } else { "" };
    format!("not valid YAML: {info}{tab}")
}

fn line(number: usize) -> Place {
    Place { line: Some(number), path: String::new() }
}

struct Tree<'a> {
    chars: &'a [char],
    report: &'a mut Report,
    /// Numbers that have an anchor, as they were written.
    anchors: Vec<(String, String)>,
}

impl Tree<'_> {
    /// `above`: the line of the key, for a value that has no place of its own.
    fn node(&mut self, from: &MarkedYaml<'_>, above: usize) -> Node {
        let kind = match &from.data {
            YamlData::Value(Scalar::Null) => Kind::Null,
            YamlData::Value(Scalar::String(text)) => Kind::Scalar(text.to_string()),
            YamlData::Value(scalar) => Kind::Scalar(self.written(from, scalar)),
            YamlData::Representation(text, ..) => Kind::Scalar(text.to_string()),
            YamlData::Sequence(items) => {
                Kind::Seq(items.iter().map(|item| self.node(item, above)).collect())
            }
            YamlData::Mapping(map) => {
                Kind::Map(map.iter().filter_map(|(k, v)| self.entry(k, v)).collect())
            }
            YamlData::Tagged(_, inner) => return self.node(inner, above),
            YamlData::Alias(_) | YamlData::BadValue => Kind::Null,
        };
        let line = match (&kind, from.span.start.line()) {
            (Kind::Null, _) | (_, 0) => above.max(1),
            (_, line) => line,
        };
        Node { line, kind }
    }

    fn entry(&mut self, key: &MarkedYaml<'_>, value: &MarkedYaml<'_>) -> Option<Entry> {
        let key_line = key.span.start.line();
        let Kind::Scalar(text) = self.node(key, key_line).kind else {
            let fix = "Keys are plain words";
            self.report.problem(&line(key_line), "a key that is not a word", fix);
            return None;
        };
        if text.starts_with(MARK) {
            let name = super::suggest::shown(text.trim_matches([MARK, '"', '\'']));
            let fix = "Write it once; the second one would silently win";
            self.report.problem(&line(key_line), format!("duplicate key `{name}`"), fix);
            return None;
        }
        Some(Entry { key: text, line: key_line, value: self.node(value, key_line) })
    }

    /// A number or a boolean as it stands in the file: a float would lose digits.
    fn written(&mut self, from: &MarkedYaml<'_>, scalar: &Scalar<'_>) -> String {
        let (start, end) = (from.span.start.index(), from.span.end.index());
        let span: String = self.chars.get(start..end).unwrap_or_default().iter().collect();
        // The span of an anchored number begins at its anchor.
        let text = span.split_whitespace().last().unwrap_or_default();
        if let Some(anchor) = span.strip_prefix('&').and_then(|rest| rest.split_whitespace().next())
        {
            self.anchors.push((anchor.to_owned(), text.to_owned()));
        }
        // The span of an alias is its own name, not the number it stands for.
        let alias = text.strip_prefix('*').and_then(|name| {
            let known = self.anchors.iter().rev().find(|(anchor, _)| anchor == name);
            known.map(|(_, number)| number.clone())
        });
        match (alias, scalar) {
            (Some(number), _) => number,
            (None, Scalar::Boolean(b)) => b.to_string(),
            (None, _) => text.to_owned(),
        }
    }
}
