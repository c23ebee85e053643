//! Spans → the JSON of an `ExportTraceServiceRequest` (OTLP specification, "JSON Protobuf
//! Encoding"), written straight from the spans: ids are hex, enums numbers, 64-bit integers
//! texts; what has its default value is left out. That it says what the generated messages
//! say is a test.

use std::sync::Arc;

use rustc_hash::FxHashMap;
use serde::ser::{Serialize, SerializeMap as _, SerializeSeq as _, Serializer};

use super::message::{SCHEMA_URL, SCOPE_NAME};
use crate::attribute::{Key, Value};
use crate::export::plain::Hex;
use crate::span::{Kind, Span, Status};

/// A request that carries those spans.
pub struct Request<'a>(pub &'a [Span]);

impl Serialize for Request<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut places: FxHashMap<u64, usize> = FxHashMap::default();
        let mut groups: Vec<Vec<&Span>> = Vec::new();
        for span in self.0 {
            let place = *places.entry(span.resource.id).or_insert_with(|| {
                groups.push(Vec::new());
                groups.len() - 1
            });
            if let Some(group) = groups.get_mut(place) {
                group.push(span);
            }
        }
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry("resourceSpans", &groups.iter().map(|g| Group(g)).collect::<Vec<_>>())?;
        map.end()
    }
}

/// Spans of one process.
struct Group<'a>(&'a [&'a Span]);

impl Serialize for Group<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(serde::Serialize)]
        struct Resource<'a> {
            attributes: Attributes<'a>,
        }
        #[derive(serde::Serialize)]
        struct Scope {
            name: &'static str,
            version: &'static str,
        }
        #[derive(serde::Serialize)]
        #[serde(rename_all = "camelCase")]
        struct ScopeSpans<'a> {
            scope: Scope,
            spans: Spans<'a>,
            schema_url: &'static str,
        }
        let resource = self.0.first().map(|span| &span.resource);
        let mut map = serializer.serialize_map(Some(3))?;
        if let Some(resource) = resource {
            let attributes = Attributes(&resource.attributes);
            map.serialize_entry("resource", &Resource { attributes })?;
        }
        let scope = Scope {
            name: SCOPE_NAME,
            version: env!("CARGO_PKG_VERSION"),
        };
        let spans = ScopeSpans {
            scope,
            spans: Spans(self.0),
            schema_url: SCHEMA_URL,
        };
        map.serialize_entry("scopeSpans", &[spans])?;
        map.serialize_entry("schemaUrl", SCHEMA_URL)?;
        map.end()
    }
}

struct Spans<'a>(&'a [&'a Span]);

impl Serialize for Spans<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|span| One(span)))
    }
}

struct One<'a>(&'a Span);

impl Serialize for One<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(serde::Serialize)]
        struct Failed<'a> {
            code: u8,
            #[serde(skip_serializing_if = "str::is_empty")]
            message: &'a str,
        }
        let span = self.0;
        let context = &span.context;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("traceId", &Hex(&context.trace_id))?;
        map.serialize_entry("spanId", &Hex(&context.span_id))?;
        if let Some(state) = context.trace_state.as_deref().filter(|s| !s.is_empty()) {
            map.serialize_entry("traceState", state)?;
        }
        let parent = context.parent.as_ref().map_or(&[][..], |p| p.as_slice());
        map.serialize_entry("parentSpanId", &Hex(parent))?;
        let mut flags = u32::from(context.flags) | super::encode::HAS_IS_REMOTE;
        if context.parent_is_remote {
            flags |= super::encode::IS_REMOTE;
        }
        map.serialize_entry("flags", &flags)?;
        map.serialize_entry("name", &*span.name)?;
        let kind = match span.kind {
            Kind::Server => super::encode::SERVER,
            Kind::Client => super::encode::CLIENT,
        };
        map.serialize_entry("kind", &kind)?;
        map.serialize_entry("startTimeUnixNano", &Digits(span.start_unix_ns))?;
        map.serialize_entry("endTimeUnixNano", &Digits(span.end_unix_ns))?;
        map.serialize_entry("attributes", &Attributes(&span.attributes))?;
        if span.dropped_attributes > 0 {
            map.serialize_entry("droppedAttributesCount", &span.dropped_attributes)?;
        }
        if let Status::Error(message) = &span.status {
            let failed = Failed {
                code: 2,
                message: message.as_deref().unwrap_or_default(),
            };
            map.serialize_entry("status", &failed)?;
        } else {
            map.serialize_entry("status", &Empty {})?;
        }
        map.end()
    }
}

#[derive(serde::Serialize)]
struct Empty {}

/// A 64-bit integer as text.
struct Digits(u64);

impl Serialize for Digits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

struct Attributes<'a>(&'a [(Key, Value)]);

impl Serialize for Attributes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(serde::Serialize)]
        struct KeyValue<'a> {
            key: &'a str,
            value: Any<'a>,
        }
        let mut list = serializer.serialize_seq(Some(self.0.len()))?;
        for (key, value) in self.0 {
            list.serialize_element(&KeyValue { key, value: Any(value) })?;
        }
        list.end()
    }
}

struct Any<'a>(&'a Value);

impl Serialize for Any<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(serde::Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Text<'a> {
            string_value: &'a str,
        }
        struct Texts<'a>(&'a [Arc<str>]);
        impl Serialize for Texts<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_seq(self.0.iter().map(|s| Text { string_value: s }))
            }
        }
        #[derive(serde::Serialize)]
        struct Array<'a> {
            values: Texts<'a>,
        }
        let mut map = serializer.serialize_map(Some(1))?;
        match self.0 {
            Value::Str(s) => map.serialize_entry("stringValue", &**s)?,
            Value::Shared(s) => map.serialize_entry("stringValue", &**s)?,
            Value::Int(i) => map.serialize_entry("intValue", &i.to_string())?,
            Value::Double(d) => map.serialize_entry("doubleValue", d)?,
            Value::Bool(b) => map.serialize_entry("boolValue", b)?,
            Value::Strings(list) => map.serialize_entry("arrayValue", &Array { values: Texts(list) })?,
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;

    use super::super::message;
    use super::*;
    use crate::export::example;

    #[test]
    fn the_json_says_what_the_generated_messages_say() {
        let mut plain = example::server(7, 1, None);
        plain.resource = example::resource(3, "greeter");
        let mut full = example::server(7, 2, Some(1));
        full.context.parent_is_remote = true;
        full.context.flags = 3;
        full.dropped_attributes = 300;
        full.context.trace_state = Some("ot=th:8".into());
        full.status = Status::Error(Some("a \"text\"\n".into()));
        full.attributes.extend([
            ("ratio".into(), Value::Double(-0.5)),
            ("flag".into(), Value::Bool(false)),
            ("count".into(), Value::Int(-1)),
            ("empty".into(), Value::Str("".into())),
            ("list".into(), Value::Strings(vec!["a".into(), "".into()])),
            ("nothing".into(), Value::Strings(vec![])),
        ]);
        let mut bare = example::server(7, 9, None);
        bare.kind = Kind::Client;
        bare.status = Status::Error(None);
        let spans = [plain.clone(), full, plain, bare];
        let text = serde_json::to_string(&Request(&spans)).unwrap();
        let read: ExportTraceServiceRequest = serde_json::from_str(&text).unwrap();
        assert_eq!(read, message::request(&spans));
    }
}
