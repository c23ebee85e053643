//! Ids and attributes as plain JSON: hex and values, without a type beside them. Written
//! straight to the output, for each way out that speaks JSON of its own.

use serde::ser::{Serialize, Serializer};

use crate::attribute::{Key, Value};
use crate::span::TraceId;

/// A trace or span id as lower-case hexadecimal digits; at most as long as a trace id.
#[derive(Clone, Copy, Debug)]
pub struct Hex<'a>(pub &'a [u8]);

impl Serialize for Hex<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 2 * size_of::<TraceId>()];
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.0) {
            pair.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        }
        let text = text.get(..2 * self.0.len()).unwrap_or_default();
        serializer.serialize_str(std::str::from_utf8(text).unwrap_or_default())
    }
}

/// Attributes as one object.
#[derive(Clone, Copy, Debug)]
pub struct Flat<'a>(pub &'a [(Key, Value)]);

impl Serialize for Flat<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (&**key, Plain(value))))
    }
}

/// A value without its type.
#[derive(Clone, Copy, Debug)]
pub struct Plain<'a>(pub &'a Value);

impl Serialize for Plain<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Str(s) => serializer.serialize_str(s),
            Value::Shared(s) => serializer.serialize_str(s),
            Value::Int(i) => serializer.serialize_i64(*i),
            Value::Double(d) => serializer.serialize_f64(*d),
            Value::Bool(b) => serializer.serialize_bool(*b),
            Value::Strings(list) => serializer.collect_seq(list.iter().map(|s| &**s)),
        }
    }
}
