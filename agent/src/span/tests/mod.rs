//! Spans of calls as a backend would show them, made from exchanges as the wire gave them.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use super::conventions::Conventions;
use super::{Builder, Kind, Span, SpanContext, Status, route};
use crate::attribute::Value;
use crate::connection::{Peer, Transport};
use crate::discover::Resource;
use crate::request::{Exchange, Messages, Outcome, Protocol, RequestHead, ResponseHead, Role, Seen, Version};

mod http;

const MS: u64 = 1_000_000;

fn value(text: &str) -> Seen<Arc<str>> {
    Seen::Value(text.into())
}

fn exchange(role: Role, protocol: Protocol) -> Exchange {
    let grpc = protocol != Protocol::Http;
    Exchange {
        pid: 7,
        role,
        peer: Arc::new(Peer {
            connection: 1,
            transport: Transport::TcpIpv4,
            local: Some(("10.0.0.1".parse().unwrap(), 50051)),
            remote: Some(("10.0.0.2".parse().unwrap(), 41000)),
        }),
        stream: 1,
        version: if grpc { Version::Http2 } else { Version::Http11 },
        protocol,
        start_ns: 1_000,
        end_ns: 1_000 + 10 * MS,
        request: RequestHead {
            method: value(if grpc { "POST" } else { "GET" }),
            path: value(if grpc {
                "/shop.v1.Cart/Add"
            } else {
                "/carts/42?coupon=secret"
            }),
            authority: value("cart.example:50051"),
            scheme: if grpc { value("http") } else { Seen::Absent },
            ..RequestHead::default()
        },
        response: ResponseHead {
            status: Seen::Value(200),
            grpc_status: if grpc { Seen::Value(0) } else { Seen::Absent },
            ..ResponseHead::default()
        },
        request_messages: Messages {
            count: 1,
            bytes: 20,
            ..Messages::default()
        },
        response_messages: Messages::default(),
        outcome: Outcome::Complete,
    }
}

fn builder() -> Builder {
    Builder::new(Conventions::default(), route::Config::default())
}

fn build(builder: &mut Builder, exchange: &Exchange) -> Span {
    let resource = Arc::new(Resource {
        id: 1,
        service_name: "cart".into(),
        attributes: Vec::new(),
    });
    builder.build(exchange, SpanContext::default(), resource, 0)
}

fn span(exchange: &Exchange) -> Span {
    build(&mut builder(), exchange)
}

fn text(span: &Span, key: &str) -> String {
    match span.attribute(key) {
        None => "-".into(),
        Some(Value::Int(n)) => n.to_string(),
        Some(Value::Bool(b)) => b.to_string(),
        Some(Value::Strings(list)) => list.join(","),
        Some(other) => other.as_str().unwrap_or("?").to_owned(),
    }
}

fn status(span: &Span) -> &str {
    match &span.status {
        Status::Unset => "unset",
        Status::Error(None) => "error",
        Status::Error(Some(text)) => text,
    }
}

#[test]
fn a_grpc_call_is_named_and_described() {
    let mut exchange = exchange(Role::Server, Protocol::Grpc);
    exchange.request.captured = vec![
        ("x-a".into(), "1".into()),
        ("x-b".into(), "3".into()),
        ("x-a".into(), "2".into()),
    ];
    let span = span(&exchange);
    assert_eq!(
        (&*span.name, span.kind, status(&span)),
        ("shop.v1.Cart/Add", Kind::Server, "unset")
    );
    for (key, expected) in [
        ("rpc.system.name", "grpc"),
        ("rpc.method", "shop.v1.Cart/Add"),
        ("rpc.status_code", "OK"),
        ("server.address", "cart.example"),
        ("server.port", "50051"),
        ("network.peer.address", "10.0.0.2"),
        ("network.peer.port", "41000"),
        ("tracewire.request.messages", "1"),
        ("tracewire.request.bytes", "20"),
        ("tracewire.response.messages", "0"),
        ("rpc.request.metadata.x-a", "1,2"),
        ("rpc.request.metadata.x-b", "3"),
        ("error.type", "-"),
        ("rpc.service", "-"),
        ("network.transport", "-"),
        ("tracewire.unseen", "-"),
    ] {
        assert_eq!(text(&span, key), expected, "{key}");
    }
}

#[test]
fn the_client_calls_every_status_an_error_the_server_only_its_own() {
    for (number, name, server) in [
        (0, "OK", "unset"),
        (5, "NOT_FOUND", "unset"),
        (1, "CANCELLED", "unset"),
        (13, "INTERNAL", "error"),
        (99, "UNKNOWN", "error"),
    ] {
        for role in [Role::Client, Role::Server] {
            let mut exchange = exchange(role, Protocol::Grpc);
            exchange.response.grpc_status = Seen::Value(number);
            let span = span(&exchange);
            let expected = if role == Role::Client && number != 0 {
                "error"
            } else {
                server
            };
            assert_eq!(status(&span), expected, "{number} {role:?}");
            assert_eq!(text(&span, "rpc.status_code"), name);
            assert_eq!(text(&span, "error.type"), if expected == "error" { name } else { "-" });
        }
    }
}

#[test]
fn the_description_is_the_message_and_never_the_code_again() {
    for (message, expected) in [
        ("card%20declined%3A%20%C3%A9", "card declined: é"),
        ("INTERNAL", "error"),
        ("internal", "error"),
        ("", "error"),
        ("50%", "50%"),
    ] {
        let mut exchange = exchange(Role::Server, Protocol::Grpc);
        exchange.response.grpc_status = Seen::Value(13);
        exchange.response.grpc_message = value(message);
        assert_eq!(status(&span(&exchange)), expected);
    }
    let mut fine = exchange(Role::Server, Protocol::Grpc);
    fine.response.grpc_message = value("all well");
    assert_eq!(status(&span(&fine)), "unset");
}

#[test]
fn ends_without_a_status() {
    use Outcome::*;
    let lost = |error| ConnectionLost { error };
    let reset = |local, code| Reset { local, code };
    // role, outcome, :status, timeout, → code, error.type, status
    for (role, outcome, http, timeout, code, error, shown) in [
        (
            Role::Client,
            Complete,
            200,
            "",
            "UNKNOWN",
            "UNKNOWN",
            "response ended without grpc-status",
        ),
        (
            Role::Client,
            Complete,
            503,
            "",
            "UNAVAILABLE",
            "UNAVAILABLE",
            "HTTP status 503",
        ),
        (
            Role::Client,
            Complete,
            431,
            "",
            "INTERNAL",
            "INTERNAL",
            "HTTP status 431",
        ),
        (
            Role::Client,
            reset(true, 8),
            503,
            "",
            "UNAVAILABLE",
            "UNAVAILABLE",
            "HTTP status 503",
        ),
        (
            Role::Client,
            reset(true, 8),
            0,
            "10m",
            "DEADLINE_EXCEEDED",
            "DEADLINE_EXCEEDED",
            "error",
        ),
        (
            Role::Server,
            reset(false, 8),
            0,
            "11m",
            "DEADLINE_EXCEEDED",
            "DEADLINE_EXCEEDED",
            "error",
        ),
        (
            Role::Server,
            reset(true, 8),
            0,
            "10m",
            "DEADLINE_EXCEEDED",
            "DEADLINE_EXCEEDED",
            "error",
        ),
        (Role::Client, reset(true, 8), 0, "1S", "CANCELLED", "CANCELLED", "error"),
        (Role::Server, reset(false, 8), 0, "1S", "CANCELLED", "-", "unset"),
        (Role::Client, reset(true, 8), 0, "", "CANCELLED", "CANCELLED", "error"),
        (
            Role::Client,
            reset(false, 7),
            0,
            "",
            "UNAVAILABLE",
            "stream_reset_7",
            "error",
        ),
        (
            Role::Client,
            reset(false, 11),
            0,
            "",
            "RESOURCE_EXHAUSTED",
            "stream_reset_11",
            "error",
        ),
        (
            Role::Client,
            reset(false, 12),
            0,
            "",
            "PERMISSION_DENIED",
            "stream_reset_12",
            "error",
        ),
        (
            Role::Client,
            reset(false, 2),
            0,
            "",
            "INTERNAL",
            "stream_reset_2",
            "error",
        ),
        (
            Role::Client,
            reset(false, 77),
            0,
            "",
            "INTERNAL",
            "stream_reset",
            "error",
        ),
        (Role::Client, reset(false, 5), 0, "", "-", "stream_reset_5", "error"),
        (
            Role::Client,
            Refused { code: 0 },
            0,
            "",
            "UNAVAILABLE",
            "goaway",
            "error",
        ),
        (
            Role::Client,
            lost(104),
            0,
            "",
            "UNAVAILABLE",
            "connection_reset",
            "error",
        ),
        (
            Role::Client,
            lost(0),
            0,
            "",
            "UNAVAILABLE",
            "connection_closed",
            "error",
        ),
        (Role::Server, lost(104), 0, "", "-", "connection_reset", "error"),
        (Role::Server, Unfinished, 200, "", "-", "-", "unset"),
    ] {
        let mut exchange = exchange(role, Protocol::Grpc);
        exchange.outcome = outcome;
        exchange.response.grpc_status = Seen::Absent;
        exchange.response.status = if http == 0 { Seen::Absent } else { Seen::Value(http) };
        exchange.request.grpc_timeout = if timeout.is_empty() {
            Seen::Absent
        } else {
            value(timeout)
        };
        let span = span(&exchange);
        let got = (
            text(&span, "rpc.status_code"),
            text(&span, "error.type"),
            status(&span).to_owned(),
        );
        assert_eq!(
            got,
            (code.to_owned(), error.to_owned(), shown.to_owned()),
            "{role:?} {outcome:?} {http} {timeout}"
        );
        let unfinished = if outcome == Unfinished { "true" } else { "-" };
        assert_eq!(text(&span, "tracewire.unfinished"), unfinished);
    }
}

#[test]
fn what_was_not_seen_is_not_made_up() {
    let mut exchange = exchange(Role::Client, Protocol::Grpc);
    exchange.response.grpc_status = Seen::Unknown;
    exchange.response.status = Seen::Value(503);
    exchange.request.path = Seen::Unknown;
    exchange.request.authority = Seen::Unknown;
    let span = span(&exchange);
    assert_eq!((&*span.name, status(&span)), ("grpc", "unset"));
    assert_eq!(text(&span, "rpc.method"), "_OTHER");
    assert_eq!(text(&span, "rpc.method_original"), "-");
    assert_eq!(text(&span, "rpc.status_code"), "-");
    assert_eq!(text(&span, "server.address"), "-");
    assert_eq!(
        text(&span, "tracewire.unseen"),
        "rpc.method,rpc.status_code,server.address"
    );

    // An unread deadline leaves open which of two codes a cancel means.
    let mut cancelled = self::exchange(Role::Server, Protocol::Grpc);
    cancelled.outcome = Outcome::Reset { local: false, code: 8 };
    cancelled.response = ResponseHead::default();
    cancelled.request.grpc_timeout = Seen::Unknown;
    let span = self::span(&cancelled);
    assert_eq!(
        (status(&span), &*text(&span, "tracewire.unseen")),
        ("unset", "rpc.status_code")
    );
}

#[test]
fn a_method_has_a_name_once_a_server_answered_for_it() {
    let mut builder = builder();
    let mut missing = exchange(Role::Server, Protocol::Grpc);
    missing.response.grpc_status = Seen::Value(12);
    let span = build(&mut builder, &missing);
    assert_eq!((&*span.name, &*text(&span, "rpc.method")), ("grpc", "_OTHER"));
    assert_eq!(text(&span, "rpc.method_original"), "shop.v1.Cart/Add");
    assert_eq!(text(&span, "error.type"), "UNIMPLEMENTED");

    build(&mut builder, &exchange(Role::Server, Protocol::Grpc));
    let span = build(&mut builder, &missing);
    assert_eq!(&*span.name, "shop.v1.Cart/Add", "learned from an answer");
    assert_eq!(text(&span, "rpc.method_original"), "-");

    // Given up before an answer: named, but not proven.
    missing.request.path = value("/shop.v1.Cart/Slow");
    let mut slow = missing.clone();
    slow.response = ResponseHead::default();
    slow.outcome = Outcome::Reset { local: false, code: 8 };
    assert_eq!(&*build(&mut builder, &slow).name, "shop.v1.Cart/Slow");
    assert_eq!(&*build(&mut builder, &missing).name, "grpc");

    let conventions = Conventions {
        rpc_methods: vec!["shop.v1.Cart/*".into()],
        ..Conventions::default()
    };
    let mut builder = Builder::new(conventions, route::Config::default());
    assert_eq!(&*build(&mut builder, &missing).name, "shop.v1.Cart/Slow", "configured");
}

#[test]
fn callers_cannot_make_names_without_end() {
    let mut builder = builder();
    let mut names = std::collections::HashSet::new();
    for i in 0..5000 {
        let mut exchange = exchange(Role::Server, Protocol::Grpc);
        exchange.request.path = value(&format!("/a.B/M{i}"));
        names.insert(build(&mut builder, &exchange).name);
    }
    assert_eq!(names.len(), 2049);
}

#[test]
fn old_names_on_demand() {
    let conventions = Conventions {
        rpc_dup: true,
        ..Conventions::default()
    };
    let mut exchange = exchange(Role::Client, Protocol::GrpcWeb);
    exchange.response.grpc_status = Seen::Value(5);
    let span = build(&mut Builder::new(conventions, route::Config::default()), &exchange);
    assert_eq!(text(&span, "rpc.system"), "grpc");
    assert_eq!(text(&span, "rpc.service"), "shop.v1.Cart");
    assert_eq!(text(&span, "rpc.grpc.status_code"), "5");
    assert_eq!(text(&span, "rpc.method"), "shop.v1.Cart/Add");
}

#[test]
fn connect_is_judged_by_its_http_status() {
    for (http, kind, role, code, error, unseen) in [
        (200, "application/proto", Role::Client, "-", "-", "-"),
        (
            200,
            "application/connect+proto",
            Role::Client,
            "-",
            "-",
            "rpc.status_code",
        ),
        (503, "application/proto", Role::Server, "unavailable", "503", "-"),
        (404, "application/proto", Role::Client, "-", "404", "rpc.status_code"),
        (404, "application/proto", Role::Server, "-", "-", "rpc.status_code"),
    ] {
        let mut exchange = exchange(role, Protocol::Connect);
        exchange.response = ResponseHead {
            status: Seen::Value(http),
            ..ResponseHead::default()
        };
        exchange.request.content_type = value(kind);
        let span = span(&exchange);
        let got = ["rpc.status_code", "error.type", "tracewire.unseen"].map(|key| text(&span, key));
        assert_eq!(got, [code, error, unseen].map(str::to_owned), "{http} {kind} {role:?}");
        assert_eq!(text(&span, "rpc.system.name"), "connectrpc");
        assert_eq!(&*span.name, if http == 404 { "connectrpc" } else { "shop.v1.Cart/Add" });
    }
}

#[test]
fn times_are_unix_times_in_order() {
    let mut exchange = exchange(Role::Server, Protocol::Grpc);
    exchange.end_ns = 500;
    let resource = Arc::new(Resource::default());
    let span = builder().build(&exchange, SpanContext::default(), resource, 7);
    assert_eq!((span.start_unix_ns, span.end_unix_ns), (1007, 1007));
}
