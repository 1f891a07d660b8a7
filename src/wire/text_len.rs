//! How much text a request carries: what a model reads as words, without pictures and sound.

use serde_json::Value;

/// A string this long without a space is data in base64, not text.
const DATA: usize = 512;

/// Bytes of the strings in a JSON request that are text; `None` where it is no JSON.
///
/// Strings of data (`data:` URLs, base64) count nothing: what they cost is for the dialect's own
/// bounds to say. Meant for the rare request that is near a model's window, since it parses.
pub fn of(body: &[u8]) -> Option<u64> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let mut left = vec![&body];
    let mut bytes = 0_u64;
    while let Some(value) = left.pop() {
        match value {
            Value::String(text) if !is_data(text) => bytes += text.len() as u64,
            Value::Array(items) => left.extend(items),
            Value::Object(members) => left.extend(members.values()),
            _ => {}
        }
    }
    Some(bytes)
}

fn is_data(text: &str) -> bool {
    let base64 = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=-_\r\n".contains(&byte);
    text.starts_with("data:") || (text.len() >= DATA && text.bytes().all(base64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_count_nothing() {
        let picture = "A".repeat(100_000);
        let body = format!(
            r#"{{"messages":[{{"role":"user","content":[{{"text":"four"}},{{"data":"{picture}"}},{{"url":"data:image/png;base64,{picture}"}}]}}]}}"#
        );
        assert_eq!(of(body.as_bytes()), Some(8), "`user` and `four`");
    }
}
