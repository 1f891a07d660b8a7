//! What is written is what is read.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::ledger::AccountName;
use crate::scope::Per;
use crate::units::UsageSource;

fn account(id: &str) -> AccountKey {
    let id = id.into();
    AccountName { kind: ScopeKind::Key, id, per: Per::Day, starts: -5, ends: i64::MAX }.into()
}

#[test]
fn a_hold_is_read_as_it_was_written() {
    let at = DateTime::from_timestamp_micros(1_700_000_000_123_456).unwrap();
    let odd = "a \"b\\\n\u{1}{[é😀";
    let scopes = [(ScopeKind::Key, odd), (ScopeKind::Global, "")];
    let accounts = vec![account(odd), account("plain")];
    let note = HoldNote {
        request: odd,
        at,
        worst: NanoUsd(u64::MAX),
        scopes: &scopes,
        accounts: accounts.clone(),
    };
    let Ok(Line::H(read)) = serde_json::from_slice(&hold_line(7, &note)) else { panic!() };
    assert_eq!((read.id, read.at, read.worst), (7, at, u64::MAX));
    assert_eq!((read.request.as_str(), &read.accounts), (odd, &accounts));
    assert_eq!(read.lost().key_id, odd);
}

#[test]
fn a_row_is_read_as_it_was_written() {
    let at = DateTime::from_timestamp_micros(1_700_000_000_123_456).unwrap();
    let empty = Row::new(at);
    let full = Row {
        id: i64::MAX,
        request_id: "req \"1\"".into(),
        key_id: "k\n".into(),
        team: Some("t".into()),
        user: Some(String::new()),
        model: "m".into(),
        provider: "p".into(),
        target_model: "t/m".into(),
        attempt: 3,
        outcome: "ok".into(),
        status: Some(200),
        stream: true,
        input_tokens: Some(1),
        cached_input_tokens: Some(2),
        cache_write_tokens: Some(3),
        output_tokens: Some(4),
        reasoning_tokens: Some(5),
        usage_source: UsageSource::Reported,
        cost_nano_usd: NanoUsd(6),
        price_version: "v".into(),
        first_token_ms: Some(7),
        duration_ms: 8,
        client_gone: true,
        metadata: "{\"a\":\"\\u0000\"}".into(),
        ..empty.clone()
    };
    for row in [empty, full] {
        let Ok(Line::S(read)) = serde_json::from_slice(&row_line(&row)) else { panic!() };
        assert_eq!(read, row);
    }
}
