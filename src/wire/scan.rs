//! One pass over a JSON request body: is it JSON at all, and where are the fields that matter.
//!
//! The whole body is checked strictly, so that no parser behind the gateway can read it in
//! another way than the gateway did.

pub use super::fault::{ScanError, Span};
pub use super::json::ObjectAt;

use super::json::Cursor;
use super::json_text::Text;
use super::later;

/// What a request body says about routing, money and streaming.
#[derive(Debug, Default)]
pub struct Fields {
    /// The model asked for: the last occurrence, as JSON parsers read it.
    pub model: Option<String>,
    /// The value of every top-level `model`.
    pub models: Vec<Span>,
    /// Whether a stream is asked for; the last occurrence, null is no.
    pub stream: bool,
    /// The last `stream_options`.
    pub stream_options: Option<StreamOptions>,
    /// Any `stream_options` before the last.
    pub earlier_stream_options: Vec<StreamOptions>,
    /// Every output cap, in the order of the body.
    pub caps: Vec<Cap>,
    /// Every `generationConfig` (also `generation_config`).
    pub generation_configs: Vec<ObjectAt>,
    /// Answers asked for (`n`, or Gemini's `candidateCount`); the greatest if repeated.
    pub n: Option<u64>,
    /// Answers generated of which the best are returned; the greatest if repeated.
    pub best_of: Option<u64>,
    /// Prompts that are answered each by its own (`prompt` as a list of them).
    pub prompts: Option<u64>,
    /// Anthropic's `inference_geo` names a region, which is dearer.
    pub regional: bool,
    /// A faster service is asked for (`service_tier`), which is dearer.
    pub priority: bool,
    /// There are tools.
    pub tools: bool,
    /// `background` is that of a picture that is to be made.
    pub backdrop: bool,
    /// The client's own hint for prompt caching.
    pub prompt_cache_key: Option<String>,
    /// The end of the first user message: what comes before it tends to stay the same over a
    /// conversation. 0 when there is none.
    pub prefix_end: usize,
    /// The length of the body: an upper bound for the input's tokens.
    pub text_bytes: usize,
    /// The offset just after the body's `{`.
    pub object_start: usize,
    /// Whether the body is `{}`.
    pub empty_object: bool,
}

impl Fields {
    /// The output that is asked for at most under a name, in tokens; `None`: no end is given. Of
    /// several caps one parser takes the first and another the last: each has to be one.
    pub fn capped(&self, name: CapName) -> Option<u64> {
        if name == CapName::GenerationConfig && self.uncapped().next().is_some() {
            return None;
        }
        let mut caps = self.caps.iter().filter(|cap| cap.name == name);
        let largest = caps.try_fold(None, |largest, cap| Some(largest.max(Some(cap.tokens?))));
        largest.flatten()
    }

    /// Whether all caps of a name that are there are `null`, or 0.
    pub fn is_silent(&self, name: CapName) -> bool {
        let mut caps = self.caps.iter().filter(|cap| cap.name == name);
        caps.all(|cap| cap.tokens.is_none_or(|tokens| tokens == 0))
    }

    /// The `generationConfig`s without a cap in them. Both are known in the order of the body: one
    /// walk over them, however many somebody sends.
    pub fn uncapped(&self) -> impl Iterator<Item = &ObjectAt> {
        let caps = self.caps.iter().filter(|cap| cap.name == CapName::GenerationConfig);
        let mut starts = caps.map(|cap| cap.value.start).peekable();
        self.generation_configs.iter().filter(move |config| {
            while starts.next_if(|start| *start < config.span.start).is_some() {}
            starts.peek().is_none_or(|start| *start >= config.span.end)
        })
    }

    /// Whether the client itself asked for the usage of a stream.
    pub fn wants_usage(&self) -> bool {
        let last = self.stream_options.as_ref();
        last.and_then(|options| options.include_usage.as_ref()).is_some_and(|(_, wanted)| *wanted)
    }
}

/// One `stream_options`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamOptions {
    /// Its value.
    pub value: Span,
    /// The offset just after its `{`; `None` when it is null.
    pub object_start: Option<usize>,
    /// Whether it has no members.
    pub empty: bool,
    /// Its last `include_usage`: where, and what it says (null is no).
    pub include_usage: Option<(Span, bool)>,
    /// Any `include_usage` before the last.
    pub earlier_include_usage: Vec<(Span, bool)>,
}

/// A limit that the client put on the output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cap {
    /// How it is called.
    pub name: CapName,
    /// Where its name is, with its quotes.
    pub key: Span,
    /// Where its value is.
    pub value: Span,
    /// The limit in tokens; `None` for null, which is no limit.
    pub tokens: Option<u64>,
}

/// The names of an output cap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CapName {
    /// `max_tokens`: Anthropic, and OpenAI's older models and compatible servers.
    MaxTokens,
    /// `max_completion_tokens`: OpenAI chat.
    MaxCompletionTokens,
    /// `max_output_tokens`: OpenAI Responses.
    MaxOutputTokens,
    /// `generationConfig.maxOutputTokens`: Gemini.
    GenerationConfig,
}

impl CapName {
    /// The field's name in a body.
    pub fn as_str(self) -> &'static str {
        match self {
            CapName::MaxTokens => "max_tokens",
            CapName::MaxCompletionTokens => "max_completion_tokens",
            CapName::MaxOutputTokens => "max_output_tokens",
            CapName::GenerationConfig => "generationConfig.maxOutputTokens",
        }
    }
}

/// Checks `body` and finds its fields.
///
/// # Errors
/// The body is not one JSON object in UTF-8, at most 256 levels deep; or a field that matters
/// has a value that can't be used (`ScanError::field` names it).
pub fn scan(body: &[u8]) -> Result<Fields, ScanError> {
    if let Err(error) = std::str::from_utf8(body) {
        return Err(ScanError::syntax(error.valid_up_to(), "not UTF-8"));
    }
    let mut fields = Fields { text_bytes: body.len(), ..Fields::default() };
    let mut cursor = Cursor::new(body);
    cursor.space();
    let object = cursor.object(|cursor, key| field(&mut fields, cursor, key))?;
    cursor.space();
    if !cursor.is_end() {
        return Err(ScanError::syntax(cursor.at(), "more after the object"));
    }
    fields.object_start = object.start;
    fields.empty_object = object.empty;
    Ok(fields)
}

/// Names that decide about routing and money. A server whose parser takes no notice of case (Go's
/// does not) would read `Model` as `model`: such a spelling is refused.
const GUARDED: [&str; 13] = [
    "model",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "n",
    "best_of",
    "prompt",
    "background",
    "deferred",
    "models",
    "fallbacks",
];

/// Takes one top-level value.
fn field(fields: &mut Fields, cursor: &mut Cursor, key: &Text) -> Result<(), ScanError> {
    // A name that can't be decoded is none of ours.
    let name = key.decode().unwrap_or_default();
    match &*name {
        "model" => model(fields, cursor),
        "stream" => {
            fields.stream = boolean(cursor, "stream")?;
            Ok(())
        }
        "stream_options" => stream_options(fields, cursor),
        "max_tokens" => cap(fields, cursor, key, CapName::MaxTokens),
        "max_completion_tokens" => cap(fields, cursor, key, CapName::MaxCompletionTokens),
        "max_output_tokens" => cap(fields, cursor, key, CapName::MaxOutputTokens),
        "generationConfig" | "generation_config" => generation_config(fields, cursor),
        "n" => {
            fields.n = fields.n.max(whole(cursor, "n")?);
            Ok(())
        }
        "best_of" => {
            fields.best_of = fields.best_of.max(whole(cursor, "best_of")?);
            Ok(())
        }
        "prompt" if cursor.peek() == Some(b'[') => {
            fields.prompts = fields.prompts.max(prompts(cursor)?);
            Ok(())
        }
        // Of a picture: its endpoint knows nothing that comes later.
        "background" if later::is_backdrop(&mut cursor.clone()) => {
            fields.backdrop = true;
            cursor.skip()
        }
        "background" => later::refused(cursor, "background"),
        // xAI's.
        "deferred" => later::refused(cursor, "deferred"),
        // OpenRouter's, and LiteLLM's: their server would choose another model, at another price.
        "models" if cursor.peek() != Some(b'n') => Err(ScanError::field(
            cursor.at(),
            "models",
            "must be left out: which model comes next is configured",
        )),
        "fallbacks" if cursor.peek() != Some(b'n') => Err(ScanError::field(
            cursor.at(),
            "fallbacks",
            "must be left out: which model comes next is configured",
        )),
        // Gemini takes both.
        "service_tier" | "serviceTier" if cursor.peek() == Some(b'"') => {
            let tier = cursor.string()?.decode();
            fields.priority |= matches!(tier.as_deref(), Some("priority" | "fast"));
            Ok(())
        }
        "speed" if cursor.peek() == Some(b'"') => fast(cursor),
        "tools" if cursor.peek() == Some(b'[') => {
            fields.tools = true;
            cursor.value(1).map(drop)
        }
        "inference_geo" if cursor.peek() == Some(b'"') => {
            let place = cursor.string()?.decode();
            fields.regional |= place.as_deref() != Some("global");
            Ok(())
        }
        "prompt_cache_key" if cursor.peek() == Some(b'"') => {
            fields.prompt_cache_key = cursor.string()?.decode().map(|key| key.into_owned());
            Ok(())
        }
        "messages" | "input" if cursor.peek() == Some(b'[') => conversation(fields, cursor, false),
        // Gemini: a content without a role is the user's.
        "contents" if cursor.peek() == Some(b'[') => conversation(fields, cursor, true),
        other => match GUARDED.iter().find(|known| is_same(known, other)) {
            Some(known) if *known != other => {
                Err(ScanError::field(cursor.at(), known, "must be written in lower case"))
            }
            _ => cursor.value(1).map(drop),
        },
    }
}

/// Whether a parser that takes no notice of case would take `other` for `known`. To Go's, `ſ` is
/// an s, and the sign for kelvin a k.
fn is_same(known: &str, other: &str) -> bool {
    match other.is_ascii() {
        true => known.eq_ignore_ascii_case(other),
        false => other.to_uppercase().to_lowercase() == known,
    }
}

/// Anthropic's fast mode has a price of its own, which no catalogue has.
fn fast(cursor: &mut Cursor) -> Result<(), ScanError> {
    let at = cursor.at();
    match cursor.string()?.decode().as_deref() {
        Some("standard") => Ok(()),
        _ => {
            Err(ScanError::field(at, "speed", "must be standard: other speeds have no known price"))
        }
    }
}

/// How many prompts a list has; `None` where it is one, of token numbers.
fn prompts(cursor: &mut Cursor) -> Result<Option<u64>, ScanError> {
    let (mut count, mut numbers) = (0, true);
    cursor.array(|cursor| {
        count += 1;
        numbers &= matches!(cursor.peek(), Some(b'-' | b'0'..=b'9'));
        cursor.value(2).map(drop)
    })?;
    Ok((!numbers).then_some(count))
}

fn model(fields: &mut Fields, cursor: &mut Cursor) -> Result<(), ScanError> {
    let wrong = ScanError::field(cursor.at(), "model", "must be a string");
    if cursor.peek() != Some(b'"') {
        return Err(wrong);
    }
    let text = cursor.string()?;
    fields.model = Some(text.decode().ok_or(wrong)?.into_owned());
    fields.models.push(text.span);
    Ok(())
}

pub(super) fn boolean(cursor: &mut Cursor, field: &'static str) -> Result<bool, ScanError> {
    match cursor.peek() {
        Some(b't') => cursor.literal(b"true").map(|()| true),
        Some(b'f') => cursor.literal(b"false").map(|()| false),
        Some(b'n') => cursor.literal(b"null").map(|()| false),
        _ => Err(ScanError::field(cursor.at(), field, "must be true or false")),
    }
}

/// A count; null is none.
fn whole(cursor: &mut Cursor, field: &'static str) -> Result<Option<u64>, ScanError> {
    let wrong = ScanError::field(cursor.at(), field, "must be a whole number");
    match cursor.peek() {
        Some(b'n') => cursor.literal(b"null").map(|()| None),
        Some(b'-' | b'0'..=b'9') => {
            let digits = std::str::from_utf8(cursor.number()?).unwrap_or_default();
            digits.parse().map(Some).map_err(|_| wrong)
        }
        _ => Err(wrong),
    }
}

fn cap(
    fields: &mut Fields,
    cursor: &mut Cursor,
    key: &Text,
    name: CapName,
) -> Result<(), ScanError> {
    let from = cursor.at();
    let tokens = if name == CapName::GenerationConfig && cursor.peek() == Some(b'"') {
        // Protobuf's JSON also takes a number written as a string.
        let wrong = ScanError::field(from, name.as_str(), "must be a whole number");
        let text = cursor.string()?.decode().unwrap_or_default();
        Some(text.parse().map_err(|_| wrong)?)
    } else {
        whole(cursor, name.as_str())?
    };
    let value = from..cursor.at();
    fields.caps.push(Cap { name, key: key.span.clone(), value, tokens });
    Ok(())
}

fn generation_config(fields: &mut Fields, cursor: &mut Cursor) -> Result<(), ScanError> {
    let from = cursor.at();
    let object = match cursor.peek() {
        Some(b'{') => cursor.object(|cursor, key| {
            let name = key.decode().unwrap_or_default();
            match &*name {
                "maxOutputTokens" | "max_output_tokens" => {
                    cap(fields, cursor, key, CapName::GenerationConfig)
                }
                "candidateCount" | "candidate_count" => {
                    let n = whole(cursor, "generationConfig.candidateCount")?;
                    fields.n = fields.n.max(n);
                    Ok(())
                }
                _ => cursor.value(2).map(drop),
            }
        })?,
        Some(b'n') => {
            cursor.literal(b"null")?;
            let span = from..cursor.at();
            // Null: a member can't be added, only the whole replaced.
            ObjectAt { start: span.end, empty: true, span }
        }
        _ => {
            return Err(ScanError::field(from, "generationConfig", "must be an object"));
        }
    };
    fields.generation_configs.push(object);
    Ok(())
}

fn stream_options(fields: &mut Fields, cursor: &mut Cursor) -> Result<(), ScanError> {
    let from = cursor.at();
    let mut asked = Vec::new();
    let object = match cursor.peek() {
        Some(b'n') => cursor.literal(b"null").map(|()| None)?,
        Some(b'{') => Some(cursor.object(|cursor, key| {
            let from = cursor.at();
            match key.decode().as_deref() {
                Some("include_usage") => {}
                Some(other) if is_same("include_usage", other) => {
                    let what = "must be written in lower case";
                    return Err(ScanError::field(from, "stream_options.include_usage", what));
                }
                _ => return cursor.value(2).map(drop),
            }
            let wanted = boolean(cursor, "stream_options.include_usage")?;
            asked.push((from..cursor.at(), wanted));
            Ok(())
        })?),
        _ => {
            return Err(ScanError::field(from, "stream_options", "must be an object"));
        }
    };
    let options = StreamOptions {
        value: from..cursor.at(),
        object_start: object.as_ref().map(|object| object.start),
        empty: object.is_none_or(|object| object.empty),
        include_usage: asked.pop(),
        earlier_include_usage: asked,
    };
    if let Some(earlier) = fields.stream_options.replace(options) {
        fields.earlier_stream_options.push(earlier);
    }
    Ok(())
}

/// Takes an array of messages and finds the end of the first one of the user.
fn conversation(
    fields: &mut Fields,
    cursor: &mut Cursor,
    user_by_default: bool,
) -> Result<(), ScanError> {
    cursor.array(|cursor| {
        if fields.prefix_end != 0 || cursor.peek() != Some(b'{') {
            return cursor.value(2).map(drop);
        }
        let mut user = user_by_default;
        let message = cursor.object(|cursor, key| {
            if key.decode().as_deref() == Some("role") && cursor.peek() == Some(b'"') {
                user = cursor.string()?.decode().as_deref() == Some("user");
                return Ok(());
            }
            cursor.value(3).map(drop)
        })?;
        if user {
            fields.prefix_end = message.span.end;
        }
        Ok(())
    })
}
