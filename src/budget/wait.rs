//! The queue of requests that only other requests' holds stand in the way of: first come, first
//! served.

use super::account::{Account, slot};
use crate::scope::Per;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Poll, Waker};

/// Who waits for an account.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: VecDeque<Waiting>,
    next: u64,
    /// Grows whenever something is given back, or the front of the queue changes.
    events: u64,
    /// Grows whenever what they wait for may be decided by other budgets than those they know.
    roused: u64,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    waker: Option<Waker>,
}

impl Queue {
    /// Whether a request has to stand behind others: all but the first of those that wait.
    pub(super) fn bars(&self, number: Option<u64>) -> bool {
        self.waiting.front().is_some_and(|front| Some(front.number) != number)
    }

    /// Something may have become free. Whom to wake, once the account is not locked any more.
    pub(super) fn stir(&mut self) -> Option<Waker> {
        self.events += 1;
        self.waiting.front_mut()?.waker.take()
    }

    /// What is waited for may not be in force any more: everybody has to look again. Whom to wake,
    /// once the account is not locked any more.
    pub(super) fn rouse(&mut self) -> Vec<Waker> {
        self.roused += 1;
        self.waiting.iter_mut().filter_map(|waiting| waiting.waker.take()).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn roused(&self) -> u64 {
        self.roused
    }

    pub(super) fn events(&self) -> u64 {
        self.events
    }
}

/// Places that are taken, in all queues of the process.
static PLACES: AtomicUsize = AtomicUsize::new(0);

/// Whether nobody waits for any account.
pub(super) fn nobody() -> bool {
    PLACES.load(Ordering::Acquire) == 0
}

/// A place in the queue of an account. Dropping it gives it up.
pub(super) struct Place {
    account: Arc<Account>,
    per: Per,
    number: u64,
    roused: u64,
}

impl Place {
    /// A place at the end of the queue, for who has looked when it had been roused so often.
    pub(super) fn take(account: Arc<Account>, per: Per, roused: u64) -> Place {
        PLACES.fetch_add(1, Ordering::AcqRel);
        let number = {
            let mut slots = account.slots.lock();
            let queue = &mut slot(&mut slots, per).queue;
            queue.next += 1;
            queue.waiting.push_back(Waiting { number: queue.next, waker: None });
            queue.next
        };
        Place { account, per, number, roused }
    }

    /// The number of this place, if it is in the queue of this account.
    pub(super) fn number_at(&self, account: &Arc<Account>, per: Per) -> Option<u64> {
        (self.per == per && Arc::ptr_eq(&self.account, account)).then_some(self.number)
    }

    /// Waits to be the first, and for something to have happened since `seen`. False: what is
    /// waited for may not be in force any more.
    pub(super) async fn turn(&self, seen: u64) -> bool {
        poll_fn(|context| {
            let mut slots = self.account.slots.lock();
            let queue = &mut slot(&mut slots, self.per).queue;
            let events = queue.events;
            if queue.roused != self.roused {
                return Poll::Ready(false);
            }
            let place = queue.waiting.iter().position(|w| w.number == self.number);
            match place.and_then(|place| Some((place, queue.waiting.get_mut(place)?))) {
                Some((0, _)) if events != seen => Poll::Ready(true),
                Some((_, waiting)) => {
                    waiting.waker = Some(context.waker().clone());
                    Poll::Pending
                }
                None => Poll::Ready(true),
            }
        })
        .await
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        PLACES.fetch_sub(1, Ordering::AcqRel);
        let waker = {
            let mut slots = self.account.slots.lock();
            let queue = &mut slot(&mut slots, self.per).queue;
            let was_first = queue.waiting.front().is_some_and(|w| w.number == self.number);
            queue.waiting.retain(|waiting| waiting.number != self.number);
            if was_first { queue.stir() } else { None }
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
