//! Reads back the journals of processes that did not end in order.

use super::attempts;
use super::error::LedgerError;
use super::journal::{Files, HoldLine, Line, boot_id, remove};
use super::lease::{Booking, Known};
use super::row::Row;
use super::store::AccountKey;
use ahash::{AHashMap, AHashSet};
use chrono::{DateTime, Utc};
use rusqlite::{Connection, TransactionBehavior, params};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

/// Books what processes that died have left, and removes their journals.
pub(super) fn dead(
    path: &Path,
    connection: &mut Connection,
    known: &mut Known,
    now: DateTime<Utc>,
) -> Result<(), LedgerError> {
    let sql = |error: rusqlite::Error| LedgerError::sql(path, &error);
    let io = |error: std::io::Error| match error.downcast::<rusqlite::Error>() {
        Ok(error) => LedgerError::sql(path, &error),
        Err(error) => LedgerError::io(path, &error),
    };
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sql)?;
    let dead = dead_runs(path).map_err(io)?;
    if dead.is_empty() {
        return Ok(());
    }
    known.refresh(&transaction, now).map_err(sql)?;
    let mut booked = Vec::with_capacity(dead.len());
    for run in dead {
        let found = match run.book(&transaction, known) {
            Ok(found) => found,
            // Whoever removes its files now has booked what they say, or ends in order.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(io(error)),
        };
        log::warn!(
            "ledger: a process ended without notice; {} rows booked from its journal, {} of them \
             at their worst case, {} lines unreadable",
            found.rows,
            found.lost,
            found.unreadable
        );
        booked.push(run);
    }
    transaction.commit().map_err(sql)?;
    booked.into_iter().for_each(Dead::remove);
    Ok(())
}

/// The journal of a run that is over. Its lock is held until it is removed.
pub(super) struct Dead {
    files: Files,
    segments: BTreeSet<u64>,
    _lock: Option<File>,
    /// Everything that was written is there: the machine has not been started anew since.
    complete: bool,
}

/// What was found, for the log.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Rows that the database did not have yet.
    pub(super) rows: u64,
    /// Among them holds whose end nobody saw, booked at their worst case.
    pub(super) lost: u64,
    /// Lines that could not be read.
    pub(super) unreadable: u64,
}

/// What lines say.
#[derive(Default)]
struct Events {
    holds: AHashMap<i64, HoldLine>,
    settled: BTreeMap<i64, Row>,
    released: BTreeSet<i64>,
    unreadable: u64,
}

/// The runs beside this database whose process is gone. Within an immediate transaction: no run
/// begins meanwhile.
fn dead_runs(database: &Path) -> io::Result<Vec<Dead>> {
    let name = database.file_name().unwrap_or_default().to_string_lossy();
    let prefix = format!("{name}.run-");
    let directory = match database.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut runs: BTreeMap<i64, BTreeSet<u64>> = BTreeMap::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?.file_name();
        let Some(rest) = entry.to_str().and_then(|name| name.strip_prefix(&prefix)) else {
            continue;
        };
        let (run, segment) = rest.split_once('.').map_or((rest, None), |(r, s)| (r, Some(s)));
        if let Ok(run) = run.parse() {
            let segments = runs.entry(run).or_default();
            segments.extend(segment.and_then(|segment| segment.parse::<u64>().ok()));
        }
    }
    let mut dead = Vec::new();
    for (run, segments) in runs {
        let files = Files { database: database.to_owned(), run };
        let Some((lock, boot)) = files.take_lock()? else { continue };
        if lock.is_none() && segments.is_empty() {
            // Its lock was there a moment ago, and goes last.
            continue;
        }
        let now = boot_id();
        let complete = !now.is_empty() && boot.trim() == now;
        dead.push(Dead { files, segments, _lock: lock, complete });
    }
    Ok(dead)
}

impl Files {
    /// The lock of a run, and the boot that it ran in; `None` while its process lives, or another one
    /// removes it.
    fn take_lock(&self) -> io::Result<Option<(Option<File>, String)>> {
        let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        let lock = match File::open(self.lock()) {
            Err(error) if gone(&error) => return Ok(Some((None, String::new()))),
            opened => opened?,
        };
        if lock.try_lock().is_err() {
            return Ok(None);
        }
        match std::fs::read_to_string(self.lock()) {
            Err(error) if gone(&error) => Ok(None),
            boot => Ok(Some((Some(lock), boot?))),
        }
    }
}

impl Dead {
    /// Books what the journal says and the database does not have.
    fn book(&self, connection: &Connection, known: &Known) -> io::Result<Found> {
        let mut events = Events::default();
        for segment in &self.segments {
            events.read(&self.files.segment(*segment))?;
        }
        let mut found = Found { unreadable: events.unreadable, ..Found::default() };
        let lost: Vec<Row> = events
            .holds
            .values()
            .filter(|hold| {
                !events.settled.contains_key(&hold.id) && !events.released.contains(&hold.id)
            })
            .map(HoldLine::lost)
            .collect();
        let mut booking = Booking::default();
        let settled = events.settled.values().map(|row| (row, 0));
        for (row, lost) in settled.chain(lost.iter().map(|row| (row, 1))) {
            if attempts::insert(connection, row).map_err(io::Error::other)? {
                booking.add(known, row, events.accounts(row.id));
                found.rows += 1;
                found.lost += lost;
            }
        }
        let run = self.files.run;
        booking.write(connection, run).map_err(io::Error::other)?;
        if self.complete {
            connection
                .execute("DELETE FROM leases WHERE run = ?1", params![run])
                .map_err(io::Error::other)?;
        } else {
            log::warn!(
                "run {run} ended with its machine: what its leases allowed and the ledger does \
                 not show counts as spent until its budget windows end"
            );
        }
        Ok(found)
    }

    /// Removes the files: what they say is committed.
    fn remove(self) {
        self.segments.iter().for_each(|segment| remove(&self.files.segment(*segment)));
        remove(&self.files.lock());
    }
}

/// Books the ends in files of the process's own journal that found no place in its queue; `queued`
/// are those that did, and wait there.
pub(super) fn book_spilled(
    connection: &Connection,
    known: &Known,
    run: i64,
    segments: &[PathBuf],
    queued: &AHashSet<i64>,
) -> io::Result<u64> {
    let mut events = Events::default();
    for segment in segments {
        events.read(segment)?;
    }
    let mut booking = Booking::default();
    let mut rows = 0;
    for row in events.settled.values().filter(|row| !queued.contains(&row.id)) {
        if attempts::insert(connection, row).map_err(io::Error::other)? {
            booking.add(known, row, events.accounts(row.id));
            rows += 1;
        }
    }
    booking.write(connection, run).map_err(io::Error::other)?;
    Ok(rows)
}

impl Events {
    fn read(&mut self, path: &Path) -> io::Result<()> {
        let mut lines = BufReader::new(File::open(path)?);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line)? > 0 {
            match serde_json::from_slice(&line) {
                Ok(Line::H(hold)) => {
                    self.holds.insert(hold.id, hold);
                }
                Ok(Line::S(row)) => {
                    self.settled.insert(row.id, row);
                }
                Ok(Line::R(id)) => {
                    self.released.insert(id);
                }
                Err(_) if line.trim_ascii().is_empty() => {}
                Err(_) => self.unreadable += 1,
            }
            line.clear();
        }
        Ok(())
    }

    fn accounts(&self, id: i64) -> &[AccountKey] {
        self.holds.get(&id).map_or(&[], |hold| &hold.accounts)
    }
}
