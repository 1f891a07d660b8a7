//! The one thread that writes the database: rows in batches, leases, and what else there is.

use super::attempts;
use super::error::LedgerError;
use super::journal::{Journal, Queued};
use super::lease::{self, Booking, Known};
use super::reconcile;
use super::store::{LeaseAsk, LeaseDone};
use crate::turns::Courtesy;
use chrono::{DateTime, Utc};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use parking_lot::Mutex;
use rusqlite::{Connection, TransactionBehavior, params};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long the first row of a batch waits for others. In that time their makers wake nobody.
const GATHER: Duration = Duration::from_millis(100);

/// How long a batch lets requests go first, row by row: a millisecond of rows in one go is a
/// millisecond that a request on the same processor may have to wait. A batch that takes longer
/// hurries more, …
const PATIENCE: Duration = Duration::from_millis(50);

/// … and one of so many rows is far behind, and thinks of nobody else.
const FAR_BEHIND: usize = 8_192;

/// How long the thread sleeps when there is nothing to do, or the database refuses.
const IDLE: Duration = Duration::from_millis(250);

/// How often journals of processes that died meanwhile are looked for.
const LOOK: Duration = Duration::from_secs(5);

/// How often it is looked whether the database is still the file that was opened.
const IDENTIFY: Duration = Duration::from_secs(1);

/// How often the accounts of windows that are long over are forgotten.
const FORGET: Duration = Duration::from_secs(3600);

/// Marks the file as ours, for `file` and for whoever opens it: "Tbar".
const APPLICATION: i64 = 0x5462_6172;

/// Something to be done with the connection.
pub(super) type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// What the thread is asked for.
pub(super) enum Command {
    /// There are rows again.
    Rows,
    Lease(LeaseAsk, LeaseDone),
    Job(Job),
    Flush(Sender<bool>),
    Stop,
}

/// What the thread and the rest of the process share.
pub(super) struct Shared {
    pub(super) path: PathBuf,
    pub(super) journal: Journal,
    /// The last transaction was committed.
    pub(super) committing: AtomicBool,
    /// The thread is there.
    pub(super) alive: AtomicBool,
    /// Rows committed by this process.
    pub(super) rows: AtomicU64,
    /// Rows since the last batch was taken.
    pub(super) fresh: Mutex<Vec<Queued>>,
    /// Rows on their way, in the batch or before it.
    pub(super) queued: AtomicU64,
    /// Rows were left to the journal alone.
    pub(super) spilled: AtomicBool,
    /// The journal is to go on in a new file, so that the one with committed rows can go.
    pub(super) leave: AtomicBool,
    /// When the oldest row on its way was made.
    pub(super) oldest: Mutex<Option<Instant>>,
}

pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) connection: Connection,
    pub(super) commands: Receiver<Command>,
    pub(super) now: fn() -> DateTime<Utc>,
    pub(super) opening: Duration,
    pub(super) known: Known,
    pub(super) segment_bytes: u64,
    /// The place of the last committed row among the ends in the journal.
    pub(super) committed: u64,
    pub(super) looked: Instant,
    pub(super) identified: Instant,
    /// Device and inode of the database, as it was opened.
    pub(super) file: Option<(u64, u64)>,
    /// Another file, or none, has been in its place since: what is written is lost.
    pub(super) gone: bool,
    /// When old accounts were last forgotten.
    pub(super) forgot: Option<Instant>,
}

#[derive(Default)]
struct Batch {
    rows: Vec<Queued>,
    leases: Vec<(LeaseAsk, LeaseDone)>,
    jobs: Vec<Job>,
    flushes: Vec<Sender<bool>>,
    stop: bool,
}

impl Batch {
    fn add(&mut self, command: Command) {
        match command {
            Command::Rows => {}
            Command::Lease(ask, done) => self.leases.push((ask, done)),
            Command::Job(job) => self.jobs.push(job),
            Command::Flush(done) => self.flushes.push(done),
            Command::Stop => self.stop = true,
        }
    }

    /// Somebody waits for the answer.
    fn is_urgent(&self) -> bool {
        self.stop || !(self.leases.is_empty() && self.jobs.is_empty() && self.flushes.is_empty())
    }
}

/// Says that the thread is gone, however it went: nothing is committed any more then.
struct Alive(Arc<Shared>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.alive.store(false, Ordering::Release);
        if std::thread::panicking() {
            log::error!(
                "ledger: the thread that writes has panicked; please report this. What is spent is \
                 kept in the journal, and the next start reads it"
            );
        }
    }
}

impl Writer {
    /// Runs until it is told to stop.
    pub(super) fn run(mut self) {
        let _alive = Alive(self.shared.clone());
        let mut batch = Batch::default();
        loop {
            self.gather(&mut batch);
            let done = self.commit(&mut batch);
            for flush in batch.flushes.drain(..) {
                let _ = flush.send(done);
            }
            for job in batch.jobs.drain(..) {
                if self.gone {
                    // Dropped: who asked hears that it wasn't done.
                    continue;
                }
                // No job touches the accounts.
                job(&mut self.connection);
            }
            if batch.stop && batch.leases.is_empty() {
                return self.finish(done);
            }
            self.tidy(done);
        }
    }

    /// Waits for something to do. Rows that could not be committed are still in the batch, and leases
    /// that had to wait for others.
    fn gather(&self, batch: &mut Batch) {
        let idle = if batch.leases.is_empty() { IDLE } else { Duration::ZERO };
        match self.commands.recv_timeout(idle) {
            Ok(command) => batch.add(command),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => batch.stop = true,
        }
        let until = Instant::now() + GATHER;
        while !batch.is_urgent() && !self.shared.fresh.lock().is_empty() {
            match self.commands.recv_deadline(until) {
                Ok(command) => batch.add(command),
                Err(_) => break,
            }
        }
        self.commands.try_iter().for_each(|command| batch.add(command));
        batch.rows.append(&mut self.shared.fresh.lock());
    }

    /// Commits the batch; its leases are answered in any case, its rows stay if it failed.
    fn commit(&mut self, batch: &mut Batch) -> bool {
        if batch.rows.is_empty() && batch.leases.is_empty() {
            return self.shared.committing.load(Ordering::Acquire);
        }
        *self.shared.oldest.lock() = batch.rows.first().map(|row| row.since);
        let result = if self.gone { Err(gone()) } else { self.transact(batch) };
        match result {
            Ok(granted) => {
                // The others are asked for again in the next one, which begins at once.
                let leases = batch.leases.drain(..granted.len());
                for ((_, done), lease) in leases.zip(granted) {
                    done(Ok(lease));
                }
                let rows = batch.rows.len() as u64;
                self.shared.rows.fetch_add(rows, Ordering::Relaxed);
                self.shared.queued.fetch_sub(rows, Ordering::AcqRel);
                *self.shared.oldest.lock() = None;
                if let Some(last) = batch.rows.last() {
                    self.committed = last.number;
                }
                batch.rows.clear();
                self.shared.journal.committed(self.committed);
                self.mark(None);
                true
            }
            Err(error) => {
                self.known.forget();
                let error = LedgerError::sql(&self.shared.path, &error);
                // Who is told that there is no lease asks at once whether the store is well.
                self.mark(Some(&error));
                for (_, done) in batch.leases.drain(..) {
                    done(Err(super::store::StoreError(error.to_string())));
                }
                std::thread::sleep(IDLE.min(Duration::from_millis(50)));
                false
            }
        }
    }

    /// Commits the rows, and as many of the leases as there are answers.
    fn transact(&mut self, batch: &mut Batch) -> rusqlite::Result<Vec<super::store::Lease>> {
        let run = self.shared.journal.files().run;
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        self.known.refresh(&transaction, (self.now)())?;
        let mut booking = Booking::default();
        let courtesy = Courtesy::lasting(PATIENCE);
        let far_behind = batch.rows.len() >= FAR_BEHIND;
        for (done, queued) in batch.rows.iter().enumerate() {
            // One of the commands is that there are rows again.
            if !far_behind && !batch.is_urgent() && self.commands.len() <= 1 {
                courtesy.offer(done);
            }
            if attempts::insert(&transaction, &queued.row)? {
                booking.add(&self.known, &queued.row, &queued.accounts);
            } else {
                log::error!("ledger: there is a row {} already; please report this", queued.row.id);
            }
        }
        booking.write(&transaction, run)?;
        // A request's account is there already, and doesn't wait for those that are only looked at.
        batch.leases.sort_by_cached_key(|(ask, _)| !self.known.has(&ask.account));
        let mut granted = Vec::with_capacity(batch.leases.len());
        let (mut opened, since) = (false, Instant::now());
        for (ask, _) in &batch.leases {
            let new = !self.known.has(&ask.account);
            if new && opened && since.elapsed() >= self.opening {
                break;
            }
            opened |= new;
            granted.push(lease::grant(&transaction, &mut self.known, run, ask)?);
        }
        transaction.commit()?;
        Ok(granted)
    }

    /// Changes of health are worth a line; staying ill is not.
    fn mark(&self, error: Option<&LedgerError>) {
        let before = self.shared.committing.swap(error.is_none(), Ordering::AcqRel);
        match error {
            Some(error) if before => log::error!("ledger: {error}; rows are kept and tried again"),
            None if !before => log::info!("ledger: writing again"),
            _ => {}
        }
    }

    /// What needs doing now and then.
    fn tidy(&mut self, healthy: bool) {
        if let Err(error) = self.shared.journal.rotate(self.segment_bytes) {
            log::warn!("ledger: can't begin a new journal file: {error}");
        }
        if self.shared.journal.is_broken() || !healthy {
            self.probe();
            return;
        }
        if self.shared.spilled.load(Ordering::Acquire) {
            self.read_spilled();
        }
        if self.shared.leave.swap(false, Ordering::AcqRel) {
            match self.shared.journal.rotate(1) {
                Ok(()) => self.shared.journal.committed(self.committed),
                Err(error) => {
                    self.shared.leave.store(true, Ordering::Release);
                    log::warn!("ledger: can't begin a new journal file: {error}");
                }
            }
        }
        if self.identified.elapsed() >= IDENTIFY {
            self.identified = Instant::now();
            if is_another(&self.shared.path, self.file) {
                self.gone = true;
                return self.mark(Some(&LedgerError::sql(&self.shared.path, &gone())));
            }
        }
        if self.looked.elapsed() >= LOOK {
            self.looked = Instant::now();
            let (path, now) = (self.shared.path.clone(), (self.now)());
            if let Err(error) = reconcile::dead(&path, &mut self.connection, &mut self.known, now) {
                log::warn!("ledger: {error}");
            }
        }
        if self.forgot.is_none_or(|forgot| forgot.elapsed() >= FORGET) {
            self.forgot = Some(Instant::now());
            self.forget_ended();
        }
    }

    /// No attempt runs for a week: accounts of windows that ended before that get no cost any
    /// more. Of minutes and hours there are too many to be kept so long.
    ///
    /// It is no later than the newest row says: with a clock that is wrong until it is set, what was
    /// spent today would be forgotten.
    fn forget_ended(&mut self) {
        let now = (self.now)();
        let result = attempts::newest(&self.connection).and_then(|newest| {
            let Some(now) = newest.map(|newest| newest.min(now).timestamp()) else { return Ok(()) };
            let (ended, short) = (now - 7 * 86_400, now - lease::SHORT);
            self.connection.execute_batch(&format!(
                "DELETE FROM leases WHERE ends < {ended};
                 DELETE FROM leases WHERE ends < {short} AND per IN ('minute', 'hour');
                 DELETE FROM accounts WHERE ends < {ended};
                 DELETE FROM accounts WHERE ends < {short} AND per IN ('minute', 'hour');
                 DELETE FROM alerts WHERE until < {ended};",
            ))
        });
        self.known.forget();
        if let Err(error) = result {
            log::warn!("ledger: {}", LedgerError::sql(&self.shared.path, &error));
        }
    }

    /// Finds out whether the database can be written again when no row tells.
    fn probe(&mut self) {
        if self.gone {
            return;
        }
        let written = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .and_then(|transaction| {
                // Something that nobody reads: the version may be a newer process's.
                transaction.pragma_update(None, "application_id", APPLICATION)?;
                transaction.commit()
            })
            .map_err(|error| LedgerError::sql(&self.shared.path, &error));
        if self.shared.queued.load(Ordering::Acquire) == 0 {
            self.mark(written.err().as_ref());
        }
    }

    fn read_spilled(&mut self) {
        // What is settled from here on finds its place in the queue, or sets the mark again.
        self.shared.spilled.store(false, Ordering::Release);
        let result = self.shared.journal.rotate(1).and_then(|()| {
            let segments = self.shared.journal.left();
            let queued = self.shared.fresh.lock().iter().map(|queued| queued.row.id).collect();
            let transaction = self
                .connection
                .transaction_with_behavior(TransactionBehavior::Immediate)
                .map_err(std::io::Error::other)?;
            self.known.refresh(&transaction, (self.now)()).map_err(std::io::Error::other)?;
            let run = self.shared.journal.files().run;
            let rows = reconcile::book_spilled(&transaction, &self.known, run, &segments, &queued)?;
            transaction.commit().map_err(std::io::Error::other)?;
            Ok(rows)
        });
        match result {
            Ok(rows) => {
                self.shared.rows.fetch_add(rows, Ordering::Relaxed);
                self.shared.journal.keep_while(&self.shared.spilled);
                self.shared.journal.committed(self.committed);
                log::info!("ledger: {rows} rows read back from the journal");
            }
            Err(error) => {
                self.known.forget();
                self.shared.spilled.store(true, Ordering::Release);
                log::warn!("ledger: the journal can't be read back: {error}");
            }
        }
    }

    /// An orderly end leaves no lease and no journal; any other leaves them to the next start.
    fn finish(mut self, done: bool) {
        if is_another(&self.shared.path, self.file) {
            log::error!("ledger: {}: {}; its books are lost", self.shared.path.display(), gone());
        }
        self.tidy(done);
        if !done || !self.shared.journal.is_done(self.committed) {
            log::warn!("ledger: not everything is committed; the next start reads the journal");
            return;
        }
        let run = self.shared.journal.files().run;
        match self.connection.execute("DELETE FROM leases WHERE run = ?1", params![run]) {
            Ok(_) => self.shared.journal.remove(),
            Err(error) => log::warn!("ledger: leases were left: {error}"),
        }
    }
}

/// Which file this is; `None` where there is none.
pub(super) fn identity(path: &std::path::Path) -> Option<(u64, u64)> {
    let found = std::fs::metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

/// Whether another file, or none, is in its place. Where nothing can be found out, as in a folder that
/// may not be searched for a moment, it isn't taken to be.
fn is_another(path: &std::path::Path, file: Option<(u64, u64)>) -> bool {
    match std::fs::metadata(path) {
        Ok(found) => file != Some((found.dev(), found.ino())),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

fn gone() -> rusqlite::Error {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_READONLY_DBMOVED);
    let what = "removed or replaced while in use: restart on the right one".to_owned();
    rusqlite::Error::SqliteFailure(code, Some(what))
}
