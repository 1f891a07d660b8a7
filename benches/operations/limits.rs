//! The limits of a request: rpm, tpm and parallel of five scopes, from taking to giving back.

use super::{Clock, LANES, Operation, Work, contended};
use std::hint::black_box;
use std::time::Instant;
use tollbar::limits::{Demand, Limiter};
use tollbar::scope::{Limits, ScopeKind};

/// What nobody reaches here.
const LIMITS: Limits =
    Limits { rpm: Some(u64::MAX / 4), tpm: Some(u64::MAX / 4), parallel: Some(u64::MAX / 4) };

pub fn operations() -> Vec<Operation> {
    vec![contended("limits/5-scopes", life)]
}

/// Every lane has a key and a user of its own; team, model and gateway are everybody's.
fn life() -> Box<dyn Work> {
    let start = Instant::now();
    let (limiter, clock) = (Limiter::new(start), Clock::default());
    let names: Vec<(String, String)> =
        (0..LANES).map(|lane| (format!("key-{lane}"), format!("user-{lane}"))).collect();
    let run = move |lane: usize| {
        let (key, user) = &names[lane];
        let scopes = [
            (ScopeKind::Key, key.as_str()),
            (ScopeKind::User, user),
            (ScopeKind::Team, "web"),
            (ScopeKind::Model, "gpt-4o-mini"),
            (ScopeKind::Global, ""),
        ];
        let demands = scopes.map(|(kind, id)| Demand { kind, id, limits: LIMITS });
        let mut permit = limiter.admit(&demands, 1_100, start + clock.look(lane)).ok().unwrap();
        black_box(permit.remaining());
        permit.correct(900, start + clock.look(lane));
    };
    (0..LANES).for_each(&run);
    Box::new(run)
}
