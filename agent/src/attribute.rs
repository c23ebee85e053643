//! Attribute keys and values, the common currency of resources and spans.

use std::borrow::Cow;
use std::sync::Arc;

/// Key of an attribute, by its semantic-convention name.
pub type Key = Cow<'static, str>;

/// Value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A string.
    Str(Cow<'static, str>),
    /// A shared string.
    Shared(Arc<str>),
    /// A signed integer.
    Int(i64),
    /// A double.
    Double(f64),
    /// A boolean.
    Bool(bool),
    /// Several strings.
    Strings(Vec<Arc<str>>),
}

impl Value {
    /// The text of a string value.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::Str(s) => Some(s),
            Value::Shared(s) => Some(s),
            _ => None,
        }
    }
}
