//! What lives as long as the process: everything mutable, addressed by stable names.

mod bytes;
mod fallbacks;
mod running;
mod seldom;

pub use bytes::{ByteBudget, ByteShare};
pub use fallbacks::FallbackRate;
pub use running::{Running, RunningGuard};
pub use seldom::Seldom;

use crate::access_log::AccessLog;
use crate::alerts::{Alert, Alerts};
use crate::budget::{Budgets, Charge};
use crate::config::snapshot::OnFailure;
use crate::keyring::Keyring;
use crate::keys::Standing;
use crate::ledger::{self, Ledger, LedgerError};
use crate::limits::{Limiter, TokenRate};
use crate::memory::Memory;
use crate::metrics::Metrics;
use crate::plan::health::HealthTable;
use crate::reload::Live;
use crate::resolve::Resolver;
use crate::roster::Roster;
use crate::scope::{ScopeKind, ScopeMap};
use crate::systemd::Notifier;
use crate::units::Name;
use ahash::{AHashMap, AHashSet};
use chrono::Utc;
use parking_lot::Mutex;
use pingora_limits::rate::Rate;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

/// Teams, users and keys whose accounts are read ahead, at most. All others are read when they
/// are first charged.
const MOST_WARMED: u64 = 10_000;

/// The process, as requests and the admin listener see it.
pub struct Gateway {
    /// The configuration in force.
    pub live: Live,
    /// What Prometheus scrapes.
    pub metrics: Metrics,
    /// One line per request.
    pub access_log: AccessLog,
    /// Host names to addresses.
    pub resolver: Resolver,
    /// Breakers and cooldowns, by target.
    pub health: HealthTable,
    /// Limits per minute and at the same time.
    pub limiter: Arc<Limiter>,
    /// Requests without a valid key, by address.
    pub strangers: Rate,
    token_rates: Mutex<AHashMap<String, Arc<TokenRate>>>,
    /// What was spent.
    pub ledger: Arc<Ledger>,
    /// Virtual keys that were made while running.
    pub keyring: Arc<Keyring>,
    /// What may still be spent.
    pub budgets: Arc<Budgets>,
    /// How many requests fell back, over the last five minutes.
    pub fallbacks: FallbackRate,
    /// Who is told, and what was told already.
    pub alerts: Alerts,
    /// Request bodies in memory.
    pub bodies: Arc<ByteBudget>,
    /// Those of each key that are not complete yet. Forgotten when there are none.
    pub unfinished: ScopeMap<ByteBudget>,
    /// How much memory the process uses, and whether that is too much for new work.
    pub memory: Memory,
    /// Who started the process, and wants to know how it is.
    pub service: Notifier,
    /// Requests being worked on.
    pub running: Arc<Running>,
    /// Whether to say that connections to providers can't be opened for want of something here.
    pub no_socket: Seldom,
    /// When the process started.
    pub started: Instant,
    draining: AtomicBool,
    reloading: Mutex<()>,
    /// The targets and credentials of the configuration whose health is kept.
    named: Mutex<HashSet<String>>,
}

impl Gateway {
    /// Puts the parts together.
    ///
    /// # Errors
    /// The keys in the state file can't be read.
    pub fn new(
        live: Live,
        metrics: Metrics,
        access_log: AccessLog,
        ledger: Arc<Ledger>,
        service: Notifier,
    ) -> Result<Self, LedgerError> {
        let zone = live.peek().timezone;
        let gateway = Gateway {
            live,
            alerts: Alerts::new(metrics.alerts.clone()),
            metrics,
            access_log,
            resolver: Resolver::default(),
            health: HealthTable::default(),
            limiter: Limiter::new(Instant::now()),
            keyring: Arc::new(Keyring::load(ledger.clone())?),
            budgets: Budgets::new(ledger.clone(), zone),
            ledger,
            strangers: Rate::new(Duration::from_secs(1)),
            token_rates: Mutex::default(),
            fallbacks: FallbackRate::default(),
            bodies: Arc::default(),
            unfinished: ScopeMap::default(),
            memory: Memory::default(),
            service,
            running: Arc::default(),
            no_socket: Seldom::default(),
            started: Instant::now(),
            draining: AtomicBool::new(false),
            reloading: Mutex::default(),
            named: Mutex::default(),
        };
        gateway.follow_config();
        Ok(gateway)
    }

    /// From now on new work is refused with 503.
    pub fn start_draining(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Whether the process is on its way out.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// How many tokens a byte has lately been to this model.
    pub fn token_rate(&self, model: &str) -> Arc<TokenRate> {
        let mut rates = self.token_rates.lock();
        if let Some(rate) = rates.get(model) {
            return rate.clone();
        }
        let rate = Arc::new(TokenRate::default());
        rates.insert(model.to_owned(), rate.clone());
        rate
    }

    /// Reloads the configuration, with metrics and a log line. Blocks: a million keys take more
    /// than a second.
    ///
    /// # Errors
    /// The problems, when the old configuration was kept.
    pub fn reload(&self) -> Result<u64, Vec<String>> {
        // One after the other: systemd takes the next READY for the answer to its own signal.
        let _turn = self.reloading.lock();
        self.service.reloading();
        let result = self.try_reload();
        self.service.ready(&self.standing());
        result
    }

    /// The line for the service manager, unless there is something special to say.
    pub fn standing(&self) -> String {
        standing(self.live.peek().generation, &self.live.last().problems)
    }

    /// The same, without telling the service manager: the process ends.
    ///
    /// # Errors
    /// The problems, when the old configuration was kept.
    pub fn reload_quietly(&self) -> Result<u64, Vec<String>> {
        let _turn = self.reloading.lock();
        self.try_reload()
    }

    fn try_reload(&self) -> Result<u64, Vec<String>> {
        match self.live.reload(|| self.budgets.reloading()) {
            Ok(snapshot) => {
                self.budgets.reloaded();
                self.metrics.config_reloads.with_label_values(&["ok"]).inc();
                self.metrics.config_reload_ok.set(1);
                self.follow_config();
                self.open_later();
                self.alerts.follow(&snapshot.alerts.webhooks);
                log::info!("configuration reloaded: generation {}", snapshot.generation);
                for warning in self.live.last().warnings {
                    log::warn!("{warning}");
                }
                self.tell_twins();
                Ok(snapshot.generation)
            }
            Err(problems) => {
                self.metrics.config_reloads.with_label_values(&["refused"]).inc();
                self.metrics.config_reload_ok.set(0);
                for problem in &problems {
                    log::error!("reload refused, the old configuration stays: {problem}");
                }
                let now = chrono::Utc::now();
                self.alerts.raise(Alert::reload_refused(&problems, now), now);
                Err(problems)
            }
        }
    }

    /// Ids that the file and a key made while running share: both keys are valid, and share their
    /// budgets.
    pub fn tell_twins(&self) {
        let snapshot = self.live.snapshot();
        if !self.keyring.is_empty() {
            for key in snapshot.keys.iter() {
                if let Some(made) = self.keyring.by_hash(&key.hash) {
                    log::warn!(
                        "the key `{}` in the file is the key `{}`, which was made while running: \
                         the file's settings hold, and DELETE or a block of that one stops both",
                        key.id,
                        made.id
                    );
                }
            }
        }
        let mut made = ahash::AHashSet::new();
        self.keyring.each(&mut |key| {
            // Those of the same text have been told.
            if key.standing != Standing::Revoked && snapshot.keys.by_hash(&key.hash).is_none() {
                made.insert(key.id.clone());
            }
        });
        if made.is_empty() {
            return;
        }
        for key in snapshot.keys.iter().filter(|key| made.contains(&key.id)) {
            log::warn!(
                "there are two keys `{}`: one in the file, and one that was made while running; \
                 DELETE /keys/{} revokes the second",
                key.id,
                key.id
            );
        }
    }

    /// Keys have changed, elsewhere or here: what is kept of their budgets follows.
    pub fn revise_keys(&self, ids: &[String]) {
        let ids: AHashSet<Name> = ids.iter().map(|id| id.as_str().into()).collect();
        let mut budgets = AHashMap::new();
        self.keyring.each(&mut |key| {
            if ids.contains(&key.id) {
                budgets.insert(key.id.clone(), key.scope.budgets.clone());
            }
        });
        for id in &ids {
            let budgets = budgets.get(id).map_or(&[][..], Vec::as_slice);
            self.budgets.revise(&Charge { kind: ScopeKind::Key, id, budgets });
        }
    }

    /// Reads the accounts from the state file, so that reports show what was spent before anybody
    /// spends more.
    pub fn open_later(&self) {
        // Without a runtime nobody is served either.
        let Ok(runtime) = Handle::try_current() else { return };
        let (snapshot, keyring) = (self.live.snapshot(), self.keyring.clone());
        let (budgets, ledger) = (self.budgets.clone(), self.ledger.clone());
        runtime.spawn(async move {
            let read = move || match Roster::of_all(snapshot.clone(), &keyring) {
                Some(roster) => (roster.names(), roster),
                None => {
                    let spenders = ledger::spenders(ledger.path(), Utc::now(), MOST_WARMED);
                    let spenders = spenders.unwrap_or_else(|error| {
                        log::warn!("budgets are shown once they are used: {error}");
                        Vec::new()
                    });
                    let keys = spenders.iter().filter(|(kind, _)| *kind == ScopeKind::Key);
                    let keys = keys.map(|(_, id)| id.as_str().into()).collect();
                    (spenders, Roster::of(snapshot, &keyring, &keys))
                }
            };
            if let Ok((spenders, roster)) = tokio::task::spawn_blocking(read).await {
                roster.warm(&budgets, spenders).await;
            }
        });
    }

    /// The keys that anything is kept of.
    fn roster(&self) -> Roster {
        let limited = self.limiter.names(ScopeKind::Key).into_iter();
        let used = limited.chain(self.budgets.names(ScopeKind::Key)).collect();
        Roster::of(self.live.snapshot(), &self.keyring, &used)
    }

    /// What is kept by name follows the configuration in force.
    fn follow_config(&self) {
        let snapshot = self.live.peek();
        self.budgets.set_zone(snapshot.timezone);
        self.budgets.set_fail_open(snapshot.state_on_failure == OnFailure::Open);
        let targets = snapshot.models.values().flat_map(|model| &model.targets);
        for target in targets.clone() {
            if target.canary.is_some() {
                // At 0 from the start, for the same reason as the metrics' own.
                let labels = [target.provider.as_str(), target.model.as_str()];
                self.metrics.rollbacks.with_label_values(&labels);
            }
            let provider = snapshot.providers.get(&target.provider);
            if provider.is_some_and(|provider| !self.health.knows(&provider.credential)) {
                self.health.of(&target.id).warm_up();
            }
        }
        let mut named: HashSet<String> = targets.map(|target| target.id.clone()).collect();
        named.extend(snapshot.providers.values().map(|provider| provider.credential.clone()));
        // What is passed through to a provider has a target of its own.
        let passed = |name: &str| {
            let provider = name.split_once('/').map(|(provider, _)| provider);
            provider.is_some_and(|provider| snapshot.providers.contains_key(provider))
        };
        let before = std::mem::replace(&mut *self.named.lock(), named.clone());
        self.health.keep(|name| named.contains(name) || (!before.contains(name) && passed(name)));
        self.roster().keep(&self.limiter, &self.budgets);
        for provider in snapshot.providers.values() {
            // As above.
            self.metrics.auth_failures.with_label_values(&[&provider.name]);
        }
    }
}

/// A refused reload is said until another one is taken.
fn standing(generation: u64, problems: &[String]) -> String {
    match problems.first() {
        None => format!("serving, configuration generation {generation}"),
        Some(first) => {
            format!("reload refused, configuration generation {generation} stays: {first}")
        }
    }
}
