//! The journey of a request: accept → authenticate → inspect → plan → attempt → relay → settle.
//! Pingora's hooks only call the stages, in order.

mod accept;
mod admit;
mod attempt;
mod authenticate;
mod complaint;
mod control;
mod cork;
mod count;
mod exchange;
mod exhausted;
mod failure;
mod held;
mod hold;
mod incoming;
mod inspect;
mod models;
mod passthrough;
mod pictures;
mod pledge;
mod relay;
mod reply;
mod settle;
mod trust;
mod upstream;
mod usage;
mod window;
mod worst;

pub use exchange::ConnectionMark;
pub use inspect::framed;

use crate::config::snapshot::OnDisconnect;
use crate::state::Gateway;
use async_trait::async_trait;
use bytes::Bytes;
use cork::Cork;
use exchange::{Exchange, Failure};
use http::header::TRANSFER_ENCODING;
use http::{HeaderMap, Version};
use pingora_core::modules::http::HttpModules;
use pingora_core::protocols::Digest;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pledge::Pledge;
use std::any::Any;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

/// The data plane.
pub struct Edge {
    gateway: Arc<Gateway>,
}

impl Edge {
    /// Serves with this state.
    pub fn new(gateway: Arc<Gateway>) -> Self {
        Edge { gateway }
    }
}

#[async_trait]
impl ProxyHttp for Edge {
    /// Boxed: Pingora's futures carry it by value, several times over.
    type CTX = Box<Exchange>;

    fn new_ctx(&self) -> Self::CTX {
        Box::new(Exchange::new(&self.gateway))
    }

    /// No modules: bodies go through as they are.
    fn init_downstream_modules(&self, _: &mut HttpModules) {}

    fn on_connection_reuse(
        &self,
        _: &mut Session,
        exchange: &mut Self::CTX,
        kept: Box<dyn Any + Send + Sync>,
    ) {
        if let Ok(mark) = kept.downcast::<ConnectionMark>() {
            mark.arrived();
            exchange.mark = Some(*mark);
        }
    }

    async fn request_filter(
        &self,
        session: &mut Session,
        exchange: &mut Self::CTX,
    ) -> Result<bool> {
        // A client that doesn't read keeps money, places and connections from others.
        let patience = exchange.snapshot.server.idle_timeout;
        session.downstream_session.set_write_timeout(Some(patience));
        self.accept(session, exchange).await
    }

    async fn upstream_peer(
        &self,
        session: &mut Session,
        exchange: &mut Self::CTX,
    ) -> Result<Box<HttpPeer>> {
        if exchange.call.as_ref().is_some_and(|call| !call.done.is_empty() || call.stale > 0) {
            // The last attempt may have failed after its client had left.
            tokio::select! {
                biased;
                error = held::abandoned(&mut session.downstream_session) => {
                    failure::abandoned(&self.gateway, exchange, &error);
                    return Err(error);
                }
                () = std::future::ready(()) => {}
            }
        }
        // It may have to wait, for money or for an address: not longer than anybody wants it.
        let started = tokio::select! {
            biased;
            started = attempt::start(&self.gateway, exchange) => started,
            error = held::abandoned(&mut session.downstream_session) => {
                failure::abandoned(&self.gateway, exchange, &error);
                return Err(error);
            }
        };
        match started {
            Ok(peer) => Ok(Box::new(peer)),
            Err(reject) => {
                settle::refund_unused(exchange);
                exchange.refusal = Some(reject);
                Err(Error::new_in(ErrorType::Custom("NoAttempt")))
            }
        }
    }

    async fn connected_to_upstream(
        &self,
        _: &mut Session,
        _: bool,
        _: &HttpPeer,
        connection: RawFd,
        _: Option<&Digest>,
        exchange: &mut Self::CTX,
    ) -> Result<()> {
        exchange.upstream = Some(connection);
        Ok(())
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        upstream: &mut RequestHeader,
        exchange: &mut Self::CTX,
    ) -> Result<()> {
        if upstream::has_moved(&self.gateway, exchange) {
            // As with a connection that turns out to be dead: the next try has the right one.
            if let Some(attempt) = exchange.call.as_mut().and_then(|call| call.current.as_mut()) {
                attempt.failure = Some(Failure::Stale);
            }
            return Err(Error::new_up(ErrorType::Custom("ProviderMoved")));
        }
        let mut header = upstream::header(&self.gateway, exchange, session.req_header())?;
        if exchange.is_late() {
            // Connecting has taken a while: is anybody still there?
            tokio::select! {
                biased;
                error = held::abandoned(&mut session.downstream_session) => return Err(error),
                () = std::future::ready(()) => {}
            }
        }
        if let Some(call) = exchange.call.as_mut()
            && let Some(attempt) = call.current.as_mut()
        {
            attempt.h2 = upstream.version == Version::HTTP_2;
            if attempt.h2 {
                call.control.upload(attempt.body.clone());
            }
            attempt.hold.iter_mut().for_each(Pledge::send);
            // What can't be metered has nothing to wait for, and may have no end.
            if attempt.provider.on_disconnect == OnDisconnect::Drain && call.metered {
                call.control.drain();
            }
        }
        header.set_version(upstream.version);
        *upstream = header;
        let attempt = exchange.call.as_ref().and_then(|call| call.current.as_ref());
        if let (Some(attempt), Some(connection)) = (attempt, exchange.upstream) {
            exchange.cork = Cork::put(connection, upstream.version, attempt.body.len());
        }
        Ok(())
    }

    async fn request_body_filter(
        &self,
        _: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        exchange: &mut Self::CTX,
    ) -> Result<()> {
        let attempt = exchange.call.as_ref().and_then(|call| call.current.as_ref());
        // On HTTP/2 it is what goes out already.
        if let Some(attempt) = attempt.filter(|attempt| end && !attempt.h2) {
            *body = Some(attempt.body.clone());
        }
        if let Some(cork) = exchange.cork.take() {
            cork.pull_when_written();
        }
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        _: &mut Session,
        header: &mut ResponseHeader,
        exchange: &mut Self::CTX,
    ) -> Result<()> {
        relay::header(exchange, header)
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        header: &mut ResponseHeader,
        exchange: &mut Self::CTX,
    ) -> Result<()> {
        relay::client_header(exchange, header)?;
        if session.req_header().version < Version::HTTP_11 {
            header.remove_header(&TRANSFER_ENCODING);
        }
        Ok(())
    }

    fn response_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        exchange: &mut Self::CTX,
    ) -> Result<Option<Duration>> {
        let unsent = session.response_written().is_none();
        complaint::read(exchange, body, end, unsent)?;
        if end && unsent {
            relay::nothing(exchange, body)?;
        }
        relay::body(&self.gateway, exchange, body, end);
        Ok(None)
    }

    async fn response_trailer_filter(
        &self,
        _: &mut Session,
        _: &mut HeaderMap,
        exchange: &mut Self::CTX,
    ) -> Result<Option<Bytes>> {
        Ok(relay::trailers(&self.gateway, exchange))
    }

    fn fail_to_connect(
        &self,
        _: &mut Session,
        _: &HttpPeer,
        exchange: &mut Self::CTX,
        error: Box<Error>,
    ) -> Box<Error> {
        failure::connect(&self.gateway, exchange, error)
    }

    fn error_while_proxy(
        &self,
        _: &HttpPeer,
        session: &mut Session,
        error: Box<Error>,
        exchange: &mut Self::CTX,
        reused: bool,
    ) -> Box<Error> {
        failure::proxying(&self.gateway, session, exchange, error, reused)
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        exchange: &mut Self::CTX,
    ) -> FailToProxy {
        failure::answer(session, exchange, error).await
    }

    async fn logging(
        &self,
        session: &mut Session,
        error: Option<&Error>,
        exchange: &mut Self::CTX,
    ) {
        failure::note_client(exchange, error);
        settle::request_ended(&self.gateway, exchange, &failure::head(session));
        // The connection of a client that has left ends with the wrapper: it is not reused.
        if let Some(call) = exchange.call.as_ref().filter(|_| !exchange.client_gone) {
            held::restore(&mut session.downstream_session, &call.control);
        }
        if error.is_some() && exchange.told {
            failure::rescue(session, exchange).await;
        }
    }

    /// The access log has it; Pingora's own line could show more of a request than ours may.
    fn suppress_error_log(&self, _: &Session, _: &Self::CTX, _: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _: &Session,
        _: &Self::CTX,
        _: &Error,
        _: ProxyWarnLogContext,
    ) -> bool {
        true
    }

    fn request_summary(&self, _: &Session, exchange: &Self::CTX) -> String {
        exchange.id.clone()
    }
}
