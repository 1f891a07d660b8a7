//! Percent-encoding in paths: what is decoded, what is refused.
//!
//! A path is read by several programs on its way. It is only let through when they can't
//! disagree about it (RFC 3986, section 6.2.2 for the one normal form).

/// The byte that the escape at the start of `rest` stands for.
fn unescape(rest: &[u8]) -> Option<u8> {
    let hex = rest.get(1..3)?;
    if rest.first() != Some(&b'%') || !hex.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()
}

/// An id out of a path, decoded once. `None`: a broken escape, not UTF-8, a control
/// character, or a `.`/`..` between slashes.
pub fn decode_id(raw: &str) -> Option<String> {
    let mut out = Vec::with_capacity(raw.len());
    let mut rest = raw.as_bytes();
    while let Some(&byte) = rest.first() {
        let (byte, taken) = match byte {
            b'%' => (unescape(rest)?, 3),
            byte => (byte, 1),
        };
        out.push(byte);
        rest = rest.get(taken..)?;
    }
    let id = String::from_utf8(out).ok()?;
    is_name(&id).then_some(id)
}

/// Whether a decoded id names something: no hollow or dotted part, no control character.
pub fn is_name(id: &str) -> bool {
    let mut parts = id.split(['/', '\\']);
    !parts.any(|part| matches!(part, "" | "." | "..")) && !id.chars().any(char::is_control)
}

/// The one form of a path that goes to a provider. `None`: one that could be read in two ways.
///
/// Escapes of characters that need none are undone, the others written in capitals.
pub fn passthrough_path(raw: &str) -> Option<String> {
    let mut out = String::with_capacity(raw.len());
    let mut rest = raw.as_bytes();
    while let Some(&byte) = rest.first() {
        if byte != b'%' {
            out.push(plain(byte).then_some(char::from(byte))?);
            rest = rest.get(1..)?;
            continue;
        }
        let escaped = unescape(rest)?;
        rest = rest.get(3..)?;
        match escaped {
            0..0x20 | 0x7f | b'/' | b'\\' => return None,
            // `%252e`: somebody behind us decodes twice.
            b'%' if starts_with_hex(rest) => return None,
            byte if unreserved(byte) || byte == b':' => out.push(char::from(byte)),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    is_straight(&out).then_some(out)
}

fn starts_with_hex(rest: &[u8]) -> bool {
    let two = rest.get(..2).unwrap_or_default();
    two.len() == 2 && two.iter().all(u8::is_ascii_hexdigit)
}

/// Starts with `/` and has no segment that means another place than its name.
fn is_straight(path: &str) -> bool {
    let Some(rest) = path.strip_prefix('/') else {
        return false;
    };
    let last = rest.split('/').count() - 1;
    rest.split('/').enumerate().all(|(at, segment)| {
        // Some servers cut a segment at `;` before they look at its dots.
        let name = segment.split(';').next().unwrap_or_default();
        let hollow = name.is_empty() && !(segment.is_empty() && at == last);
        !hollow && !matches!(name, "." | "..") && !segment.starts_with('@')
    })
}

/// What may stand in a path as it is (RFC 3986 `pchar` and `/`).
fn plain(byte: u8) -> bool {
    unreserved(byte) || b"!$&'()*+,;=:@/".contains(&byte)
}

fn unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// `text` as one path segment.
pub fn encode_segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if unreserved(byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
