//! One keep-alive connection of the generator, and the request on it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::parse::{Parser, Seen};
use super::poll::Poll;
use super::request::Request;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection, open or not.
pub(crate) struct Connection {
    stream: Option<TcpStream>,
    pub(crate) parser: Parser,
    out: Out,
    written: usize,
    wants_write: bool,
    /// Answers that this connection brought.
    pub(crate) served: u64,
    /// The request that runs.
    pub(crate) running: Option<Running>,
}

/// A request that was begun.
pub(crate) struct Running {
    /// When it was to be sent: latency counts from here.
    pub(crate) due: Instant,
    pub(crate) begun: Instant,
    pub(crate) first: bool,
    pub(crate) events: u64,
    pub(crate) last_event: Instant,
}

enum Out {
    Shared(Arc<[u8]>),
    Own(Vec<u8>),
}

/// What a read brought.
pub(crate) enum Got {
    Nothing,
    Some(Seen),
    /// The connection ended; true when the answer was complete by that.
    End(bool),
    Failed(String),
}

impl Connection {
    pub(crate) fn new(request: &Request) -> Self {
        let out = request.fixed().map_or_else(|| Out::Own(Vec::new()), Out::Shared);
        Self {
            stream: None,
            parser: Parser::new(),
            out,
            written: 0,
            wants_write: false,
            served: 0,
            running: None,
        }
    }

    /// Begins a request, on a new connection if there is none.
    pub(crate) fn begin(
        &mut self,
        to: SocketAddr,
        poll: &Poll,
        token: usize,
        due: Instant,
        (request, number): (&Request, u64),
    ) -> Result<(), String> {
        if self.stream.is_none() {
            let stream = connect(to, poll, token).map_err(|e| format!("connect: {}", e.kind()))?;
            self.stream = Some(stream);
        }
        if let Out::Own(bytes) = &mut self.out {
            request.write(number, bytes);
        }
        self.parser.reset();
        self.written = 0;
        let now = Instant::now();
        self.running = Some(Running { due, begun: now, first: false, events: 0, last_event: now });
        self.write(poll, token).map_err(|error| format!("write: {}", error.kind()))
    }

    /// The server closed a kept connection under the request, before any byte of an answer. That
    /// is a failure here: HTTP lets no client repeat a POST by itself (RFC 9110, 9.2.2).
    pub(crate) fn closed_when_reused(&self) -> bool {
        self.served > 0 && self.running.is_some() && self.parser.is_fresh()
    }

    /// Writes what the socket takes.
    pub(crate) fn write(&mut self, poll: &Poll, token: usize) -> io::Result<()> {
        let Some(stream) = &mut self.stream else { return Ok(()) };
        let bytes: &[u8] = match &self.out {
            Out::Shared(bytes) => bytes,
            Out::Own(bytes) => bytes,
        };
        while self.written < bytes.len() {
            match stream.write(&bytes[self.written..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => self.written += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let wants = self.written < bytes.len();
        if wants != self.wants_write {
            poll.writable(&*stream, token, wants)?;
            self.wants_write = wants;
        }
        Ok(())
    }

    /// Reads once; `buffer` is scratch space.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Got {
        let Some(stream) = &mut self.stream else { return Got::Nothing };
        match stream.read(buffer) {
            Ok(0) => Got::End(self.parser.end()),
            Ok(n) if self.running.is_some() => match self.parser.feed(&buffer[..n]) {
                Ok(seen) => Got::Some(seen),
                Err(_) => Got::Failed("malformed answer".to_owned()),
            },
            Ok(_) => Got::Failed("bytes that nobody asked for".to_owned()),
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                Got::Nothing
            }
            Err(error) => Got::Failed(format!("read: {}", error.kind())),
        }
    }

    pub(crate) fn close(&mut self) {
        self.stream = None;
        self.served = 0;
        self.wants_write = false;
        self.running = None;
    }
}

fn connect(to: SocketAddr, poll: &Poll, token: usize) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, CONNECT_TIMEOUT)?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    poll.add(&stream, token)?;
    Ok(stream)
}
