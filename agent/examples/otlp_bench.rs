//! What one span costs on its way to OTLP bytes: the SDK's `SpanData` and its
//! conversion against building the protobuf messages directly.
//! `cargo run --release -p tracewire --example otlp_bench`
#![allow(clippy::unwrap_used, missing_docs, reason = "a measurement, not part of the agent")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use opentelemetry::trace::{SpanId, SpanKind, Status as SdkStatus, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use prost::Message;
use tracewire::attribute::Value;
use tracewire::discover::Resource;
use tracewire::export::Exporter as _;
use tracewire::export::json::JsonExporter;
use tracewire::span::{Kind, Span, SpanContext, Status};

const BATCH: usize = 512;

fn spans(resource: &Arc<Resource>) -> Vec<Span> {
    (0..BATCH as u64)
        .map(|i| Span {
            context: SpanContext {
                trace_id: (0x1234_5678_9abc_def0_u128 << 64 | u128::from(i + 1)).to_be_bytes(),
                span_id: (i + 1).to_be_bytes(),
                parent: Some((i + 7).to_be_bytes()),
                parent_is_remote: true,
                flags: 3,
                trace_state: None,
            },
            name: "helloworld.Greeter/SayHello".into(),
            kind: Kind::Server,
            start_unix_ns: 1_790_000_000_000_000_000 + i,
            end_unix_ns: 1_790_000_000_001_000_000 + i,
            status: Status::Unset,
            attributes: vec![
                ("rpc.system.name".into(), Value::Str("grpc".into())),
                ("rpc.method".into(), Value::Shared("helloworld.Greeter/SayHello".into())),
                ("rpc.status_code".into(), Value::Str("OK".into())),
                ("server.address".into(), Value::Shared("greeter.default.svc".into())),
                ("server.port".into(), Value::Int(50051)),
                ("network.peer.address".into(), Value::Shared("10.1.2.3".into())),
                ("network.peer.port".into(), Value::Int(41234)),
                ("network.protocol.version".into(), Value::Str("2".into())),
                ("network.transport".into(), Value::Str("tcp".into())),
                ("user_agent.original".into(), Value::Shared("grpc-go/1.71.0".into())),
            ],
            dropped_attributes: 0,
            sentry_head: None,
            resource: resource.clone(),
        })
        .collect()
}

fn sdk_value(value: &Value) -> opentelemetry::Value {
    match value {
        Value::Str(s) => opentelemetry::Value::String(s.clone().into()),
        Value::Shared(s) => opentelemetry::Value::String(s.clone().into()),
        Value::Int(i) => (*i).into(),
        Value::Double(d) => (*d).into(),
        Value::Bool(b) => (*b).into(),
        Value::Strings(_) => unreachable!(),
    }
}

fn span_data(span: &Span, scope: &InstrumentationScope) -> SpanData {
    SpanData {
        span_context: opentelemetry::trace::SpanContext::new(
            TraceId::from_bytes(span.context.trace_id),
            SpanId::from_bytes(span.context.span_id),
            TraceFlags::new(span.context.flags),
            false,
            TraceState::NONE,
        ),
        parent_span_id: SpanId::from_bytes(span.context.parent.unwrap_or_default()),
        parent_span_is_remote: span.context.parent_is_remote,
        span_kind: SpanKind::Server,
        name: span.name.to_string().into(),
        start_time: UNIX_EPOCH + Duration::from_nanos(span.start_unix_ns),
        end_time: UNIX_EPOCH + Duration::from_nanos(span.end_unix_ns),
        attributes: span
            .attributes
            .iter()
            .map(|(k, v)| KeyValue::new(k.clone(), sdk_value(v)))
            .collect(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: SdkStatus::Unset,
        instrumentation_scope: scope.clone(),
    }
}

fn measure(name: &str, mut batch: impl FnMut() -> usize) {
    for _ in 0..50 {
        batch();
    }
    let mut best = Duration::MAX;
    let mut bytes = 0;
    for _ in 0..20 {
        let start = Instant::now();
        for _ in 0..20 {
            bytes = black_box(batch());
        }
        best = best.min(start.elapsed());
    }
    println!(
        "{name:40} {:7.0} ns a span, {} bytes a span",
        best.as_nanos() as f64 / (20 * BATCH) as f64,
        bytes / BATCH
    );
}

fn main() {
    let resource = Arc::new(Resource {
        id: 1,
        service_name: "greeter".into(),
        attributes: vec![
            ("service.name".into(), Value::Shared("greeter".into())),
            ("process.pid".into(), Value::Int(4711)),
        ],
    });
    let spans = spans(&resource);
    let scope = InstrumentationScope::builder("tracewire").build();
    let sdk_resource: ResourceAttributesWithSchema = (&opentelemetry_sdk::Resource::builder_empty()
        .with_service_name("greeter")
        .build())
        .into();

    measure("SpanData, gRPC (clones each attempt)", || {
        let batch: Vec<SpanData> = spans.iter().map(|s| span_data(s, &scope)).collect();
        let resource_spans = group_spans_by_resource_and_scope(batch.clone(), &sdk_resource);
        ExportTraceServiceRequest { resource_spans }.encode_to_vec().len()
    });
    measure("SpanData, HTTP (moves)", || {
        let batch: Vec<SpanData> = spans.iter().map(|s| span_data(s, &scope)).collect();
        let resource_spans = group_spans_by_resource_and_scope(batch, &sdk_resource);
        ExportTraceServiceRequest { resource_spans }.encode_to_vec().len()
    });
    measure("opentelemetry-proto messages", || {
        tracewire::export::otlp::request(&spans).encode_to_vec().len()
    });
    measure("encoded directly (used)", || {
        tracewire::export::otlp::encoded(&spans).len()
    });
    let mut json = JsonExporter::new(std::io::sink(), Arc::default());
    measure("JSON lines", || {
        json.export(&spans);
        0
    });
}
