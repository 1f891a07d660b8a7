//! Lines on their way out of the process: a queue with a bound, and a thread that writes.
//!
//! Whoever reads them may be slow, or hang. Those who have something to say don't wait for that, and
//! the end of the process waits only so long: what has no room is dropped, and counted.

use parking_lot::{Condvar, Mutex, MutexGuard};
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// How long the end of the process waits for a reader to take the last lines.
pub const LAST_LINES: Duration = Duration::from_secs(2);

/// The sending end.
pub struct Outlet {
    shared: Arc<Shared>,
    room: usize,
}

/// What is written at once.
pub struct Batch<'a> {
    /// The lines, each with its end.
    pub bytes: &'a [u8],
    /// How many they are.
    pub lines: u64,
    /// How many came after them and had no room.
    pub dropped: u64,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    written: Condvar,
}

#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    lines: u64,
    dropped: u64,
    /// Lines that the thread has taken and not written yet.
    in_hand: u64,
    closed: bool,
}

impl Outlet {
    /// Starts the thread that hands lines to `write`. So many bytes have room to wait; the first
    /// line waits `gather` for others, whose makers wake nobody in that time.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(
        name: &str,
        room: usize,
        gather: Duration,
        write: impl FnMut(&Batch<'_>) + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let queue = shared.clone();
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || work(&queue, gather, write))?;
        Ok(Outlet { shared, room })
    }

    /// Hands over a line, with its end. Never waits. Returns `false` when it had to be dropped.
    #[must_use]
    pub fn push(&self, line: &[u8]) -> bool {
        let first = {
            let mut queue = self.shared.queue.lock();
            // One line always has room: it may say why the process ends, at any length.
            let full = !queue.bytes.is_empty() && queue.bytes.len() + line.len() > self.room;
            if queue.closed || full {
                queue.dropped += 1;
                return false;
            }
            queue.bytes.extend_from_slice(line);
            queue.lines += 1;
            queue.lines == 1
        };
        if first {
            self.shared.changed.notify_one();
        }
        true
    }

    /// Waits until everything is written, up to `within`. Returns how many lines aren't.
    pub fn wait(&self, within: Duration) -> u64 {
        self.written(self.shared.queue.lock(), within)
    }

    /// The same, and takes no more: those that aren't written are given up.
    pub fn finish(&self, within: Duration) -> u64 {
        let mut queue = self.shared.queue.lock();
        queue.closed = true;
        self.shared.changed.notify_one();
        self.written(queue, within)
    }

    fn written(&self, mut queue: MutexGuard<'_, Queue>, within: Duration) -> u64 {
        let unwritten = |queue: &mut Queue| queue.lines + queue.in_hand > 0;
        self.shared.written.wait_while_for(&mut queue, unwritten, within);
        queue.lines + queue.in_hand
    }
}

fn work(shared: &Shared, gather: Duration, mut write: impl FnMut(&Batch<'_>)) {
    let mut bytes = Vec::new();
    loop {
        let mut queue = shared.queue.lock();
        shared.changed.wait_while(&mut queue, |queue| queue.bytes.is_empty() && !queue.closed);
        if !queue.closed && !gather.is_zero() {
            shared.changed.wait_for(&mut queue, gather);
        }
        std::mem::swap(&mut queue.bytes, &mut bytes);
        let (lines, dropped) =
            (std::mem::take(&mut queue.lines), std::mem::take(&mut queue.dropped));
        queue.in_hand = lines;
        let closed = queue.closed;
        drop(queue);
        if lines > 0 {
            write(&Batch { bytes: &bytes, lines, dropped });
        }
        bytes.clear();
        shared.queue.lock().in_hand = 0;
        shared.written.notify_all();
        if closed {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::{Receiver, Sender, unbounded};

    /// An outlet of 10 bytes whose reader takes a batch whenever the test lets it.
    fn slow() -> (Outlet, Sender<()>, Receiver<(String, u64)>) {
        let (go, gone) = unbounded();
        let (send, written) = unbounded();
        let write = move |batch: &Batch<'_>| {
            let _ = send.send((String::from_utf8_lossy(batch.bytes).into_owned(), batch.dropped));
            let _ = gone.recv();
        };
        (Outlet::start("test", 10, Duration::ZERO, write).unwrap(), go, written)
    }

    #[test]
    fn what_has_no_room_is_dropped_and_counted_and_nobody_waits() {
        let (outlet, go, written) = slow();
        assert!(outlet.push(b"longer than there is room\n"));
        assert_eq!(written.recv().unwrap().0, "longer than there is room\n");
        // It is being written now, and that takes as long as the reader likes.
        assert!(outlet.push(b"a\n") && outlet.push(b"b\n"));
        assert!(!outlet.push(b"longer than there is room\n") && !outlet.push(b"also longer\n"));
        go.send(()).unwrap();
        assert_eq!(written.recv().unwrap(), ("a\nb\n".to_owned(), 2));
        assert!(outlet.push(b"c\n"));
        go.send(()).unwrap();
        assert_eq!(written.recv().unwrap(), ("c\n".to_owned(), 0));
    }

    #[test]
    fn the_end_waits_for_a_reader_and_not_for_ever() {
        let (outlet, go, written) = slow();
        assert!(outlet.push(b"a\n"));
        written.recv().unwrap();
        assert!(outlet.push(b"b\n"));
        assert_eq!(outlet.wait(Duration::from_millis(20)), 2);
        assert!(outlet.push(b"c\n"), "who only waits goes on");
        assert_eq!(outlet.finish(Duration::from_millis(20)), 3, "one of them is in its hands");
        assert!(!outlet.push(b"late\n"));
        go.send(()).unwrap();
        go.send(()).unwrap();
        assert_eq!(outlet.finish(Duration::from_secs(60)), 0);
        assert_eq!(written.recv().unwrap().0, "b\nc\n");
    }
}
