//! Cuts the items of `keys:` that are like an earlier one out of a text.

use super::{Alike, Cut, END, MARK, Part, Shape, placeholder};
use crate::config::words::{self, Found, Word};
use crate::turns;
use ahash::AHashMap;
use memchr::{memchr, memchr_iter, memchr2_iter, memchr3_iter, memmem};
use std::fmt::Write as _;
use std::ops::Range;

/// Kinds of items. Those of further ones are all parsed.
const MAX_SHAPES: usize = 10_000;

/// How much is looked at between two turns.
const CHUNK: usize = 256 << 10;

/// Cuts a text. `None`: there is nothing to cut, or it can't be cut.
pub(super) fn cut(text: &str) -> Option<Cut<'_>> {
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
