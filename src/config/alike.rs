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

use super::problem::Report;
use super::words::{self, Found, Word};
use super::yaml::{self, Kind, Lines, Node};
use crate::turns;
use ahash::AHashMap;
use memchr::{memchr, memchr_iter, memchr2_iter, memchr3_iter, memmem};
use std::fmt::Write as _;
use std::ops::Range;

/// Before what was put into the text. A private use character: a text that has it is parsed whole.
const MARK: char = '\u{E0F7}';

/// The item behind the first one of a shape, which must have ended there.
const END: &str = "\u{E0F7}end";

/// Kinds of items. Those of further ones are all parsed.
const MAX_SHAPES: usize = 10_000;

/// How much is looked at between two turns.
const CHUNK: usize = 256 << 10;

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
    if let Some(mut cut) = Cut::of(text) {
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

    /// Cuts a text. `None`: there is nothing to cut, or it can't be cut.
    fn of(text: &'t str) -> Option<Cut<'t>> {
        let bytes = text.as_bytes();
        if odd(bytes) || u32::try_from(bytes.len()).is_err() {
            return None;
        }
        let (start, line, indent) = first_item(bytes)?;
        let mut knife = Knife {
            cut: Cut { text, ..Cut::default() },
            by_form: AHashMap::new(),
            indent,
            kept: (0, 1),
            rest_line: 1,
            run: None,
        };
        knife.items(start, line);
        let mut cut = knife.finish();
        cut.parts.iter().any(|part| matches!(part, Part::Run(_))).then(|| {
            cut.alike.shrink_to_fit();
            cut
        })
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

/// Whether a text has anything because of which it is parsed whole.
fn odd(text: &[u8]) -> bool {
    text.chunks(CHUNK).enumerate().any(|(number, chunk)| {
        turns::pause();
        let ascii = memchr3_iter(b'\r', b'\0', b'\\', chunk);
        let others = memchr2_iter(0xEE, 0xEF, chunk);
        ascii.chain(others).any(|at| odd_here(&text[number * CHUNK + at..]))
    })
}

fn odd_here(text: &[u8]) -> bool {
    // A mark, also one that is written as an escape.
    let code = |digits: &[u8]| digits.get(..4).is_some_and(|it| it.eq_ignore_ascii_case(b"e0f7"));
    match text {
        [b'\\', b'u', digits @ ..] | [b'\\', b'U', b'0', b'0', b'0', b'0', digits @ ..] => {
            code(digits)
        }
        // A lone carriage return would be a line that is not counted here. The parser stops at the
        // others, even in a comment, of which some are left out.
        [b'\r' | b'\0', ..] => true,
        _ => {
            text.starts_with(MARK.encode_utf8(&mut [0; 4]).as_bytes())
                || text.starts_with("\u{FEFF}".as_bytes())
        }
    }
}

/// Whether an item may have an alias: a star that is not inside a word or string, as globs are.
fn refers(item: &[u8]) -> bool {
    let inside = |b: u8| b.is_ascii_alphanumeric() || b"\"'-_./*".contains(&b);
    memchr_iter(b'*', item).any(|at| at.checked_sub(1).is_none_or(|before| !inside(item[before])))
}

/// Where the list under `keys:` begins, in which line, and how far it is indented.
fn first_item(text: &[u8]) -> Option<(usize, usize, usize)> {
    let mut at = if text.starts_with(b"keys:") { 0 } else { memmem::find(text, b"\nkeys:")? + 1 };
    let mut line = 1 + memchr_iter(b'\n', &text[..at]).count();
    let own = &text[at + "keys:".len()..line_end(text, at)];
    let comment = own.trim_ascii_start();
    if !(comment.is_empty() || own.starts_with(b" ") && comment.starts_with(b"#")) {
        return None;
    }
    loop {
        (at, line) = (line_end(text, at), line + 1);
        let next = text.get(at..line_end(text, at)).filter(|next| !next.is_empty())?;
        let indent = words::spaces(next);
        match next.get(indent..)? {
            [b'\n', ..] | [b'#', ..] | [] => {}
            [b'-', b' ', ..] => return Some((at, line, indent)),
            _ => return None,
        }
    }
}

/// Where the line after the one that begins here begins.
fn line_end(text: &[u8], at: usize) -> usize {
    memchr(b'\n', &text[at..]).map_or(text.len(), |end| at + end + 1)
}

/// Goes through the list.
struct Knife<'t> {
    cut: Cut<'t>,
    /// Shapes by an item without its words.
    by_form: AHashMap<Box<[u8]>, u32>,
    indent: usize,
    /// Where the text begins that is kept and not yet copied, and in which line.
    kept: (usize, usize),
    /// The line of the rest that comes next.
    rest_line: usize,
    /// Where the run ends that may still grow, and before which line.
    run: Option<(usize, usize)>,
}

impl<'t> Knife<'t> {
    fn items(&mut self, mut at: usize, mut line: usize) {
        let text = self.cut.text.as_bytes();
        let (mut words, mut form) = (Vec::new(), Vec::new());
        while at < text.len() {
            turns::step();
            let indent = words::spaces(&text[at..]);
            let begins = text[at + indent..].starts_with(b"- ");
            if indent == self.indent && begins {
                let (end, after) = self.extent(at, line);
                self.item(at..end, line, after, &mut words, &mut form);
                (at, line) = (end, after);
            } else if matches!(text.get(at + indent), Some(b'#' | b'\n')) {
                // Between two complete items this is nothing. After the last one it stays.
                (at, line) = (line_end(text, at), line + 1);
            } else {
                return;
            }
        }
    }

    /// Where an item ends: before the next line that is not deeper than its dash.
    fn extent(&self, start: usize, mut line: usize) -> (usize, usize) {
        let text = self.cut.text.as_bytes();
        let mut at = start;
        loop {
            (at, line) = (line_end(text, at), line + 1);
            let indent = words::spaces(&text[at..]);
            let blank = text.get(at + indent) == Some(&b'\n');
            if at >= text.len() || indent <= self.indent && !blank {
                return (at, line);
            }
        }
    }

    fn item(
        &mut self,
        range: Range<usize>,
        line: usize,
        after: usize,
        words: &mut Vec<Found>,
        form: &mut Vec<u8>,
    ) {
        let item = &self.cut.text.as_bytes()[range.clone()];
        if memchr(b'&', item).is_some() {
            // What an alias means from here on may be something else.
            self.by_form.clear();
            return self.keep();
        }
        if refers(item) {
            // The parser counts what aliases stand for.
            return self.keep();
        }
        words::find(item, words);
        let has = |word| words.iter().any(|found: &Found| found.word == word);
        if !has(Word::Id) || !has(Word::Hash) {
            return self.keep();
        }
        form.clear();
        let mut at = 0;
        for found in words.iter() {
            form.extend_from_slice(&item[at..found.range.start]);
            // No text has such a byte.
            form.extend_from_slice(&[0xff, found.word as u8]);
            at = found.range.end;
        }
        form.extend_from_slice(&item[at..]);
        if let Some(shape) = self.by_form.get(form.as_slice()) {
            self.like(*shape, range, line, after);
        } else {
            self.keep();
            if self.cut.shapes.len() < MAX_SHAPES && item.ends_with(b"\n") {
                self.first(range, line, after, words, form);
            }
        }
    }

    /// The item stays.
    fn keep(&mut self) {
        let Some((end, line)) = self.run.take() else { return };
        self.kept = (end, line);
        self.cut.lines.push(self.rest_line, line);
    }

    /// The item stays, and others may be like it.
    fn first(
        &mut self,
        range: Range<usize>,
        line: usize,
        after: usize,
        words: &[Found],
        form: &[u8],
    ) {
        let number = self.cut.shapes.len();
        let at = range.start;
        let mut shape = Shape { at, line, words: Vec::with_capacity(words.len()) };
        let mut last = 0;
        for found in words {
            shape.words.push((found.word, found.range.start - last));
            last = found.range.end;
            self.copy_to(at + found.range.start);
            self.cut.rest.push(MARK);
        }
        self.copy_to(range.end);
        self.put_in(END, after);
        self.kept.1 = after;
        self.cut.lines.push(self.rest_line, after);
        self.cut.shapes.push(shape);
        self.cut.parts.push(Part::First(number));
        self.by_form.insert(form.into(), u32::try_from(number).unwrap_or(u32::MAX));
    }

    /// The item goes.
    fn like(&mut self, shape: u32, range: Range<usize>, line: usize, after: usize) {
        let number = self.cut.alike.len();
        // Both fit: the text is not longer than that.
        let narrow = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        self.cut.alike.push(Alike { at: narrow(range.start), line: narrow(line), shape });
        let begun = self.run.replace((range.end, after)).is_some();
        match self.cut.parts.last_mut() {
            Some(Part::Run(run)) if begun => run.end = number + 1,
            _ => {
                self.copy_to(range.start);
                self.put_in(&placeholder(self.cut.parts.len()), line);
                self.cut.parts.push(Part::Run(number..number + 1));
            }
        }
    }

    /// Adds an item to what has been copied up to this line.
    fn put_in(&mut self, text: &str, line: usize) {
        self.rest_line += line - self.kept.1;
        self.cut.lines.push(self.rest_line, line);
        let _ = writeln!(self.cut.rest, "{:1$}- \"{text}\"", "", self.indent);
        self.rest_line += 1;
    }

    fn copy_to(&mut self, end: usize) {
        self.cut.rest.push_str(&self.cut.text[self.kept.0..end]);
        self.kept.0 = end;
    }

    fn finish(mut self) -> Cut<'t> {
        self.keep();
        self.copy_to(self.cut.text.len());
        self.cut
    }
}
