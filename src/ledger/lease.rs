//! Accounts and leases: what a process may spend, committed before it does.
//!
//! For every account at any time: `spent + Σ (upto − booked) ≤ cap` when a lease is given, over
//! the leases of all runs. So several processes on one database share a cap, and what a process
//! may have spent unseen when the power went is bounded by its leases: they stay, and count as
//! spent, until the window ends (or an operator who knows better deletes them). After a mere
//! kill of the process the journal is complete, and its leases go as soon as it was read.

use super::attempts;
use super::row::{Row, Word, instant};
use super::store::{AccountKey, AccountName, Lease, LeaseAsk};
use crate::scope::{Per, ScopeKind};
use crate::units::NanoUsd;
use ahash::AHashMap;
use chrono::{DateTime, Utc};
use rusqlite::{Connection, OptionalExtension, params};

/// Amounts as SQLite has them.
pub(super) fn int(amount: u64) -> i64 {
    i64::try_from(amount).unwrap_or(i64::MAX)
}

/// Amounts as SQLite has them.
pub(super) fn amount(int: i64) -> u64 {
    u64::try_from(int).unwrap_or(0)
}

/// For so many seconds after their end the accounts of minutes and hours are still kept: a day of them
/// would be 1,440 for each scope, to be read again whenever another process has written. They limit
/// nothing any more, and what an attempt costs that still runs is booked where it was held.
pub(super) const SHORT: i64 = 2 * 3600;

/// The accounts in the database, to find those that a row belongs to beside its hold's: an
/// account that was opened while the attempt ran.
#[derive(Default)]
pub(super) struct Known {
    by_scope: AHashMap<ScopeKind, AHashMap<String, Vec<AccountKey>>>,
    /// SQLite's mark of changes by other connections.
    version: Option<i64>,
}

impl Known {
    /// Reads the accounts again if another process has changed the database. Within a
    /// transaction.
    pub(super) fn refresh(
        &mut self,
        connection: &Connection,
        now: DateTime<Utc>,
    ) -> rusqlite::Result<()> {
        let version = connection.pragma_query_value(None, "data_version", |row| row.get(0))?;
        if self.version == Some(version) {
            return Ok(());
        }
        self.by_scope.clear();
        // Those of windows that ended a day ago limit nothing any more.
        let mut select = connection.prepare_cached(
            "SELECT kind, id, per, starts, ends FROM accounts
             WHERE ends > ?1 - CASE WHEN per IN ('minute', 'hour') THEN ?2 ELSE 86400 END",
        )?;
        let mut rows = select.query([now.timestamp(), SHORT])?;
        while let Some(row) = rows.next()? {
            let kind = ScopeKind::read(row.get_ref(0)?.as_str()?);
            let per = Per::read(row.get_ref(2)?.as_str()?);
            let id = row.get_ref(1)?.as_str()?.into();
            if let (Some(kind), Some(per)) = (kind, per) {
                let (starts, ends) = (row.get(3)?, row.get(4)?);
                self.add(AccountName { kind, id, per, starts, ends }.into());
            }
        }
        self.version = Some(version);
        Ok(())
    }

    /// What is known may be wrong: a transaction failed.
    pub(super) fn forget(&mut self) {
        self.version = None;
    }

    fn add(&mut self, account: AccountKey) {
        let ids = self.by_scope.entry(account.kind).or_default();
        let known = ids.entry(account.id.to_string()).or_default();
        match known.iter_mut().find(|known| is_same(known, &account)) {
            Some(known) if known.ends < account.ends => *known = account,
            Some(_) => {}
            None => known.push(account),
        }
    }

    /// Whether the account is there, and reaches as far.
    pub(super) fn has(&self, account: &AccountKey) -> bool {
        let ids = self.by_scope.get(&account.kind);
        ids.and_then(|ids| ids.get(&*account.id)).is_some_and(|known| {
            known.iter().any(|known| is_same(known, account) && account.ends <= known.ends)
        })
    }

    /// The accounts whose sum the row is part of.
    fn of<'a>(&'a self, row: &'a Row) -> impl Iterator<Item = &'a AccountKey> {
        let at = row.at.timestamp();
        ScopeKind::ALL
            .into_iter()
            .filter_map(move |kind| self.by_scope.get(&kind)?.get(row.scope(kind)?))
            .flatten()
            .filter(move |account| account.starts <= at && at < account.ends)
    }
}

/// Whether two names are of one account: a window may end later than it did in another time zone.
fn is_same(one: &AccountKey, other: &AccountKey) -> bool {
    (one.kind, &one.id, one.per, one.starts) == (other.kind, &other.id, other.per, other.starts)
}

/// Under what name all that is ever booked is summed up, among the accounts. It is no scope's: what
/// reads accounts passes it over.
pub(super) const ALL: &str = "all";

/// Where sums end, in SQL: with more than half of what a number can be, the next sum could be none, and
/// the database would refuse the books for ever.
const MOST: i64 = 1 << 62;

/// What a batch of rows adds to accounts and leases.
#[derive(Default)]
pub(super) struct Booking {
    all: u64,
    spent: AHashMap<AccountKey, u64>,
    booked: AHashMap<AccountKey, u64>,
}

impl Booking {
    /// Adds one row that was not in the database before.
    pub(super) fn add(&mut self, known: &Known, row: &Row, accounts: &[AccountKey]) {
        let cost = row.cost_nano_usd.0;
        if cost == 0 {
            return;
        }
        self.all = self.all.saturating_add(cost);
        for account in accounts {
            add(&mut self.spent, account, cost);
            add(&mut self.booked, account, cost);
        }
        let is_its = |account: &AccountKey| accounts.iter().any(|its| is_same(its, account));
        for account in known.of(row).filter(|account| !is_its(account)) {
            add(&mut self.spent, account, cost);
        }
    }

    /// Writes the sums.
    pub(super) fn write(&self, connection: &Connection, run: i64) -> rusqlite::Result<()> {
        let mut spend = connection.prepare_cached(
            "UPDATE accounts SET spent_nano = min(spent_nano + ?5, ?6)
             WHERE kind = ?1 AND id = ?2 AND per = ?3 AND starts = ?4",
        )?;
        for (account, cost) in &self.spent {
            spend.execute(params![
                account.kind.as_str(),
                &*account.id,
                account.per.as_str(),
                account.starts,
                int(*cost),
                MOST
            ])?;
        }
        if self.all > 0 {
            connection
                .prepare_cached(
                    "INSERT INTO accounts (kind, id, per, starts, ends, spent_nano)
                     VALUES (?1, '', '', 0, ?2, ?3)
                     ON CONFLICT DO UPDATE SET spent_nano = min(spent_nano + ?3, ?4)",
                )?
                .execute(params![ALL, i64::MAX, int(self.all), MOST])?;
        }
        let mut book = connection.prepare_cached(
            "UPDATE leases SET booked_nano = min(booked_nano + ?6, ?7)
             WHERE kind = ?1 AND id = ?2 AND per = ?3 AND starts = ?4 AND run = ?5",
        )?;
        for (account, cost) in &self.booked {
            book.execute(params![
                account.kind.as_str(),
                &*account.id,
                account.per.as_str(),
                account.starts,
                run,
                int(*cost),
                MOST
            ])?;
        }
        Ok(())
    }
}

fn add(sums: &mut AHashMap<AccountKey, u64>, account: &AccountKey, cost: u64) {
    match sums.get_mut(account) {
        Some(sum) => *sum = sum.saturating_add(cost),
        None => drop(sums.insert(account.clone(), cost)),
    }
}

/// Gives a process as much of an account as it asks for and the cap allows.
pub(super) fn grant(
    connection: &Connection,
    known: &mut Known,
    run: i64,
    ask: &LeaseAsk,
) -> rusqlite::Result<Lease> {
    let account = &ask.account;
    if !known.has(account) {
        open_account(connection, account)?;
        known.add(account.clone());
    }
    let spent = amount(connection.prepare_cached(
        "SELECT spent_nano FROM accounts WHERE kind = ?1 AND id = ?2 AND per = ?3 AND starts = ?4",
    )?
    .query_row(
        params![account.kind.as_str(), &*account.id, account.per.as_str(), account.starts],
        |row| row.get(0),
    )?);
    let (mut outstanding, mut booked, mut before) = (0u64, 0u64, None);
    let mut select = connection.prepare_cached(
        "SELECT run, upto_nano, booked_nano FROM leases
         WHERE kind = ?1 AND id = ?2 AND per = ?3 AND starts = ?4",
    )?;
    let mut rows = select.query(params![
        account.kind.as_str(),
        &*account.id,
        account.per.as_str(),
        account.starts
    ])?;
    while let Some(row) = rows.next()? {
        let (upto, spent) = (amount(row.get(1)?), amount(row.get(2)?));
        if row.get::<_, i64>(0)? == run {
            (before, booked) = (Some(upto), spent);
        } else {
            outstanding = outstanding.saturating_add(upto.saturating_sub(spent));
        }
    }
    let others = spent.saturating_sub(booked);
    let room = ask.cap.saturating_sub(others).saturating_sub(outstanding);
    let upto = ask.want.min(room).max(before.unwrap_or(0));
    if before != Some(upto) {
        write_lease(connection, account, run, upto)?;
    }
    Ok(Lease { others, outstanding, booked, upto })
}

fn write_lease(
    connection: &Connection,
    account: &AccountKey,
    run: i64,
    upto: u64,
) -> rusqlite::Result<()> {
    let mut write = connection.prepare_cached(
        "INSERT INTO leases (kind, id, per, starts, ends, run, upto_nano, booked_nano)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 0)
         ON CONFLICT DO UPDATE SET upto_nano = ?7, ends = max(ends, ?5)",
    )?;
    write.execute(params![
        account.kind.as_str(),
        &*account.id,
        account.per.as_str(),
        account.starts,
        account.ends,
        run,
        int(upto)
    ])?;
    Ok(())
}

/// An account that nobody charged before begins with what the ledger says was spent. One that ends
/// later than it did, in another time zone, gets what was spent in between.
fn open_account(connection: &Connection, account: &AccountKey) -> rusqlite::Result<()> {
    let ended: Option<i64> = connection
        .prepare_cached(
            "SELECT ends FROM accounts WHERE kind = ?1 AND id = ?2 AND per = ?3 AND starts = ?4",
        )?
        .query_row(
            params![account.kind.as_str(), &*account.id, account.per.as_str(), account.starts],
            |row| row.get(0),
        )
        .optional()?;
    let from = ended.unwrap_or(account.starts);
    if ended.is_some() && account.ends <= from {
        return Ok(());
    }
    let spent = spent_between(connection, account, from)?;
    connection
        .prepare_cached(
            "INSERT INTO accounts VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT DO UPDATE SET ends = ?5, spent_nano = min(spent_nano + ?6, ?7)",
        )?
        .execute(params![
            account.kind.as_str(),
            &*account.id,
            account.per.as_str(),
            account.starts,
            account.ends,
            int(spent.0).min(MOST),
            MOST
        ])?;
    Ok(())
}

/// What its attempts have cost from a second on, until it ends.
fn spent_between(
    connection: &Connection,
    account: &AccountKey,
    from: i64,
) -> rusqlite::Result<NanoUsd> {
    let column = match account.kind {
        ScopeKind::Key => "key_id",
        ScopeKind::User => "user",
        ScopeKind::Team => "team",
        ScopeKind::Model => "model",
        ScopeKind::Provider => "provider",
        ScopeKind::Global => "''",
    };
    let sum = format!(
        "SELECT {} FROM attempts WHERE {column} = ?1 AND at >= ?2 AND at < ?3",
        attempts::SUMS_OF_COST
    );
    let time = |seconds, other: &str| {
        DateTime::<Utc>::from_timestamp(seconds, 0).map_or_else(|| other.to_owned(), instant)
    };
    let (from, to) = (time(from, ""), time(account.ends, "A"));
    connection
        .prepare_cached(&sum)?
        .query_row(params![&*account.id, from, to], |row| attempts::sum(row, 0))
}
