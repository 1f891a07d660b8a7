//! Rules that look at more than one part of the configuration.

use super::callers::Around;
use super::models::Draft;
use super::problem::{Place, Report};
use super::read::At;
use super::snapshot::{Admin, Budget, Listener, Scope, Target, TierDef};
use super::suggest::shown;
use super::text::Found;
use super::{file, whole_file};
use crate::catalog::Price;
use crate::keys::Profile;
use crate::units::{NanoUsd, Tier};
use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;

/// No two sockets on one address; port 0 is always free.
pub(crate) fn addresses(listeners: &[At<Listener>], admin: &At<Admin>, report: &mut Report) {
    let mut seen: Vec<SocketAddr> = Vec::new();
    for listener in listeners {
        let address = listener.value.address;
        if seen.iter().any(|other| clash(address, *other)) {
            let message = format!("{address} is already listened on");
            report.problem(&listener.place, message, "Give each listener its own port");
        }
        seen.push(address);
    }
    let own = admin.value.address;
    if let Some(other) = seen.iter().find(|other| clash(own, **other)) {
        let message = format!("the admin address {own} clashes with the listener {other}");
        report.problem(&admin.place, message, "Write another port under `admin.address`");
    }
}

fn clash(a: SocketAddr, b: SocketAddr) -> bool {
    let any = a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() != 0 && a.port() == b.port() && (any || a.ip() == b.ip())
}

/// The admin token guards every key and budget.
pub(crate) fn admin_token(found: &Found, at: &Place, report: &mut Report) {
    let token = found.secret.expose();
    let fix = "Make one with `openssl rand -hex 32`";
    if token.len() < 32 {
        report.problem(at, "the admin token is shorter than 32 characters", fix);
        return;
    }
    let different: HashSet<char> = token.chars().collect();
    let lower = token.to_ascii_lowercase();
    let known = ["sk-1234", "changeme", "change-me", "password", "secret", "your-token", "xxxx"];
    let runs =
        token.as_bytes().windows(8).any(|w| w.windows(2).all(|p| p[1] == p[0].wrapping_add(1)));
    let repeats = (1..=token.len() / 2)
        .any(|n| token.as_bytes().chunks(n).all(|c| token.as_bytes().starts_with(c)));
    if different.len() < 8 || runs || repeats || known.iter().any(|word| lower.contains(word)) {
        report.problem(at, "the admin token is easy to guess", fix);
    } else if found.inline {
        let fix = "Write token: ${TOLLBAR_ADMIN_TOKEN}";
        report.warning(at, "the token stands in this file in plain text", fix);
    }
}

/// The tiers as written, or the three of the documentation.
pub(crate) fn tiers(written: Option<&[file::Tier]>, report: &mut Report) -> Vec<TierDef> {
    let Some(written) = written else {
        let tier = |name: &str, max_blended| TierDef { name: name.into(), max_blended };
        return vec![
            tier("cheap", Some(1_000_000)),
            tier("standard", Some(8_000_000)),
            tier("premium", None),
        ];
    };
    if written.is_empty() || written.len() > 100 {
        let fix = "Write 1 to 100 tiers, or leave `tiers` out";
        report.problem(&whole_file().key("tiers"), "not a list of tiers", fix);
    }
    let mut out: Vec<TierDef> = Vec::new();
    for (i, tier) in written.iter().enumerate() {
        let last = i + 1 == written.len();
        let ceiling = tier.max_blended.as_ref().map(|max| max.value.0);
        let Some(name) = &tier.name else {
            if !tier.has("name") {
                report.problem(&tier.place.key("name"), "missing", "Write `name: cheap`");
            }
            continue;
        };
        if out.iter().any(|other| other.name == name.value) {
            report.problem(&name.place, "a second tier of this name", "Give each its own");
        }
        match (last, tier.has("max_blended")) {
            (true, true) => {
                let fix = "Leave `max_blended` out of the last tier, so that every price has one";
                report.problem(&tier.place, "the last tier has a ceiling", fix);
            }
            (false, false) => {
                let fix = "Write `max_blended`; only the last tier has no ceiling";
                report.problem(&tier.place, "a tier without a ceiling before the last", fix);
            }
            _ => {}
        }
        if ceiling.is_some() && out.last().is_some_and(|before| before.max_blended >= ceiling) {
            report.problem(
                &tier.place,
                "not dearer than the tier before it",
                "Write tiers in ascending order",
            );
        }
        out.push(TierDef { name: name.value.clone(), max_blended: ceiling });
    }
    out
}

/// The first tier whose ceiling holds the price.
pub(crate) fn tier_of(blended: u64, tiers: &[TierDef]) -> Tier {
    let place = tiers.iter().position(|tier| tier.max_blended.is_none_or(|max| blended <= max));
    let place = place.unwrap_or(tiers.len().saturating_sub(1));
    Tier(u8::try_from(place).unwrap_or(u8::MAX))
}

/// Rules inside one model.
pub(crate) fn targets(draft: &Draft<'_>, tiers: &[TierDef], report: &mut Report) {
    let Some(listed) = &draft.written.targets else { return };
    let model = &draft.model;
    if draft.used().next().is_none() {
        let fix = "Give at least one target a weight of 1, or remove the model";
        report.problem(&listed.place, "all weights are zero: nothing serves this model", fix);
    }
    let cheapest = draft.used().min_by_key(|t| t.price.blended());
    for (i, target) in model.targets.iter().enumerate() {
        let at = Place {
            line: listed.value.get(i).and_then(|t| t.place.line),
            path: format!("{}[{i}]", listed.place.path),
        };
        if model.targets[..i].iter().any(|other| other.id == target.id) {
            let message = format!("`{}` is listed twice", target.id);
            report.problem(&at, message, "Write it once, with the sum of the weights");
        }
        if let Some(cheapest) = cheapest.filter(|c| target.weight > 0 && target.tier > c.tier) {
            let message = format!(
                "`{}` ({}) is in a dearer tier than `{}` ({}): {} the price",
                target.id,
                priced(target, tiers),
                cheapest.id,
                priced(cheapest, tiers),
                multiple(target.price.blended(), cheapest.price.blended()),
            );
            let fix = "Make it a model of its own; a model's targets share one tier";
            report.problem(&at, message, fix);
        }
    }
    let unbounded = |t: &&Arc<Target>| {
        !t.price.free
            && t.price.output > 0
            // What is read aloud is bounded by its text.
            && t.card
                .as_ref()
                .is_none_or(|c| c.max_output_tokens.is_none() && c.mode != "audio_speech")
    };
    if model.max_output_tokens.is_none()
        && let Some(target) = draft.used().find(unbounded)
    {
        let message = format!(
            "nothing bounds the output of `{}`: a request that names no limit holds the whole budget or is refused",
            target.id
        );
        report.warning(draft.place, message, "Write `max_output_tokens: 4096`");
    }
    let researching = |t: &&Arc<Target>| !t.price.free && t.habits.researches;
    if model.unseen_input_tokens.is_none()
        && let Some(target) = draft.used().find(researching)
    {
        let message = format!(
            "nothing bounds what `{}` reads: under a budget, requests without max_tool_calls are refused",
            target.id
        );
        report.warning(
            draft.place,
            message,
            "Write `unseen_input_tokens: 2000000`, if you agree to pay for so many",
        );
    }
}

/// A fallback goes sideways or down. There is no switch for it.
pub(crate) fn fallback(
    raw: &At<String>,
    from: &Draft<'_>,
    to: &Draft<'_>,
    tiers: &[TierDef],
    report: &mut Report,
) {
    let dearest = to.used().max_by_key(|t| t.price.blended());
    let cheapest = from.used().min_by_key(|t| t.price.blended());
    let (Some(dearest), Some(cheapest)) = (dearest, cheapest) else { return };
    let fix = "List models of the same tier or a cheaper one; when they are used up, the client gets an error";
    if dearest.tier > cheapest.tier {
        let message = format!(
            "`{}` ({}) would fall back to `{}` ({}): {} the price",
            from.model.name,
            priced(cheapest, tiers),
            to.model.name,
            priced(dearest, tiers),
            multiple(dearest.price.blended(), cheapest.price.blended()),
        );
        report.problem(&raw.place, message, fix);
    } else if let Some(unit) = dearer_unit(&cheapest.price, &dearest.price) {
        let message = format!(
            "`{}` would fall back to `{}`, which costs more per {unit}",
            from.model.name, to.model.name
        );
        report.problem(&raw.place, message, fix);
    } else if !to.used().any(|to| from.used().any(|from| from.dialect == to.dialect)) {
        let message = format!(
            "`{}` is never tried: it speaks {}, and `{}` speaks {}",
            to.model.name, dearest.dialect, from.model.name, cheapest.dialect
        );
        let fix = "List models that speak the same dialect; requests aren't translated";
        report.warning(&raw.place, message, fix);
    }
}

/// The unit, beside tokens, that `to` bills higher than `from` does. Tiers compare tokens only.
fn dearer_unit(from: &Price, to: &Price) -> Option<&'static str> {
    let units = [
        ("request", from.per_request, to.per_request),
        ("image", from.per_image, to.per_image),
        ("second", from.per_second, to.per_second),
        ("character", from.per_character, to.per_character),
    ];
    let dearer = |(_, from, to): &&(&str, Option<NanoUsd>, Option<NanoUsd>)| {
        to.unwrap_or_default() > from.unwrap_or_default()
    };
    units.iter().find(dearer).map(|(unit, ..)| *unit)
}

/// Whether `other` may stand in for `draft` unasked (`fallbacks: auto`): never dearer, of the
/// same kind, in the same dialect, with room for the same prompts.
pub(crate) fn suits(draft: &Draft<'_>, other: &Draft<'_>) -> bool {
    let mode = |d: &Draft<'_>| d.used().find_map(|t| t.card.as_ref().map(|c| c.mode.clone()));
    let dialect = |d: &Draft<'_>| d.used().next().map(|t| t.dialect);
    let dearest = other.used().map(|t| t.price.blended()).max();
    draft.model.name != other.model.name
        && dearest.is_some_and(|price| price <= draft.cheapest())
        && other
            .used()
            .all(|to| draft.used().all(|from| dearer_unit(&from.price, &to.price).is_none()))
        && mode(draft) == mode(other)
        && dialect(draft) == dialect(other)
        && other.model.context_window >= draft.model.context_window
}

/// `tier cheap, $0.15 in / $0.60 out per million tokens`.
fn priced(target: &Target, tiers: &[TierDef]) -> String {
    let tier = tiers.get(usize::from(target.tier.0)).map_or("?", |t| t.name.as_str());
    let (input, output) = (dollars(target.price.input), dollars(target.price.output));
    format!("tier {tier}, ${input} in / ${output} out per million tokens")
}

/// Picodollars per token as dollars per million tokens, with at least two digits.
pub(crate) fn dollars(pico: u64) -> String {
    let fraction = format!("{:06}", pico % 1_000_000);
    let kept = fraction.trim_end_matches('0').len().max(2);
    format!("{}.{}", pico / 1_000_000, &fraction[..kept])
}

/// `18.2x`.
pub(crate) fn multiple(of: u64, to: u64) -> String {
    if to == 0 {
        return if of == 0 { "1.0x".to_owned() } else { "infinitely many times".to_owned() };
    }
    let tenths = (u128::from(of) * 10).div_ceil(u128::from(to));
    format!("{}.{}x", tenths / 10, tenths % 10)
}

/// Budgets of a key that another budget makes unreachable.
pub(crate) fn caps<'a>(
    profile: &'a Profile,
    around: &'a Around<'_>,
) -> impl Iterator<Item = String> + 'a {
    let team = profile.team.as_ref().and_then(|name| around.teams.get(name));
    let user = profile.user.as_ref().and_then(|name| around.users.get(name));
    let outer = [
        ("the user's", user.map(Arc::as_ref)),
        ("the team's", team.map(Arc::as_ref)),
        ("the global", Some(around.global)),
    ];
    profile.scope.budgets.iter().filter_map(move |own| {
        let (whose, other) = outer
            .iter()
            .find_map(|(whose, scope)| Some((whose, scope.and_then(|s| tighter(own, s))?)))?;
        Some(format!(
            "the budget of ${} per {} can never be reached: {whose} is ${} per {}",
            amount(own.cap),
            own.per,
            amount(other.cap),
            other.per
        ))
    })
}

fn tighter<'s>(own: &Budget, scope: &'s Scope) -> Option<&'s Budget> {
    scope.budgets.iter().find(|other| own.per.within(other.per) && own.cap > other.cap)
}

/// Dollars without needless zeros.
pub(crate) fn amount(money: NanoUsd) -> String {
    let text = money.to_string();
    let kept = text.trim_end_matches('0');
    shown(kept.trim_end_matches('.'))
}
