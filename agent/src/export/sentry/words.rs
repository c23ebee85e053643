//! A span in Sentry's words: operation, status, source of its name, platform
//! (develop.sentry.dev, "Span Operations", "Trace Context", "Transaction
//! Annotations"). Says nothing where Sentry has no word.

use crate::attribute::Value;
use crate::discover::Resource;
use crate::span::conventions::{OTHER, key};
use crate::span::{Kind, Span, Status};

/// `span.op`.
pub fn op(span: &Span) -> &'static str {
    let rpc = span.attribute(key::RPC_SYSTEM_NAME).and_then(Value::as_str);
    match (rpc, span.kind) {
        (Some("grpc"), Kind::Server) => "grpc.server",
        (Some("grpc"), Kind::Client) => "grpc.client",
        (Some(_), Kind::Server) => "rpc.server",
        (Some(_), Kind::Client) => "rpc.client",
        (None, Kind::Server) => "http.server",
        (None, Kind::Client) => "http.client",
    }
}

/// `origin`: what made the span.
pub fn origin(span: &Span) -> &'static str {
    match span.attribute(key::RPC_SYSTEM_NAME) {
        Some(_) => "auto.rpc.tracewire",
        None => "auto.http.tracewire",
    }
}

/// `transaction_info.source`: `route` where the name is one of few.
pub fn source(span: &Span) -> &'static str {
    let method = span.attribute(key::RPC_METHOD).and_then(Value::as_str);
    let named = match method {
        Some(method) => method != OTHER,
        None => span.attribute(key::HTTP_ROUTE).is_some() || span.attribute(key::URL_TEMPLATE).is_some(),
    };
    if named { "route" } else { "custom" }
}

/// `status`, if how it ended is known.
pub fn status(span: &Span) -> Option<&'static str> {
    if let Some(code) = span.attribute(key::RPC_STATUS_CODE).and_then(Value::as_str) {
        return Some(of_code(code));
    }
    if let Some(Value::Bool(true)) = span.attribute(key::CANCELLED) {
        return Some("cancelled");
    }
    if let Some(Value::Int(code)) = span.attribute(key::HTTP_RESPONSE_STATUS_CODE) {
        return Some(of_http(*code));
    }
    match span.status {
        Status::Error(_) => Some("internal_error"),
        Status::Unset => None,
    }
}

/// gRPC's and Connect's codes, one to one.
fn of_code(code: &str) -> &'static str {
    match code.to_ascii_lowercase().as_str() {
        "ok" => "ok",
        "cancelled" | "canceled" => "cancelled",
        "invalid_argument" => "invalid_argument",
        "deadline_exceeded" => "deadline_exceeded",
        "not_found" => "not_found",
        "already_exists" => "already_exists",
        "permission_denied" => "permission_denied",
        "resource_exhausted" => "resource_exhausted",
        "failed_precondition" => "failed_precondition",
        "aborted" => "aborted",
        "out_of_range" => "out_of_range",
        "unimplemented" => "unimplemented",
        "internal" => "internal_error",
        "unavailable" => "unavailable",
        "data_loss" => "data_loss",
        "unauthenticated" => "unauthenticated",
        _ => "unknown_error",
    }
}

fn of_http(code: i64) -> &'static str {
    match code {
        ..=399 => "ok",
        401 => "unauthenticated",
        403 => "permission_denied",
        404 => "not_found",
        409 => "already_exists",
        413 => "failed_precondition",
        429 => "resource_exhausted",
        499 => "cancelled",
        400..=498 => "invalid_argument",
        501 => "unimplemented",
        503 => "unavailable",
        504 => "deadline_exceeded",
        _ => "internal_error",
    }
}

/// What an error is called: the status code, or else how the connection failed.
pub fn fault(span: &Span) -> String {
    for key in [key::RPC_STATUS_CODE, key::HTTP_RESPONSE_STATUS_CODE, key::ERROR_TYPE] {
        match span.attribute(key) {
            Some(Value::Int(code)) => return code.to_string(),
            Some(value) => {
                if let Some(text) = value.as_str() {
                    return text.to_owned();
                }
            }
            None => {}
        }
    }
    "unknown".to_owned()
}

/// Protocol as a person calls it, for the title of an issue.
pub fn protocol(span: &Span) -> &'static str {
    match span.attribute(key::RPC_SYSTEM_NAME).and_then(Value::as_str) {
        Some("grpc") => "gRPC",
        Some("connectrpc") => "Connect",
        Some(_) => "RPC",
        None => "HTTP",
    }
}

/// `platform`: decides how the product shows the project.
pub fn platform(resource: &Resource) -> &'static str {
    let runtime = text(resource, "process.runtime.name")
        .or_else(|| text(resource, "telemetry.sdk.language"))
        .unwrap_or_default();
    match runtime {
        "go" | "gc" => "go",
        "python" | "cpython" | "pypy" => "python",
        "node" | "nodejs" => "node",
        "java" | "jvm" | "OpenJDK Runtime Environment" => "java",
        "ruby" => "ruby",
        "php" => "php",
        "dotnet" | ".NET" => "csharp",
        _ => "other",
    }
}

/// A string of the resource.
pub fn text<'a>(resource: &'a Resource, key: &str) -> Option<&'a str> {
    resource
        .attributes
        .iter()
        .find(|(k, _)| k == key)
        .and_then(|(_, value)| value.as_str())
        .filter(|text| !text.is_empty())
}
