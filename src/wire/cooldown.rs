//! How long a provider wants to be left alone, in all the ways they say it.

use chrono::{DateTime, Utc};
use http::HeaderMap;
use serde::Deserialize;
use std::time::Duration;

/// Nothing asks for a longer pause than this: a day. Past it the value is taken for a mistake.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// What the headers of a 429 say: `retry-after-ms`; else `retry-after` in seconds (fractions
/// too) or as an HTTP date; else the reset of whichever limit has nothing remaining.
pub fn from_headers(headers: &HeaderMap, now: DateTime<Utc>) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    if let Some(ms) = text("retry-after-ms").and_then(|value| value.parse::<f64>().ok()) {
        return seconds(ms / 1000.0);
    }
    if let Some(value) = text("retry-after") {
        return match value.parse::<f64>() {
            Ok(number) => seconds(number),
            Err(_) => date(value, now),
        };
    }
    ["requests", "tokens", "input-tokens", "output-tokens"]
        .iter()
        .flat_map(|kind| [openai_reset(headers, kind), anthropic_reset(headers, kind, now)])
        .flatten()
        .max()
}

/// What the body of a 429 says: Google's `RetryInfo`.
pub fn from_body(body: &[u8]) -> Option<Duration> {
    let body: ErrorBody = serde_json::from_slice(body).ok()?;
    let error = match body {
        ErrorBody::One(one) => one.error,
        ErrorBody::Many(many) => many.into_iter().next()?.error,
    };
    let delay = error.details.into_iter().find_map(|detail| detail.retry_delay)?;
    go_duration(&delay)
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ErrorBody {
    // First: serde would take a list for a struct, too.
    Many(Vec<Wrapped>),
    One(Wrapped),
}

#[derive(Deserialize)]
struct Wrapped {
    error: GoogleError,
}

#[derive(Deserialize)]
struct GoogleError {
    #[serde(default)]
    details: Vec<Detail>,
}

#[derive(Deserialize)]
struct Detail {
    #[serde(rename = "retryDelay")]
    retry_delay: Option<String>,
}

fn openai_reset(headers: &HeaderMap, kind: &str) -> Option<Duration> {
    let text = |name: String| headers.get(name).and_then(|value| value.to_str().ok());
    let remaining = text(format!("x-ratelimit-remaining-{kind}"))?;
    if remaining.trim().parse::<f64>().ok()? >= 1.0 {
        return None;
    }
    let reset = text(format!("x-ratelimit-reset-{kind}"))?.trim();
    // OpenAI and Groq write a Go duration, Azure plain seconds.
    reset.parse::<f64>().ok().map_or_else(|| go_duration(reset), seconds)
}

fn anthropic_reset(headers: &HeaderMap, kind: &str, now: DateTime<Utc>) -> Option<Duration> {
    let text = |name: String| headers.get(name).and_then(|value| value.to_str().ok());
    let remaining = text(format!("anthropic-ratelimit-{kind}-remaining"))?;
    if remaining.trim().parse::<u64>().ok()? > 0 {
        return None;
    }
    date(text(format!("anthropic-ratelimit-{kind}-reset"))?.trim(), now)
}

/// An HTTP date or an RFC 3339 time; what has passed already is no pause.
fn date(value: &str, now: DateTime<Utc>) -> Option<Duration> {
    let at = DateTime::parse_from_rfc3339(value).map(|at| at.to_utc());
    let at = at.ok().or_else(|| httpdate::parse_http_date(value).ok().map(Into::into))?;
    Some((at - now).to_std().unwrap_or_default().min(LONGEST))
}

fn seconds(value: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(value).ok().map(|pause| pause.min(LONGEST))
}

/// A Go duration such as `6m0s`, `1h2m3.5s` or `360ms`.
fn go_duration(value: &str) -> Option<Duration> {
    let mut rest = value;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest.get(..digits)?.parse().ok()?;
        rest = rest.get(digits..)?;
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let factor = match rest.get(..unit)? {
            "d" => 86_400.0,
            "h" => 3_600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total += number * factor;
        rest = rest.get(unit..)?;
    }
    seconds(total).filter(|_| !value.is_empty())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn now() -> DateTime<Utc> {
        DateTime::parse_from_rfc3339("2025-08-21T12:40:00Z").unwrap().to_utc()
    }

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.insert(http::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        map
    }

    fn ms(n: u64) -> Option<Duration> {
        Some(Duration::from_millis(n))
    }

    #[test]
    fn every_form_of_a_header() {
        let exhausted = ("x-ratelimit-remaining-requests", "0");
        type Case<'a> = (&'a [(&'a str, &'a str)], Option<Duration>);
        let cases: &[Case<'_>] = &[
            (&[("retry-after", "7")], ms(7000)),
            (&[("retry-after", "5.512")], ms(5512)),
            (&[("retry-after-ms", "250"), ("retry-after", "9")], ms(250)),
            (&[("retry-after", "Thu, 21 Aug 2025 12:41:00 GMT")], ms(60_000)),
            (&[("retry-after", "Thu, 21 Aug 2025 12:00:00 GMT")], ms(0)),
            (&[("retry-after", "-3")], None),
            (&[("retry-after", "soon")], None),
            (&[("retry-after", "1e300")], None),
            (&[("retry-after", "99999999")], Some(LONGEST)),
            (&[exhausted, ("x-ratelimit-reset-requests", "360ms")], ms(360)),
            (&[exhausted, ("x-ratelimit-reset-requests", "1m0.2s")], ms(60_200)),
            (&[exhausted, ("x-ratelimit-reset-requests", "6")], ms(6000)),
            (
                &[("x-ratelimit-remaining-requests", "5"), ("x-ratelimit-reset-requests", "9s")],
                None,
            ),
            (
                &[
                    ("anthropic-ratelimit-tokens-remaining", "0"),
                    ("anthropic-ratelimit-tokens-reset", "2025-08-21T12:41:30Z"),
                ],
                ms(90_000),
            ),
            (&[], None),
        ];
        for (pairs, wanted) in cases {
            assert_eq!(from_headers(&headers(pairs), now()), *wanted, "{pairs:?}");
        }
    }

    #[test]
    fn googles_retry_info() {
        let body = br#"[{"error":{"code":429,"details":[{"@type":"x"},{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"46.21s"}]}}]"#;
        assert_eq!(from_body(body), ms(46_210));
        assert_eq!(from_body(br#"{"error":{"code":429}}"#), None);
        assert_eq!(from_body(b"<html>"), None);
    }
}
