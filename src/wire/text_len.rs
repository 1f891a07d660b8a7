//! How much a request carries: text by its bytes, pictures by their number, other data.

use std::borrow::Cow;

use super::fault::ScanError;
use super::json::Cursor;
use super::json_text::Text;
use super::nest::MAX_DEPTH;

/// A string this long without a space is data in base64, not text.
const DATA: usize = 512;

/// So much JSON is shown at once, in bytes, and what its last string has beyond.
pub(super) const SHOWN: usize = 64 * 1024;

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

/// All that a JSON request holds; `None` where it is no JSON, or nested too deeply. A member that
/// comes twice counts twice: one parser takes the first, and another the last.
///
/// Strings of data (`data:` URLs, base64) are no text: what they cost is for the dialect's own
/// bounds to say.
pub fn contents(body: &[u8]) -> Option<Contents> {
    walk(body, |_| {})
}

/// What the surroundings say of a value.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Within {
    /// The request itself: what stands here is no picture, whatever it is called.
    Request,
    /// The messages.
    Content,
    /// What a picture is made of, which is counted where its name stands.
    Picture,
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

/// What the `type` of a picture is.
const PICTURES: [&[u8]; 4] = [b"image", b"image_url", b"input_image", b"computer_screenshot"];

/// Members that hold what a model or a tool wrote, or the shape of it: text to its reader, whatever
/// it looks like.
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

/// The same, showing every piece of text to `see`. Each byte is read once, and nothing is kept.
pub fn walk(body: &[u8], mut see: impl FnMut(Shown)) -> Option<Contents> {
    let (found, json) = (Contents::default(), String::new());
    let mut walk = Walk { found, json, depth: 0, see: &mut see };
    let mut cursor = Cursor::new(body);
    cursor.space();
    walk.found.data += walk.value(&mut cursor, Within::Request).ok()?;
    cursor.space();
    cursor.is_end().then_some(walk.found)
}

struct Walk<'s> {
    found: Contents,
    /// JSON that is yet to be shown.
    json: String,
    /// Containers that are open.
    depth: usize,
    see: &'s mut dyn FnMut(Shown),
}

impl Walk<'_> {
    /// Takes a value. Returns the bytes of data in it that are nobody's if it is a picture's.
    fn value(&mut self, cursor: &mut Cursor, within: Within) -> Result<u64, ScanError> {
        match cursor.peek() {
            Some(b'{') => self.object(cursor, within),
            Some(b'[') => self.array(cursor, within).map(|()| 0),
            Some(b'"') => {
                let text = cursor.string()?;
                let text = said(&text);
                if is_data(&text) {
                    return Ok(text.len() as u64);
                }
                self.says(&text);
                Ok(0)
            }
            _ => self.literal(cursor).map(|_| 0),
        }
    }

    fn array(&mut self, cursor: &mut Cursor, within: Within) -> Result<(), ScanError> {
        // A picture has one address.
        let within = if within == Within::Picture { Within::Content } else { within };
        self.enter(cursor)?;
        cursor.array(|cursor| {
            // A template may show whatever it is given: with the comma behind it.
            self.found.data += match cursor.peek() {
                Some(b'"' | b'{' | b'[') => 0,
                Some(b'-' | b'0'..=b'9') => 1,
                _ => "false,".len() as u64,
            };
            self.found.data += self.value(cursor, within)?;
            Ok(())
        })?;
        self.depth -= 1;
        Ok(())
    }

    fn object(&mut self, cursor: &mut Cursor, within: Within) -> Result<u64, ScanError> {
        let (mut kind, mut pictured) = (Kind::default(), 0);
        let outermost = self.depth == 0;
        self.enter(cursor)?;
        self.found.objects += 1;
        cursor.object(|cursor, name| {
            let name = said(name);
            self.says(&name);
            kind.see(&name, cursor);
            // Deeper ones are what a tool was called with.
            if WRITTEN.contains(&&*name) || (name == "input" && !outermost) {
                return self.written(cursor);
            }
            let data = self.value(cursor, inside(within, &name))?;
            let own = if PICTURED.contains(&&*name) { &mut pictured } else { &mut self.found.data };
            *own += data;
            Ok(())
        })?;
        self.depth -= 1;
        if within != Within::Content || !kind.picture {
            return Ok(pictured);
        }
        self.found.pictures += 1;
        // Some parser may take it for something else.
        self.found.data += if kind.is_ambiguous() { pictured } else { 0 };
        Ok(0)
    }

    /// Takes what a model or a tool wrote.
    fn written(&mut self, cursor: &mut Cursor) -> Result<(), ScanError> {
        match cursor.peek() {
            Some(b'"') => self.says(&said(&cursor.string()?)),
            Some(b'{' | b'[') => {
                self.write(cursor)?;
                self.show();
            }
            _ => drop(self.literal(cursor)?),
        }
        Ok(())
    }

    /// Takes a value and writes it as JSON, with a single figure for each number.
    fn write(&mut self, cursor: &mut Cursor) -> Result<(), ScanError> {
        match cursor.peek() {
            Some(b'{') => {
                self.enter(cursor)?;
                self.json.push('{');
                cursor.object(|cursor, name| {
                    self.quote(name);
                    self.json.push(':');
                    self.write(cursor)?;
                    self.json.push(',');
                    Ok(())
                })?;
                self.json.push('}');
                self.depth -= 1;
            }
            Some(b'[') => {
                self.enter(cursor)?;
                self.json.push('[');
                cursor.array(|cursor| {
                    self.write(cursor)?;
                    self.json.push(',');
                    Ok(())
                })?;
                self.json.push(']');
                self.depth -= 1;
            }
            Some(b'"') => self.quote(&cursor.string()?),
            Some(b'-' | b'0'..=b'9') => {
                self.literal(cursor)?;
                self.json.push('0');
            }
            _ => {
                let word = self.literal(cursor)?;
                self.json.push_str(&String::from_utf8_lossy(word));
            }
        }
        if self.json.len() >= SHOWN {
            self.show();
        }
        Ok(())
    }

    fn quote(&mut self, text: &Text) {
        self.json.push_str(&serde_json::Value::from(said(text)).to_string());
    }

    fn show(&mut self) {
        self.found.text += self.json.len() as u64;
        (self.see)(Shown::Json(&self.json));
        self.json.clear();
    }

    /// Takes a number or a word. Numbers count as they are written: a token each, where they are
    /// token numbers.
    fn literal<'a>(&mut self, cursor: &mut Cursor<'a>) -> Result<&'a [u8], ScanError> {
        if !matches!(cursor.peek(), Some(b'-' | b'0'..=b'9')) {
            return cursor.slice();
        }
        let number = cursor.number()?;
        self.found.data += number.len() as u64;
        Ok(number)
    }

    fn says(&mut self, text: &str) {
        let bytes = text.as_bytes();
        let repeats = bytes.windows(2).filter(|pair| pair.first() == pair.last()).count();
        self.found.text += bytes.len() as u64;
        self.found.changes += (bytes.len() - repeats) as u64;
        (self.see)(Shown::Text(text));
    }

    fn enter(&mut self, cursor: &Cursor) -> Result<(), ScanError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(ScanError::syntax(cursor.at(), "nested too deeply"));
        }
        Ok(())
    }
}

/// What the surroundings say of a member of that name.
fn inside(within: Within, name: &str) -> Within {
    match within {
        Within::Content if ["image_url", "image"].contains(&name) => Within::Picture,
        Within::Picture if PICTURED.contains(&name) => Within::Picture,
        Within::Request if !SAID.contains(&name) => Within::Request,
        _ => Within::Content,
    }
}

/// What a string says; as it is written, which is longer, where it has half of a character.
fn said<'a>(text: &Text<'a>) -> Cow<'a, str> {
    text.decode().unwrap_or_else(|| String::from_utf8_lossy(text.raw()))
}

/// What the members of an object say that it is.
#[derive(Default)]
struct Kind {
    /// A picture in one of the dialects: `{"type": "image…"}`, `{"image_url": …}` or Gemini's
    /// `{"inlineData": {"mimeType": "image/…"}}`, `fileData` likewise.
    picture: bool,
    types: u32,
    mimes: u32,
}

impl Kind {
    /// Looks at a member: its name, and its value, which is not taken.
    fn see(&mut self, name: &str, cursor: &Cursor) {
        let value = || match cursor.peek() {
            Some(b'"') => cursor.clone().string().map(|text| text.name()).unwrap_or_default(),
            _ => Cow::default(),
        };
        match name {
            "image_url" | "image" => self.picture = true,
            "type" => {
                self.types += 1;
                self.picture |= PICTURES.contains(&&*value());
            }
            "mimeType" | "mime_type" => {
                self.mimes += 1;
                self.picture |= value().starts_with(b"image/");
            }
            _ => {}
        }
    }

    /// Whether it says so twice.
    fn is_ambiguous(&self) -> bool {
        self.types > 1 || self.mimes > 1
    }
}

fn is_data(text: &str) -> bool {
    let base64 = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=-_\r\n".contains(&byte);
    text.starts_with("data:") || (text.len() >= DATA && text.bytes().all(base64))
}
