//! What can be wrong with the ledger, and what to do about it.

use super::store::StoreError;
use rusqlite::ErrorCode;
use std::path::{Path, PathBuf};

/// Why the ledger can't be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The file is damaged or is something else.
    #[error(
        "{path}: not a Tollbar database, or damaged ({detail}); move it away or restore a copy"
    )]
    Corrupt {
        /// The database.
        path: PathBuf,
        /// What SQLite says.
        detail: String,
    },
    /// The file or its directory can't be written.
    #[error(
        "{path}: can't be opened or written ({detail}); let the user Tollbar runs as write to it and its directory"
    )]
    ReadOnly {
        /// The database.
        path: PathBuf,
        /// What SQLite says.
        detail: String,
    },
    /// Another process keeps it locked.
    #[error("{path}: locked by another process ({detail}); end that process or its transaction")]
    Locked {
        /// The database.
        path: PathBuf,
        /// What SQLite says.
        detail: String,
    },
    /// There is no room.
    #[error("{path}: no room left ({detail}); free some disk space")]
    Full {
        /// The database.
        path: PathBuf,
        /// What SQLite says.
        detail: String,
    },
    /// Written by a newer Tollbar.
    #[error(
        "{path}: has schema version {found}, this Tollbar knows up to {known}; use the newer one"
    )]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The newest version known here.
        known: i64,
    },
    /// Anything else.
    #[error("{path}: {detail}")]
    Other {
        /// The database.
        path: PathBuf,
        /// What went wrong.
        detail: String,
    },
    /// The journal beside it can't be left.
    #[error("{path}: its journal can't be continued in another file just now")]
    Journal {
        /// The database.
        path: PathBuf,
    },
    /// The ledger has been closed.
    #[error("the ledger is closed")]
    Closed,
}

impl LedgerError {
    pub(super) fn sql(path: &Path, error: &rusqlite::Error) -> LedgerError {
        let (path, detail) = (path.to_owned(), error.to_string());
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
                LedgerError::Corrupt { path, detail }
            }
            Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
                LedgerError::ReadOnly { path, detail }
            }
            Some(
                ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::FileLockingProtocolFailed,
            ) => LedgerError::Locked { path, detail },
            Some(ErrorCode::DiskFull) => LedgerError::Full { path, detail },
            _ => LedgerError::Other { path, detail },
        }
    }

    pub(super) fn io(path: &Path, error: &std::io::Error) -> LedgerError {
        let (path, detail) = (path.to_owned(), error.to_string());
        match error.kind() {
            std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
                LedgerError::ReadOnly { path, detail }
            }
            std::io::ErrorKind::StorageFull => LedgerError::Full { path, detail },
            _ => LedgerError::Other { path, detail },
        }
    }
}

impl From<LedgerError> for StoreError {
    fn from(error: LedgerError) -> StoreError {
        StoreError(error.to_string())
    }
}
