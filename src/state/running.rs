//! What is being worked on, for who waits for its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{Notify, watch};

/// Counts requests being worked on, so that a shutdown can wait for the last one.
#[derive(Default)]
pub struct Running {
    count: AtomicU64,
    idle: Notify,
    cut: watch::Sender<bool>,
}

impl Running {
    /// Counts one request until the guard is dropped.
    pub fn enter(self: &Arc<Self>) -> RunningGuard {
        self.count.fetch_add(1, Ordering::AcqRel);
        RunningGuard(self.clone())
    }

    /// How many run now.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Ends what still runs: the time that it was given is over.
    pub fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// Says so to a request.
    pub fn cuts(&self) -> watch::Receiver<bool> {
        self.cut.subscribe()
    }

    /// Returns when what still runs is ended.
    pub async fn is_cut(&self) {
        // Nobody else has the sender: it is there as long as this is.
        let _ = self.cuts().wait_for(|cut| *cut).await;
    }

    /// Returns when nothing runs.
    pub async fn idle(&self) {
        loop {
            let notified = self.idle.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if self.count() == 0 {
                return;
            }
            notified.await;
        }
    }
}

/// One request being worked on.
pub struct RunningGuard(Arc<Running>);

impl RunningGuard {
    /// Returns when it is ended, because its time is over.
    pub async fn is_cut(&self) {
        self.0.is_cut().await;
    }
}

impl Drop for RunningGuard {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}
