//! What alerts need of the ledger: who told what already, and how fast money goes.

use super::attempts;
use super::error::LedgerError;
use super::lease::{self, amount};
use super::row::instant;
use super::writer::Command;
use super::{Ledger, schema};
use crate::units::NanoUsd;
use chrono::{DateTime, Utc};
use rusqlite::{Connection, TransactionBehavior, params};
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

    /// Gives back rights to tell what was not told after all. Doesn't wait for it; it is done
    /// before the ledger closes.
    pub fn unclaim(&self, names: Vec<String>) {
        if names.is_empty() {
            return;
        }
        let job = move |db: &mut Connection| {
            if let Err(error) = delete(db, &names) {
                log::error!("alerts: what was not sent is not told again either: {error}");
            }
        };
        if self.commands.send(Command::Job(Box::new(job))).is_err() {
            log::error!(
                "alerts: what was not sent is not told again either: {}",
                LedgerError::Closed
            );
        }
    }
}

fn delete(db: &mut Connection, names: &[String]) -> rusqlite::Result<()> {
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    {
        let mut delete = transaction.prepare_cached("DELETE FROM alerts WHERE name = ?1")?;
        names.iter().try_for_each(|name| delete.execute([name]).map(drop))?;
    }
    transaction.commit()
}

/// What was spent since a time, by the minute in which attempts began (minutes since 1970,
/// ascending), and what was ever booked. Reads every row since then.
///
/// # Errors
/// The database can't be read.
pub fn spent_by_minute(
    path: &Path,
    from: DateTime<Utc>,
) -> Result<(Vec<(i64, NanoUsd)>, NanoUsd), LedgerError> {
    read(path, |db| {
        let mut select = db.prepare(&format!(
            "SELECT unixepoch(at) / 60 AS minute, {} FROM attempts
             WHERE at >= ?1 GROUP BY minute ORDER BY minute",
            attempts::SUMS_OF_COST
        ))?;
        let rows = select
            .query_map([instant(from)], |row| Ok((row.get(0)?, attempts::sum(row, 1)?)))?
            .collect::<Result<_, _>>()?;
        Ok((rows, booked(db)?))
    })
}

/// What was ever booked, by whichever process. Ids say when an attempt began, not when it was booked.
///
/// # Errors
/// The database can't be read.
pub fn ever_spent(path: &Path) -> Result<NanoUsd, LedgerError> {
    read(path, booked)
}

fn booked(db: &Connection) -> rusqlite::Result<NanoUsd> {
    let sum = "SELECT coalesce(sum(spent_nano), 0) FROM accounts WHERE kind = ?1";
    Ok(NanoUsd(amount(db.query_row(sum, [lease::ALL], |row| row.get(0))?)))
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
    use super::super::Row;
    use super::super::tests::{Dir, at, options};
    use super::*;

    fn row(minute: &str, cost: u64) -> Row {
        Row { cost_nano_usd: NanoUsd(cost), ..Row::new(at(minute)) }
    }

    #[test]
    fn a_claim_is_given_once_and_outlives_the_process() {
        let dir = Dir::new();
        let now = at("2026-11-21T10:00:00Z");
        let claim = |name: &str| Claim { name: name.into(), until: now };
        let ledger = Ledger::open(&dir.db(), &options()).unwrap();
        assert_eq!(
            ledger.claim(vec![claim("a"), claim("b"), claim("a")], now).unwrap(),
            [true, true, false]
        );
        drop(ledger);
        let ledger = Ledger::open(&dir.db(), &options()).unwrap();
        assert_eq!(ledger.claim(vec![claim("c"), claim("b")], now).unwrap(), [true, false]);
    }

    #[test]
    fn a_claim_that_is_given_back_at_the_end_is_the_next_one_s() {
        let dir = Dir::new();
        let now = at("2026-11-21T10:00:00Z");
        let claims = || {
            let claim = |name: &str| Claim { name: name.into(), until: now };
            vec![claim("a"), claim("b"), claim("c")]
        };
        let ledger = Ledger::open(&dir.db(), &options()).unwrap();
        assert_eq!(ledger.claim(claims(), now).unwrap(), [true; 3]);
        ledger.unclaim(vec!["a".into(), "never claimed".into(), "c".into()]);
        ledger.close();
        let ledger = Ledger::open(&dir.db(), &options()).unwrap();
        assert_eq!(ledger.claim(claims(), now).unwrap(), [true, false, true]);
    }

    #[test]
    fn the_first_version_gets_the_table() {
        let dir = Dir::new();
        drop(Ledger::open(&dir.db(), &options()).unwrap());
        let old = Connection::open(dir.db()).unwrap();
        old.execute_batch("DROP TABLE alerts; PRAGMA user_version = 1").unwrap();
        drop(old);
        let ledger = Ledger::open(&dir.db(), &options()).unwrap();
        let claim = Claim { name: "a".into(), until: DateTime::<Utc>::MAX_UTC };
        assert_eq!(ledger.claim(vec![claim], at("2026-11-21T10:00:00Z")).unwrap(), [true]);
    }

    #[test]
    fn spending_is_read_by_minute_and_then_from_where_it_was_left() {
        let dir = Dir::new();
        let ledger = Ledger::open(&dir.db(), &options()).unwrap();
        assert_eq!(ever_spent(&dir.db()).unwrap(), NanoUsd(0));
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
        let (minutes, before) = spent_by_minute(&dir.db(), from).unwrap();
        assert_eq!(minutes, [(minute, NanoUsd(110)), (minute + 2, NanoUsd(1000))]);
        assert_eq!(before, NanoUsd(1111));
        // One that has begun before them all, and takes longer.
        let slow = Row { id: -5, ..row("2026-11-21T08:00:00Z", 7) };
        ledger.append(slow);
        assert!(ledger.flush());
        assert_eq!(ever_spent(&dir.db()).unwrap(), NanoUsd(1118));
        drop(ledger);
        let ledger = Ledger::open(&dir.db(), &options()).unwrap();
        ledger.append(row("2026-11-21T11:00:00Z", 2));
        assert!(ledger.flush());
        assert_eq!(ever_spent(&dir.db()).unwrap(), NanoUsd(1120), "of all processes");
    }
}
