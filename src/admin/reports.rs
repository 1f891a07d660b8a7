//! `GET /spend` and `GET /requests`: what the ledger says.

use super::{build, error};
use crate::budget::calendar;
use crate::ledger::{self, Column, Filter, LedgerError, Row, SpendRow, instant};
use crate::state::Gateway;
use crate::units::NanoUsd;
use chrono::{DateTime, NaiveDate, Utc};
use chrono_tz::Tz;
use http::Response;
use serde::Serialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// Rows that one answer has at most.
const MOST_ROWS: u64 = 10_000;

/// Groups that one answer has at most: they are built in the serving process.
const MOST_GROUPS: u64 = 50_000;

/// `?from&to&key&team&user&model&provider&outcome&group_by=team,model,…`
pub async fn spend(gateway: &Gateway, query: &str) -> Response<Vec<u8>> {
    let zone = gateway.live.peek().timezone;
    let asked = match Query::parse(query, &["group_by"], zone) {
        Ok(asked) => asked,
        Err(why) => return error(400, "invalid_request", &why),
    };
    let (path, group) = (gateway.ledger.path().to_owned(), asked.group_by.clone());
    let filter = asked.filter;
    let read = move || ledger::spend(&path, &filter, &group, zone, MOST_GROUPS + 1);
    let rows = tokio::task::spawn_blocking(read).await;
    if matches!(&rows, Ok(Ok(rows)) if rows.len() as u64 > MOST_GROUPS) {
        let why = format!(
            "there are more than {MOST_GROUPS} groups: ask for a shorter time, for one key, team or model, or use `tollbar spend`"
        );
        return error(400, "invalid_request", &why);
    }
    answer(rows, |row: &SpendRow| {
        let mut shown = Shown::default();
        for (column, value) in asked.group_by.iter().zip(&row.group) {
            shown.add(column.as_str(), value);
        }
        shown.add("requests", &row.requests);
        shown.add("attempts", &row.attempts);
        shown.add("input_tokens", &row.input_tokens);
        shown.add("cached_input_tokens", &row.cached_input_tokens);
        shown.add("output_tokens", &row.output_tokens);
        shown.add("reasoning_tokens", &row.reasoning_tokens);
        shown.add_usd("cost_usd", row.cost);
        shown
    })
}

/// Every account of a window that runs: cap, spent, held, and when the window ends.
pub fn budgets(gateway: &Gateway) -> Response<Vec<u8>> {
    let accounts = gateway.budgets.view(Utc::now());
    let rows: Vec<Shown> = accounts
        .iter()
        .map(|account| {
            let mut shown = Shown::default();
            shown.add("scope", &account.kind.as_str());
            shown.add("id", &account.id);
            shown.add("per", &account.per.as_str());
            shown.add_usd("cap_usd", account.cap);
            shown.add_usd("spent_usd", account.spent);
            shown.add_usd("held_usd", account.held);
            shown.add_usd("reserved_elsewhere_usd", account.elsewhere);
            shown.add("waiting", &account.waiting);
            shown.add("window_end", &account.window_end.map(|end| end.to_rfc3339()));
            shown
        })
        .collect();
    data(&rows)
}

/// `?from&to&key&team&user&model&provider&outcome&request_id&limit`, newest first.
pub async fn requests(gateway: &Gateway, query: &str) -> Response<Vec<u8>> {
    let asked = match Query::parse(query, &["limit"], gateway.live.peek().timezone) {
        Ok(asked) => asked,
        Err(why) => return error(400, "invalid_request", &why),
    };
    let (path, limit) = (gateway.ledger.path().to_owned(), asked.limit);
    let filter = asked.filter;
    let rows = tokio::task::spawn_blocking(move || ledger::requests(&path, &filter, limit)).await;
    answer(rows, |row: &Row| {
        let mut shown = Shown::default();
        if let Ok(serde_json::Value::Object(members)) = serde_json::to_value(row) {
            for (name, value) in &members {
                shown.add(name, value);
            }
        }
        shown.0.remove("cost_nano_usd");
        shown.add("at", &instant(row.at));
        shown.add_usd("cost_usd", row.cost_nano_usd);
        shown
    })
}

/// One row of an answer. Money is written with all its nine digits, which a float would lose.
#[derive(Default, Serialize)]
pub struct Shown(BTreeMap<String, Box<RawValue>>);

impl Shown {
    /// Adds a member.
    pub fn add(&mut self, name: &str, value: &impl Serialize) {
        if let Ok(raw) = serde_json::value::to_raw_value(value) {
            self.0.insert(name.to_owned(), raw);
        }
    }

    /// Adds an amount.
    pub fn add_usd(&mut self, name: &str, amount: NanoUsd) {
        if let Ok(raw) = RawValue::from_string(amount.to_string()) {
            self.0.insert(name.to_owned(), raw);
        }
    }
}

/// A list of rows as an answer.
pub fn data(rows: &[Shown]) -> Response<Vec<u8>> {
    #[derive(Serialize)]
    struct Data<'a> {
        data: &'a [Shown],
    }
    match serde_json::to_vec(&Data { data: rows }) {
        Ok(body) => build(200, "application/json", body),
        Err(_) => error(500, "internal_error", "the answer can't be written"),
    }
}

fn answer<T>(
    rows: Result<Result<Vec<T>, LedgerError>, tokio::task::JoinError>,
    show: impl Fn(&T) -> Shown,
) -> Response<Vec<u8>> {
    match rows {
        Ok(Ok(rows)) => data(&rows.iter().map(show).collect::<Vec<_>>()),
        Ok(Err(why)) => error(503, "ledger_unavailable", &why.to_string()),
        Err(_) => error(500, "internal_error", "reading the ledger failed"),
    }
}

/// What a report is asked for.
struct Query {
    filter: Filter,
    group_by: Vec<Column>,
    limit: u64,
}

impl Query {
    /// `also`: parameters that not every report has. Dates are those of the zone.
    fn parse(query: &str, also: &[&str], zone: Tz) -> Result<Self, String> {
        let mut asked = Query { filter: Filter::default(), group_by: Vec::new(), limit: 100 };
        let mut seen = Vec::new();
        for (name, value) in pairs(query) {
            if seen.contains(&name) {
                return Err(format!("`{name}` is there twice"));
            }
            seen.push(name);
            let filter = &mut asked.filter;
            match name {
                "from" => filter.from = Some(time(&value, zone)?),
                "to" => filter.to = Some(time(&value, zone)?),
                "group_by" if also.contains(&name) => asked.group_by = columns(&value)?,
                "limit" if also.contains(&name) => {
                    let limit: u64 =
                        value.parse().map_err(|_| "limit: a whole number".to_owned())?;
                    asked.limit = limit.min(MOST_ROWS);
                }
                "key" | "key_id" => filter.key = Some(value),
                "team" => filter.team = Some(value),
                "user" => filter.user = Some(value),
                "model" => filter.model = Some(value),
                "provider" => filter.provider = Some(value),
                "outcome" => filter.outcome = Some(value),
                "request_id" => filter.request_id = Some(value),
                other => return Err(format!("`{other}`: no such parameter")),
            }
        }
        in_order(asked.filter.from, asked.filter.to)?;
        Ok(asked)
    }
}

/// # Errors
/// Nothing is between the two.
pub fn in_order(from: Option<DateTime<Utc>>, to: Option<DateTime<Utc>>) -> Result<(), String> {
    match from.zip(to).is_some_and(|(from, to)| from > to) {
        true => Err("`from` is after `to`".to_owned()),
        false => Ok(()),
    }
}

/// Columns to group by, separated by commas.
///
/// # Errors
/// Which word is none, and which there are.
pub fn columns(words: &str) -> Result<Vec<Column>, String> {
    words
        .split(',')
        .filter(|word| !word.is_empty())
        .map(|word| {
            let known = Column::ALL.map(Column::as_str).join(", ");
            Column::parse(word).ok_or_else(|| format!("`{word}`: group by {known}"))
        })
        .collect()
}

/// An RFC 3339 time, or a date, which is where it begins in the zone.
///
/// # Errors
/// What would be understood.
pub fn time(text: &str, zone: Tz) -> Result<DateTime<Utc>, String> {
    if let Ok(at) = DateTime::parse_from_rfc3339(text) {
        return Ok(at.to_utc());
    }
    let date = text.parse::<NaiveDate>().ok();
    date.map(|date| calendar::midnight(zone, date))
        .ok_or_else(|| format!("`{text}`: write a date such as 2026-11-21, or an RFC 3339 time"))
}

/// The parameters of a query, decoded.
pub(super) fn pairs(query: &str) -> impl Iterator<Item = (&str, String)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (name, decode(value))
    })
}

/// Undoes percent encoding.
pub(super) fn decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = tail.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        match (first, hex.and_then(|two| u8::from_str_radix(two, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                rest = tail.get(2..).unwrap_or_default();
                continue;
            }
            (b'+', _) => out.push(b' '),
            (other, _) => out.push(*other),
        }
        rest = tail;
    }
    String::from_utf8_lossy(&out).into_owned()
}
