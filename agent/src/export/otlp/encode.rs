//! Spans → the bytes of an `ExportTraceServiceRequest`, written straight from
//! the span (opentelemetry-proto `trace/v1/trace.proto`): no message is built
//! in between, and what waits for the receiver is as small as on the wire.
//! Field numbers stand in [`field`]; that the bytes are those of the generated
//! messages is a test.

use std::sync::Arc;

use bytes::Bytes;
use prost::encoding::{encode_varint, encoded_len_varint};
use rustc_hash::FxHashMap;

use super::message::{SCHEMA_URL, SCOPE_NAME};
use crate::attribute::{Key, Value};
use crate::discover::Resource;
use crate::span::{Kind, Span, Status};

/// Field numbers, as in the `.proto` files.
mod field {
    pub const REQUEST_RESOURCE_SPANS: u8 = 1;
    pub const RESOURCE_SPANS_RESOURCE: u8 = 1;
    pub const RESOURCE_SPANS_SCOPE_SPANS: u8 = 2;
    pub const RESOURCE_SPANS_SCHEMA_URL: u8 = 3;
    pub const RESOURCE_ATTRIBUTES: u8 = 1;
    pub const SCOPE_SPANS_SCOPE: u8 = 1;
    pub const SCOPE_SPANS_SPANS: u8 = 2;
    pub const SCOPE_SPANS_SCHEMA_URL: u8 = 3;
    pub const SCOPE_NAME: u8 = 1;
    pub const SCOPE_VERSION: u8 = 2;
    pub const SPAN_TRACE_ID: u8 = 1;
    pub const SPAN_ID: u8 = 2;
    pub const SPAN_TRACE_STATE: u8 = 3;
    pub const SPAN_PARENT_ID: u8 = 4;
    pub const SPAN_NAME: u8 = 5;
    pub const SPAN_KIND: u8 = 6;
    pub const SPAN_START: u8 = 7;
    pub const SPAN_END: u8 = 8;
    pub const SPAN_ATTRIBUTES: u8 = 9;
    pub const SPAN_DROPPED_ATTRIBUTES: u8 = 10;
    pub const SPAN_STATUS: u8 = 15;
    pub const SPAN_FLAGS: u8 = 16;
    pub const STATUS_MESSAGE: u8 = 2;
    pub const STATUS_CODE: u8 = 3;
    pub const KEY_VALUE_KEY: u8 = 1;
    pub const KEY_VALUE_VALUE: u8 = 2;
    pub const ANY_STRING: u8 = 1;
    pub const ANY_BOOL: u8 = 2;
    pub const ANY_INT: u8 = 3;
    pub const ANY_DOUBLE: u8 = 4;
    pub const ANY_ARRAY: u8 = 5;
    pub const ARRAY_VALUES: u8 = 1;
}

/// `SPAN_KIND_SERVER` and `SPAN_KIND_CLIENT`.
pub(super) const SERVER: u64 = 2;
pub(super) const CLIENT: u64 = 3;
/// `STATUS_CODE_ERROR`.
const ERROR: u64 = 2;
/// `SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK` and `SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK`.
pub(super) const HAS_IS_REMOTE: u32 = 0x100;
pub(super) const IS_REMOTE: u32 = 0x200;

/// Wire types of protobuf's encoding.
const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const LENGTH: u8 = 2;
const FIXED32: u32 = 5;

/// A request in the making: encoded spans, by process.
#[derive(Default)]
pub struct Batch {
    groups: Vec<Group>,
    places: FxHashMap<u64, usize>,
    spans: usize,
    bytes: usize,
    ends: Vec<u64>,
    scratch: Vec<u8>,
}

/// Encoded spans of one process.
struct Group {
    /// `ResourceSpans.resource`, key and length included.
    resource: Vec<u8>,
    /// `ScopeSpans.spans`, keys and lengths included.
    spans: Vec<u8>,
}

impl Batch {
    /// Number of spans.
    pub fn len(&self) -> usize {
        self.spans
    }

    /// Bytes of the request, within a hundred a process.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a span.
    pub fn push(&mut self, span: &Span) {
        let place = match self.places.get(&span.resource.id) {
            Some(place) => *place,
            None => self.group(&span.resource),
        };
        self.scratch.clear();
        encode(span, &mut self.scratch);
        let Some(group) = self.groups.get_mut(place) else {
            return;
        };
        let before = group.spans.len();
        nested(&mut group.spans, field::SCOPE_SPANS_SPANS, &self.scratch);
        self.bytes += group.spans.len() - before;
        self.spans += 1;
        self.ends.push(span.end_unix_ns);
    }

    /// When its spans ended, Unix time ns; once.
    pub fn take_ends(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.ends)
    }

    fn group(&mut self, resource: &Arc<Resource>) -> usize {
        self.scratch.clear();
        attributes(&mut self.scratch, field::RESOURCE_ATTRIBUTES, &resource.attributes);
        let mut encoded = Vec::with_capacity(self.scratch.len() + 8);
        nested(&mut encoded, field::RESOURCE_SPANS_RESOURCE, &self.scratch);
        let place = self.groups.len();
        self.bytes += encoded.len() + 2 * SCHEMA_URL.len();
        self.groups.push(Group {
            resource: encoded,
            spans: Vec::new(),
        });
        self.places.insert(resource.id, place);
        place
    }

    /// The request's bytes.
    pub fn finish(self) -> Bytes {
        let mut scope = Vec::with_capacity(64);
        let mut inner = Vec::with_capacity(64);
        string(&mut inner, field::SCOPE_NAME, SCOPE_NAME);
        string(&mut inner, field::SCOPE_VERSION, env!("CARGO_PKG_VERSION"));
        nested(&mut scope, field::SCOPE_SPANS_SCOPE, &inner);
        let mut schema = Vec::with_capacity(64);
        string(&mut schema, field::SCOPE_SPANS_SCHEMA_URL, SCHEMA_URL);
        let mut out = Vec::with_capacity(self.bytes + 128 * self.groups.len());
        for group in &self.groups {
            let scope_spans = scope.len() + group.spans.len() + schema.len();
            let resource_spans = group.resource.len() + with_head(scope_spans) + with_head(SCHEMA_URL.len());
            head(&mut out, field::REQUEST_RESOURCE_SPANS, resource_spans);
            out.extend_from_slice(&group.resource);
            head(&mut out, field::RESOURCE_SPANS_SCOPE_SPANS, scope_spans);
            out.extend_from_slice(&scope);
            out.extend_from_slice(&group.spans);
            out.extend_from_slice(&schema);
            string(&mut out, field::RESOURCE_SPANS_SCHEMA_URL, SCHEMA_URL);
        }
        out.into()
    }
}

/// One `Span` message.
fn encode(span: &Span, out: &mut Vec<u8>) {
    let context = &span.context;
    bytes(out, field::SPAN_TRACE_ID, &context.trace_id);
    bytes(out, field::SPAN_ID, &context.span_id);
    if let Some(state) = context.trace_state.as_deref().filter(|s| !s.is_empty()) {
        string(out, field::SPAN_TRACE_STATE, state);
    }
    if let Some(parent) = &context.parent {
        bytes(out, field::SPAN_PARENT_ID, parent);
    }
    string(out, field::SPAN_NAME, &span.name);
    let kind = match span.kind {
        Kind::Client => CLIENT,
        Kind::Server => SERVER,
    };
    varint(out, field::SPAN_KIND, kind);
    fixed64(out, field::SPAN_START, span.start_unix_ns);
    fixed64(out, field::SPAN_END, span.end_unix_ns);
    attributes(out, field::SPAN_ATTRIBUTES, &span.attributes);
    if span.dropped_attributes > 0 {
        varint(out, field::SPAN_DROPPED_ATTRIBUTES, span.dropped_attributes.into());
    }
    match &span.status {
        Status::Unset => head(out, field::SPAN_STATUS, 0),
        Status::Error(message) => {
            let message = message.as_deref().unwrap_or_default();
            let text = if message.is_empty() {
                0
            } else {
                with_head(message.len())
            };
            head(out, field::SPAN_STATUS, text + 2);
            if !message.is_empty() {
                string(out, field::STATUS_MESSAGE, message);
            }
            varint(out, field::STATUS_CODE, ERROR);
        }
    }
    // The bits that the trace flags don't use say whether the parent is in another process.
    let mut flags = u32::from(context.flags) | HAS_IS_REMOTE;
    if context.parent_is_remote {
        flags |= IS_REMOTE;
    }
    // The one number above 15: its key takes two bytes.
    encode_varint(u64::from(u32::from(field::SPAN_FLAGS) << 3 | FIXED32), out);
    out.extend_from_slice(&flags.to_le_bytes());
}

fn attributes(out: &mut Vec<u8>, number: u8, attributes: &[(Key, Value)]) {
    for (name, value) in attributes {
        let any = any_len(value);
        let name_len = if name.is_empty() { 0 } else { with_head(name.len()) };
        head(out, number, name_len + with_head(any));
        if !name.is_empty() {
            string(out, field::KEY_VALUE_KEY, name);
        }
        head(out, field::KEY_VALUE_VALUE, any);
        put_any(out, value);
    }
}

/// Bytes of an `AnyValue` message.
fn any_len(value: &Value) -> usize {
    match value {
        Value::Str(s) => with_head(s.len()),
        Value::Shared(s) => with_head(s.len()),
        Value::Int(i) => 1 + encoded_len_varint(i.cast_unsigned()),
        Value::Double(_) => 9,
        Value::Bool(_) => 2,
        Value::Strings(list) => with_head(array_len(list)),
    }
}

fn array_len(list: &[Arc<str>]) -> usize {
    list.iter().map(|s| with_head(with_head(s.len()))).sum()
}

fn put_any(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Str(s) => string(out, field::ANY_STRING, s),
        Value::Shared(s) => string(out, field::ANY_STRING, s),
        Value::Int(i) => varint(out, field::ANY_INT, i.cast_unsigned()),
        Value::Double(d) => fixed64(out, field::ANY_DOUBLE, d.to_bits()),
        Value::Bool(b) => varint(out, field::ANY_BOOL, u64::from(*b)),
        Value::Strings(list) => {
            head(out, field::ANY_ARRAY, array_len(list));
            for s in list {
                head(out, field::ARRAY_VALUES, with_head(s.len()));
                string(out, field::ANY_STRING, s);
            }
        }
    }
}

/// Bytes of a length-delimited field of a number below 16, with its key.
#[inline]
fn with_head(length: usize) -> usize {
    let prefix = if length < 0x80 {
        1
    } else {
        encoded_len_varint(length as u64)
    };
    1 + prefix + length
}

/// Key and length; fields that are nested have numbers below 16.
#[inline]
fn head(out: &mut Vec<u8>, number: u8, length: usize) {
    let key = number << 3 | LENGTH;
    if length < 0x80 {
        out.extend_from_slice(&[key, length as u8]);
    } else {
        out.push(key);
        encode_varint(length as u64, out);
    }
}

#[inline]
fn nested(out: &mut Vec<u8>, number: u8, message: &[u8]) {
    head(out, number, message.len());
    out.extend_from_slice(message);
}

fn bytes(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    nested(out, number, bytes);
}

fn string(out: &mut Vec<u8>, number: u8, text: &str) {
    nested(out, number, text.as_bytes());
}

fn varint(out: &mut Vec<u8>, number: u8, value: u64) {
    out.push(number << 3 | VARINT);
    encode_varint(value, out);
}

fn fixed64(out: &mut Vec<u8>, number: u8, value: u64) {
    out.push(number << 3 | FIXED64);
    out.extend_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use prost::Message as _;

    use super::super::message;
    use super::*;
    use crate::export::example;

    #[test]
    fn the_bytes_are_those_of_the_generated_messages() {
        let mut plain = example::server(7, 1, None);
        plain.resource = example::resource(3, "greeter");
        let mut full = example::server(7, 2, Some(1));
        full.context.parent_is_remote = true;
        full.context.flags = 3;
        full.dropped_attributes = 300;
        full.context.trace_state = Some("ot=th:8".into());
        full.status = Status::Error(Some("x".repeat(300).into()));
        let list = vec!["a".into(), "".into(), "b".repeat(200).into()];
        full.attributes.extend([
            ("ratio".into(), Value::Double(-0.5)),
            ("zero".into(), Value::Double(0.0)),
            ("flag".into(), Value::Bool(false)),
            ("count".into(), Value::Int(-1)),
            ("none".into(), Value::Int(0)),
            ("empty".into(), Value::Str("".into())),
            ("list".into(), Value::Strings(list)),
            ("nothing".into(), Value::Strings(vec![])),
        ]);
        let mut bare = example::server(7, 9, None);
        bare.kind = Kind::Client;
        bare.status = Status::Error(None);
        let spans = [plain.clone(), full, plain, bare];
        let mut batch = Batch::default();
        for span in &spans {
            batch.push(span);
        }
        assert_eq!(batch.len(), 4);
        let estimate = batch.bytes();
        let bytes = batch.finish();
        assert!(bytes.len().abs_diff(estimate) < 200, "{estimate} {}", bytes.len());
        let expected = message::request(&spans);
        assert_eq!(ExportTraceServiceRequest::decode(bytes.clone()).unwrap(), expected);
        assert_eq!(bytes, expected.encode_to_vec());
    }
}
