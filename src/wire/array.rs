//! A JSON array that grows: how Gemini streams where no events are asked for. Its elements are read
//! as they end.

use super::sse::MAX_EVENT;

/// Takes an array apart. Not a validator: what an element is, is for whoever reads it.
#[derive(Debug, Default)]
pub struct Elements {
    /// Containers open now, the array's own included.
    depth: usize,
    quoted: bool,
    /// After a backslash in a string.
    escape: bool,
    element: Vec<u8>,
    /// The element is too long to be kept, and isn't shown.
    oversize: bool,
    ended: bool,
}

impl Elements {
    /// Takes the next bytes, and shows every element that ends in them.
    pub fn feed(&mut self, bytes: &[u8], see: &mut impl FnMut(&[u8])) {
        for &byte in bytes {
            if self.quoted {
                self.keep(byte);
                self.quoted = self.escape || byte != b'"';
                self.escape = !self.escape && byte == b'\\';
                continue;
            }
            match byte {
                b'{' | b'[' => {
                    self.keep(byte);
                    self.depth += 1;
                }
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    self.keep(byte);
                    self.ended |= self.depth == 0;
                    if self.depth <= 1 {
                        self.show(see);
                    }
                }
                b',' if self.depth == 1 => self.show(see),
                b' ' | b'\t' | b'\r' | b'\n' => {}
                _ => {
                    self.quoted = byte == b'"';
                    self.keep(byte);
                }
            }
        }
    }

    /// Whether the array has been closed.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    fn keep(&mut self, byte: u8) {
        // The array's own brackets are no element's.
        if self.depth == 0 {
            return;
        }
        self.oversize |= self.element.len() >= MAX_EVENT;
        if !self.oversize {
            self.element.push(byte);
        }
    }

    fn show(&mut self, see: &mut impl FnMut(&[u8])) {
        if !self.oversize && !self.element.is_empty() {
            see(&self.element);
        }
        self.element.clear();
        self.oversize = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elements(pieces: &[&[u8]]) -> (Vec<String>, bool) {
        let (mut array, mut seen) = (Elements::default(), Vec::new());
        for piece in pieces {
            array.feed(piece, &mut |one| seen.push(String::from_utf8(one.to_vec()).unwrap()));
        }
        (seen, array.has_ended())
    }

    #[test]
    fn elements_end_where_they_end_however_the_array_is_cut() {
        let text = b"\xEF\xBB\xBF[{\"a\": \"]},\\\"[\\\\\"}\r\n,\n{\"b\":[1,{ }]} , 3,\"x,\" ]\r\n";
        let whole = ["{\"a\":\"]},\\\"[\\\\\"}", "{\"b\":[1,{}]}", "3", "\"x,\""];
        assert_eq!(elements(&[text]), (whole.map(str::to_owned).to_vec(), true));
        for at in 0..text.len() {
            let (before, after) = text.split_at(at);
            assert_eq!(elements(&[before, after]), (whole.map(str::to_owned).to_vec(), true));
        }
        let cut = elements(&[&text[..30]]);
        assert_eq!(cut, (vec![whole[0].to_owned()], false));
    }
}
