//! Old rows are deleted, and stay so.

use super::*;

#[test]
fn retention_deletes_rows_and_not_what_budgets_know() {
    let dir = Dir::new();
    let ledger = Ledger::open(&dir.db(), &options()).unwrap();
    (0..3).for_each(|_| ledger.append(row("r", "k", None, 9)));
    assert_eq!(lease(&ledger, "k", 100, 1).unwrap().others, 27);
    ledger.append(Row { at: at("2026-11-21T11:00:00Z"), ..row("r", "another", None, 9) });
    assert!(ledger.flush());
    assert_eq!(ledger.prune(TimeDelta::hours(1)).unwrap(), 0);
    assert_eq!(ledger.prune(TimeDelta::minutes(59)).unwrap(), 3);
    drop(ledger);
    let ledger = Ledger::open(&dir.db(), &options()).unwrap();
    assert_eq!(lease(&ledger, "k", 100, 1).unwrap().others, 27);
}

/// Whoever reads the journal after a kill must not find rows in it that were deleted since: they would
/// be booked a second time.
#[test]
fn retention_leaves_no_deleted_row_in_the_journal() {
    let dir = Dir::new();
    let ledger = Ledger::open(&dir.db(), &options()).unwrap();
    let runs = ledger.hold(note("runs", vec![]), false).unwrap();
    for n in 0..3 {
        let hold = ledger.hold(note("done", vec![]), false).unwrap();
        ledger.settle(hold, row(&format!("old-{n}"), "k", None, 9));
    }
    assert!(ledger.flush());
    let journal = || {
        let files = std::fs::read_dir(&dir.0).unwrap().map(|file| file.unwrap().path());
        let files = files.filter(|file| file.to_string_lossy().contains(".run-"));
        files.map(|file| std::fs::read_to_string(file).unwrap()).collect::<String>()
    };
    assert!(journal().contains("old-0"));
    let next = dir.0.join("tollbar.db.run-1.1");
    std::fs::create_dir(&next).unwrap();
    ledger.append(Row { at: at("2026-11-21T11:00:00Z"), ..row("new", "another", None, 9) });
    assert!(ledger.flush());
    let refused = ledger.prune(TimeDelta::minutes(1)).unwrap_err();
    assert!(matches!(refused, LedgerError::Journal { .. }), "{refused}");
    assert_eq!(sql::<i64>(&dir.db(), "SELECT count(*) FROM attempts"), 4);
    std::fs::remove_dir(&next).unwrap();
    assert_eq!(ledger.prune(TimeDelta::minutes(1)).unwrap(), 3);
    let text = journal();
    assert!(!text.contains("old-") && text.contains("runs"), "{text}");
    ledger.settle(runs, row("runs", "k", None, 5));
    drop(ledger);
    let ledger = Ledger::open(&dir.db(), &options()).unwrap();
    assert_eq!(lease(&ledger, "k", 100, 1).unwrap().others, 5);
}

/// A ledger with a row of this morning, and accounts of windows that ended so many hours before noon.
fn with_accounts(dir: &Dir, ended: &[(Per, i64)]) {
    let ledger = Ledger::open(&dir.db(), &options()).unwrap();
    ledger.append(Row { at: at("2026-11-21T12:00:00Z"), ..row("r", "k", None, 9) });
    drop(ledger);
    let db = Connection::open(dir.db()).unwrap();
    let noon = at("2026-11-21T12:00:00Z").timestamp();
    for (per, hours) in ended {
        let ends = noon - hours * 3600;
        let account = params![per.as_str(), ends - 60, ends];
        db.execute("INSERT INTO accounts VALUES ('key', 'k', ?1, ?2, ?3, 5)", account).unwrap();
    }
}

/// The windows that are left, by how long ago they ended.
fn left(dir: &Dir, options: &Options) -> String {
    let ledger = Ledger::open(&dir.db(), options).unwrap();
    // What is done now and then comes after the first answer, and before the second.
    assert!(ledger.flush() && ledger.flush());
    let left = "SELECT coalesce(group_concat(per || ' ' || ((unixepoch('2026-11-21T12:00:00Z') \
         - ends) / 3600), ', ' ORDER BY ends DESC, per), '') FROM accounts WHERE kind = 'key'";
    sql(&dir.db(), left)
}

/// A machine whose clock is months ahead until it is set.
#[test]
fn a_clock_that_is_ahead_deletes_nothing() {
    let dir = Dir::new();
    with_accounts(&dir, &[(Per::Day, -12), (Per::Month, 24)]);
    let ahead = Options { now: || at("2027-01-20T12:00:00Z"), ..options() };
    assert_eq!(left(&dir, &ahead), "day -12, month 24");
    let ledger = Ledger::open(&dir.db(), &ahead).unwrap();
    assert_eq!(ledger.prune(TimeDelta::days(30)).unwrap(), 0);
    ledger.append(row("old", "k", None, 9));
    assert!(ledger.flush());
    assert_eq!(ledger.prune(TimeDelta::hours(1)).unwrap(), 1, "by the newest of them");
    drop(ledger);
    let behind = Options { now: || at("2026-11-21T11:00:00Z"), ..options() };
    let ledger = Ledger::open(&dir.db(), &behind).unwrap();
    ledger.append(Row { at: at("2026-11-21T10:30:00Z"), ..row("older", "k", None, 9) });
    assert!(ledger.flush());
    assert_eq!(ledger.prune(TimeDelta::hours(1)).unwrap(), 0, "nor does one that is behind");
}

/// A day has 1,440 minutes, for each scope.
#[test]
fn accounts_of_minutes_and_hours_are_not_kept_for_a_week() {
    let dir = Dir::new();
    let ended =
        [1, 3, 30, 8 * 24].map(|ago| [(Per::Minute, ago), (Per::Hour, ago), (Per::Day, ago)]);
    with_accounts(&dir, &ended.concat());
    let noon = at("2026-11-21T12:00:00Z");
    let known = |known: &mut Known, per, ago: i64| {
        let ends = noon.timestamp() - ago * 3600;
        let (kind, id) = (ScopeKind::Key, Name::from("k"));
        known.has(&AccountName { kind, id, per, starts: ends - 60, ends }.into())
    };
    let mut all = Known::default();
    all.refresh(&Connection::open(dir.db()).unwrap(), noon).unwrap();
    let has = [(Per::Minute, 1), (Per::Minute, 3), (Per::Hour, 3), (Per::Day, 3), (Per::Day, 30)]
        .map(|(per, ago)| known(&mut all, per, ago));
    assert_eq!(has, [true, false, false, true, false]);
    assert_eq!(left(&dir, &options()), "day 1, hour 1, minute 1, day 3, day 30");
}
