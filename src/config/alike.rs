//! Items of `keys:` that differ from an earlier one in a few words only.
//!
//! A file may have a million keys, and a YAML parser takes microseconds for each. Most of them are
//! written alike: what differs is the id, the hash, perhaps the user and the date. So only the
//! first item of each kind is parsed; those after it are cut out of the text, a run of them at a
//! time, and their words are read from where the first one has its own.
//!
//! Nothing is taken for granted about what the text means; the parser says it. In the text that it
//! is given, each word of a first item begins with a [`MARK`], a marked string is put behind that
//! item, and another one stands for a run. If it finds every mark where it was meant to be (a word
//! as the value of its key, a string as an item of `keys`), then the first item is one from its
//! first line to its last, and an item that is the same but for words that no YAML syntax depends
//! on would have been read the same way in the same place. If one is missing or elsewhere, the
//! whole text is parsed as it stands, and so it is after a syntax error.

mod knife;

use super::problem::Report;
use super::words::Word;
use super::yaml::{self, Kind, Lines, Node};
use std::ops::Range;

/// Before what was put into the text. A private use character: a text that has it is parsed whole.
const MARK: char = '\u{E0F7}';

/// The item behind the first one of a shape, which must have ended there.
const END: &str = "\u{E0F7}end";

/// The items of `keys:`, in the order of the file.
pub(crate) struct KeyList<'t> {
    pub items: Vec<Item>,
    /// What the runs among them are of.
    pub cut: Cut<'t>,
}

/// One item, or many.
pub(crate) enum Item {
    /// One that was parsed.
    Own(Node),
    /// One that was parsed, and that others are like.
    First(Node, usize),
    /// Some that weren't, in [`Cut::alike`].
    Run(Range<usize>),
}

/// An item that is like the first one of its shape.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Alike {
    at: u32,
    pub line: u32,
    pub shape: u32,
}

/// The words of an item.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Words<'t> {
    pub id: &'t str,
    pub hash: &'t str,
    pub user: Option<&'t str>,
    pub expires: Option<&'t str>,
}

/// A kind of item.
struct Shape {
    /// Where its first one begins, and in which line.
    at: usize,
    line: usize,
    /// Its words, with the number of bytes before each, from the end of the one before.
    words: Vec<(Word, usize)>,
}

/// What the parser is to find, in this order.
enum Part {
    First(usize),
    Run(Range<usize>),
}

/// A text without the items that are like others.
#[derive(Default)]
pub(crate) struct Cut<'t> {
    text: &'t str,
    rest: String,
    lines: Lines,
    parts: Vec<Part>,
    shapes: Vec<Shape>,
    alike: Vec<Alike>,
}

/// Reads a configuration file: everything but the items of `keys:`, and those. `None` after a
/// syntax error or an empty file, which are reported.
pub(crate) fn parse<'t>(text: &'t str, report: &mut Report) -> Option<(Node, KeyList<'t>)> {
    let text = text.strip_prefix('\u{FEFF}').unwrap_or(text);
    if let Some(mut cut) = knife::cut(text) {
        let mut inner = Report::default();
        let rest = std::mem::take(&mut cut.rest);
        let tree = yaml::tree(&rest, &cut.lines, &mut inner);
        drop(rest);
        // A key that is written twice in one item is written twice in all that are like it.
        if let Ok(Some(mut root)) = tree
            && inner.problems.is_empty()
            && let Some(items) = cut.fit(items(&mut root))
        {
            return Some((root, KeyList { items, cut }));
        }
    }
    let mut root = yaml::parse(text, report)?;
    let items = items(&mut root).into_iter().map(Item::Own).collect();
    Some((root, KeyList { items, cut: Cut::default() }))
}

/// Takes the items out of `keys:`.
fn items(root: &mut Node) -> Vec<Node> {
    match root.entry_mut("keys").map(|entry| &mut entry.value.kind) {
        Some(Kind::Seq(items)) => std::mem::take(items),
        _ => Vec::new(),
    }
}

impl<'t> Cut<'t> {
    /// How many items the list has.
    pub(crate) fn count(items: &[Item]) -> usize {
        let count = |item: &Item| if let Item::Run(run) = item { run.len() } else { 1 };
        items.iter().map(count).sum()
    }

    /// The number of shapes.
    pub(crate) fn shapes(&self) -> usize {
        self.shapes.len()
    }

    /// The items of a run.
    pub(crate) fn run(&self, run: Range<usize>) -> &[Alike] {
        self.alike.get(run).unwrap_or_default()
    }

    /// The line in which the first item of a shape begins.
    pub(crate) fn line(&self, shape: usize) -> usize {
        self.shapes.get(shape).map_or(0, |shape| shape.line)
    }

    /// The words of the first item of a shape.
    pub(crate) fn first(&self, shape: usize) -> Words<'t> {
        let shape = self.shapes.get(shape);
        shape.map(|shape| self.words_at(shape.at, shape)).unwrap_or_default()
    }

    /// The words of an item.
    pub(crate) fn words(&self, item: Alike) -> Words<'t> {
        let shape = self.shapes.get(item.shape as usize);
        shape.map(|shape| self.words_at(item.at as usize, shape)).unwrap_or_default()
    }

    fn words_at(&self, mut at: usize, shape: &Shape) -> Words<'t> {
        let mut words = Words::default();
        for (word, before) in &shape.words {
            at += before;
            let length = word.length(&self.text.as_bytes()[at..]).unwrap_or(0);
            let found = &self.text[at..at + length];
            at += length;
            match word {
                Word::Id => words.id = found,
                Word::Hash => words.hash = found,
                Word::User => words.user = Some(found),
                Word::Expires => words.expires = Some(found),
            }
        }
        words
    }

    /// What the parser has found, if it is what was meant.
    fn fit(&self, found: Vec<Node>) -> Option<Vec<Item>> {
        let mut parts = self.parts.iter().enumerate().peekable();
        let mut items = Vec::with_capacity(found.len());
        let mut found = found.into_iter();
        while let Some(mut node) = found.next() {
            let marked = match &mut node.kind {
                Kind::Scalar(text) => text.starts_with(MARK),
                Kind::Map(_) => node.entry_mut(Word::Id.key()).is_some_and(|entry| {
                    matches!(&entry.value.kind, Kind::Scalar(text) if text.starts_with(MARK))
                }),
                _ => false,
            };
            if !marked {
                items.push(Item::Own(node));
                continue;
            }
            items.push(match parts.next()? {
                (_, Part::First(shape)) => {
                    self.unmark(&mut node, self.shapes.get(*shape)?)?;
                    // It was all of its lines, and nothing else.
                    let Kind::Scalar(end) = found.next()?.kind else { return None };
                    if end != END {
                        return None;
                    }
                    Item::First(node, *shape)
                }
                (number, Part::Run(run)) => match node.kind {
                    Kind::Scalar(text) if text == placeholder(number) => Item::Run(run.clone()),
                    _ => return None,
                },
            });
        }
        parts.next().is_none().then_some(items)
    }

    /// Takes the marks out of the first item of a shape. `None`: they are not where they should be.
    fn unmark(&self, node: &mut Node, shape: &Shape) -> Option<()> {
        if node.line < shape.line {
            return None;
        }
        let words = self.words_at(shape.at, shape);
        for (word, _) in &shape.words {
            let expected = words.get(*word)?;
            let Kind::Scalar(text) = &mut node.entry_mut(word.key())?.value.kind else {
                return None;
            };
            if text.strip_prefix(MARK)? != expected {
                return None;
            }
            expected.clone_into(text);
        }
        Some(())
    }
}

impl<'t> Words<'t> {
    fn get(&self, word: Word) -> Option<&'t str> {
        match word {
            Word::Id => Some(self.id),
            Word::Hash => Some(self.hash),
            Word::User => self.user,
            Word::Expires => self.expires,
        }
    }

    /// The node that an item would have been, from that of the first one of its shape, which
    /// begins `from` that line; the item begins in line `to`.
    pub(crate) fn node(&self, first: &Node, from: usize, to: usize) -> Node {
        let mut node = first.clone();
        shift(&mut node, from, to);
        for word in Word::ALL {
            if let Some(text) = self.get(word)
                && let Some(entry) = node.entry_mut(word.key())
            {
                entry.value.kind = Kind::Scalar(text.to_owned());
            }
        }
        node
    }
}

fn shift(node: &mut Node, from: usize, to: usize) {
    // What an alias stands for was written before, and stays there.
    let moved = |line: &mut usize| {
        if *line >= from {
            *line = *line - from + to;
        }
    };
    moved(&mut node.line);
    match &mut node.kind {
        Kind::Null | Kind::Scalar(_) => {}
        Kind::Seq(items) => items.iter_mut().for_each(|item| shift(item, from, to)),
        Kind::Map(entries) => {
            for entry in entries {
                moved(&mut entry.line);
                shift(&mut entry.value, from, to);
            }
        }
    }
}

/// What stands for a run, as a string.
fn placeholder(number: usize) -> String {
    format!("{MARK}{number}")
}
