//! What alerts need of the ledger: who told what already, and how fast money goes.

use super::error::LedgerError;
use super::lease::amount;
use super::row::instant;
use super::{Ledger, schema};
use crate::units::NanoUsd;
use chrono::{DateTime, Utc};
use rusqlite::{Connection, params};
use std::path::Path;

/// The right to tell something that is told once, among all processes on this database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// What is told.
    pub name: String,
    /// May be forgotten after this.
    pub until: DateTime<Utc>,
}

impl Ledger {
    /// Takes these rights; says of each whether nobody had it before. Blocks.
    ///
    /// # Errors
    /// The database can't be written: nothing was taken.
    pub fn claim(&self, claims: Vec<Claim>, now: DateTime<Utc>) -> Result<Vec<bool>, LedgerError> {
        self.write(move |db| {
            let mut insert =
                db.prepare_cached("INSERT OR IGNORE INTO alerts VALUES (?1, ?2, ?3)")?;
            let at = instant(now);
            let take = |claim: &Claim| {
                insert.execute(params![claim.name, at, claim.until.timestamp()]).map(|n| n == 1)
            };
            claims.iter().map(take).collect()
        })
    }
}

/// What was spent since a time, by the minute in which attempts began (minutes since 1970,
/// ascending), and the id of the newest row. Reads every row since then.
///
/// # Errors
/// The database can't be read.
pub fn spent_by_minute(
    path: &Path,
    from: DateTime<Utc>,
) -> Result<(Vec<(i64, NanoUsd)>, i64), LedgerError> {
    read(path, |db| {
        let mut select = db.prepare(
            "SELECT unixepoch(at) / 60 AS minute, sum(cost_nano_usd) FROM attempts
             WHERE at >= ?1 GROUP BY minute ORDER BY minute",
        )?;
        let rows = select
            .query_map([instant(from)], |row| Ok((row.get(0)?, NanoUsd(amount(row.get(1)?)))))?
            .collect::<Result<_, _>>()?;
        let newest = "SELECT coalesce(max(id), 0) FROM attempts";
        Ok((rows, db.query_row(newest, [], |row| row.get(0))?))
    })
}

/// What was spent in the rows after this id, by whichever process, and the id of the newest.
///
/// # Errors
/// The database can't be read.
pub fn spent_after(path: &Path, id: i64) -> Result<(NanoUsd, i64), LedgerError> {
    read(path, |db| {
        // Ids begin again when the newest rows were deleted.
        let newest: i64 =
            db.query_row("SELECT coalesce(max(id), 0) FROM attempts", [], |row| row.get(0))?;
        let sum = "SELECT coalesce(sum(cost_nano_usd), 0) FROM attempts WHERE id > ?1 AND id <= ?2";
        let spent = db.query_row(sum, [id.min(newest), newest], |row| row.get(0))?;
        Ok((NanoUsd(amount(spent)), newest))
    })
}

/// Both questions of a report see the same rows.
fn read<T>(
    path: &Path,
    question: impl FnOnce(&Connection) -> rusqlite::Result<T>,
) -> Result<T, LedgerError> {
    let mut connection = schema::open_to_read(path)?;
    let answer = connection.transaction().and_then(|transaction| question(&transaction));
    answer.map_err(|error| LedgerError::sql(path, &error))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Dir, at};
    use super::super::{Options, Row};
    use super::*;

    fn row(minute: &str, cost: u64) -> Row {
        Row { cost_nano_usd: NanoUsd(cost), ..Row::new(at(minute)) }
    }

    #[test]
    fn a_claim_is_given_once_and_outlives_the_process() {
        let dir = Dir::new();
        let now = at("2026-11-21T10:00:00Z");
        let claim = |name: &str| Claim { name: name.into(), until: now };
        let ledger = Ledger::open(&dir.db(), &Options::default()).unwrap();
        assert_eq!(
            ledger.claim(vec![claim("a"), claim("b"), claim("a")], now).unwrap(),
            [true, true, false]
        );
        drop(ledger);
        let ledger = Ledger::open(&dir.db(), &Options::default()).unwrap();
        assert_eq!(ledger.claim(vec![claim("c"), claim("b")], now).unwrap(), [true, false]);
    }

    #[test]
    fn the_first_version_gets_the_table() {
        let dir = Dir::new();
        drop(Ledger::open(&dir.db(), &Options::default()).unwrap());
        let old = Connection::open(dir.db()).unwrap();
        old.execute_batch("DROP TABLE alerts; PRAGMA user_version = 1").unwrap();
        drop(old);
        let ledger = Ledger::open(&dir.db(), &Options::default()).unwrap();
        let claim = Claim { name: "a".into(), until: DateTime::<Utc>::MAX_UTC };
        assert_eq!(ledger.claim(vec![claim], at("2026-11-21T10:00:00Z")).unwrap(), [true]);
    }

    #[test]
    fn spending_is_read_by_minute_and_then_from_where_it_was_left() {
        let dir = Dir::new();
        let ledger = Ledger::open(&dir.db(), &Options::default()).unwrap();
        assert_eq!(spent_after(&dir.db(), 0).unwrap(), (NanoUsd(0), 0));
        for (minute, cost) in [
            ("2026-11-21T09:00:00Z", 1),
            ("2026-11-21T10:00:01.5Z", 10),
            ("2026-11-21T10:02:00Z", 1000),
            ("2026-11-21T10:00:59Z", 100),
        ] {
            ledger.append(row(minute, cost));
        }
        assert!(ledger.flush());
        let from = at("2026-11-21T10:00:00Z");
        let minute = from.timestamp() / 60;
        let (minutes, newest) = spent_by_minute(&dir.db(), from).unwrap();
        assert_eq!(minutes, [(minute, NanoUsd(110)), (minute + 2, NanoUsd(1000))]);
        assert_eq!(spent_after(&dir.db(), newest).unwrap(), (NanoUsd(0), newest));
        ledger.append(row("2026-11-21T10:00:00Z", 7));
        assert!(ledger.flush());
        assert_eq!(spent_after(&dir.db(), newest).unwrap(), (NanoUsd(7), newest + 1));
        assert_eq!(spent_after(&dir.db(), newest + 9).unwrap(), (NanoUsd(0), newest + 1));
    }
}
