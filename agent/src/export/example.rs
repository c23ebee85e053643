//! Spans for the tests of this room.

use std::sync::Arc;

use crate::attribute::Value;
use crate::discover::Resource;
use crate::span::{Kind, Span, SpanContext, Status};

/// 2026-09-21, unix ns.
pub const START: u64 = 1_790_000_000_000_000_000;

/// The resource of a service.
pub fn resource(id: u64, name: &str) -> Arc<Resource> {
    Arc::new(Resource {
        id,
        service_name: name.into(),
        attributes: vec![
            ("service.name".into(), Value::Shared(name.into())),
            ("process.pid".into(), Value::Int(4711)),
        ],
    })
}

/// A SERVER span of 12 ms of the service `greeter`.
pub fn server(trace: u128, id: u64, parent: Option<u64>) -> Span {
    Span {
        context: SpanContext {
            trace_id: trace.to_be_bytes(),
            span_id: id.to_be_bytes(),
            parent: parent.map(u64::to_be_bytes),
            ..SpanContext::default()
        },
        name: "helloworld.Greeter/SayHello".into(),
        kind: Kind::Server,
        start_unix_ns: START,
        end_unix_ns: START + 12_000_000,
        status: Status::Unset,
        attributes: vec![
            ("rpc.system.name".into(), Value::Str("grpc".into())),
            ("rpc.method".into(), Value::Shared("helloworld.Greeter/SayHello".into())),
            ("server.port".into(), Value::Int(50051)),
        ],
        dropped_attributes: 0,
        sentry_head: None,
        resource: resource(1, "greeter"),
    }
}
