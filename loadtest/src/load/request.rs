//! Requests that are built once and sent many times.

use std::sync::Arc;

/// How many decimal digits number a key or a model.
pub(crate) const DIGITS: usize = 7;
/// What virtual keys of a load test begin with; [`DIGITS`] digits follow.
pub(crate) const KEY_PREFIX: &str = "tb-load-";

/// Seven digits in the request that take another value each time.
#[derive(Clone, Copy, Debug)]
struct Patch {
    at: usize,
    /// Values from 0 to this, exclusive.
    count: u64,
}

/// The bytes of a request; some digits may vary from one sending to the next.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    bytes: Arc<[u8]>,
    patches: Vec<Patch>,
    /// Where the body begins.
    body_at: usize,
}

impl Request {
    /// A chat request whose body has about `size` bytes, at least the fixed part.
    pub(crate) fn chat(model: &str, stream: bool, size: usize) -> Self {
        let stream = if stream { r#""stream":true,"# } else { "" };
        let fixed = format!(
            r#"{{"model":"{model}",{stream}"max_tokens":100,"messages":[{{"role":"user","content":""#
        );
        let words = words(size.saturating_sub(fixed.len() + 4));
        Self::post("/v1/chat/completions", &format!(r#"{fixed}{words}"}}]}}"#))
    }

    /// An embedding request of about `size` bytes.
    pub(crate) fn embedding(model: &str, size: usize) -> Self {
        let fixed = format!(r#"{{"model":"{model}","input":""#);
        let words = words(size.saturating_sub(fixed.len() + 2));
        Self::post("/v1/embeddings", &format!(r#"{fixed}{words}"}}"#))
    }

    fn post(path: &str, body: &str) -> Self {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {KEY_PREFIX}0000000\r\n\
             content-type: application/json\r\naccept: */*\r\nuser-agent: loadtest\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        let bytes: Arc<[u8]> = [head.as_bytes(), body.as_bytes()].concat().into();
        Self { bytes, patches: Vec::new(), body_at: head.len() }
    }

    /// Uses `count` keys in turn, in no order.
    pub(crate) fn over_keys(self, count: u64) -> Self {
        self.vary(KEY_PREFIX, count)
    }

    /// Varies the seven digits behind `prefix` over `count` values.
    pub(crate) fn vary(mut self, prefix: &str, count: u64) -> Self {
        if let Some(at) = memchr::memmem::find(&self.bytes, prefix.as_bytes()) {
            self.patches.push(Patch { at: at + prefix.len(), count: count.max(1) });
        }
        self
    }

    /// The bytes as they are, when nothing varies.
    pub(crate) fn fixed(&self) -> Option<Arc<[u8]>> {
        self.patches.is_empty().then(|| self.bytes.clone())
    }

    /// Writes request number `n` over `out`.
    pub(crate) fn write(&self, n: u64, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&self.bytes);
        for patch in &self.patches {
            // A multiplier prime to every count of ours: all values come, far apart.
            let mut value = n.wrapping_mul(999_983) % patch.count;
            for digit in out[patch.at..patch.at + DIGITS].iter_mut().rev() {
                *digit = b'0' + (value % 10) as u8;
                value /= 10;
            }
        }
    }

    /// Bytes of the body.
    pub(crate) fn body_len(&self) -> usize {
        self.bytes.len() - self.body_at
    }
}

fn words(size: usize) -> String {
    const TEXT: &str = "the quick brown fox jumps over the lazy dog and runs away. ";
    TEXT.chars().cycle().take(size).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_has_the_size_and_all_values_come() {
        let request = Request::chat("sim-0000000", false, 300).over_keys(10).vary("sim-", 2);
        assert_eq!(request.body_len(), 300);
        let mut keys = std::collections::HashSet::new();
        let mut out = Vec::new();
        for n in 0..10 {
            request.write(n, &mut out);
            let text = String::from_utf8(out.clone()).unwrap();
            assert!(text.contains(&format!("sim-{:07}", (n * 999_983) % 2)));
            keys.insert(text.split(KEY_PREFIX).nth(1).unwrap()[..DIGITS].to_owned());
        }
        assert_eq!(keys.len(), 10);
        assert!(serde_json::from_slice::<serde_json::Value>(&out[request.body_at..]).is_ok());
    }
}
