//! Old rows are deleted, and stay so.

use super::*;

#[test]
fn retention_deletes_rows_and_not_what_budgets_know() {
    let dir = Dir::new();
    let ledger = Ledger::open(&dir.db(), &options()).unwrap();
    (0..3).for_each(|_| ledger.append(row("r", "k", None, 9)));
    assert_eq!(lease(&ledger, "k", 100, 1).unwrap().others, 27);
    assert_eq!(ledger.prune(at("2026-11-21T10:00:00Z")).unwrap(), 0);
    assert_eq!(ledger.prune(at("2026-11-21T10:00:01Z")).unwrap(), 3);
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
    let refused = ledger.prune(at("2026-11-22T00:00:00Z")).unwrap_err();
    assert!(matches!(refused, LedgerError::Journal { .. }), "{refused}");
    assert_eq!(sql::<i64>(&dir.db(), "SELECT count(*) FROM attempts"), 3);
    std::fs::remove_dir(&next).unwrap();
    assert_eq!(ledger.prune(at("2026-11-22T00:00:00Z")).unwrap(), 3);
    let text = journal();
    assert!(!text.contains("old-") && text.contains("runs"), "{text}");
    ledger.settle(runs, row("runs", "k", None, 5));
    drop(ledger);
    let ledger = Ledger::open(&dir.db(), &options()).unwrap();
    assert_eq!(lease(&ledger, "k", 100, 1).unwrap().others, 5);
}
