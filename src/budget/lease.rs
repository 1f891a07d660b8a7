//! Asking the store for more of an account, and waiting for its answer.

use super::account::{Account, Slot};
use crate::ledger::{Lease, LeaseAsk, Store, StoreError};
use crate::scope::Per;
use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// An answer of the store that requests may wait for.
#[derive(Debug, Default)]
pub(super) struct Ticket {
    state: Mutex<TicketState>,
}

#[derive(Debug, Default)]
struct TicketState {
    answered: bool,
    wakers: Vec<Waker>,
}

impl Ticket {
    fn answer(&self) {
        let wakers = {
            let mut state = self.state.lock();
            state.answered = true;
            std::mem::take(&mut state.wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    fn poll(&self, context: &Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if state.answered {
            return Poll::Ready(());
        }
        if !state.wakers.iter().any(|waker| waker.will_wake(context.waker())) {
            state.wakers.push(context.waker().clone());
        }
        Poll::Pending
    }
}

/// Ready when the store has answered for every account that had no lease; then the hold is worth
/// trying again.
#[derive(Debug, Default)]
#[must_use = "a lease is there when this future is ready"]
pub struct LeaseTicket {
    pub(super) tickets: Vec<Arc<Ticket>>,
}

impl Future for LeaseTicket {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        while let Some(ticket) = self.tickets.last() {
            if ticket.poll(context).is_pending() {
                return Poll::Pending;
            }
            self.tickets.pop();
        }
        Poll::Ready(())
    }
}

/// A question to the store; whatever becomes of it, nobody waits for it for ever.
struct Asked {
    account: Arc<Account>,
    per: Per,
    starts: i64,
    ticket: Arc<Ticket>,
    answer: Option<Lease>,
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.account.with(self.per, self.starts, |slot, index| {
            let window = &mut slot.windows[index];
            window.pending = None;
            if let Some(lease) = self.answer {
                window.leased(lease);
            }
        });
        self.ticket.answer();
    }
}

/// A question that is to be put to the store once no account is locked any more.
pub(super) struct Question {
    ask: LeaseAsk,
    asked: Asked,
}

impl Question {
    pub(super) fn put(self, store: &dyn Store) {
        let mut asked = self.asked;
        store.lease(
            self.ask,
            Box::new(move |answer: Result<Lease, StoreError>| {
                asked.answer = answer.ok();
                drop(asked);
            }),
        );
    }
}

/// Prepares to ask for more of an account; `None` if an answer is already on its way.
pub(super) fn question(
    account: &Arc<Account>,
    slot: &mut Slot,
    index: usize,
    worst: u64,
    now: DateTime<Utc>,
) -> Option<Question> {
    let per = slot.per;
    let window = &mut slot.windows[index];
    if window.pending.is_some() {
        return None;
    }
    let ticket = Arc::new(Ticket::default());
    let want = window.want(worst);
    window.wanted = 0;
    window.unseen_asked = window.unseen;
    window.pending = Some(ticket.clone());
    window.asked = Some(now);
    if window.lease.is_none() {
        window.before = window.spent;
    }
    let name = window.key.get_or_insert_with(|| account.key(per, window.span)).clone();
    let ask = LeaseAsk { account: name, cap: window.cap, want };
    let starts = window.span.starts;
    Some(Question {
        ask,
        asked: Asked { account: account.clone(), per, starts, ticket, answer: None },
    })
}
