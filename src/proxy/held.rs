//! The downstream session of a request whose body has been read already.
//!
//! To route by `model` the gateway reads the whole body before it knows the upstream. Pingora
//! replays such a body only from its retry buffer, which holds 64 KiB: past that nothing is sent
//! and the request hangs. So the real session is wrapped in a custom one that says "the body is
//! done, and here it is", for any size and any framing, on the first attempt and on every later
//! one. This file is the only one that knows about it.
//!
//! Being between Pingora and the client, the wrapper does three more things that nothing else can:
//! it ends a wait for an upstream at a deadline ([`Control::begin`]), it holds back the header of a
//! short answer until its cost is known ([`Control::hold_answer`]), and where the provider is to be
//! drained it keeps from Pingora that the client has left: the answer is read to its end, and goes
//! nowhere.
//!
//! A custom session can't be kept alive by Pingora: [`restore`] puts the real one back before
//! Pingora finishes the request.

use super::control::{CUT, Control, DEADLINE, Left, Pass, drained};
use async_trait::async_trait;
use bytes::Bytes;
use http::HeaderMap;
use pingora_core::protocols::Digest;
use pingora_core::protocols::http::custom::CustomMessageWrite;
use pingora_core::protocols::http::custom::server::Session as CustomSession;
use pingora_core::protocols::http::{HttpTask, ServerSession};
use pingora_core::protocols::l4::socket::SocketAddr;
use pingora_core::{Error, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Puts a wrapper that carries `body` in the place of the downstream session. `cut` ends it.
pub fn wrap(session: &mut Box<ServerSession>, body: Bytes, cut: watch::Receiver<bool>) -> Control {
    let control = Control::default();
    let shell = HeldSession {
        inner: std::mem::replace(session, Box::new(ServerSession::new_custom(Box::new(())))),
        body,
        control: control.clone(),
        cut,
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
    if let Some(inner) = control.take_kept() {
        *session = inner;
    }
}

/// Returns when nobody waits for an attempt to start any more: the client has left, or the process
/// ends.
pub async fn abandoned(session: &mut ServerSession) -> Box<Error> {
    loop {
        match session.read_body_or_idle(true).await {
            Err(error) if *error.etype() == CUT => return error,
            // A deadline is an attempt's.
            Err(error) if *error.etype() == DEADLINE => std::future::pending().await,
            Err(error) => return error.into_down(),
            Ok(_) => std::future::pending().await,
        }
    }
}

struct HeldSession {
    inner: Box<ServerSession>,
    body: Bytes,
    control: Control,
    cut: watch::Receiver<bool>,
}

impl Drop for HeldSession {
    fn drop(&mut self) {
        let empty = Box::new(ServerSession::new_custom(Box::new(())));
        self.control.keep(std::mem::replace(&mut self.inner, empty));
    }
}

impl HeldSession {
    /// The client has left. Whether the answer is drained: Pingora must not hear of it then.
    fn leave(&self, why: &Error) -> bool {
        leave(&self.inner, &self.control, why)
    }
}

/// What the client had of the header of its answer. A 100, which it may have asked for, is none.
fn answered(inner: &ServerSession) -> Option<&ResponseHeader> {
    inner.response_written().filter(|header| !header.status.is_informational())
}

fn leave(inner: &ServerSession, control: &Control, why: &Error) -> bool {
    let drains = control.leave(|| Left {
        answered: answered(inner).is_some(),
        bytes: inner.body_bytes_sent() as u64,
    });
    if drains {
        log::debug!("a client has left, its answer is drained: {why}");
    }
    drains
}

/// What comes of the client: its leaving, `None` if the answer is drained.
async fn event(
    inner: &mut ServerSession,
    control: &Control,
    left: bool,
) -> Option<Result<Option<Bytes>>> {
    if left {
        return std::future::pending().await;
    }
    match inner.read_body_or_idle(true).await {
        // One that has only stopped talking hears that nothing more comes.
        Err(error) if leave(inner, control, &error) => {
            inner.shutdown().await;
            None
        }
        event => Some(event),
    }
}

/// Returns when the deadline has passed; never, without one.
async fn passed(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
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

    async fn response_duplex_vec(&mut self, mut tasks: Vec<HttpTask>) -> Result<bool> {
        // Of an answer that is yet to come the client hears nothing: it may come from elsewhere.
        tasks.retain(
            |task| !matches!(task, HttpTask::Header(header, _) if header.status.is_informational()),
        );
        let tasks = match self.control.pass(tasks) {
            Pass::On(tasks) if tasks.is_empty() => return Ok(false),
            Pass::On(tasks) => tasks,
            Pass::Nowhere(tasks) => {
                let over = drained(tasks)?;
                if over {
                    self.control.end_upload();
                }
                return Ok(over);
            }
        };
        let over = tasks.iter().any(HttpTask::is_end);
        if tasks.iter().any(|task| matches!(task, HttpTask::Header(..)))
            && self.control.answers_early()
        {
            // The client is told, or the next request on its connection would be lost.
            self.inner.set_keepalive(None);
        }
        let written = match self.inner.response_duplex_vec(tasks).await {
            // With the last part the upstream is done: there is nothing to drain.
            Err(error) if !over && self.leave(&error) => Ok(false),
            written => written,
        };
        if over || matches!(written, Ok(true)) {
            self.control.end_upload();
        }
        written
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
        answered(&self.inner)
    }

    async fn shutdown(&mut self, _code: u32, _ctx: &str) {
        self.inner.shutdown().await;
    }

    fn is_body_done(&mut self) -> bool {
        self.control.uploads() != Some(true)
    }

    async fn finish(&mut self) -> Result<()> {
        Ok(())
    }

    fn is_body_empty(&mut self) -> bool {
        self.body.is_empty()
    }

    /// The next piece of a body that goes out beside its answer. After the last, and of any other
    /// body, pending until the client leaves, the deadline passes or the process ends: all are
    /// errors. Where the answer is drained, the first is not.
    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        loop {
            let (deadline, left) = self.control.waits();
            let sends = !no_body_expected && self.control.uploads().is_some();
            if no_body_expected {
                self.control.is_sent();
            }
            let HeldSession { inner, control, cut, .. } = &mut *self;
            let event = tokio::select! {
                biased;
                event = event(inner, control, left) => event,
                () = passed(deadline) => Some(Err(Error::new_up(DEADLINE))),
                _ = cut.wait_for(|cut| *cut) => Some(Err(Error::new_up(CUT))),
                () = std::future::ready(()), if sends => Some(Ok(control.next_piece())),
            };
            // Without one it has just left: what is waited for then may have another deadline.
            if let Some(event) = event {
                return event;
            }
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
        self.control.uploads().is_none().then(|| self.body.clone())
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
