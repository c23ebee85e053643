//! Identities of spans: chosen when a request begins, completed when it ends.
//!
//! * A client's request that carries no `traceparent` gets new ids.
//! * One that carries it *is* that span: its id becomes ours, so that no second
//!   tree contradicts the application's. Where the same id was seen before (a
//!   proxy that passes the header on), ours is a child of it.
//! * A server's span hangs below the client's span of the same stream when that
//!   end is observed too, else below the `traceparent` that it received.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use rustc_hash::FxHashMap;
use tracewire_common::event::direction;
use tracewire_common::trace::{Minted, TraceParent, mint};

use super::edge::Edges;
use super::head::{Facts, Head, Services};
use super::w3c;
use crate::request::assemble::Output;
use crate::request::{Exchange, Outcome, Role, Seen, Version};
use crate::span::SpanContext;

/// How long a server's exchange waits for its client's end to be reported, ns.
const PATIENCE: u64 = 60_000_000;
/// Exchanges that wait at a time.
const WAITING: usize = 16 * 1024;
/// Sent span ids remembered.
const SENT: usize = 16 * 1024;
/// Identities of requests under way.
const OPEN: usize = 128 * 1024;

/// An exchange with its identity.
pub type Identified = (Box<Exchange>, SpanContext);

struct Waiting {
    exchange: Box<Exchange>,
    until_ns: u64,
}

/// What the head decision wants to know of a request that has no parent.
struct Request<'a> {
    pid: u32,
    method: &'a Seen<Arc<str>>,
    path: &'a Seen<Arc<str>>,
    start_ns: u64,
}

impl<'a> Request<'a> {
    fn of(exchange: &'a Exchange) -> Self {
        Request {
            pid: exchange.pid,
            method: &exchange.request.method,
            path: &exchange.request.path,
            start_ns: exchange.start_ns,
        }
    }
}

/// Gives identities.
pub struct Identities {
    head: Head,
    key: [u64; 2],
    edges: Edges,
    /// Client requests under way.
    open: FxHashMap<(u64, u32), SpanContext>,
    sent: HashSet<[u8; 24]>,
    sent_order: VecDeque<[u8; 24]>,
    waiting: VecDeque<Waiting>,
    /// Server spans that found their client's span on this node.
    pub joined: u64,
}

impl Identities {
    /// `key` decides all ids: random for an agent, fixed for a replay.
    pub fn new(key: [u64; 2]) -> Self {
        Identities {
            head: Head::default(),
            key,
            edges: Edges::default(),
            open: FxHashMap::default(),
            sent: HashSet::new(),
            sent_order: VecDeque::new(),
            waiting: VecDeque::new(),
            joined: 0,
        }
    }

    /// Lets `head` decide over the traces that begin here; without it all are sampled.
    pub fn sample(&mut self, head: Head) {
        self.head = head;
    }

    /// Takes what the assembler found; finished exchanges go to `out` as soon as their identity is sure.
    pub fn take(&mut self, output: Output, services: &mut impl Services, out: &mut Vec<Identified>) {
        match output {
            Output::Opened {
                opened,
                origin,
                time_ns,
            } => self.edges.opened(&opened, origin, time_ns),
            Output::Closed { connection } => self.edges.closed(connection),
            Output::Begun {
                connection,
                stream,
                pid,
                role: Role::Client,
                start_ns,
                traceparent,
                tracestate,
                method,
                path,
            } => {
                let request = Request {
                    pid,
                    method: &method,
                    path: &path,
                    start_ns,
                };
                let context = self.client((connection, stream), &traceparent, &tracestate, &request, services);
                self.edges.called(connection, stream, context.clone(), start_ns);
                if self.open.len() < OPEN {
                    self.open.insert((connection, stream), context);
                }
            }
            Output::Begun { .. } => {}
            Output::Ended(exchange) => self.ended(exchange, services, out),
        }
    }

    /// Lets go what waited long enough.
    pub fn tick(&mut self, now_ns: u64, services: &mut impl Services, out: &mut Vec<Identified>) {
        // Those that found their caller meanwhile, and those whose time is over. Time only
        // moves forward, so the first that still waits keeps the rest waiting too.
        while let Some(first) = self.waiting.pop_front() {
            if first.until_ns > now_ns && !self.caller_known(&first.exchange) {
                self.waiting.push_front(first);
                break;
            }
            self.resolve(first.exchange, services, out);
        }
    }

    fn ended(&mut self, mut exchange: Box<Exchange>, services: &mut impl Services, out: &mut Vec<Identified>) {
        let key = (exchange.peer.connection, exchange.stream);
        match exchange.role {
            Role::Client => {
                if let Some(earlier) = self.edges.caller(key.0, key.1).and_then(|c| c.earlier_ns) {
                    exchange.start_ns = exchange.start_ns.min(earlier);
                }
                let complete = exchange.outcome == Outcome::Complete;
                self.edges.answered(key.0, key.1, exchange.end_ns, complete);
                let context = match self.open.remove(&key) {
                    Some(context) => context,
                    None => {
                        let request = Request::of(&exchange);
                        let head = &exchange.request;
                        self.client(key, &head.traceparent, &head.tracestate, &request, services)
                    }
                };
                out.push((exchange, context));
            }
            Role::Server => {
                if self.caller_known(&exchange) || !local(&exchange) || self.waiting.len() >= WAITING {
                    self.resolve(exchange, services, out);
                } else {
                    // Its client's send may be reported a little later: a send is seen at its end.
                    let until_ns = exchange.end_ns + PATIENCE;
                    self.waiting.push_back(Waiting { exchange, until_ns });
                }
            }
        }
    }

    fn caller_known(&self, exchange: &Exchange) -> bool {
        self.edges
            .other_end(exchange.peer.connection)
            .is_some_and(|other| self.edges.knows(other, exchange.stream))
    }

    /// The server's side: below its client's span, below what the wire says, or a root.
    fn resolve(&mut self, mut exchange: Box<Exchange>, services: &mut impl Services, out: &mut Vec<Identified>) {
        let wire = parse(&exchange.request.traceparent);
        let state = state(&exchange.request.tracestate);
        let connection = exchange.peer.connection;
        let numbered = exchange.version == Version::Http2;
        let minted = mint(self.key, connection, exchange.stream, u32::from(direction::RECEIVE));
        let span_id = minted.span_id;
        if let Some(other) = self.edges.other_end(connection)
            && self.edges.comparable(connection, other, numbered)
            && self.edges.fits(other, exchange.stream, exchange.start_ns)
            && let Some(caller) = self.edges.caller(other, exchange.stream)
            && wire.is_none_or(|w| w.trace_id == caller.context.trace_id)
        {
            if exchange.start_ns < caller.start_ns {
                caller.earlier_ns = Some(exchange.start_ns);
            }
            let context = SpanContext {
                span_id,
                parent: Some(caller.context.span_id),
                parent_is_remote: true,
                trace_id: caller.context.trace_id,
                flags: caller.context.flags,
                trace_state: state.or_else(|| caller.context.trace_state.clone()),
            };
            exchange.start_ns = exchange.start_ns.min(exchange.end_ns);
            self.joined += 1;
            out.push((exchange, context));
            return;
        }
        let context = match wire {
            Some(wire) => SpanContext {
                trace_id: wire.trace_id,
                span_id,
                parent: Some(wire.span_id),
                parent_is_remote: true,
                flags: wire.flags,
                trace_state: state,
            },
            None => self.root(minted, &Request::of(&exchange), services),
        };
        out.push((exchange, context));
    }

    /// The client's side.
    fn client(
        &mut self,
        (connection, stream): (u64, u32),
        traceparent: &Seen<Arc<str>>,
        tracestate: &Seen<Arc<str>>,
        request: &Request<'_>,
        services: &mut impl Services,
    ) -> SpanContext {
        let minted = mint(self.key, connection, stream, u32::from(direction::SEND));
        let Some(wire) = parse(traceparent) else {
            return self.root(minted, request, services);
        };
        let trace_state = state(tracestate);
        let mut key = [0; 24];
        key[..16].copy_from_slice(&wire.trace_id);
        key[16..].copy_from_slice(&wire.span_id);
        if self.sent.insert(key) {
            self.sent_order.push_back(key);
            if self.sent_order.len() > SENT
                && let Some(old) = self.sent_order.pop_front()
            {
                self.sent.remove(&old);
            }
            return SpanContext {
                trace_id: wire.trace_id,
                span_id: wire.span_id,
                parent: None,
                parent_is_remote: false,
                flags: wire.flags,
                trace_state,
            };
        }
        SpanContext {
            trace_id: wire.trace_id,
            span_id: minted.span_id,
            parent: Some(wire.span_id),
            parent_is_remote: true,
            flags: wire.flags,
            trace_state,
        }
    }

    fn root(&mut self, minted: Minted, request: &Request<'_>, services: &mut impl Services) -> SpanContext {
        let decision = if self.head.wants_facts() {
            let text = |seen: &Seen<Arc<str>>| seen.value().cloned().unwrap_or_default();
            let facts = Facts {
                service: &services.service(request.pid),
                method: &text(request.method),
                path: &text(request.path),
                now_ns: request.start_ns,
            };
            self.head.root(&minted.trace_id, &facts)
        } else {
            self.head.root(&minted.trace_id, &Facts::default())
        };
        SpanContext {
            trace_id: minted.trace_id,
            span_id: minted.span_id,
            flags: decision.flags,
            trace_state: decision.trace_state,
            ..SpanContext::default()
        }
    }
}

/// Whether the other end may be on this node.
fn local(exchange: &Exchange) -> bool {
    match (exchange.peer.local, exchange.peer.remote) {
        // Other pods of this node have other addresses, so any private address may be.
        (Some(local), Some(remote)) => {
            remote.0.is_loopback()
                || remote.0 == local.0
                || matches!(remote.0, std::net::IpAddr::V4(a) if a.is_private())
                || matches!(remote.0, std::net::IpAddr::V6(a) if a.is_unique_local())
        }
        _ => true,
    }
}

fn parse(value: &Seen<Arc<str>>) -> Option<TraceParent> {
    w3c::trace_parent(value.value()?)
}

fn state(value: &Seen<Arc<str>>) -> Option<Arc<str>> {
    let value = value.value()?;
    let kept = w3c::trace_state(value)?;
    Some(if kept.len() == value.len() {
        value.clone()
    } else {
        Arc::from(kept)
    })
}
