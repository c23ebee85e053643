//! Exchange → span: what every protocol shares. The rules that differ stand
//! in `rpc` and `http`. Never fills a gap: what could not be
//! read is missing, and named in `tracewire.unseen`.
//!
//! Built for a hot path: names, hosts and addresses that come again are
//! interned in bounded tables, keys are borrowed.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::conventions::{Conventions, key};
use super::limits::Limits;
use super::route::{self, Routes};
use super::rpc::Methods;
use super::url::Host;
use super::{Kind, Span, SpanContext, Status};
use crate::attribute::{Key, Value};
use crate::connection::Transport;
use crate::discover::Resource;
use crate::privacy::Policy;
use crate::request::{Exchange, Outcome, Protocol, Role, Seen};

/// Entries of one interning table; a full one starts over.
const TABLE_LIMIT: usize = 4096;

/// Attributes of an ordinary span.
const ATTRIBUTES: usize = 18;

/// Makes spans. Holds only what it learned about names, so it may be dropped
/// and made anew at any time.
#[derive(Debug)]
pub struct Builder {
    pub(super) conventions: Conventions,
    pub(super) routes: Routes,
    pub(super) methods: Methods,
    pub(super) names: Names,
    pub(super) privacy: Policy,
    limits: Limits,
    hosts: FxHashMap<Arc<str>, Option<Host>>,
    addresses: FxHashMap<IpAddr, Arc<str>>,
}

impl Builder {
    /// A builder with nothing learned yet.
    pub fn new(conventions: Conventions, routes: route::Config) -> Self {
        Builder {
            methods: Methods::new(&conventions.rpc_methods),
            names: Names::new(&conventions.http_methods),
            conventions,
            routes: Routes::new(routes),
            privacy: Policy::default(),
            limits: Limits::default(),
            hosts: FxHashMap::default(),
            addresses: FxHashMap::default(),
        }
    }

    /// What spans must not show.
    #[must_use]
    pub fn with_privacy(mut self, privacy: Policy) -> Self {
        self.privacy = privacy;
        self
    }

    /// How much spans may hold.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Takes the choices of another builder; what was learned stays.
    pub fn change(&mut self, other: Builder) {
        self.privacy = other.privacy;
        self.limits = other.limits;
        self.routes.change(other.routes);
        self.hosts.clear();
    }

    /// The span of an exchange. `boot_to_unix_ns` is what must be added to
    /// CLOCK_BOOTTIME to get Unix time.
    pub fn build(
        &mut self,
        exchange: &Exchange,
        context: SpanContext,
        resource: Arc<Resource>,
        boot_to_unix_ns: i64,
    ) -> Span {
        let mut draft = Draft::new(Arc::clone(&self.names.http));
        // The resource says it too; this is for whoever looks at spans alone.
        let environment = resource
            .attributes
            .iter()
            .find(|(name, _)| name == key::DEPLOYMENT_ENVIRONMENT_NAME);
        if let Some((_, value)) = environment {
            draft.put(key::DEPLOYMENT_ENVIRONMENT_NAME, value.clone());
        }
        match exchange.protocol {
            Protocol::Grpc | Protocol::GrpcWeb | Protocol::Connect => self.rpc(exchange, &resource, &mut draft),
            Protocol::Http => self.http(exchange, &resource, &mut draft),
        }
        if exchange.outcome == Outcome::Unfinished {
            draft.put(key::UNFINISHED, Value::Bool(true));
        }
        if !draft.unseen.is_empty() {
            let unseen = draft.unseen.iter().map(|name| Arc::from(*name)).collect();
            draft.put(key::UNSEEN, Value::Strings(unseen));
        }
        let dropped_attributes = self.limits.apply(&mut draft.attributes);
        let mut context = context;
        if let Some(state) = &context.trace_state
            && matches!(self.privacy.exact(state), Cow::Owned(_))
        {
            // It was carried on as it came; what it holds does not belong into a span.
            context.trace_state = None;
        }
        Span {
            context,
            name: draft.name,
            kind: match exchange.role {
                Role::Client => Kind::Client,
                Role::Server => Kind::Server,
            },
            start_unix_ns: exchange.start_ns.saturating_add_signed(boot_to_unix_ns),
            end_unix_ns: exchange
                .end_ns
                .max(exchange.start_ns)
                .saturating_add_signed(boot_to_unix_ns),
            status: draft.status,
            attributes: draft.attributes,
            dropped_attributes,
            sentry_head: None,
            resource,
        }
    }

    /// `network.peer.*`: the other end of the socket.
    pub(super) fn peer(&mut self, exchange: &Exchange, draft: &mut Draft) {
        if let Some((address, port)) = exchange.peer.remote {
            let address = self.address(address);
            draft.put(key::NETWORK_PEER_ADDRESS, Value::Shared(address));
            draft.put(key::NETWORK_PEER_PORT, Value::Int(port.into()));
        }
    }

    /// The server's name: a client's that sent no authority is its peer, a
    /// server's that got none has no name.
    pub(super) fn server(
        &mut self,
        exchange: &Exchange,
        authority: &Seen<Arc<str>>,
        draft: &mut Draft,
    ) -> Option<Host> {
        match authority {
            Seen::Value(authority) => self.host(authority),
            Seen::Unknown => {
                draft.unseen(key::SERVER_ADDRESS);
                None
            }
            Seen::Absent if exchange.role == Role::Client && exchange.peer.transport != Transport::Unix => {
                let (address, port) = exchange.peer.remote?;
                Some(Host {
                    address: self.address(address),
                    port: Some(port),
                })
            }
            Seen::Absent => None,
        }
    }

    /// An authority taken apart.
    pub(super) fn host(&mut self, authority: &Arc<str>) -> Option<Host> {
        if let Some(host) = self.hosts.get(authority) {
            return host.clone();
        }
        let mut host = Host::parse(super::url::cut(authority, 512));
        if let Some(host) = &mut host {
            host.address = self.privacy.exact_shared(&host.address);
        }
        if self.hosts.len() >= TABLE_LIMIT {
            self.hosts.clear();
        }
        self.hosts.insert(Arc::clone(authority), host.clone());
        host
    }

    /// An address as text, IPv4-mapped ones as IPv4.
    pub(super) fn address(&mut self, address: IpAddr) -> Arc<str> {
        if let Some(text) = self.addresses.get(&address) {
            return Arc::clone(text);
        }
        let text: Arc<str> = address.to_canonical().to_string().into();
        if self.addresses.len() >= TABLE_LIMIT {
            self.addresses.clear();
        }
        self.addresses.insert(address, Arc::clone(&text));
        text
    }

    /// Forgets what was learned of a service that is gone.
    pub fn forget(&mut self, service: &str) {
        self.methods.forget(service);
    }
}

/// A span in the making.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) name: Arc<str>,
    pub(super) status: Status,
    attributes: Vec<(Key, Value)>,
    unseen: Vec<&'static str>,
}

impl Draft {
    fn new(name: Arc<str>) -> Self {
        Draft {
            name,
            status: Status::Unset,
            attributes: Vec::with_capacity(ATTRIBUTES),
            unseen: Vec::new(),
        }
    }

    pub(super) fn put(&mut self, key: &'static str, value: Value) {
        self.attributes.push((Cow::Borrowed(key), value));
    }

    pub(super) fn text(&mut self, key: &'static str, text: &'static str) {
        self.put(key, Value::Str(Cow::Borrowed(text)));
    }

    pub(super) fn host(&mut self, host: Host) {
        self.put(key::SERVER_ADDRESS, Value::Shared(host.address));
        if let Some(port) = host.port {
            self.put(key::SERVER_PORT, Value::Int(port.into()));
        }
    }

    /// Notes that an attribute belongs here and its value could not be read.
    pub(super) fn unseen(&mut self, key: &'static str) {
        if !self.unseen.contains(&key) {
            self.unseen.push(key);
        }
    }

    /// Fields that the user asked for, one attribute a name with all its values.
    pub(super) fn captured(&mut self, prefix: &'static str, fields: &[(Arc<str>, Arc<str>)], privacy: &Policy) {
        for (i, (name, _)) in fields.iter().enumerate() {
            if fields.iter().take(i).any(|(earlier, _)| earlier == name) {
                continue;
            }
            let values = fields
                .iter()
                .filter(|(n, _)| n == name)
                .map(|(_, value)| privacy.field(name, value))
                .collect();
            self.attributes
                .push((Cow::Owned([prefix, name].concat()), Value::Strings(values)));
        }
    }

    pub(super) fn param(&mut self, name: &str, value: Arc<str>) {
        let key = [super::conventions::prefix::URL_PATH_PARAM, name].concat();
        self.attributes.push((Cow::Owned(key), Value::Shared(value)));
    }
}

/// Names of HTTP spans, interned.
#[derive(Debug)]
pub(super) struct Names {
    /// `HTTP`, where the method has no name of its own.
    pub(super) http: Arc<str>,
    methods: Vec<Arc<str>>,
    /// By route, then by index of the method; the last is for `HTTP`.
    routes: FxHashMap<Arc<str>, Vec<Option<Arc<str>>>>,
}

impl Names {
    fn new(methods: &[Arc<str>]) -> Self {
        Names {
            http: "HTTP".into(),
            methods: methods.to_vec(),
            routes: FxHashMap::default(),
        }
    }

    /// Number and shared name of a known method.
    pub(super) fn method(&self, method: &str) -> Option<(usize, Arc<str>)> {
        self.methods
            .iter()
            .enumerate()
            .find(|(_, m)| &***m == method)
            .map(|(i, m)| (i, Arc::clone(m)))
    }

    /// `{method} {route}`; `None` is a method without a name.
    pub(super) fn route(&mut self, method: Option<usize>, route: &Arc<str>) -> Arc<str> {
        let word = method.and_then(|m| self.methods.get(m)).unwrap_or(&self.http);
        let slot = method.unwrap_or(self.methods.len());
        if let Some(name) = self
            .routes
            .get(route)
            .and_then(|names| names.get(slot))
            .and_then(Option::as_ref)
        {
            return Arc::clone(name);
        }
        let name: Arc<str> = [word, " ", route].concat().into();
        if self.routes.len() >= TABLE_LIMIT {
            self.routes.clear();
        }
        let names = self
            .routes
            .entry(Arc::clone(route))
            .or_insert_with(|| vec![None; self.methods.len() + 1]);
        if let Some(place) = names.get_mut(slot) {
            *place = Some(Arc::clone(&name));
        }
        name
    }
}
