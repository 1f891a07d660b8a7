//! Walking down through an answer's JSON with one cursor, so that each byte is read once.
//!
//! Each function takes the value that comes next, whatever it is. Where the text is broken they
//! fail: nothing that was read of a broken value may count.

use super::fault::ScanError;
use super::json::Cursor;
use super::json_text::Text;
use super::look;

/// The members of the object that `raw` is, as far as it can be read; whether that was to the
/// object's end. `each` has to take the value.
pub fn object<'a>(
    raw: &'a [u8],
    each: impl FnMut(&mut Cursor<'a>, &[u8]) -> Result<(), ScanError>,
) -> bool {
    let mut cursor = Cursor::new(raw);
    cursor.space();
    cursor.peek() == Some(b'{') && members(&mut cursor, each).is_ok()
}

/// The members of the object of numbers that `raw` is. `None` where a parser would refuse it:
/// then what `each` was shown is void. A member that comes twice has its last value.
pub fn figures<'a>(
    raw: &'a [u8],
    each: impl FnMut(&mut Cursor<'a>, &[u8]) -> Result<(), ScanError>,
) -> Option<()> {
    let mut cursor = Cursor::new(raw);
    cursor.space();
    let sound = figures_at(&mut cursor, each).ok()?;
    cursor.space();
    (sound && cursor.is_end()).then_some(())
}

/// The same inside of a text; whether it is an object and a parser would take it.
pub fn figures_at<'a>(
    cursor: &mut Cursor<'a>,
    each: impl FnMut(&mut Cursor<'a>, &[u8]) -> Result<(), ScanError>,
) -> Result<bool, ScanError> {
    if cursor.peek() != Some(b'{') {
        return cursor.skip().map(|()| false);
    }
    let from = cursor.at();
    cursor.was_odd();
    members(cursor, each)?;
    let raw = cursor.taken(from);
    if cursor.was_odd() {
        return Ok(look::parse(raw).is_object());
    }
    Ok(raw.is_ascii() || std::str::from_utf8(raw).is_ok())
}

/// Calls `each` at every member's value, which it has to take.
pub fn members<'a>(
    cursor: &mut Cursor<'a>,
    each: impl FnMut(&mut Cursor<'a>, &[u8]) -> Result<(), ScanError>,
) -> Result<(), ScanError> {
    if cursor.peek() == Some(b'{') { cursor.members(each) } else { cursor.skip() }
}

/// Calls `each` at every element, which it has to take.
pub fn elements<'a>(
    cursor: &mut Cursor<'a>,
    each: impl FnMut(&mut Cursor<'a>) -> Result<(), ScanError>,
) -> Result<(), ScanError> {
    if cursor.peek() == Some(b'[') { cursor.array(each) } else { cursor.skip() }
}

/// The value if it is a string.
pub fn text<'a>(cursor: &mut Cursor<'a>) -> Result<Option<Text<'a>>, ScanError> {
    if cursor.peek() == Some(b'"') {
        cursor.string().map(Some)
    } else {
        cursor.skip().map(|()| None)
    }
}

/// Bytes of text that a string says; 0 for any other value.
pub fn text_len(cursor: &mut Cursor) -> Result<u64, ScanError> {
    Ok(text(cursor)?.map_or(0, |text| text.len() as u64))
}

/// Bytes of text that an object's member of that name says; the last one if there are several.
pub fn text_len_of(cursor: &mut Cursor, wanted: &[u8]) -> Result<u64, ScanError> {
    let mut found = 0;
    members(cursor, |cursor, name| {
        if name != wanted {
            return cursor.skip();
        }
        found = text_len(cursor)?;
        Ok(())
    })?;
    Ok(found)
}

/// A count, as `look::count` reads it.
pub fn count(cursor: &mut Cursor) -> Result<Option<u64>, ScanError> {
    Ok(number(cursor)?.filter(|count| *count <= look::MOST))
}

/// A whole number, as `look::number` reads it.
pub fn number(cursor: &mut Cursor) -> Result<Option<u64>, ScanError> {
    match cursor.peek() {
        Some(b'-' | b'0'..=b'9') => {
            let number = cursor.number()?;
            Ok(digits(number).or_else(|| look::number(&look::parse(number))))
        }
        _ => Ok(text(cursor)?.and_then(|digits| digits.decode()?.parse().ok())),
    }
}

/// The count that is an object's member of that name.
pub fn count_of(cursor: &mut Cursor, wanted: &[u8]) -> Result<Option<u64>, ScanError> {
    let mut found = None;
    members(cursor, |cursor, name| {
        if name != wanted {
            return cursor.skip();
        }
        found = count(cursor)?;
        Ok(())
    })?;
    Ok(found)
}

/// A number of digits only, if it can't be too large.
fn digits(number: &[u8]) -> Option<u64> {
    if number.len() > 19 {
        return None;
    }
    number.iter().try_fold(0, |total, byte| {
        byte.is_ascii_digit().then(|| total * 10 + u64::from(byte - b'0'))
    })
}
