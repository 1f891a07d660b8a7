//! Models: targets with their prices, tiers and fallbacks.

use super::check;
use super::file::{self, Fallbacks, File, Order, Weight};
use super::prices;
use super::problem::{Place, Report};
use super::read::At;
use super::resolve::{at_least, missing, scope};
use super::snapshot::{Canary, Model, Provider, Target, TierDef};
use super::suggest::{self, shown};
use super::text::Texts;
use crate::catalog::{Catalog, Habits, ModelCard};
use crate::units::Tier;
use ahash::AHashMap;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

/// Where a model's parts are looked up.
#[derive(Clone, Copy)]
pub(crate) struct Places<'a> {
    pub file: &'a File,
    pub providers: &'a AHashMap<String, Arc<Provider>>,
    pub catalog: &'a Catalog,
    pub tiers: &'a [TierDef],
}

/// A model whose fallbacks are still as written.
pub(crate) struct Draft<'a> {
    pub model: Model,
    pub place: &'a Place,
    pub written: &'a file::Model,
}

impl Draft<'_> {
    /// The blended price of its cheapest target that gets traffic.
    pub(crate) fn cheapest(&self) -> u64 {
        self.used().map(|t| t.price.blended()).min().unwrap_or(0)
    }

    /// Targets that get traffic.
    pub(crate) fn used(&self) -> impl Iterator<Item = &Arc<Target>> {
        self.model.targets.iter().filter(|target| target.weight > 0)
    }
}

pub(crate) fn resolve(
    places: Places<'_>,
    texts: Texts<'_>,
    report: &mut Report,
) -> AHashMap<String, Arc<Model>> {
    let named = places.file.models.as_ref().map(|m| m.0.as_slice()).unwrap_or_default();
    let mut drafts = Vec::new();
    for (name, at) in named {
        if name.is_empty() || name.contains('*') || name.chars().any(|c| c.is_control() || c == ' ')
        {
            let fix = "Names have no spaces and no `*`";
            report.problem(&at.place, "not a name for a model", fix);
        }
        if let Some(model) = draft(name, &at.value, places, texts, report) {
            drafts.push(Draft { model, place: &at.place, written: &at.value });
        }
    }
    for draft in &drafts {
        check::targets(draft, places.tiers, report);
    }
    let names: HashSet<&str> = named.iter().map(|(name, _)| name.as_str()).collect();
    let fallbacks: Vec<Vec<String>> = drafts
        .iter()
        .map(|draft| fallbacks(draft, &drafts, &names, places.tiers, report))
        .collect();
    drafts
        .into_iter()
        .zip(fallbacks)
        .map(|(mut draft, fallbacks)| {
            draft.model.fallbacks = fallbacks;
            (draft.model.name.clone(), Arc::new(draft.model))
        })
        .collect()
}

fn draft(
    name: &str,
    written: &file::Model,
    places: Places<'_>,
    texts: Texts<'_>,
    report: &mut Report,
) -> Option<Model> {
    let fix = "Write `targets: [ { provider: …, model: … } ]`";
    let scope = scope(written.limits.as_ref(), written.budgets.as_deref(), report);
    let millisecond = Duration::from_millis(1);
    for raw in [&written.first_token_timeout, &written.latency_budget].into_iter().flatten() {
        at_least(raw, millisecond, report);
    }
    let Some(listed) = &written.targets else {
        if !written.has("targets") {
            missing(&written.place, "targets", fix, report);
        }
        return None;
    };
    if listed.value.is_empty() {
        report.problem(&listed.place, "the list of targets is empty", fix);
        return None;
    }
    let mut targets: Vec<Target> =
        listed.value.iter().filter_map(|t| target(t, places, texts, report)).collect();
    if targets.len() < listed.value.len() {
        return None;
    }
    shares(&mut targets, listed, report);
    let targets: Vec<Arc<Target>> = targets.into_iter().map(Arc::new).collect();
    let cards = || targets.iter().filter_map(|t| t.card.as_ref());
    let cheapest = targets.iter().filter(|t| t.weight > 0).map(|t| t.tier).min();
    Some(Model {
        name: name.to_owned(),
        fallbacks: Vec::new(),
        fallback_written: written.fallback_order == Some(Order::Written),
        max_output_tokens: written.max_output_tokens.map(|n| n.0),
        // The largest: only what certainly fits no target is refused.
        context_window: written
            .context_window
            .map(|n| n.0)
            .or_else(|| cards().filter_map(|card| card.context_window).max()),
        unseen_input_tokens: written.unseen_input_tokens.map(|n| n.0),
        first_token_timeout: written.first_token_timeout.as_ref().map(|t| t.value),
        latency_budget: written.latency_budget.as_ref().map(|t| t.value),
        tier: cheapest.unwrap_or(Tier(0)),
        scope,
        targets,
    })
}

/// Turns weights in percent into weights beside the others'.
fn shares(targets: &mut [Target], listed: &At<Vec<file::Target>>, report: &mut Report) {
    let percent = |written: &file::Target| match written.weight.as_ref().map(|w| w.value) {
        Some(Weight::Percent(percent)) => Some(percent),
        _ => None,
    };
    let taken: u32 = listed.value.iter().filter_map(percent).sum();
    if taken == 0 {
        return;
    }
    let parts: u32 = targets
        .iter()
        .zip(&listed.value)
        .filter(|(_, written)| percent(written).is_none())
        .map(|(target, _)| target.weight)
        .sum();
    if taken >= 100 || parts == 0 {
        let fix =
            "Leave a share to targets with plain weights: percentages must come to less than 100";
        report.problem(&listed.place, "the percentages leave nothing to the other targets", fix);
        return;
    }
    // Plain weights share what the percentages leave: 100 % becomes `parts` × 100.
    for (target, written) in targets.iter_mut().zip(&listed.value) {
        target.weight = match percent(written) {
            Some(percent) => percent * parts,
            None => target.weight * (100 - taken),
        };
    }
}

fn target(
    written: &file::Target,
    places: Places<'_>,
    texts: Texts<'_>,
    report: &mut Report,
) -> Option<Target> {
    for key in ["provider", "model"] {
        if !written.has(key) {
            missing(&written.place, key, "Write `{ provider: …, model: … }`", report);
        }
    }
    let name = written.provider.as_ref().and_then(|raw| known_provider(raw, places.file, report));
    let model = written.model.as_ref().and_then(|raw| upstream_id(raw, texts, report));
    if let Some(weight) = written.weight.as_ref().filter(|w| w.value == Weight::Parts(0)) {
        let fix = "Leave `weight` out for 1, or remove the target";
        report.warning(&weight.place, "weight 0: this target never gets a request", fix);
    }
    let own = written.price.as_ref().map(|p| prices::of_target(&p.value, &p.place, report));
    let (name, model) = (name?, model?);
    // A provider that is wrong itself has been reported.
    let provider = places.providers.get(name)?;
    let card = card(places.catalog, provider, &model);
    if let Some(card) = &card {
        retirement(written, card, texts, report);
    }
    let price = match (own, &card) {
        (Some(own), _) => own?,
        (None, Some(card)) if card.price.is_known() => card.price.clone(),
        (None, _) if written.has("price") => return None,
        (None, _) => {
            unpriced(&written.place, provider, &model, places.catalog, report);
            return None;
        }
    };
    Some(Target {
        id: format!("{name}/{model}"),
        provider: name.to_owned(),
        habits: Habits::of(&model).at(&provider.host, provider.catalog.as_deref(), &model),
        dialect: provider.dialect,
        weight: match written.weight.as_ref().map(|w| w.value) {
            None => 1,
            Some(Weight::Parts(parts)) => parts,
            // Replaced by `shares`, once the others' weights are known.
            Some(Weight::Percent(percent)) => percent,
        },
        canary: written.rollback_on.as_ref().map(|rule| Canary {
            error_rate: rule.error_rate.map_or(50_000, |share| share.0),
            window: rule.window.as_ref().map_or(Duration::from_secs(300), |at| at.value),
        }),
        tier: check::tier_of(price.blended(), places.tiers),
        price,
        card,
        model,
    })
}

/// Warns of a model that its provider has taken away, or will within 60 days.
fn retirement(written: &file::Target, card: &ModelCard, texts: Texts<'_>, report: &mut Report) {
    let today = texts.env.now().date_naive();
    let Some(date) = card.deprecation else { return };
    let verb = match (date - today).num_days() {
        ..=0 => "was retired",
        1..=60 => "will be retired",
        _ => return,
    };
    let message = format!("`{}` {verb} by its provider on {date}", card.id);
    report.warning(
        &written.place,
        message,
        "Name its successor, or set its price if it is still served",
    );
}

/// What the catalogue knows of a provider's model: its own prices first, by the name that the
/// configuration gives the provider.
pub(crate) fn card(catalog: &Catalog, provider: &Provider, model: &str) -> Option<Arc<ModelCard>> {
    catalog.own(&provider.name, model).or_else(|| catalog.find(provider.catalog.as_deref()?, model))
}

fn unpriced(at: &Place, provider: &Provider, model: &str, catalog: &Catalog, report: &mut Report) {
    let ids: Vec<&str> =
        provider.catalog.as_deref().map(|name| catalog.ids(name).collect()).unwrap_or_default();
    let near = suggest::nearest(model, ids.iter().copied());
    let mean =
        near.map(|id| format!("Did you mean `{id}`? Or write ")).unwrap_or_else(|| "Write ".into());
    report.problem(
        &at.key("price"),
        format!("no price is known for `{}` at `{}`", shown(model), provider.name),
        format!("{mean}`price: {{ input: …, output: … }}` in US dollars per million tokens, or `price: free` for a self-hosted model"),
    );
}

fn known_provider<'a>(raw: &'a At<String>, file: &'a File, report: &mut Report) -> Option<&'a str> {
    let named = file.providers.as_ref().map(|p| p.0.as_slice()).unwrap_or_default();
    if named.iter().any(|(name, _)| *name == raw.value) {
        return Some(&raw.value);
    }
    let fix = suggest::fix(&raw.value, named.iter().map(|(name, _)| name.as_str()));
    report.problem(&raw.place, format!("unknown provider `{}`", shown(&raw.value)), fix);
    None
}

/// The id becomes part of a path upstream and of labels here.
fn upstream_id(raw: &At<String>, texts: Texts<'_>, report: &mut Report) -> Option<String> {
    let id = texts.text(raw, report)?;
    let bad = |c: char| c.is_control() || c.is_whitespace() || "?#%\\".contains(c);
    if id.contains(bad) || id.split('/').any(|part| part.is_empty() || part == "." || part == "..")
    {
        let fix = "Write the provider's own id";
        report.problem(&raw.place, "not the id of a model", fix);
        return None;
    }
    Some(id)
}

/// The names of a model's fallbacks, in the order in which they are tried.
fn fallbacks(
    draft: &Draft<'_>,
    drafts: &[Draft<'_>],
    names: &HashSet<&str>,
    tiers: &[TierDef],
    report: &mut Report,
) -> Vec<String> {
    let mut chosen: Vec<&Draft<'_>> = match &draft.written.fallbacks {
        None => return Vec::new(),
        Some(Fallbacks::Auto) => drafts.iter().filter(|other| check::suits(draft, other)).collect(),
        Some(Fallbacks::Listed(listed)) => {
            let mut chosen: Vec<&Draft<'_>> = Vec::new();
            for raw in listed {
                let Some(found) = listed_fallback(raw, draft, drafts, names, report) else {
                    continue;
                };
                if chosen.iter().any(|other| other.model.name == found.model.name) {
                    report.problem(
                        &raw.place,
                        format!("`{}` is listed twice", shown(&raw.value)),
                        "Write it once",
                    );
                    continue;
                }
                check::fallback(raw, draft, found, tiers, report);
                chosen.push(found);
            }
            chosen
        }
    };
    if !draft.model.fallback_written {
        chosen.sort_by_key(|other| other.cheapest());
    }
    chosen.into_iter().map(|other| other.model.name.clone()).collect()
}

fn listed_fallback<'d, 'a>(
    raw: &At<String>,
    draft: &Draft<'_>,
    drafts: &'d [Draft<'a>],
    names: &HashSet<&str>,
    report: &mut Report,
) -> Option<&'d Draft<'a>> {
    let name = raw.value.as_str();
    if name == draft.model.name {
        let fix = "Leave it out: its targets are tried in turn anyway";
        report.problem(&raw.place, "a model cannot be its own fallback", fix);
        return None;
    }
    if !names.contains(name) {
        let others = names.iter().copied().filter(|other| *other != draft.model.name);
        let fix = suggest::fix(name, others.collect::<Vec<_>>());
        report.problem(&raw.place, format!("unknown model `{}`", shown(name)), fix);
        return None;
    }
    drafts.iter().find(|other| other.model.name == name)
}
