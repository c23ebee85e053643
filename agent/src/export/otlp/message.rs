//! Spans → `ExportTraceServiceRequest`: one `ResourceSpans` an observed
//! process, in the order in which the processes first appear.

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{
    ResourceSpans, ScopeSpans, Span as OtlpSpan, SpanFlags, Status as OtlpStatus,
};
use rustc_hash::FxHashMap;

use crate::attribute::{Key, Value};
use crate::span::{Kind, Span, Status};

/// Schema of all attribute names.
pub const SCHEMA_URL: &str = "https://opentelemetry.io/schemas/1.45.0";
/// Name of the instrumentation scope.
pub const SCOPE_NAME: &str = "tracewire";

/// The request that carries those spans.
pub fn request(spans: &[Span]) -> ExportTraceServiceRequest {
    let mut places: FxHashMap<u64, usize> = FxHashMap::default();
    let mut groups: Vec<(&Span, Vec<OtlpSpan>)> = Vec::new();
    for span in spans {
        let place = *places.entry(span.resource.id).or_insert_with(|| {
            groups.push((span, Vec::new()));
            groups.len() - 1
        });
        if let Some((_, group)) = groups.get_mut(place) {
            group.push(message(span));
        }
    }
    let resource_spans = groups.into_iter().map(|(first, spans)| ResourceSpans {
        resource: Some(Resource {
            attributes: key_values(&first.resource.attributes),
            ..Resource::default()
        }),
        scope_spans: vec![ScopeSpans {
            scope: Some(InstrumentationScope {
                name: SCOPE_NAME.to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                ..InstrumentationScope::default()
            }),
            spans,
            schema_url: SCHEMA_URL.to_owned(),
        }],
        schema_url: SCHEMA_URL.to_owned(),
    });
    ExportTraceServiceRequest {
        resource_spans: resource_spans.collect(),
    }
}

fn message(span: &Span) -> OtlpSpan {
    let context = &span.context;
    // The bits that the trace flags don't use say whether the parent is in another process.
    let mut flags = u32::from(context.flags) | SpanFlags::ContextHasIsRemoteMask as u32;
    if context.parent_is_remote {
        flags |= SpanFlags::ContextIsRemoteMask as u32;
    }
    OtlpSpan {
        trace_id: context.trace_id.to_vec(),
        span_id: context.span_id.to_vec(),
        trace_state: context.trace_state.as_deref().unwrap_or_default().to_owned(),
        parent_span_id: context.parent.map(|id| id.to_vec()).unwrap_or_default(),
        flags,
        name: (*span.name).to_owned(),
        kind: match span.kind {
            Kind::Client => SpanKind::Client,
            Kind::Server => SpanKind::Server,
        } as i32,
        start_time_unix_nano: span.start_unix_ns,
        end_time_unix_nano: span.end_unix_ns,
        attributes: key_values(&span.attributes),
        dropped_attributes_count: span.dropped_attributes,
        status: Some(match &span.status {
            Status::Unset => OtlpStatus::default(),
            Status::Error(message) => OtlpStatus {
                code: StatusCode::Error as i32,
                message: message.as_deref().unwrap_or_default().to_owned(),
            },
        }),
        ..OtlpSpan::default()
    }
}

fn key_values(attributes: &[(Key, Value)]) -> Vec<KeyValue> {
    attributes
        .iter()
        .map(|(key, value)| KeyValue {
            key: key.to_string(),
            value: Some(any(value)),
            ..KeyValue::default()
        })
        .collect()
}

pub(super) fn any(value: &Value) -> AnyValue {
    let value = match value {
        Value::Str(s) => Any::StringValue(s.to_string()),
        Value::Shared(s) => Any::StringValue((**s).to_owned()),
        Value::Int(i) => Any::IntValue(*i),
        Value::Double(d) => Any::DoubleValue(*d),
        Value::Bool(b) => Any::BoolValue(*b),
        Value::Strings(list) => Any::ArrayValue(ArrayValue {
            values: list
                .iter()
                .map(|s| AnyValue {
                    value: Some(Any::StringValue((**s).to_owned())),
                })
                .collect(),
        }),
    };
    AnyValue { value: Some(value) }
}
