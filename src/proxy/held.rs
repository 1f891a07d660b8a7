//! The downstream session of a request whose body has been read already.
//!
//! To route by `model` the gateway reads the whole body before it knows the upstream. Pingora
//! replays such a body only from its retry buffer, which holds 64 KiB: past that nothing is sent
//! and the request hangs. So the real session is wrapped in a custom one that says "the body is
//! done, and here it is", for any size and any framing, on the first attempt and on every later
//! one. This file is the only one that knows about it.
//!
//! Being between Pingora and the client, the wrapper does two more things that nothing else can:
//! it ends a wait for an upstream at a deadline ([`Control::set_deadline`]), and it holds back the
//! header of a short answer until its cost is known ([`Control::hold_answer`]).
//!
//! A custom session can't be kept alive by Pingora: [`restore`] puts the real one back before
//! Pingora finishes the request.

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use parking_lot::Mutex;
use pingora_core::ErrorType::{self, Custom};
use pingora_core::protocols::Digest;
use pingora_core::protocols::http::custom::CustomMessageWrite;
use pingora_core::protocols::http::custom::server::Session as CustomSession;
use pingora_core::protocols::http::{HttpTask, ServerSession};
use pingora_core::protocols::l4::socket::SocketAddr;
use pingora_core::{Error, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The error that a passed deadline raises.
pub const DEADLINE: ErrorType = Custom("Deadline");

/// The error at the end of an answer that is passed to nobody.
const SWALLOWED: ErrorType = Custom("Swallowed");

/// The largest answer whose header is held back until its cost is known, in bytes.
const MAX_HELD_ANSWER: usize = 1024 * 1024;

static COST: HeaderName = HeaderName::from_static("x-tollbar-cost-usd");

/// The handle by which the hooks steer the wrapper, which they can't reach inside Pingora.
#[derive(Clone, Default)]
pub struct Control(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    session: Option<Box<ServerSession>>,
    deadline: Option<Instant>,
    hold: Option<Held>,
    swallow: bool,
    cost: Option<String>,
}

#[derive(Default)]
struct Held {
    tasks: Vec<HttpTask>,
    bytes: usize,
}

impl Control {
    /// Ends the wait for the upstream at this moment, with [`DEADLINE`]; `None` lets it wait.
    pub fn set_deadline(&self, at: Option<Instant>) {
        self.0.lock().deadline = at;
    }

    /// Holds the answer back until it has ended, so that [`Control::set_cost`] can still reach
    /// its header. An answer over 1 MiB is let go without.
    pub fn hold_answer(&self) {
        self.0.lock().hold = Some(Held::default());
    }

    /// Passes nothing of the running attempt's answer on; its end is an error.
    pub fn swallow_answer(&self) {
        self.0.lock().swallow = true;
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
        state.swallow = false;
    }
}

/// Puts a wrapper that carries `body` in the place of the downstream session.
pub fn wrap(session: &mut Box<ServerSession>, body: Bytes) -> Control {
    let control = Control::default();
    let shell = HeldSession {
        inner: std::mem::replace(session, Box::new(ServerSession::new_custom(Box::new(())))),
        body,
        control: control.clone(),
    };
    **session = ServerSession::new_custom(Box::new(shell));
    control
}

/// Puts the real session back, if a wrapper is in its place.
pub fn restore(session: &mut Box<ServerSession>, control: &Control) {
    if !session.is_custom() {
        return;
    }
    // Dropping the shell hands its inner session to the control.
    **session = ServerSession::new_custom(Box::new(()));
    if let Some(inner) = control.0.lock().session.take() {
        *session = inner;
    }
}

struct HeldSession {
    inner: Box<ServerSession>,
    body: Bytes,
    control: Control,
}

impl Drop for HeldSession {
    fn drop(&mut self) {
        let empty = Box::new(ServerSession::new_custom(Box::new(())));
        self.control.0.lock().session = Some(std::mem::replace(&mut self.inner, empty));
    }
}

impl HeldSession {
    /// Takes tasks into the held answer; returns what is to be written now.
    fn pass(&self, tasks: Vec<HttpTask>) -> Vec<HttpTask> {
        let mut state = self.control.0.lock();
        if state.swallow {
            let over = tasks.iter().any(HttpTask::is_end);
            return over.then(|| HttpTask::Failed(Error::new_up(SWALLOWED))).into_iter().collect();
        }
        let Some(mut held) = state.hold.take() else {
            return tasks;
        };
        // It broke before any of it was sent: the client gets one clean error instead.
        if let Some(at) = tasks.iter().position(|task| matches!(task, HttpTask::Failed(_))) {
            return tasks.into_iter().skip(at).take(1).collect();
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
            return Vec::new();
        }
        if let (Some(cost), Some(HttpTask::Header(header, _))) =
            (state.cost.take(), held.tasks.first_mut())
        {
            let _ = header.insert_header(&COST, cost);
        }
        held.tasks
    }
}

#[async_trait]
impl CustomSession for HeldSession {
    fn req_header(&self) -> &RequestHeader {
        self.inner.req_header()
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        self.inner.req_header_mut()
    }

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        Ok(None)
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        Ok(())
    }

    async fn write_response_header(&mut self, resp: Box<ResponseHeader>, _end: bool) -> Result<()> {
        self.inner.write_response_header(resp).await
    }

    async fn write_response_header_ref(&mut self, resp: &ResponseHeader, _end: bool) -> Result<()> {
        self.inner.write_response_header_ref(resp).await
    }

    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        self.inner.write_response_body(data, end).await
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        self.inner.write_response_trailers(trailers).await
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let tasks = self.pass(tasks);
        if tasks.is_empty() {
            return Ok(false);
        }
        self.inner.response_duplex_vec(tasks).await
    }

    fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        self.inner.set_read_timeout(timeout);
    }

    fn get_read_timeout(&self) -> Option<Duration> {
        self.inner.get_read_timeout()
    }

    fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.inner.set_write_timeout(timeout);
    }

    fn get_write_timeout(&self) -> Option<Duration> {
        self.inner.get_write_timeout()
    }

    fn set_total_drain_timeout(&mut self, timeout: Option<Duration>) {
        self.inner.set_total_drain_timeout(timeout);
    }

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        self.inner.get_total_drain_timeout()
    }

    fn request_summary(&self) -> String {
        self.inner.request_summary()
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.inner.response_written()
    }

    async fn shutdown(&mut self, _code: u32, _ctx: &str) {
        self.inner.shutdown().await;
    }

    fn is_body_done(&mut self) -> bool {
        true
    }

    async fn finish(&mut self) -> Result<()> {
        Ok(())
    }

    fn is_body_empty(&mut self) -> bool {
        self.body.is_empty()
    }

    /// Pending until the client leaves or the deadline passes: both are errors.
    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        let deadline = self.control.0.lock().deadline;
        let Some(deadline) = deadline else {
            return self.inner.read_body_or_idle(no_body_expected).await;
        };
        tokio::select! {
            biased;
            idle = self.inner.read_body_or_idle(no_body_expected) => idle,
            () = tokio::time::sleep_until(deadline) => Err(Error::new_up(DEADLINE)),
        }
    }

    fn body_bytes_sent(&self) -> usize {
        self.inner.body_bytes_sent()
    }

    fn body_bytes_read(&self) -> usize {
        self.inner.body_bytes_read()
    }

    fn digest(&self) -> Option<&Digest> {
        self.inner.digest()
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        self.inner.digest_mut()
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        self.inner.client_addr()
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        self.inner.server_addr()
    }

    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        Bytes::new()
    }

    fn enable_retry_buffering(&mut self) {}

    fn retry_buffer_truncated(&self) -> bool {
        false
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        Some(self.body.clone())
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_reader(
        &mut self,
    ) -> Option<Box<dyn futures_core::Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>>
    {
        None
    }

    fn restore_custom_message_reader(
        &mut self,
        _: Box<dyn futures_core::Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>,
    ) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        None
    }

    fn restore_custom_message_writer(&mut self, _: Box<dyn CustomMessageWrite>) -> Result<()> {
        Ok(())
    }
}
