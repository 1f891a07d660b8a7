//! Accepts connections and answers requests.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use parking_lot::{Mutex, RwLock};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::answer::{self, Answer};
use super::ask::{Ask, Endpoint};
use super::body::Paced;
use super::guard::Guard;
use super::io::{Counted, Written};
use super::record::{Log, Recorded};
use super::script::{Cut, Pace, Script};
use super::tls::Acceptor;
use super::{control, directives};

/// What all connections of a provider share.
pub(crate) struct Shared {
    pub(crate) log: Log,
    pub(crate) scripts: Mutex<Scripts>,
    /// Keys accepted; `None` accepts everything.
    pub(crate) keys: RwLock<Option<HashSet<String>>>,
    pub(crate) billed: Meter,
    /// The same of each model.
    pub(crate) billed_by_model: Mutex<BTreeMap<String, Arc<Meter>>>,
    pub(crate) accepted: AtomicU64,
    pub(crate) open: Mutex<HashMap<u64, Open>>,
    pub(crate) in_flight: AtomicUsize,
    pub(crate) peak_in_flight: AtomicUsize,
    pub(crate) stopping: AtomicBool,
}

/// Scripts waiting for their requests.
#[derive(Default)]
pub(crate) struct Scripts {
    pub(crate) queues: HashMap<String, VecDeque<Script>>,
    pub(crate) defaults: HashMap<String, Script>,
}

impl Scripts {
    /// Queue of the model, queue of `*`, default of the model, default of `*`.
    fn take(&mut self, model: &str, any: bool) -> Option<Script> {
        let names = if any { &[model, "*"][..] } else { &[model][..] };
        for name in names {
            if let Some(script) = self.queues.get_mut(*name).and_then(VecDeque::pop_front) {
                return Some(script);
            }
        }
        names.iter().find_map(|name| self.defaults.get(*name).cloned())
    }
}

/// Running totals of what was delivered.
#[derive(Default)]
pub(crate) struct Meter {
    pub(crate) requests: AtomicU64,
    pub(crate) input_tokens: AtomicU64,
    pub(crate) output_tokens: AtomicU64,
}

/// An open connection, as the provider knows it.
pub(crate) struct Open {
    pub(crate) conn: Arc<Conn>,
    pub(crate) task: Option<AbortHandle>,
}

/// One TCP connection.
pub(crate) struct Conn {
    id: u64,
    pub(crate) busy: AtomicUsize,
    /// Tells the connection to close as soon as it is idle.
    pub(crate) close: Notify,
    written: Written,
}

/// Counts a request in flight until it is dropped.
pub(crate) struct Busy {
    shared: Arc<Shared>,
    conn: Arc<Conn>,
}

impl Busy {
    fn new(shared: &Arc<Shared>, conn: &Arc<Conn>) -> Self {
        conn.busy.fetch_add(1, Relaxed);
        let now = shared.in_flight.fetch_add(1, Relaxed) + 1;
        shared.peak_in_flight.fetch_max(now, Relaxed);
        Self { shared: Arc::clone(shared), conn: Arc::clone(conn) }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.conn.busy.fetch_sub(1, Relaxed);
        self.shared.in_flight.fetch_sub(1, Relaxed);
        self.shared.log.touch();
    }
}

/// Takes an open connection off the books when its task ends, however it ends.
struct Registered {
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.shared.open.lock().remove(&self.id);
        self.shared.log.touch();
    }
}

/// Accepts until the task is aborted.
pub(crate) async fn accept(shared: Arc<Shared>, listener: TcpListener, tls: Option<Acceptor>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors, most likely: let some be closed.
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            continue;
        };
        let id = shared.accepted.fetch_add(1, Relaxed);
        let conn = Arc::new(Conn {
            id,
            busy: AtomicUsize::new(0),
            close: Notify::new(),
            written: Written::default(),
        });
        let open = Open { conn: Arc::clone(&conn), task: None };
        // On the books before its task runs, so that the task finds itself there.
        shared.open.lock().insert(id, open);
        let task = tokio::spawn(connection(Arc::clone(&shared), conn, stream, tls.clone()));
        if let Some(open) = shared.open.lock().get_mut(&id) {
            open.task = Some(task.abort_handle());
        }
        shared.log.touch();
    }
}

async fn connection(
    shared: Arc<Shared>,
    conn: Arc<Conn>,
    stream: TcpStream,
    tls: Option<Acceptor>,
) {
    let _registered = Registered { shared: Arc::clone(&shared), id: conn.id };
    // Each chunk in a packet of its own; failing that, the answers are still right.
    let _ = stream.set_nodelay(true);
    let io = Counted::new(stream, conn.written.clone());
    match tls {
        None => serve(shared, conn, io).await,
        Some(tls) => {
            if let Ok(io) = tls.accept(io).await {
                serve(shared, conn, io).await;
            }
        }
    }
}

async fn serve(
    shared: Arc<Shared>,
    conn: Arc<Conn>,
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) {
    let close = Arc::clone(&conn);
    let service =
        service_fn(move |request| handle(Arc::clone(&shared), Arc::clone(&conn), request));
    let builder = auto::Builder::new(TokioExecutor::new());
    let mut serving = std::pin::pin!(builder.serve_connection(TokioIo::new(io), service));
    // An error here is a peer that left or a cut: the records tell of both.
    tokio::select! {
        _ = serving.as_mut() => {}
        () = close.close.notified() => {
            serving.as_mut().graceful_shutdown();
            let _ = serving.await;
        }
    }
}

/// The journey of a request.
async fn handle(
    shared: Arc<Shared>,
    conn: Arc<Conn>,
    request: Request<Incoming>,
) -> io::Result<Response<Paced>> {
    let at = Instant::now();
    let (head, body) = request.into_parts();
    if control::is_ours(head.uri.path()) {
        let (body, _) = collect(body).await;
        return control::answer(&shared, &head, &body);
    }
    let busy = Busy::new(&shared, &conn);
    let (body, whole) = collect(body).await;
    let (seq, entry) = shared.log.push(record(&head, body.clone(), at, conn.id));
    let mut guard = Guard::new(Arc::clone(&shared), entry, busy);
    if !whole {
        return Err(io::Error::other("the request ended early"));
    }
    let ask = Ask::read(&head, body);
    guard.bill(&ask.model);
    let (answer, pace) = decide(&shared, &ask, seq);
    if !pace.delay.is_zero() {
        tokio::time::sleep(pace.delay).await;
    }
    if let Some(gate) = pace.gate.as_ref().filter(|_| !answer.streamed) {
        gate.pass().await;
    }
    if pace.cut == Some(Cut::Headers) {
        guard.cut();
        return Err(io::Error::other("cut as scripted"));
    }
    guard.answered(answer.status);
    respond(answer, pace, conn.written.clone(), guard)
}

/// Key, then script, then directives.
fn decide(shared: &Shared, ask: &Ask, seq: u64) -> (Answer, Pace) {
    let plain = Pace::from(&Script::default());
    let known = |keys: &HashSet<String>| ask.key.as_ref().is_some_and(|key| keys.contains(key));
    if !shared.keys.read().as_ref().is_none_or(known) {
        return (answer::refusal(ask, seq), plain);
    }
    // Somebody who lists models must not use up the scripts for everybody.
    let any = ask.endpoint != Endpoint::Models;
    let scripted = shared.scripts.lock().take(&ask.model, any);
    let script = match scripted.map_or_else(|| directives::parse(&ask.model), Ok) {
        Ok(script) => script,
        Err(message) => return (answer::complaint(ask, &message, seq), plain),
    };
    let pace = Pace::from(&script);
    if !script.keys.as_ref().is_none_or(known) {
        return (answer::refusal(ask, seq), pace);
    }
    (answer::build(ask, &script, seq), pace)
}

fn respond(
    answer: Answer,
    pace: Pace,
    written: Written,
    guard: Guard,
) -> io::Result<Response<Paced>> {
    let mut response = Response::builder().status(answer.status);
    for (name, value) in &answer.headers {
        response = response.header(name, value);
    }
    let body = Paced::new(answer.pieces, answer.streamed, answer.input, pace, written, guard);
    response.body(body).map_err(io::Error::other)
}

/// The body, and whether it was complete.
async fn collect(mut body: Incoming) -> (Bytes, bool) {
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            rest.extend_from_slice(&first);
            return (rest.freeze(), false);
        };
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if first.is_empty() && rest.is_empty() {
            first = data;
            continue;
        }
        if rest.is_empty() {
            rest.extend_from_slice(&std::mem::take(&mut first));
        }
        rest.extend_from_slice(&data);
    }
    if rest.is_empty() {
        return (first, true);
    }
    (rest.freeze(), true)
}

fn record(head: &Parts, body: Bytes, at: Instant, connection_id: u64) -> Recorded {
    let text =
        |value: &hyper::header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let path = head.uri.path_and_query();
    Recorded {
        seq: 0,
        at,
        method: head.method.to_string(),
        path_and_query: path.map(ToString::to_string).unwrap_or_default(),
        version: head.version,
        headers: head.headers.iter().map(|(n, v)| (n.to_string(), text(v))).collect(),
        body,
        connection_id,
        status: None,
        peer_closed_at: None,
        cut_at: None,
        finished_at: None,
        chunks_sent: 0,
        chunk_times: Vec::new(),
        bytes_sent: 0,
    }
}
