//! What is told to the wrapped downstream session, and what it tells: a deadline, an answer that is
//! held back, swallowed or drained, a client that has left.

use bytes::Bytes;
use http::HeaderName;
use parking_lot::Mutex;
use pingora_core::ErrorType::{self, Custom};
use pingora_core::protocols::http::{HttpTask, ServerSession};
use pingora_core::{Error, Result};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The error that a passed deadline raises.
pub const DEADLINE: ErrorType = Custom("Deadline");

/// The error that the end of the process raises.
pub const CUT: ErrorType = Custom("Cut");

/// The error of an answer that ends with its header, where it has to say something.
const EMPTY: ErrorType = Custom("its answer is empty");

/// The error at the end of an answer that is passed to nobody.
const SWALLOWED: ErrorType = Custom("Swallowed");

/// How long the body of an answer that nobody gets is waited for.
const COMPLAINT: Duration = Duration::from_secs(1);

/// The largest answer whose header is held back until its cost is known, in bytes.
const MAX_HELD_ANSWER: usize = 1024 * 1024;

/// How much of a body goes to an HTTP/2 provider in one go. Between two of them its answer is looked
/// for, and the client.
const PIECE: usize = 64 * 1024;

/// How long the usage behind the last word of an answer is waited for when its client has left.
const LAST_WORD: Duration = Duration::from_secs(5);

static COST: HeaderName = HeaderName::from_static("x-tollbar-cost-usd");

/// The handle by which the hooks steer the wrapper, which they can't reach inside Pingora.
#[derive(Clone, Default)]
pub struct Control(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    session: Option<Box<ServerSession>>,
    deadline: Option<Instant>,
    /// The running attempt's answer is read to its end, with or without a client.
    drains: bool,
    /// But only for a moment.
    lingers: bool,
    left: Option<Left>,
    hold: Option<Held>,
    /// A header that waits for the first byte of its body.
    head: Option<Vec<HttpTask>>,
    swallow: bool,
    /// What the running attempt's provider has not been sent yet; `None` where Pingora sends it in
    /// one go.
    upload: Option<Bytes>,
    /// And all of that has been taken off Pingora's hands.
    uploaded: bool,
    /// The running attempt's answer has to have a body.
    says_something: bool,
    cost: Option<String>,
}

#[derive(Default)]
struct Held {
    tasks: Vec<HttpTask>,
    bytes: usize,
}

/// What a client had of an answer that was drained when it left.
#[derive(Debug, Clone, Copy)]
pub struct Left {
    /// It had the header.
    pub answered: bool,
    /// So many bytes of the body were sent to it.
    pub bytes: u64,
}

impl Control {
    /// An attempt begins. The wait for its answer ends at `deadline`, with [`DEADLINE`].
    pub fn begin(&self, deadline: Instant) {
        let mut state = self.0.lock();
        state.deadline = Some(deadline);
        state.drains = false;
        state.lingers = false;
        state.says_something = false;
        (state.upload, state.uploaded) = (None, false);
    }

    /// The running attempt's body goes out piece by piece, beside its answer: a provider may answer
    /// before it has read everything, and then reads no further.
    pub fn upload(&self, body: Bytes) {
        self.0.lock().upload = Some(body);
    }

    /// Whether it goes out so, and whether there is more of it.
    pub fn uploads(&self) -> Option<bool> {
        self.0.lock().upload.as_ref().map(|rest| !rest.is_empty())
    }

    /// The next piece of it; `None` at the end.
    pub fn next_piece(&self) -> Option<Bytes> {
        let mut state = self.0.lock();
        let rest = state.upload.as_mut().filter(|rest| !rest.is_empty())?;
        Some(rest.split_to(rest.len().min(PIECE)))
    }

    /// All of it has been sent.
    pub fn is_sent(&self) {
        let mut state = self.0.lock();
        state.uploaded |= state.upload.is_some();
    }

    /// Whether the provider answers although it hasn't got everything. Pingora closes the client's
    /// connection then.
    pub fn answers_early(&self) -> bool {
        let state = self.0.lock();
        state.upload.is_some() && !state.uploaded
    }

    /// The answer is complete: nobody wants the rest.
    pub fn end_upload(&self) {
        if let Some(rest) = self.0.lock().upload.as_mut() {
            rest.clear();
        }
    }

    /// The running attempt's answer has to have a body: without one it is none.
    pub fn wants_body(&self) {
        self.0.lock().says_something = true;
    }

    /// From now on the answer is read to its end, also when the client leaves.
    pub fn drain(&self) {
        self.0.lock().drains = true;
    }

    /// The answer has said its last word: what is behind it is read for a moment, also when the
    /// client leaves.
    pub fn linger(&self) {
        let mut state = self.0.lock();
        state.lingers |= !state.drains;
        state.drains = true;
    }

    /// Whether the client has left, and what is behind the last word of its answer is waited for.
    pub fn lingers(&self) -> bool {
        let state = self.0.lock();
        state.lingers && state.left.is_some()
    }

    /// The answer has begun: from here on it may take its time.
    pub fn lift_deadline(&self) {
        self.0.lock().deadline = None;
    }

    /// The attempt has ended. Returns how the client left, if it did and the answer was drained.
    pub fn ended(&self) -> Option<Left> {
        let mut state = self.0.lock();
        state.deadline = None;
        state.drains = false;
        state.lingers = false;
        state.left
    }

    /// Holds the answer back until it has ended, so that [`Control::set_cost`] can still reach
    /// its header. An answer over 1 MiB is let go without.
    pub fn hold_answer(&self) {
        self.0.lock().hold = Some(Held::default());
    }

    /// Holds the header back until the first byte of the body is there: before that another
    /// target may still give the answer, with a header of its own.
    pub fn hold_head(&self) {
        self.0.lock().head = Some(Vec::new());
    }

    /// Passes nothing of the running attempt's answer on; its end is an error.
    pub fn swallow_answer(&self) {
        let mut state = self.0.lock();
        state.swallow = true;
        let until = Instant::now() + COMPLAINT;
        state.deadline = Some(state.deadline.map_or(until, |set| set.min(until)));
    }

    /// What the answer cost, in dollars, for its header.
    pub fn set_cost(&self, usd: String) {
        self.0.lock().cost = Some(usd);
    }

    /// Whether an answer is being held back right now, unsent.
    pub fn holds_answer(&self) -> bool {
        self.0.lock().hold.as_ref().is_some_and(|held| !held.tasks.is_empty())
    }

    /// Forgets an answer that was held back, so that another can be given instead.
    pub fn discard_answer(&self) {
        let mut state = self.0.lock();
        state.hold = None;
        state.head = None;
        state.swallow = false;
    }

    /// Takes tasks into the held answer; returns what is to be written now.
    pub fn pass(&self, tasks: Vec<HttpTask>) -> Pass {
        let mut state = self.0.lock();
        if state.swallow {
            let over = tasks.iter().any(HttpTask::is_end);
            let end = over.then(|| HttpTask::Failed(Error::new_up(SWALLOWED)));
            return Pass::On(end.into_iter().collect());
        }
        if state.left.is_some() {
            return Pass::Nowhere(tasks);
        }
        let ends = |task: &HttpTask| matches!(task, HttpTask::Header(header, true) if header.status.is_success());
        if state.says_something && tasks.iter().any(ends) {
            return Pass::On(vec![HttpTask::Failed(Error::new_up(EMPTY))]);
        }
        let Some(mut held) = state.hold.take() else {
            return Pass::On(match state.head.take() {
                Some(head) => with_head(&mut state.head, head, tasks),
                None => tasks,
            });
        };
        // It broke before any of it was sent: the client gets one clean error instead.
        if let Some(at) = tasks.iter().position(|task| matches!(task, HttpTask::Failed(_))) {
            return Pass::On(tasks.into_iter().skip(at).take(1).collect());
        }
        let mut over = false;
        for task in tasks {
            over |= match &task {
                HttpTask::Header(_, end) => *end,
                HttpTask::Body(data, end) | HttpTask::UpgradedBody(data, end) => {
                    held.bytes += data.as_ref().map_or(0, Bytes::len);
                    *end
                }
                HttpTask::Trailer(_) | HttpTask::Done | HttpTask::Failed(_) => true,
            };
            held.tasks.push(task);
        }
        if !over && held.bytes <= MAX_HELD_ANSWER {
            state.hold = Some(held);
            return Pass::On(Vec::new());
        }
        if let (Some(cost), Some(HttpTask::Header(header, _))) =
            (state.cost.take(), held.tasks.first_mut())
        {
            let _ = header.insert_header(&COST, cost);
        }
        Pass::On(held.tasks)
    }

    /// The client has left, with what `had` says. Returns whether the answer is drained: if not,
    /// nothing changes.
    pub fn leave(&self, had: impl FnOnce() -> Left) -> bool {
        let mut state = self.0.lock();
        if state.drains {
            state.hold = None;
            state.head = None;
            state.left = Some(had());
        }
        if state.lingers {
            state.deadline = Some(Instant::now() + LAST_WORD);
        }
        state.drains
    }

    /// How long the upstream is waited for, and whether the client has left a drained answer.
    pub fn waits(&self) -> (Option<Instant>, bool) {
        let state = self.0.lock();
        (state.deadline, state.left.is_some())
    }

    /// Keeps the real session while no wrapper has it.
    pub fn keep(&self, session: Box<ServerSession>) {
        self.0.lock().session = Some(session);
    }

    /// The session that was kept, if one was.
    pub fn take_kept(&self) -> Option<Box<ServerSession>> {
        self.0.lock().session.take()
    }
}

/// What is written of an answer whose header waits; nothing as long as it goes on waiting.
fn with_head(
    waiting: &mut Option<Vec<HttpTask>>,
    mut head: Vec<HttpTask>,
    tasks: Vec<HttpTask>,
) -> Vec<HttpTask> {
    head.extend(tasks);
    let begins = |task: &HttpTask| match task {
        HttpTask::Body(data, end) | HttpTask::UpgradedBody(data, end) => {
            *end || data.as_ref().is_some_and(|data| !data.is_empty())
        }
        HttpTask::Header(_, end) => *end,
        HttpTask::Trailer(_) | HttpTask::Done | HttpTask::Failed(_) => true,
    };
    match head.iter().position(begins) {
        None => {
            *waiting = Some(head);
            Vec::new()
        }
        // It broke before it began.
        Some(at) if matches!(head.get(at), Some(HttpTask::Failed(_))) => {
            head.into_iter().skip(at).take(1).collect()
        }
        Some(_) => head,
    }
}

/// What becomes of a part of an answer.
pub enum Pass {
    /// It is written now; there may be nothing to write.
    On(Vec<HttpTask>),
    /// It is drained: nobody is there to write it to.
    Nowhere(Vec<HttpTask>),
}

/// What Pingora hears of a part of an answer that nobody gets: whether it was the last one, or
/// that the upstream failed.
pub fn drained(tasks: Vec<HttpTask>) -> Result<bool> {
    let over = tasks.iter().any(HttpTask::is_end);
    for task in tasks {
        if let HttpTask::Failed(error) = task {
            return Err(error);
        }
    }
    Ok(over)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pingora_http::ResponseHeader;

    #[test]
    fn pingora_hears_the_truth_of_what_is_drained() {
        let header = |end| {
            let header = ResponseHeader::build(200, None).expect("a status");
            HttpTask::Header(Box::new(header), end)
        };
        let body = |end| HttpTask::Body(Some(Bytes::from_static(b"x")), end);
        let broke = || HttpTask::Failed(Error::new_up(ErrorType::ConnectionClosed));
        assert!(matches!(drained(vec![header(false)]), Ok(false)));
        assert!(matches!(drained(vec![header(true)]), Ok(true)));
        assert!(matches!(drained(vec![header(false), body(false), body(false)]), Ok(false)));
        assert!(matches!(drained(vec![body(true), HttpTask::Done]), Ok(true)));
        assert!(matches!(drained(vec![HttpTask::Trailer(None)]), Ok(true)));
        assert!(drained(vec![broke()]).is_err());
        let error = drained(vec![body(false), broke()]).expect_err("the upstream's error");
        assert_eq!(*error.etype(), ErrorType::ConnectionClosed);
    }
}
