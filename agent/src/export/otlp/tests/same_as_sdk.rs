//! The OpenTelemetry SDK's own exporter as a second opinion: given the same
//! span, it must put the same bytes on the wire.

use std::time::{Duration, UNIX_EPOCH};

use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status as SdkStatus, TraceFlags, TraceId, TraceState};
use opentelemetry::{Array, InstrumentationScope, KeyValue, StringValue, Value as SdkValue};
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};

use super::super::message;
use super::receiver::GrpcReceiver;
use super::{example, runtime};
use crate::attribute::Value;
use crate::span::{Span, Status};

fn key_value((key, value): &(crate::attribute::Key, Value)) -> KeyValue {
    let value = match value {
        Value::Str(s) => SdkValue::String(s.to_string().into()),
        Value::Shared(s) => SdkValue::String(s.clone().into()),
        Value::Int(i) => SdkValue::I64(*i),
        Value::Double(d) => SdkValue::F64(*d),
        Value::Bool(b) => SdkValue::Bool(*b),
        Value::Strings(list) => SdkValue::Array(Array::String(
            list.iter().map(|s| StringValue::from(s.clone())).collect(),
        )),
    };
    KeyValue::new(key.clone(), value)
}

fn span_data(span: &Span, scope: &InstrumentationScope) -> SpanData {
    let context = &span.context;
    let state: TraceState = context.trace_state.as_deref().unwrap_or_default().parse().unwrap();
    SpanData {
        span_context: SpanContext::new(
            TraceId::from_bytes(context.trace_id),
            SpanId::from_bytes(context.span_id),
            TraceFlags::new(context.flags),
            false,
            state,
        ),
        parent_span_id: context.parent.map_or(SpanId::INVALID, SpanId::from_bytes),
        parent_span_is_remote: context.parent_is_remote,
        span_kind: SpanKind::Server,
        name: span.name.to_string().into(),
        start_time: UNIX_EPOCH + Duration::from_nanos(span.start_unix_ns),
        end_time: UNIX_EPOCH + Duration::from_nanos(span.end_unix_ns),
        attributes: span.attributes.iter().map(key_value).collect(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: match &span.status {
            Status::Unset => SdkStatus::Unset,
            Status::Error(text) => SdkStatus::error(text.as_deref().unwrap_or_default().to_owned()),
        },
        instrumentation_scope: scope.clone(),
    }
}

#[test]
fn a_span_looks_as_if_the_sdk_had_sent_it() {
    let mut plain = example::server(7, 1, None);
    plain.resource = example::resource(3, "greeter");
    let mut full = example::server(7, 2, Some(1));
    full.resource = plain.resource.clone();
    full.context.parent_is_remote = true;
    full.context.flags = 3;
    full.context.trace_state = Some("ot=th:8,vendor=x".into());
    full.status = Status::Error(Some("no greeter".into()));
    full.attributes.push(("ratio".into(), Value::Double(0.5)));
    full.attributes.push(("flag".into(), Value::Bool(true)));
    full.attributes
        .push(("list".into(), Value::Strings(vec!["a".into(), "b".into()])));
    let spans = [plain, full];

    let runtime = runtime();
    let receiver = GrpcReceiver::start(&runtime, vec![], None);
    runtime.block_on(async {
        let mut sdk = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_endpoint(&receiver.url)
            .build()
            .unwrap();
        let attributes = spans[0].resource.attributes.iter().map(key_value);
        let resource = opentelemetry_sdk::Resource::builder_empty().with_schema_url(attributes, message::SCHEMA_URL);
        sdk.set_resource(&resource.build());
        let scope = InstrumentationScope::builder(message::SCOPE_NAME)
            .with_version(env!("CARGO_PKG_VERSION"))
            .with_schema_url(message::SCHEMA_URL)
            .build();
        sdk.export(spans.iter().map(|s| span_data(s, &scope)).collect())
            .await
            .unwrap();
    });

    let (_, mut theirs) = receiver.requests().remove(0);
    let mut ours = message::request(&spans);
    for request in [&mut theirs, &mut ours] {
        // The SDK's resource is a map: its order is none.
        for resource in request.resource_spans.iter_mut().flat_map(|r| r.resource.as_mut()) {
            resource.attributes.sort_by(|a, b| a.key.cmp(&b.key));
        }
    }
    assert_eq!(ours, theirs);
}
