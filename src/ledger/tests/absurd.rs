//! Numbers that nobody can have meant.

use super::*;

/// A provider that counts wrong must not keep the books from being read, or written.
#[test]
fn absurd_numbers_are_kept_within_what_can_be_summed() {
    let dir = Dir::new();
    let ledger = Ledger::open(&dir.db(), &options()).unwrap();
    let lost = |n: u32| {
        let mut absurd = row(&format!("r{n}"), "k", None, u64::MAX);
        absurd.input_tokens = Some(u64::MAX);
        absurd.output_tokens = Some(u64::MAX);
        let hold = ledger.hold(note("r", vec![account("k")]), false).unwrap();
        ledger.settle(hold, absurd);
    };
    lease(&ledger, "k", 100, 1).unwrap();
    (0..1_100).for_each(lost);
    assert!(ledger.flush() && ledger.healthy());
    let all = spend(&dir.db(), &Filter::default(), &[], Tz::UTC, 1).unwrap();
    assert_eq!((all[0].attempts, all[0].input_tokens), (1_100, 1_100 << 40));
    assert_eq!(all[0].cost, NanoUsd(1_100 << 53));
    assert!(lease(&ledger, "k", 100, 1).unwrap().booked > 1 << 60);
    // One that is opened now, and what is written by a process of an older version.
    let mut old = row("old", "another", None, 5);
    old.output_tokens = Some(7);
    ledger.append(old);
    assert!(ledger.flush());
    let db = Connection::open(dir.db()).unwrap();
    db.execute_batch(
        "UPDATE attempts SET key_id = 'another', output_tokens = 9223372036854775807;
         UPDATE accounts SET spent_nano = 9223372036854775807 WHERE kind = 'all';",
    )
    .unwrap();
    assert!(lease(&ledger, "another", 100, 1).unwrap().others > 1 << 60);
    let all = spend(&dir.db(), &Filter::default(), &[], Tz::UTC, 1).unwrap();
    assert_eq!(all[0].output_tokens, 1_101 << 40);
    lost(0);
    assert!(ledger.flush() && ledger.healthy());
}

/// The thread that writes has a bug: no request is told that its money is kept.
#[test]
fn a_ledger_without_its_thread_is_not_healthy() {
    let dir = Dir::new();
    let ledger = Ledger::open(&dir.db(), &options()).unwrap();
    assert!(ledger.healthy() && ledger.alive());
    let refused = ledger.write::<()>(|_| std::panic::resume_unwind(Box::new("a bug")));
    assert!(matches!(refused, Err(LedgerError::Closed)));
    assert!(ledger.writer.lock().take().unwrap().join().is_err());
    assert!(!ledger.healthy() && !ledger.alive());
}
