//! What a kill of the process must not lose: every hold before its attempt, every end of one.
//!
//! One line of JSON per event, appended with one `write` and without waiting for the disk: the
//! kernel has it then, and keeps it when the process is killed. A power cut may lose the last
//! lines; what they would have told is bounded by the account's lease, see [`super::lease`].
//!
//! # Files
//!
//! `<database>.run-<n>` belongs to one process and is locked while it lives; it names the boot it
//! ran in. `<database>.run-<n>.<m>` are its lines. A file is left when it is full: what is still
//! held is written again to the next one, and the old one goes when all the ends in it are rows
//! of the database.

use super::row::{Row, Word, micros, word};
use super::store::{AccountKey, HoldNote, RunningHold};
use crate::json_line::{Item, JsonLine, field};
use crate::scope::ScopeKind;
use crate::units::NanoUsd;
use ahash::AHashMap;
use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Instant;

/// Holds of one run that get ids of their own before those of the next run begin.
pub(super) const IDS_PER_RUN: i64 = 1 << 40;

/// Bytes of a line: most are shorter.
const LINE: usize = 768;

/// A line of the journal, as it is read.
#[derive(Debug, Deserialize)]
#[allow(clippy::large_enum_variant)]
// Never more than one at a time.
pub(super) enum Line {
    /// A hold was given.
    H(HoldLine),
    /// An attempt ended; the row's id is the hold's.
    S(Row),
    /// The attempt of this hold was never made.
    R(i64),
}

/// A hold, as the journal has it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct HoldLine {
    pub(super) id: i64,
    #[serde(with = "micros")]
    at: DateTime<Utc>,
    /// In nano-dollars.
    worst: u64,
    request: String,
    scopes: Vec<(Kind, String)>,
    pub(super) accounts: Vec<AccountKey>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(transparent)]
struct Kind(#[serde(with = "word")] ScopeKind);

impl HoldLine {
    fn running(self) -> RunningHold {
        let scopes = self.scopes.into_iter().map(|(Kind(kind), id)| (kind, id)).collect();
        RunningHold {
            id: self.id,
            at: self.at,
            worst: NanoUsd(self.worst),
            scopes,
            accounts: self.accounts,
        }
    }

    /// The row of a hold whose end nobody saw: its worst case, as an estimate.
    pub(super) fn lost(&self) -> Row {
        let mut row = Row::new(self.at);
        row.id = self.id;
        row.request_id.clone_from(&self.request);
        for (Kind(kind), id) in &self.scopes {
            row.name_scope(*kind, id.clone());
        }
        row.outcome = Cow::Borrowed("lost");
        row.usage_source = crate::units::UsageSource::Estimated;
        row.cost_nano_usd = NanoUsd(self.worst);
        row
    }
}

/// A row on its way to the database.
pub(super) struct Queued {
    /// Its place among the ends in the journal.
    pub(super) number: u64,
    pub(super) row: Row,
    /// What its hold was held on.
    pub(super) accounts: Vec<AccountKey>,
    pub(super) since: Instant,
}

/// The journal of this process.
pub(super) struct Journal {
    files: Files,
    /// Locked as long as the process lives.
    _lock: File,
    next_id: AtomicI64,
    broken: AtomicBool,
    state: Mutex<State>,
}

/// How the files of a run are called.
#[derive(Debug, Clone)]
pub(super) struct Files {
    pub(super) database: PathBuf,
    pub(super) run: i64,
}

struct State {
    file: File,
    segment: u64,
    bytes: u64,
    /// The last write was cut short: the next one begins a new line.
    torn: bool,
    /// Ends written so far.
    ends: u64,
    open: AHashMap<i64, Open>,
    /// Left files and how many ends had been written when they were left, oldest first.
    left: VecDeque<(u64, u64)>,
    /// Files are kept even when all their ends are committed.
    keep: bool,
}

/// A hold that has not ended.
struct Open {
    line: Vec<u8>,
    accounts: Vec<AccountKey>,
}

impl Files {
    pub(super) fn lock(&self) -> PathBuf {
        let name = self.database.file_name().unwrap_or_default().to_string_lossy();
        self.database.with_file_name(format!("{name}.run-{}", self.run))
    }

    pub(super) fn segment(&self, number: u64) -> PathBuf {
        let mut path = self.lock().into_os_string();
        path.push(format!(".{number}"));
        path.into()
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// The boot this machine is in. What the kernel has kept for us, it keeps until the next one.
pub(super) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

impl Journal {
    /// Begins the journal of a new run. The caller holds the database's write lock, so that no
    /// other process sees the run's files before they are locked.
    pub(super) fn begin(files: Files) -> io::Result<Journal> {
        let mut lock = create(&files.lock())?;
        lock.try_lock().map_err(io::Error::from)?;
        writeln!(lock, "{}", boot_id())?;
        let file = create(&files.segment(0))?;
        let state = State {
            file,
            segment: 0,
            bytes: 0,
            torn: false,
            ends: 0,
            open: AHashMap::new(),
            left: VecDeque::new(),
            keep: false,
        };
        Ok(Journal {
            next_id: AtomicI64::new(files.run.saturating_mul(IDS_PER_RUN) + 1),
            files,
            _lock: lock,
            broken: AtomicBool::new(false),
            state: Mutex::new(state),
        })
    }

    /// Notes a hold. With `force` it counts as noted even if it can't be written.
    pub(super) fn hold(&self, note: HoldNote<'_>, force: bool) -> io::Result<i64> {
        let id = self.next_id();
        let bytes = hold_line(id, &note);
        let mut state = self.state.lock();
        let written = self.write(&mut state, &bytes);
        if let Err(error) = written
            && !force
        {
            return Err(error);
        }
        state.open.insert(id, Open { line: bytes, accounts: note.accounts });
        Ok(id)
    }

    /// Notes an end and passes the row on, in the order of the journal. A row of no hold gets an
    /// id here. `pass` is told whether the row is in the journal, and says whether it took it; one
    /// that it leaves is kept in the files.
    pub(super) fn settle(
        &self,
        hold: Option<i64>,
        mut row: Row,
        pass: impl FnOnce(Queued, bool) -> bool,
    ) {
        row.id = hold.unwrap_or_else(|| self.next_id());
        let line = row_line(&row);
        let mut state = self.state.lock();
        let written = self.write(&mut state, &line);
        let accounts = state.open.remove(&row.id).map(|open| open.accounts).unwrap_or_default();
        state.ends += 1;
        let queued = Queued { number: state.ends, row, accounts, since: Instant::now() };
        if !pass(queued, written.is_ok()) {
            state.keep = true;
        }
    }

    /// The row of a hold whose end nobody saw; `None` if it has ended.
    pub(super) fn lost(&self, hold: i64) -> Option<Row> {
        let state = self.state.lock();
        let open = state.open.get(&hold)?;
        match serde_json::from_slice(&open.line) {
            Ok(Line::H(line)) => Some(line.lost()),
            _ => None,
        }
    }

    /// The holds whose attempts run now.
    pub(super) fn running(&self) -> Vec<RunningHold> {
        let lines: Vec<Vec<u8>> =
            self.state.lock().open.values().map(|open| open.line.clone()).collect();
        let read = |line: &Vec<u8>| match serde_json::from_slice(line) {
            Ok(Line::H(line)) => Some(line.running()),
            _ => None,
        };
        lines.iter().filter_map(read).collect()
    }

    /// Whether the attempt of this hold has not ended.
    pub(super) fn runs(&self, hold: i64) -> bool {
        self.state.lock().open.contains_key(&hold)
    }

    /// Forgets a hold whose attempt was never made.
    pub(super) fn release(&self, hold: i64) {
        let mut line = JsonLine::with_capacity(32);
        line.number(field!("R"), hold);
        let line = line.end();
        let mut state = self.state.lock();
        state.open.remove(&hold);
        // Should this fail, a kill books an attempt that was never made: dear, but safe.
        let _ = self.write(&mut state, &line);
    }

    /// Every end up to this one is committed: files that have nothing else to tell go.
    pub(super) fn committed(&self, number: u64) {
        let mut state = self.state.lock();
        while !state.keep
            && let Some(&(segment, ends)) = state.left.front()
            && ends <= number
        {
            remove(&self.files.segment(segment));
            state.left.pop_front();
        }
    }

    /// Continues in a new file once this one has so many bytes.
    pub(super) fn rotate(&self, full: u64) -> io::Result<()> {
        let (bytes, segment) = {
            let state = self.state.lock();
            (state.bytes, state.segment)
        };
        if bytes < full.max(1) {
            return Ok(());
        }
        let mut file = create(&self.files.segment(segment + 1))?;
        // What an attempt at this left on a full disk would be glued to the first line.
        file.set_len(0)?;
        let mut state = self.state.lock();
        let lines: Vec<u8> =
            state.open.values().flat_map(|open| open.line.iter().copied()).collect();
        file.write_all(&lines)?;
        let ends = state.ends;
        state.left.push_back((segment, ends));
        state.file = file;
        state.segment = segment + 1;
        state.bytes = 0;
        state.torn = false;
        Ok(())
    }

    /// The newest file that anything was written to.
    pub(super) fn newest(&self) -> Option<u64> {
        let state = self.state.lock();
        if state.bytes > 0 { Some(state.segment) } else { state.segment.checked_sub(1) }
    }

    /// Whether this file, or one before it, is still there.
    pub(super) fn keeps(&self, newest: u64) -> bool {
        let state = self.state.lock();
        state.segment <= newest || state.left.front().is_some_and(|(left, _)| *left <= newest)
    }

    /// The files that have been left and not yet removed.
    pub(super) fn left(&self) -> Vec<PathBuf> {
        let state = self.state.lock();
        state.left.iter().map(|(segment, _)| self.files.segment(*segment)).collect()
    }

    /// Files are kept even when their ends are committed as long as this mark is set, which only
    /// [`Journal::settle`] sets.
    pub(super) fn keep_while(&self, mark: &AtomicBool) {
        let mut state = self.state.lock();
        state.keep = mark.load(Ordering::Acquire);
    }

    /// Whether the last write failed; tries again if so.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire) && self.write(&mut self.state.lock(), b"\n").is_err()
    }

    /// Whether the last write failed.
    pub(super) fn was_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// Whether nothing is held any more and all ends are committed.
    pub(super) fn is_done(&self, committed: u64) -> bool {
        let state = self.state.lock();
        state.open.is_empty() && state.ends <= committed && !state.keep
    }

    /// Removes the files.
    pub(super) fn remove(&self) {
        let state = self.state.lock();
        let left = state.left.iter().map(|(segment, _)| *segment);
        left.chain([state.segment]).for_each(|segment| remove(&self.files.segment(segment)));
        remove(&self.files.lock());
    }

    pub(super) fn files(&self) -> &Files {
        &self.files
    }

    fn next_id(&self) -> i64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// One write; less than all of the bytes is an error.
    fn write(&self, state: &mut State, bytes: &[u8]) -> io::Result<()> {
        let result = (|| {
            if state.torn {
                state.file.write_all(b"\n")?;
                state.torn = false;
            }
            let written = state.file.write(bytes)?;
            state.bytes += written as u64;
            if written < bytes.len() {
                state.torn = true;
                return Err(io::ErrorKind::StorageFull.into());
            }
            Ok(())
        })();
        if self.broken.swap(result.is_err(), Ordering::AcqRel) != result.is_err() {
            let path = self.files.segment(state.segment);
            match &result {
                Ok(()) => log::info!("ledger: {}: writing again", path.display()),
                Err(error) => {
                    log::error!("ledger: {}: can't be written: {error}", path.display());
                }
            }
        }
        result
    }
}

/// [`Line::H`].
fn hold_line(id: i64, note: &HoldNote<'_>) -> Vec<u8> {
    let mut line = JsonLine::with_capacity(LINE);
    line.object(field!("H"), |line| {
        line.number(field!("id"), id);
        line.number(field!("at"), note.at.timestamp_micros());
        line.number(field!("worst"), note.worst.0);
        line.text(field!("request"), note.request);
        line.list(field!("scopes"), note.scopes, |item, (kind, id)| item.pair(kind.word(), id));
        line.list(field!("accounts"), &note.accounts, |item: &mut Item<'_>, key| {
            item.raw(key.json())
        });
    });
    line.end()
}

/// [`Line::S`].
fn row_line(row: &Row) -> Vec<u8> {
    let mut line = JsonLine::with_capacity(LINE);
    line.object(field!("S"), |line| row.write(line));
    line.end()
}

pub(super) fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        log::warn!("{}: can't be removed: {error}", path.display());
    }
}

#[cfg(test)]
mod tests;
