//! The ledger: one row for each upstream attempt, in SQLite, and the books of the budgets.
//!
//! One thread writes, in batches. Nothing on the way of a request waits for the disk: what must
//! survive a kill of the process goes to the `journal` first, with one `write`.
//!
//! # What survives what
//!
//! | event | lost |
//! |---|---|
//! | kill of the process | nothing. An attempt that was running is booked at its worst case |
//! | power cut | rows of the last moments, usually some 150 ms. What their attempts may have cost stays reserved in the accounts, by the leases |
//! | disk full, database locked | nothing; [`Ledger::healthy`] says no, rows wait in memory and in the journal |

mod attempts;
mod error;
mod journal;
mod lease;
mod notices;
mod query;
mod reconcile;
mod row;
mod schema;
mod store;
#[cfg(test)]
pub(crate) mod tests;
mod writer;

pub use error::LedgerError;
pub use notices::{Claim, ever_spent, spent_by_minute};
pub use query::{Column, Filter, SpendRow, requests, spend, spenders};
pub use row::{Row, instant};
pub use store::{
    AccountKey, AccountName, HoldNote, Lease, LeaseAsk, LeaseDone, MAX_COST, RunningHold, Store,
    StoreError,
};

use chrono::{DateTime, TimeDelta, Utc};
use crossbeam_channel::{Sender, bounded, unbounded};
use journal::{Files, Journal};
use lease::Known;
use parking_lot::Mutex;
use rusqlite::{Connection, TransactionBehavior, params};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use writer::{Command, Shared, Writer};

/// So many rows may wait for the database before budgets refuse. Attempts that were running then
/// may add as many again; past that a row is left to the journal and read back later.
const QUEUE: u64 = 65_536;

/// Rows that go in one transaction when old ones are deleted.
const PRUNE: u64 = 5_000;

/// How the ledger is kept.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long a locked database is waited for.
    pub busy_wait: Duration,
    /// A journal file is left when it has so many bytes.
    pub journal_bytes: u64,
    /// The database grows no larger than so many pages of 4 KiB. To test a full disk.
    pub max_pages: Option<u32>,
    /// No further account is opened in a transaction when those before have taken so long: each may sum
    /// up a month of rows, while other processes can't write and rows wait. At the turn of a window there
    /// may be thousands, of which none has anything to sum up.
    pub opening: Duration,
    /// What time it is, to know what is long over.
    pub now: fn() -> DateTime<Utc>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            busy_wait: Duration::from_secs(2),
            journal_bytes: 8 << 20,
            max_pages: None,
            opening: Duration::from_millis(50),
            now: Utc::now,
        }
    }
}

/// The ledger of this process.
pub struct Ledger {
    shared: Arc<Shared>,
    commands: Sender<Command>,
    writer: Mutex<Option<JoinHandle<()>>>,
    now: fn() -> DateTime<Utc>,
}

impl Ledger {
    /// Opens the database, creates or migrates it, and books what processes that were killed
    /// have left in their journals.
    ///
    /// # Errors
    /// The database is damaged, locked, can't be written, or is of a newer Tollbar.
    pub fn open(path: &Path, options: &Options) -> Result<Arc<Ledger>, LedgerError> {
        let mut connection = schema::open(path, options.busy_wait)?;
        if let Some(pages) = options.max_pages {
            connection
                .pragma_update(None, "max_page_count", pages)
                .map_err(|error| LedgerError::sql(path, &error))?;
        }
        let mut known = Known::default();
        reconcile::dead(path, &mut connection, &mut known, (options.now)())?;
        let journal = begin_run(path, &mut connection)?;
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            journal,
            committing: AtomicBool::new(true),
            alive: AtomicBool::new(true),
            rows: AtomicU64::new(0),
            fresh: Mutex::default(),
            queued: AtomicU64::new(0),
            spilled: AtomicBool::new(false),
            leave: AtomicBool::new(false),
            oldest: Mutex::new(None),
        });
        let (commands, received) = unbounded();
        let writer = Writer {
            shared: shared.clone(),
            connection,
            commands: received,
            now: options.now,
            opening: options.opening,
            known,
            segment_bytes: options.journal_bytes,
            committed: 0,
            looked: Instant::now(),
            identified: Instant::now(),
            file: writer::identity(path),
            gone: false,
            forgot: None,
        };
        let thread = std::thread::Builder::new()
            .name("ledger".into())
            .spawn(move || writer.run())
            .map_err(|error| LedgerError::io(path, &error))?;
        Ok(Arc::new(Ledger {
            shared,
            commands,
            writer: Mutex::new(Some(thread)),
            now: options.now,
        }))
    }

    /// Adds a row that no hold was taken for.
    pub fn append(&self, row: Row) {
        self.pass(None, row);
    }

    /// Waits until every row so far is committed, or can't be; says which. Blocks.
    pub fn flush(&self) -> bool {
        let (done, committed) = bounded(1);
        self.commands.send(Command::Flush(done)).is_ok() && committed.recv().unwrap_or(false)
    }

    /// The age of the oldest row that is not committed yet.
    pub fn lag(&self) -> Duration {
        self.shared.oldest.lock().map_or(Duration::ZERO, |oldest| oldest.elapsed())
    }

    /// Rows committed by this process.
    pub fn rows(&self) -> u64 {
        self.shared.rows.load(Ordering::Relaxed)
    }

    /// Whether rows are being committed and the journal written, and not too many rows wait.
    pub fn healthy(&self) -> bool {
        self.alive()
            && self.shared.committing.load(Ordering::Acquire)
            && !self.shared.journal.was_broken()
            && self.shared.queued.load(Ordering::Acquire) < QUEUE
    }

    /// Whether the thread that writes is there. Without it rows are kept in the journal only, and
    /// nothing but a new process brings it back.
    pub fn alive(&self) -> bool {
        self.shared.alive.load(Ordering::Acquire)
    }

    /// Where the database is.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Runs a transaction of another table on the writer's thread. Blocks until it is durable.
    ///
    /// # Errors
    /// What the transaction says, or that the ledger is closed.
    pub fn write<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, LedgerError> {
        let (send, result) = bounded(1);
        let job = move |connection: &mut Connection| {
            let result = connection
                .transaction_with_behavior(TransactionBehavior::Immediate)
                .and_then(|transaction| {
                    let value = job(&transaction)?;
                    transaction.commit()?;
                    Ok(value)
                });
            let _ = send.send(result);
        };
        self.commands.send(Command::Job(Box::new(job))).map_err(|_| LedgerError::Closed)?;
        let result = result.recv().map_err(|_| LedgerError::Closed)?;
        result.map_err(|error| LedgerError::sql(&self.shared.path, &error))
    }

    /// Reads with a connection of its own, also while the writer is busy. Blocks.
    ///
    /// # Errors
    /// The database can't be read, or what `read` says.
    pub fn read<T>(
        &self,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, LedgerError> {
        let connection = schema::open_to_read(self.path())?;
        read(&connection).map_err(|error| LedgerError::sql(self.path(), &error))
    }

    /// Deletes the attempts that are older than what is `kept`; returns how many. Accounts keep their
    /// sums, so that a budget does not renew with it. Blocks.
    ///
    /// They are as old as the newest of them says, where the clock says more: one that is wrong until
    /// it is set must not delete what is needed.
    ///
    /// # Errors
    /// The database or the journal can't be written. Nothing is deleted then.
    pub fn prune(&self, kept: TimeDelta) -> Result<u64, LedgerError> {
        // What is deleted must not be in the journal any more: after a kill it would be new.
        let newest = self.shared.journal.newest();
        self.shared.leave.store(true, Ordering::Release);
        self.flush();
        // The journal is left after the flush, and before whatever comes next.
        self.write(|_| Ok(()))?;
        if newest.is_some_and(|newest| self.shared.journal.keeps(newest)) {
            return Err(LedgerError::Journal { path: self.shared.path.clone() });
        }
        let mut deleted = 0;
        loop {
            let now = (self.now)();
            let n = self.write(move |db| {
                let newest = attempts::newest(db)?.map(|newest| newest.min(now));
                let before = newest.and_then(|newest| newest.checked_sub_signed(kept));
                let Some(before) = before else { return Ok(0) };
                db.execute(
                    "DELETE FROM attempts WHERE id IN
                     (SELECT id FROM attempts WHERE at < ?1 ORDER BY at LIMIT ?2)",
                    params![instant(before), lease::int(PRUNE)],
                )
            })? as u64;
            deleted += n;
            if n < PRUNE {
                return Ok(deleted);
            }
        }
    }

    /// Commits what there is and ends the writer. When nothing is held any more, the leases are
    /// given back. Blocks.
    pub fn close(&self) {
        let thread = self.writer.lock().take();
        if let Some(thread) = thread {
            let _ = self.commands.send(Command::Stop);
            if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
                log::error!("ledger: the writer had panicked");
            }
        }
    }

    fn pass(&self, hold: Option<i64>, mut row: Row) {
        row.cost_nano_usd = row.cost_nano_usd.min(MAX_COST);
        self.shared.journal.settle(hold, row, |queued, written| {
            if written && self.shared.queued.load(Ordering::Acquire) >= 2 * QUEUE {
                if !self.shared.spilled.swap(true, Ordering::AcqRel) {
                    log::error!("ledger: too many rows wait; more are left to the journal");
                }
                return false;
            }
            self.shared.queued.fetch_add(1, Ordering::AcqRel);
            let first = {
                let mut fresh = self.shared.fresh.lock();
                fresh.push(queued);
                fresh.len() == 1
            };
            // Closed: the journal has the row, and the next start reads it.
            !first || self.commands.send(Command::Rows).is_ok()
        });
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.close();
    }
}

impl Store for Ledger {
    fn healthy(&self) -> bool {
        Ledger::healthy(self)
    }

    fn hold(&self, note: HoldNote<'_>, force: bool) -> Result<i64, StoreError> {
        let noted = self.shared.journal.hold(note, force);
        noted.map_err(|error| LedgerError::io(&self.shared.path, &error).into())
    }

    fn settle(&self, hold: i64, row: Row) {
        self.pass(Some(hold), row);
    }

    fn lose(&self, hold: i64) {
        if let Some(row) = self.shared.journal.lost(hold) {
            self.pass(Some(hold), row);
        }
    }

    fn release(&self, hold: i64) {
        self.shared.journal.release(hold);
    }

    fn running(&self) -> Vec<RunningHold> {
        self.shared.journal.running()
    }

    fn runs(&self, hold: i64) -> bool {
        self.shared.journal.runs(hold)
    }

    fn lease(&self, ask: LeaseAsk, done: LeaseDone) {
        if let Err(refused) = self.commands.send(Command::Lease(ask, done))
            && let Command::Lease(_, done) = refused.into_inner()
        {
            done(Err(LedgerError::Closed.into()));
        }
    }
}

/// Registers this process with the database, and begins its journal.
fn begin_run(path: &Path, connection: &mut Connection) -> Result<Journal, LedgerError> {
    let sql = |error: rusqlite::Error| LedgerError::sql(path, &error);
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sql)?;
    // In a restored database there are rows of runs that it doesn't know, from their journals.
    transaction
        .execute(
            "INSERT INTO runs (run, pid) SELECT 1 + max(
                 coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'runs'), 0),
                 coalesce((SELECT max(id) FROM attempts), 0) / ?2
             ), ?1",
            params![std::process::id(), journal::IDS_PER_RUN],
        )
        .map_err(sql)?;
    let files = Files { database: PathBuf::from(path), run: transaction.last_insert_rowid() };
    let journal = Journal::begin(files).map_err(|error| LedgerError::io(path, &error))?;
    transaction.commit().map_err(sql)?;
    Ok(journal)
}
