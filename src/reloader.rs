//! The thread that reloads the configuration, and frees the ones before.
//!
//! It gets less of the processor than requests do, in short turns: loading many keys beside them
//! would make them wait. There is one for as long as the process lives: it can't be missing when it
//! is needed, and what it has freed is where the next configuration goes.

use crate::memory;
use crate::state::Gateway;
use crate::turns;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// How much less of the processor a reload gets than requests: a third of what a thread of theirs
/// gets, where there is not enough for all (sched(7)).
const NICE: i32 = 5;

/// How soon after a reload it is looked whether the configuration before is still used …
const FIRST_LOOK: Duration = Duration::from_millis(20);

/// … and how often in the end: as long as the longest request.
const LAST_LOOKS: Duration = Duration::from_secs(1);

/// The new generation, or the problems.
pub type Outcome = Result<u64, Vec<String>>;

/// Asks the thread. It ends with the last of these.
#[derive(Clone)]
pub struct Reloader {
    asked: Sender<oneshot::Sender<Outcome>>,
}

impl Reloader {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has no thread for it.
    pub fn start(gateway: Arc<Gateway>, runtime: Handle) -> std::io::Result<Self> {
        let (asked, asks) = unbounded();
        let work = move || work(&gateway, &runtime, &asks);
        std::thread::Builder::new().name("tollbar-reload".to_owned()).spawn(work)?;
        Ok(Reloader { asked })
    }

    /// As [`Gateway::reload`], but for others that ask: one after the other. `None`: it came to no
    /// end, and the old configuration stays.
    pub async fn reload(&self) -> Option<Outcome> {
        let (answer, answered) = oneshot::channel();
        self.asked.send(answer).ok()?;
        answered.await.ok()
    }
}

fn work(gateway: &Gateway, runtime: &Handle, asks: &Receiver<oneshot::Sender<Outcome>>) {
    // For this thread only.
    let _ = rustix::process::setpriority_process(None, NICE);
    turns::take();
    let _context = runtime.enter();
    let mut pause = None;
    loop {
        let ask = match pause {
            Some(pause) => asks.recv_timeout(pause),
            None => asks.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match ask {
            Ok(answer) => {
                // A bug in one reload must not take the later ones with it.
                if let Ok(outcome) = catch_unwind(AssertUnwindSafe(|| gateway.reload())) {
                    let _ = answer.send(outcome);
                }
                pause = None;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if gateway.live.retired.free() > 0 {
            memory::give_back();
        }
        let longer = pause.map_or(FIRST_LOOK, |pause| LAST_LOOKS.min(pause * 2));
        pause = (gateway.live.retired.count() > 0).then_some(longer);
    }
}
