//! `kill -9` at a random moment, twenty times.

use super::*;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

const CHILD: &str = "TOLLBAR_TEST_KILLED";
const CAP: u64 = 40_000_000;
const WORST: u64 = 3_000;

fn budgets() -> [Budget; 2] {
    [cap(CAP, Per::Day), cap(2 * CAP, Per::Total)]
}

fn charges(budgets: &[Budget; 2]) -> [Charge<'_>; 2] {
    [key("k", budgets), Charge { kind: ScopeKind::Team, id: "t", budgets }]
}

/// What an attempt is billed: less than its worst case.
fn price(n: u64) -> u64 {
    n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33 & 0x7ff
}

/// Holds, tells the parent that the provider has billed it, settles, tells the parent; until it
/// is killed.
fn work(path: &std::path::Path) {
    let options = Options { journal_bytes: 60_000, ..options() };
    let ledger = Ledger::open(path, &options).unwrap();
    let bench = Bench { budgets: Budgets::new(ledger.clone(), Tz::UTC), ledger };
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let bench = &bench;
            scope.spawn(move || {
                let budgets = budgets();
                for n in 0.. {
                    let charges = charges(&budgets);
                    let request = format!("{thread}-{n}");
                    let hold =
                        bench.budgets.acquire(&request, &charges, NanoUsd(WORST), noon, true);
                    let Ok(hold) = block_on(hold) else { return };
                    let (id, cost) = (hold.id(), price(n + thread * 7919));
                    say(&format!("billed {id} {cost}\n"));
                    hold.settle(NanoUsd(cost), row("k"));
                    say(&format!("settled {id} {cost}\n"));
                }
            });
        }
    });
    say("full\n");
    std::thread::sleep(std::time::Duration::from_secs(60));
}

/// One write to the pipe, which the kernel keeps when the process is killed.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes()).unwrap();
    out.flush().unwrap();
}

#[test]
fn twenty_kills_lose_nothing_and_pass_no_cap() {
    if let Some(path) = std::env::var_os(CHILD) {
        return work(path.as_ref());
    }
    let module = module_path!().split_once("::").unwrap().1;
    let name = format!("{module}::twenty_kills_lose_nothing_and_pass_no_cap");
    let dir = Dir::new();
    // What the provider says: cost by attempt, and whether the gateway came to settle it.
    let mut billed: BTreeMap<i64, (u64, bool)> = BTreeMap::new();
    for round in 0..20u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([name.as_str(), "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD, dir.db())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let reader = std::thread::spawn(move || -> Vec<String> {
            out.lines().map_while(Result::ok).collect()
        });
        std::thread::sleep(std::time::Duration::from_millis(60 + price(round) % 150));
        child.kill().unwrap();
        child.wait().unwrap();
        for line in reader.join().unwrap() {
            let words: Vec<&str> = line.split(' ').collect();
            if let ["billed" | "settled", id, cost] = words[..]
                && let (Ok(id), Ok(cost)) = (id.parse(), cost.parse())
            {
                billed.entry(id).or_insert((cost, false)).1 |= words[0] == "settled";
            }
        }
        check(&dir, &billed);
    }
    assert!(billed.len() > 100, "{} attempts", billed.len());
    println!("{} attempts, {} unsettled", billed.len(), billed.values().filter(|b| !b.1).count());
    assert_eq!(dir.runs(), 0);
}

fn check(dir: &Dir, billed: &BTreeMap<i64, (u64, bool)>) {
    let bench = bench(dir, Tz::UTC);
    let rows: BTreeMap<i64, Row> = requests(&dir.db(), &Filter::default(), u64::MAX)
        .unwrap()
        .into_iter()
        .map(|row| (row.id, row))
        .collect();
    for (id, (cost, settled)) in billed {
        let row = rows.get(id).unwrap_or_else(|| panic!("attempt {id} has no row"));
        assert!(row.cost_nano_usd.0 >= *cost, "{row:?}");
        if *settled || row.outcome != "lost" {
            assert_eq!((&*row.outcome, row.cost_nano_usd.0), ("ok", *cost));
        } else {
            assert_eq!(row.cost_nano_usd.0, WORST);
        }
    }
    let spent: u64 = rows.values().map(|row| row.cost_nano_usd.0).sum();
    let budgets = budgets();
    block_on(bench.budgets.warm(&charges(&budgets), noon()));
    for view in bench.budgets.view(noon()) {
        assert_eq!((view.spent.0, view.held.0, view.elsewhere.0), (spent, 0, 0), "{view:?}");
        assert!(spent <= CAP);
    }
}
