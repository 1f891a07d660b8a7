//! The policy, at given times.

use super::*;
use crate::alerts::{Field, Kind};
use crate::scope::{Per, ScopeKind};

fn at(text: &str) -> DateTime<Utc> {
    DateTime::parse_from_rfc3339(text).unwrap().to_utc()
}

fn account(spent: u64, end: &str) -> AccountView {
    AccountView {
        waiting: 0,
        kind: ScopeKind::Key,
        id: "web".into(),
        per: Per::Day,
        cap: NanoUsd(1_000_000_000),
        spent: NanoUsd(spent),
        held: NanoUsd(0),
        elsewhere: NanoUsd(0),
        window_end: Some(at(end)),
    }
}

/// What a look tells, as a process that remembers does.
fn tell(quiet: &mut Quiet, account: AccountView, now: DateTime<Utc>) -> Vec<u64> {
    let alerts = budgets(&[account], &[800_000, 1_000_000], |name| quiet.said(name, now));
    let told = alerts.iter().filter(|alert| quiet.say(&alert.once, now));
    told.map(|alert| match alert.fields.iter().find(|(name, _)| *name == "share") {
        Some((_, Field::Millionths(share))) => *share,
        other => panic!("{other:?}"),
    })
    .collect()
}

#[test]
fn each_share_is_told_once_per_window() {
    let (mut quiet, now) = (Quiet::default(), at("2026-11-21T10:00:00Z"));
    let (today, tomorrow) = ("2026-11-22T00:00:00Z", "2026-11-23T00:00:00Z");
    assert_eq!(tell(&mut quiet, account(799_999_999, today), now), [0u64; 0]);
    assert_eq!(tell(&mut quiet, account(800_000_000, today), now), [800_000]);
    assert_eq!(tell(&mut quiet, account(900_000_000, today), now), [0u64; 0]);
    assert_eq!(tell(&mut quiet, account(1_000_000_000, today), now), [1_000_000]);
    // Just after its end the window is still looked at.
    let late = at("2026-11-22T00:00:59Z");
    quiet.forget(late);
    assert_eq!(tell(&mut quiet, account(1_000_000_000, today), late), [0u64; 0]);
    assert_eq!(tell(&mut quiet, account(1_000_000_000, tomorrow), late), [800_000, 1_000_000]);
}

#[test]
fn a_share_of_a_raised_cap_is_news() {
    let (mut quiet, now) = (Quiet::default(), at("2026-11-21T10:00:00Z"));
    let total = |spent, cap| AccountView {
        per: Per::Total,
        cap: NanoUsd(cap),
        window_end: None,
        ..account(spent, "2026-11-22T00:00:00Z")
    };
    assert_eq!(tell(&mut quiet, total(1_000, 1_000), now), [800_000, 1_000_000]);
    assert_eq!(tell(&mut quiet, total(1_000, 10_000), now), [0u64; 0]);
    assert_eq!(tell(&mut quiet, total(8_000, 10_000), now), [800_000]);
    assert_eq!(tell(&mut quiet, total(9_900, 10_000), now), [0u64; 0]);
    // Lowered again to what it was: that has been told.
    assert_eq!(tell(&mut quiet, total(9_900, 1_000), now), [0u64; 0]);
}

#[test]
fn what_another_process_tells_is_asked_for_again() {
    let (mut quiet, now) = (Quiet::default(), at("2026-11-21T10:00:00Z"));
    let (today, soon) = ("2026-11-22T00:00:00Z", at("2026-11-21T10:10:00Z"));
    let once = Alert::budget_share(&account(800_000_000, today), 800_000).once;
    assert!(quiet.say(&once, now));
    quiet.shorten(&once.name, soon);
    quiet.shorten(&once.name, at(today));
    assert!(!quiet.say(&once, at("2026-11-21T10:09:59Z")));
    assert!(quiet.say(&once, soon));
    assert!(!quiet.say(&once, at("2026-11-21T10:20:00Z")), "nobody else has told it");
}

#[test]
fn what_is_told_can_be_read_by_people() {
    let alert = Alert::budget_share(&account(812_500_000, "2026-11-22T00:00:00Z"), 800_000);
    let text = "80 % of the budget of the key `web` is spent: $0.8125 of $1.00 per day. The window ends at 2026-11-22T00:00:00Z.";
    assert_eq!(alert.text, text);
    let all = Alert::budget_share(&account(1_000_000_000, "2026-11-22T00:00:00Z"), 1_000_000);
    assert!(all.text.contains("is used up: $1.00 of $1.00 per day"), "{}", all.text);
    let most = Alert::budget_share(&account(1_000_000_000, "2026-11-22T00:00:00Z"), 800_000);
    assert!(most.text.starts_with("80 % of the budget"), "{}", most.text);
}

#[test]
fn fallbacks_are_told_on_crossing_and_need_requests() {
    assert_eq!(fallbacks(0, 0, 50_000), Level::Under);
    assert_eq!(fallbacks(1, 1, 50_000), Level::Unknown, "one request is no alert");
    assert_eq!(fallbacks(19, 19, 50_000), Level::Unknown);
    assert_eq!(fallbacks(20, 1, 50_000), Level::Under, "exactly the share");
    let Level::Over(alert) = fallbacks(20, 2, 50_000) else { panic!() };
    assert!(alert.text.starts_with("10 % of the requests"), "{}", alert.text);
    let (mut quiet, now) = (Quiet::default(), at("2026-11-21T10:00:00Z"));
    assert!(quiet.say(&alert.once, now));
    assert!(!quiet.say(&alert.once, now + TimeDelta::days(30)), "it was never below again");
    assert!(quiet.release(&alert.once.name));
    assert!(!quiet.release(&alert.once.name));
    assert!(quiet.say(&alert.once, now), "again after it had come back");
}

#[test]
fn a_refused_credential_is_told_until_it_changes_or_an_hour_has_passed() {
    let (mut quiet, now) = (Quiet::default(), at("2026-11-21T10:00:00Z"));
    let mut say = |print, now| {
        quiet.say(&Alert::credential_refused("openai", Some(print), 401, now).once, now)
    };
    assert!(say("aaaaaaaa", now));
    assert!(!say("aaaaaaaa", now + TimeDelta::minutes(59)));
    assert!(say("bbbbbbbb", now + TimeDelta::minutes(59)));
    assert!(say("aaaaaaaa", now + TimeDelta::minutes(60)));
}

#[test]
fn what_flickers_is_not_over() {
    let (mut calm, now) = (Calm::default(), at("2026-11-21T10:00:00Z"));
    let looks = [(0, true, false), (9, true, false), (10, false, false), (11, true, false)];
    for (second, well, over) in looks.into_iter().chain([(20, true, false), (21, true, true)]) {
        let at = now + TimeDelta::seconds(second);
        assert_eq!(calm.lasts(well, at, TimeDelta::seconds(10)), over, "{second}");
    }
}

fn cents(n: u64) -> NanoUsd {
    NanoUsd(n * 10_000_000)
}

#[test]
fn an_hour_is_compared_with_the_mean_of_the_day_before() {
    let mut pace = Pace::default();
    // 24 hours of 60 cents each, then an hour of more than five times as much.
    for minute in 0..DAY {
        pace.spent(minute, cents(1));
    }
    for minute in DAY..DAY + HOUR {
        pace.spent(minute, cents(5));
    }
    let last = DAY + HOUR - 1;
    assert_eq!(pace.too_fast(last, 5_000_000), None, "exactly five times");
    pace.spent(last, NanoUsd(1));
    let expected = (NanoUsd(cents(300).0 + 1), cents(60));
    assert_eq!(pace.too_fast(last, 5_000_000), Some(expected));
    assert_eq!(pace.too_fast(last, 6_000_000), None);
    let now = at("2026-11-21T10:00:00Z");
    let alert = Alert::spend_velocity(expected.0, expected.1, 5_000_000, now);
    assert_eq!(alert.kind, Kind::SpendVelocity);
    assert!(alert.text.contains("5 times the mean of $0.60 an hour"), "{}", alert.text);
    let mut quiet = Quiet::default();
    assert!(quiet.say(&alert.once, now) && !quiet.say(&alert.once, now));
}

#[test]
fn a_mean_needs_history_and_money() {
    let mut pace = Pace::default();
    pace.spent(0, cents(100));
    assert_eq!(pace.too_fast(0, 5_000_000), None, "nothing to compare with");
    pace.spent(200, cents(1000));
    assert_eq!(pace.too_fast(200, 5_000_000), None, "two hours and a half");
    pace.spent(239, cents(1));
    let fast = Some((cents(1001), NanoUsd(100 * 10_000_000 * 60 / 180)));
    assert_eq!(pace.too_fast(239, 5_000_000), fast);
    let mut small = Pace::default();
    small.spent(0, NanoUsd(1000));
    small.spent(600, cents(100));
    assert_eq!(small.too_fast(600, 5_000_000), None, "next to nothing is no measure");
    // After a day without spending there is nothing to compare with either.
    pace.spent(239 + DAY + HOUR, cents(100_000));
    assert_eq!(pace.too_fast(239 + DAY + HOUR, 5_000_000), None);
}
