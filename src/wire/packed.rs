//! Answers that come compressed, though nobody asked for it: they are unpacked for the meter, and
//! go to the client as they came.

use super::meter::{End, Meter, Report};
use bytes::Bytes;
use flate2::{Decompress, FlushDecompress, Status};
use std::fmt;
use std::io::{self, Write};

/// Bytes that are unpacked in one go, so that a small piece that unpacks to a large one needs no
/// memory for it.
const BLOCK: usize = 32 * 1024;

/// What an answer may unpack to: so many bytes, …
const PLAIN: u64 = 1 << 20;

/// … and so many more for each byte of it. Answers come to some ten; what comes to more was made
/// to keep its reader busy.
const RATIO: u64 = 256;

/// Bytes of text that a byte of an answer stands for at least, where not all of it could be
/// unpacked yet. What is packed well is more; an estimate is bounded by what was held.
const TYPICAL: u64 = 4;

/// A packing's own header may come alone.
const HEADER: u64 = 64;

/// The largest window of Zstandard, as a power of two: what RFC 9659 allows in HTTP (8 MiB).
const ZSTD_WINDOW: u32 = 23;

/// How an answer's body is packed: a `content-encoding`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// RFC 1952, of one member or several.
    Gzip,
    /// RFC 1950, zlib's frame, as RFC 9110 has it; or RFC 1951.
    Deflate,
    /// RFC 7932.
    Brotli,
    /// RFC 8878.
    Zstd,
}

impl Coding {
    /// The coding of this name; `None` for others, and for more than one.
    pub fn named(name: &str) -> Option<Coding> {
        let is = |known: &str| name.trim().eq_ignore_ascii_case(known);
        match () {
            () if is("gzip") || is("x-gzip") => Some(Coding::Gzip),
            () if is("deflate") => Some(Coding::Deflate),
            () if is("br") => Some(Coding::Brotli),
            () if is("zstd") => Some(Coding::Zstd),
            () => None,
        }
    }
}

/// A meter of a packed answer.
pub struct Packed {
    unpacker: Unpacker,
    broken: Option<io::Error>,
    /// Bytes from the piece on in which it broke.
    unread: u64,
    /// All bytes so far.
    fed: u64,
    /// Those of them that may hold what has not come out.
    silent: u64,
    ended: bool,
}

enum Unpacker {
    Gzip(flate2::write::MultiGzDecoder<Plain>),
    Deflate(Inflate),
    Brotli(Box<brotli::DecompressorWriter<Plain>>),
    Zstd(zstd::stream::write::Decoder<'static, Plain>),
}

/// `deflate`, which is zlib's frame (RFC 1950) by the book, and the bare thing (RFC 1951) by many
/// servers: the first two bytes tell.
struct Inflate {
    plain: Plain,
    first: Vec<u8>,
    state: Option<Decompress>,
    done: bool,
}

impl Inflate {
    fn feed(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(state) = &mut self.state else {
            self.first.extend_from_slice(bytes);
            if let [first, second, ..] = *self.first {
                let framed = first & 0x0F == 8 && u16::from_be_bytes([first, second]) % 31 == 0;
                self.state = Some(Decompress::new(framed));
                let first = std::mem::take(&mut self.first);
                return self.feed(&first);
            }
            return Ok(());
        };
        let (mut rest, mut out) = (bytes, vec![0; BLOCK]);
        while !self.done {
            let (read, made) = (state.total_in(), state.total_out());
            let status = state.decompress(rest, &mut out, FlushDecompress::Sync)?;
            let (read, made) = (state.total_in() - read, state.total_out() - made);
            rest = rest.get(usize::try_from(read).unwrap_or(usize::MAX)..).unwrap_or_default();
            let made = out.get(..usize::try_from(made).unwrap_or(0)).unwrap_or_default();
            self.plain.write_all(made)?;
            self.done = status == Status::StreamEnd;
            if made.len() < BLOCK && (rest.is_empty() || (read == 0 && made.is_empty())) {
                break;
            }
        }
        Ok(())
    }
}

/// Where the plain answer goes, and how much more of it may come.
struct Plain(Meter, u64);

impl Write for Plain {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = self.1.checked_sub(bytes.len() as u64);
        self.1 = left.ok_or_else(|| io::Error::other("it unpacks to too much"))?;
        self.0.chunk(Bytes::copy_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Packed {
    /// `meter` is shown what is in an answer that is packed like this.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new(coding: Coding, meter: Meter) -> io::Result<Packed> {
        let plain = Plain(meter, PLAIN);
        let unpacker = match coding {
            Coding::Gzip => Unpacker::Gzip(flate2::write::MultiGzDecoder::new(plain)),
            Coding::Deflate => {
                let (first, state) = (Vec::new(), None);
                Unpacker::Deflate(Inflate { plain, first, state, done: false })
            }
            Coding::Brotli => {
                Unpacker::Brotli(Box::new(brotli::DecompressorWriter::new(plain, BLOCK)))
            }
            Coding::Zstd => {
                let mut decoder = zstd::stream::write::Decoder::new(plain)?;
                decoder.window_log_max(ZSTD_WINDOW)?;
                Unpacker::Zstd(decoder)
            }
        };
        Ok(Packed { unpacker, broken: None, unread: 0, fed: 0, silent: 0, ended: false })
    }

    /// The next bytes of the answer. What comes after a fault in the packing is not read.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.fed += bytes.len() as u64;
        if self.broken.is_some() {
            self.unread += bytes.len() as u64;
            return;
        }
        let more = (bytes.len() as u64).saturating_mul(RATIO);
        let plain = self.plain();
        plain.1 = plain.1.saturating_add(more);
        let left = plain.1;
        // An event that is there is read now, not with the next one.
        fn all(writer: &mut dyn Write, bytes: &[u8]) -> io::Result<()> {
            writer.write_all(bytes)?;
            writer.flush()
        }
        let fed = match &mut self.unpacker {
            Unpacker::Gzip(writer) => all(writer, bytes),
            Unpacker::Deflate(inflate) => inflate.feed(bytes),
            Unpacker::Brotli(writer) => all(writer, bytes),
            Unpacker::Zstd(writer) => all(writer, bytes),
        };
        self.broken = fed.err();
        // These give out what they have; the others keep what is left of a piece for its block.
        let at_once = matches!(self.unpacker, Unpacker::Gzip(_) | Unpacker::Deflate(_));
        self.silent = match self.left() < left {
            true if at_once => 0,
            true => bytes.len() as u64,
            false => self.silent + bytes.len() as u64,
        };
        if self.broken.is_some() {
            self.unread += bytes.len() as u64;
        }
    }

    /// What is known of it so far. Of what can't be read only the length is.
    pub fn report(&self) -> Report {
        let mut report = self.meter().report();
        report.text_bytes += self.unread;
        let cut = self.broken.is_none() && report.end == End::Truncated && self.said_nothing();
        if self.broken.is_none() && (!self.ended || cut) {
            // A block of it may not be there as a whole.
            report.text_bytes += self.silent.saturating_mul(TYPICAL);
        } else if self.broken.is_some() {
            // All of it has come, whatever it says.
            report.end = End::Complete;
        }
        report
    }

    /// The end of the answer.
    pub fn end(&mut self) {
        self.ended = true;
        self.plain().0.end();
    }

    /// Whether there is more than comments, as far as can be seen.
    pub fn has_begun(&self) -> bool {
        self.broken.is_some()
            || self.meter().has_begun()
            || (self.fed > HEADER && self.said_nothing())
    }

    /// Whether nothing has been unpacked so far.
    fn said_nothing(&self) -> bool {
        self.left() == PLAIN + self.fed.saturating_mul(RATIO)
    }

    fn left(&self) -> u64 {
        match &self.unpacker {
            Unpacker::Gzip(writer) => writer.get_ref().1,
            Unpacker::Deflate(inflate) => inflate.plain.1,
            Unpacker::Brotli(writer) => writer.get_ref().1,
            Unpacker::Zstd(writer) => writer.get_ref().1,
        }
    }

    /// The meter, of what has been unpacked so far.
    pub fn meter(&self) -> &Meter {
        match &self.unpacker {
            Unpacker::Gzip(writer) => &writer.get_ref().0,
            Unpacker::Deflate(inflate) => &inflate.plain.0,
            Unpacker::Brotli(writer) => &writer.get_ref().0,
            Unpacker::Zstd(writer) => &writer.get_ref().0,
        }
    }

    fn plain(&mut self) -> &mut Plain {
        match &mut self.unpacker {
            Unpacker::Gzip(writer) => writer.get_mut(),
            Unpacker::Deflate(inflate) => &mut inflate.plain,
            Unpacker::Brotli(writer) => writer.get_mut(),
            Unpacker::Zstd(writer) => writer.get_mut(),
        }
    }

    /// What is wrong with the packing.
    pub fn broken(&self) -> Option<&io::Error> {
        self.broken.as_ref()
    }
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packed").field("meter", self.meter()).finish_non_exhaustive()
    }
}
