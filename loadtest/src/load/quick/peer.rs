//! One connection of the quick provider.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::rc::Rc;
use std::time::Instant;

use super::answers::{Answer, LOOKED_AT};

/// A connection and where it is in its request and its answer.
pub(super) struct Peer {
    pub(super) stream: TcpStream,
    /// The beginning of the request that is being read.
    input: Vec<u8>,
    request: Option<Request>,
    pub(super) answer: Option<Answering>,
    /// What the socket did not take yet.
    unsent: Vec<u8>,
    pub(super) wants_write: bool,
}

struct Request {
    path: String,
    length: usize,
    /// Bytes of the body that are still to come.
    left: usize,
}

/// An answer that is being given.
pub(super) struct Answering {
    pub(super) answer: Rc<Answer>,
    pub(super) next: usize,
    pub(super) due: Instant,
}

/// A request that is complete.
pub(super) struct Asked {
    pub(super) path: String,
    pub(super) length: usize,
    pub(super) body: Vec<u8>,
}

impl Peer {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            input: Vec::new(),
            request: None,
            answer: None,
            unsent: Vec::new(),
            wants_write: false,
        }
    }

    /// Reads; `Ok(Some)` is a whole request.
    ///
    /// # Errors
    /// When the peer has left or speaks something else.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<Asked>> {
        let count = match self.stream.read(buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        };
        let bytes = &buffer[..count];
        if let Some(request) = &mut self.request {
            request.left = request.left.saturating_sub(count);
            let room = LOOKED_AT.saturating_sub(self.input.len());
            self.input.extend_from_slice(&bytes[..count.min(room)]);
        } else {
            self.input.extend_from_slice(bytes);
            self.read_head()?;
        }
        Ok(self.request.take_if(|request| request.left == 0).map(|request| Asked {
            path: request.path,
            length: request.length,
            body: std::mem::take(&mut self.input),
        }))
    }

    fn read_head(&mut self) -> io::Result<()> {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut head = httparse::Request::new(&mut headers);
        let end = match head.parse(&self.input) {
            Ok(httparse::Status::Complete(end)) => end,
            Ok(httparse::Status::Partial) => return Ok(()),
            Err(_) => return Err(ErrorKind::InvalidData.into()),
        };
        let value = head.headers.iter().find(|h| h.name.eq_ignore_ascii_case("content-length"));
        let text = value.and_then(|header| std::str::from_utf8(header.value).ok());
        let length: usize = text.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let path = head.path.unwrap_or("/").to_owned();
        let left = length.saturating_sub(self.input.len() - end);
        self.input.drain(..end);
        self.request = Some(Request { path, length, left });
        Ok(())
    }

    /// Gives the allocation of a request back.
    pub(super) fn reuse(&mut self, mut body: Vec<u8>) {
        body.clear();
        self.input = body;
    }

    /// Writes the next steps of the answer that are due, until one has to wait: then that is
    /// when. `None`: the answer is given.
    pub(super) fn go_on(&mut self, now: Instant) -> io::Result<Option<Instant>> {
        while let Some(answering) = &mut self.answer {
            let Some((wait, bytes)) = answering.answer.steps.get(answering.next) else {
                self.answer = None;
                break;
            };
            // From the time it was due, not from now: the stream keeps its pace.
            if answering.due + *wait > now {
                return Ok(Some(answering.due + *wait));
            }
            answering.due += *wait;
            answering.next += 1;
            let sent = match self.unsent.is_empty() {
                true => write(&mut self.stream, bytes)?,
                false => 0,
            };
            self.unsent.extend_from_slice(&bytes[sent..]);
        }
        Ok(None)
    }

    /// Writes what the socket did not take before.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let sent = write(&mut self.stream, &self.unsent)?;
        self.unsent.drain(..sent);
        Ok(())
    }

    /// Something is waiting for room in the socket.
    pub(super) fn is_stuck(&self) -> bool {
        !self.unsent.is_empty()
    }
}

/// Writes what the socket takes.
fn write(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let mut sent = 0;
    while sent < bytes.len() {
        match stream.write(&bytes[sent..]) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => sent += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sent)
}
