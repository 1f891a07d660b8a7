//! Who asks: one key, in any of the four headers SDKs use.

use crate::config::{self, Snapshot};
use crate::keyring::Keyring;
use crate::keys::{Caller, Standing};
use crate::reject::{Reason, Reject};
use crate::secret::sha256;
use chrono::{DateTime, Utc};
use http::HeaderMap;
use http::header::{AUTHORIZATION, HeaderName};
use std::sync::Arc;

/// The headers that may carry a key. They are never forwarded.
pub static KEY_HEADERS: [HeaderName; 4] = [
    AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("api-key"),
    HeaderName::from_static("x-goog-api-key"),
];

/// Where virtual keys are: in the file, and beside it.
#[derive(Clone, Copy)]
pub struct Keys<'a> {
    /// The configuration to go by.
    pub snapshot: &'a Snapshot,
    /// The keys that were made while running.
    pub keyring: &'a Keyring,
}

/// Finds the caller.
///
/// # Errors
/// `invalid_api_key` for no key, an unknown one or two different ones; `key_expired`;
/// `key_revoked`.
pub fn authenticate(
    headers: &HeaderMap,
    keys: Keys<'_>,
    now: DateTime<Utc>,
) -> Result<Arc<Caller>, Reject> {
    let hash = sha256(presented(headers)?.as_bytes());
    in_force(&hash, keys, now)?.ok_or_else(|| {
        Reject::new(
            Reason::InvalidApiKey,
            "this key is not known to the gateway. Use a virtual key of the gateway, not the provider's own key.",
        )
    })
}

/// The key with this hash, if it may be used now; `None`: there is none.
///
/// # Errors
/// `key_expired`, `key_revoked`.
pub fn in_force(
    hash: &[u8; 32],
    keys: Keys<'_>,
    now: DateTime<Utc>,
) -> Result<Option<Arc<Caller>>, Reject> {
    let Keys { snapshot, keyring } = keys;
    let made = keyring.by_hash(hash);
    // A key that was revoked or blocked while running stays so, also where the file has it since.
    let stopped = |key: &Arc<Caller>| matches!(key.standing, Standing::Revoked | Standing::Blocked);
    let (caller, made) = match snapshot.keys.by_hash(hash) {
        Some(caller) if !made.as_ref().is_some_and(stopped) => (caller.clone(), false),
        _ => match made {
            Some(caller) => (caller, true),
            None => return Ok(None),
        },
    };
    let gone = match caller.standing {
        Standing::Active => None,
        Standing::Blocked => Some("is blocked".to_owned()),
        Standing::Revoked => Some("was revoked".to_owned()),
        Standing::Replaced(until) => {
            (until <= now).then(|| format!("was replaced at {}", until.to_rfc3339()))
        }
    };
    // The file that it was checked against may have changed since.
    let gone = gone.or_else(|| {
        let why = made.then(|| config::unusable(&caller, snapshot))??;
        Some(format!("can't be used: {why}"))
    });
    if let Some(why) = gone {
        let message = format!("the key `{}` {why}. Ask the gateway's operator.", caller.id);
        return Err(Reject::new(Reason::KeyRevoked, message));
    }
    if let Some(expires) = caller.expires.filter(|expires| *expires <= now) {
        return Err(Reject::new(
            Reason::KeyExpired,
            format!(
                "the key `{}` expired at {}. Ask the gateway's operator for a new one.",
                caller.id,
                expires.to_rfc3339()
            ),
        ));
    }
    Ok(Some(caller))
}

/// The one key that the headers carry.
fn presented(headers: &HeaderMap) -> Result<&str, Reject> {
    let mut found: Option<&str> = None;
    for name in &KEY_HEADERS {
        for value in headers.get_all(name) {
            let Ok(text) = value.to_str() else {
                return Err(Reject::new(
                    Reason::InvalidApiKey,
                    "the key has characters that no key has.",
                ));
            };
            let key = if name == AUTHORIZATION { bearer(text) } else { Some(text.trim()) };
            let Some(key) = key else {
                return Err(Reject::new(
                    Reason::InvalidApiKey,
                    "the Authorization header is not of the form `Bearer KEY`.",
                ));
            };
            if found.is_some_and(|other| other != key) {
                return Err(Reject::new(
                    Reason::InvalidApiKey,
                    "the request carries two different keys. Send one.",
                ));
            }
            found = Some(key);
        }
    }
    found.filter(|key| !key.is_empty()).ok_or_else(|| {
        Reject::new(
            Reason::InvalidApiKey,
            "no key. Send the gateway's key as `Authorization: Bearer KEY`, `x-api-key`, `api-key` or `x-goog-api-key`.",
        )
    })
}

fn bearer(value: &str) -> Option<&str> {
    let (scheme, key) = value.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn every_header_form_carries_the_key() {
        for (name, value) in [
            ("authorization", "Bearer tb-1"),
            ("authorization", "bearer  tb-1"),
            ("x-api-key", "tb-1"),
            ("api-key", "tb-1"),
            ("x-goog-api-key", "tb-1"),
        ] {
            assert_eq!(presented(&headers(&[(name, value)])).unwrap(), "tb-1", "{name}: {value}");
        }
    }

    #[test]
    fn two_keys_are_one_too_many_unless_equal() {
        let same = headers(&[("authorization", "Bearer a"), ("x-api-key", "a")]);
        assert_eq!(presented(&same).unwrap(), "a");
        for pairs in [
            [("authorization", "Bearer a"), ("x-api-key", "b")],
            [("authorization", "Bearer a"), ("authorization", "Bearer b")],
        ] {
            assert_eq!(presented(&headers(&pairs)).unwrap_err().reason, Reason::InvalidApiKey);
        }
    }

    #[test]
    fn nothing_and_nonsense_are_refused() {
        for pairs in [vec![], vec![("authorization", "Basic abc")], vec![("x-api-key", "")]] {
            assert_eq!(presented(&headers(&pairs)).unwrap_err().reason, Reason::InvalidApiKey);
        }
    }
}
