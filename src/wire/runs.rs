//! How far nothing happens in a JSON text: eight bytes are looked at at once.

/// How many bytes come before the next quote, backslash or control character, or the end.
pub fn plain(rest: &[u8]) -> usize {
    // Between two escapes there is little; between two quotes there may be a picture.
    if let Some(place) = near(rest, special) {
        return place;
    }
    let far = rest.get(NEAR * 8..).unwrap_or_default();
    let clean = far.as_chunks::<64>().0.iter().take_while(|block| !has_special(block)).count();
    let from = (NEAR * 8).min(rest.len() & !7) + clean * 64;
    let (words, last) = rest.get(from..).unwrap_or_default().as_chunks::<8>();
    let mut at = from;
    for word in words {
        let bytes = u64::from_le_bytes(*word);
        if let Some(place) = first(special(bytes)) {
            return at + place;
        }
        at += 8;
    }
    at + last.iter().take_while(|byte| !is_special(**byte)).count()
}

/// How many bytes come before the next quote or backslash, or the end.
pub fn quoted(rest: &[u8]) -> usize {
    if let Some(place) = near(rest, |word| same(word, b'"') | same(word, b'\\')) {
        return place;
    }
    let from = (NEAR * 8).min(rest.len() & !7);
    let far = rest.get(from..).unwrap_or_default();
    memchr::memchr2(b'"', b'\\', far).map_or(rest.len(), |at| from + at)
}

/// How many bytes come before the next quote, brace or bracket, or the end. It may stop earlier,
/// at a byte that never stands outside of strings.
pub fn quiet(rest: &[u8]) -> usize {
    // Braces and brackets differ in these three bits only.
    const BITS: u64 = ONES * 0x26;
    const REST: u8 = b'{' & !0x26;
    let (words, last) = rest.as_chunks::<8>();
    let mut at = 0;
    for word in words {
        let bytes = u64::from_le_bytes(*word);
        if let Some(place) = first(same(bytes, b'"') | same(bytes & !BITS, REST)) {
            return at + place;
        }
        at += 8;
    }
    at + last.iter().take_while(|byte| **byte != b'"' && **byte & !0x26 != REST).count()
}

/// Words that are looked at one by one before whole blocks are.
const NEAR: usize = 8;

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x8080_8080_8080_8080;

/// The first place that `marks` says in the nearest words.
fn near(rest: &[u8], marks: impl Fn(u64) -> u64) -> Option<usize> {
    let mut at = 0;
    for word in rest.as_chunks::<8>().0.iter().take(NEAR) {
        if let Some(place) = first(marks(u64::from_le_bytes(*word))) {
            return Some(at + place);
        }
        at += 8;
    }
    None
}

/// The place of the first byte of eight whose highest bit is set in `marks`.
fn first(marks: u64) -> Option<usize> {
    let marks = marks & HIGH;
    (marks != 0).then(|| marks.trailing_zeros() as usize / 8)
}

/// Marks the bytes that are `byte`. A borrow may set marks wrongly, but only above a right one.
/// (Mycroft's test for a zero byte.)
fn same(word: u64, byte: u8) -> u64 {
    let other = word ^ (ONES * u64::from(byte));
    other.wrapping_sub(ONES) & !other
}

/// Marks quotes, backslashes and control characters, likewise.
fn special(word: u64) -> u64 {
    // Turned so, a quote comes right after the control characters, where the space was.
    let low = (word ^ (ONES * 0x02)).wrapping_sub(ONES * 0x21);
    let slash = (word ^ (ONES * u64::from(b'\\'))).wrapping_sub(ONES);
    (low | slash) & !word
}

fn is_special(byte: u8) -> bool {
    (byte == b'"') | (byte == b'\\') | (byte < 0x20)
}

/// Without an early exit it runs on whole vectors.
fn has_special(block: &[u8; 64]) -> bool {
    block.iter().fold(false, |found, &byte| found | is_special(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks that `run` ends at the first of `specials`, wherever it is.
    fn ends_at(run: fn(&[u8]) -> usize, specials: &[u8]) {
        for length in [0, 1, 7, 8, 9, 63, 64, 65, 127, 128, 129, 200, 300] {
            // Bytes whose bits lie near those that are looked for.
            for plain in
                [b'a', b'!', b'#', b' ', b'$', b'|', b'Z', b'\\' + 1, 0x80, 0xa2, 0xdc, 0xff]
            {
                if specials.contains(&plain) {
                    continue;
                }
                let clean = vec![plain; length];
                assert_eq!(run(&clean), length, "{plain} × {length}");
                for at in 0..length {
                    for special in specials {
                        let mut text = clean.clone();
                        text[at] = *special;
                        text.iter_mut().skip(at + 3).step_by(5).for_each(|byte| *byte = b'"');
                        assert_eq!(run(&text), at, "{special} at {at} of {length}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_run_ends_at_the_first_special_byte_wherever_it_is() {
        ends_at(plain, &[b'"', b'\\', 0, 0x1f, b'\n']);
        ends_at(quoted, b"\"\\");
        ends_at(quiet, b"\"{}[]");
    }
}
