//! What is done beside the requests as long as the process lives.

use crate::memory;
use crate::state::Gateway;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// How often memory is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// How often it is asked again what the watermark is: a control group's limit can be changed.
const LIMIT: Duration = Duration::from_secs(10);

/// What becomes of the keys of other processes when the state file can't be read.
const KEYS_UNREAD: &str = "changes of keys by another process can't be read";

/// How often limits that nothing is taken of are forgotten.
const IDLE: Duration = Duration::from_secs(60);

/// Over the watermark for so long without any work: nothing that runs can be the reason.
const IDLE_AND_OVER: Duration = Duration::from_secs(5);

/// Deletes ledger rows that are older than `state.retention`, once an hour.
pub async fn prune(gateway: Arc<Gateway>) {
    again("old ledger rows stay", Duration::from_secs(3600), move || {
        let kept = gateway.live.peek().state_retention;
        let kept = kept.and_then(|kept| chrono::TimeDelta::from_std(kept).ok());
        let Some(kept) = kept else { return };
        match gateway.ledger.prune(kept) {
            Ok(rows) => log::info!("{rows} ledger rows were older than state.retention"),
            Err(error) => log::error!("old ledger rows stay: {error}"),
        }
    })
    .await;
}

/// Takes over keys that another process has changed in the same state file: during an upgrade
/// two processes serve.
pub async fn follow_keys(gateway: Arc<Gateway>) {
    let failed = AtomicBool::new(false);
    again(KEYS_UNREAD, Duration::from_secs(1), move || {
        let mut changing = None;
        let changed = gateway.keyring.refresh(|ids| {
            changing = Some(gateway.budgets.changing(ids.iter().cloned()));
        });
        drop(changing);
        let failed_before = failed.swap(changed.is_err(), Ordering::Relaxed);
        match changed {
            Ok(changed) if changed.is_empty() => {}
            Ok(changed) => gateway.revise_keys(&changed),
            Err(error) if !failed_before => log::error!("{KEYS_UNREAD}: {error}"),
            Err(_) => {}
        }
    })
    .await;
}

/// Forgets what was limited a minute ago and isn't any more, once a minute: a window takes 2 KB, and
/// keys that are made for one job are never asked for again.
pub async fn forget_idle(gateway: Arc<Gateway>) {
    again("idle limits are not forgotten", IDLE, move || {
        gateway.limiter.keep(|_, _| false, std::time::Instant::now());
        gateway.unfinished.retain(|_, _, _| false);
    })
    .await;
}

/// Does this at once and then again and again, not on a worker thread, as long as the runtime
/// lives. A panic is said, with what comes of it, and is not the end: nobody would do it any more
/// and nothing would show it.
async fn again(otherwise: &str, period: Duration, job: impl Fn() + Send + Sync + 'static) {
    let job = Arc::new(job);
    let mut often = interval(period);
    often.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        often.tick().await;
        let once = job.clone();
        match tokio::task::spawn_blocking(move || once()).await {
            Ok(()) => {}
            Err(error) if error.is_panic() => log::error!("{otherwise}: {error}; tried again"),
            Err(_) => return,
        }
    }
}

/// Gives a sign of life, at half of the time in which systemd wants one; returns at once where it
/// wants none.
///
/// What it proves: the runtime that serves requests still runs tasks, and the ledger's thread is
/// there. A state file that can't be written is no reason to be restarted: that is what
/// `state.on_failure` is for, and a new process would meet the same disk.
pub async fn watchdog(gateway: Arc<Gateway>) {
    let Some(patience) = gateway.service.watchdog() else { return };
    let mut often = interval(patience / 2);
    often.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = false;
    loop {
        often.tick().await;
        // A task of its own goes through the queue that requests go through.
        if tokio::spawn(std::future::ready(())).await.is_err() {
            return;
        }
        if gateway.ledger.alive() {
            gateway.service.alive();
        } else if !std::mem::replace(&mut told, true) {
            log::error!("the ledger's thread is gone: no sign of life for systemd any more");
        }
    }
}

/// Keeps an eye on memory: past `server.max_memory` new work is refused until there is less.
pub async fn watch_memory(gateway: Arc<Gateway>) {
    let mut often = interval(LOOK);
    often.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut generation, mut asked, mut watermark) = (0, Instant::now(), None);
    let (mut over, mut blind) = (Over::default(), false);
    loop {
        often.tick().await;
        let snapshot = gateway.live.snapshot();
        if generation != snapshot.generation || asked.elapsed() >= LIMIT {
            (generation, asked) = (snapshot.generation, Instant::now());
            // What can't be read now, for want of descriptors, stays what it was.
            watermark = memory::watermark(snapshot.server.max_memory).unwrap_or(watermark);
        }
        let resident = match memory::resident() {
            Ok(resident) => resident,
            Err(error) => {
                if !std::mem::replace(&mut blind, true) {
                    log::error!("memory can't be looked at, server.max_memory waits: {error}");
                }
                continue;
            }
        };
        blind = false;
        let crossed = gateway.memory.observe(resident, watermark);
        tell(&gateway, crossed);
        if gateway.memory.is_over() {
            // Every thread has freed memory of its own: ask each, as far as tasks get around.
            for _ in 0..snapshot.server.threads {
                tokio::spawn(async { memory::give_back() });
            }
            over.look(&gateway);
        } else {
            over = Over::default();
        }
    }
}

fn tell(gateway: &Gateway, crossed: Option<bool>) {
    let Some(over) = crossed else { return };
    let (resident, mark) = (gateway.memory.resident() >> 20, gateway.memory.watermark() >> 20);
    if over {
        let running = gateway.running.count();
        log::warn!(
            "memory: {resident} MiB of {mark} MiB (server.max_memory): new requests are refused, {running} go on"
        );
        gateway.service.status("refusing new requests: over server.max_memory");
    } else {
        log::info!("memory: {resident} MiB of {mark} MiB: new requests are taken again");
        gateway.service.status(&gateway.standing());
    }
}

/// For how long the process has been over its watermark with nothing to do.
#[derive(Default)]
struct Over {
    idle_since: Option<Instant>,
    told: bool,
}

impl Over {
    fn look(&mut self, gateway: &Gateway) {
        if gateway.running.count() > 0 {
            self.idle_since = None;
            return;
        }
        let since = *self.idle_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= IDLE_AND_OVER && !std::mem::replace(&mut self.told, true) {
            log::error!(
                "memory: nothing runs and {} MiB are still in use: server.max_memory is less than this configuration needs. Raise it",
                gateway.memory.resident() >> 20
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[tokio::test]
    async fn a_panic_is_not_the_end() {
        let (done, mut times) = tokio::sync::mpsc::unbounded_channel();
        let begun = AtomicU32::new(0);
        let job = move || {
            assert!(begun.fetch_add(1, Ordering::Relaxed) != 1, "the second fails");
            let _ = done.send(());
        };
        tokio::select! {
            () = again("the test", Duration::from_millis(1), job) => panic!("it ended"),
            () = async { for _ in 0..3 { times.recv().await.unwrap(); } } => {}
        }
    }
}
