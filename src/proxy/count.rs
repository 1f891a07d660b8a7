//! Counting a text with a tokenizer, beside what serves: a megabyte takes a tenth of a second.

use crate::wire::tokens::{self, Bounds, Vendor};
use std::num::NonZero;
use std::sync::LazyLock;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

/// As many texts are counted at once as there are processors. More would be done no sooner, and leave
/// less of them to everybody else.
static TURNS: LazyLock<Semaphore> =
    LazyLock::new(|| Semaphore::new(std::thread::available_parallelism().map_or(1, NonZero::get)));

/// How many may be counted or wait for their turn: each keeps a thread, of the 512 that also look up
/// names and stand in for the workers.
static PLACES: Semaphore = Semaphore::const_new(128);

/// Bounds of the tokens of a JSON request's text; `None` where it is no JSON, or where too many wait:
/// what its bytes say is then all that is known.
pub fn tokens(body: &[u8], vendor: Vendor) -> Option<Bounds> {
    let _place = PLACES.try_acquire().ok()?;
    in_turn(&TURNS, || tokens::of(body, vendor))
}

fn in_turn<T>(turns: &Semaphore, work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(|| {
        let _turn = Handle::current().block_on(turns.acquire());
        work()
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn no_more_run_at_once_than_have_a_turn() {
        let (turns, running) = (Arc::new(Semaphore::new(2)), Arc::new(AtomicUsize::new(0)));
        let work = |running: &AtomicUsize| {
            let now = running.fetch_add(1, Ordering::SeqCst) + 1;
            (0..1_000).for_each(|_| std::thread::yield_now());
            running.fetch_sub(1, Ordering::SeqCst);
            now
        };
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let (turns, running) = (turns.clone(), running.clone());
                tokio::spawn(async move { in_turn(&turns, || work(&running)) })
            })
            .collect();
        for task in tasks {
            assert!(task.await.unwrap() <= 2);
        }
    }
}
