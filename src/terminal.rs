//! What a command says on standard output and standard error, where `print!` would panic: the disk
//! may be full, or the reader gone.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

/// Standard output doesn't take what there is to say.
#[derive(Debug, thiserror::Error)]
#[error("standard output can't be written: {0}\nsend it to where there is room.")]
pub struct Unwritten(io::Error);

impl Unwritten {
    /// Its reader has gone, as `head` does: who has read enough misses nothing.
    pub fn is_closed(&self) -> bool {
        self.0.kind() == ErrorKind::BrokenPipe
    }
}

/// Writes all of it to standard output.
///
/// # Errors
/// When not all of it could be written.
pub fn print(text: &str) -> Result<(), Unwritten> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Unwritten)
}

/// Says what a command was asked for, with which it ends.
pub fn say(text: &str) -> ExitCode {
    match print(text) {
        Err(why) if !why.is_closed() => {
            complain(format_args!("tollbar: {why}"));
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

/// Says what is wrong, on standard error. Where that can't be written the exit code has to do.
pub fn complain(why: impl Display) {
    let _ = writeln!(io::stderr(), "{why}");
}
