//! A served request with its calls as a Sentry transaction
//! (develop.sentry.dev, "Transaction Payloads"). Its own structure: the
//! `sentry` crate's has no `transaction_info`, so it could not say that a name
//! is a route. Written straight from the spans, without a tree of values between.
//!
//! Calls that find no room in it go in transactions of their own that say so: their
//! times, ids and parent are the calls' own; only the transaction around them is made up.

use std::collections::BTreeMap;

use serde::ser::{Serialize, SerializeSeq as _, Serializer};
use serde_json::{Value as Json, json};

use super::subject::{Data, SDK, Sdk, Subject, cut, seconds};
use super::words;
use crate::attribute::Value;
use crate::export::plain::Hex;
use crate::span::conventions::key;
use crate::span::{Kind, Span, SpanId};

/// Most spans of one transaction.
pub const SPANS: usize = 1000;
/// Longest name, bytes.
pub const NAME: usize = 200;

/// The payload.
#[derive(Debug, serde::Serialize)]
pub struct Transaction<'a> {
    event_id: Hex<'a>,
    r#type: &'static str,
    platform: &'static str,
    transaction: String,
    transaction_info: Source,
    start_timestamp: f64,
    timestamp: f64,
    contexts: Contexts<'a>,
    spans: Children<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<Json>,
    tags: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    release: Option<&'a str>,
    environment: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    server_name: Option<&'a str>,
    sdk: Sdk,
}

#[derive(Debug, serde::Serialize)]
struct Source {
    source: &'static str,
}

#[derive(Debug, serde::Serialize)]
struct Contexts<'a> {
    trace: Trace<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    runtime: Option<Runtime<'a>>,
}

/// The trace context of a span.
#[derive(Debug, serde::Serialize)]
struct Trace<'a> {
    trace_id: Hex<'a>,
    span_id: Hex<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_span_id: Option<Hex<'a>>,
    op: &'static str,
    origin: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'static str>,
    data: Data<'a>,
}

/// What the process runs on, if it is known.
#[derive(Debug, serde::Serialize)]
struct Runtime<'a> {
    r#type: &'static str,
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'a str>,
}

#[derive(Debug)]
struct Children<'a>(&'a [Span]);

/// A call.
#[derive(Debug, serde::Serialize)]
struct Child<'a> {
    trace_id: Hex<'a>,
    span_id: Hex<'a>,
    parent_span_id: Hex<'a>,
    op: &'static str,
    description: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'static str>,
    origin: &'static str,
    start_timestamp: f64,
    timestamp: f64,
    data: Data<'a>,
}

impl<'a> Transaction<'a> {
    /// Of a request with the first of its calls, at most [`SPANS`]; `event_id`: 16 bytes.
    pub fn new(root: &'a Span, calls: &'a [Span], subject: &'a Subject, event_id: &'a [u8; 16]) -> Self {
        Transaction {
            transaction: cut(&root.name, NAME).to_owned(),
            transaction_info: Source {
                source: words::source(root),
            },
            start_timestamp: seconds(root.start_unix_ns),
            timestamp: seconds(root.end_unix_ns.max(root.start_unix_ns)),
            request: request(root),
            ..Self::around(root, calls, subject, event_id, trace(root))
        }
    }

    /// More of its calls: a transaction below it that lasts as long as they do. `id` is its own.
    pub fn more(
        root: &'a Span,
        calls: &'a [Span],
        subject: &'a Subject,
        event_id: &'a [u8; 16],
        id: &'a SpanId,
    ) -> Self {
        let start = calls.iter().map(|call| call.start_unix_ns).min();
        let end = calls.iter().map(|call| call.end_unix_ns).max();
        let context = Trace {
            span_id: Hex(id),
            parent_span_id: Some(Hex(&root.context.span_id)),
            // Not that of a request: it is not to be counted as one.
            op: "default",
            status: None,
            data: Data::EMPTY,
            ..trace(root)
        };
        let start = start.unwrap_or(root.start_unix_ns);
        Transaction {
            transaction: format!("{} (continued)", cut(&root.name, NAME)),
            transaction_info: Source { source: "custom" },
            start_timestamp: seconds(start),
            timestamp: seconds(end.unwrap_or(start).max(start)),
            ..Self::around(root, calls, subject, event_id, context)
        }
    }

    fn around(
        root: &'a Span,
        calls: &'a [Span],
        subject: &'a Subject,
        event_id: &'a [u8; 16],
        trace: Trace<'a>,
    ) -> Self {
        Transaction {
            event_id: Hex(event_id),
            r#type: "transaction",
            platform: subject.platform,
            transaction: String::new(),
            transaction_info: Source { source: "" },
            start_timestamp: 0.0,
            timestamp: 0.0,
            contexts: Contexts {
                trace,
                runtime: runtime(root),
            },
            spans: Children(calls),
            request: None,
            tags: &subject.tags,
            release: subject.release.as_deref(),
            environment: &subject.environment,
            server_name: subject.server_name.as_deref(),
            sdk: SDK,
        }
    }
}

fn trace(span: &Span) -> Trace<'_> {
    let context = &span.context;
    Trace {
        trace_id: Hex(&context.trace_id),
        span_id: Hex(&context.span_id),
        parent_span_id: context.parent.as_ref().map(|parent| Hex(parent)),
        op: words::op(span),
        origin: words::origin(span),
        status: words::status(span),
        data: Data {
            attributes: &span.attributes,
            server: span.kind == Kind::Server,
        },
    }
}

fn runtime(span: &Span) -> Option<Runtime<'_>> {
    let resource = &span.resource;
    Some(Runtime {
        r#type: "runtime",
        name: words::text(resource, "process.runtime.name")?,
        version: words::text(resource, "process.runtime.version"),
    })
}

/// Method and address of an HTTP request; no query, no header, no body.
pub fn request(span: &Span) -> Option<Json> {
    let text = |key| span.attribute(key).and_then(Value::as_str);
    let method = text(key::HTTP_REQUEST_METHOD)?;
    let url = match text(key::URL_FULL) {
        Some(full) => full.split(['?', '#']).next().map(str::to_owned),
        None => text(key::URL_PATH).map(|path| {
            let host = text(key::SERVER_ADDRESS).unwrap_or("unknown");
            let scheme = text(key::URL_SCHEME).unwrap_or("http");
            match span.attribute(key::SERVER_PORT) {
                Some(Value::Int(port)) => format!("{scheme}://{host}:{port}{path}"),
                _ => format!("{scheme}://{host}{path}"),
            }
        }),
    };
    Some(json!({"method": method, "url": url}))
}

impl Serialize for Children<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.0.len()))?;
        for span in self.0 {
            list.serialize_element(&Child {
                trace_id: Hex(&span.context.trace_id),
                span_id: Hex(&span.context.span_id),
                parent_span_id: Hex(span.context.parent.as_ref().map_or(&[], |p| p.as_slice())),
                op: words::op(span),
                description: cut(&span.name, NAME),
                status: words::status(span),
                origin: words::origin(span),
                start_timestamp: seconds(span.start_unix_ns),
                timestamp: seconds(span.end_unix_ns.max(span.start_unix_ns)),
                data: Data {
                    attributes: &span.attributes,
                    server: false,
                },
            })?;
        }
        list.end()
    }
}
