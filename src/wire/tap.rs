//! Chosen members of a JSON answer, however it comes.
//!
//! Most answers are short: such a one is kept, and walked once at its end. A long one is sifted
//! as it goes past, and so is what is no JSON: both ways come to the same.

use std::borrow::Cow;

use super::fault::ScanError;
use super::json::Cursor;
use super::sift::Sifter;

/// The longest answer that is kept.
pub const SHORT: usize = 16 * 1024;

/// The most members that can be looked for.
pub const MOST: usize = 8;

/// Values of the wanted members, in their order: each as it was written; `None` if it didn't come,
/// or not all of it, or if it was too large.
pub type Values<'a> = [Option<&'a [u8]>; MOST];

/// Watches a JSON text go past for some of its top-level members, as [`Sifter`] finds them.
#[derive(Debug)]
pub struct Tap {
    wanted: &'static [&'static str],
    /// All of the text, as long as it is short.
    text: Vec<u8>,
    sifter: Option<Sifter>,
}

/// What has been found in a text.
#[derive(Debug)]
pub enum Found<'a> {
    /// In a whole object.
    Walked(Values<'a>),
    /// In any text.
    Sifted(Cow<'a, Sifter>),
}

impl Tap {
    /// Looks for the members of these names.
    pub fn new(wanted: &'static [&'static str]) -> Tap {
        Tap { wanted, text: Vec::new(), sifter: None }
    }

    /// The next bytes of the text.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.sifter.is_none() && self.text.len() + bytes.len() <= SHORT {
            return self.text.extend_from_slice(bytes);
        }
        let kept = std::mem::take(&mut self.text);
        let sifter = self.sifter.get_or_insert_with(|| sifted(self.wanted, &kept));
        sifter.feed(bytes);
    }

    /// What has been found so far. In a whole object `first` takes the first wanted member's
    /// value on the way, so that it is read once; a failure of it is one of the text.
    pub fn found<'a>(
        &'a self,
        first: impl FnMut(&mut Cursor<'a>) -> Result<(), ScanError>,
    ) -> Found<'a> {
        if let Some(sifter) = &self.sifter {
            return Found::Sifted(Cow::Borrowed(sifter));
        }
        match walked(self.wanted, &self.text, first) {
            Some(values) => Found::Walked(values),
            None => Found::Sifted(Cow::Owned(sifted(self.wanted, &self.text))),
        }
    }
}

impl Found<'_> {
    /// The values of the wanted members.
    pub fn values(&self) -> Values<'_> {
        match self {
            Found::Walked(values) => *values,
            Found::Sifted(sifter) => sifter.values(),
        }
    }

    /// Whether the top-level value has ended.
    pub fn is_complete(&self) -> bool {
        match self {
            Found::Walked(_) => true,
            Found::Sifted(sifter) => sifter.complete(),
        }
    }
}

fn sifted(wanted: &'static [&'static str], text: &[u8]) -> Sifter {
    let mut sifter = Sifter::new(wanted);
    sifter.feed(text);
    sifter
}

/// The values of the wanted members; `None` if the text does not begin with a whole object.
fn walked<'a>(
    wanted: &'static [&'static str],
    text: &'a [u8],
    mut first: impl FnMut(&mut Cursor<'a>) -> Result<(), ScanError>,
) -> Option<Values<'a>> {
    let mut values = Values::default();
    let mut cursor = Cursor::new(text);
    cursor.space();
    let members = cursor.members(|cursor, name| {
        let from = cursor.at();
        let at = wanted.iter().position(|wanted| wanted.as_bytes() == name);
        match at {
            Some(0) => first(cursor)?,
            _ => cursor.skip()?,
        }
        if let Some(value) = at.and_then(|at| values.get_mut(at)) {
            *value = Some(cursor.taken(from));
        }
        Ok(())
    });
    members.is_ok().then_some(values)
}
