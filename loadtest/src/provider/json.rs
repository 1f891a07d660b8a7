//! JSON text with its members in the order they were written.
//!
//! Real servers send `id` or `type` first. A map that sorts its keys would make
//! our bytes look unlike theirs, so objects are written, not collected.

use std::fmt::Write as _;

/// A finished piece of JSON text.
#[derive(Clone, Debug)]
pub(crate) struct Json(pub(crate) String);

/// JSON `null`.
pub(crate) struct Null;

/// A member left out completely when there is nothing to say.
pub(crate) struct Maybe<T>(pub(crate) Option<T>);

/// A value that knows its JSON text.
pub(crate) trait Wire {
    /// Appends the JSON text of this value.
    fn wire(&self, out: &mut String);

    /// False when the member holding this value is to be left out.
    fn present(&self) -> bool {
        true
    }
}

impl Wire for Json {
    fn wire(&self, out: &mut String) {
        out.push_str(&self.0);
    }
}

impl Wire for Null {
    fn wire(&self, out: &mut String) {
        out.push_str("null");
    }
}

impl Wire for str {
    fn wire(&self, out: &mut String) {
        // Serialising a string into memory cannot fail.
        out.push_str(&serde_json::to_string(self).unwrap_or_default());
    }
}

impl<T: Wire + ?Sized> Wire for &T {
    fn wire(&self, out: &mut String) {
        (**self).wire(out);
    }
}

impl Wire for String {
    fn wire(&self, out: &mut String) {
        self.as_str().wire(out);
    }
}

macro_rules! plain {
    ($($t:ty),*) => {$(
        impl Wire for $t {
            fn wire(&self, out: &mut String) {
                let _ = write!(out, "{self}");
            }
        }
    )*};
}
plain!(u64, usize, u16, i32, bool);

impl Wire for f32 {
    fn wire(&self, out: &mut String) {
        // `{:?}` keeps the decimal point: 1.0, not 1.
        let _ = write!(out, "{self:?}");
    }
}

impl<T: Wire> Wire for Option<T> {
    fn wire(&self, out: &mut String) {
        match self {
            Some(value) => value.wire(out),
            None => Null.wire(out),
        }
    }
}

impl<T: Wire> Wire for Maybe<T> {
    fn wire(&self, out: &mut String) {
        self.0.wire(out);
    }

    fn present(&self) -> bool {
        self.0.is_some()
    }
}

impl<T: Wire> Wire for [T] {
    fn wire(&self, out: &mut String) {
        out.push('[');
        for (at, item) in self.iter().enumerate() {
            if at > 0 {
                out.push(',');
            }
            item.wire(out);
        }
        out.push(']');
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn wire(&self, out: &mut String) {
        self.as_slice().wire(out);
    }
}

impl<T: Wire, const N: usize> Wire for [T; N] {
    fn wire(&self, out: &mut String) {
        self.as_slice().wire(out);
    }
}

/// Appends one member to an object that is being written.
pub(crate) fn member(out: &mut String, key: &str, value: &dyn Wire) {
    if !value.present() {
        return;
    }
    if out.len() > 1 {
        out.push(',');
    }
    key.wire(out);
    out.push(':');
    value.wire(out);
}

/// Writes an object: `obj! { "id": id, "index": 0usize }`.
macro_rules! obj {
    ($($key:literal : $value:expr),* $(,)?) => {{
        #[allow(unused_mut)]
        let mut out = String::from("{");
        $( $crate::provider::json::member(&mut out, $key, &$value); )*
        out.push('}');
        $crate::provider::json::Json(out)
    }};
}
pub(crate) use obj;

/// An array without members.
pub(crate) fn empty() -> Json {
    Json("[]".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_keep_their_order_and_absent_ones_vanish() {
        let json =
            obj! { "z": 1u64, "a": "ü\"", "gone": Maybe::<u64>(None), "n": Null, "v": vec![true] };
        assert_eq!(json.0, r#"{"z":1,"a":"ü\"","n":null,"v":[true]}"#);
    }
}
