//! The journey of a request: accept → authenticate → inspect → plan → attempt → relay → settle.
//! Pingora's hooks only call the stages, in order.

mod accept;
mod admit;
mod attempt;
mod authenticate;
mod control;
mod cork;
mod exchange;
mod failure;
mod held;
mod hold;
mod inspect;
mod models;
mod passthrough;
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

use crate::state::Gateway;
use async_trait::async_trait;
use bytes::Bytes;
use cork::Cork;
use exchange::Exchange;
use http::HeaderMap;
use pingora_core::modules::http::HttpModules;
use pingora_core::protocols::Digest;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
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
        self.accept(session, exchange).await
    }

    async fn upstream_peer(
        &self,
        _: &mut Session,
        exchange: &mut Self::CTX,
    ) -> Result<Box<HttpPeer>> {
        match attempt::start(&self.gateway, exchange).await {
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
        let mut header = upstream::header(&self.gateway, exchange, session.req_header())?;
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
        if let Some(attempt) = attempt.filter(|_| end) {
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
        _: &mut Session,
        header: &mut ResponseHeader,
        exchange: &mut Self::CTX,
    ) -> Result<()> {
        relay::client_header(exchange, header)
    }

    fn response_body_filter(
        &self,
        _: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        exchange: &mut Self::CTX,
    ) -> Result<Option<Duration>> {
        relay::complaint(exchange, body, end)?;
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

    fn persist_connection_context(
        &self,
        _: &Session,
        exchange: &Self::CTX,
    ) -> Option<Box<dyn Any + Send + Sync>> {
        exchange.mark.as_ref().map(|mark| {
            mark.expect_header();
            Box::new(mark.clone()) as Box<dyn Any + Send + Sync>
        })
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
