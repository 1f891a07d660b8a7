//! What asks for an answer that comes later.

use super::fault::ScanError;
use super::json::Cursor;
use super::scan::boolean;

/// Whether a value of `background` is one of those for pictures.
pub fn is_backdrop(cursor: &mut Cursor) -> bool {
    let kind = if cursor.peek() == Some(b'"') { cursor.string().ok() } else { None };
    kind.is_some_and(|kind| matches!(&*kind.name(), b"transparent" | b"opaque" | b"auto"))
}

/// Refuses work whose answer comes later. To a lax server `1` and `"true"` are true, too.
pub fn refused(cursor: &mut Cursor, field: &'static str) -> Result<(), ScanError> {
    match cursor.peek() {
        Some(b'f' | b'n') => boolean(cursor, field).map(drop),
        _ => Err(ScanError::field(
            cursor.at(),
            field,
            "must be false or left out: it is billed after its answer, where nothing meters it",
        )),
    }
}
