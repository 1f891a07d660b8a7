//! Budgets that are added, taken away and put back while attempts run.

use super::*;

/// A budget that is added while an attempt runs counts what that comes to, at once.
#[test]
fn a_budget_opened_during_an_attempt_counts_it() {
    let dir = Dir::new();
    let bench = bench(&dir, Tz::UTC);
    let day = [cap(100, Per::Day)];
    let running = bench.hold(&[key("k", &[])], 70, noon()).unwrap();
    block_on(bench.budgets.warm(&[key("k", &day)], noon()));
    running.settle(NanoUsd(60), row("k"));
    assert_eq!(bench.day(noon()), (60, 0));
    assert!(bench.hold(&[key("k", &day)], 41, noon()).is_err(), "60 are gone");
    bench.hold(&[key("k", &day)], 40, noon()).unwrap().settle(NanoUsd(30), row("k"));
    // What the store says in the end is the same: it is not counted twice.
    assert!(bench.ledger.flush());
    bench.budgets.view(noon());
    assert!(bench.ledger.flush());
    assert_eq!(bench.day(noon()), (90, 0));
    let held = bench.hold(&[key("k", &day)], 10, noon());
    held.unwrap().release();
}

/// What is held for attempts that run is held on a budget that is added meanwhile, too.
#[test]
fn a_budget_opened_during_an_attempt_holds_it() {
    let dir = Dir::new();
    let bench = bench(&dir, Tz::UTC);
    let day = [cap(100, Per::Day)];
    let before = bench.hold(&[key("k", &[])], 25, noon() - Span::days(1)).unwrap();
    let (first, second, other) = (
        bench.hold(&[key("k", &[])], 50, noon()).unwrap(),
        bench.hold(&[key("k", &[])], 20, noon()).unwrap(),
        bench.hold(&[key("another", &[])], 90, noon()).unwrap(),
    );
    bench.hold(&[key("k", &[])], 10, noon()).unwrap().release();
    drop(bench.budgets.changing(["k".to_owned()]));
    let refusal = bench.hold(&[key("k", &day)], 31, noon()).err().unwrap();
    assert_eq!((refusal.held, refusal.only_holds), (NanoUsd(70), true));
    let fits = bench.hold(&[key("k", &day)], 30, noon()).unwrap();
    assert_eq!(bench.day(noon()), (0, 100));
    second.release();
    assert_eq!(bench.day(noon()), (0, 80));
    first.settle(NanoUsd(40), row("k"));
    assert_eq!(bench.day(noon()), (40, 30));
    // Of yesterday's window, and of another key.
    before.settle(NanoUsd(25), row("k"));
    other.settle(NanoUsd(90), row("another"));
    fits.settle(NanoUsd(5), row("k"));
    assert_eq!(bench.day(noon()), (45, 0));
    bench.hold(&[key("k", &day)], 55, noon()).unwrap().release();
}

/// A budget that is only looked at is as good as one that is charged.
#[test]
fn a_budget_warmed_during_an_attempt_holds_it() {
    let dir = Dir::new();
    let bench = bench(&dir, Tz::UTC);
    let budgets = [cap(100, Per::Day), cap(1000, Per::Month)];
    let running = bench.hold(&[key("k", &budgets[1..])], 70, noon()).unwrap();
    drop(bench.budgets.changing(["k".to_owned()]));
    block_on(bench.budgets.warm(&[key("k", &budgets)], noon()));
    assert_eq!(bench.day(noon()), (0, 70));
    let month = || bench.budgets.view(noon()).into_iter().find(|a| a.per == Per::Month).unwrap();
    assert_eq!(month().held, NanoUsd(70), "held once");
    // Nobody lived to say what it cost.
    drop(running);
    assert_eq!(bench.day(noon()).1, 0);
    assert_eq!((month().held, month().spent), (NanoUsd(0), NanoUsd(70)));
}

/// A budget that was taken away and is put back, while something was held on it all the time: it
/// knows of what was held and spent meanwhile.
#[test]
fn a_budget_that_comes_back_knows_what_it_missed() {
    let dir = Dir::new();
    let bench = bench(&dir, Tz::UTC);
    let day = [cap(100, Per::Day)];
    let first = bench.hold(&[key("k", &day)], 30, noon()).unwrap();
    for by_reload in [true, false] {
        let none: &[Budget] = &[];
        match by_reload {
            true => bench.budgets.keep(|_, _, _| false),
            false => bench.budgets.revise(&key("k", none)),
        }
        match by_reload {
            true => reload(&bench),
            false => drop(bench.budgets.changing(["k".to_owned()])),
        }
        // Somebody still goes by the old configuration, and has to wait.
        assert!(bench.hold(&[key("k", &day)], 1000, noon()).is_err());
        let spent = bench.hold(&[key("k", none)], 10, noon()).unwrap();
        let running = bench.hold(&[key("k", none)], 20, noon()).unwrap();
        spent.settle(NanoUsd(10), row("k"));
        match by_reload {
            true => bench.budgets.keep(|_, _, _| true),
            false => bench.budgets.revise(&key("k", &day)),
        }
        match by_reload {
            true => reload(&bench),
            false => drop(bench.budgets.changing(["k".to_owned()])),
        }
        // 30 of the first, 20 that run, and 10 that are spent in each round.
        let spent = if by_reload { 10 } else { 40 };
        let left = 100 - spent - 30 - 20;
        let refused = bench.hold(&[key("k", &day)], left + 1, noon());
        assert!(refused.is_err(), "{by_reload} {:?}", bench.budgets.view(noon()));
        let rest = bench.hold(&[key("k", &day)], left, noon()).unwrap();
        assert_eq!(bench.day(noon()), (spent, 100 - spent));
        rest.release();
        running.settle(NanoUsd(20), row("k"));
        assert_eq!(bench.day(noon()), (spent + 20, 30));
    }
    first.settle(NanoUsd(30), row("k"));
    assert!(bench.ledger.flush());
    bench.budgets.view(noon());
    assert!(bench.ledger.flush());
    assert_eq!(bench.day(noon()), (90, 0));
}

fn reload(bench: &Bench) {
    bench.budgets.reloading();
    bench.budgets.reloaded();
}

fn change(bench: &Bench, named: bool) {
    reload(bench);
    bench.budgets.keep(|_, _, _| named);
}

/// Who still goes by a budget that is gone, and isn't told otherwise, is answered.
#[test]
fn a_budget_that_is_gone_can_still_be_charged() {
    let dir = Dir::new();
    let bench = bench(&dir, Tz::UTC);
    let day = [cap(100, Per::Day)];
    let first = bench.hold(&[key("k", &day)], 80, noon()).unwrap();
    change(&bench, false);
    first.settle(NanoUsd(10), row("k"));
    for _ in 0..3 {
        let mut asked = 0;
        loop {
            match bench.budgets.hold("r", &[key("k", &day)], NanoUsd(50), noon()) {
                Ok(hold) => break hold.release(),
                Err(HoldError::NeedsLease(ticket)) => block_on(ticket),
                Err(HoldError::Refused(refusal)) => panic!("{refusal:?}"),
            }
            asked += 1;
            assert!(asked < 5, "its lease is never enough");
        }
    }
}

/// A budget that was opened by a request of an old configuration alone knows nothing of what ran
/// meanwhile.
#[test]
fn a_budget_that_an_old_request_opens_again_is_not_relied_on() {
    let dir = Dir::new();
    let bench = bench(&dir, Tz::UTC);
    let day = [cap(100, Per::Day)];
    bench.hold(&[key("k", &day)], 10, noon()).unwrap().release();
    change(&bench, false);
    assert_eq!(bench.budgets.view(noon()), [], "it is forgotten");
    bench.hold_by_old(&[key("k", &day)], 5, noon()).unwrap().release();
    let running = bench.hold(&[key("k", &[])], 70, noon()).unwrap();
    change(&bench, true);
    let refusal = bench.hold(&[key("k", &day)], 40, noon()).err().unwrap();
    assert_eq!((refusal.held, refusal.only_holds), (NanoUsd(70), true));
    running.release();
    bench.hold(&[key("k", &day)], 100, noon()).unwrap().release();
}

/// Budgets that were charged all the time ask nobody after a change.
#[test]
fn a_budget_that_stays_is_charged_at_once() {
    let dir = Dir::new();
    let bench = bench(&dir, Tz::UTC);
    let day = [cap(1000, Per::Day)];
    bench.hold(&[key("k", &day)], 10, noon()).unwrap().release();
    change(&bench, true);
    match bench.budgets.hold("r", &[key("k", &day)], NanoUsd(10), noon()) {
        Ok(hold) => hold.release(),
        Err(error) => panic!("{error:?}"),
    }
}

/// Keys that are made and changed all the time are in nobody else's way.
#[test]
fn a_new_budget_is_charged_while_keys_change() {
    let dir = Dir::new();
    let bench = bench(&dir, Tz::UTC);
    let day = [cap(1000, Per::Day)];
    let mut asked = 0;
    loop {
        let changing = bench.budgets.changing(["another".to_owned()]);
        match bench.budgets.hold("r", &[key("k", &day)], NanoUsd(10), noon()) {
            Ok(hold) => break hold.release(),
            Err(HoldError::NeedsLease(ticket)) => block_on(ticket),
            Err(HoldError::Refused(refusal)) => panic!("{refusal:?}"),
        }
        drop(changing);
        asked += 1;
        assert!(asked < 3, "its lease is never enough");
    }
}

/// A hold from before a change does not say what is in force after it.
#[test]
fn a_hold_that_is_confirmed_late_confirms_nothing() {
    let dir = Dir::new();
    let bench = bench(&dir, Tz::UTC);
    let day = [cap(100, Per::Day)];
    let mut late = bench.hold_by_old(&[key("k", &day)], 10, noon()).unwrap();
    change(&bench, false);
    bench.hold_by_old(&[key("k", &day)], 10, noon()).unwrap().release();
    late.confirm();
    let running = bench.hold(&[key("k", &[])], 70, noon()).unwrap();
    change(&bench, true);
    let refusal = bench.hold(&[key("k", &day)], 30, noon()).err().unwrap();
    assert_eq!((refusal.held, refusal.only_holds), (NanoUsd(80), true));
    running.release();
    late.release();
}

/// As long as a key changes, whoever charges it hears of what runs, whoever has asked before.
#[test]
fn a_changing_key_hears_of_what_runs_each_time() {
    let dir = Dir::new();
    let bench = bench(&dir, Tz::UTC);
    let day = [cap(100, Per::Day)];
    bench.hold(&[key("k", &day)], 10, noon()).unwrap().release();
    let none: &[Budget] = &[];
    drop(bench.budgets.changing(["k".to_owned()]));
    bench.budgets.revise(&key("k", none));
    let changing = bench.budgets.changing(["k".to_owned()]);
    // Somebody from before the first change looks while the second is under way.
    let look = |worst| bench.budgets.hold("r", &[key("k", &day)], NanoUsd(worst), noon());
    match look(5) {
        Err(HoldError::NeedsLease(ticket)) => block_on(ticket),
        other => panic!("{:?}", other.err()),
    }
    let running = bench.hold(&[key("k", none)], 60, noon()).unwrap();
    match look(50) {
        Err(HoldError::Refused(refusal)) => assert_eq!(refusal.held, NanoUsd(60)),
        other => panic!("{:?}", other.err()),
    }
    drop(changing);
    running.release();
    bench.hold(&[key("k", &day)], 100, noon()).unwrap().release();
}
