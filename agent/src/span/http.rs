//! Spans of HTTP (semantic conventions 1.45, `docs/http/http-spans.md`). The
//! query never shows unless asked for, values in the path that look private are redacted.
//!
//! Deviation, chosen with [`route::Mode`](super::route::Mode): the
//! conventions leave `http.route` empty where no framework gives one; an
//! agent below the framework would have no names then, so it learns them.

use std::borrow::Cow;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use rustc_hash::FxHasher;

use super::Status;
use super::build::{Builder, Draft};
use super::conventions::{OTHER, key, prefix};
use super::route::Named;
use super::status::{self, h2};
use super::url::{self, Host, PATH_LIMIT, Target, cut};
use crate::attribute::Value;
use crate::connection::Transport;
use crate::discover::Resource;
use crate::privacy::{self, Query};
use crate::request::{Exchange, Outcome, Role, Seen, Version};

/// Longest `user_agent.original`, bytes.
const USER_AGENT_LENGTH: usize = 512;
/// Longest `http.request.method_original`, bytes.
const METHOD_LENGTH: usize = 64;

impl Builder {
    /// Fills in the span of an HTTP exchange.
    pub(super) fn http(&mut self, exchange: &Exchange, resource: &Resource, draft: &mut Draft) {
        let server = exchange.role == Role::Server;
        let request = &exchange.request;
        let method = self.method(exchange, draft);
        if let Seen::Value(code) = exchange.response.status {
            draft.put(key::HTTP_RESPONSE_STATUS_CODE, Value::Int(code.into()));
        }
        outcome(exchange, draft);

        let target = match &request.path {
            Seen::Value(target) => Target::parse(target),
            Seen::Unknown => {
                draft.unseen(key::URL_PATH);
                Target {
                    scheme: None,
                    authority: None,
                    path: None,
                }
            }
            Seen::Absent => Target {
                scheme: None,
                authority: None,
                path: None,
            },
        };
        let host = self.origin(exchange, &target, draft);
        let named = match target.path {
            Some(path) if path.len() <= PATH_LIMIT => {
                let service = service(resource, exchange.role, host.as_ref());
                let word = request.method.value().map_or("", |m| &**m);
                // What is not there must not teach: probes of a scanner would become routes.
                let learn = !matches!(
                    exchange.response.status,
                    Seen::Value(400 | 401 | 403 | 404 | 405 | 410 | 501)
                );
                if learn {
                    self.routes.name(service, word, path)
                } else {
                    self.routes.recall(service, word, path)
                }
            }
            Some(_) => {
                draft.unseen(key::URL_PATH);
                Named::default()
            }
            None => Named::default(),
        };
        let path = match (&named.path, target.path, &request.path) {
            (Some(redacted), ..) => Some(Arc::clone(redacted)),
            (None, Some(path), _) if path.len() > PATH_LIMIT => None,
            (None, Some(path), Seen::Value(whole)) if path.len() == whole.len() => Some(Arc::clone(whole)),
            (None, path, _) => path.map(Arc::from),
        };
        let path = path.map(|path| self.privacy.own_shared(&path));
        let query = match &request.path {
            Seen::Value(target) if self.privacy.query != Query::Off => {
                url::query(target).and_then(|query| self.privacy.query(cut(query, PATH_LIMIT)))
            }
            _ => None,
        };
        let scheme = scheme(exchange, &target);
        if request.scheme.is_unknown() && scheme.is_none() && server {
            draft.unseen(key::URL_SCHEME);
        }
        if server {
            if let Some(path) = path {
                draft.put(key::URL_PATH, Value::Shared(path));
            }
            if let Some(query) = query {
                draft.put(key::URL_QUERY, Value::Shared(query.into()));
            }
            if let Some(scheme) = scheme {
                draft.put(key::URL_SCHEME, Value::Str(scheme));
            }
        } else {
            self.client_url(&target, scheme, host.as_ref(), path, query.as_deref(), draft);
        }
        if let Some(template) = named.template {
            let template = self.privacy.own_shared(&template);
            draft.name = self.names.route(method, &template);
            draft.put(
                if server { key::HTTP_ROUTE } else { key::URL_TEMPLATE },
                Value::Shared(template),
            );
        }
        for (name, value) in named.params {
            draft.param(&name, self.privacy.own_shared(&value));
        }
        if let Some(host) = host {
            draft.host(host);
        }
        self.peer(exchange, draft);
        if exchange.peer.transport == Transport::Unix {
            draft.text(key::NETWORK_TRANSPORT, "unix");
        }
        draft.text(
            key::NETWORK_PROTOCOL_VERSION,
            match exchange.version {
                Version::Http10 => "1.0",
                Version::Http11 => "1.1",
                Version::Http2 => "2",
            },
        );
        if server {
            if let Some(client) = request
                .forwarded_for
                .or(exchange.peer.remote.map(|(address, _)| address))
            {
                let client = self.address(client);
                draft.put(key::CLIENT_ADDRESS, Value::Shared(client));
            }
            if let Seen::Value(agent) = &request.user_agent {
                let short = cut(agent, USER_AGENT_LENGTH);
                let agent = if short.len() == agent.len() {
                    self.privacy.free_shared(agent)
                } else {
                    self.privacy.free(short).into()
                };
                draft.put(key::USER_AGENT_ORIGINAL, Value::Shared(agent));
            }
        }
        draft.captured(prefix::HTTP_REQUEST_HEADER, &request.captured, &self.privacy);
        draft.captured(prefix::HTTP_RESPONSE_HEADER, &exchange.response.captured, &self.privacy);
    }

    /// `http.request.method` and the name that stands until a route is known.
    fn method(&mut self, exchange: &Exchange, draft: &mut Draft) -> Option<usize> {
        match &exchange.request.method {
            Seen::Value(method) => {
                if let Some((number, name)) = self.names.method(method) {
                    draft.put(key::HTTP_REQUEST_METHOD, Value::Shared(Arc::clone(&name)));
                    draft.name = name;
                    return Some(number);
                }
                draft.text(key::HTTP_REQUEST_METHOD, OTHER);
                let original = self.privacy.free(cut(method, METHOD_LENGTH)).into();
                draft.put(key::HTTP_REQUEST_METHOD_ORIGINAL, Value::Shared(original));
            }
            _ => draft.unseen(key::HTTP_REQUEST_METHOD),
        }
        None
    }

    /// The server as the request names it: the original host before a proxy's
    /// (server side), the absolute target before the header field (RFC 9112 §3.2.2).
    fn origin(&mut self, exchange: &Exchange, target: &Target, draft: &mut Draft) -> Option<Host> {
        if exchange.role == Role::Server
            && let Some(host) = exchange
                .request
                .forwarded_host
                .as_ref()
                .and_then(|host| self.host(host))
        {
            return Some(host);
        }
        if let Some(host) = target.authority.and_then(Host::parse) {
            return Some(host);
        }
        let mut host = self.server(exchange, &exchange.request.authority, draft)?;
        if exchange.role == Role::Client && host.port.is_none() {
            // Required on clients; an authority without a port names the scheme's (RFC 9110 §4.2).
            host.port = match scheme(exchange, target).as_deref() {
                Some("http") => Some(80),
                Some("https") => Some(443),
                _ => None,
            };
        }
        Some(host)
    }

    /// `url.full`, or what is known of it.
    fn client_url(
        &mut self,
        target: &Target,
        scheme: Option<Cow<'static, str>>,
        host: Option<&Host>,
        path: Option<Arc<str>>,
        query: Option<&str>,
        draft: &mut Draft,
    ) {
        let (Some(scheme), Some(host)) = (scheme, host) else {
            draft.unseen(key::URL_FULL);
            if let Some(path) = path {
                draft.put(key::URL_PATH, Value::Shared(path));
            }
            return;
        };
        if target.path.is_some() && path.is_none() {
            draft.unseen(key::URL_FULL);
            return;
        }
        let mut full = String::with_capacity(96);
        full.push_str(&scheme);
        full.push_str("://");
        let is_v6 = host.address.contains(':');
        if is_v6 {
            full.push('[');
        }
        full.push_str(&host.address);
        if is_v6 {
            full.push(']');
        }
        if let Some(port) = host.port
            && !matches!((&*scheme, port), ("http", 80) | ("https", 443))
        {
            full.push(':');
            full.push_str(itoa(port, &mut [0; 5]));
        }
        full.push_str(path.as_deref().unwrap_or("/"));
        if let Some(query) = query {
            full.push('?');
            full.push_str(query);
        }
        draft.put(key::URL_FULL, Value::Shared(full.into()));
    }
}

/// A port's digits, without an allocation.
fn itoa(mut port: u16, buffer: &mut [u8; 5]) -> &str {
    let mut start = buffer.len();
    for place in buffer.iter_mut().rev() {
        *place = b'0' + (port % 10) as u8;
        port /= 10;
        start -= 1;
        if port == 0 {
            break;
        }
    }
    buffer
        .get(start..)
        .and_then(|digits| std::str::from_utf8(digits).ok())
        .unwrap_or("")
}

/// The scheme: as sent, else on HTTP/1 by what carries it.
fn scheme(exchange: &Exchange, target: &Target) -> Option<Cow<'static, str>> {
    let known = |scheme: &str| match scheme {
        "http" => Cow::Borrowed("http"),
        "https" => Cow::Borrowed("https"),
        other => Cow::Owned(privacy::Policy::default().exact(cut(other, 16)).into_owned()),
    };
    match (&exchange.request.scheme, target.scheme) {
        (Seen::Value(scheme), _) => Some(known(scheme)),
        (_, Some(scheme)) => Some(known(scheme)),
        (Seen::Absent, None) if exchange.version != Version::Http2 => {
            let tls = tracewire_common::tls::named(exchange.peer.connection);
            Some(Cow::Borrowed(if tls { "https" } else { "http" }))
        }
        _ => None,
    }
}

/// Whose routes these are: a service's own, or those of a server it calls.
fn service(resource: &Resource, role: Role, host: Option<&Host>) -> u64 {
    let mut hasher = FxHasher::default();
    resource.service_name.hash(&mut hasher);
    if role == Role::Client {
        host.map(|h| (&h.address, h.port)).hash(&mut hasher);
    }
    hasher.finish()
}

/// Status and `error.type`.
fn outcome(exchange: &Exchange, draft: &mut Draft) {
    let role = exchange.role;
    let status = &exchange.response.status;
    let failed = match exchange.outcome {
        Outcome::Unfinished => return,
        Outcome::Complete => {
            if status.value().is_none() {
                draft.unseen(key::HTTP_RESPONSE_STATUS_CODE);
            }
            None
        }
        // After the response, NO_ERROR asks only that no more of the request be sent (RFC 9113 §8.1).
        Outcome::Reset { code: h2::NO_ERROR, .. } if status.value().is_some() => None,
        // A client may change its mind: not an error.
        Outcome::Reset { code: h2::CANCEL, .. } if status::by_client(role, exchange.outcome) => {
            draft.put(key::CANCELLED, Value::Bool(true));
            None
        }
        Outcome::Reset { code, .. } => Some(status::reset_type(code)),
        Outcome::Refused { .. } => Some(status::GOAWAY),
        Outcome::ConnectionLost { error } => Some(status::connection_type(error)),
    };
    let by_status = match status {
        Seen::Value(code) => *code >= 500 || (*code >= 400 && role == Role::Client),
        _ => false,
    };
    if let (true, Seen::Value(code)) = (by_status, status) {
        draft.put(key::ERROR_TYPE, Value::Str(Cow::Owned(code.to_string())));
    } else if let Some(failed) = failed {
        draft.text(key::ERROR_TYPE, failed);
    } else {
        return;
    }
    draft.status = Status::Error(None);
}
