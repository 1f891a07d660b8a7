//! An alert as it goes to a receiver.
//!
//! The body is what Slack's incoming webhooks document and no more: `text`, which is shown, and
//! `metadata`, whose payload is for programs. Other receivers find the same there.

use super::alert::{Alert, Field, Kind, decimal, stamp};
use crate::secret::Secret;
use chrono::{DateTime, Utc};
use hmac::{Hmac, Mac};
use serde::Serialize;
use serde_json::value::RawValue;
use sha2::Sha256;
use std::collections::BTreeMap;

/// An alert in the form in which every try sends it.
#[derive(Debug)]
pub struct Message {
    /// The same at every try and for every receiver: 32 hex digits.
    pub id: String,
    /// What it is about.
    pub kind: Kind,
    /// JSON.
    pub body: String,
    /// The name it was claimed under, where it is told once across restarts.
    pub claimed: Option<String>,
}

#[derive(Serialize)]
struct Body<'a> {
    text: String,
    metadata: Metadata<'a>,
}

#[derive(Serialize)]
struct Metadata<'a> {
    event_type: &'a str,
    event_payload: BTreeMap<&'a str, Box<RawValue>>,
}

impl Message {
    /// Writes an alert that was raised at this time.
    pub fn new(alert: &Alert, id: u128, at: DateTime<Utc>) -> Self {
        let id = format!("{id:032x}");
        let mut payload = BTreeMap::new();
        payload.extend(text(alert.kind.as_str()).map(|raw| ("kind", raw)));
        payload.extend(text(&id).map(|raw| ("alert_id", raw)));
        payload.extend(text(&stamp(at)).map(|raw| ("at", raw)));
        for (name, field) in &alert.fields {
            payload.extend(shown(field).map(|raw| (*name, raw)));
        }
        let body = Body {
            text: escaped(&alert.text),
            metadata: Metadata { event_type: "tollbar_alert", event_payload: payload },
        };
        // Strings and numbers always can be written.
        let body = serde_json::to_string(&body).unwrap_or_default();
        let claimed = alert.once.kept.then(|| alert.once.name.clone());
        Message { id, kind: alert.kind, body, claimed }
    }
}

/// Money and shares are written with all their digits, which a float would lose.
fn shown(field: &Field) -> Option<Box<RawValue>> {
    match field {
        Field::Text(value) => text(value),
        Field::Usd(amount) => RawValue::from_string(amount.to_string()).ok(),
        Field::Millionths(value) => RawValue::from_string(decimal(*value)).ok(),
        Field::Count(value) => RawValue::from_string(value.to_string()).ok(),
    }
}

fn text(value: &str) -> Option<Box<RawValue>> {
    serde_json::value::to_raw_value(value).ok()
}

/// In Slack's text these three are markup: a name must not be able to call a channel.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// The value of `x-tollbar-signature`: `t=<unix seconds>,v1=<hex>`, where the hex digits are the
/// HMAC-SHA256 of `<t>.<body>`. The time is part of it, so that a receiver can refuse replays.
pub fn signature(secret: &Secret, seconds: i64, body: &str) -> Option<String> {
    // A key of any length is taken.
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes()).ok()?;
    mac.update(format!("{seconds}.{body}").as_bytes());
    Some(format!("t={seconds},v1={}", hex::encode(mac.finalize().into_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Python's `hmac.new(b"secret", b"1700000000.{}", "sha256").hexdigest()` says.
    #[test]
    fn the_signature_is_the_documented_one() {
        let signed = signature(&Secret::new("secret".into()), 1_700_000_000, "{}").unwrap();
        assert_eq!(
            signed,
            "t=1700000000,v1=b8569b78799ff9e3cbff0fc2d63a33a2b57f3282abd07c37ae5e8e7d79a5f163"
        );
    }

    #[test]
    fn the_body_is_slacks_and_says_everything_to_programs_too() {
        let now = DateTime::<Utc>::UNIX_EPOCH;
        let alert = Alert::credential_refused("<!channel>&", Some("0a1b2c3d"), 401, now);
        let message = Message::new(&alert, 7, now);
        let body: serde_json::Value = serde_json::from_str(&message.body).unwrap();
        let text = body["text"].as_str().unwrap();
        assert!(text.contains("`&lt;!channel&gt;&amp;`"), "{text}");
        let payload = &body["metadata"]["event_payload"];
        assert_eq!(body["metadata"]["event_type"], "tollbar_alert");
        assert_eq!(payload["kind"], "credential_refused");
        assert_eq!(payload["at"], "1970-01-01T00:00:00Z");
        assert_eq!(payload["alert_id"], "00000000000000000000000000000007");
        assert_eq!(
            (&payload["provider"], &payload["status"]),
            (&"<!channel>&".into(), &401.into())
        );
        let velocity = Alert::spend_velocity(
            crate::units::NanoUsd(42),
            crate::units::NanoUsd(7),
            5_500_000,
            now,
        );
        let body = Message::new(&velocity, 7, now).body;
        assert!(body.contains(r#""hour_usd":0.000000042"#), "{body}");
        assert!(body.contains(r#""threshold":5.5"#), "{body}");
    }
}
