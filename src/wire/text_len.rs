//! How much a request carries: text by its bytes, pictures by their number, other data.

use serde_json::Value;

/// A string this long without a space is data in base64, not text.
const DATA: usize = 512;

/// What a JSON request holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Contents {
    /// Bytes of all member names, of all strings that are text, and of all that is shown to the
    /// model as JSON.
    pub text: u64,
    /// Those of names and strings that aren't the same as the byte before: of runs of spaces or
    /// dashes more than a hundred bytes are one token.
    pub changes: u64,
    /// JSON objects: each may cost a provider some tokens of its own.
    pub objects: u64,
    /// Pictures, given as data or by address.
    pub pictures: u64,
    /// Bytes of other data (files, sound, numbers) as it is encoded.
    pub data: u64,
}

/// A piece of what a model is shown.
pub enum Shown<'a> {
    /// A text or a name.
    Text(&'a str),
    /// JSON, however the provider writes it down.
    Json(&'a str),
}

/// All that a JSON request holds; `None` where it is no JSON, or has a member twice, of which one
/// parser takes the first and another the last.
///
/// Strings of data (`data:` URLs, base64) are no text: what they cost is for the dialect's own
/// bounds to say. Meant for the rare request that is near a bound, since it parses.
pub fn contents(body: &[u8]) -> Option<Contents> {
    walk(body, |_| {})
}

/// What the surroundings say of a value.
#[derive(Clone, Copy, PartialEq)]
enum Within {
    /// The request itself: what stands here is no picture, whatever it is called.
    Request,
    /// The messages.
    Content,
    /// What a picture is made of: its data is not text.
    Picture,
    /// What a model or a tool wrote: text to its reader, whatever it looks like.
    Written,
}

/// Members that hold what is said: pictures are among it.
const SAID: [&str; 10] = [
    "messages",
    "content",
    "contents",
    "parts",
    "input",
    "output",
    "system",
    "systemInstruction",
    "system_instruction",
    "instructions",
];

/// Members that hold a picture's address or its data, or lead to it. Whatever else stands beside a
/// picture counts as it would without it.
const PICTURED: [&str; 5] = ["image_url", "image", "source", "url", "data"];

/// Members that hold what a model or a tool wrote, or the shape of it.
pub const WRITTEN: [&str; 17] = [
    "arguments",
    "args",
    "response",
    "parameters",
    "parametersJsonSchema",
    "parameters_json_schema",
    "input_schema",
    "input_examples",
    "schema",
    "responseSchema",
    "response_schema",
    "responseJsonSchema",
    "response_json_schema",
    "_responseJsonSchema",
    "guided_json",
    "structured_outputs",
    "metadata",
];

/// The same, showing every piece of text to `see`.
pub fn walk(body: &[u8], mut see: impl FnMut(Shown)) -> Option<Contents> {
    let bare = Bare::of(body);
    let body: Value = serde_json::from_slice(body).ok()?;
    let mut found = Contents { data: bare.numerals, ..Contents::default() };
    let mut members = 0;
    let mut left = vec![(&body, Within::Request)];
    while let Some((value, within)) = left.pop() {
        match value {
            Value::String(text) if within == Within::Written || !is_data(text) => {
                found.says(text);
                see(Shown::Text(text));
            }
            Value::String(_) if within == Within::Picture => {}
            Value::String(data) => found.data += data.len() as u64,
            Value::Array(_) | Value::Object(_) if within == Within::Written => {
                let mut json = String::new();
                members += write(value, &mut json);
                found.text += json.len() as u64;
                see(Shown::Json(&json));
            }
            Value::Array(items) => {
                // A template may show whatever it is given.
                found.data += items.iter().map(literal).sum::<u64>();
                // A picture has one address.
                let within = if within == Within::Picture { Within::Content } else { within };
                left.extend(items.iter().map(|item| (item, within)));
            }
            Value::Object(object) => {
                let shows = within == Within::Content && is_picture(object);
                found.pictures += u64::from(shows);
                found.objects += 1;
                members += object.len() as u64;
                for name in object.keys() {
                    found.says(name);
                    see(Shown::Text(name));
                }
                let used = is_tool_use(object);
                left.extend(object.iter().map(|(name, member)| {
                    let name = name.as_str();
                    let pictured = (shows || within == Within::Picture) && PICTURED.contains(&name);
                    let within = match within {
                        _ if pictured => Within::Picture,
                        _ if WRITTEN.contains(&name) || (used && name == "input") => {
                            Within::Written
                        }
                        Within::Request if !SAID.contains(&name) => Within::Request,
                        _ => Within::Content,
                    };
                    (member, within)
                }));
            }
            // Numbers are counted as they are written: a token each, where they are token numbers.
            Value::Number(_) | Value::Bool(_) | Value::Null => {}
        }
    }
    (bare.colons == members).then_some(found)
}

impl Contents {
    fn says(&mut self, text: &str) {
        let bytes = text.as_bytes();
        let repeats = bytes.windows(2).filter(|pair| pair.first() == pair.last()).count();
        self.text += bytes.len() as u64;
        self.changes += (bytes.len() - repeats) as u64;
    }
}

/// Bytes of an element of a list, and of the comma behind it, that are nowhere else counted.
fn literal(element: &Value) -> u64 {
    match element {
        Value::Bool(_) | Value::Null => "false,".len() as u64,
        Value::Number(_) => 1,
        Value::String(_) | Value::Array(_) | Value::Object(_) => 0,
    }
}

/// Writes a value as JSON, with a single figure for each number; how many members it has.
fn write(value: &Value, into: &mut String) -> u64 {
    let mut members = 0;
    match value {
        Value::Number(_) => into.push('0'),
        Value::Array(items) => {
            into.push('[');
            for item in items {
                members += write(item, into);
                into.push(',');
            }
            into.push(']');
        }
        Value::Object(object) => {
            members += object.len() as u64;
            into.push('{');
            for (name, member) in object {
                members += write(&Value::String(name.clone()), into);
                into.push(':');
                members += write(member, into);
                into.push(',');
            }
            into.push('}');
        }
        Value::String(_) | Value::Bool(_) | Value::Null => into.push_str(&value.to_string()),
    }
    members
}

/// What comes after a string, of which this is all but its first quote.
fn behind(mut rest: &[u8]) -> &[u8] {
    while let Some(at) = memchr::memchr2(b'"', b'\\', rest) {
        let escaped = rest.get(at) == Some(&b'\\');
        rest = rest.get(at + 1 + usize::from(escaped)..).unwrap_or_default();
        if !escaped {
            return rest;
        }
    }
    &[]
}

/// What stands outside the strings of a body.
#[derive(Default)]
struct Bare {
    /// As many as there are members.
    colons: u64,
    /// Bytes of numbers. A parser would say less of long ones.
    numerals: u64,
}

impl Bare {
    fn of(body: &[u8]) -> Bare {
        let mut bare = Bare::default();
        let (mut rest, mut before) = (body, b' ');
        while let Some((byte, after)) = rest.split_first() {
            rest = after;
            match byte {
                b'"' => rest = behind(after),
                b':' => bare.colons += 1,
                b'0'..=b'9' | b'-' | b'+' | b'.' => bare.numerals += 1,
                b'e' | b'E' if before.is_ascii_digit() => bare.numerals += 1,
                _ => {}
            }
            before = *byte;
        }
        bare
    }
}

/// Whether an object is a call of a tool, in Anthropic's and OpenAI's custom tools' form.
fn is_tool_use(members: &serde_json::Map<String, Value>) -> bool {
    let kind = members.get("type").and_then(Value::as_str).unwrap_or("");
    kind.ends_with("tool_use") || kind.ends_with("tool_call")
}

/// Whether an object is a picture in one of the dialects: `{"type": "image…"}`, `{"image_url": …}`
/// or Gemini's `{"inlineData": {"mimeType": "image/…"}}`, `fileData` likewise.
fn is_picture(members: &serde_json::Map<String, Value>) -> bool {
    let text = |name: &str| members.get(name).and_then(Value::as_str).unwrap_or("");
    let mime = |name: &str| text(name).starts_with("image/");
    matches!(text("type"), "image" | "image_url" | "input_image" | "computer_screenshot")
        || ["image_url", "image"].iter().any(|name| members.contains_key(*name))
        || mime("mimeType")
        || mime("mime_type")
}

fn is_data(text: &str) -> bool {
    let base64 = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=-_\r\n".contains(&byte);
    text.starts_with("data:") || (text.len() >= DATA && text.bytes().all(base64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pictures_are_counted_and_their_bytes_are_not() {
        let data = "A".repeat(100_000);
        let url = format!("data:image/png;base64,{data}");
        let body = json!({"messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}},
            {"image_url": {"url": url}},
            {"type": "text", "text": "five"},
        ]}]});
        let found = contents(body.to_string().as_bytes()).unwrap();
        assert_eq!((found.pictures, found.data), (4, 0));
        assert!(found.text < 400, "{found:?}");
    }

    #[test]
    fn what_is_said_beside_a_picture_is_text() {
        let long = "AbCdEfGh1".repeat(1_000);
        let body = json!({"messages": [{"role": "user", "type": "image", "content": long}]});
        let found = contents(body.to_string().as_bytes()).unwrap();
        assert_eq!((found.pictures, found.data), (1, 9_000));
    }

    /// A picture stands for its own data only.
    #[test]
    fn what_stands_beside_a_picture_is_not_free() {
        let (prose, sound) = (format!("data: {}", "word ".repeat(1_000)), "A".repeat(5_000));
        for part in [
            json!({"image": 0, "refusal": prose}),
            json!({"image": 0, "reasoning_content": prose, "content": "Hi"}),
            json!({"type": "image", "source": {"url": "https://a"}, "tool_calls": [{"id": prose}]}),
            json!({"image": 0, "input_audio": {"data": sound, "format": "mp3"}}),
            json!({"image": 0, "inlineData": {"mimeType": "audio/flac", "data": sound}}),
            json!({"image_url": [prose]}),
            json!({"image": 0, "args": {"data": prose}}),
        ] {
            let body = json!({"messages": [part]}).to_string();
            let found = contents(body.as_bytes()).unwrap();
            assert_eq!(found.pictures, 1, "{body:.80}");
            assert!(found.text + found.data >= 5_000, "{found:?}: {body:.80}");
        }
    }

    #[test]
    fn what_a_tool_was_given_is_text_whatever_it_looks_like() {
        let long = "AbCdEfGh1".repeat(1_000);
        for body in [
            json!({"type": "tool_use", "input": {"type": "image", "x": long}}),
            json!({"functionCall": {"args": {"mimeType": "image/png", "x": long}}}),
            json!({"functionResponse": {"response": {"type": "image", "x": long}}}),
        ] {
            let found = contents(body.to_string().as_bytes()).unwrap();
            assert_eq!((found.pictures, found.data), (0, 0), "{body}");
            assert!(found.text > 9_000, "{body}");
        }
    }

    /// A model reads it, too.
    #[test]
    fn what_json_is_made_of_counts() {
        let list = |item: &str| vec![item; 1_000].join(",");
        let call =
            |input: String| format!(r#"{{"content": [{{"type": "tool_use", "input": {input}}}]}}"#);
        for (body, least) in [
            (call(format!(r#"{{"x": [{}]}}"#, list("true"))), 5_000),
            (call(format!(r#"{{"x": [{}]}}"#, list("[]"))), 3_000),
            (call(format!(r#"{{"x": [{}]}}"#, list("1"))), 3_000),
            (format!(r#"{{"chat_template_kwargs": {{"x": [{}]}}}}"#, list("null")), 5_000),
        ] {
            let found = contents(body.as_bytes()).unwrap();
            assert!(found.text + found.data >= least, "{found:?}: {body:.80}");
            assert!(found.text + found.data <= body.len() as u64 + 1_100, "{found:?}: {body:.80}");
        }
    }

    #[test]
    fn a_long_number_counts_as_it_is_written() {
        let body = format!(r#"{{"prompt": [1{}, 0.1{}]}}"#, "0".repeat(300), "1".repeat(100));
        assert_eq!(contents(body.as_bytes()).unwrap().data, 301 + 103 + 2);
    }

    #[test]
    fn a_member_that_comes_twice_is_not_counted_on() {
        let twice =
            format!(r#"{{"messages": "{}", "messages": "a\\", "b": "\"c:d"}}"#, "x".repeat(900));
        assert_eq!(contents(twice.as_bytes()), None);
        let once = twice.replacen("messages", "other", 1);
        assert!(contents(once.as_bytes()).is_some_and(|found| found.data == 900));
        let deep = json!({"args": {"a": {"b": [{"c": 1}, {"d": ":"}]}}}).to_string();
        assert!(contents(deep.as_bytes()).is_some());
        assert_eq!(contents(br#"{"args": {"a": 1, "a": 2}}"#), None);
    }

    #[test]
    fn only_what_is_said_has_pictures() {
        let prose = format!("data: {}", "word ".repeat(1_000));
        for body in [
            json!({"image": 0, "prompt": prose}),
            json!({"tools": [{"function": {"image": 0, "description": prose}}]}),
        ] {
            let found = contents(body.to_string().as_bytes()).unwrap();
            assert_eq!(found.pictures, 0, "{found:?}");
            assert!(found.text + found.data > 5_000, "{found:?}");
        }
    }

    #[test]
    fn numbers_may_be_tokens() {
        let body = json!({"prompt": [1, 22, 50_256]}).to_string();
        assert_eq!(contents(body.as_bytes()).unwrap().data, 8 + 3);
    }

    #[test]
    fn other_data_counts_by_its_bytes() {
        let body = json!({"input_audio": {"data": "A".repeat(1000), "format": "wav"}});
        assert_eq!(contents(body.to_string().as_bytes()).unwrap().data, 1000);
    }
}
