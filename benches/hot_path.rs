//! How long the operations take. `make bench` runs it; `cargo bench --bench hot_path -- plan`
//! a part of it.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod operations;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use operations::{LANES, STRETCH, Work};
use std::sync::Barrier;
use std::time::{Duration, Instant};

// As the gateway's own binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

criterion_group!(name = benches; config = short(); targets = measure);
criterion_main!(benches);

/// All of it within four minutes: a first look, not a proof. The instructions are exact.
fn short() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(700))
        .nresamples(10_000)
        .without_plots()
}

fn measure(criterion: &mut Criterion) {
    for operation in operations::all() {
        let mut work: Option<Box<dyn Work>> = None;
        let (group, case) = operation.name.split_once('/').unwrap();
        let mut group = criterion.benchmark_group(group);
        group.bench_function(case, |bencher| {
            let work = work.get_or_insert_with(operation.make);
            bencher.iter_custom(|runs| per_unit(alone(&**work, runs), &**work));
        });
        if operation.contended {
            group.throughput(Throughput::Elements(LANES as u64));
            group.bench_function(format!("{case}/{LANES}-threads"), |bencher| {
                let work = work.get_or_insert_with(operation.make);
                bencher.iter_custom(|runs| together(&**work, runs));
            });
        }
        group.finish();
    }
}

fn per_unit(took: Duration, work: &dyn Work) -> Duration {
    Duration::from_nanos((took.as_nanos() / u128::from(work.units())) as u64)
}

fn alone(work: &dyn Work, runs: u64) -> Duration {
    let mut took = Duration::ZERO;
    for stretch in stretches(runs, STRETCH) {
        let start = Instant::now();
        (0..stretch).for_each(|_| work.run(0));
        took += start.elapsed();
        work.rest();
    }
    took
}

/// Every lane does all the runs; the time is that of the slowest.
fn together(work: &dyn Work, runs: u64) -> Duration {
    let mut took = Duration::ZERO;
    for stretch in stretches(runs, STRETCH / LANES as u64) {
        let barrier = Barrier::new(LANES + 1);
        took += std::thread::scope(|scope| {
            for lane in 0..LANES {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    (0..stretch).for_each(|_| work.run(lane));
                    barrier.wait();
                });
            }
            barrier.wait();
            let start = Instant::now();
            barrier.wait();
            start.elapsed()
        });
        work.rest();
    }
    took
}

fn stretches(runs: u64, most: u64) -> impl Iterator<Item = u64> {
    (0..runs.div_ceil(most)).map(move |n| most.min(runs - n * most))
}
