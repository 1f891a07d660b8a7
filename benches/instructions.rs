//! Runs one operation again and again, for `instructions.py` to have it counted by callgrind:
//! `instructions NAME`. Without a name it lists the operations.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod operations;

use operations::Work;

// As the gateway's own binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs before the counted ones.
const WARM: u64 = 10;

fn main() {
    // `cargo bench` itself passes `--bench`.
    let Some(name) = std::env::args().skip(1).find(|arg| !arg.starts_with("--")) else {
        return operations::all().iter().for_each(|it| println!("{} {}", it.name, it.unit));
    };
    let operation = operations::all().into_iter().find(|it| it.name == name).unwrap();
    let work = (operation.make)();
    (0..WARM).for_each(|_| work.run(0));
    work.rest();
    counted(&*work, operation.counted);
    work.rest();
    println!("units {}", operation.counted * work.units());
}

/// Callgrind counts from here on, in this thread, until it returns.
#[inline(never)]
fn counted(work: &dyn Work, runs: u64) {
    for _ in 0..runs {
        work.run(0);
    }
    // So that the loop is not its last act, which could become a jump.
    std::hint::black_box(());
}
