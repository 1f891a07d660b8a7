//! What is worth telling: in words, as data, and how often.

use crate::budget::{AccountView, Refusal};
use crate::config::snapshot::{Breaker, Canary};
use crate::scope::{Per, ScopeKind};
use crate::secret::sha256;
use crate::units::NanoUsd;
use chrono::{DateTime, TimeDelta, Utc};

/// A window's end is looked back on for so long; what was said of it is remembered longer.
const AFTER_WINDOW: TimeDelta = TimeDelta::minutes(5);

/// A refused credential is spoken of again after this, if it is still refused.
const AUTH_QUIET: TimeDelta = TimeDelta::hours(1);

/// The same refused configuration is spoken of again after this.
const RELOAD_QUIET: TimeDelta = TimeDelta::minutes(10);

/// What an alert is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Kind {
    BudgetShare,
    BudgetRefused,
    FallbackRate,
    BreakerOpened,
    CredentialRefused,
    SpendVelocity,
    StateUnwritable,
    StateWritable,
    ReloadRefused,
    CanaryRolledBack,
}

impl Kind {
    /// Every one.
    pub const ALL: [Kind; 10] = [
        Kind::BudgetShare,
        Kind::BudgetRefused,
        Kind::FallbackRate,
        Kind::BreakerOpened,
        Kind::CredentialRefused,
        Kind::SpendVelocity,
        Kind::StateUnwritable,
        Kind::StateWritable,
        Kind::ReloadRefused,
        Kind::CanaryRolledBack,
    ];

    /// The word used in webhooks and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::BudgetShare => "budget_share",
            Kind::BudgetRefused => "budget_refused",
            Kind::FallbackRate => "fallback_rate",
            Kind::BreakerOpened => "breaker_opened",
            Kind::CredentialRefused => "credential_refused",
            Kind::SpendVelocity => "spend_velocity",
            Kind::StateUnwritable => "state_unwritable",
            Kind::StateWritable => "state_writable",
            Kind::ReloadRefused => "reload_refused",
            Kind::CanaryRolledBack => "canary_rolled_back",
        }
    }
}

/// A value for machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Field {
    /// A name, a time.
    Text(String),
    /// An amount, shown as a decimal with nine digits.
    Usd(NanoUsd),
    /// A share or a factor, shown as a decimal.
    Millionths(u64),
    /// A number of things.
    Count(u64),
}

/// How often something is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Once {
    /// What is told; not again …
    pub name: String,
    /// … before this, unless it is released.
    pub until: DateTime<Utc>,
    /// Also not after a restart, nor by another process on the same database.
    pub kept: bool,
}

impl Once {
    /// Until [`super::Alerts::release`].
    pub fn until_released(name: impl Into<String>) -> Self {
        Once { name: name.into(), until: DateTime::<Utc>::MAX_UTC, kept: false }
    }

    fn in_window(name: String, end: Option<DateTime<Utc>>) -> Self {
        let until = end.and_then(|end| end.checked_add_signed(AFTER_WINDOW));
        Once { name, until: until.unwrap_or(DateTime::<Utc>::MAX_UTC), kept: true }
    }

    fn for_a_while(name: String, now: DateTime<Utc>, quiet: TimeDelta) -> Self {
        let until = now.checked_add_signed(quiet).unwrap_or(DateTime::<Utc>::MAX_UTC);
        Once { name, until, kept: false }
    }
}

/// Something that somebody should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alert {
    /// What it is about.
    pub kind: Kind,
    /// What happened and what to do, for people.
    pub text: String,
    /// The same for machines.
    pub fields: Vec<(&'static str, Field)>,
    /// How often it is told.
    pub once: Once,
}

impl Alert {
    /// The name under which a share of an account's window is told.
    pub fn budget_share_name(account: &AccountView, share: u32) -> String {
        let AccountView { kind, id, per, cap, window_end, .. } = account;
        format!("budget_share {} {share}", window(*kind, id, *per, *cap, *window_end))
    }

    /// A share (in millionths) of a budget is spent.
    pub fn budget_share(account: &AccountView, share: u32) -> Self {
        let whose = account.kind.whose(&account.id);
        let (spent, cap) = (dollars(account.spent), dollars(account.cap));
        let end = ends(account.window_end);
        let per = account.per;
        // Of the shares that are passed at once each has an alert of its own.
        let text = if account.spent >= account.cap && share == 1_000_000 {
            format!(
                "The budget of {whose} is used up: ${spent} of ${cap} per {per} is spent. {end}"
            )
        } else {
            let share = percent(u64::from(share));
            format!(
                "{share} of the budget of {whose} is spent: ${spent} of ${cap} per {per}. {end}"
            )
        };
        let mut fields = scope(account.kind, &account.id, account.per);
        fields.extend([
            ("share", Field::Millionths(u64::from(share))),
            ("spent_usd", Field::Usd(account.spent)),
            ("held_usd", Field::Usd(account.held)),
            ("cap_usd", Field::Usd(account.cap)),
        ]);
        fields.extend(account.window_end.map(|end| ("window_end", time(end))));
        let name = Self::budget_share_name(account, share);
        Alert {
            kind: Kind::BudgetShare,
            text,
            fields,
            once: Once::in_window(name, account.window_end),
        }
    }

    /// A budget has too little left for a request that can cost `worst`.
    pub fn budget_refused(refusal: &Refusal, worst: NanoUsd) -> Self {
        let whose = refusal.kind.whose(&refusal.id);
        let (spent, cap) = (dollars(refusal.spent), dollars(refusal.cap));
        let text = format!(
            "The budget of {whose} refuses requests: ${spent} of ${cap} per {} is spent, and one could cost up to ${}. {}",
            refusal.per,
            dollars(worst),
            ends(refusal.window_end)
        );
        let mut fields = scope(refusal.kind, &refusal.id, refusal.per);
        fields.extend([
            ("worst_usd", Field::Usd(worst)),
            ("spent_usd", Field::Usd(refusal.spent)),
            ("held_usd", Field::Usd(refusal.held)),
            ("cap_usd", Field::Usd(refusal.cap)),
        ]);
        fields.extend(refusal.window_end.map(|end| ("window_end", time(end))));
        let Refusal { kind, id, per, cap, window_end, .. } = refusal;
        let window = window(*kind, id, *per, *cap, *window_end);
        let once = Once::in_window(format!("budget_refused {window}"), refusal.window_end);
        Alert { kind: Kind::BudgetRefused, text, fields, once }
    }

    /// More than `rule` (in millionths) of the requests of five minutes fell back.
    pub fn fallback_rate(requests: u64, fell: u64, rule: u32) -> Self {
        let share = fell.saturating_mul(1_000_000) / requests.max(1);
        let text = format!(
            "{} of the requests of the last five minutes fell back ({fell} of {requests}); {} is the threshold. `tollbar_fallbacks_total` says from which target, and why.",
            percent(share),
            percent(u64::from(rule))
        );
        let fields = vec![
            ("share", Field::Millionths(share)),
            ("threshold", Field::Millionths(u64::from(rule))),
            ("requests", Field::Count(requests)),
            ("fallbacks", Field::Count(fell)),
        ];
        let once = Once::until_released(Kind::FallbackRate.as_str());
        Alert { kind: Kind::FallbackRate, text, fields, once }
    }

    /// A target is left alone.
    pub fn breaker_opened(target: &str, rule: &Breaker) -> Self {
        let seconds = rule.cooldown.as_secs();
        let text = format!(
            "`{target}` is left alone for {seconds} s: it failed {} times within {} s, or again when it was probed.",
            rule.failures,
            rule.window.as_secs()
        );
        let fields = vec![
            ("target", Field::Text(target.to_owned())),
            ("failures", Field::Count(u64::from(rule.failures))),
            ("cooldown_seconds", Field::Count(seconds)),
        ];
        let once = Once::until_released(format!("{BREAKER}{target}"));
        Alert { kind: Kind::BreakerOpened, text, fields, once }
    }

    /// A provider answered 401 or 403 to the gateway's own credential.
    pub fn credential_refused(
        provider: &str,
        fingerprint: Option<&str>,
        status: u16,
        now: DateTime<Utc>,
    ) -> Self {
        let shown = fingerprint.unwrap_or("none");
        let text = format!(
            "The provider `{provider}` refused the gateway's credential ({shown}) with {status}: check its api_key, then reload."
        );
        let mut fields = vec![
            ("provider", Field::Text(provider.to_owned())),
            ("status", Field::Count(u64::from(status))),
        ];
        fields.extend(fingerprint.map(|print| ("fingerprint", Field::Text(print.to_owned()))));
        let name = format!("credential_refused {provider} {shown}");
        let once = Once::for_a_while(name, now, AUTH_QUIET);
        Alert { kind: Kind::CredentialRefused, text, fields, once }
    }

    /// The last hour cost more than `factor` (in millionths) times the mean of those before.
    pub fn spend_velocity(hour: NanoUsd, mean: NanoUsd, factor: u64, now: DateTime<Utc>) -> Self {
        let times = (u128::from(hour.0) * 1_000_000 / u128::from(mean.0.max(1))).min(1 << 62);
        let times = u64::try_from(times).unwrap_or(u64::MAX);
        let text = format!(
            "${} were spent in the last hour, {} times the mean of ${} an hour over the day before; {} times is the threshold.",
            dollars(hour),
            decimal(times / 100_000 * 100_000),
            dollars(mean),
            decimal(factor)
        );
        let fields = vec![
            ("hour_usd", Field::Usd(hour)),
            ("mean_hour_usd", Field::Usd(mean)),
            ("factor", Field::Millionths(times)),
            ("threshold", Field::Millionths(factor)),
        ];
        // By the clock's hour, so that a process that was restarted doesn't repeat it.
        let name = format!("spend_velocity {}", now.timestamp().div_euclid(3600));
        let once = Once { kept: true, ..Once::for_a_while(name, now, TimeDelta::hours(1)) };
        Alert { kind: Kind::SpendVelocity, text, fields, once }
    }

    /// The state file can't be written.
    pub fn state_unwritable(open: bool) -> Self {
        let then = if open {
            "requests are served all the same (`state.on_failure: open`), and a crash would lose what they cost"
        } else {
            "requests under a budget are refused"
        };
        let text =
            format!("The state file can't be written: {then}. Look at the log and at the disk.");
        let once = Once::until_released(Kind::StateUnwritable.as_str());
        Alert { kind: Kind::StateUnwritable, text, fields: Vec::new(), once }
    }

    /// The state file can be written again.
    pub fn state_writable() -> Self {
        let text = "The state file can be written again.".to_owned();
        let once = Once::until_released(Kind::StateWritable.as_str());
        Alert { kind: Kind::StateWritable, text, fields: Vec::new(), once }
    }

    /// A configuration was not taken.
    pub fn reload_refused(problems: &[String], now: DateTime<Utc>) -> Self {
        let first = problems.first().map_or("", String::as_str);
        let text = format!(
            "A reload was refused and the old configuration stays: {first}{}",
            match problems.len() {
                0 | 1 => String::new(),
                n => format!(" (and {} more problems)", n - 1),
            }
        );
        let fields = vec![("problems", Field::Count(problems.len() as u64))];
        let all = sha256(problems.join("\n").as_bytes());
        let name = format!("reload_refused {}", hex::encode(&all[..8]));
        let once = Once::for_a_while(name, now, RELOAD_QUIET);
        Alert { kind: Kind::ReloadRefused, text, fields, once }
    }

    /// A target on trial has taken itself out.
    pub fn canary_rolled_back(target: &str, rule: &Canary, now: DateTime<Utc>) -> Self {
        let (share, seconds) = (percent(u64::from(rule.error_rate)), rule.window.as_secs());
        let text = format!(
            "`{target}` has taken itself out: more than {share} of its attempts failed within {seconds} s. Change its rollback_on to try it again."
        );
        let fields = vec![
            ("target", Field::Text(target.to_owned())),
            ("threshold", Field::Millionths(u64::from(rule.error_rate))),
        ];
        // It happens once; when it happens again, somebody has changed the rule in between.
        let name = format!("canary_rolled_back {target}");
        let once = Once::for_a_while(name, now, TimeDelta::zero());
        Alert { kind: Kind::CanaryRolledBack, text, fields, once }
    }
}

/// What the names of alerts about breakers begin with; the target's name follows.
pub const BREAKER: &str = "breaker_opened ";

/// What is said of a budget is said of its cap too: once that is raised, nobody has been told yet
/// that the rest is spent as well. A total has no next window to tell it in.
fn window(kind: ScopeKind, id: &str, per: Per, cap: NanoUsd, end: Option<DateTime<Utc>>) -> String {
    let end = end.map_or(0, |end| end.timestamp());
    format!("{kind} {id} {per} {end} {}", cap.0)
}

fn scope(kind: ScopeKind, id: &str, per: Per) -> Vec<(&'static str, Field)> {
    let text = |text: &str| Field::Text(text.to_owned());
    vec![("scope", text(kind.as_str())), ("id", text(id)), ("per", text(per.as_str()))]
}

fn ends(end: Option<DateTime<Utc>>) -> String {
    match end {
        Some(end) => format!("The window ends at {}.", stamp(end)),
        None => "It is a total: it does not renew.".to_owned(),
    }
}

fn time(at: DateTime<Utc>) -> Field {
    Field::Text(stamp(at))
}

/// RFC 3339, in UTC, to the second.
pub(super) fn stamp(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}

/// Dollars with at least two digits after the point.
fn dollars(amount: NanoUsd) -> String {
    let text = amount.to_string();
    let kept = text.trim_end_matches('0').len();
    let cents = text.len() - 7;
    text[..kept.max(cents)].to_owned()
}

/// Millionths as a decimal.
pub(super) fn decimal(millionths: u64) -> String {
    let text = format!("{}.{:06}", millionths / 1_000_000, millionths % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Millionths as hundredths, to a tenth.
fn percent(millionths: u64) -> String {
    format!("{} %", decimal(millionths / 1000 * 1000 * 100))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_as_people_write_them() {
        assert_eq!(dollars(NanoUsd(800_000_000)), "0.80");
        assert_eq!(dollars(NanoUsd(12_345_600_000)), "12.3456");
        assert_eq!(dollars(NanoUsd(1)), "0.000000001");
        assert_eq!(percent(800_000), "80 %");
        assert_eq!(percent(1_000_000), "100 %");
        assert_eq!(percent(55_555), "5.5 %");
        assert_eq!(decimal(2_500_000), "2.5");
        assert_eq!(decimal(5_000_000), "5");
    }
}
