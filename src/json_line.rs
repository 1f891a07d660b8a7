//! A line of JSON, written field by field into one buffer.
//!
//! The journal and the access log write a few dozen fields for every request: a third of what
//! `serde_json` takes for them goes into finding out what each field is. Reading them back is
//! `serde_json`'s affair.

/// A field's name with everything around it, so that one copy writes it: see `field!`.
#[derive(Debug, Clone, Copy)]
pub struct Field(&'static str);

impl Field {
    /// For `field!` alone.
    pub const fn around(name: &'static str) -> Self {
        Field(name)
    }
}

/// A field's name. It needs no escapes.
macro_rules! field {
    ($name:literal) => {
        const { $crate::json_line::Field::around(concat!(",\"", $name, "\":")) }
    };
}
pub(crate) use field;

/// An object that is being written.
#[derive(Debug)]
pub struct JsonLine {
    bytes: Vec<u8>,
}

impl JsonLine {
    /// Begins an object.
    pub fn with_capacity(bytes: usize) -> Self {
        let mut bytes = Vec::with_capacity(bytes);
        bytes.push(b'{');
        JsonLine { bytes }
    }

    /// Ends the object, and the line.
    pub fn end(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(b"}\n");
        self.bytes
    }

    /// A field of text.
    pub fn text(&mut self, name: Field, text: &str) {
        self.name(name);
        self.quoted(text);
    }

    /// A field of text, or null.
    pub fn text_or_null(&mut self, name: Field, text: Option<&str>) {
        match text {
            Some(text) => self.text(name, text),
            None => self.null(name),
        }
    }

    /// A whole number.
    pub fn number(&mut self, name: Field, number: impl itoa::Integer) {
        self.name(name);
        self.bytes.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    }

    /// A whole number, or null.
    pub fn number_or_null(&mut self, name: Field, number: Option<impl itoa::Integer>) {
        match number {
            Some(number) => self.number(name, number),
            None => self.null(name),
        }
    }

    /// True or false.
    pub fn flag(&mut self, name: Field, flag: bool) {
        self.name(name);
        self.bytes.extend_from_slice(if flag { b"true" } else { b"false" });
    }

    /// An object as a field.
    pub fn object(&mut self, name: Field, fields: impl FnOnce(&mut Self)) {
        self.name(name);
        self.bytes.push(b'{');
        fields(self);
        self.bytes.push(b'}');
    }

    /// A list as a field: `item` writes one.
    pub fn list<T>(
        &mut self,
        name: Field,
        items: impl IntoIterator<Item = T>,
        mut item: impl FnMut(&mut Item<'_>, T),
    ) {
        self.name(name);
        self.bytes.push(b'[');
        for each in items {
            self.comma();
            item(&mut Item(self), each);
        }
        self.bytes.push(b']');
    }

    fn null(&mut self, name: Field) {
        self.name(name);
        self.bytes.extend_from_slice(b"null");
    }

    fn name(&mut self, name: Field) {
        let first = self.bytes.last() == Some(&b'{');
        self.bytes.extend_from_slice(&name.0.as_bytes()[usize::from(first)..]);
    }

    /// Before any item but the first: values never end in an opening bracket, not even texts,
    /// which end in a quote.
    fn comma(&mut self) {
        if self.bytes.last() != Some(&b'[') {
            self.bytes.push(b',');
        }
    }

    fn quoted(&mut self, text: &str) {
        self.bytes.push(b'"');
        let mut rest = text.as_bytes();
        while let Some(at) = first_escape(rest) {
            self.bytes.extend_from_slice(&rest[..at]);
            self.escaped(rest[at]);
            rest = &rest[at + 1..];
        }
        self.bytes.extend_from_slice(rest);
        self.bytes.push(b'"');
    }

    fn escaped(&mut self, byte: u8) {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        match byte {
            b'"' | b'\\' => self.bytes.extend_from_slice(&[b'\\', byte]),
            b'\n' => self.bytes.extend_from_slice(b"\\n"),
            b'\r' => self.bytes.extend_from_slice(b"\\r"),
            b'\t' => self.bytes.extend_from_slice(b"\\t"),
            _ => {
                let digits = [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]];
                self.bytes.extend_from_slice(b"\\u00");
                self.bytes.extend_from_slice(&digits);
            }
        }
    }
}

/// An item of a list that is being written: exactly one of its methods is called.
pub struct Item<'a>(&'a mut JsonLine);

impl Item<'_> {
    /// An object.
    pub fn object(&mut self, fields: impl FnOnce(&mut JsonLine)) {
        self.0.bytes.push(b'{');
        fields(self.0);
        self.0.bytes.push(b'}');
    }

    /// A pair of texts, as a list.
    pub fn pair(&mut self, first: &str, second: &str) {
        self.0.bytes.push(b'[');
        self.0.quoted(first);
        self.0.bytes.push(b',');
        self.0.quoted(second);
        self.0.bytes.push(b']');
    }

    /// What is JSON already.
    pub fn raw(&mut self, json: &str) {
        self.0.bytes.extend_from_slice(json.as_bytes());
    }
}

fn needs_escape(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// Where the first byte stands that can't be written as it is. Eight bytes at a time.
fn first_escape(text: &[u8]) -> Option<usize> {
    const LOW: u64 = u64::MAX / 255;
    const HIGH: u64 = LOW << 7;
    // The high bit of every byte that is zero, and perhaps of some above it; exact in the lowest.
    let zero = |word: u64| word.wrapping_sub(LOW) & !word & HIGH;
    let (words, rest) = text.as_chunks::<8>();
    for (at, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let control = word.wrapping_sub(LOW * 0x20) & !word & HIGH;
        let quote = zero(word ^ (LOW * u64::from(b'"')));
        let backslash = zero(word ^ (LOW * u64::from(b'\\')));
        let found = control | quote | backslash;
        if found != 0 {
            return Some(at * 8 + found.trailing_zeros() as usize / 8);
        }
    }
    let before = text.len() - rest.len();
    rest.iter().position(|byte| needs_escape(*byte)).map(|at| before + at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(line: JsonLine) -> Value {
        let bytes = line.end();
        assert_eq!(bytes.iter().filter(|byte| **byte == b'\n').count(), 1, "one line");
        serde_json::from_slice(&bytes).unwrap()
    }

    #[test]
    fn fields_are_what_serde_reads() {
        let mut line = JsonLine::with_capacity(0);
        line.text(field!("a"), "x");
        line.text_or_null(field!("b"), None);
        line.number(field!("c"), u64::MAX);
        line.number(field!("d"), i64::MIN);
        line.number_or_null(field!("e"), None::<u64>);
        line.flag(field!("f"), true);
        line.object(field!("g"), |inner| inner.number(field!("h"), 1));
        line.object(field!("i"), |_| {});
        line.list(field!("j"), ["{", "["], |item, each| item.pair(each, "]"));
        line.list(field!("k"), [1, 2], |item, each| {
            item.object(|inner| inner.number(field!("l"), each))
        });
        line.list(field!("m"), [0; 0], |_, _| {});
        line.list(field!("n"), ["{}", "[1]"], |item, each| item.raw(each));
        line.text(field!("o"), "end");
        let wanted = json!({
            "a": "x", "b": null, "c": u64::MAX, "d": i64::MIN, "e": null, "f": true,
            "g": {"h": 1}, "i": {}, "j": [["{", "]"], ["[", "]"]], "k": [{"l": 1}, {"l": 2}],
            "m": [], "n": [{}, [1]], "o": "end",
        });
        assert_eq!(read(line), wanted);
    }

    #[test]
    fn eight_bytes_at_a_time_find_what_one_finds() {
        for byte in 0..=u8::MAX {
            for (at, len) in (0..24).flat_map(|len| (0..len).map(move |at| (at, len))) {
                for around in [b'a', 0x80, 0xff, 0x20, 0x21, 0x23, 0x5d, 0x5b] {
                    let mut text = vec![around; len];
                    text[at] = byte;
                    let wanted = text.iter().position(|byte| needs_escape(*byte));
                    assert_eq!(first_escape(&text), wanted, "{byte} at {at} of {len}");
                }
            }
        }
    }

    #[test]
    fn every_text_comes_back() {
        let all: String =
            (0..=0x2ff).filter_map(char::from_u32).chain("\u{2028}😀".chars()).collect();
        for text in ["", "\"", "\\", "\n", "{", "[", ",", "a\u{0}b", &all] {
            let mut line = JsonLine::with_capacity(8);
            line.text(field!("first"), text);
            line.text(field!("second"), text);
            assert_eq!(read(line), json!({"first": text, "second": text}));
        }
    }
}
