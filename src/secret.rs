//! Secrets that cannot be printed by accident.

use sha2::{Digest, Sha256};
use std::fmt;
use zeroize::Zeroizing;

/// A credential. `Debug` and `Display` show its [fingerprint](Secret::fingerprint) only,
/// and the memory is zeroed when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes ownership of the plain text.
    pub fn new(plain: String) -> Self {
        Secret(Zeroizing::new(plain))
    }

    /// The plain text, for the one place that puts it on the wire.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The first 8 hex digits of the SHA-256, to tell two credentials apart in public.
    pub fn fingerprint(&self) -> String {
        hex::encode(&sha256(self.0.as_bytes())[..4])
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({})", self.fingerprint())
    }
}

/// SHA-256 of some bytes.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_the_fingerprint_only() {
        let secret = Secret::new("sk-very-secret".into());
        let shown = format!("{secret:?}");
        assert!(!shown.contains("very"), "{shown}");
        assert!(shown.contains(&secret.fingerprint()));
        assert_eq!(secret.fingerprint().len(), 8);
    }
}
