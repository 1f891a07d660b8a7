//! Sockets and connections: accept, TLS, which HTTP version, and how long a client may dawdle.
//!
//! The accept loop is ours rather than Pingora's, so that a port can be 0, a slow header has a
//! bound, a renewed certificate is picked up by a reload, and a drain ends when the last request
//! does.

use crate::config::snapshot::TlsFiles;
use crate::gather::Gather;
use crate::proxy::ConnectionMark;
use crate::state::Running;
use async_trait::async_trait;
use pingora_core::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream, ServerApp};
use pingora_core::listeners::tls::{Acceptor, TlsSettings};
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::http::v2::server::H2Options;
use pingora_core::protocols::l4::stream::Stream as L4Stream;
use pingora_core::protocols::{GetSocketDigest, SocketDigest, Stream};
use pingora_core::server::ShutdownWatch;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep_until, timeout};

/// The first bytes of an HTTP/2 connection (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long a client may be slow.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For the TLS handshake, and for a whole request header.
    pub header: Duration,
    /// For another request on its connection, and for taking the first byte, or another one, of
    /// what is sent to it.
    pub idle: Duration,
}

/// Makes a TLS acceptor from PEM files, with HTTP/2 offered by ALPN.
///
/// # Errors
/// What is wrong with the files, in words.
pub fn acceptor(files: &TlsFiles) -> Result<Acceptor, String> {
    let cert = files.cert.to_string_lossy().into_owned();
    let key = files.key.to_string_lossy().into_owned();
    // `build` panics on a key that doesn't fit its certificate: catch it here.
    std::panic::catch_unwind(|| {
        let mut settings =
            TlsSettings::intermediate(&cert, &key).map_err(|error| error.to_string())?;
        settings.enable_h2();
        Ok(settings.build())
    })
    .unwrap_or_else(|_| Err(format!("certificate {cert} and key {key} can't be used together")))
}

/// One listening socket.
pub struct Listening {
    /// The socket.
    pub socket: TcpListener,
    /// Gives the newest acceptor for a TLS listener; `None` for a plain one.
    pub tls: Option<Box<dyn Fn() -> Arc<Acceptor> + Send + Sync>>,
}

/// Accepts until told to stop. Running connections go on; `open` counts them. `patience` is asked
/// for each.
pub async fn serve<A>(
    listening: Listening,
    app: Arc<A>,
    mut shutdown: ShutdownWatch,
    patience: impl Fn() -> Patience,
    open: Arc<Running>,
) where
    A: HttpServerApp + Send + Sync + 'static,
{
    loop {
        let accepted = tokio::select! {
            accepted = listening.socket.accept() => accepted,
            _ = shutdown.wait_for(|stop| *stop) => return,
        };
        let tcp = match accepted {
            Ok((tcp, _)) => tcp,
            Err(error) => {
                // Out of descriptors, most likely: wait for some to come back.
                log::error!("accept failed: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let acceptor = listening.tls.as_ref().map(|newest| newest());
        let (app, shutdown, open) = (app.clone(), shutdown.clone(), open.enter());
        let patience = patience();
        tokio::spawn(async move {
            let _open = open;
            if let Err(error) = connection(tcp, acceptor, app, shutdown, patience).await {
                log::debug!("connection ended: {error}");
            }
        });
    }
}

async fn connection<A>(
    tcp: TcpStream,
    acceptor: Option<Arc<Acceptor>>,
    app: Arc<A>,
    shutdown: ShutdownWatch,
    patience: Patience,
) -> io::Result<()>
where
    A: HttpServerApp + Send + Sync + 'static,
{
    tcp.set_nodelay(true)?;
    let late = || io::Error::new(io::ErrorKind::TimedOut, "the client was too slow");
    let Some(acceptor) = acceptor else {
        let h2 = timeout(patience.header, begins_h2(&tcp)).await.map_err(|_| late())??;
        let stream: Stream = Box::new(with_digest(tcp));
        return speak(stream, h2, app, shutdown, patience).await;
    };
    let handshake = acceptor.tls_handshake(with_digest(tcp));
    let stream = timeout(patience.header, handshake)
        .await
        .map_err(|_| late())?
        .map_err(|error| io::Error::other(error.to_string()))?;
    let stream: Stream = Box::new(stream);
    let h2 = matches!(stream.selected_alpn_proto(), Some(pingora_core::protocols::ALPN::H2));
    speak(stream, h2, app, shutdown, patience).await
}

fn with_digest(tcp: TcpStream) -> L4Stream {
    let digest = SocketDigest::from_raw_fd(tcp.as_raw_fd());
    let mut stream = L4Stream::from(tcp);
    stream.set_socket_digest(digest);
    stream
}

/// Whether a plain connection begins with HTTP/2's preface. Decides at the first byte that
/// differs, so that a short HTTP/1 request isn't kept waiting for 24 bytes.
async fn begins_h2(tcp: &TcpStream) -> io::Result<bool> {
    let mut seen = [0; PREFACE.len()];
    loop {
        let n = tcp.peek(&mut seen).await?;
        if n == 0 || seen[..n] != PREFACE[..n] {
            return Ok(false);
        }
        if n == PREFACE.len() {
            return Ok(true);
        }
        // Part of a preface: look again when more has come. Peeking leaves the socket readable.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn speak<A>(
    stream: Stream,
    h2: bool,
    app: Arc<A>,
    shutdown: ShutdownWatch,
    patience: Patience,
) -> io::Result<()>
where
    A: HttpServerApp + Send + Sync + 'static,
{
    if h2 {
        // Pingora's own loop, which knows about GOAWAY and idle connections.
        let mut options = app.server_options().cloned().unwrap_or_default();
        options.h2_idle_timeout = Some(patience.idle);
        Arc::new(Multiplexed { app, options }).process_new(stream, &shutdown).await;
        return Ok(());
    }
    let mark = ConnectionMark::default();
    let mut session = ServerSession::new_http1(Box::new(Gather::new(stream, patience.idle)));
    session.set_pipelining_enabled(true);
    // As long as a header may take: `overdue` is the end of that.
    session.set_keepalive(Some(0));
    let mut header_by = Instant::now() + patience.header;
    loop {
        mark.expect_header();
        session.set_connection_user_context(Some(Box::new(mark.clone())));
        let request = app.process_new_http(session, &shutdown);
        let next = tokio::select! {
            next = request => next,
            () = overdue(&mark, header_by) => return Ok(()),
        };
        let next = next.or_else(|| mark.take_rescued());
        let Some((stream, settings)) = next.map(|reused| reused.consume()) else {
            return Ok(());
        };
        session = ServerSession::new_http1(stream);
        if let Some(settings) = settings {
            settings.apply_to_session(&mut session);
        }
        // A connection between two requests may be idle first.
        session.set_keepalive(Some(whole_seconds(patience.idle)));
        header_by = Instant::now() + patience.idle + patience.header;
    }
}

/// Pingora counts the time between two requests in seconds, of which 0 is for ever.
fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// The app, on a connection of HTTP/2. Pingora asks it how long that may be idle, which was settled
/// when the connection came: an app of its own for each makes what a reload says good for the next.
struct Multiplexed<A> {
    app: Arc<A>,
    options: HttpServerOptions,
}

#[async_trait]
impl<A: HttpServerApp + Send + Sync + 'static> HttpServerApp for Multiplexed<A> {
    async fn process_new_http(
        self: &Arc<Self>,
        session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        self.app.process_new_http(session, shutdown).await
    }

    fn h2_options(&self) -> Option<H2Options> {
        self.app.h2_options()
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.options)
    }
}

/// Returns when a header has not come in time; never, once it has.
async fn overdue(mark: &ConnectionMark, by: Instant) {
    sleep_until(by).await;
    if mark.has_header() {
        std::future::pending::<()>().await;
    }
}
