//! What a process may spend, and accounts that are new.

use super::*;

#[test]
fn leases_of_two_processes_share_a_cap_and_come_back_at_the_end() {
    let dir = Dir::new();
    let one = Ledger::open(&dir.db(), &options()).unwrap();
    one.append(row("r", "k", None, 10));
    one.append(row("r", "other", None, 500));
    let two = Ledger::open(&dir.db(), &options()).unwrap();
    let first = lease(&one, "k", 100, 60).unwrap();
    assert_eq!(first, Lease { others: 10, outstanding: 0, booked: 0, upto: 60 });
    let second = lease(&two, "k", 100, 60).unwrap();
    assert_eq!(second, Lease { others: 10, outstanding: 60, booked: 0, upto: 30 });
    let hold = one.hold(note("r", vec![account("k")]), false).unwrap();
    one.settle(hold, row("r", "k", None, 25));
    one.flush();
    let second = lease(&two, "k", 100, 60).unwrap();
    assert_eq!(second, Lease { others: 35, outstanding: 35, booked: 0, upto: 30 });
    drop(one);
    let second = lease(&two, "k", 100, 60).unwrap();
    assert_eq!(second, Lease { others: 35, outstanding: 0, booked: 0, upto: 60 });
}

/// Each may have to sum up a month of rows, while nobody else writes.
#[test]
fn accounts_that_take_long_are_opened_one_by_one() {
    let dir = Dir::new();
    let slow = Options { opening: Duration::ZERO, ..options() };
    let ledger = Ledger::open(&dir.db(), &slow).unwrap();
    lease(&ledger, "there", 100, 1).unwrap();
    let ((begun, begins), (go, wait)) = (bounded::<()>(1), bounded::<()>(1));
    let (send, answers) = bounded(16);
    std::thread::scope(|scope| {
        // What is asked for while the thread is busy it has to do together.
        scope.spawn(|| {
            ledger.write(move |_| {
                let _ = begun.send(());
                let _ = wait.recv();
                Ok(())
            })
        });
        begins.recv().unwrap();
        for id in (0..9).map(|n| format!("k{n}")).chain(["there".to_owned()]) {
            let (send, path) = (send.clone(), dir.db());
            let ask = LeaseAsk { account: account(&id), cap: 100, want: 50 };
            let there = "SELECT count(*) FROM accounts WHERE kind = 'key'";
            let done = move |lease: Result<Lease, StoreError>| {
                let _ = send.send((lease.unwrap().upto, sql::<i64>(&path, there), id));
            };
            Store::lease(&*ledger, ask, Box::new(done));
        }
        go.send(()).unwrap();
    });
    let answers: Vec<_> = answers.iter().take(10).collect();
    assert_eq!(answers[0].2, "there", "a request may wait for it");
    assert!(answers.iter().all(|(upto, ..)| *upto == 50), "{answers:?}");
    let mut opened: Vec<i64> = answers.iter().map(|(_, opened, _)| opened - 1).collect();
    opened.dedup();
    assert!(opened.len() >= 8 && opened[0] <= 1 && opened.last() == Some(&9), "{opened:?}");
}
