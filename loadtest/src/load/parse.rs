//! An incremental reader of HTTP/1.1 responses: it counts, and keeps nothing.

/// What the bytes fed so far amount to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Body bytes, without chunk framing.
    pub(crate) body: u64,
    /// Server-sent events that are complete.
    pub(crate) events: u64,
    /// The response is complete.
    pub(crate) done: bool,
}

/// The bytes are no HTTP/1.1 response.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    Length(u64),
    /// In the digits of a chunk's size.
    Size(u64),
    /// Behind the digits, up to the line's end.
    SizeEnd(u64),
    Data(u64),
    /// The line's end behind a chunk.
    DataEnd,
    /// Behind the last chunk; true at a line's beginning.
    Trailer(bool),
    ToClose,
    Done,
}

/// Reads one response, however it is split; [`Parser::reset`] makes it ready for the next.
pub(crate) struct Parser {
    state: State,
    /// A head that came in parts.
    head: Vec<u8>,
    status: u16,
    close: bool,
    events: bool,
    /// The last byte of the body that is not CR was LF.
    newline: bool,
}

impl Parser {
    pub(crate) fn new() -> Self {
        Self {
            state: State::Head,
            head: Vec::new(),
            status: 0,
            close: false,
            events: false,
            newline: false,
        }
    }

    /// Forgets the response; the allocation stays.
    pub(crate) fn reset(&mut self) {
        self.head.clear();
        self.state = State::Head;
        (self.status, self.close, self.events, self.newline) = (0, false, false, false);
    }

    /// The status, or 0 before the head is complete.
    pub(crate) fn status(&self) -> u16 {
        self.status
    }

    /// The server will close the connection.
    pub(crate) fn closes(&self) -> bool {
        self.close
    }

    /// Nothing of a response has come yet.
    pub(crate) fn is_fresh(&self) -> bool {
        self.state == State::Head && self.head.is_empty()
    }

    /// Takes the next bytes. What follows the end of the response is ignored: requests are
    /// not pipelined.
    ///
    /// # Errors
    /// When it is no response.
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) -> Result<Seen, Malformed> {
        let mut seen = Seen::default();
        if self.state == State::Head {
            match self.take_head(bytes)? {
                Some(used) => bytes = &bytes[used..],
                None => return Ok(seen),
            }
        }
        while !bytes.is_empty() && self.state != State::Done {
            let used = self.step(bytes, &mut seen)?;
            bytes = &bytes[used..];
        }
        seen.done = self.state == State::Done;
        Ok(seen)
    }

    /// The connection ended: true when that is how this response ends.
    pub(crate) fn end(&self) -> bool {
        self.state == State::ToClose
    }

    /// Bytes of `bytes` that belonged to the head, once it is complete.
    fn take_head(&mut self, bytes: &[u8]) -> Result<Option<usize>, Malformed> {
        let before = self.head.len();
        if before == 0 {
            if let Some(length) = self.read_head(bytes)? {
                return Ok(Some(length));
            }
            self.head.extend_from_slice(bytes);
            return Ok(None);
        }
        self.head.extend_from_slice(bytes);
        let head = std::mem::take(&mut self.head);
        let length = self.read_head(&head);
        self.head = head;
        Ok(length?.map(|length| length - before))
    }

    fn read_head(&mut self, bytes: &[u8]) -> Result<Option<usize>, Malformed> {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut response = httparse::Response::new(&mut headers);
        let length = match response.parse(bytes) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err(Malformed),
        };
        self.status = response.code.ok_or(Malformed)?;
        self.state = State::ToClose;
        for header in response.headers.iter() {
            self.take_header(header.name, header.value)?;
        }
        if matches!(self.state, State::Length(0)) || matches!(self.status, 204 | 304) {
            self.state = State::Done;
        }
        Ok(Some(length))
    }

    fn take_header(&mut self, name: &str, value: &[u8]) -> Result<(), Malformed> {
        if name.eq_ignore_ascii_case("content-length") {
            let text = std::str::from_utf8(value).map_err(|_| Malformed)?;
            self.state = State::Length(text.trim().parse().map_err(|_| Malformed)?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            self.state = State::Size(0);
        } else if name.eq_ignore_ascii_case("connection") {
            self.close = value.eq_ignore_ascii_case(b"close");
        } else if name.eq_ignore_ascii_case("content-type") {
            self.events = value.starts_with(b"text/event-stream");
        }
        Ok(())
    }

    /// One step of the body; returns how many bytes it took, at least one.
    fn step(&mut self, bytes: &[u8], seen: &mut Seen) -> Result<usize, Malformed> {
        let first = bytes[0];
        let (state, used) = match self.state {
            State::Length(left) => {
                let taken = self.body(bytes, left, seen);
                let left = left - taken as u64;
                (if left == 0 { State::Done } else { State::Length(left) }, taken)
            }
            State::ToClose => (State::ToClose, self.body(bytes, u64::MAX, seen)),
            State::Size(size) => match (first as char).to_digit(16) {
                Some(digit) if size < 1 << 48 => (State::Size(size * 16 + u64::from(digit)), 1),
                Some(_) => return Err(Malformed),
                None => (State::SizeEnd(size), 0),
            },
            State::SizeEnd(size) => match memchr::memchr(b'\n', bytes) {
                Some(at) if size == 0 => (State::Trailer(true), at + 1),
                Some(at) => (State::Data(size), at + 1),
                None => (State::SizeEnd(size), bytes.len()),
            },
            State::Data(left) => {
                let taken = self.body(bytes, left, seen);
                let left = left - taken as u64;
                (if left == 0 { State::DataEnd } else { State::Data(left) }, taken)
            }
            State::DataEnd => match first {
                b'\n' => (State::Size(0), 1),
                b'\r' => (State::DataEnd, 1),
                _ => return Err(Malformed),
            },
            State::Trailer(start) => match first {
                b'\n' if start => (State::Done, 1),
                b'\n' => (State::Trailer(true), 1),
                b'\r' => (State::Trailer(start), 1),
                _ => (State::Trailer(false), 1),
            },
            State::Head | State::Done => return Err(Malformed),
        };
        self.state = state;
        Ok(used)
    }

    fn body(&mut self, bytes: &[u8], most: u64, seen: &mut Seen) -> usize {
        let taken = usize::try_from(most).unwrap_or(usize::MAX).min(bytes.len());
        seen.body += taken as u64;
        if self.events {
            self.count_events(&bytes[..taken], seen);
        }
        taken
    }

    /// An event ends at an empty line.
    fn count_events(&mut self, bytes: &[u8], seen: &mut Seen) {
        let mut next = 0;
        for at in memchr::memchr_iter(b'\n', bytes) {
            let empty = at == next || (at == next + 1 && bytes[next] == b'\r');
            if empty && self.newline {
                seen.events += 1;
                // The next empty line ends nothing.
                self.newline = false;
            } else {
                self.newline = true;
            }
            next = at + 1;
        }
        if next < bytes.len() && bytes[next..] != b"\r"[..] {
            self.newline = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
    const CHUNKED: &[u8] =
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-type: text/event-stream\r\n\r\n\
        9\r\ndata: a\n\n\r\n5;x=y\r\ndata:\r\n4\r\n b\n\n\r\n00\r\nTrailer: 1\r\n\r\n";

    /// Feeds a response in pieces of this size.
    fn in_pieces(bytes: &[u8], size: usize) -> (Seen, Parser) {
        let mut parser = Parser::new();
        let mut all = Seen::default();
        for piece in bytes.chunks(size) {
            let seen = parser.feed(piece).unwrap();
            all.body += seen.body;
            all.events += seen.events;
            all.done = seen.done;
        }
        (all, parser)
    }

    #[test]
    fn any_split_reads_the_same() {
        for size in 1..CHUNKED.len() {
            let (seen, parser) = in_pieces(PLAIN, size);
            assert_eq!(seen, Seen { body: 5, events: 0, done: true }, "pieces of {size}");
            assert_eq!((parser.status(), parser.closes()), (200, true));
            let (seen, parser) = in_pieces(CHUNKED, size);
            assert_eq!(seen, Seen { body: 18, events: 2, done: true }, "pieces of {size}");
            assert!(!parser.closes());
        }
    }

    #[test]
    fn a_body_without_a_length_ends_with_the_connection() {
        let (seen, parser) = in_pieces(b"HTTP/1.1 200 OK\r\n\r\nabc", 4);
        assert_eq!((seen.body, seen.done), (3, false));
        assert!(parser.end());
    }

    #[test]
    fn crlf_events_count_too_and_nonsense_is_refused() {
        let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
        for size in 1..90 {
            let bytes = [head, &b"data: 1\r\n\r\ndata: 2\r\n\r\n\r\n"[..]].concat();
            assert_eq!(in_pieces(&bytes, size).0.events, 2, "pieces of {size}");
        }
        assert_eq!(Parser::new().feed(b"SSH-2.0-x\r\n"), Err(Malformed));
    }
}
