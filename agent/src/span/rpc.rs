//! Spans of gRPC, gRPC-Web and ConnectRPC (semantic conventions 1.45,
//! `docs/rpc/rpc-spans.md`, `grpc.md`, `connect-rpc.md`). A status that was
//! not on the wire is given only where gRPC itself says what stands for it.

use std::borrow::Cow;
use std::sync::Arc;

use percent_encoding::percent_decode_str;
use rustc_hash::FxHashMap;

use super::Status;
use super::build::{Builder, Draft};
use super::conventions::{OTHER, key, prefix};
use super::status::{self, Code, h2};
use super::url::{bare, cut};
use crate::attribute::Value;
use crate::discover::Resource;
use crate::privacy::Policy;
use crate::request::{Exchange, Outcome, Protocol, Role, Seen, Version};

/// Methods of one service (and role) that get a name of their own.
const METHOD_LIMIT: usize = 2048;
/// Services (and roles) whose methods are remembered.
const SERVICE_LIMIT: usize = 1024;
/// Longest method name, bytes.
const METHOD_LENGTH: usize = 512;
/// Longest status description, bytes.
const DESCRIPTION_LENGTH: usize = 1024;

/// What the end of a call says.
#[derive(Debug, Default)]
struct Verdict {
    code: Option<&'static str>,
    /// `grpc-status` or what stands for it.
    number: Option<u32>,
    /// `error.type`, iff the call failed.
    error: Option<Cow<'static, str>>,
    description: Option<Arc<str>>,
    /// The status may have been there, unread.
    unseen: bool,
    evidence: Evidence,
}

/// What a call tells of its method.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd)]
enum Evidence {
    /// Nothing, or that it is not implemented.
    #[default]
    None,
    /// It ended in a known way that is not UNIMPLEMENTED.
    Called,
    /// The server answered for it.
    Answered,
}

impl Verdict {
    fn of_code(code: Code, role: Role, error_type: &'static str) -> Self {
        Verdict {
            code: Some(code.name()),
            number: Some(code.number().into()),
            error: code.is_error(role).then_some(Cow::Borrowed(error_type)),
            evidence: if code == Code::UNIMPLEMENTED {
                Evidence::None
            } else {
                Evidence::Called
            },
            ..Verdict::default()
        }
    }

    fn failure(error_type: impl Into<Cow<'static, str>>) -> Self {
        Verdict {
            error: Some(error_type.into()),
            evidence: Evidence::Called,
            ..Verdict::default()
        }
    }

    fn unseen() -> Self {
        Verdict {
            unseen: true,
            ..Verdict::default()
        }
    }

    fn describe(mut self, text: Option<Arc<str>>) -> Self {
        self.description = text;
        self
    }
}

impl Builder {
    /// Fills in the span of a call.
    pub(super) fn rpc(&mut self, exchange: &Exchange, resource: &Resource, draft: &mut Draft) {
        let connect = exchange.protocol == Protocol::Connect;
        let system = if connect { "connectrpc" } else { "grpc" };
        let mut verdict = if connect {
            connect_verdict(exchange)
        } else {
            grpc_verdict(exchange)
        };
        if exchange.response_messages.count > 0 {
            verdict.evidence = Evidence::Answered;
        }
        draft.text(key::RPC_SYSTEM_NAME, system);

        match &exchange.request.path {
            Seen::Value(path) => {
                let path = bare(path);
                match self.methods.name(
                    &resource.service_name,
                    exchange.role,
                    path,
                    verdict.evidence,
                    &self.privacy,
                ) {
                    Some(method) => {
                        draft.put(key::RPC_METHOD, Value::Shared(Arc::clone(&method.name)));
                        if self.conventions.rpc_dup
                            && let Some(service) = method.service
                        {
                            draft.put(key::OLD_RPC_SERVICE, Value::Shared(service));
                        }
                        draft.name = method.name;
                    }
                    None => {
                        draft.text(key::RPC_METHOD, OTHER);
                        let original = cut(path.strip_prefix('/').unwrap_or(path), METHOD_LENGTH);
                        draft.put(
                            key::RPC_METHOD_ORIGINAL,
                            Value::Shared(self.privacy.exact(original).into()),
                        );
                        draft.name = self.methods.system(connect);
                    }
                }
            }
            seen => {
                draft.text(key::RPC_METHOD, OTHER);
                draft.name = self.methods.system(connect);
                if seen.is_unknown() {
                    draft.unseen(key::RPC_METHOD);
                }
            }
        }

        if let Some(code) = verdict.code {
            draft.text(key::RPC_STATUS_CODE, code);
        }
        if verdict.unseen {
            draft.unseen(key::RPC_STATUS_CODE);
        }
        if self.conventions.rpc_dup {
            draft.text(key::OLD_RPC_SYSTEM, if connect { "connect_rpc" } else { "grpc" });
            if let Some(number) = verdict.number {
                draft.put(key::OLD_RPC_GRPC_STATUS_CODE, Value::Int(number.into()));
            }
        }
        if let Some(error) = verdict.error {
            draft.put(key::ERROR_TYPE, Value::Str(error));
            draft.status = Status::Error(verdict.description.map(|text| self.privacy.free_shared(&text)));
        }
        if let Some(host) = self.server(exchange, &exchange.request.authority, draft) {
            draft.host(host);
        }
        self.peer(exchange, draft);
        if counts_messages(exchange) {
            let (request, response) = (exchange.request_messages, exchange.response_messages);
            draft.put(key::REQUEST_MESSAGES, Value::Int(request.count.into()));
            draft.put(
                key::REQUEST_BYTES,
                Value::Int(i64::try_from(request.bytes).unwrap_or(i64::MAX)),
            );
            draft.put(key::RESPONSE_MESSAGES, Value::Int(response.count.into()));
            draft.put(
                key::RESPONSE_BYTES,
                Value::Int(i64::try_from(response.bytes).unwrap_or(i64::MAX)),
            );
        }
        draft.captured(prefix::RPC_REQUEST_METADATA, &exchange.request.captured, &self.privacy);
        draft.captured(
            prefix::RPC_RESPONSE_METADATA,
            &exchange.response.captured,
            &self.privacy,
        );
    }
}

fn grpc_verdict(exchange: &Exchange) -> Verdict {
    let role = exchange.role;
    if exchange.outcome == Outcome::Unfinished {
        return Verdict::default();
    }
    match exchange.response.grpc_status {
        Seen::Unknown => return Verdict::unseen(),
        Seen::Value(number) => {
            let code = Code::from_wire(number);
            let mut verdict = Verdict::of_code(code, role, code.name());
            verdict.number = Some(number);
            if code != Code::UNIMPLEMENTED {
                verdict.evidence = Evidence::Answered;
            }
            if verdict.error.is_some() {
                verdict.description = message(&exchange.response.grpc_message, code);
            }
            return verdict;
        }
        Seen::Absent => {}
    }
    // Without grpc-status. A status other than 200 decides, however the stream ended after it.
    if let Seen::Value(status) = exchange.response.status
        && status >= 300
    {
        let code = Code::from_http(status);
        return Verdict::of_code(code, role, code.name()).describe(Some(format!("HTTP status {status}").into()));
    }
    match exchange.outcome {
        // Its trailers are in the body: over HTTP/1, compressed or as text they are not read.
        Outcome::Complete if exchange.protocol == Protocol::GrpcWeb => Verdict::unseen(),
        Outcome::Complete => match exchange.response.status {
            // gRPC doc/http-grpc-status-mapping.md: "200 is UNKNOWN because there should be a
            // grpc-status in case of truly OK response."
            Seen::Value(_) => Verdict::of_code(Code::UNKNOWN, role, Code::UNKNOWN.name())
                .describe(Some("response ended without grpc-status".into())),
            _ => Verdict::unseen(),
        },
        Outcome::Reset { code: h2::CANCEL, .. } => match &exchange.request.grpc_timeout {
            // Whether it was the deadline can't be told.
            Seen::Unknown => {
                let error = (role == Role::Client).then(|| Cow::Borrowed(status::reset_type(h2::CANCEL)));
                Verdict {
                    error,
                    unseen: true,
                    evidence: Evidence::Called,
                    ..Verdict::default()
                }
            }
            timeout => {
                let elapsed = exchange.end_ns.saturating_sub(exchange.start_ns);
                let expired = timeout
                    .value()
                    .and_then(|t| status::timeout_ns(t))
                    .is_some_and(|limit| status::is_deadline(elapsed, limit));
                let code = if expired {
                    Code::DEADLINE_EXCEEDED
                } else {
                    Code::CANCELLED
                };
                Verdict::of_code(code, role, code.name())
            }
        },
        Outcome::Reset { code, .. } => match Code::from_reset(code) {
            Some(mapped) => Verdict::of_code(mapped, role, status::reset_type(code)),
            None => Verdict::failure(status::reset_type(code)),
        },
        Outcome::Refused { .. } => Verdict::of_code(Code::UNAVAILABLE, role, status::GOAWAY),
        // gRPC doc/statuscodes.md: a client whose connection breaks sees UNAVAILABLE; a server
        // has sent no status and never will.
        Outcome::ConnectionLost { error } => match role {
            Role::Client => Verdict::of_code(Code::UNAVAILABLE, role, status::connection_type(error)),
            Role::Server => Verdict::failure(status::connection_type(error)),
        },
        Outcome::Unfinished => Verdict::default(),
    }
}

/// Whether messages were counted: in HTTP/2's DATA, in gRPC's framing. gRPC-Web as text has another.
fn counts_messages(exchange: &Exchange) -> bool {
    let text = |kind: &Seen<Arc<str>>| {
        let kind = kind.value();
        kind.is_some_and(|kind| kind.starts_with("application/grpc-web-text"))
    };
    exchange.protocol != Protocol::Connect
        && exchange.version == Version::Http2
        && !exchange.request_messages.uncounted
        && !exchange.response_messages.uncounted
        && !text(&exchange.request.content_type)
        && !text(&exchange.response.content_type)
}

/// Connect protocol: a unary error is told by the HTTP status and, exactly,
/// by a JSON body that is not read; a stream's end is in its last message.
fn connect_verdict(exchange: &Exchange) -> Verdict {
    let role = exchange.role;
    match exchange.outcome {
        Outcome::Complete => {}
        Outcome::Unfinished => return Verdict::default(),
        Outcome::Reset { code: h2::CANCEL, .. } if status::by_client(role, exchange.outcome) => {
            let error = (role == Role::Client).then(|| Cow::Borrowed(status::reset_type(h2::CANCEL)));
            return Verdict {
                error,
                unseen: true,
                evidence: Evidence::Called,
                ..Verdict::default()
            };
        }
        Outcome::Reset { code, .. } => return Verdict::failure(status::reset_type(code)),
        Outcome::Refused { .. } => return Verdict::failure(status::GOAWAY),
        Outcome::ConnectionLost { error } => return Verdict::failure(status::connection_type(error)),
    }
    let answered = Verdict {
        evidence: Evidence::Answered,
        ..Verdict::default()
    };
    match exchange.response.status {
        Seen::Value(200) => match &exchange.request.content_type {
            Seen::Value(kind) if kind.starts_with("application/connect+") => Verdict {
                unseen: true,
                ..answered
            },
            Seen::Unknown => Verdict {
                unseen: true,
                ..answered
            },
            _ => answered,
        },
        Seen::Value(code) => Verdict {
            // The codes that the body and the bare HTTP status agree on (Connect protocol, Error Codes).
            code: match code {
                401 => Some("unauthenticated"),
                403 => Some("permission_denied"),
                503 => Some("unavailable"),
                _ => None,
            },
            unseen: !matches!(code, 401 | 403 | 503),
            error: (role == Role::Client || code >= 500).then(|| Cow::Owned(code.to_string())),
            evidence: if matches!(code, 404 | 501) {
                Evidence::None
            } else {
                Evidence::Answered
            },
            ..Verdict::default()
        },
        _ => Verdict::unseen(),
    }
}

/// `grpc-message`, decoded, if it says more than the code.
fn message(seen: &Seen<Arc<str>>, code: Code) -> Option<Arc<str>> {
    let raw = seen.value()?;
    let decoded = percent_decode_str(raw).decode_utf8_lossy();
    let text = decoded.trim();
    if text.is_empty() || text.eq_ignore_ascii_case(code.name()) {
        return None;
    }
    Some(cut(text, DESCRIPTION_LENGTH).into())
}

/// A method that has a name.
#[derive(Clone, Debug)]
pub(super) struct Method {
    /// `pkg.Service/Method`
    name: Arc<str>,
    /// `pkg.Service`
    service: Option<Arc<str>>,
    /// Whether a server answered for it.
    proven: bool,
}

impl Method {
    fn new(path: &str, proven: bool) -> Self {
        let name = path.strip_prefix('/').unwrap_or(path);
        let service = name.rsplit_once('/').map(|(service, _)| Arc::from(service));
        Method {
            name: name.into(),
            service,
            proven,
        }
    }
}

/// Methods that are known to be registered. The conventions ask for `_OTHER`
/// where that can't be told, so that callers can't make names; an answer other
/// than UNIMPLEMENTED tells it.
#[derive(Debug)]
pub(super) struct Methods {
    grpc: Arc<str>,
    connect: Arc<str>,
    configured: Vec<String>,
    /// By service and role, then by path with its slash.
    learned: FxHashMap<(Arc<str>, Role), FxHashMap<Box<str>, Method>>,
}

impl Methods {
    pub(super) fn new(configured: &[String]) -> Self {
        let configured = configured
            .iter()
            .map(|m| m.trim_start_matches('/').to_owned())
            .collect();
        Methods {
            grpc: "grpc".into(),
            connect: "connectrpc".into(),
            configured,
            learned: FxHashMap::default(),
        }
    }

    /// Span name of a call whose method has none.
    fn system(&self, connect: bool) -> Arc<str> {
        Arc::clone(if connect { &self.connect } else { &self.grpc })
    }

    pub(super) fn forget(&mut self, service: &str) {
        self.learned.retain(|(name, _), _| &**name != service);
    }

    fn is_configured(&self, path: &str) -> bool {
        let name = path.strip_prefix('/').unwrap_or(path);
        self.configured.iter().any(|known| match known.strip_suffix("/*") {
            Some(service) => name.strip_prefix(service).is_some_and(|rest| rest.starts_with('/')),
            None => known == name,
        })
    }

    /// The method's name, if it has one by now.
    fn name(
        &mut self,
        service: &Arc<str>,
        role: Role,
        path: &str,
        evidence: Evidence,
        privacy: &Policy,
    ) -> Option<Method> {
        let key = (Arc::clone(service), role);
        if !self.learned.contains_key(&key) && self.learned.len() >= SERVICE_LIMIT {
            self.learned.clear();
        }
        let methods = self.learned.entry(key).or_default();
        if let Some(method) = methods.get_mut(path) {
            method.proven |= evidence == Evidence::Answered;
            return (method.proven || evidence == Evidence::Called).then(|| method.clone());
        }
        let full = methods.len() >= METHOD_LIMIT;
        let configured = self.is_configured(path);
        if full || path.len() > METHOD_LENGTH || !(configured || evidence >= Evidence::Called) {
            return None;
        }
        let method = Method::new(&privacy.exact(path), configured || evidence == Evidence::Answered);
        self.learned
            .entry((Arc::clone(service), role))
            .or_default()
            .insert(path.into(), method.clone());
        Some(method)
    }
}
