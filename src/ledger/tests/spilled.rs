//! Rows that found no place in the queue.

use super::*;

#[test]
fn rows_that_still_wait_are_not_read_back_too() {
    let dir = Dir::new();
    let ledger = Ledger::open(&dir.db(), &options()).unwrap();
    let (here, arrived) = bounded(0);
    let (go_on, waits) = bounded(0);
    std::thread::scope(|scope| {
        let ledger = &ledger;
        scope.spawn(move || {
            // Behind this the writer reads back, before it takes what has come meanwhile.
            let job = move |_: &Connection| {
                let _ = here.send(());
                let _ = waits.recv();
                Ok(())
            };
            ledger.write(job).unwrap();
        });
        arrived.recv().unwrap();
        ledger.append(row("waits", "k", None, 1));
        ledger.shared.queued.fetch_add(2 * QUEUE, Ordering::AcqRel);
        ledger.append(row("spilled", "k", None, 1));
        ledger.shared.queued.fetch_sub(2 * QUEUE, Ordering::AcqRel);
        go_on.send(()).unwrap();
    });
    assert!(ledger.flush());
    assert_eq!(ledger.rows(), 2);
    assert_eq!(sql::<i64>(&dir.db(), "SELECT count(*) FROM attempts"), 2);
}
