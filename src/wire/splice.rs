//! Changing a few bytes of a body and leaving all others as they are.

use bytes::{BufMut, Bytes, BytesMut};

use super::fault::Span;
use super::scan::{CapName, Fields, StreamOptions};

/// Bytes to put in the place of others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// What goes; empty where something is only added.
    pub at: Span,
    /// What comes.
    pub with: Vec<u8>,
}

/// What the target needs to read in a body.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted<'a> {
    /// The target's own id of the model.
    pub model: Option<&'a str>,
    /// The name by which the target knows an output cap.
    pub cap_name: Option<CapName>,
    /// Chat's newer name, `max_completion_tokens`, is turned into `max_tokens`: the target would
    /// take no notice of it.
    pub older_cap: bool,
    /// No output beyond this many tokens. Every present cap that is greater (or null) is lowered;
    /// one is added where the target would see none.
    pub output_cap: Option<u64>,
    /// The target may read 0 as no cap: it is one that is greater.
    pub zero_is_none: bool,
    /// Whether `stream_options.include_usage` must be true.
    pub include_usage: bool,
}

/// The edits that make a body what is wanted: sorted, disjoint, none if it is so already.
pub fn edits(fields: &Fields, wanted: &Wanted) -> Vec<Edit> {
    let mut plan = Plan::default();
    if let Some(id) = wanted.model {
        plan.model(fields, id);
    }
    if let Some(name) = wanted.cap_name {
        if wanted.older_cap {
            plan.older_cap(fields, wanted.output_cap);
        }
        if let Some(most) = wanted.output_cap {
            plan.output_cap(fields, name, most, wanted.zero_is_none);
        }
    }
    if wanted.include_usage {
        plan.include_usage(fields);
    }
    plan.finish(fields)
}

#[derive(Default)]
struct Plan {
    edits: Vec<Edit>,
    /// Members to add to the body's own object.
    added: Vec<Vec<u8>>,
}

impl Plan {
    fn model(&mut self, fields: &Fields, id: &str) {
        // One occurrence that says so already; of several, the others may say something else.
        if fields.models.len() == 1 && fields.model.as_deref() == Some(id) {
            return;
        }
        for at in &fields.models {
            self.replace(at, quote(id));
        }
        if fields.models.is_empty() {
            self.added.push([b"\"model\":", &*quote(id)].concat());
        }
    }

    fn older_cap(&mut self, fields: &Fields, most: Option<u64>) {
        let named = |name| fields.caps.iter().filter(move |cap| cap.name == name);
        let Some(newer) = named(CapName::MaxCompletionTokens).next() else { return };
        let mut older = named(CapName::MaxTokens).peekable();
        if older.peek().is_none() {
            self.replace(&newer.key, quote(CapName::MaxTokens.as_str()));
            return;
        }
        // One that says nothing says what the newer one does.
        let tokens = fields.capped(CapName::MaxCompletionTokens).filter(|tokens| *tokens > 0);
        if let Some(tokens) = tokens
            && fields.is_silent(CapName::MaxTokens)
        {
            let tokens = most.map_or(tokens, |most| tokens.min(most)).to_string();
            older.for_each(|cap| self.replace(&cap.value, tokens.clone().into_bytes()));
        }
    }

    fn output_cap(&mut self, fields: &Fields, name: CapName, most: u64, zero_is_none: bool) {
        let greater = |tokens| tokens > most || (tokens == 0 && zero_is_none);
        for cap in &fields.caps {
            if cap.tokens.is_none_or(greater) {
                self.replace(&cap.value, most.to_string().into_bytes());
            }
        }
        if name != CapName::GenerationConfig {
            if fields.caps.iter().any(|cap| is_seen(cap.name, name)) {
                return;
            }
            let member = format!("\"{}\":{most}", name.as_str());
            self.added.push(member.into_bytes());
            return;
        }
        let member = format!("\"maxOutputTokens\":{most}");
        // Of several one parser takes the first and another the last.
        for config in fields.uncapped() {
            if config.start == config.span.end {
                self.replace(&config.span, format!("{{{member}}}").into_bytes());
            } else {
                self.insert(config.start, config.empty, member.as_bytes());
            }
        }
        if fields.generation_configs.is_empty() {
            let member = format!("\"generationConfig\":{{{member}}}");
            self.added.push(member.into_bytes());
        }
    }

    fn include_usage(&mut self, fields: &Fields) {
        let last = fields.stream_options.iter();
        for options in last.chain(&fields.earlier_stream_options) {
            self.include_usage_in(options);
        }
        if fields.stream_options.is_none() {
            let member = b"\"stream_options\":{\"include_usage\":true}";
            self.added.push(member.to_vec());
        }
    }

    fn include_usage_in(&mut self, options: &StreamOptions) {
        let last = options.include_usage.iter();
        for (at, wanted) in last.chain(&options.earlier_include_usage) {
            if !wanted {
                self.replace(at, b"true".to_vec());
            }
        }
        match options.object_start {
            None => self.replace(&options.value, b"{\"include_usage\":true}".to_vec()),
            Some(_) if options.include_usage.is_some() => {}
            Some(start) => self.insert(start, options.empty, b"\"include_usage\":true"),
        }
    }

    fn replace(&mut self, at: &Span, with: Vec<u8>) {
        self.edits.push(Edit { at: at.clone(), with });
    }

    /// Adds a member (or several) first in an object.
    fn insert(&mut self, start: usize, empty: bool, member: &[u8]) {
        let mut with = member.to_vec();
        if !empty {
            with.push(b',');
        }
        self.edits.push(Edit { at: start..start, with });
    }

    fn finish(mut self, fields: &Fields) -> Vec<Edit> {
        if !self.added.is_empty() {
            let members = self.added.join(&b","[..]);
            self.insert(fields.object_start, fields.empty_object, &members);
        }
        self.edits.sort_by_key(|edit| edit.at.start);
        self.edits
    }
}

/// Whether a target that is capped by `wanted` obeys a cap named `present`.
///
/// A cap that the target doesn't know must not count as one: the output would have no bound.
fn is_seen(present: CapName, wanted: CapName) -> bool {
    use CapName::{MaxCompletionTokens, MaxTokens};
    let chat = |name| matches!(name, MaxTokens | MaxCompletionTokens);
    present == wanted || (chat(present) && chat(wanted))
}

/// The body with the edits made. Without edits it is the same memory.
///
/// An edit that overlaps the one before it, or lies outside, is left out.
pub fn splice(body: &Bytes, edits: &[Edit]) -> Bytes {
    if edits.is_empty() {
        return body.clone();
    }
    let added: usize = edits.iter().map(|edit| edit.with.len()).sum();
    let taken: usize = edits.iter().map(|edit| edit.at.len()).sum();
    let mut out = BytesMut::with_capacity((body.len() + added).saturating_sub(taken));
    let mut done = 0;
    for edit in edits {
        let Some(kept) = body.get(done..edit.at.start) else {
            continue;
        };
        if edit.at.end > body.len() || edit.at.end < edit.at.start {
            continue;
        }
        out.put_slice(kept);
        out.put_slice(&edit.with);
        done = edit.at.end;
    }
    out.put_slice(body.get(done..).unwrap_or_default());
    out.freeze()
}

/// `text` as a JSON string.
pub fn quote(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 2);
    out.push(b'"');
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => out.extend([b'\\', byte]),
            0..0x20 => out.extend(format!("\\u{byte:04x}").into_bytes()),
            _ => out.push(byte),
        }
    }
    out.push(b'"');
    out
}
