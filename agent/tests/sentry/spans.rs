//! Spans as the agent makes them, for the tests.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tracewire::attribute::Value;
use tracewire::discover::Resource;
use tracewire::span::{Kind, Span, SpanContext, Status};

/// A process of that service.
pub fn resource(id: u64, service: &str) -> Arc<Resource> {
    let text = |key: &'static str, value: &str| (key.into(), Value::Shared(value.into()));
    Arc::new(Resource {
        id,
        service_name: service.into(),
        attributes: vec![
            text("service.name", service),
            text("service.version", "1.2.3"),
            text("service.namespace", "bank"),
            text("host.name", "node-1"),
            text("process.runtime.name", "go"),
            text("process.runtime.version", "go1.26"),
            text("deployment.environment.name", "staging"),
        ],
    })
}

/// A span of that trace, ended 10 s ago, `length_ms` long.
pub fn span(trace: u128, id: u64, parent: Option<u64>, kind: Kind, name: &str, resource: &Arc<Resource>) -> Span {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let end = now - 10_000_000_000 + id * 1_000_000;
    Span {
        context: SpanContext {
            trace_id: trace.to_be_bytes(),
            span_id: (0xab00 + id).to_be_bytes(),
            parent: parent.map(|p| (0xab00 + p).to_be_bytes()),
            parent_is_remote: kind == Kind::Server,
            flags: 3,
            trace_state: None,
        },
        name: name.into(),
        kind,
        start_unix_ns: end - 5_000_000 - 1_000_000 * (100 - id.min(100)),
        end_unix_ns: end,
        status: Status::Unset,
        attributes: Vec::new(),
        dropped_attributes: 0,
        sentry_head: None,
        resource: resource.clone(),
    }
}

/// Adds what a gRPC span says.
pub fn grpc(mut span: Span, status: &'static str, message: Option<&str>) -> Span {
    let name = span.name.clone();
    let text = |key: &'static str, value: &str| (key.into(), Value::Shared(value.into()));
    span.attributes = vec![
        text("rpc.system.name", "grpc"),
        text("rpc.method", &name),
        text("rpc.status_code", status),
        text("server.address", "ledger"),
        ("server.port".into(), Value::Int(50051)),
        text("network.peer.address", "10.1.2.3"),
        ("network.peer.port".into(), Value::Int(41234)),
    ];
    if status != "OK" {
        span.attributes.push(text("error.type", status));
        span.status = Status::Error(message.map(Arc::from));
    }
    span
}

/// Adds what an HTTP span says.
pub fn http(mut span: Span, method: &str, path: &str, route: Option<&str>, status: i64) -> Span {
    let text = |key: &'static str, value: &str| (key.into(), Value::Shared(value.into()));
    span.attributes = vec![
        text("http.request.method", method),
        ("http.response.status_code".into(), Value::Int(status)),
        text("url.path", path),
        text("url.scheme", "http"),
        text("server.address", "shop.example"),
        text("client.address", "203.0.113.7"),
        text("user_agent.original", "curl/8.5"),
    ];
    if let Some(route) = route {
        span.attributes.push(text("http.route", route));
    }
    if status >= 500 {
        span.attributes
            .push(("error.type".into(), Value::Shared(status.to_string().into())));
        span.status = Status::Error(None);
    }
    span
}

/// One trace through two services: a client, the ledger that it asks, and the calls that the ledger
/// makes for it, of which one fails if `status` says so.
pub fn trace(trace: u128, status: &'static str) -> Vec<Span> {
    let (web, ledger, treasury) = (resource(1, "web"), resource(2, "ledger"), resource(3, "treasury"));
    let message = (status != "OK").then_some("no vault is open");
    vec![
        grpc(
            span(trace, 4, Some(3), Kind::Server, "bank.v1.Treasury/Reserve", &treasury),
            status,
            message,
        ),
        grpc(
            span(trace, 3, Some(2), Kind::Client, "bank.v1.Treasury/Reserve", &ledger),
            status,
            message,
        ),
        grpc(
            span(trace, 5, Some(2), Kind::Client, "bank.v1.Audit/Write", &ledger),
            "OK",
            None,
        ),
        grpc(
            span(trace, 2, Some(1), Kind::Server, "bank.v1.Ledger/Transfer", &ledger),
            status,
            message,
        ),
        grpc(
            span(trace, 1, None, Kind::Client, "bank.v1.Ledger/Transfer", &web),
            status,
            message,
        ),
    ]
}
