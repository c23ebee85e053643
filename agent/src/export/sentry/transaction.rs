//! A served request with its calls as a Sentry transaction
//! (develop.sentry.dev, "Transaction Payloads"). Its own structure: the
//! `sentry` crate's has no `transaction_info`, so it could not say that a name
//! is a route.

use serde::Serialize;
use serde_json::{Map, Value as Json, json};

use super::family::Family;
use super::subject::{Subject, cut, data, hex, sdk, seconds};
use super::words;
use crate::attribute::Value;
use crate::span::Span;
use crate::span::conventions::key;

/// Most spans of one transaction.
pub const SPANS: usize = 1000;
/// Longest name, bytes.
pub const NAME: usize = 200;

/// The payload.
#[derive(Debug, Serialize)]
pub struct Transaction<'a> {
    event_id: &'a str,
    r#type: &'static str,
    platform: &'static str,
    transaction: &'a str,
    transaction_info: Json,
    start_timestamp: f64,
    timestamp: f64,
    contexts: Json,
    spans: Vec<Child<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<Json>,
    tags: &'a std::collections::BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    release: Option<&'a str>,
    environment: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    server_name: Option<&'a str>,
    sdk: Json,
}

/// A call.
#[derive(Debug, Serialize)]
struct Child<'a> {
    trace_id: String,
    span_id: String,
    parent_span_id: String,
    op: &'static str,
    description: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'static str>,
    origin: &'static str,
    start_timestamp: f64,
    timestamp: f64,
    data: Map<String, Json>,
}

impl<'a> Transaction<'a> {
    /// Of a family with at most [`SPANS`] calls; `event_id`: 32 hexadecimal digits.
    pub fn new(family: &'a Family, subject: &'a Subject, event_id: &'a str) -> Self {
        let root = &family.root;
        Transaction {
            event_id,
            r#type: "transaction",
            platform: subject.platform,
            transaction: cut(&root.name, NAME),
            transaction_info: json!({"source": words::source(root)}),
            start_timestamp: seconds(root.start_unix_ns),
            timestamp: seconds(root.end_unix_ns.max(root.start_unix_ns)),
            contexts: json!({"trace": trace(root), "runtime": runtime(root)}),
            spans: family.calls.iter().take(SPANS).map(child).collect(),
            request: request(root),
            tags: &subject.tags,
            release: subject.release.as_deref(),
            environment: &subject.environment,
            server_name: subject.server_name.as_deref(),
            sdk: sdk(),
        }
    }
}

/// The trace context of a span: the same for a transaction and for an issue.
pub fn trace(span: &Span) -> Json {
    let context = &span.context;
    let mut trace = json!({
        "trace_id": hex(&context.trace_id),
        "span_id": hex(&context.span_id),
        "op": words::op(span),
        "origin": words::origin(span),
        "data": data(&span.attributes, span.kind == crate::span::Kind::Server),
    });
    if let Some(fields) = trace.as_object_mut() {
        if let Some(parent) = &context.parent {
            fields.insert("parent_span_id".into(), hex(parent).into());
        }
        if let Some(status) = words::status(span) {
            fields.insert("status".into(), status.into());
        }
    }
    trace
}

/// What the process runs on, if it is known.
pub fn runtime(span: &Span) -> Json {
    let resource = &span.resource;
    match words::text(resource, "process.runtime.name") {
        Some(name) => json!({
            "type": "runtime",
            "name": name,
            "version": words::text(resource, "process.runtime.version"),
        }),
        None => Json::Null,
    }
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

fn child(span: &Span) -> Child<'_> {
    Child {
        trace_id: hex(&span.context.trace_id),
        span_id: hex(&span.context.span_id),
        parent_span_id: span.context.parent.map(|p| hex(&p)).unwrap_or_default(),
        op: words::op(span),
        description: cut(&span.name, NAME),
        status: words::status(span),
        origin: words::origin(span),
        start_timestamp: seconds(span.start_unix_ns),
        timestamp: seconds(span.end_unix_ns.max(span.start_unix_ns)),
        data: data(&span.attributes, false),
    }
}
