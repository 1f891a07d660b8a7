//! An answer as a row of pieces, each written on its own.

use bytes::Bytes;

use super::json::Json;

/// One piece of a body.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) bytes: Bytes,
    /// What the gap, the gate and the counters make of it.
    pub(crate) part: Part,
}

/// The place of a piece in the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Before the content: role chunk, `message_start`.
    Lead,
    /// Content worth this many output tokens.
    Content(u64),
    /// The first pieces of content that was split: paced as a chunk, not yet counted.
    Begun,
    /// What continues a piece of any kind.
    Rest,
    /// What ends content that was split: counted, not paced.
    Counted(u64),
    /// After the content: finish chunk, usage, end mark.
    Tail,
}

/// How a dialect frames one event.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Framing {
    /// `data: …` and LF LF.
    Data,
    /// `event: <type>`, LF, `data: …`, LF LF.
    Named,
    /// `data: …` and CRLF CRLF, as Google's front end sends it.
    DataCrlf,
    /// One growing JSON array: Gemini without `alt=sse`.
    Array,
}

/// Collects the events of a stream.
pub(crate) struct Feed {
    framing: Framing,
    pub(crate) pieces: Vec<Piece>,
}

impl Feed {
    pub(crate) fn new(framing: Framing) -> Self {
        Self { framing, pieces: Vec::new() }
    }

    /// Adds an event; `name` matters to named framing only.
    pub(crate) fn event(&mut self, part: Part, name: &str, json: &Json) {
        let json = &json.0;
        let text = match self.framing {
            Framing::Data => format!("data: {json}\n\n"),
            Framing::Named => format!("event: {name}\ndata: {json}\n\n"),
            Framing::DataCrlf => format!("data: {json}\r\n\r\n"),
            Framing::Array if self.pieces.is_empty() => format!("[{json}"),
            Framing::Array => format!(",\r\n{json}"),
        };
        self.bytes(part, text);
    }

    /// Adds bytes that are not an event of the framing, such as an end mark.
    pub(crate) fn bytes(&mut self, part: Part, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        self.pieces.push(Piece { bytes, part });
    }
}

/// Drops everything after the content.
pub(crate) fn without_tail(pieces: &mut Vec<Piece>) {
    pieces.retain(|piece| piece.part != Part::Tail);
}

/// Keeps the first `chunks` content chunks and drops the tail.
pub(crate) fn keep_content(pieces: &mut Vec<Piece>, chunks: usize) {
    let mut seen = 0;
    pieces.retain(|piece| match piece.part {
        Part::Tail => false,
        Part::Content(_) => {
            seen += 1;
            seen <= chunks
        }
        _ => true,
    });
}

/// Cuts every piece into pieces of at most `size` bytes.
pub(crate) fn split(pieces: Vec<Piece>, size: usize) -> Vec<Piece> {
    let size = size.max(1);
    let mut out = Vec::with_capacity(pieces.len());
    for piece in pieces {
        if piece.bytes.len() <= size {
            out.push(piece);
            continue;
        }
        let last = piece.bytes.len().div_ceil(size) - 1;
        for at in 0..=last {
            let end = piece.bytes.len().min((at + 1) * size);
            let part = match piece.part {
                Part::Content(_) if at == 0 => Part::Begun,
                Part::Content(tokens) if at == last => Part::Counted(tokens),
                Part::Lead => Part::Lead,
                _ => Part::Rest,
            };
            let bytes = piece.bytes.slice(at * size..end);
            out.push(Piece { bytes, part });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_chunk_is_paced_once_and_counted_once() {
        let whole = vec![Piece { bytes: Bytes::from_static(b"abcde"), part: Part::Content(7) }];
        let parts: Vec<_> = split(whole, 2).iter().map(|p| (p.bytes.len(), p.part)).collect();
        assert_eq!(parts, [(2, Part::Begun), (2, Part::Rest), (1, Part::Counted(7))]);
    }
}
