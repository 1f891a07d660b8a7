//! The configuration as requests see it: resolved, checked, immutable.
//!
//! A request loads one [`Snapshot`] and keeps it; a new attempt re-reads the provider's
//! credential from the newest one.

use crate::catalog::{Catalog, Habits, ModelCard, Price};
use crate::keys::KeyTable;
pub use crate::scope::*;
use crate::secret::Secret;
use crate::units::{Dialect, Tier};
use ahash::AHashMap;
use rustls_pki_types::CertificateDer;
use std::any::Any;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Everything the configuration file says, ready to be used.
#[derive(Debug)]
pub struct Snapshot {
    /// Counts the successful loads of this process, from 1.
    pub generation: u64,
    /// The first 16 hex digits of the SHA-256 of the file, for `/status`.
    pub hash: String,
    /// Where to listen for apps.
    pub listeners: Vec<Listener>,
    /// The admin listener.
    pub admin: Admin,
    /// The embedded database.
    pub state_path: PathBuf,
    /// What happens to requests while the database cannot be written.
    pub state_on_failure: OnFailure,
    /// How long ledger rows are kept. `None`: for ever.
    pub state_retention: Option<Duration>,
    /// Limits of the process itself.
    pub server: Server,
    /// Where budget windows begin.
    pub timezone: chrono_tz::Tz,
    /// By the name in the configuration.
    pub providers: AHashMap<String, Arc<Provider>>,
    /// Ascending: `tiers[i]` is `Tier(i)`.
    pub tiers: Vec<TierDef>,
    /// By the name that clients ask for.
    pub models: AHashMap<String, Arc<Model>>,
    /// The bounds of the attempt loop.
    pub attempts: Attempts,
    /// When a target is left alone.
    pub breaker: Breaker,
    /// How long a request may wait for other requests' holds to settle.
    pub admission_wait: Duration,
    /// The virtual keys of the file.
    pub keys: KeyTable,
    /// By team name.
    pub teams: AHashMap<String, Arc<Scope>>,
    /// By user name.
    pub users: AHashMap<String, Arc<Scope>>,
    /// What applies to everything together.
    pub global: Scope,
    /// Who is told, and of what.
    pub alerts: Alerts,
    /// Prices of models that no target names (passthrough).
    pub catalog: Arc<Catalog>,
}

/// What happens to requests while the database cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// They are refused (default): money that cannot be recorded is not spent.
    Closed,
    /// They are served, and the operator is told.
    Open,
}

/// One data listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Where it binds. Port 0 takes a free port, which is printed.
    pub address: SocketAddr,
    /// Present: TLS, with HTTP/2 offered by ALPN.
    pub tls: Option<TlsFiles>,
}

/// A certificate chain and its private key, both PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate chain, leaf first.
    pub cert: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// The admin listener.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Where it binds.
    pub address: SocketAddr,
    /// Absent: only the open endpoints are served.
    pub token: Option<Secret>,
}

/// When the process has enough memory in use to take no new work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaxMemory {
    /// At a share of the control group's limit; never where it has none (default).
    Auto,
    /// Never.
    Unlimited,
    /// At so many resident bytes.
    Bytes(u64),
}

/// Limits of the process itself.
#[derive(Debug, Clone)]
pub struct Server {
    /// Worker threads.
    pub threads: usize,
    /// They are as many as there were processors when this was read.
    pub auto_threads: bool,
    /// The largest request body, in bytes.
    pub max_body_bytes: u64,
    /// All request bodies in flight together, in bytes.
    pub max_buffered_bytes: u64,
    /// Past it new work is refused.
    pub max_memory: MaxMemory,
    /// Grace for running requests on SIGTERM.
    pub drain: Duration,
    /// How long a client may take to send a request header (default 30 s).
    pub header_timeout: Duration,
    /// How long an idle downstream connection is kept (default 60 s), and how long a
    /// request body may stand still.
    pub idle_timeout: Duration,
}

/// A place that serves models: one row of data.
#[derive(Debug)]
pub struct Provider {
    /// The name in the configuration.
    pub name: String,
    /// What it speaks.
    pub dialect: Dialect,
    /// Its name in the price catalogue, as [`crate::catalog::provider_of`] gives it.
    pub catalog: Option<String>,
    /// `https` or plain `http`.
    pub tls: bool,
    /// Host name or IP address (no brackets), for SNI and resolving.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// The `Host` header: the host, with the port where it is not the scheme's own.
    pub authority: String,
    /// The path of `base_url` without a trailing slash; may be empty.
    pub base_path: String,
    /// The gateway's own credential. Absent: none is sent.
    pub api_key: Option<Secret>,
    /// The credential's name, see [`Provider::name_credential`].
    pub credential: String,
    /// Sent with every request to this provider (names in lower case).
    pub headers: Vec<(http::HeaderName, Secret)>,
    /// Until the connection stands, TLS included (default 5 s).
    pub connect_timeout: Duration,
    /// The longest silence while waiting for the answer or inside it (default 300 s).
    pub read_timeout: Duration,
    /// Which HTTP version to speak.
    pub http2: Http2,
    /// The roots to trust for this provider, instead of the system's.
    pub roots: Option<Arc<Roots>>,
    /// What to do with the upstream when a client leaves.
    pub on_disconnect: OnDisconnect,
    /// Passthrough paths that are allowed although they cannot be metered.
    pub passthrough_unmetered: Vec<String>,
    /// Limits and budgets of this provider.
    pub scope: Scope,
}

impl Provider {
    /// Names a credential without showing it. A rotated one has another name, and so begins with a
    /// clean record.
    pub fn name_credential(provider: &str, api_key: Option<&Secret>) -> String {
        format!("{provider}#{}", api_key.map(Secret::fingerprint).unwrap_or_default())
    }
}

/// Roots of trust, as a provider's `ca_file` had them when the configuration was loaded.
#[derive(Debug)]
pub struct Roots {
    /// SHA-256 of the file's content: other roots are others wherever they are from.
    pub hash: [u8; 32],
    /// At least one. The TLS library takes each of them.
    pub certificates: Vec<CertificateDer<'static>>,
    /// The same as the edge needs them for a connection, which only the edge knows: made there
    /// once. `None`: they can't be made.
    pub prepared: OnceLock<Option<Box<dyn Any + Send + Sync>>>,
}

/// Whether HTTP/2 is spoken with a provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Http2 {
    /// By ALPN on TLS; HTTP/1.1 otherwise.
    Auto,
    /// HTTP/1.1 only.
    Never,
    /// HTTP/2 only; with prior knowledge on plain connections.
    Always,
}

/// What happens to an upstream whose client has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDisconnect {
    /// It is closed at once (default).
    Cancel,
    /// It is read to its end and passed to nobody, so that its cost is known and not estimated.
    /// Not where it can't be metered.
    Drain,
}

/// A price tier.
#[derive(Debug, Clone, PartialEq)]
pub struct TierDef {
    /// Its name.
    pub name: String,
    /// The dearest blended price, in picodollars per token. `None`: no ceiling.
    pub max_blended: Option<u64>,
}

/// A model as clients know it.
#[derive(Debug)]
pub struct Model {
    /// The name that clients ask for.
    pub name: String,
    /// The places that serve it; at least one, not all of weight zero.
    pub targets: Vec<Arc<Target>>,
    /// Other models, in the order in which they are tried.
    pub fallbacks: Vec<String>,
    /// `fallback_order: written`: the fallbacks' targets keep their written order, too.
    pub fallback_written: bool,
    /// Put on every request.
    pub max_output_tokens: Option<u64>,
    /// In tokens, input and output together.
    pub context_window: Option<u64>,
    /// Held as input where a provider may add some, in tokens; `None`: all that it could.
    pub unseen_input_tokens: Option<u64>,
    /// Until the first byte of an answer's body.
    pub first_token_timeout: Option<Duration>,
    /// Slower targets are avoided while a faster one keeps within this time.
    pub latency_budget: Option<Duration>,
    /// The tier of its cheapest target, computed from prices.
    pub tier: Tier,
    /// Limits and budgets of this model.
    pub scope: Scope,
}

/// One model at one provider.
#[derive(Debug)]
pub struct Target {
    /// `provider/model`, as shown in headers and metrics.
    pub id: String,
    /// The provider's name.
    pub provider: String,
    /// What the provider speaks.
    pub dialect: Dialect,
    /// The provider's own id of the model.
    pub model: String,
    /// What that model does without being asked.
    pub habits: Habits,
    /// Share of the traffic among the targets of its model. 0: never.
    pub weight: u32,
    /// Present: the target takes itself out when too much fails.
    pub canary: Option<Canary>,
    /// What a token costs here.
    pub price: Price,
    /// What the catalogue knows of the model, if it does.
    pub card: Option<Arc<ModelCard>>,
    /// Computed from the price.
    pub tier: Tier,
}

/// When a target on trial takes itself out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Canary {
    /// Share of its attempts that may fail, in millionths …
    pub error_rate: u32,
    /// … within this time, once there are 20.
    pub window: Duration,
}

/// The bounds of the attempt loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempts {
    /// Upstream calls for one client request, everything counted together.
    pub max: u32,
    /// All attempts together, until the first byte of the answer.
    pub deadline: Duration,
    /// How often one target may be tried again.
    pub same_target: u32,
}

/// When a target is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Breaker {
    /// It opens at exactly this many failures …
    pub failures: u32,
    /// … within this time …
    pub window: Duration,
    /// … for this long.
    pub cooldown: Duration,
}

/// Who is told, and of what.
#[derive(Debug, Clone, Default)]
pub struct Alerts {
    /// Where alerts are posted.
    pub webhooks: Vec<Webhook>,
    /// Shares of a budget, in millionths, at which an alert is sent. Ascending, each once.
    pub budget_at: Vec<u32>,
    /// Share of requests served by a fallback, in millionths, over five minutes.
    pub fallback_rate: u32,
    /// So many times its trailing mean may be spent in an hour, in millionths.
    pub spend_velocity: u64,
}

/// One receiver of alerts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// Its address. May carry a secret in its path, so it is never printed.
    pub url: Secret,
    /// The key of the signature.
    pub secret: Option<Secret>,
}
