mod absurd;
mod leases;
mod retention;
mod spilled;

use super::*;
use crate::scope::{Per, ScopeKind};
use crate::units::{Name, NanoUsd, UsageSource};
use chrono_tz::Tz;
use std::sync::atomic::AtomicU32;

/// A directory of its own, removed at the end.
pub(crate) struct Dir(PathBuf);

impl Dir {
    pub(crate) fn new() -> Dir {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("tollbar-money-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Dir(path)
    }

    pub(crate) fn db(&self) -> PathBuf {
        self.0.join("tollbar.db")
    }

    /// Files of runs that are there.
    pub(crate) fn runs(&self) -> usize {
        let names = std::fs::read_dir(&self.0).unwrap().map(|e| e.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().contains(".run-")).count()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn at(text: &str) -> DateTime<Utc> {
    DateTime::parse_from_rfc3339(text).unwrap().to_utc()
}

/// The ledger as it is kept, at noon of the day that the tests play on.
pub(crate) fn options() -> Options {
    Options { now: || at("2026-11-21T12:00:00Z"), ..Options::default() }
}

fn row(request: &str, key: &str, team: Option<&str>, cost: u64) -> Row {
    let mut row = Row::new(at("2026-11-21T10:00:00.000001Z"));
    row.request_id = request.into();
    row.key_id = key.into();
    row.team = team.map(str::to_owned);
    row.model = "gpt".into();
    row.provider = "openai".into();
    row.outcome = "ok".into();
    row.input_tokens = Some(10);
    row.usage_source = UsageSource::Reported;
    row.cost_nano_usd = NanoUsd(cost);
    row
}

fn sql<T: rusqlite::types::FromSql>(path: &Path, sql: &str) -> T {
    Connection::open(path).unwrap().query_row(sql, [], |row| row.get(0)).unwrap()
}

#[test]
fn rows_come_back_as_they_went_in_and_a_clean_end_leaves_no_journal() {
    let dir = Dir::new();
    let ledger = Ledger::open(&dir.db(), &options()).unwrap();
    let mut full = row("r1", "web", Some("t"), u64::MAX);
    full.user = Some("ana@example.com".into());
    full.status = Some(200);
    full.first_token_ms = Some(12);
    full.metadata = r#"{"app":"ä"}"#.into();
    ledger.append(full.clone());
    assert!(ledger.flush());
    assert_eq!((ledger.rows(), ledger.lag()), (1, Duration::ZERO));
    let found = requests(&dir.db(), &Filter::default(), 10).unwrap();
    full.id = found[0].id;
    full.cost_nano_usd = MAX_COST;
    assert_eq!(found, [full]);
    assert_eq!(dir.runs(), 2);
    drop(ledger);
    assert_eq!(dir.runs(), 0);
}

#[test]
fn spending_is_summed_by_group_and_time() {
    let dir = Dir::new();
    let ledger = Ledger::open(&dir.db(), &options()).unwrap();
    for (request, key, team, cost) in
        [("a", "k1", Some("t1"), 5), ("a", "k1", Some("t1"), 7), ("b", "k2", None, 100)]
    {
        ledger.append(row(request, key, team, cost));
    }
    let mut later = row("c", "k1", Some("t2"), 1000);
    later.at = at("2026-12-01T00:00:00Z");
    ledger.append(later);
    ledger.flush();
    let by = |from, to, columns: &[Column]| -> Vec<(Vec<Option<String>>, u64, u64, u64)> {
        let filter = Filter { from, to, ..Filter::default() };
        let rows = spend(&dir.db(), &filter, columns, Tz::UTC, 100).unwrap();
        rows.into_iter().map(|r| (r.group, r.requests, r.attempts, r.cost.0)).collect()
    };
    let some = |word: &str| Some(word.to_owned());
    assert_eq!(by(None, None, &[]), [(vec![], 3, 4, 1112)]);
    assert_eq!(
        by(None, Some(at("2026-12-01T00:00:00Z")), &[Column::Key, Column::Team]),
        [(vec![some("k2"), None], 1, 1, 100), (vec![some("k1"), some("t1")], 1, 2, 12)]
    );
    assert_eq!(
        by(Some(at("2026-12-01T00:00:00Z")), None, &[Column::Month]),
        [(vec![some("2026-12")], 1, 1, 1000)]
    );
    let filter = Filter { key: some("k1"), ..Filter::default() };
    // Days are those of the clocks that budgets go by.
    let days = spend(&dir.db(), &filter, &[Column::Day], Tz::America__New_York, 100).unwrap();
    let days: Vec<_> = days.into_iter().map(|row| (row.group, row.cost.0)).collect();
    assert_eq!(days, [(vec![some("2026-11-30")], 1000), (vec![some("2026-11-21")], 12)]);
    let ids: Vec<String> =
        requests(&dir.db(), &filter, 2).unwrap().into_iter().map(|r| r.request_id).collect();
    assert_eq!(ids, ["c", "a"]);
    assert_eq!(Column::parse("key_id"), Some(Column::Key));
    assert_eq!(Column::parse("at; DROP TABLE attempts"), None);
}

#[test]
fn an_empty_file_is_migrated_and_a_newer_one_refused() {
    let dir = Dir::new();
    std::fs::write(dir.db(), "").unwrap();
    assert!(matches!(
        spend(&dir.db(), &Filter::default(), &[], Tz::UTC, 100),
        Err(LedgerError::Other { .. })
    ));
    drop(Ledger::open(&dir.db(), &options()).unwrap());
    assert_eq!(sql::<i64>(&dir.db(), "PRAGMA user_version"), schema::VERSION);
    drop(Ledger::open(&dir.db(), &options()).unwrap());
    Connection::open(dir.db()).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let error = Ledger::open(&dir.db(), &options()).err().unwrap();
    assert!(matches!(error, LedgerError::Newer { found: 99, .. }), "{error}");
    assert!(matches!(
        spend(&dir.db(), &Filter::default(), &[], Tz::UTC, 100),
        Err(LedgerError::Newer { .. })
    ));
}

#[test]
fn what_is_not_a_database_or_not_there_is_named() {
    let dir = Dir::new();
    std::fs::write(dir.db(), "this is not a database, it is a letter".repeat(100)).unwrap();
    let error = Ledger::open(&dir.db(), &options()).err().unwrap();
    assert!(matches!(error, LedgerError::Corrupt { .. }), "{error}");
    let nowhere = dir.db().join("x/y.db");
    let error = Ledger::open(&nowhere, &options()).err().unwrap();
    assert!(matches!(error, LedgerError::ReadOnly { .. }), "{error}");
    assert!(requests(&nowhere, &Filter::default(), 1).is_err());
}

#[test]
fn a_locked_database_is_waited_for_and_loses_no_row() {
    let dir = Dir::new();
    let options = Options { busy_wait: Duration::from_millis(30), ..options() };
    let ledger = Ledger::open(&dir.db(), &options).unwrap();
    let other = Connection::open(dir.db()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = Ledger::open(&dir.db(), &options).err().unwrap();
    assert!(matches!(error, LedgerError::Locked { .. }), "{error}");
    ledger.append(row("r", "k", None, 5));
    assert!(!ledger.flush());
    assert!(!ledger.healthy());
    assert!(ledger.lag() > Duration::ZERO);
    let refused = lease(&ledger, "k", 100, 10).unwrap_err();
    assert!(refused.0.contains("locked"), "{refused}");
    other.execute_batch("ROLLBACK").unwrap();
    while !ledger.flush() {}
    assert!(ledger.healthy());
    assert_eq!(sql::<i64>(&dir.db(), "SELECT sum(cost_nano_usd) FROM attempts"), 5);
}

/// What is written to a file that nobody can open any more is lost: budgets must refuse.
#[test]
fn a_file_that_was_removed_is_noticed() {
    let dir = Dir::new();
    let ledger = Ledger::open(&dir.db(), &options()).unwrap();
    ledger.append(row("r", "k", None, 5));
    assert!(ledger.flush());
    std::fs::remove_file(dir.db()).unwrap();
    let until = Instant::now() + Duration::from_secs(30);
    while ledger.healthy() {
        assert!(Instant::now() < until, "it isn't noticed");
        ledger.append(row("r", "k", None, 5));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(!ledger.flush());
    let refused = lease(&ledger, "k", 100, 10).unwrap_err();
    assert!(refused.0.contains("removed or replaced"), "{refused}");
    assert!(ledger.write(|_| Ok(())).is_err());
    assert!(!ledger.healthy(), "and stays so");
}

#[test]
fn a_state_file_is_its_owners_only() {
    let dir = Dir::new();
    let ledger = Ledger::open(&dir.db(), &options()).unwrap();
    ledger.append(row("r", "k", None, 5));
    assert!(ledger.flush());
    for file in std::fs::read_dir(&dir.0).unwrap() {
        let file = file.unwrap();
        let mode = std::os::unix::fs::PermissionsExt::mode(&file.metadata().unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600, "{}", file.path().display());
    }
}

#[test]
fn a_full_disk_is_reported_and_survived() {
    let dir = Dir::new();
    let small = Options { max_pages: Some(24), ..options() };
    let ledger = Ledger::open(&dir.db(), &small).unwrap();
    let mut n = 0;
    while ledger.healthy() {
        (0..20).for_each(|_| ledger.append(row("r", &"k".repeat(500), None, 1)));
        n += 20;
        ledger.flush();
        assert!(n < 10_000);
    }
    assert!(dir.runs() > 0, "the journal has what the database has not");
    drop(ledger);
    assert!(dir.runs() > 0);
    let ledger = Ledger::open(&dir.db(), &options()).unwrap();
    assert!(ledger.healthy());
    assert_eq!(sql::<i64>(&dir.db(), "SELECT count(*) FROM attempts"), n);
    assert_eq!(dir.runs(), 2);
}

#[test]
fn journal_files_go_when_their_rows_are_committed_and_holds_move_on() {
    let dir = Dir::new();
    let options = Options { journal_bytes: 2_000, ..options() };
    let ledger = Ledger::open(&dir.db(), &options).unwrap();
    let held = ledger.hold(note("old", vec![]), false).unwrap();
    for _ in 0..20 {
        (0..10).for_each(|_| ledger.append(row("r", "k", None, 1)));
        ledger.flush();
    }
    assert!(ledger.flush());
    assert!(dir.runs() <= 4, "{}", dir.runs());
    ledger.lose(held);
    drop(ledger);
    assert_eq!(dir.runs(), 0);
    let filter = Filter { outcome: Some("lost".into()), ..Filter::default() };
    let lost = requests(&dir.db(), &filter, 9).unwrap();
    assert_eq!((lost.len(), lost[0].cost_nano_usd, lost[0].id), (1, NanoUsd(7), held));
    assert_eq!(lost[0].request_id, "old");
}

fn account(id: &str) -> AccountKey {
    let (kind, id) = (ScopeKind::Key, Name::from(id));
    AccountName { kind, id, per: Per::Total, starts: 0, ends: i64::MAX }.into()
}

fn note(request: &str, accounts: Vec<AccountKey>) -> HoldNote<'_> {
    let at = at("2026-11-21T10:00:00Z");
    HoldNote { request, at, worst: NanoUsd(7), scopes: &[(ScopeKind::Key, "k")], accounts }
}

fn lease(ledger: &Ledger, id: &str, cap: u64, want: u64) -> Result<Lease, StoreError> {
    let (send, answer) = bounded(1);
    let done = Box::new(move |lease| drop(send.send(lease)));
    Store::lease(ledger, LeaseAsk { account: account(id), cap, want }, done);
    answer.recv().unwrap()
}

/// What a process leaves whose end nobody saw: a hold that is open, one that is settled, one
/// that was released, and a last line cut short.
fn leave_a_dead_run(dir: &Dir, boot: &str) {
    drop(Ledger::open(&dir.db(), &options()).unwrap());
    let files = Files { database: dir.db(), run: 77 };
    std::fs::write(files.lock(), boot).unwrap();
    let hold = |id: i64| {
        format!(
            r#"{{"H":{{"id":{id},"at":1795255200000000,"worst":7,"request":"r{id}","scopes":[["key","k"],["team","t"]],"accounts":[{{"k":"key","i":"k","p":"total","s":0,"e":9223372036854775807}}]}}}}"#
        )
    };
    let mut settled = row("r2", "k", Some("t"), 3);
    settled.id = 2;
    let settled = serde_json::to_string(&settled).unwrap();
    let first = format!("{}\n{}\n{}\n", hold(1), hold(2), hold(3));
    let second =
        format!("{}\n{{\"S\":{settled}}}\n{{\"R\":3}}\n{{\"S\":{{\"id\":1,\"requ", hold(1));
    std::fs::write(files.segment(0), first).unwrap();
    std::fs::write(files.segment(1), second).unwrap();
    let db = Connection::open(dir.db()).unwrap();
    db.execute_batch(
        "INSERT INTO accounts VALUES ('key', 'k', 'total', 0, 9223372036854775807, 0);
         INSERT INTO leases VALUES ('key', 'k', 'total', 0, 9223372036854775807, 77, 50, 0);",
    )
    .unwrap();
}

#[test]
fn the_journal_of_a_killed_process_is_booked_once() {
    let dir = Dir::new();
    leave_a_dead_run(&dir, &journal::boot_id());
    for _ in 0..2 {
        let ledger = Ledger::open(&dir.db(), &options()).unwrap();
        let known = lease(&ledger, "k", 100, 5).unwrap();
        assert_eq!(known, Lease { others: 10, outstanding: 0, booked: 0, upto: 5 });
    }
    let rows = requests(&dir.db(), &Filter::default(), 9).unwrap();
    let mut rows: Vec<_> =
        rows.iter().map(|r| (r.id, &*r.outcome, r.team.as_deref(), r.cost_nano_usd.0)).collect();
    rows.sort_unstable();
    assert_eq!(rows, [(1, "lost", Some("t"), 7), (2, "ok", Some("t"), 3)]);
    assert_eq!(dir.runs(), 0);
}

/// Its files are seen in the directory, and gone when they are opened.
#[test]
fn a_run_that_another_process_removes_meanwhile_is_left_to_it() {
    let dir = Dir::new();
    leave_a_dead_run(&dir, &journal::boot_id());
    let files = Files { database: dir.db(), run: 78 };
    for path in [files.lock(), files.segment(0), files.segment(1)] {
        std::os::unix::fs::symlink("gone", path).unwrap();
    }
    let ledger = Ledger::open(&dir.db(), &options()).unwrap();
    assert_eq!(lease(&ledger, "k", 100, 5).unwrap().others, 10);
}

#[test]
fn after_a_power_cut_the_rest_of_the_leases_counts_as_spent() {
    let dir = Dir::new();
    leave_a_dead_run(&dir, "another boot");
    let ledger = Ledger::open(&dir.db(), &options()).unwrap();
    let known = lease(&ledger, "k", 100, 99).unwrap();
    assert_eq!(known, Lease { others: 10, outstanding: 40, booked: 0, upto: 50 });
}

#[test]
fn an_account_opened_while_an_attempt_ran_has_its_cost_too() {
    let dir = Dir::new();
    let ledger = Ledger::open(&dir.db(), &options()).unwrap();
    let hold = ledger.hold(note("r", vec![]), false).unwrap();
    assert_eq!(lease(&ledger, "k", 100, 1).unwrap().others, 0);
    ledger.settle(hold, row("r", "k", None, 9));
    assert_eq!(lease(&ledger, "k", 100, 1).unwrap().others, 9);
}

#[test]
fn rows_past_the_queue_are_read_back_from_the_journal() {
    let dir = Dir::new();
    let options = Options { busy_wait: Duration::from_millis(5), ..options() };
    let ledger = Ledger::open(&dir.db(), &options).unwrap();
    let other = Connection::open(dir.db()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    ledger.shared.queued.fetch_add(2 * QUEUE, Ordering::AcqRel);
    (0..50).for_each(|_| ledger.append(row("r", "k", None, 1)));
    assert!(ledger.shared.spilled.load(Ordering::Acquire) && !ledger.healthy());
    ledger.shared.queued.fetch_sub(2 * QUEUE, Ordering::AcqRel);
    ledger.append(row("r", "k", None, 1));
    other.execute_batch("ROLLBACK").unwrap();
    while ledger.rows() < 51 {
        ledger.flush();
    }
    assert_eq!(sql::<i64>(&dir.db(), "SELECT sum(cost_nano_usd) FROM attempts"), 51);
    (0..5).for_each(|_| ledger.append(row("r", "k", None, 1)));
    assert!(ledger.flush());
    drop(ledger);
    assert_eq!(dir.runs(), 0);
}

#[test]
fn other_tables_are_written_in_a_transaction() {
    let dir = Dir::new();
    let ledger = Ledger::open(&dir.db(), &options()).unwrap();
    let insert =
        "INSERT INTO virtual_keys (id, hash, json, created_at) VALUES ('a', x'00', '{}', 'now')";
    assert_eq!(ledger.write(move |db| db.execute(insert, [])).unwrap(), 1);
    let failed = ledger.write(move |db| {
        db.execute("INSERT INTO audit VALUES ('now', 'admin', 'create', 'a', '{}')", [])?;
        db.execute(insert, [])
    });
    assert!(failed.is_err());
    assert_eq!(sql::<i64>(&dir.db(), "SELECT count(*) FROM audit"), 0);
    ledger.close();
    assert!(ledger.write(|_| Ok(())).is_err());
    assert!(!ledger.flush());
}

/// A restored file knows of fewer runs than there were: the journals beside it know the rest.
#[test]
fn a_run_after_a_restore_has_a_number_of_its_own() {
    let dir = Dir::new();
    let options = Options { busy_wait: Duration::from_millis(30), ..options() };
    let backup = dir.0.join("backup");
    let ledger = Ledger::open(&dir.db(), &options).unwrap();
    ledger.append(row("before", "k", None, 1));
    assert!(ledger.flush());
    drop(ledger);
    std::fs::copy(dir.db(), &backup).unwrap();
    let ledger = Ledger::open(&dir.db(), &options).unwrap();
    let other = Connection::open(dir.db()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    (0..5).for_each(|_| ledger.append(row("lost", "k", None, 1)));
    drop(ledger);
    drop(other);
    assert!(dir.runs() > 0, "the journal has what the database has not");
    for end in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{end}", dir.db().display()));
    }
    std::fs::copy(&backup, dir.db()).unwrap();
    for n in 1..4 {
        let ledger = Ledger::open(&dir.db(), &options).unwrap();
        ledger.append(row("after", "k", None, 1));
        assert!(ledger.flush());
        drop(ledger);
        assert_eq!(sql::<i64>(&dir.db(), "SELECT count(*) FROM attempts"), 6 + n);
    }
}
