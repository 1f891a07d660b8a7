//! Money for an attempt: its worst case is held on every budget before a byte goes upstream.

use super::authenticate::{self, Keys};
use super::exchange::Call;
use super::worst::{self, Look, Unbounded, Worst};
use super::{admit, upstream};
use crate::alerts::Alert;
use crate::budget::{Charge, Hold, Refusal};
use crate::config::snapshot::{Provider, Snapshot};
use crate::keys::{Caller, LowBudget};
use crate::plan::Candidate;
use crate::reject::{Reason, Reject};
use crate::scope::ScopeKind;
use crate::state::Gateway;
use crate::units::NanoUsd;
use chrono::Utc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Whose money, and for which request.
pub struct Money<'a> {
    /// Where the budgets are.
    pub gateway: &'a Gateway,
    /// The newest caps.
    pub snapshot: &'a Snapshot,
    /// Who asks, as the newest configuration knows them.
    pub caller: &'a Arc<Caller>,
    /// The request's id.
    pub request: &'a str,
    /// Until when other requests' holds are waited for.
    pub until: Instant,
}

/// Output that is not worth asking for: fewer tokens than this, …
const USEFUL_TOKENS: u64 = 16;

/// … or less than this part of what was asked for.
const USEFUL_PART: u64 = 10;

/// How often a clamped hold is tried.
const CLAMP_TRIES: usize = 8;

/// What a refusal adds where most of the money is for input that nobody can see beforehand.
const ADDED_INPUT: &str = " Its provider may add input by itself (tools that it runs, stored files, searches): bound that with max_uses or max_tool_calls, or have unseen_input_tokens set on the model.";

/// There is too little money for an attempt.
pub struct Short {
    /// What the client is told, if nothing else can be tried.
    pub reject: Reject,
    /// The budget is the target's own: another target may have money left.
    pub other_target_may_do: bool,
    /// Something has changed meanwhile: what is in force now may have more.
    pub outdated: bool,
}

/// Money for an attempt.
pub struct Held {
    /// Given back, or settled to what the attempt has cost.
    pub hold: Hold,
    /// `low_budget: clamp`: the output of each answer has to be capped to so many tokens.
    pub clamped: Option<u64>,
}

impl Money<'_> {
    /// Holds what the attempt can cost at most, waiting for other requests' holds if need be.
    ///
    /// # Errors
    /// A budget has too little left, or can't be asked; nothing is held then.
    pub async fn hold(
        &self,
        call: &Call,
        candidate: &Candidate,
        provider: &Provider,
    ) -> Result<Held, Short> {
        let scopes = self.scopes(call, candidate, provider);
        let charges: Vec<Charge<'_>> =
            scopes.iter().map(|(kind, id, budgets)| Charge { kind: *kind, id, budgets }).collect();
        let bounded = charges.iter().any(|charge| !charge.budgets.is_empty());
        let worst = |look| Worst::of(call, &candidate.model, &candidate.target, look);
        let first = worst(Look::Bytes);
        if let Err(why) = first
            && (bounded || why == Unbounded::OtherModel)
        {
            return Err(unbounded(candidate, why));
        }
        let mut most = first.as_ref().map_or(NanoUsd(0), Worst::cost);
        let crude = most;
        let mut refusal = match self.acquire(&charges, most, false).await? {
            Ok(hold) => return Ok(Held { hold, clamped: None }),
            Err(refusal) => refusal,
        };
        let clamps = self.caller.low_budget == LowBudget::Clamp
            && upstream::cap_name(call.endpoint, &candidate.target).is_some();
        let hopeless = refusal.store_failed
            || worst(Look::Fewest).is_ok_and(|worst| least(&worst, clamps) > refusal.unspent());
        // The bytes of a body are a crude bound: look closer before anybody waits. Not where no count
        // would help: it takes long, and who is refused pays nothing.
        let closer = if hopeless { None } else { worst(Look::Count).ok() };
        if let Some(closer) = closer.as_ref().map(Worst::cost).filter(|closer| *closer < most) {
            most = closer;
        }
        if refusal.only_holds || most < crude {
            refusal = match self.acquire(&charges, most, true).await? {
                Ok(hold) => return Ok(Held { hold, clamped: None }),
                Err(refusal) => refusal,
            };
        }
        if clamps && let Some(worst) = &closer {
            let wider = self.clamp(&charges, worst, &refusal).await?;
            return wider.ok_or_else(|| self.short(&refusal, most, call));
        }
        Err(self.short(&refusal, most, call))
    }

    /// Holds the largest useful part of the output that every budget still pays for.
    async fn clamp(
        &self,
        charges: &[Charge<'_>],
        worst: &Worst<'_>,
        refusal: &Refusal,
    ) -> Result<Option<Held>, Short> {
        let least = useful(worst);
        let mut left = refusal.left();
        // Another scope may have less, and others spend at the same time.
        for _ in 0..CLAMP_TRIES {
            let cap = worst.affordable(left);
            if cap < least {
                break;
            }
            match self.acquire(charges, worst.capped(cap), true).await? {
                Ok(hold) => {
                    let labels = [refusal.kind.as_str()];
                    self.gateway.metrics.budget_clamped.with_label_values(&labels).inc();
                    return Ok(Some(Held { hold, clamped: Some(cap) }));
                }
                Err(next) => left = left.min(next.left()),
            }
        }
        Ok(None)
    }

    /// Whether this is still the configuration, and this still the key.
    pub fn is_in_force(&self) -> bool {
        let keys = Keys { snapshot: self.snapshot, keyring: &self.gateway.keyring };
        let now = authenticate::in_force(&self.caller.hash, keys, Utc::now());
        self.gateway.live.peek().generation == self.snapshot.generation
            && now.is_ok_and(|now| now.is_some_and(|now| Arc::ptr_eq(&now, self.caller)))
    }

    fn scopes<'s>(
        &'s self,
        call: &'s Call,
        candidate: &'s Candidate,
        provider: &'s Provider,
    ) -> Vec<(ScopeKind, &'s str, &'s [crate::scope::Budget])> {
        let asked = admit::scopes(self.snapshot, self.caller, &call.model);
        // The model that is charged is the one that serves, as in the ledger.
        let mut scopes: Vec<_> = asked
            .into_iter()
            .filter(|(kind, ..)| *kind != ScopeKind::Model)
            .map(|(kind, id, scope)| (kind, id, scope.budgets.as_slice()))
            .collect();
        // Whom only the key names has no budget, and may get one while the attempt runs.
        let named = [(ScopeKind::User, &self.caller.user), (ScopeKind::Team, &self.caller.team)];
        for (kind, name) in named {
            if let Some(name) = name
                && !scopes.iter().any(|(known, ..)| *known == kind)
            {
                scopes.push((kind, name, &[]));
            }
        }
        let model = &candidate.model;
        let model = self.snapshot.models.get(&model.name).unwrap_or(model);
        scopes.push((ScopeKind::Model, &model.name, &model.scope.budgets));
        scopes.push((ScopeKind::Provider, &provider.name, &provider.scope.budgets));
        scopes
    }

    /// # Errors
    /// The store doesn't answer. Inside: a budget's refusal.
    async fn acquire(
        &self,
        charges: &[Charge<'_>],
        worst: NanoUsd,
        waits: bool,
    ) -> Result<Result<Hold, Box<Refusal>>, Short> {
        let budgets = &self.gateway.budgets;
        while waits && self.until > Instant::now() {
            let holding = budgets.acquire(self.request, charges, worst, Utc::now, true);
            match tokio::time::timeout_at(self.until.into(), holding).await {
                // Something has changed, and nothing that matters here.
                Ok(Err(refusal)) if refusal.only_holds && self.is_in_force() => {}
                Ok(result) => return Ok(result.map_err(Box::new)),
                Err(_) => break,
            }
        }
        // Whoever is in the way now is named.
        for _ in 0..LEASE_TRIES {
            let named = budgets.acquire(self.request, charges, worst, Utc::now, false);
            if let Ok(result) = tokio::time::timeout(LEASE_WAIT, named).await {
                return Ok(result.map_err(Box::new));
            }
        }
        Err(Short { reject: state_unavailable(), other_target_may_do: false, outdated: false })
    }

    fn short(&self, refusal: &Refusal, worst: NanoUsd, call: &Call) -> Short {
        let outdated = !refusal.store_failed && !self.is_in_force();
        if !outdated {
            if !refusal.store_failed {
                let labels = [refusal.kind.as_str()];
                self.gateway.metrics.budget_refused.with_label_values(&labels).inc();
            }
            self.tell(refusal, worst);
        }
        let own = match refusal.kind {
            ScopeKind::Provider => true,
            ScopeKind::Model => refusal.id != call.model.name,
            _ => false,
        };
        let mut reject = refused(refusal, worst);
        if worst::adds_input(call) && !refusal.store_failed {
            reject.message.push_str(ADDED_INPUT);
        }
        Short { reject, other_target_may_do: own && !refusal.store_failed, outdated }
    }

    /// A budget is used up before the last nano-dollar is spent: by the request that doesn't fit
    /// any more. One that would hardly fit an untouched budget says nothing about it.
    fn tell(&self, refusal: &Refusal, worst: NanoUsd) {
        let lowest = self.snapshot.alerts.budget_at.first();
        let far = lowest.is_some_and(|share| refusal.spent.reaches(*share, refusal.cap));
        if far && !refusal.only_holds && !refusal.store_failed {
            self.gateway.alerts.raise(Alert::budget_refused(refusal, worst), Utc::now());
        }
    }
}

/// The least that is held for an attempt with these bounds.
fn least(worst: &Worst<'_>, clamps: bool) -> NanoUsd {
    if clamps { worst.capped(useful(worst)) } else { worst.cost() }
}

/// The shortest answer that is worth asking for, in tokens.
fn useful(worst: &Worst<'_>) -> u64 {
    USEFUL_TOKENS.max(worst.asked() / USEFUL_PART)
}

/// How long a request may wait for the store to extend its lease, even with `admission.wait: 0s`: as
/// long as the store itself waits for a locked database, …
const LEASE_WAIT: Duration = Duration::from_secs(2);

/// … and once more, since the store may have found out meanwhile that it fails: then it isn't asked,
/// and `state.on_failure` decides.
const LEASE_TRIES: usize = 2;

fn unbounded(candidate: &Candidate, why: Unbounded) -> Short {
    let (param, message) = match why {
        Unbounded::Output => (
            "max_tokens",
            format!(
                "nothing bounds the output of `{}`, so nothing says what the request can cost. Send an output cap (max_tokens), where the endpoint knows one; the operator can set max_output_tokens on the model.",
                candidate.model.name
            ),
        ),
        Unbounded::Input => (
            "max_tool_calls",
            format!(
                "a budget is set, and nothing bounds how much `{}` reads for its answer. Send max_tool_calls, where its provider knows that; the operator can set unseen_input_tokens on the model.",
                candidate.model.name
            ),
        ),
        Unbounded::Service => (
            "service_tier",
            format!(
                "a budget is set, and nothing says what `{}` costs at this service_tier. Leave service_tier out.",
                candidate.model.name
            ),
        ),
        Unbounded::OtherModel => (
            "tools",
            "a tool lets another model work for the answer, which the gateway can neither choose nor price. Leave it out.".to_owned(),
        ),
        Unbounded::Pictures => (
            "tools",
            "a budget is set, and nothing says what the pictures of the image_generation tool can cost. Leave the tool out, or ask the images endpoint.".to_owned(),
        ),
    };
    let reject = Reject::new(Reason::InvalidRequest, message).param(param);
    Short { reject, other_target_may_do: why == Unbounded::Service, outdated: false }
}

fn state_unavailable() -> Reject {
    let message = "the gateway can't write its state file, and budgets fail closed. Tell the gateway's operator.";
    Reject::new(Reason::StateUnavailable, message).retry_after(Duration::from_secs(5))
}

fn refused(refusal: &Refusal, worst: NanoUsd) -> Reject {
    if refusal.store_failed {
        return state_unavailable();
    }
    let whose = refusal.kind.whose(&refusal.id);
    let until = match refusal.window_end {
        Some(end) => format!("The window ends at {}.", end.to_rfc3339()),
        None => "It is a total: it does not renew.".to_owned(),
    };
    let elsewhere = match refusal.elsewhere {
        NanoUsd(0) => String::new(),
        elsewhere => format!(", reserved ${elsewhere} for other processes on the state file"),
    };
    let message = format!(
        "the budget of {whose} has too little left for this request, which can cost up to ${worst}: cap ${} per {}, spent ${}, held ${} for running requests{elsewhere}. {until} Ask for less output, or have the budget raised.",
        refusal.cap, refusal.per, refusal.spent, refusal.held
    );
    let reject = Reject::new(Reason::BudgetExceeded, message)
        .header("x-tollbar-budget-scope", refusal.kind.as_str())
        .header("x-tollbar-budget-cap-usd", refusal.cap.to_string())
        .header("x-tollbar-budget-spent-usd", refusal.spent.to_string())
        .header("x-tollbar-budget-held-usd", refusal.held.to_string());
    match refusal.window_end {
        Some(end) => reject.header("x-tollbar-budget-resets", end.to_rfc3339()),
        None => reject,
    }
}
