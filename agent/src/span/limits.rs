//! How much one span may hold, by the standard variables
//! (SPEC `common/README.md`, "Attribute Limits"). What does not fit is left
//! out from the end, where the rarer attributes stand, and counted.

use std::borrow::Cow;
use std::sync::Arc;

use super::url::cut;
use crate::attribute::{Key, Value};

/// Limits of spans, their events and links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest string, characters; none: as long as it is.
    pub value_length: Option<usize>,
    /// Attributes of one span.
    pub attributes: usize,
    /// Events of one span.
    pub events: usize,
    /// Links of one span.
    pub links: usize,
    /// Attributes of one event.
    pub event_attributes: usize,
    /// Attributes of one link.
    pub link_attributes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            value_length: None,
            attributes: 128,
            events: 128,
            links: 128,
            event_attributes: 128,
            link_attributes: 128,
        }
    }
}

impl Limits {
    /// Makes a span's attributes keep to the limits: how many were left out.
    pub fn apply(&self, attributes: &mut Vec<(Key, Value)>) -> u32 {
        let dropped = attributes.len().saturating_sub(self.attributes);
        attributes.truncate(self.attributes);
        if let Some(length) = self.value_length {
            for (_, value) in attributes {
                shorten(value, length);
            }
        }
        u32::try_from(dropped).unwrap_or(u32::MAX)
    }
}

fn shorten(value: &mut Value, length: usize) {
    match value {
        Value::Str(text) if text.len() > length => {
            if let Some(short) = shorter(text, length) {
                *text = Cow::Owned(short.to_owned());
            }
        }
        Value::Shared(text) if text.len() > length => {
            if let Some(short) = shorter(text, length) {
                *text = short.into();
            }
        }
        Value::Strings(list) => {
            for text in list {
                if let Some(short) = shorter(text, length) {
                    *text = Arc::from(short);
                }
            }
        }
        _ => {}
    }
}

/// The first `length` characters, if there are more.
fn shorter(text: &str, length: usize) -> Option<&str> {
    let (end, _) = text.char_indices().nth(length)?;
    Some(cut(text, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_are_cut_by_characters_and_many_attributes_counted() {
        let limits = Limits {
            value_length: Some(3),
            attributes: 3,
            ..Limits::default()
        };
        let mut attributes: Vec<(Key, Value)> = vec![
            ("a".into(), Value::Str("äöüß".into())),
            ("b".into(), Value::Shared("abc".into())),
            ("c".into(), Value::Strings(vec!["abcd".into(), "x".into()])),
            ("d".into(), Value::Int(123_456)),
            ("e".into(), Value::Bool(true)),
        ];
        assert_eq!(limits.apply(&mut attributes), 2);
        assert_eq!(
            attributes,
            [
                ("a".into(), Value::Str("äöü".into())),
                ("b".into(), Value::Shared("abc".into())),
                ("c".into(), Value::Strings(vec!["abc".into(), "x".into()])),
            ]
        );
    }
}
