//! What is known of one request, stage by stage. A stage's value exists only once the stage
//! before it has made it, so nothing can be read too early.

use super::control::Control;
use super::cork::Cork;
use super::passthrough::Via;
use super::pledge::Pledge;
use crate::access_log::AttemptLine;
use crate::config::snapshot::{Model, Provider, Snapshot};
use crate::keys::Caller;
use crate::limits::{Permit as LimitPermit, Refusal};
use crate::metrics::NONE;
use crate::plan::Candidate;
use crate::plan::health::{Blocked, Permit};
use crate::reject::Reject;
use crate::state::{ByteShare, Gateway, RunningGuard};
use crate::units::{Dialect, NanoUsd, Usage, UsageSource};
use crate::wire::marks::Marks;
use crate::wire::meter::{Meter, Report};
use crate::wire::multipart::Form;
use crate::wire::route::Endpoint;
use crate::wire::scan::Fields;
use bytes::{Bytes, BytesMut};
use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use pingora_core::apps::ReusedHttpStream;
use prometheus::IntGauge;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// What a request tells the connection it came on, which gives it to each in turn.
#[derive(Clone, Default)]
pub struct ConnectionMark(Arc<Connection>);

#[derive(Default)]
struct Connection {
    header_arrived: AtomicBool,
    rescued: Mutex<Option<ReusedHttpStream>>,
}

impl ConnectionMark {
    /// The header is there: the connection's watchdog may rest.
    pub fn arrived(&self) {
        self.0.header_arrived.store(true, Ordering::Release);
    }

    /// The next request's header is waited for.
    pub fn expect_header(&self) {
        self.0.header_arrived.store(false, Ordering::Release);
    }

    /// Whether a header has arrived since the last one was expected.
    pub fn has_header(&self) -> bool {
        self.0.header_arrived.load(Ordering::Acquire)
    }

    /// Keeps a connection that Pingora would close, although its answer was written whole.
    pub fn rescue(&self, stream: ReusedHttpStream) {
        *self.0.rescued.lock() = Some(stream);
    }

    /// The connection that was kept, if one was.
    pub fn take_rescued(&self) -> Option<ReusedHttpStream> {
        self.0.rescued.lock().take()
    }
}

/// One client request, from its header to the last byte of its answer.
pub struct Exchange {
    /// Made here; a client can't choose it.
    pub id: String,
    /// When its header had been read.
    pub started: Instant,
    /// The configuration this request was admitted under.
    pub snapshot: Arc<Snapshot>,
    /// Keeps a shutdown waiting.
    pub running: RunningGuard,
    /// The connection's watchdog, handed on to the next request.
    pub mark: Option<ConnectionMark>,
    /// What the path asks for, once routed.
    pub endpoint: Option<Endpoint>,
    /// How errors are written.
    pub dialect: Dialect,
    /// Who asks, once authenticated.
    pub caller: Option<Arc<Caller>>,
    /// The configured model, once known.
    pub model: Option<Arc<Model>>,
    /// Admitted, with its body in memory.
    pub call: Option<Call>,
    /// The descriptor of the connection to the provider, once there is one.
    pub upstream: Option<RawFd>,
    /// Keeps the request's header until the body is there.
    pub cork: Option<Cork>,
    /// The gateway's own refusal, once there is one.
    pub refusal: Option<Reject>,
    /// What the client got.
    pub status: u16,
    /// The client left before the end.
    pub client_gone: bool,
    /// After a failure: the client was told all the same, and the connection is in order.
    pub told: bool,
    /// It only asks whether anybody is there.
    pub is_probe: bool,
}

fn request_id() -> String {
    let mut id = [0; 36];
    id[..4].copy_from_slice(b"req_");
    // 32 digits for 16 bytes: it can't fail.
    let _ = hex::encode_to_slice(rand::random::<[u8; 16]>(), &mut id[4..]);
    String::from_utf8_lossy(&id).into_owned()
}

/// Connections that take longer than this make it worth asking whether anybody still waits.
const LATE: Duration = Duration::from_millis(20);

impl Exchange {
    /// Whether the running attempt began a while ago.
    pub fn is_late(&self) -> bool {
        let attempt = self.call.as_ref().and_then(|call| call.current.as_ref());
        attempt.is_some_and(|attempt| attempt.started.elapsed() >= LATE)
    }

    /// A request whose header has just been read.
    pub fn new(gateway: &Gateway) -> Self {
        Exchange {
            id: request_id(),
            started: Instant::now(),
            snapshot: gateway.live.snapshot(),
            running: gateway.running.enter(),
            mark: None,
            endpoint: None,
            dialect: Dialect::OpenAi,
            caller: None,
            model: None,
            call: None,
            upstream: None,
            cork: None,
            refusal: None,
            status: 0,
            client_gone: false,
            told: false,
            is_probe: false,
        }
    }

    /// The model's name as a metric label.
    pub fn model_label(&self) -> &str {
        self.model.as_ref().map_or(NONE, |model| &model.name)
    }

    /// The team as a metric label.
    pub fn team_label(&self) -> &str {
        self.caller.as_deref().map_or(NONE, team_label)
    }
}

/// A key's team as a metric label.
pub fn team_label(caller: &Caller) -> &str {
    caller.team.as_deref().unwrap_or(NONE)
}

/// A request that was admitted: its body, and what is planned and done for it.
pub struct Call {
    /// What it asks for.
    pub endpoint: Endpoint,
    /// Where it goes, when it is passed through to a provider's own API.
    pub via: Option<Via>,
    /// Whether its usage can be read from the answer.
    pub metered: bool,
    /// The model it asks for.
    pub model: Arc<Model>,
    /// Whether it asks for a streamed answer.
    pub stream: bool,
    /// The client's bytes, never changed: each attempt is built from them.
    pub body: Bytes,
    /// Where the fields are that an attempt has to change.
    pub fields: BodyFields,
    /// What its words say about its cost, once that was asked.
    pub marks: OnceLock<Marks>,
    /// What it has taken of its limits, until it ends; its places are given back by drop.
    pub permit: Option<LimitPermit>,
    /// Tokens that the limits took it to use.
    pub tokens: u64,
    /// The budget that kept a target from being tried, if one did.
    pub over_budget: Option<Box<Reject>>,
    /// The limit that kept a target from being tried, if one did.
    pub limited: Option<Refusal>,
    /// How long it has waited for money so far.
    pub waited: Duration,
    /// The key may not use a target any more.
    pub forbidden: bool,
    /// The body's share of the process's byte budget.
    pub share: ByteShare,
    /// Steers the wrapped downstream session.
    pub control: Control,
    /// The targets, in the order in which they are tried.
    pub plan: Vec<Candidate>,
    /// How far the plan has been followed.
    pub next: usize,
    /// Why targets were passed over.
    pub passed_over: Vec<Blocked>,
    /// The attempts that have ended.
    pub done: Vec<AttemptRecord>,
    /// The attempt that runs.
    pub current: Option<Attempt>,
    /// No attempt starts after this.
    pub deadline: Instant,
    /// How often one target may be tried again.
    pub same_target: u32,
    /// Repeats of the current target so far.
    pub repeats: u32,
    /// What has to come before an error event, after what the client got of a broken stream.
    pub closing: &'static [u8],
    /// Pooled connections found dead so far: replaced without counting as attempts.
    pub stale: u32,
}

/// The body, as far as it was understood.
pub enum BodyFields {
    /// A JSON object.
    Json(Box<Fields>),
    /// A multipart form (audio uploads), and what separates its parts.
    Form(Form, String),
    /// Anything, passed on as it is.
    Opaque,
}

/// One upstream call that runs.
pub struct Attempt {
    /// Where it goes.
    pub candidate: Candidate,
    /// The provider, as it was when the attempt began.
    pub provider: Arc<Provider>,
    /// Who pays for it: the key as it was when the attempt began.
    pub caller: Arc<Caller>,
    /// Its connection speaks HTTP/2.
    pub h2: bool,
    /// The provider says that it has not looked at it.
    pub refused: bool,
    /// When it began.
    pub started: Instant,
    /// The same by the calendar: it decides the budget windows that it counts in.
    pub at: DateTime<Utc>,
    /// What is sent there.
    pub body: Bytes,
    /// Counts it among the running ones until dropped.
    pub inflight: InflightGuard,
    /// Money held for it; `None` once it has been settled.
    pub hold: Option<Pledge>,
    /// The cap that little money has put on each answer's output, in tokens.
    pub clamped: Option<u64>,
    /// What it has taken of its provider's limits.
    pub limits: Option<LimitPermit>,
    /// The target's permission, and that of the provider's credential.
    pub permits: (Permit, Permit),
    /// Why it failed, when a hook has found out.
    pub failure: Option<Failure>,
    /// The beginning of a failed answer's body, for what it says about coming back.
    pub complaint: Vec<u8>,
    /// The answer, once its header is there.
    pub relay: Option<Relay>,
}

/// An answer on its way to the client.
pub struct Relay {
    /// The upstream's status.
    pub status: u16,
    /// Reads usage from what goes past.
    pub meter: Meter,
    /// Whether the client is sent server-sent events.
    pub events: bool,
    /// The answer is compressed: what is in it is only looked at.
    pub packed: bool,
    /// It is compressed in a way that nothing is known of.
    pub unread: bool,
    /// When the first byte of the body came that goes to the client.
    pub first_byte: Option<Instant>,
    /// When the answer began: for a stream, with its first event.
    pub first_token: Option<Instant>,
    /// What came before that, where the header waits for it: comments.
    pub early: BytesMut,
    /// Body bytes sent on.
    pub bytes: u64,
    /// The upstream's own id of the request, for a support ticket.
    pub upstream_id: Option<String>,
    /// Set once, when the upstream's body has ended.
    pub report: Option<Report>,
}

/// Why an attempt failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// No connection: resolving, connecting or TLS.
    Connect(String),
    /// The same, for want of something of this machine: descriptors, buffers, ports.
    NoSocket(String),
    /// An answer that means "try elsewhere".
    Status(u16, Option<Duration>),
    /// The connection broke before the answer.
    Broken(String),
    /// A pooled connection turned out to be dead before it carried anything.
    Stale,
    /// Silence for longer than the provider's `read_timeout`.
    Timeout,
    /// No first byte in time.
    FirstToken,
    /// All attempts together took too long.
    Deadline,
    /// The answer broke off after it had begun.
    Interrupted(String),
    /// The client left.
    ClientGone,
    /// The process ends, and what was to be waited for has been.
    Cut,
    /// A fault of the gateway.
    Internal(String),
}

impl Failure {
    /// The word for logs and metrics.
    pub fn outcome(&self) -> &'static str {
        match self {
            Failure::Connect(_) => "connect_error",
            Failure::NoSocket(_) => "no_socket",
            Failure::Status(429, _) => "rate_limited",
            Failure::Status(401 | 403, _) => "auth_failed",
            Failure::Status(..) => "error_status",
            Failure::Broken(_) => "read_error",
            Failure::Stale => "stale_connection",
            Failure::Timeout => "timeout",
            Failure::FirstToken => "first_token_timeout",
            Failure::Deadline => "deadline",
            Failure::Interrupted(_) | Failure::Cut => "interrupted",
            Failure::ClientGone => "client_gone",
            Failure::Internal(_) => "internal_error",
        }
    }
}

/// One upstream call that has ended.
#[derive(Debug, Clone)]
pub struct AttemptRecord {
    /// `provider/model`.
    pub target: String,
    /// The status, if there was one.
    pub status: Option<u16>,
    /// Why it failed; `None` when it served the client.
    pub failure: Option<Failure>,
    /// The word for logs.
    pub outcome: &'static str,
    /// How long it took.
    pub took: Duration,
    /// Until the first byte of the body.
    pub first_token: Option<Duration>,
    /// What it consumed.
    pub usage: Usage,
    /// Where that is known from.
    pub source: UsageSource,
    /// What it cost.
    pub cost: NanoUsd,
    /// Body bytes sent to the client.
    pub bytes: u64,
    /// The upstream's own id of the request.
    pub upstream_id: Option<String>,
}

impl AttemptRecord {
    /// As it stands in an error message.
    pub(super) fn told(&self) -> String {
        let what = match (&self.failure, self.status) {
            (
                Some(
                    Failure::Connect(why)
                    | Failure::NoSocket(why)
                    | Failure::Broken(why)
                    | Failure::Interrupted(why),
                ),
                _,
            ) => why.clone(),
            (Some(Failure::Timeout | Failure::FirstToken | Failure::Deadline), _) => {
                self.outcome.replace('_', " ")
            }
            (_, Some(status)) => format!("status {status}"),
            _ => self.outcome.replace('_', " "),
        };
        format!("{}: {what} after {} ms", self.target, self.took.as_millis())
    }

    /// As it stands in the access log.
    pub fn line(&self) -> AttemptLine<'_> {
        AttemptLine {
            target: &self.target,
            status: self.status,
            outcome: self.outcome,
            ms: u64::try_from(self.took.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// One running upstream call in the `inflight` gauge.
pub struct InflightGuard(IntGauge);

impl InflightGuard {
    /// Counts until dropped.
    pub fn enter(gauge: IntGauge) -> Self {
        gauge.inc();
        InflightGuard(gauge)
    }
}

impl Drop for InflightGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}
