//! Which targets a request may try, in which order. Never a dearer tier, never a model that the
//! key may not use.

pub mod health;

use crate::config::{
    self,
    snapshot::{Model, Snapshot, Target},
};
use crate::keys::Caller;
use crate::units::Dialect;
use health::HealthTable;
use std::sync::Arc;
use std::time::Instant;

/// A target that may be tried, and the model that brought it in.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The model asked for, or one of its fallbacks.
    pub model: Arc<Model>,
    /// Where it is served.
    pub target: Arc<Target>,
}

/// What a request says about where it may go. The functions are asked where there is a choice.
pub struct Asked<A, E> {
    /// The dialect that it speaks.
    pub dialect: Dialect,
    /// Stands for the conversation.
    pub affinity: A,
    /// Whether the prompt may have more than so many tokens.
    pub exceeds: E,
}

/// The targets of `model` and of its fallbacks that speak `dialect`, in the order of trying.
///
/// The same conversation goes to the same target of the model while that is healthy, so that the
/// provider's prompt cache stays warm, and over many conversations each target gets its share by
/// weight. Targets over the model's latency budget come after its others. The fallbacks follow,
/// cheapest first unless the configuration keeps its own order. One that would be in a dearer tier
/// for so long a prompt is left out.
pub fn order(
    snapshot: &Snapshot,
    caller: &Caller,
    model: &Arc<Model>,
    asked: Asked<impl FnOnce() -> u64, impl Fn(u64) -> bool>,
    health: &HealthTable,
    now: Instant,
) -> Vec<Candidate> {
    let usable = |target: &Target| target.dialect == asked.dialect && target.tier <= model.tier;
    let mut plan = Vec::new();
    for (owner, target) in config::candidates(snapshot, model) {
        let allowed = owner.name == model.name || caller.models.allows(&owner.name);
        let rolled_back =
            target.canary.is_some_and(|rule| health.of(&target.id).is_rolled_back(&rule));
        if rolled_back || !(allowed && usable(target)) {
            continue;
        }
        // Its own targets are what the model costs; a fallback is what nobody asked for.
        let fallback = owner.name != model.name;
        let above = fallback.then(|| config::dearer_above(snapshot, model, target)).flatten();
        if above.is_some_and(&asked.exceeds) {
            continue;
        }
        let owner =
            if owner.name == model.name { Some(model) } else { snapshot.models.get(&owner.name) };
        if let Some(owner) = owner {
            plan.push(Candidate { model: owner.clone(), target: target.clone() });
        }
    }
    let own = plan.iter().take_while(|candidate| candidate.model.name == model.name).count();
    if let Some(own) = plan.get_mut(..own).filter(|own| own.len() > 1) {
        let affinity = (asked.affinity)();
        own.sort_by(|a, b| score(&b.target, affinity).total_cmp(&score(&a.target, affinity)));
        if let Some(budget) = model.latency_budget {
            own.sort_by_cached_key(|candidate| {
                let p95 = health.of(&candidate.target.id).first_token_p95(now);
                p95.is_some_and(|p95| p95 > budget)
            });
        }
    }
    plan
}

/// Weighted rendezvous hashing: the greatest score wins, and taking a target away moves only the
/// conversations that were on it. (Wang & Ravishankar 1998 for equal weights; the logarithm makes
/// the share of wins proportional to the weight.)
fn score(target: &Target, affinity: u64) -> f64 {
    let hash = mix(affinity ^ hash(target.id.as_bytes()));
    // 53 bits, so that the fraction is exact and lies strictly between 0 and 1.
    #[allow(clippy::cast_precision_loss)]
    let fraction = ((hash >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    -f64::from(target.weight) / fraction.ln()
}

/// Stands for a conversation, the same in every process and release: FNV-1a, over words of eight
/// bytes, which a conversation of megabytes is worth, and then over what is left of them.
pub fn hash(bytes: &[u8]) -> u64 {
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let (words, rest) = bytes.as_chunks::<8>();
    // The multiplication carries upwards only: what it has put there is brought down again.
    let word = |hash: u64, word: &[u8; 8]| {
        let mixed = (hash ^ u64::from_le_bytes(*word)).wrapping_mul(PRIME);
        mixed ^ (mixed >> 32)
    };
    let hash = words.iter().fold(0xcbf2_9ce4_8422_2325, word);
    rest.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME))
}

/// Spreads every input bit over all output bits (the finaliser of SplitMix64).
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::cast_precision_loss)]
mod tests {
    use super::*;
    use crate::catalog::Price;
    use crate::units::Tier;

    fn target(id: &str, weight: u32) -> Target {
        Target {
            habits: crate::catalog::Habits::default(),
            id: id.into(),
            provider: "p".into(),
            dialect: Dialect::OpenAi,
            model: id.into(),
            weight,
            canary: None,
            price: Price::free(),
            card: None,
            tier: Tier(0),
        }
    }

    fn winner(targets: &[Target], key: u64) -> &str {
        let best = targets.iter().max_by(|a, b| score(a, key).total_cmp(&score(b, key)));
        &best.unwrap().id
    }

    #[test]
    fn weights_hold_within_five_percent() {
        let targets = [target("a", 1), target("b", 2), target("c", 1)];
        let mut wins = std::collections::HashMap::new();
        for n in 0..10_000_u32 {
            *wins.entry(winner(&targets, hash(&n.to_le_bytes()))).or_insert(0_u32) += 1;
        }
        for (id, share) in [("a", 2500.0), ("b", 5000.0), ("c", 2500.0)] {
            let got = f64::from(wins[id]);
            assert!((got - share).abs() / share < 0.05, "{id}: {got} of {share}");
        }
    }

    #[test]
    fn taking_a_target_away_moves_only_its_conversations() {
        let three = [target("a", 1), target("b", 1), target("c", 1)];
        let two = [target("a", 1), target("b", 1)];
        for n in 0..1000_u32 {
            let key = hash(&n.to_le_bytes());
            let before = winner(&three, key);
            if before != "c" {
                assert_eq!(winner(&two, key), before);
            }
        }
    }
}
