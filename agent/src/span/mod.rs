//! Exchange → span, by OpenTelemetry's semantic conventions.

use std::sync::Arc;

use crate::attribute::{Key, Value};
use crate::discover::Resource;

pub mod build;
pub mod conventions;
mod http;
pub mod limits;
pub mod route;
mod rpc;
mod status;
pub(crate) mod url;

#[cfg(test)]
mod tests;

pub use build::Builder;

/// A trace id, RFC-ordered bytes (W3C Trace Context §3.2.2.3).
pub type TraceId = [u8; 16];
/// A span id (W3C Trace Context §3.2.2.4).
pub type SpanId = [u8; 8];

/// Identity of a span and its place in the trace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpanContext {
    /// Never all zero.
    pub trace_id: TraceId,
    /// Never all zero.
    pub span_id: SpanId,
    /// The parent's span id, if it is known.
    pub parent: Option<SpanId>,
    /// Whether the parent was read from the wire (another process).
    pub parent_is_remote: bool,
    /// W3C trace flags.
    pub flags: u8,
    /// `tracestate`, carried on whole.
    pub trace_state: Option<Arc<str>>,
}

/// OpenTelemetry span kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// CLIENT
    Client,
    /// SERVER
    Server,
}

/// OpenTelemetry span status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Status {
    /// Not an error, or not known.
    #[default]
    Unset,
    /// An error, with a description if there is one that adds to the code.
    Error(Option<Arc<str>>),
}

/// One finished span, ready for any exporter.
#[derive(Clone, Debug)]
pub struct Span {
    /// Identity.
    pub context: SpanContext,
    /// Low-cardinality name.
    pub name: Arc<str>,
    /// SERVER or CLIENT.
    pub kind: Kind,
    /// Unix time, ns.
    pub start_unix_ns: u64,
    /// Unix time, ns.
    pub end_unix_ns: u64,
    /// Status by the conventions' error rules.
    pub status: Status,
    /// Attributes by their semantic-convention names.
    pub attributes: Vec<(Key, Value)>,
    /// Attributes that the limits left out.
    pub dropped_attributes: u32,
    /// What Sentry's SDK at the head of the trace said of it, see [`crate::protocol::baggage`].
    pub sentry_head: Option<Arc<str>>,
    /// The observed process.
    pub resource: Arc<Resource>,
}

impl Span {
    /// The attribute of that name.
    pub fn attribute(&self, key: &str) -> Option<&Value> {
        self.attributes.iter().find(|(k, _)| k == key).map(|(_, v)| v)
    }
}
