//! What a request asks a provider for that isn't in its body: stored input, searches, tools that
//! run at the provider. Looked for where it means that, and not in texts, in schemas of tools, or
//! in what a tool was called with.

use super::fault::ScanError;
use super::json::Cursor;
use super::json_text::Text;
use super::nest::MAX_DEPTH;
use super::text_len::WRITTEN;
use super::walk;

/// Names and values that begin so stand for input that the gateway can't see, or whose bytes don't
/// bound it (a page of a document is a picture, too). Written in any case, with or without `_`.
const UNSEEN: [&str; 23] = [
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
    "container_auto",
    "container_reference",
    "container_upload",
    "cached_content",
    "pmpt_",
    "fileid:",
    "mcp",
    "data_source",
    "input_file",
    "video",
    "data:video",
];

/// The same, only where it is all of a name or value.
const UNSEEN_EXACTLY: [&str; 6] =
    ["conversation", "container", "document", "document_url", "file", "retrieval"];

/// Searches by a provider: they add input, and may have a price of their own.
const SEARCH: [&str; 14] = [
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
];

/// Pictures made on the way to an answer. Their tokens aren't among the answer's.
const DRAWS: [&str; 2] = ["image_generation", "openrouter:image_generation"];

/// Another model works for the answer, at a price of its own, whoever may use it.
const OTHERS: [&str; 4] =
    ["advisor_2", "openrouter:advisor", "openrouter:fusion", "openrouter:subagent"];

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

/// The longest name or value of the lists above, and then some.
const LONGEST: usize = 40;

/// What a request asks for beyond its body.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Beyond {
    /// The provider may add input.
    pub unseen: bool,
    /// The provider may search the web for it.
    pub search: bool,
    /// The provider may draw pictures.
    pub draws: bool,
    /// Another model may work for it.
    pub others: bool,
}

impl Beyond {
    /// Whatever there is.
    pub const ALL: Beyond = Beyond { unseen: true, search: true, draws: true, others: true };
}

/// Words without one of which nothing is asked for, as they begin a string in a body.
pub fn words() -> impl Iterator<Item = String> {
    let begin = UNSEEN.iter().chain(&SEARCH).chain(&DRAWS).chain(&OTHERS);
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
        let (mut id, mut described) = (false, false);
        walk::members(cursor, |cursor, member| {
            id |= member == b"id";
            described |= matches!(member, b"type" | b"role" | b"content");
            self.member(cursor, member, depth + 1)
        })?;
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
        self.draws |= more.draws;
        self.others |= more.others;
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
        Beyond { unseen, search, draws, others: begins(&OTHERS) }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn asked(body: &Value) -> (bool, bool, bool) {
        let found = of(body.to_string().as_bytes()).unwrap();
        assert!(!found.others, "{body}");
        (found.unseen, found.search, found.draws)
    }

    #[test]
    fn what_is_asked_for_is_found_in_every_dialect() {
        let part = |part: Value| json!({"messages": [{"role": "user", "content": [part]}]});
        for body in [
            json!({"previous_response_id": "resp_1"}),
            json!({"conversation": {"id": "conv_1"}}),
            json!({"input": [{"type": "item_reference", "id": "msg_1"}]}),
            json!({"input": [{"id": "msg_1"}]}),
            json!({"tools": [{"type": "shell", "environment": {"type": "container_auto"}}]}),
            json!({"container": "container_1"}),
            json!({"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]}),
            json!({"messages": [{"role": "system", "content": "fileid://file-fe-1"}]}),
            json!({"prompt": {"id": "pmpt_1"}}),
            json!({"tools": [{"type": "mcp", "server_url": "https://example.com"}]}),
            json!({"mcp_servers": [{"type": "url", "url": "https://example.com"}]}),
            json!({"tools": [{"type": "code_execution_20250825", "name": "code_execution"}]}),
            json!({"tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]}),
            json!({"tools": [{"fileSearch": {}}]}),
            json!({"tools": [{"type": "retrieval"}]}),
            json!({"compound_custom": {"tools": {"enabled_tools": ["code_interpreter"]}}}),
            json!({"data_sources": [{"type": "azure_search"}]}),
            json!({"cachedContent": "cachedContents/1"}),
            json!({"contents": [{"parts": [{"fileData": {"fileUri": "https://example.com"}}]}]}),
            json!({"contents": [{"parts": [{"inlineData": {"mimeType": "application/pdf"}}]}]}),
            json!({"contents": [{"parts": [{"inline_data": {"mime_type": "video/mp4"}}]}]}),
            part(json!({"type": "document", "source": {"type": "text", "data": "x"}})),
            part(json!({"type": "file", "file": {"file_data": "data:application/pdf;base64,A"}})),
            part(json!({"type": "image", "source": {"type": "file", "file_id": "file_1"}})),
            part(json!({"type": "video_url", "video_url": {"url": "https://example.com"}})),
            part(json!({"type": "tool_result", "content": [{"type": "document"}]})),
        ] {
            assert_eq!(asked(&body), (true, false, false), "{body}");
        }
        for body in [
            json!({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
            json!({"web_search_options": {}}),
            json!({"tools": [{"googleSearch": {}}]}),
            json!({"tools": [{"google_search_retrieval": {}}]}),
            json!({"tools": [{"enterpriseWebSearch": {}}]}),
            json!({"tools": [{"googleMaps": {}}]}),
            json!({"plugins": [{"id": "web"}]}),
            json!({"search_parameters": {"mode": "on"}}),
            json!({"enable_search": true}),
            json!({"tools": [{"type": "builtin_function", "function": {"name": "$web_search"}}]}),
            json!({"tools": [{"type": "openrouter:web_search"}]}),
            json!({"tools": [{"type": "x_search"}]}),
            json!({"tools": [{"type": "browser_search"}]}),
            json!({"Web_Search_Options": {}}),
        ] {
            assert_eq!(asked(&body), (true, true, false), "{body}");
        }
        assert_eq!(asked(&json!({"tools": [{"type": "image_generation"}]})), (false, false, true));
    }

    #[test]
    fn other_models_are_named() {
        for kind in ["advisor_20260301", "openrouter:advisor"] {
            let body = json!({"tools": [{"type": kind, "name": "advisor", "model": "dear"}]});
            assert!(of(body.to_string().as_bytes()).unwrap().others, "{body}");
        }
    }

    #[test]
    fn names_of_ones_own_and_texts_ask_for_nothing() {
        let schema = json!({"type": "object", "properties": {
            "document": {"type": "string"}, "file_id": {"enum": ["web_search"]}, "plugins": {}}});
        let called = json!({"document": "d", "plugins": ["web_search"], "type": "mcp"});
        for body in [
            json!({"tools": [{"type": "function", "function":
                {"name": "web_search", "description": "mcp", "parameters": schema}}]}),
            json!({"tools": [{"type": "function", "name": "mcp__docs__find", "parameters": schema}]}),
            json!({"tools": [{"name": "web_fetch", "input_schema": schema,
                "input_examples": [called]}]}),
            json!({"tools": [{"functionDeclarations": [{"name": "google_search",
                "parameters": schema, "responseJsonSchema": schema}]}]}),
            json!({"tool_choice": {"type": "function", "function": {"name": "file_search"}}}),
            json!({"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}),
            json!({"text": {"format": {"type": "json_schema", "name": "n", "schema": schema}}}),
            json!({"generationConfig": {"responseMimeType": "application/json",
                "responseSchema": schema}}),
            json!({"metadata": {"conversation": "c", "file_id": "f"}}),
            json!({"messages": [{"role": "user", "content": "web_search"},
                {"role": "assistant", "content": [{"type": "tool_use", "id": "t",
                    "name": "mcp__docs__find", "input": called}]},
                {"role": "user", "content": [{"type": "text", "text": "file_search \"document\""}]}]}),
            json!({"messages": [{"role": "assistant", "tool_calls": [{"type": "function",
                "function": {"name": "web_search", "arguments": "{\"document\":1}"}}]}]}),
            json!({"contents": [{"parts": [{"functionCall": {"name": "mcp_x", "args": called}}]},
                {"parts": [{"functionResponse": {"name": "mcp_x", "response": called}}]}]}),
            json!({"input": ["web_search", "document"], "prompt": ["mcp"]}),
            json!({"previous_response_id": null, "conversation": null, "mcp_servers": [],
                "plugins": [], "enable_search": false, "cached_content": ""}),
            json!({"task_type": "RETRIEVAL_DOCUMENT", "documents": ["a"]}),
            json!({"messages": [{"role": "user", "content": [{"type": "tool_result",
                "tool_use_id": "web_search:0", "content": [{"type": "tool_reference",
                "tool_name": "mcp__docs__find"}]}]}]}),
            json!({"input": [{"type": "function_call", "id": "fc_1", "namespace": "mcp__docs"},
                {"type": "local_shell_call", "action": {"command": ["file", "document"]}},
                {"type": "image_generation_call", "id": "ig_1"}]}),
            json!({"include": ["file_search_call.results"], "stop_sequences": ["document"]}),
            json!({"messages": [{"content": [{"type": "thinking", "signature": "mcpA+b/"}]}]}),
            json!({"guided_json": {"type": "object", "properties": {"document": {}}}}),
        ] {
            assert_eq!(asked(&body), (false, false, false), "{body}");
        }
    }

    #[test]
    fn a_name_is_read_as_the_provider_reads_it() {
        let hidden = br#"{"\u0066ile_id":"f"}"#;
        assert!(of(hidden).unwrap().unseen);
        assert!(of(br#"{"a":{"mimeType":"application\/pdf"}}"#).unwrap().unseen);
        for escaped in [r"fileid:\/\/x", r"\u0066ileid:x", r"FileID\u003ax"] {
            let body = format!(r#"{{"messages":[{{"content":"{escaped}"}}]}}"#);
            assert!(of(body.as_bytes()).unwrap().unseen, "{body}");
        }
        for text in [r"\file", r"\nfileid:", "fileid", r"\u2028fileid:", "", r"\ud83d\ude00"] {
            let body = format!(r#"{{"messages":[{{"content":"{text}"}}]}}"#).replace(r"\f", r"\\f");
            assert!(!of(body.as_bytes()).unwrap().unseen, "{body}");
        }
        // Twice: whichever the provider takes.
        assert!(of(br#"{"file_id":"f","file_id":null}"#).unwrap().unseen);
        for broken in ["{\"a\":", "x", "{} {}"] {
            assert_eq!(of(broken.as_bytes()), None);
        }
        let deep = format!("{}{}", "[".repeat(300), "]".repeat(300));
        assert_eq!(of(deep.as_bytes()), None);
    }
}
