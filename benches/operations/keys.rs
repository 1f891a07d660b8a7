//! From what a client presents to who it is.

use super::{Clock, Operation, Work, single};
use std::hint::black_box;
use std::sync::Arc;
use tollbar::keys::{Allow, Caller, KeyTable, Profile, Standing};
use tollbar::secret::sha256;

/// Keys that are looked up in turn, so that not every look finds its entry in the cache.
const PRESENTED: u64 = 4_096;

pub fn operations() -> Vec<Operation> {
    vec![
        single("keys/10", || lookup(10)),
        single("keys/10k", || lookup(10_000)),
        single("keys/1M", || lookup(1_000_000)),
    ]
}

fn lookup(keys: u64) -> Box<dyn Work> {
    let profile = Arc::new(Profile { models: Allow::new(["*"]), ..Profile::default() });
    let presented: Vec<String> = (0..keys.min(PRESENTED)).map(plain).collect();
    let hash = |n: u64| match presented.get(n as usize) {
        Some(key) => sha256(key.as_bytes()),
        // Nobody presents these: any digest will do, and this one is quickly made.
        None => spread(n),
    };
    let table = KeyTable::new((0..keys).map(|n| {
        Arc::new(Caller {
            id: format!("key-{n}").into(),
            hash: hash(n),
            expires: None,
            standing: Standing::Active,
            profile: profile.clone(),
        })
    }));
    let clock = Clock::default();
    Box::new(move |lane| {
        let turn = clock.look(lane).as_micros() as usize / 100;
        let key = &presented[turn % presented.len()];
        assert!(black_box(table.lookup(black_box(key))).is_some());
    })
}

/// As long as `tollbar keygen` makes them.
fn plain(n: u64) -> String {
    format!("tb-{n:043}")
}

fn spread(n: u64) -> [u8; 32] {
    let word = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut hash = [0; 32];
    for (place, bytes) in hash.chunks_exact_mut(8).enumerate() {
        let mixed = (word ^ word >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9 + 2 * place as u64);
        bytes.copy_from_slice(&mixed.to_le_bytes());
    }
    hash
}
