//! Reports: what was spent, and the requests themselves. Reads also while a server writes.

use super::attempts;
use super::error::LedgerError;
use super::lease::{amount, int};
use super::row::{Row, Word, instant};
use super::schema;
use crate::scope::ScopeKind;
use crate::units::NanoUsd;
use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use rusqlite::functions::FunctionFlags;
use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};
use std::path::Path;

/// What spending can be grouped by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Column {
    Key,
    Team,
    User,
    Model,
    Provider,
    TargetModel,
    Outcome,
    /// The hour, in UTC.
    Hour,
    /// The day, in UTC.
    Day,
    /// The month, in UTC.
    Month,
}

impl Column {
    /// Every column.
    pub const ALL: [Column; 10] = [
        Column::Key,
        Column::Team,
        Column::User,
        Column::Model,
        Column::Provider,
        Column::TargetModel,
        Column::Outcome,
        Column::Hour,
        Column::Day,
        Column::Month,
    ];

    /// The word used on the command line and in `group_by`.
    pub fn as_str(self) -> &'static str {
        match self {
            Column::Key => "key",
            Column::Team => "team",
            Column::User => "user",
            Column::Model => "model",
            Column::Provider => "provider",
            Column::TargetModel => "target_model",
            Column::Outcome => "outcome",
            Column::Hour => "hour",
            Column::Day => "day",
            Column::Month => "month",
        }
    }

    /// The column of this name; the ledger's own `key_id` is also understood.
    pub fn parse(word: &str) -> Option<Column> {
        let word = if word == "key_id" { "key" } else { word };
        Column::ALL.into_iter().find(|column| column.as_str() == word)
    }

    fn sql(self) -> &'static str {
        match self {
            Column::Key => "key_id",
            Column::Team => "team",
            Column::User => "user",
            Column::Model => "model",
            Column::Provider => "provider",
            Column::TargetModel => "target_model",
            Column::Outcome => "outcome",
            Column::Hour => "substr(local(at), 1, 13)",
            Column::Day => "substr(local(at), 1, 10)",
            Column::Month => "substr(local(at), 1, 7)",
        }
    }
}

/// Sums of one group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpendRow {
    /// The values of the columns grouped by, in their order.
    pub group: Vec<Option<String>>,
    /// Requests of clients.
    pub requests: u64,
    /// Upstream attempts.
    pub attempts: u64,
    /// All input tokens known.
    pub input_tokens: u64,
    /// Of them read from a provider's cache.
    pub cached_input_tokens: u64,
    /// Of them written to a provider's cache.
    pub cache_write_tokens: u64,
    /// All output tokens known.
    pub output_tokens: u64,
    /// Of them spent on reasoning.
    pub reasoning_tokens: u64,
    /// What it cost.
    pub cost: NanoUsd,
}

/// Which rows; what is `None` does not restrict.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// From this time on.
    pub from: Option<DateTime<Utc>>,
    /// Before this time.
    pub to: Option<DateTime<Utc>>,
    /// Of this request.
    pub request_id: Option<String>,
    /// Of this key.
    pub key: Option<String>,
    /// Of this team.
    pub team: Option<String>,
    /// Of this user.
    pub user: Option<String>,
    /// Of this model.
    pub model: Option<String>,
    /// Of this provider.
    pub provider: Option<String>,
    /// That ended so.
    pub outcome: Option<String>,
}

impl Filter {
    /// A condition and its values.
    fn sql(&self) -> (String, Vec<Value>) {
        let equal = [
            ("request_id =", &self.request_id),
            ("key_id =", &self.key),
            ("team =", &self.team),
            ("user =", &self.user),
            ("model =", &self.model),
            ("provider =", &self.provider),
            ("outcome =", &self.outcome),
        ];
        let (from, to) = (self.from.map(instant), self.to.map(instant));
        let within = [("at >=", &from), ("at <", &to)];
        let (mut sql, mut values) = (String::from("1"), Vec::new());
        for (test, value) in within.into_iter().chain(equal) {
            if let Some(value) = value {
                values.push(Value::Text(value.clone()));
                sql.push_str(&format!(" AND {test} ?{}", values.len()));
            }
        }
        (sql, values)
    }
}

/// What was spent from a time until before another, dearest group first; at most `limit` groups.
/// Without columns: one row, the total.
///
/// # Errors
/// The database can't be read.
pub fn spend(
    path: &Path,
    filter: &Filter,
    group_by: &[Column],
    zone: Tz,
    limit: u64,
) -> Result<Vec<SpendRow>, LedgerError> {
    let connection = schema::open_to_read(path)?;
    add_local(&connection, zone).map_err(|error| LedgerError::sql(path, &error))?;
    let (condition, values) = filter.sql();
    let columns: Vec<&str> = group_by.iter().map(|column| column.sql()).collect();
    let columns = columns.join(", ");
    let (select, group) = match columns.as_str() {
        "" => (String::new(), String::new()),
        columns => (format!(", {columns}"), format!("GROUP BY {columns}")),
    };
    let sql = format!(
        "SELECT count(DISTINCT request_id), count(*), {}, {}, {}, {}, {}, {} {select}
         FROM attempts WHERE {condition} {group} ORDER BY total(cost_nano_usd) DESC, 2 DESC
         LIMIT {}",
        attempts::sum_of_tokens("input_tokens"),
        attempts::sum_of_tokens("cached_input_tokens"),
        attempts::sum_of_tokens("cache_write_tokens"),
        attempts::sum_of_tokens("output_tokens"),
        attempts::sum_of_tokens("reasoning_tokens"),
        attempts::SUMS_OF_COST,
        int(limit)
    );
    let read = |row: &rusqlite::Row<'_>| {
        let sum = |i: usize| row.get::<_, i64>(i).map(amount);
        Ok(SpendRow {
            group: (0..group_by.len()).map(|i| row.get(9 + i)).collect::<Result<_, _>>()?,
            requests: sum(0)?,
            attempts: sum(1)?,
            input_tokens: sum(2)?,
            cached_input_tokens: sum(3)?,
            cache_write_tokens: sum(4)?,
            output_tokens: sum(5)?,
            reasoning_tokens: sum(6)?,
            cost: attempts::sum(row, 7)?,
        })
    };
    all(&connection, &sql, values, read).map_err(|error| LedgerError::sql(path, &error))
}

/// Scopes that have spent something in a window that runs, those of few names first; at most
/// `limit`.
///
/// # Errors
/// The database can't be read.
pub fn spenders(
    path: &Path,
    now: DateTime<Utc>,
    limit: u64,
) -> Result<Vec<(ScopeKind, String)>, LedgerError> {
    let connection = schema::open_to_read(path)?;
    let sql = "SELECT DISTINCT kind, id FROM accounts
         WHERE starts <= ?1 AND ends > ?1 AND spent_nano > 0
         ORDER BY kind IN ('user', 'key'), kind = 'key' LIMIT ?2";
    let values = vec![Value::Integer(now.timestamp()), Value::Integer(int(limit))];
    let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, String>(0)?, row.get(1)?));
    let rows =
        all(&connection, sql, values, read).map_err(|error| LedgerError::sql(path, &error))?;
    Ok(rows.into_iter().filter_map(|(kind, id)| Some((ScopeKind::read(&kind)?, id))).collect())
}

/// The newest rows that match, newest first.
///
/// # Errors
/// The database can't be read.
pub fn requests(path: &Path, filter: &Filter, limit: u64) -> Result<Vec<Row>, LedgerError> {
    let connection = schema::open_to_read(path)?;
    let (condition, mut values) = filter.sql();
    values.push(Value::Integer(int(limit)));
    let sql = format!(
        "SELECT {} FROM attempts WHERE {condition} ORDER BY at DESC, id DESC LIMIT ?{}",
        attempts::COLUMNS,
        values.len()
    );
    all(&connection, &sql, values, attempts::read).map_err(|error| LedgerError::sql(path, &error))
}

/// The function `local`: a time as clocks in the zone show it.
fn add_local(connection: &Connection, zone: Tz) -> rusqlite::Result<()> {
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC;
    connection.create_scalar_function("local", 1, flags, move |context| {
        let at = context.get_raw(0).as_str().unwrap_or_default();
        let local = DateTime::parse_from_rfc3339(at).map(|at| at.with_timezone(&zone));
        Ok(local.map_or_else(|_| at.to_owned(), |at| at.format("%Y-%m-%dT%H").to_string()))
    })
}

fn all<T>(
    connection: &Connection,
    sql: &str,
    values: Vec<Value>,
    read: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<Vec<T>> {
    connection.prepare(sql)?.query_map(params_from_iter(values), read)?.collect()
}
