//! New virtual keys.

use crate::secret::{Secret, sha256};
use rand::Rng;
use rand::distr::Alphanumeric;

/// What every virtual key begins with, so that secret scanners can know one.
pub const PREFIX: &str = "tb-";

/// Characters after the prefix: 43 of 62 are 256 bits.
const LENGTH: usize = 43;

/// A key that was just made; its plain text exists here and nowhere else.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// The key string.
    pub plain: Secret,
    /// Its SHA-256, which is all that is ever stored.
    pub hash: [u8; 32],
}

impl NewKey {
    /// The hash as the configuration writes it.
    pub fn config_hash(&self) -> String {
        format!("sha256:{}", hex::encode(self.hash))
    }
}

/// Makes a key from a cryptographic random source (`rand::rng()`).
pub fn generate<R: Rng + rand::CryptoRng + ?Sized>(rng: &mut R) -> NewKey {
    let mut plain = String::with_capacity(PREFIX.len() + LENGTH);
    plain.push_str(PREFIX);
    plain.extend((0..LENGTH).map(|_| char::from(rng.sample(Alphanumeric))));
    let hash = sha256(plain.as_bytes());
    NewKey { plain: Secret::new(plain), hash }
}

/// What `tollbar keygen` prints: the key once, then the configuration that knows its hash.
pub fn text(key: &NewKey, id: &str) -> String {
    // JSON strings are YAML strings: an id with odd characters stays one value.
    let id = serde_json::Value::from(id);
    format!(
        "{plain}\n\n\
         # This key is shown once; keep it where its app reads it. Under `keys:` goes only its hash:\n\
         \x20 - id: {id}\n\
         \x20   hash: {hash}\n\
         \x20   models: [\"*\"]                       # or the names it may use\n\
         \x20   budgets: [ {{ usd: 10, per: day }} ]\n",
        plain = key.plain.expose(),
        hash = key.config_hash(),
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_long_and_differ() {
        let (a, b) = (generate(&mut rand::rng()), generate(&mut rand::rng()));
        assert_ne!(a.hash, b.hash);
        let plain = a.plain.expose();
        assert_eq!(plain.len(), 46);
        assert!(plain.starts_with("tb-"));
        assert!(plain[3..].bytes().all(|b| b.is_ascii_alphanumeric()));
        assert_eq!(a.hash, sha256(plain.as_bytes()));
    }

    #[test]
    fn the_text_shows_the_key_once_and_the_config_only_its_hash() {
        let key = generate(&mut rand::rng());
        let shown = text(&key, "web-prod");
        assert_eq!(shown.matches(key.plain.expose()).count(), 1);
        assert!(shown.contains(&format!("    hash: {}", key.config_hash())));
        assert!(shown.contains("  - id: \"web-prod\""));
    }
}
