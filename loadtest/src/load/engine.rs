//! The generator: one thread, one epoll, any number of connections.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::connection::{Connection, Got};
use super::parse::Seen;
use super::poll::Poll;
use super::request::Request;
use super::schedule::Schedule;
use super::tally::Tally;

/// A request without an answer after this long has failed.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Pause of a connection whose request failed: a dead server is not to be hammered.
const PAUSE: Duration = Duration::from_millis(10);
const BUFFER: usize = 256 * 1024;
/// How long the end of a load waits for answers. As a rule they are there at once.
const GRACE: Duration = Duration::from_secs(2);
/// What becomes of a request whose answer was still not there then.
pub(crate) const UNENDED: &str = "not ended within the grace";

/// How requests follow each other.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// Every connection sends the next one when it has its answer.
    Closed,
    /// So many a second over all connections, whatever the server does.
    Open(f64),
}

/// What one generator does.
#[derive(Clone)]
pub(crate) struct Load {
    pub(crate) to: SocketAddr,
    pub(crate) request: Request,
    pub(crate) pace: Pace,
    pub(crate) connections: usize,
    /// Closed loop: the connections begin one after another over this time.
    pub(crate) ramp: Duration,
    /// Close the connection after so many events of a stream.
    pub(crate) leave_after: Option<u64>,
    /// Wait so long, sending nothing new, for what still runs at the end. What has no answer then
    /// has failed: a server that hangs must not look like one that nobody asked.
    pub(crate) grace: Duration,
    /// A stream need not end within the grace, if its last event is no older than this.
    pub(crate) outlasts: Option<Duration>,
    /// Streams that have begun and not ended, for whoever watches.
    pub(crate) open: Arc<AtomicUsize>,
}

impl Load {
    /// A load without ramp or departures, whose answers all have to end soon.
    pub(crate) fn new(to: SocketAddr, request: Request, pace: Pace, connections: usize) -> Self {
        Self {
            to,
            request,
            pace,
            connections,
            ramp: Duration::ZERO,
            leave_after: None,
            grace: GRACE,
            outlasts: None,
            open: Arc::default(),
        }
    }

    /// One of so many parts of this load, which together have all its connections.
    pub(crate) fn part(&self, part: usize, parts: usize) -> Self {
        let pace = match self.pace {
            Pace::Closed => Pace::Closed,
            Pace::Open(rate) => Pace::Open(rate / parts as f64),
        };
        let connections = self.connections / parts + usize::from(part < self.connections % parts);
        Self { pace, connections, ..self.clone() }
    }

    /// True for a stream that may go on when the load is over. `last`: when its last event came.
    pub(crate) fn may_outlast(&self, last: Option<Instant>, now: Instant) -> bool {
        let longest = self.outlasts.zip(last);
        longest.is_some_and(|(quiet, last)| now.saturating_duration_since(last) <= quiet)
    }
}

/// When a generator sends, and from when on it counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) begin: Instant,
    pub(crate) record: Instant,
    pub(crate) end: Instant,
}

/// Runs a load to its end on this thread.
///
/// # Errors
/// When epoll fails. Whatever goes wrong with a request is counted instead.
pub(crate) fn run(load: &Load, span: Span) -> io::Result<Tally> {
    let mut engine = Engine::new(load, span)?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let now = Instant::now();
        let over = now >= span.end;
        if over && (now >= span.end + load.grace || engine.owed(now).next().is_none()) {
            break;
        }
        if !over {
            engine.start_due(now);
        }
        let timeout = engine.next_wake(over).saturating_duration_since(Instant::now());
        let count = engine.poll.wait(timeout)?;
        for at in 0..count {
            let ready = engine.poll.get(at);
            if ready.writable {
                engine.write(ready.token);
            }
            if ready.readable {
                engine.read(ready.token, &mut buffer);
            }
        }
        engine.expire();
    }
    Ok(engine.finish())
}

struct Engine<'a> {
    load: &'a Load,
    span: Span,
    poll: Poll,
    connections: Vec<Connection>,
    /// Open loop: connections without a request.
    idle: Vec<usize>,
    /// Closed loop: when which connection begins its next request.
    starts: BinaryHeap<Reverse<(Instant, usize)>>,
    schedule: Option<Schedule>,
    sent: u64,
    running: usize,
    next_expiry: Instant,
    tally: Tally,
}

impl<'a> Engine<'a> {
    fn new(load: &'a Load, span: Span) -> io::Result<Self> {
        let count = load.connections;
        let mut starts = BinaryHeap::new();
        let mut idle = Vec::new();
        let mut schedule = None;
        match load.pace {
            Pace::Closed => {
                let step = load.ramp.as_secs_f64() / count.max(1) as f64;
                let at = |k: usize| span.begin + Duration::from_secs_f64(step * k as f64);
                starts.extend((0..count).map(|k| Reverse((at(k), k))));
            }
            Pace::Open(rate) => {
                idle.extend((0..count).rev());
                schedule = Some(Schedule::new(span.begin, rate));
            }
        }
        Ok(Self {
            load,
            span,
            poll: Poll::new()?,
            connections: (0..count).map(|_| Connection::new(&load.request)).collect(),
            idle,
            starts,
            schedule,
            sent: 0,
            running: 0,
            next_expiry: span.begin + Duration::from_secs(1),
            tally: Tally::new(),
        })
    }

    fn start_due(&mut self, now: Instant) {
        if let Some(schedule) = &mut self.schedule {
            schedule.advance(now);
            while let Some(&token) = self.idle.last() {
                let Some(due) = self.schedule.as_mut().and_then(Schedule::take) else { return };
                self.idle.pop();
                self.begin(token, due);
            }
            return;
        }
        while let Some(&Reverse((at, token))) = self.starts.peek() {
            if at > now {
                return;
            }
            self.starts.pop();
            self.begin(token, now);
        }
    }

    fn next_wake(&self, over: bool) -> Instant {
        if over {
            return self.span.end + self.load.grace;
        }
        let start = self.starts.peek().map(|Reverse((at, _))| *at);
        let due = self.schedule.as_ref().filter(|_| !self.idle.is_empty()).map(Schedule::next);
        let soonest = [start, due].into_iter().flatten().min();
        soonest.unwrap_or(self.span.end).min(self.span.end).min(self.next_expiry)
    }

    fn begin(&mut self, token: usize, due: Instant) {
        let number = self.sent;
        self.sent += 1;
        self.running += 1;
        let what = (&self.load.request, number);
        let begun = self.connections[token].begin(self.load.to, &self.poll, token, due, what);
        if let Err(what) = begun {
            self.fail(token, what);
        }
    }

    fn write(&mut self, token: usize) {
        if let Err(error) = self.connections[token].write(&self.poll, token) {
            self.fail(token, format!("write: {}", error.kind()));
        }
    }

    fn read(&mut self, token: usize, buffer: &mut [u8]) {
        let connection = &mut self.connections[token];
        let got = connection.read(buffer);
        let busy = connection.running.is_some();
        match got {
            Got::Nothing => {}
            Got::Some(seen) => self.take(token, seen),
            Got::End(true) if busy => {
                self.complete(token, false);
                self.connections[token].close();
            }
            // An idle connection may be closed at any time.
            Got::End(_) | Got::Failed(_) if !busy => connection.close(),
            Got::End(_) if connection.parser.is_fresh() => {
                self.fail(token, "closed before the answer".to_owned());
            }
            Got::End(_) => self.fail(token, "cut off in the answer".to_owned()),
            Got::Failed(what) => self.fail(token, what),
        }
    }

    /// Counts what came; ends the request when it is complete.
    fn take(&mut self, token: usize, seen: Seen) {
        let now = Instant::now();
        let counts = now >= self.span.record && now < self.span.end;
        let Some(running) = &mut self.connections[token].running else { return };
        if counts {
            self.tally.bytes += seen.body;
            self.tally.events += seen.events;
        }
        if seen.events > 0 {
            if counts && running.events > 0 {
                self.tally.gap.add(now - running.last_event);
            }
            running.last_event = now;
            running.events += seen.events;
        }
        if seen.body > 0 && !running.first && running.events > 0 {
            running.first = true;
            self.load.open.fetch_add(1, Relaxed);
            if counts {
                self.tally.first.add(now.saturating_duration_since(running.due));
            }
        }
        let events = running.events;
        if seen.done {
            let closes = self.connections[token].parser.closes();
            self.complete(token, false);
            if closes {
                self.connections[token].close();
            }
        } else if self.load.leave_after.is_some_and(|most| events >= most) {
            self.complete(token, true);
            self.connections[token].close();
        }
    }

    /// The answer is complete, or enough of it.
    fn complete(&mut self, token: usize, left: bool) {
        let connection = &mut self.connections[token];
        let Some(running) = connection.running.take() else { return };
        let now = Instant::now();
        let status = connection.parser.status();
        connection.served += 1;
        self.release(token, running.first, now);
        if !(200..300).contains(&status) {
            self.tally.error(format!("status {status}"));
            return;
        }
        let over = now >= self.span.end;
        if now >= self.span.record && !over {
            self.tally.done += 1;
            self.tally.left += u64::from(left);
        }
        // What an open loop sends is due within the span, whenever it ends: without those that end
        // after it, a stall at the end would go unseen.
        if now >= self.span.record && (!over || self.schedule.is_some()) {
            self.tally.latency.add(now.saturating_duration_since(running.due));
        }
    }

    fn fail(&mut self, token: usize, what: String) {
        let kept = self.connections[token].closed_when_reused();
        let what =
            if kept { format!("a kept connection was closed under it ({what})") } else { what };
        let first = self.connections[token].running.take().is_some_and(|running| running.first);
        self.connections[token].close();
        self.tally.error(what);
        self.release(token, first, Instant::now() + PAUSE);
    }

    /// The connection may take its next request at this time.
    fn release(&mut self, token: usize, streamed: bool, at: Instant) {
        self.running -= 1;
        if streamed {
            self.load.open.fetch_sub(1, Relaxed);
        }
        if self.schedule.is_some() {
            self.idle.push(token);
        } else {
            self.starts.push(Reverse((at, token)));
        }
    }

    /// Once a second: what has no answer for too long has failed.
    fn expire(&mut self) {
        let now = Instant::now();
        if now < self.next_expiry {
            return;
        }
        self.next_expiry = now + Duration::from_secs(1);
        for token in 0..self.connections.len() {
            let late = |running: &super::connection::Running| {
                now.saturating_duration_since(running.begun.max(running.last_event)) > TIMEOUT
            };
            if self.connections[token].running.as_ref().is_some_and(late) {
                self.fail(token, "no answer in time".to_owned());
            }
        }
    }

    /// When those requests were due whose answer has still to come, or to end.
    fn owed(&self, now: Instant) -> impl Iterator<Item = Instant> {
        let running = self.connections.iter().filter_map(|connection| connection.running.as_ref());
        let owed = running.filter(move |running| {
            let last = (running.events > 0).then_some(running.last_event);
            !self.load.may_outlast(last, now)
        });
        owed.map(|running| running.due)
    }

    fn finish(mut self) -> Tally {
        // Due and never sent: they are at least this late.
        if let Some(schedule) = &self.schedule {
            for due in schedule.waiting() {
                self.tally.latency.add(self.span.end.saturating_duration_since(*due));
            }
        }
        let now = Instant::now();
        for due in self.owed(now).collect::<Vec<_>>() {
            self.tally.error(UNENDED);
            if self.schedule.is_some() {
                self.tally.latency.add(now.saturating_duration_since(due));
            }
        }
        let streaming = |c: &&Connection| c.running.as_ref().is_some_and(|r| r.first);
        let open = self.connections.iter().filter(streaming).count();
        self.load.open.fetch_sub(open, Relaxed);
        self.tally
    }
}
