//! Looking into an answer's JSON: pieces of a text that may be broken, never an error.

use std::borrow::Cow;

use serde_json::Value;

use super::fault::ScanError;
use super::json::Cursor;
use super::json_text::Text;

/// The members of an object, each value as it is written. Stops at what is not JSON;
/// answers whether it came to the object's end.
pub fn members<'a>(raw: &'a [u8], mut each: impl FnMut(&str, &'a [u8])) -> bool {
    let mut cursor = Cursor::new(raw);
    cursor.space();
    // A broken text has shown what it has: its members up to there.
    let object = cursor.object(|cursor, key| {
        let value = slice(raw, cursor)?;
        each(&key.decode().unwrap_or(Cow::Borrowed("")), value);
        Ok(())
    });
    object.is_ok()
}

/// The elements of an array, each as it is written. Stops at what is not JSON.
pub fn elements<'a>(raw: &'a [u8], mut each: impl FnMut(&'a [u8])) {
    let mut cursor = Cursor::new(raw);
    cursor.space();
    let _ = cursor.array(|cursor| {
        each(slice(raw, cursor)?);
        Ok(())
    });
}

fn slice<'a>(raw: &'a [u8], cursor: &mut Cursor<'a>) -> Result<&'a [u8], ScanError> {
    let span = cursor.value(1)?;
    Ok(raw.get(span).unwrap_or_default())
}

/// The member of that name; the last one if there are several.
pub fn member<'a>(raw: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let mut found = None;
    members(raw, |key, value| {
        if key == name {
            found = Some(value);
        }
    });
    found
}

/// Whether all of it is one JSON value.
pub fn is_whole(raw: &[u8]) -> bool {
    let mut cursor = Cursor::new(raw);
    let whole = cursor.value(0).is_ok();
    cursor.space();
    whole && cursor.is_end()
}

/// Whether the value is an object.
pub fn is_object(raw: &[u8]) -> bool {
    raw.first() == Some(&b'{')
}

/// Whether the value says something: not null, false, 0, "", {} or [].
pub fn is_something(raw: &[u8]) -> bool {
    !matches!(raw, b"" | b"null" | b"false" | b"0" | b"\"\"" | b"{}" | b"[]")
}

/// The value if it is a string.
pub fn text(raw: &[u8]) -> Option<Text<'_>> {
    Cursor::new(raw).string().ok()
}

/// Whether the value is a string that says this.
pub fn says(raw: &[u8], word: &str) -> bool {
    text(raw).is_some_and(|text| *text.name() == *word.as_bytes())
}

/// The value if it is a string, decoded and kept.
pub fn owned(raw: &[u8]) -> Option<String> {
    text(raw)?.decode().map(Cow::into_owned)
}

/// Bytes of text that a string says; 0 for any other value.
pub fn text_len(raw: &[u8]) -> u64 {
    text(raw).map_or(0, |text| text.len() as u64)
}

/// The longest value that is parsed, in bytes: parsed it may take a hundred times as much.
const SMALL: usize = 64 * 1024;

/// A small value, parsed; null for what is none.
pub fn parse(raw: &[u8]) -> Value {
    if raw.len() > SMALL {
        return Value::Null;
    }
    serde_json::from_slice(raw).unwrap_or(Value::Null)
}

/// More tokens than any answer has. Who reports more counts wrong, and is taken to have said nothing:
/// one such number would be the dearest attempt that the books have room for.
pub const MOST: u64 = 1 << 32;

/// A count of what an answer has used; `None` past [`MOST`].
pub fn count(value: &Value) -> Option<u64> {
    number(value).filter(|count| *count <= MOST)
}

/// A whole number, however a server writes it: `7`, `7.0` or `"7"`. Never negative.
pub fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => number.as_u64().or_else(|| {
            let float = number.as_f64()?;
            (0.0..1e15).contains(&float).then_some(float as u64)
        }),
        Value::String(digits) => digits.parse().ok(),
        _ => None,
    }
}
