//! The order in which targets are tried, for routing and for people.

use super::check::{self, amount, dollars, multiple};
use super::snapshot::{Model, Snapshot, Target};
use crate::catalog::Price;
use crate::units::NanoUsd;
use std::fmt::Write;
use std::sync::Arc;

/// What may serve a request for `model`, in order: its targets as written, then its fallbacks'
/// targets, cheapest first unless `fallback_order: written`. Each comes with the model it
/// belongs to. Targets of weight 0 are left out, and fallbacks that speak no dialect of the model's
/// own targets: nothing is translated, and what only another model can answer is not asked of this
/// one. Weights and health are for routing to apply.
pub fn candidates<'s>(
    snapshot: &'s Snapshot,
    model: &'s Model,
) -> Vec<(&'s Model, &'s Arc<Target>)> {
    let fallbacks = model.fallbacks.iter().filter_map(|name| snapshot.models.get(name));
    let spoken = |target: &Target| used(model).any(|(_, own)| own.dialect == target.dialect);
    let mut after: Vec<_> =
        fallbacks.flat_map(|other| used(other)).filter(|(_, target)| spoken(target)).collect();
    if !model.fallback_written {
        after.sort_by_key(|(_, target)| target.price.blended());
    }
    used(model).chain(after).collect()
}

fn used(model: &Model) -> impl Iterator<Item = (&Model, &Arc<Target>)> {
    let used = model.targets.iter().filter(|target| target.weight > 0);
    used.map(move |target| (model, target))
}

/// The tokens of a prompt above which a target is in a dearer tier than the model that was asked
/// for is then, by its cheapest own target: some prices have steps. `None`: there is no such length.
pub fn dearer_above(snapshot: &Snapshot, model: &Model, target: &Target) -> Option<u64> {
    let tier = |blended| check::tier_of(blended, &snapshot.tiers);
    let mut steps: Vec<u64> =
        target.price.steps.iter().map(|step| step.above_input_tokens).collect();
    steps.sort_unstable();
    steps.into_iter().find(|step| {
        let length = step.saturating_add(1);
        let own = used(model).map(|(_, own)| own.price.blended_at(length)).min();
        own.is_some_and(|own| tier(target.price.blended_at(length)) > tier(own))
    })
}

/// What `tollbar check` prints after the warnings: for each model its candidates with price
/// and tier, and the worst multiple of its price that a fallback can cause.
pub fn plan(snapshot: &Snapshot) -> String {
    let mut models: Vec<&Arc<Model>> = snapshot.models.values().collect();
    models.sort_by_key(|model| &model.name);
    let mut out = String::new();
    for model in models {
        // Writing to a string cannot fail.
        let _ = one_model(&mut out, snapshot, model);
    }
    out
}

fn one_model(out: &mut String, snapshot: &Snapshot, model: &Model) -> std::fmt::Result {
    let tier = |place: u8| snapshot.tiers.get(usize::from(place)).map_or("?", |t| t.name.as_str());
    write!(out, "{} (tier {}", model.name, tier(model.tier.0))?;
    for (limit, words) in
        [(model.context_window, "window"), (model.max_output_tokens, "output at most")]
    {
        if let Some(tokens) = limit {
            write!(out, ", {words} {tokens}")?;
        }
    }
    writeln!(out, ")")?;
    let candidates = candidates(snapshot, model);
    let width = candidates.iter().map(|(_, t)| t.id.chars().count()).max().unwrap_or(0);
    for (place, (owner, target)) in candidates.iter().enumerate() {
        let number = place + 1;
        write!(
            out,
            "  {number:>2}. {:width$}  {}  {}",
            target.id,
            priced(&target.price),
            tier(target.tier.0)
        )?;
        if owner.name != model.name {
            write!(out, "  fallback {}", owner.name)?;
        } else if model.targets.len() > 1 {
            write!(out, "  weight {}", target.weight)?;
        }
        if let Some(above) = dearer_above(snapshot, model, target) {
            write!(out, "  (not for prompts of more than {above} tokens: dearer there)")?;
        }
        if let Some(date) = target.card.as_ref().and_then(|card| card.deprecation) {
            write!(out, "  (retirement {date})")?;
        }
        writeln!(out)?;
    }
    if let Some(worst) = worst_multiple(snapshot, &candidates, model) {
        writeln!(out, "  worst price multiple of a fallback: {worst}")?;
    }
    Ok(())
}

/// The dearest fallback target against the model's cheapest own one, at any length of prompt for
/// which it may be tried.
fn worst_multiple(
    snapshot: &Snapshot,
    candidates: &[(&Model, &Arc<Target>)],
    model: &Model,
) -> Option<String> {
    let (own, other): (Vec<_>, Vec<_>) =
        candidates.iter().partition(|(owner, _)| owner.name == model.name);
    let steps = candidates.iter().flat_map(|(_, target)| &target.price.steps);
    let lengths: Vec<u64> =
        steps.map(|step| step.above_input_tokens.saturating_add(1)).chain([1]).collect();
    let mut worst: Option<(u64, u64)> = None;
    for (_, target) in other {
        let most = dearer_above(snapshot, model, target).unwrap_or(u64::MAX);
        for length in lengths.iter().filter(|length| **length <= most) {
            let dear = target.price.blended_at(*length);
            let cheap = own.iter().map(|(_, t)| t.price.blended_at(*length)).min()?;
            let more = |(d, c): (u64, u64)| {
                u128::from(dear) * u128::from(c) > u128::from(d) * u128::from(cheap)
            };
            if worst.is_none_or(more) {
                worst = Some((dear, cheap));
            }
        }
    }
    worst.map(|(dear, cheap)| multiple(dear, cheap))
}

/// `$0.15 in / $0.60 out per million`, or the units that the model is billed by.
fn priced(price: &Price) -> String {
    if price.free {
        return "free".to_owned();
    }
    let mut parts = Vec::new();
    if price.input > 0 || price.output > 0 {
        let (input, output) = (dollars(price.input), dollars(price.output));
        parts.push(format!("${input} in / ${output} out per million"));
    }
    let units = [
        ("request", price.per_request),
        ("image", price.per_image),
        ("second", price.per_second.filter(|_| price.input == 0)),
        ("character", price.per_character),
    ];
    let units = units
        .into_iter()
        .filter_map(|(unit, each)| Some((unit, each.filter(|n| *n > NanoUsd(0))?)));
    parts.extend(units.map(|(unit, each)| format!("${} per {unit}", amount(each))));
    parts.join(" + ")
}
