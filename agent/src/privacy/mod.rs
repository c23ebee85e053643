//! What must not leave: secrets in texts that a caller or a service wrote.
//! Every text of the wire that a span, a log, a recording or a metric shows
//! goes through here.
//!
//! Bias: hides too much rather than too little. A text is copied only if
//! something in it is hidden, and looked at closely only if a look at its
//! bytes finds something that could be hidden.
//!
//! Two depths. *Exact*: what has a form of its own, and is a secret wherever
//! it stands: e-mail addresses, card numbers, keys by their prefixes, JSON Web
//! Tokens, private keys, passwords in URLs, `password=…`. *Free*: besides,
//! whatever looks drawn at random; for texts in which a word is a word.

use std::borrow::Cow;
use std::sync::Arc;

use regex::Regex;

mod card;
#[cfg(test)]
pub mod corpus;
pub mod letters;
mod mark;
mod query;
mod scan;
#[cfg(test)]
mod tests;

pub use card::is_card;
pub use query::is_sensitive_name;
pub use scan::{holds_secret, is_private};

/// What stands in place of a private value.
pub const REDACTED: &str = "REDACTED";

/// What becomes of query strings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Query {
    /// They are left out.
    #[default]
    Off,
    /// They are shown without the values that are private.
    Redacted,
}

/// What the user chose.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Whether query strings show.
    pub query: Query,
    /// What else is hidden: each match, wherever it is found.
    pub patterns: Arc<[Regex]>,
}

impl Policy {
    /// Text in which a word is a word: messages, errors, user agents.
    pub fn free<'t>(&self, text: &'t str) -> Cow<'t, str> {
        self.own(scan::free(text))
    }

    /// Text in which a word may be a name that looks like nothing: methods, hosts, fields asked for.
    pub fn exact<'t>(&self, text: &'t str) -> Cow<'t, str> {
        self.own(scan::exact(text))
    }

    /// [`Policy::exact`] of a shared text, shared again if nothing is hidden.
    pub fn exact_shared(&self, text: &Arc<str>) -> Arc<str> {
        shared(text, self.exact(text))
    }

    /// [`Policy::free`] of a shared text, shared again if nothing is hidden.
    pub fn free_shared(&self, text: &Arc<str>) -> Arc<str> {
        shared(text, self.free(text))
    }

    /// What the user's own patterns leave of a text that was looked at already.
    pub fn own_shared(&self, text: &Arc<str>) -> Arc<str> {
        if self.patterns.is_empty() {
            return Arc::clone(text);
        }
        shared(text, self.own(Cow::Borrowed(text)))
    }

    /// A header field that was asked for by name: credentials never show, in others nothing exact.
    pub fn field(&self, name: &str, value: &Arc<str>) -> Arc<str> {
        if mark::is_credential(name) {
            REDACTED.into()
        } else {
            self.exact_shared(value)
        }
    }

    /// A query string, without its question mark; `None` if queries do not show.
    pub fn query(&self, query: &str) -> Option<String> {
        match self.query {
            Query::Off => None,
            Query::Redacted => Some(query::redacted(query, self)),
        }
    }

    fn own<'t>(&self, text: Cow<'t, str>) -> Cow<'t, str> {
        self.patterns.iter().fold(text, |text, pattern| {
            if pattern.is_match(&text) {
                Cow::Owned(pattern.replace_all(&text, regex::NoExpand(REDACTED)).into_owned())
            } else {
                text
            }
        })
    }
}

fn shared(text: &Arc<str>, scrubbed: Cow<'_, str>) -> Arc<str> {
    match scrubbed {
        Cow::Borrowed(_) => Arc::clone(text),
        Cow::Owned(new) => new.into(),
    }
}
