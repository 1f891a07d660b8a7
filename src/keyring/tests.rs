use super::*;
use crate::keys::{Allow, LowBudget, Standing};
use crate::ledger::tests::{Dir, options};
use crate::scope::{Budget, Limits, Per, Scope};
use crate::units::NanoUsd;
use chrono::TimeDelta;

fn open(dir: &Dir) -> Arc<Ledger> {
    Ledger::open(&dir.db(), &options()).unwrap()
}

fn at(second: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap()
}

fn key(id: &str, hash: u8) -> StoredKey {
    let profile = Profile {
        team: Some("web".into()),
        user: Some("ana \"x\"".into()),
        models: Allow::new(["gpt-*", "deepseek"]),
        scope: Scope {
            limits: Limits { rpm: Some(5), tpm: None, parallel: Some(u64::MAX) },
            budgets: vec![Budget { cap: NanoUsd(1_500_000_001), per: Per::Week }],
        },
        unlimited: false,
        metadata: r#"{"a":1}"#.into(),
        low_budget: LowBudget::Clamp,
    };
    StoredKey {
        id: id.into(),
        hash: [hash; 32],
        profile: Arc::new(profile),
        created: at(0),
        expires: Some(at(1_000)),
        blocked: None,
        revoked: None,
        previous: None,
    }
}

const NOTE: Change =
    Change { at: DateTime::from_timestamp_nanos(0), actor: "test", action: "update" };

fn change(ring: &Keyring, id: &str, mut edit: impl FnMut(&mut StoredKey)) {
    let changed = ring.change(id, NOTE, |key| {
        edit(key);
        Ok::<_, String>("{}".into())
    });
    changed.unwrap();
}

#[test]
fn a_key_comes_back_from_the_disk_as_it_was() {
    let dir = Dir::new();
    let made = key("app", 1);
    {
        let ledger = open(&dir);
        let ring = Keyring::load(ledger.clone()).unwrap();
        ring.create(made.clone(), "test", "{}".into()).unwrap();
        ring.create(key("other", 2), "test", "{}".into()).unwrap();
        change(&ring, "other", |key| {
            (key.hash, key.previous) = ([3; 32], Some((key.hash, at(60))));
        });
        ledger.close();
    }
    let ring = Keyring::load(open(&dir)).unwrap();
    let caller = ring.by_hash(&[1; 32]).unwrap();
    assert_eq!(
        (&*caller.id, caller.expires, caller.standing),
        ("app", Some(at(1_000)), Standing::Active)
    );
    assert_eq!(*caller.profile, *made.profile);
    assert_eq!(ring.by_hash(&[2; 32]).unwrap().standing, Standing::Replaced(at(60)));
    let other = ring.by_hash(&[3; 32]).unwrap();
    assert_eq!(other.standing, Standing::Active);
    assert!(Arc::ptr_eq(&other.profile, &caller.profile), "keys that do the same share a profile");
}

#[test]
fn ids_and_hashes_are_taken_once() {
    let dir = Dir::new();
    let ring = Keyring::load(open(&dir)).unwrap();
    ring.create(key("app", 1), "test", "{}".into()).unwrap();
    for second in [key("app", 2), key("other", 1)] {
        let refused = ring.create(second, "test", "{}".into());
        assert!(matches!(refused, Err(ChangeError::Taken)));
    }
    let unknown = ring.change("none", NOTE, |_| Ok::<_, String>(String::new()));
    assert!(matches!(unknown, Err(ChangeError::Unknown)));
    let refused = ring.change("app", NOTE, |key| {
        key.blocked = Some(at(1));
        Err("no")
    });
    assert!(matches!(refused, Err(ChangeError::Refused("no"))));
    assert_eq!(ring.by_hash(&[1; 32]).unwrap().standing, Standing::Active);

    change(&ring, "app", |key| key.revoked = Some(at(2)));
    assert_eq!(ring.by_hash(&[1; 32]).unwrap().standing, Standing::Revoked);
    ring.create(key("app", 2), "test", "{}".into()).unwrap();
    assert!(ring.by_hash(&[1; 32]).is_none());
    assert_eq!(ring.list("", 10).unwrap().len(), 1);
    assert!(ring.list("app", 10).unwrap().is_empty());
}

#[test]
fn another_process_is_followed_and_own_changes_are_not_undone() {
    let dir = Dir::new();
    let one = Keyring::load(open(&dir)).unwrap();
    let two = Keyring::load(open(&dir)).unwrap();
    one.create(key("a", 1), "test", "{}".into()).unwrap();
    two.create(key("b", 2), "test", "{}".into()).unwrap();
    assert!(two.by_hash(&[1; 32]).is_none());
    one.refresh(|_| ()).unwrap();
    two.refresh(|_| ()).unwrap();
    for ring in [&one, &two] {
        assert!(ring.by_hash(&[1; 32]).is_some() && ring.by_hash(&[2; 32]).is_some());
    }
    change(&two, "a", |key| (key.hash, key.previous) = ([5; 32], Some(([1; 32], at(9)))));
    change(&one, "b", |key| key.blocked = Some(at(3)));
    one.refresh(|_| ()).unwrap();
    two.refresh(|_| ()).unwrap();
    for ring in [&one, &two] {
        assert_eq!(ring.by_hash(&[1; 32]).unwrap().standing, Standing::Replaced(at(9)));
        assert_eq!(ring.by_hash(&[5; 32]).unwrap().standing, Standing::Active);
        assert_eq!(ring.by_hash(&[2; 32]).unwrap().standing, Standing::Blocked);
    }
}

/// Both have read the key before either has written it.
#[test]
fn a_change_takes_nothing_back_that_another_process_has_done_meanwhile() {
    let dir = Dir::new();
    let one = Keyring::load(open(&dir)).unwrap();
    let two = Keyring::load(open(&dir)).unwrap();
    one.create(key("a", 1), "test", "{}".into()).unwrap();
    let (mut first, mut seen) = (true, Vec::new());
    let refused = one.change("a", NOTE, |key| {
        if std::mem::take(&mut first) {
            change(&two, "a", |key| key.blocked = Some(at(4)));
            change(&two, "a", |key| key.revoked = Some(at(5)));
        }
        seen.push(key.revoked);
        key.expires = None;
        if key.revoked.is_some() { Err("revoked") } else { Ok("{}".into()) }
    });
    assert!(matches!(refused, Err(ChangeError::Refused("revoked"))));
    assert_eq!(seen, [None, Some(at(5))]);
    let kept = two.get("a").unwrap().unwrap();
    assert_eq!(
        (kept.blocked, kept.revoked, kept.expires),
        (Some(at(4)), Some(at(5)), Some(at(1_000)))
    );
    for ring in [&one, &two] {
        ring.refresh(|_| ()).unwrap();
        assert_eq!(ring.by_hash(&[1; 32]).unwrap().standing, Standing::Revoked);
    }
}

/// Neither has heard of the other's key yet.
#[test]
fn one_hash_is_of_one_key_in_all_processes() {
    let dir = Dir::new();
    let one = Keyring::load(open(&dir)).unwrap();
    let two = Keyring::load(open(&dir)).unwrap();
    one.create(key("a", 1), "test", "{}".into()).unwrap();
    let again = two.create(key("b", 1), "test", "{}".into());
    assert!(matches!(again, Err(ChangeError::Taken)), "{again:?}");
    assert!(two.get("b").unwrap().is_none());
}

#[test]
fn a_key_that_is_changed_all_the_time_is_given_up() {
    let dir = Dir::new();
    let one = Keyring::load(open(&dir)).unwrap();
    let two = Keyring::load(open(&dir)).unwrap();
    one.create(key("a", 1), "test", "{}".into()).unwrap();
    let mut tries = 0;
    let given_up = one.change("a", NOTE, |_| {
        tries += 1;
        change(&two, "a", |key| key.blocked = Some(at(tries)));
        Ok::<_, String>("{}".into())
    });
    assert!(matches!(given_up, Err(ChangeError::Busy)));
    assert_eq!(two.get("a").unwrap().unwrap().blocked, Some(at(tries)));
}

#[test]
fn of_two_processes_one_makes_a_key() {
    let dir = Dir::new();
    let rings = [1, 2].map(|hash| (hash, Keyring::load(open(&dir)).unwrap()));
    let both = std::sync::Barrier::new(2);
    for n in 0..20 {
        let id = format!("k{n}");
        let made = std::thread::scope(|scope| {
            let threads = rings.each_ref().map(|(hash, ring)| {
                let key = key(&id, 2 * n + hash);
                let both = &both;
                scope.spawn(move || {
                    both.wait();
                    ring.create(key, "test", "{}".into())
                })
            });
            threads.map(|thread| thread.join().unwrap())
        });
        let taken = made.iter().filter(|made| matches!(made, Err(ChangeError::Taken))).count();
        assert_eq!((taken, made.iter().filter(|made| made.is_ok()).count()), (1, 1), "{made:?}");
    }
}

#[test]
fn a_row_that_cannot_be_read_stops_the_start() {
    let dir = Dir::new();
    let ledger = open(&dir);
    let ring = Keyring::load(ledger.clone()).unwrap();
    ring.create(key("app", 1), "test", "{}".into()).unwrap();
    for damage in [
        "UPDATE virtual_keys SET expires_at = 'soon'",
        "UPDATE virtual_keys SET expires_at = NULL, json = '{}'",
        r#"UPDATE virtual_keys SET json = '{"models":["*"],"budgets":[[5,"aeon"]]}'"#,
    ] {
        ledger.write(|db| db.execute_batch(damage)).unwrap();
        assert!(Keyring::load(ledger.clone()).is_err(), "{damage}");
    }
}

/// `cargo test --release -- --ignored a_million_stored_keys --nocapture`
#[test]
#[ignore = "measures"]
fn a_million_stored_keys() {
    let dir = Dir::new();
    let ledger = open(&dir);
    let mut row = key("k", 0);
    ledger
        .write(move |db| {
            for n in 0..1_000_000u64 {
                row.id = format!("key-{n:012}").into();
                row.hash = crate::secret::sha256(&n.to_le_bytes());
                row.expires = Some(at(0) + TimeDelta::seconds(n as i64));
                row.write(db)?;
            }
            Ok(())
        })
        .unwrap();
    let memory = || {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096 / 1_000_000
    };
    let before = memory();
    let start = std::time::Instant::now();
    let ring = Keyring::load(ledger).unwrap();
    println!("{:?}, {} MB", start.elapsed(), memory() - before);
    assert!(ring.by_hash(&crate::secret::sha256(&999_999u64.to_le_bytes())).is_some());
}
