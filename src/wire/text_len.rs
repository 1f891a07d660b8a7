//! How much a request carries: text by its bytes, pictures by their number, other data.

use serde_json::Value;

/// A string this long without a space is data in base64, not text.
const DATA: usize = 512;

/// What a JSON request holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Contents {
    /// Bytes of all member names, and of all strings that are text.
    pub text: u64,
    /// JSON objects: each may cost a provider some tokens of its own.
    pub objects: u64,
    /// Pictures, given as data or by address.
    pub pictures: u64,
    /// Bytes of other data (files, sound) as it is encoded.
    pub data: u64,
}

/// Bytes of the strings in a JSON request that are text; `None` where it is no JSON.
///
/// Strings of data (`data:` URLs, base64) count nothing: what they cost is for the dialect's own
/// bounds to say. Meant for the rare request that is near a bound, since it parses.
pub fn of(body: &[u8]) -> Option<u64> {
    contents(body).map(|contents| contents.text)
}

/// All that a JSON request holds; `None` where it is no JSON.
pub fn contents(body: &[u8]) -> Option<Contents> {
    walk(body, |_| {})
}

/// What the surroundings say of a value.
#[derive(Clone, Copy, PartialEq)]
enum Within {
    /// The messages.
    Content,
    /// A picture: its data is not text.
    Picture,
    /// What a model or a tool wrote: text to its reader, whatever it looks like.
    Written,
}

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
pub fn walk(body: &[u8], mut see: impl FnMut(&str)) -> Option<Contents> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let mut found = Contents::default();
    let mut left = vec![(&body, Within::Content)];
    while let Some((value, within)) = left.pop() {
        match value {
            Value::String(text) if within == Within::Written || !is_data(text) => {
                found.text += text.len() as u64;
                see(text);
            }
            Value::String(data) if within == Within::Content => found.data += data.len() as u64,
            // A token each, where they are token numbers.
            Value::Number(number) => found.data += number.to_string().len() as u64,
            Value::Array(items) => left.extend(items.iter().map(|item| (item, within))),
            Value::Object(members) => {
                let shows = within == Within::Content && is_picture(members);
                found.pictures += u64::from(shows);
                found.objects += 1;
                found.text += members.keys().map(|name| name.len() as u64).sum::<u64>();
                members.keys().for_each(|name| see(name));
                let used = is_tool_use(members);
                left.extend(members.iter().map(|(name, member)| {
                    let written = WRITTEN.contains(&name.as_str()) || (used && name == "input");
                    // Nothing that is said is a picture, whatever stands beside it.
                    let said = matches!(
                        name.as_str(),
                        "content" | "text" | "input" | "output" | "arguments"
                    );
                    match within {
                        Within::Content if shows && !said => (member, Within::Picture),
                        Within::Picture if said => (member, Within::Content),
                        Within::Content if written => (member, Within::Written),
                        within => (member, within),
                    }
                }));
            }
            _ => {}
        }
    }
    Some(found)
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

    #[test]
    fn numbers_may_be_tokens() {
        let body = json!({"prompt": [1, 22, 50_256]}).to_string();
        assert_eq!(contents(body.as_bytes()).unwrap().data, 8);
    }

    #[test]
    fn other_data_counts_by_its_bytes() {
        let body = json!({"input_audio": {"data": "A".repeat(1000), "format": "wav"}});
        assert_eq!(contents(body.to_string().as_bytes()).unwrap().data, 1000);
    }
}
