//! Virtual keys that are made, changed and revoked while running. They stand beside those of the
//! file: hashed, in the state file, effective for the next request.
//!
//! Every change is a row of `audit`, written in the same transaction. Its row number is also how
//! another process on the same state file (the old one of an upgrade) learns of the change.

mod stored;
#[cfg(test)]
mod tests;

pub use stored::StoredKey;

use crate::keys::{Caller, KeyTable, Profile};
use crate::ledger::{Ledger, LedgerError, instant};
use ahash::AHashMap;
use chrono::{DateTime, Utc};
use parking_lot::{Mutex, RwLock};
use rusqlite::{Connection, OptionalExtension, params};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// Many keys do the same: so many different profiles are recognised again while loading.
const SHARED_PROFILES: usize = 65_536;

/// How often a change is made anew, where other processes change the same key.
const TRIES: usize = 8;

/// The keys of the state file.
pub struct Keyring {
    ledger: Arc<Ledger>,
    table: RwLock<KeyTable>,
    /// The last row of `audit` that the table knows of.
    seen: AtomicI64,
    /// One change at a time: each one reads before it writes. (Other processes are found out in
    /// [`Keyring::store`].)
    changing: Mutex<()>,
}

/// Why a key was not changed. Nothing was, then.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError<E> {
    /// The database.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// There is no such key.
    #[error("there is no such key")]
    Unknown,
    /// Another key has this id or this hash.
    #[error("there is a key with this id or hash already")]
    Taken,
    /// Other processes change the key all the time.
    #[error("another process changes the key at the same time")]
    Busy,
    /// What the change itself says.
    #[error("{0}")]
    Refused(E),
}

impl Keyring {
    /// Loads every key. Blocks: a million take about two seconds.
    ///
    /// # Errors
    /// The database can't be read.
    pub fn load(ledger: Arc<Ledger>) -> Result<Keyring, LedgerError> {
        let (table, seen) = ledger.read(|db| {
            // Before the keys: what changes in between is read twice rather than never.
            let seen = newest_change(db)?;
            let mut profiles = Profiles::default();
            let mut table = KeyTable::default();
            let mut statement =
                db.prepare(&format!("SELECT {} FROM virtual_keys", stored::COLUMNS))?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let key = StoredKey::read(row, |json| profiles.of(json))?;
                for caller in key.callers() {
                    table.insert(Arc::new(caller));
                }
            }
            Ok((table, seen))
        })?;
        Ok(Keyring {
            ledger,
            table: RwLock::new(table),
            seen: AtomicI64::new(seen),
            changing: Mutex::default(),
        })
    }

    /// The key with this hash, in force or not.
    pub fn by_hash(&self, hash: &[u8; 32]) -> Option<Arc<Caller>> {
        let table = self.table.read();
        if table.is_empty() { None } else { table.by_hash(hash).cloned() }
    }

    /// Shows the owners of all keys, in force or not. Nothing is locked meanwhile: requests wait for
    /// who changes keys, and who does would wait for this.
    pub fn each(&self, visit: &mut dyn FnMut(&Arc<Caller>)) {
        let all: Vec<Arc<Caller>> = self.table.read().iter().cloned().collect();
        all.iter().for_each(visit);
    }

    /// How many hashes are known.
    pub fn len(&self) -> usize {
        self.table.read().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether any key of this id is known, and what it may do. Blocks.
    ///
    /// # Errors
    /// The database can't be read.
    pub fn get(&self, id: &str) -> Result<Option<StoredKey>, LedgerError> {
        self.ledger.read(|db| get(db, "id", &id))
    }

    /// The key that has or had this hash. Blocks.
    ///
    /// # Errors
    /// The database can't be read.
    pub fn get_by_hash(&self, hash: &[u8; 32]) -> Result<Option<StoredKey>, LedgerError> {
        if let Some(key) = self.ledger.read(|db| get(db, "hash", hash))? {
            return Ok(Some(key));
        }
        // One that was rotated away is known in memory only, by the id of its successor.
        match self.by_hash(hash) {
            Some(had) => self.get(&had.id),
            None => Ok(None),
        }
    }

    /// So many keys at most, by id, after this one. Blocks.
    ///
    /// # Errors
    /// The database can't be read.
    pub fn list(&self, after: &str, limit: u64) -> Result<Vec<StoredKey>, LedgerError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.ledger.read(|db| {
            let mut profiles = Profiles::default();
            let sql = format!(
                "SELECT {} FROM virtual_keys WHERE id > ?1 ORDER BY id LIMIT ?2",
                stored::COLUMNS
            );
            let mut statement = db.prepare(&sql)?;
            let rows = statement.query_map(params![after, limit], |row| {
                StoredKey::read(row, |json| profiles.of(json))
            })?;
            rows.collect()
        })
    }

    /// Adds a key. The id of a revoked one may be used again; what it has spent stays with the id.
    /// Blocks until it is on the disk.
    ///
    /// # Errors
    /// The id or the hash is taken, or the database can't be written.
    pub fn create(
        &self,
        key: StoredKey,
        actor: &'static str,
        detail: String,
    ) -> Result<(), ChangeError<std::convert::Infallible>> {
        let change = Change { at: key.created, actor, action: "create" };
        self.replace(&key.id, change, |old| {
            let same = self.get_by_hash(&key.hash)?;
            if old.is_some_and(|old| old.revoked.is_none())
                || same.is_some_and(|other| other.id != key.id)
            {
                return Err(ChangeError::Taken);
            }
            Ok((key.clone(), detail.clone()))
        })?;
        Ok(())
    }

    /// Changes a key, and returns it as it is then. `edit` says for the record what it did: JSON,
    /// and never a key; it is asked again where another process was quicker. Blocks until it is on
    /// the disk.
    ///
    /// # Errors
    /// There is no such key, `edit` refuses, others change it all the time, or the database can't be
    /// written.
    pub fn change<E>(
        &self,
        id: &str,
        change: Change,
        mut edit: impl FnMut(&mut StoredKey) -> Result<String, E>,
    ) -> Result<StoredKey, ChangeError<E>> {
        self.replace(id, change, |old| {
            let mut key = old.cloned().ok_or(ChangeError::Unknown)?;
            let detail = edit(&mut key).map_err(ChangeError::Refused)?;
            Ok((key, detail))
        })
    }

    /// Takes over what other processes have changed in the same state file, and returns the
    /// ids of the keys. `first` is called with them before they are shown, if there are any. Blocks.
    ///
    /// # Errors
    /// The database can't be read.
    pub fn refresh(&self, first: impl FnOnce(&[String])) -> Result<Vec<String>, LedgerError> {
        if self.ledger.read(newest_change)? == self.seen.load(Ordering::Acquire) {
            return Ok(Vec::new());
        }
        let _turn = self.changing.lock();
        let seen = self.seen.load(Ordering::Acquire);
        let (newest, changed) = self.ledger.read(|db| {
            let newest = newest_change(db)?;
            let mut statement =
                db.prepare("SELECT DISTINCT key_id FROM audit WHERE rowid > ?1 AND key_id > ''")?;
            let ids = statement.query_map([seen], |row| row.get::<_, String>(0))?;
            let ids = ids.collect::<Result<Vec<_>, _>>()?;
            let keys = ids.iter().map(|id| get(db, "id", id)).collect::<Result<Vec<_>, _>>()?;
            Ok((newest, ids.into_iter().zip(keys).collect::<Vec<_>>()))
        })?;
        let (ids, keys): (Vec<String>, Vec<_>) = changed.into_iter().unzip();
        if !ids.is_empty() {
            first(&ids);
        }
        for (id, key) in ids.iter().zip(&keys) {
            self.show(id, key.as_ref());
        }
        self.seen.store(newest, Ordering::Release);
        Ok(ids)
    }

    /// Puts what `make` makes of a key in its place, once it was made of the key as it is.
    fn replace<E>(
        &self,
        id: &str,
        change: Change,
        mut make: impl FnMut(Option<&StoredKey>) -> Result<(StoredKey, String), ChangeError<E>>,
    ) -> Result<StoredKey, ChangeError<E>> {
        let _turn = self.changing.lock();
        for _ in 0..TRIES {
            let old = self.get(id)?;
            let (key, detail) = make(old.as_ref())?;
            if self.store(old, &key, change, detail)? {
                return Ok(key);
            }
        }
        Err(ChangeError::Busy)
    }

    /// Writes a key and the record of the change, unless the key is not any more what it was:
    /// whoever hasn't seen a revocation would take it back. Says whether it did.
    fn store(
        &self,
        old: Option<StoredKey>,
        key: &StoredKey,
        change: Change,
        detail: String,
    ) -> Result<bool, LedgerError> {
        let (row, was) = (key.clone(), old.clone());
        let number = self.ledger.write(move |db| {
            let other = get(db, "hash", &row.hash)?.filter(|other| other.id != row.id);
            if get(db, "id", &&*row.id)? != was || other.is_some() {
                return Ok(None);
            }
            row.write(db)?;
            let at = instant(change.at);
            db.prepare_cached(
                "INSERT INTO audit (at, actor, action, key_id, detail) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![at, change.actor, change.action, &*row.id, detail])?;
            Ok(Some(db.last_insert_rowid()))
        })?;
        let Some(number) = number else { return Ok(false) };
        let mut table = self.table.write();
        for gone in old.iter().flat_map(StoredKey::callers) {
            table.remove(&gone.hash);
        }
        for caller in key.callers() {
            table.insert(Arc::new(caller));
        }
        drop(table);
        // Only past our own row: another process may have written just before it.
        let before = number - 1;
        let _ = self.seen.compare_exchange(before, number, Ordering::AcqRel, Ordering::Acquire);
        Ok(true)
    }

    /// Puts a key as it was read in place of every hash that its id had.
    fn show(&self, id: &str, key: Option<&StoredKey>) {
        let same = |caller: &&Arc<Caller>| &*caller.id == id;
        let old: Vec<[u8; 32]> =
            self.table.read().iter().filter(same).map(|caller| caller.hash).collect();
        let mut table = self.table.write();
        for hash in &old {
            table.remove(hash);
        }
        for caller in key.into_iter().flat_map(StoredKey::callers) {
            table.insert(Arc::new(caller));
        }
    }
}

/// Who changes a key, and how.
#[derive(Debug, Clone, Copy)]
pub struct Change {
    /// When.
    pub at: DateTime<Utc>,
    /// Who, in a word.
    pub actor: &'static str,
    /// `create`, `update`, `block`, `unblock`, `rotate` or `revoke`.
    pub action: &'static str,
}

fn newest_change(db: &Connection) -> rusqlite::Result<i64> {
    db.query_row("SELECT coalesce(max(rowid), 0) FROM audit", [], |row| row.get(0))
}

fn get(
    db: &Connection,
    column: &str,
    value: &dyn rusqlite::ToSql,
) -> rusqlite::Result<Option<StoredKey>> {
    let sql = format!("SELECT {} FROM virtual_keys WHERE {column} = ?1", stored::COLUMNS);
    db.prepare_cached(&sql)?
        .query_row([value], |row| {
            StoredKey::read(row, |json| stored::from_json(json).map(Arc::new))
        })
        .optional()
}

/// Profiles by their JSON, so that keys that do the same share one.
#[derive(Default)]
struct Profiles {
    /// Two independent hashes of 64 bits stand for the text.
    seen: AHashMap<(u64, u64), Arc<Profile>>,
    hashers: (ahash::RandomState, ahash::RandomState),
}

impl Profiles {
    fn of(&mut self, json: &str) -> Result<Arc<Profile>, serde_json::Error> {
        let mark = (self.hashers.0.hash_one(json), self.hashers.1.hash_one(json));
        if let Some(profile) = self.seen.get(&mark) {
            return Ok(profile.clone());
        }
        let profile = Arc::new(stored::from_json(json)?);
        if self.seen.len() < SHARED_PROFILES {
            self.seen.insert(mark, profile.clone());
        }
        Ok(profile)
    }
}
