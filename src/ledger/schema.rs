//! The tables, their versions, and how a database is opened.

use super::error::LedgerError;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Each step leads from the version of its place to the next. Never change one that was released.
/// Taken twice a step does no harm: an older process on the same file may set the version back.
const MIGRATIONS: &[&str] = &[
    // 0 -> 1
    "CREATE TABLE attempts (
        id                  INTEGER PRIMARY KEY,
        request_id          TEXT NOT NULL,
        at                  TEXT NOT NULL,
        key_id              TEXT NOT NULL,
        team                TEXT,
        user                TEXT,
        model               TEXT NOT NULL,
        provider            TEXT NOT NULL,
        target_model        TEXT NOT NULL,
        attempt             INTEGER NOT NULL,
        outcome             TEXT NOT NULL,
        status              INTEGER,
        stream              INTEGER NOT NULL,
        input_tokens        INTEGER,
        cached_input_tokens INTEGER,
        cache_write_tokens  INTEGER,
        output_tokens       INTEGER,
        reasoning_tokens    INTEGER,
        usage_source        TEXT NOT NULL,
        cost_nano_usd       INTEGER NOT NULL,
        price_version       TEXT NOT NULL,
        first_token_ms      INTEGER,
        duration_ms         INTEGER NOT NULL,
        client_gone         INTEGER NOT NULL,
        metadata            TEXT NOT NULL
    ) STRICT;
    CREATE INDEX attempts_at ON attempts (at);
    -- The sum of the attempts of a scope in a budget window. It outlives their retention.
    CREATE TABLE accounts (
        kind TEXT NOT NULL, id TEXT NOT NULL, per TEXT NOT NULL,
        starts INTEGER NOT NULL, ends INTEGER NOT NULL,
        spent_nano INTEGER NOT NULL,
        PRIMARY KEY (kind, id, per, starts)
    ) STRICT, WITHOUT ROWID;
    -- What a process may spend of an account, committed before it does.
    CREATE TABLE leases (
        kind TEXT NOT NULL, id TEXT NOT NULL, per TEXT NOT NULL,
        starts INTEGER NOT NULL, ends INTEGER NOT NULL, run INTEGER NOT NULL,
        upto_nano INTEGER NOT NULL, booked_nano INTEGER NOT NULL,
        PRIMARY KEY (kind, id, per, starts, run)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE runs (run INTEGER PRIMARY KEY AUTOINCREMENT, pid INTEGER NOT NULL) STRICT;
    CREATE TABLE keys (
        id TEXT PRIMARY KEY, hash BLOB NOT NULL UNIQUE, json TEXT NOT NULL,
        created_at TEXT NOT NULL, revoked_at TEXT
    ) STRICT;
    CREATE TABLE audit (
        at TEXT NOT NULL, actor TEXT NOT NULL, action TEXT NOT NULL,
        key_id TEXT, detail TEXT NOT NULL
    ) STRICT;
    CREATE INDEX audit_at ON audit (at);",
    // 1 -> 2: what was told already, so that no restart tells it again.
    "CREATE TABLE IF NOT EXISTS alerts (
        name TEXT PRIMARY KEY, at TEXT NOT NULL, until INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;",
    // 2 -> 3: nothing has ever been in the first table of keys.
    "DROP TABLE IF EXISTS keys;
    CREATE TABLE IF NOT EXISTS virtual_keys (
        id TEXT PRIMARY KEY, hash BLOB NOT NULL UNIQUE, json TEXT NOT NULL,
        created_at TEXT NOT NULL, expires_at TEXT, blocked_at TEXT, revoked_at TEXT,
        -- What the last rotation has replaced, and until when it is still accepted.
        previous_hash BLOB, previous_until TEXT
    ) STRICT;",
];

/// The newest version.
pub(super) const VERSION: i64 = MIGRATIONS.len() as i64;

/// Opens the database for writing; creates or migrates it where needed.
///
/// Every commit is on the disk when it returns (`synchronous = FULL`): a lease must be, before
/// anything is spent under it.
pub(super) fn open(path: &Path, wait: Duration) -> Result<Connection, LedgerError> {
    let sql = |error: rusqlite::Error| LedgerError::sql(path, &error);
    make(path);
    let mut connection = Connection::open(path).map_err(sql)?;
    connection.busy_timeout(wait).map_err(sql)?;
    connection.pragma_update(None, "journal_mode", "WAL").map_err(sql)?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(sql)?;
    connection.pragma_update(None, "foreign_keys", true).map_err(sql)?;
    connection.set_prepared_statement_cache_capacity(64);
    migrate(path, &mut connection)?;
    Ok(connection)
}

/// Makes the file where there is none, for its owner only. SQLite gives its companions the same
/// permissions.
fn make(path: &Path) {
    // What is wrong, if it can't be made, SQLite says.
    if OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).is_ok() {
        log::info!("{}: a new state file: nothing was spent so far", path.display());
    }
}

/// A connection is used by one thread at a time: SQLite needn't lock it for every value.
const READ: OpenFlags = OpenFlags::SQLITE_OPEN_READ_ONLY.union(OpenFlags::SQLITE_OPEN_NO_MUTEX);

/// Opens the database for reading, also while a server writes it, and also where the directory
/// is read-only.
pub(super) fn open_to_read(path: &Path) -> Result<Connection, LedgerError> {
    let sql = |error: rusqlite::Error| LedgerError::sql(path, &error);
    let mut connection = Connection::open_with_flags(path, READ).map_err(sql)?;
    connection.busy_timeout(Duration::from_secs(2)).map_err(sql)?;
    let mut found = version(&connection);
    if let Err(error) = &found
        && error.sqlite_error_code() == Some(ErrorCode::CannotOpen)
        && !wal(path).exists()
    {
        // Nobody writes it, and here nobody can: it is as if it were on a read-only disk.
        connection =
            Connection::open_with_flags(immutable(path), READ | OpenFlags::SQLITE_OPEN_URI)
                .map_err(sql)?;
        found = version(&connection);
    }
    let found = found.map_err(sql)?;
    if found == VERSION {
        return Ok(connection);
    }
    let path = path.to_owned();
    Err(if found > VERSION {
        LedgerError::Newer { path, found, known: VERSION }
    } else {
        let detail = "not yet a ledger of this version; start the server on it once".into();
        LedgerError::Other { path, detail }
    })
}

fn wal(path: &Path) -> PathBuf {
    let mut wal = path.as_os_str().to_owned();
    wal.push("-wal");
    wal.into()
}

fn immutable(path: &Path) -> String {
    let path = path.to_string_lossy();
    let path = path.replace('%', "%25").replace('?', "%3f").replace('#', "%23");
    format!("file:{path}?immutable=1")
}

fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

fn migrate(path: &Path, connection: &mut Connection) -> Result<(), LedgerError> {
    let sql = |error: rusqlite::Error| LedgerError::sql(path, &error);
    if version(connection).map_err(sql)? == VERSION {
        return Ok(());
    }
    // Another process may be migrating too: look again under the lock.
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sql)?;
    let found = version(&transaction).map_err(sql)?;
    if found > VERSION {
        return Err(LedgerError::Newer { path: path.to_owned(), found, known: VERSION });
    }
    for step in MIGRATIONS.iter().skip(usize::try_from(found).unwrap_or(0)) {
        transaction.execute_batch(step).map_err(sql)?;
    }
    transaction.pragma_update(None, "user_version", VERSION).map_err(sql)?;
    transaction.commit().map_err(sql)
}
