//! What a request asks a provider for that isn't in its body: stored input, searches, tools that
//! run at the provider. Looked for where it means that, and not in texts, in schemas of tools, or
//! in what a tool was called with.

use super::documents;
use super::fault::ScanError;
use super::json::Cursor;
use super::json_text::Text;
use super::loops::{Loops, limit};
use super::nest::MAX_DEPTH;
use super::text_len::WRITTEN;
use super::walk;

/// Names and values that begin so stand for input that the gateway can't see, or whose bytes don't
/// bound it (a page of a document is a picture, too). Written in any case, with or without `_`.
const UNSEEN: [&str; 28] = [
    "previous_response_id",
    "item_reference",
    "file_id",
    "file_url",
    "file_uri",
    "file_data",
    "file_search",
    "web_fetch",
    "visit_website",
    "url_context",
    "code_execution",
    "code_interpreter",
    "enable_code_interpreter",
    "web_extractor",
    "image_search",
    "container_auto",
    "container_reference",
    "container_upload",
    "cached_content",
    "pmpt_",
    "fileid:",
    "mcp",
    "data_source",
    "input_file",
    "programmatic_tool_calling",
    "multi_agent",
    "video",
    "data:video",
];

/// The same, only where it is all of a name or value.
const UNSEEN_EXACTLY: [&str; 6] =
    ["conversation", "container", "document", "document_url", "file", "retrieval"];

/// Searches by a provider: they add input, and may have a price of their own.
const SEARCH: [&str; 15] = [
    "web_search",
    "enterprise_web_search",
    "google_search",
    "google_maps",
    "x_search",
    "collections_search",
    "browser_search",
    "browser_automation",
    "search_parameters",
    "enable_search",
    "builtin_function",
    "plugins",
    "openrouter:web",
    "wolfram_alpha",
    "pmpt_",
];

/// OpenAI's tool of before 2025-08.
const PREVIEW: &str = "web_search_preview";

/// Tools that a provider runs by itself, once or many times: after each time the model reads all of
/// its input again, and what the tool has said. Only as tools, not as what some tool once said.
const LOOPS: [&str; 20] = [
    "web_search",
    "web_fetch",
    "visit_website",
    "code_execution",
    "code_interpreter",
    "enable_code_interpreter",
    "web_extractor",
    "image_search",
    "container_auto",
    "container_reference",
    "file_search",
    "x_search",
    "collections_search",
    "browser_search",
    "browser_automation",
    "mcp",
    "openrouter:web",
    "programmatic_tool_calling",
    "multi_agent",
    // A prompt that is stored may have any of them.
    "pmpt_",
];

/// The tools whose `max_uses` is all that they are run. Later ones run code on their own account
/// (Anthropic's release notes of 2026-02), as often as they like.
const COUNTED: [&[u8]; 2] = [b"web_search_20250305", b"web_fetch_20250910"];

/// The deepest that a document stands in a request: in a tool's result, in a message.
const DOCUMENT_DEPTH: usize = 12;

/// One search, and no tool.
const ONCE: &str = "web_search_options";

/// What was said before: tools aren't declared in it, but in lists of them.
const SAID: [&[u8]; 5] = [b"messages", b"input", b"contents", b"system", b"instructions"];

/// Pictures made on the way to an answer. Their tokens aren't among the answer's.
const DRAWS: [&str; 2] = ["image_generation", "openrouter:image_generation"];

/// Another model works for the answer, at a price of its own, whoever may use it.
const OTHERS: [&str; 4] =
    ["advisor_2", "openrouter:advisor", "openrouter:fusion", "openrouter:subagent"];

/// The provider may sum up what was said before it answers: the model is run once more for that
/// (Anthropic's `compact_20260112`, OpenAI's `compaction`).
const COMPACTS: [&str; 2] = ["compact_2", "compaction"];

/// Files whose bytes don't bound their tokens.
const PACKED: [&str; 2] = ["application/", "data:application/"];

/// The same, as PHP writes them.
const PACKED_ESCAPED: [&str; 2] = ["application\\/", "data:application\\/"];

/// Packed files that are plain text.
const PLAIN: [&str; 2] = ["application/json", "data:application/json"];

/// Members whose value is one of the words above: what a part or a tool is, or a list of tools.
const KINDS: [&[u8]; 9] = [
    b"type",
    b"mime_type",
    b"mimeType",
    b"media_type",
    b"mediaType",
    b"tools",
    b"enabled_tools",
    b"server_tools",
    b"builtin_tools",
];

/// What an address may begin with, and a text: a file that is data, or stored at the provider.
const ADDRESSES: [&[u8]; 3] = [b"data:application/", b"data:video/", b"fileid:"];

/// A tool of OpenAI's for which a container is made, unless the request names one, …
const CODE: &str = "code_interpreter";

/// … and one that always has one made.
const CONTAINER: &str = "container_auto";

/// A tool of OpenAI's that searches in stored files, and a stored prompt, which may have it.
const FILES: [&str; 2] = ["file_search", "pmpt_"];

/// The largest container, in GiB.
const MOST_MEMORY: u64 = 64;

/// The longest name or value of the lists above, and then some.
const LONGEST: usize = 40;

/// What a request asks for beyond its body.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Beyond {
    /// The provider may add input.
    pub unseen: bool,
    /// The provider may search the web for it.
    pub search: bool,
    /// By a tool of OpenAI's previews, which may have another price.
    pub preview: bool,
    /// The provider may draw pictures.
    pub draws: bool,
    /// Another model may work for it.
    pub others: bool,
    /// Tools that the provider runs in a loop.
    pub loops: Loops,
    /// Code may be run in a container that is made for it, with so many GiB of memory at most.
    pub container: Option<u64>,
    /// Files stored at the provider may be searched.
    pub files: bool,
    /// What was said may be summed up first.
    pub compacts: bool,
    /// What is read now was said before.
    said: bool,
}

impl Beyond {
    /// Whatever there is.
    pub const ALL: Beyond = Beyond {
        unseen: true,
        search: true,
        preview: true,
        draws: true,
        others: true,
        loops: Loops { tools: 1, bounded: 0, uses: 0, calls: None },
        container: Some(MOST_MEMORY),
        files: true,
        compacts: true,
        said: false,
    };
}

/// Words without one of which nothing is asked for, as they begin a string in a body.
pub fn words() -> impl Iterator<Item = String> {
    let begin = UNSEEN.iter().chain(&SEARCH).chain(&DRAWS).chain(&OTHERS).chain(&COMPACTS);
    let begin = begin.chain(&PACKED).chain(&PACKED_ESCAPED);
    let begin =
        begin.flat_map(|word| [format!("\"{word}"), format!("\"{}", word.replace('_', ""))]);
    let exact = UNSEEN_EXACTLY.iter();
    let exact =
        exact.flat_map(|word| [format!("\"{word}\""), format!("\"{}\"", word.replace('_', ""))]);
    begin.chain(exact)
}

/// What a body asks for; `None` where it is no JSON.
pub fn of(body: &[u8]) -> Option<Beyond> {
    let mut cursor = Cursor::new(body);
    cursor.space();
    let mut found = Beyond::default();
    found.value(&mut cursor, b"", 0).ok()?;
    cursor.space();
    cursor.is_end().then_some(found)
}

impl Beyond {
    /// Takes the value of a member of that name; whether it says something.
    fn value(&mut self, cursor: &mut Cursor, name: &[u8], depth: usize) -> Result<bool, ScanError> {
        if depth > MAX_DEPTH {
            return Err(ScanError::syntax(cursor.at(), "nested too deeply"));
        }
        match cursor.peek() {
            Some(b'{') => self.object(cursor, name, depth).map(|()| true),
            Some(b'[') => {
                let mut says = false;
                walk::elements(cursor, |cursor| {
                    says |= self.value(cursor, name, depth + 1)?;
                    Ok(())
                })?;
                Ok(says)
            }
            Some(b'"') => {
                let text = cursor.string()?;
                let address = ADDRESSES.iter().any(|with| begins(&text, with));
                if address || KINDS.contains(&name) || (name == b"id" && begins(&text, b"pmpt_")) {
                    self.add(Beyond::meant(&text.name()));
                }
                Ok(!text.is_empty())
            }
            Some(b'n' | b'f') => cursor.skip().map(|()| false),
            _ => cursor.skip().map(|()| true),
        }
    }

    /// Takes an object that is a member of that name, or in a list of that name.
    fn object(&mut self, cursor: &mut Cursor, name: &[u8], depth: usize) -> Result<(), ScanError> {
        let (here, mut written_out) = (cursor.clone(), None);
        let (mut id, mut described) = (false, false);
        let (mut own, mut uses) = (0, None);
        let (containers, mut memory_limit, mut named) = (self.container, None, false);
        walk::members(cursor, |cursor, member| {
            id |= member == b"id";
            described |= matches!(member, b"type" | b"role" | b"content");
            let top = depth == 0;
            if member == b"memory_limit" && cursor.peek() != Some(b'n') {
                memory_limit = memory_limit.max(Some(memory(cursor)));
            }
            named |= member == b"container" && cursor.peek() == Some(b'"');
            if member == b"max_uses" {
                uses = limit(uses, number(cursor)?);
            } else if top && member == b"max_tool_calls" {
                self.loops.calls = limit(self.loops.calls, number(cursor)?);
            }
            let (tools, said) = (self.loops.tools, self.said);
            self.said = member != b"tools" && (said || (top && SAID.contains(&member)));
            let counted = member == b"type" && is_counted(&mut cursor.clone());
            let document = member == b"type" && is_document(&mut cursor.clone());
            // Looked at once in each object, and not in what is nested for its own sake.
            let mut written_out =
                || *written_out.get_or_insert_with(|| documents::is_written_out(here.clone()));
            match document && depth <= DOCUMENT_DEPTH && written_out() {
                true => cursor.skip()?,
                false => self.member(cursor, member, depth + 1)?,
            }
            self.said = said;
            if counted {
                own += self.loops.tools - tools;
            }
            Ok(())
        })?;
        if let Some(uses) = uses.flatten().filter(|_| own > 0) {
            self.loops.bounded += own;
            self.loops.uses = self.loops.uses.saturating_add(uses);
        }
        if named {
            // Made elsewhere, and paid for there.
            self.container = containers;
        } else if !self.said {
            self.container = self.container.max(memory_limit);
        }
        // An item of the input, or a sound, that only its provider has.
        self.unseen |= id && !described && matches!(name, b"input" | b"audio");
        Ok(())
    }

    fn member(&mut self, cursor: &mut Cursor, name: &[u8], depth: usize) -> Result<(), ScanError> {
        // Where a tool was called, its input is an object; at the top it is the request's own.
        let called = name == b"input" && depth > 1 && cursor.peek() == Some(b'{');
        if called || WRITTEN.iter().any(|written| written.as_bytes() == name) {
            return cursor.skip();
        }
        if self.value(cursor, name, depth)? {
            self.add(Beyond::meant(name));
        }
        Ok(())
    }

    fn add(&mut self, more: Beyond) {
        self.unseen |= more.unseen;
        self.search |= more.search;
        self.preview |= more.preview;
        self.draws |= more.draws;
        self.others |= more.others;
        if !self.said {
            self.loops.tools += more.loops.tools;
            self.container = self.container.max(more.container);
            self.files |= more.files;
            self.compacts |= more.compacts;
        }
    }

    /// What a name or a value stands for.
    fn meant(word: &[u8]) -> Beyond {
        let (bytes, len) = plain(word);
        let word = bytes.get(..len).unwrap_or_default();
        let begins = |list: &[&str]| list.iter().any(|with| starts(word, with));
        let search = begins(&SEARCH);
        let packed = begins(&PACKED) && !begins(&PLAIN);
        let exactly =
            UNSEEN_EXACTLY.iter().any(|all| starts(word, all) && len == letters(all).count());
        let unseen = search || packed || exactly || begins(&UNSEEN);
        let draws = DRAWS.iter().any(|all| starts(word, all) && len == letters(all).count());
        let loops =
            Loops { tools: u64::from(begins(&LOOPS) && !starts(word, ONCE)), ..Loops::default() };
        let preview = starts(word, PREVIEW);
        let container = (starts(word, CODE) || starts(word, CONTAINER)).then_some(1);
        let others = begins(&OTHERS);
        let files = FILES.iter().any(|with| starts(word, with));
        let compacts = begins(&COMPACTS);
        let said = false;
        Beyond { unseen, search, preview, draws, others, loops, container, files, compacts, said }
    }
}

/// The count that comes next, not taken. Only what is one is looked at: containers would be read once
/// for each that they are in.
fn number(cursor: &Cursor) -> Result<Option<u64>, ScanError> {
    match cursor.peek() {
        Some(b'{' | b'[') => Ok(None),
        _ => walk::number(&mut cursor.clone()),
    }
}

/// The memory of a container, in GiB: `"4g"`. What can't be read is as large as any.
fn memory(cursor: &Cursor) -> u64 {
    let text = match cursor.peek() {
        Some(b'"') => cursor.clone().string().ok(),
        _ => None,
    };
    let text = text.and_then(|text| text.decode().map(std::borrow::Cow::into_owned));
    let gib = text.and_then(|text| text.strip_suffix('g')?.parse().ok());
    gib.filter(|gib| (1..=MOST_MEMORY).contains(gib)).unwrap_or(MOST_MEMORY)
}

/// Whether the value is a tool that is run no more often than it says.
fn is_counted(cursor: &mut Cursor) -> bool {
    let tool = if cursor.peek() == Some(b'"') { cursor.string().ok() } else { None };
    tool.is_some_and(|tool| COUNTED.contains(&&*tool.name()))
}

fn is_document(cursor: &mut Cursor) -> bool {
    let kind = if cursor.peek() == Some(b'"') { cursor.string().ok() } else { None };
    kind.is_some_and(|kind| &*kind.name() == b"document")
}

/// Whether a string begins so, in any case, and however its letters are escaped.
fn begins(text: &Text, with: &[u8]) -> bool {
    let mut rest = text.raw();
    with.iter().all(|wanted| {
        let Some((byte, after)) = first(rest) else { return false };
        rest = after;
        byte.eq_ignore_ascii_case(wanted)
    })
}

/// The first byte of what a string says, and what is written after it; 0 for what none of the
/// words has in it.
fn first(raw: &[u8]) -> Option<(u8, &[u8])> {
    match raw {
        [b'\\', b'u', hex @ ..] => {
            let (hex, after) = hex.split_at_checked(4)?;
            let unit = u16::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()?;
            Some((u8::try_from(unit).unwrap_or(0), after))
        }
        [b'\\', b'b' | b'f' | b'n' | b'r' | b't', after @ ..] => Some((0, after)),
        [b'\\', byte, after @ ..] | [byte, after @ ..] => Some((*byte, after)),
        [] => None,
    }
}

/// The beginning of a word in small letters, and its length.
fn plain(word: &[u8]) -> ([u8; LONGEST], usize) {
    let (mut bytes, mut len) = ([0; LONGEST], 0);
    let small = word.iter().filter(|byte| !b"_-".contains(byte)).map(u8::to_ascii_lowercase);
    for (place, byte) in bytes.iter_mut().zip(small) {
        *place = byte;
        len += 1;
    }
    (bytes, len)
}

fn letters(listed: &str) -> impl Iterator<Item = u8> {
    listed.bytes().filter(|byte| !b"_-".contains(byte))
}

fn starts(word: &[u8], listed: &str) -> bool {
    let mut word = word.iter();
    letters(listed).all(|byte| word.next() == Some(&byte))
}
