//! Documents whose text stands in the request: its bytes bound what a provider reads of them.

use super::fault::ScanError;
use super::json::Cursor;
use super::walk;

/// Whether the object that comes next is a document of Anthropic's (its guides on PDFs and on
/// citations) that is written out: a text, or blocks that are looked at by themselves. Citations
/// cut it into pieces, and number them with words of the provider's own.
pub fn is_written_out(mut object: Cursor<'_>) -> bool {
    let (mut sources, mut more) = (Vec::new(), false);
    let read = walk::members(&mut object, |cursor, name| match name {
        b"source" => {
            sources.push(holds_words(cursor)?);
            Ok(())
        }
        b"citations" => {
            more |= cursor.peek() != Some(b'n');
            cursor.skip()
        }
        // No document has one: what looks like a picture is not held as text.
        b"image" | b"image_url" => {
            more = true;
            cursor.skip()
        }
        _ => cursor.skip(),
    });
    read.is_ok() && !more && !sources.is_empty() && sources.iter().all(|words| *words)
}

/// Whether a document's source says of itself that its words are here, and nothing else.
fn holds_words(cursor: &mut Cursor) -> Result<bool, ScanError> {
    if cursor.peek() != Some(b'{') {
        return cursor.skip().map(|()| false);
    }
    let mut kinds = Vec::new();
    walk::members(cursor, |cursor, name| {
        if matches!(name, b"image" | b"image_url") {
            kinds.push(false);
        }
        if name != b"type" || cursor.peek() != Some(b'"') {
            return cursor.skip();
        }
        let kind = cursor.string()?;
        kinds.push(matches!(&*kind.name(), b"text" | b"content"));
        Ok(())
    })?;
    Ok(!kinds.is_empty() && kinds.iter().all(|inline| *inline))
}
