//! Table `attempts`: rows in, rows out.

use super::lease::{amount, int};
use super::row::{Row, Word, instant};
use crate::units::{NanoUsd, UsageSource};
use chrono::{DateTime, Utc};
use rusqlite::{Connection, params};
use std::borrow::Cow;

/// The columns in the order that [`insert`] and [`read`] use.
macro_rules! columns {
    () => {
        "id, request_id, at, key_id, team, user, model, provider, target_model, attempt, outcome, \
         status, stream, input_tokens, cached_input_tokens, cache_write_tokens, output_tokens, \
         reasoning_tokens, usage_source, cost_nano_usd, price_version, first_token_ms, \
         duration_ms, client_gone, metadata"
    };
}

/// The same, for queries.
pub(super) const COLUMNS: &str = columns!();

/// A constant: it is looked up among the prepared statements for every row.
const INSERT: &str = concat!(
    "INSERT INTO attempts (",
    columns!(),
    ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, \
     ?19, ?20, ?21, ?22, ?23, ?24, ?25) ON CONFLICT DO NOTHING"
);

/// More tokens than anybody has; with them millions of rows can be summed.
const MOST_TOKENS: u64 = 1 << 40;

/// The sum of a column of tokens. Rows of older versions may have any number.
pub(super) fn sum_of_tokens(column: &str) -> String {
    format!("coalesce(sum(min({column}, {MOST_TOKENS})), 0)")
}

/// The sum of the costs in two columns, which [`sum`] puts together: a sum in one would fail where it
/// has no room for it, and rounded numbers are no money.
pub(super) const SUMS_OF_COST: &str = "coalesce(sum(cost_nano_usd >> 32), 0), \
     coalesce(sum(cost_nano_usd & 4294967295), 0)";

/// What is at this place and the next, of [`SUMS_OF_COST`].
pub(super) fn sum(row: &rusqlite::Row<'_>, at: usize) -> rusqlite::Result<NanoUsd> {
    let (high, low) = (amount(row.get(at)?), amount(row.get(at + 1)?));
    Ok(NanoUsd(high.saturating_mul(1 << 32).saturating_add(low)))
}

/// When the newest attempt began.
pub(super) fn newest(connection: &Connection) -> rusqlite::Result<Option<DateTime<Utc>>> {
    let at: Option<String> =
        connection.query_row("SELECT max(at) FROM attempts", [], |row| row.get(0))?;
    let at = at.and_then(|at| DateTime::parse_from_rfc3339(&at).ok());
    Ok(at.map(|at| at.to_utc()))
}

/// Whether the row is new: one that is there already stays as it is.
pub(super) fn insert(connection: &Connection, row: &Row) -> rusqlite::Result<bool> {
    let tokens = |count: Option<u64>| count.map(|count| int(count.min(MOST_TOKENS)));
    let new = connection.prepare_cached(INSERT)?.execute(params![
        row.id,
        row.request_id,
        instant(row.at),
        row.key_id,
        row.team,
        row.user,
        row.model,
        row.provider,
        row.target_model,
        row.attempt,
        row.outcome.as_ref(),
        row.status,
        row.stream,
        tokens(row.input_tokens),
        tokens(row.cached_input_tokens),
        tokens(row.cache_write_tokens),
        tokens(row.output_tokens),
        tokens(row.reasoning_tokens),
        row.usage_source.as_str(),
        int(row.cost_nano_usd.0),
        row.price_version,
        row.first_token_ms.map(int),
        int(row.duration_ms),
        row.client_gone,
        row.metadata,
    ])?;
    Ok(new == 1)
}

/// A row of [`COLUMNS`].
pub(super) fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    let count = |i: usize| row.get::<_, Option<i64>>(i).map(|n| n.map(amount));
    let at: String = row.get(2)?;
    let source: String = row.get(18)?;
    Ok(Row {
        id: row.get(0)?,
        request_id: row.get(1)?,
        at: DateTime::parse_from_rfc3339(&at).map_or(DateTime::<Utc>::MIN_UTC, |at| at.to_utc()),
        key_id: row.get(3)?,
        team: row.get(4)?,
        user: row.get(5)?,
        model: row.get(6)?,
        provider: row.get(7)?,
        target_model: row.get(8)?,
        attempt: row.get(9)?,
        outcome: Cow::Owned(row.get(10)?),
        status: row.get(11)?,
        stream: row.get(12)?,
        input_tokens: count(13)?,
        cached_input_tokens: count(14)?,
        cache_write_tokens: count(15)?,
        output_tokens: count(16)?,
        reasoning_tokens: count(17)?,
        usage_source: UsageSource::read(&source).unwrap_or(UsageSource::None),
        cost_nano_usd: NanoUsd(amount(row.get(19)?)),
        price_version: row.get(20)?,
        first_token_ms: count(21)?,
        duration_ms: amount(row.get(22)?),
        client_gone: row.get(23)?,
        metadata: row.get(24)?,
    })
}
