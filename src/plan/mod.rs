//! Which targets a request may try, in which order. Never a dearer tier, never a model that the
//! key may not use.

use crate::config::snapshot::{Model, Snapshot, Target};
use crate::keys::Caller;
use crate::units::Dialect;
use std::sync::Arc;

/// A target that may be tried, and the model that brought it in.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The model asked for, or one of its fallbacks.
    pub model: Arc<Model>,
    /// Where it is served.
    pub target: Arc<Target>,
}

/// The targets of `model` and of its fallbacks that speak `dialect`, in the order of trying.
///
/// `draw` is a random number: it picks the first target by weight. The others of the model
/// follow, then the fallbacks, cheapest first unless the configuration keeps its own order.
pub fn order(
    snapshot: &Snapshot,
    caller: &Caller,
    model: &Arc<Model>,
    dialect: Dialect,
    draw: u64,
) -> Vec<Candidate> {
    let usable = |target: &Arc<Target>| {
        target.dialect == dialect && target.weight > 0 && target.tier <= model.tier
    };
    let mut own: Vec<_> = model.targets.iter().filter(|target| usable(target)).cloned().collect();
    if let Some(first) = pick(&own, draw) {
        let chosen = own.remove(first);
        own.insert(0, chosen);
    }
    let mut plan: Vec<Candidate> =
        own.into_iter().map(|target| Candidate { model: model.clone(), target }).collect();
    for name in &model.fallbacks {
        let Some(fallback) = snapshot.models.get(name).filter(|_| caller.models.allows(name)) else {
            continue;
        };
        let targets = fallback.targets.iter().filter(|target| usable(target));
        plan.extend(
            targets.map(|target| Candidate { model: fallback.clone(), target: target.clone() }),
        );
    }
    plan
}

/// The index that `draw` falls on, each target taking a share of its weight.
fn pick(targets: &[Arc<Target>], draw: u64) -> Option<usize> {
    let total: u64 = targets.iter().map(|target| u64::from(target.weight)).sum();
    let mut at = draw.checked_rem(total)?;
    targets.iter().position(|target| {
        let weight = u64::from(target.weight);
        let here = at < weight;
        at = at.saturating_sub(weight);
        here
    })
}
