//! Who calls whom: a client span and its server span make one call of an edge.
//! A call whose server is not observed goes to the address that it was made to.
//! Bias: a call is counted once, by the server's end where both are seen.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use super::Histogram;
use crate::span::conventions::key;
use crate::span::{Kind, Span, SpanId, Status};

/// How long one end waits for the other.
const PATIENCE: Duration = Duration::from_secs(10);
/// Ends that wait at a time.
const WAITING: usize = 8192;
/// Edges that are told apart.
const EDGES: usize = 1000;

/// Calls from one service to another.
#[derive(Clone, Debug, PartialEq)]
pub struct Edge {
    /// `service.name`, or `unknown` of a caller that is not observed.
    pub client: Arc<str>,
    /// `service.name`, or the address of a server that is not observed.
    pub server: Arc<str>,
    /// Calls that failed, as the end that was counted sees it.
    pub failed: u64,
    /// How long they took.
    pub duration: Histogram,
}

#[derive(Debug)]
struct End {
    name: Arc<str>,
    failed: bool,
    seconds: f64,
    since: Instant,
    /// A client's: the address it called.
    address: Option<Arc<str>>,
}

#[derive(Debug, Default)]
pub(super) struct Graph {
    /// Client ends by their span id.
    clients: FxHashMap<SpanId, End>,
    /// Server ends by their parent's span id.
    servers: FxHashMap<SpanId, End>,
    order: VecDeque<(Instant, SpanId)>,
    edges: BTreeMap<(Arc<str>, Arc<str>), (u64, Histogram)>,
}

impl Graph {
    pub(super) fn record(&mut self, span: &Span, service: &str, now: Instant) {
        let end = End {
            name: service.into(),
            failed: matches!(span.status, Status::Error(_)),
            seconds: span.end_unix_ns.saturating_sub(span.start_unix_ns) as f64 / 1e9,
            since: now,
            address: span
                .attribute(key::SERVER_ADDRESS)
                .and_then(|value| value.as_str())
                .map(Arc::from),
        };
        match span.kind {
            Kind::Client => match self.servers.remove(&span.context.span_id) {
                Some(server) => self.count(end.name, server.name.clone(), &server),
                None => self.wait(span.context.span_id, end, true),
            },
            Kind::Server => match span.context.parent {
                None => self.count("unknown".into(), end.name.clone(), &end),
                Some(parent) => match self.clients.remove(&parent) {
                    Some(client) => self.count(client.name, end.name.clone(), &end),
                    None => self.wait(parent, end, false),
                },
            },
        }
    }

    fn wait(&mut self, id: SpanId, end: End, client: bool) {
        if self.order.len() >= WAITING
            && let Some((_, oldest)) = self.order.pop_front()
        {
            self.give_up(oldest);
        }
        self.order.push_back((end.since, id));
        if client {
            self.clients.insert(id, end);
        } else {
            self.servers.insert(id, end);
        }
    }

    /// Lets go of ends that waited long enough.
    pub(super) fn tick(&mut self, now: Instant) {
        while let Some((since, id)) = self.order.front().copied()
            && now.saturating_duration_since(since) >= PATIENCE
        {
            self.order.pop_front();
            self.give_up(id);
        }
    }

    fn give_up(&mut self, id: SpanId) {
        if let Some(client) = self.clients.remove(&id) {
            let server = client.address.clone().unwrap_or_else(|| "unknown".into());
            self.count(client.name.clone(), server, &client);
        }
        if let Some(server) = self.servers.remove(&id) {
            self.count("unknown".into(), server.name.clone(), &server);
        }
    }

    fn count(&mut self, client: Arc<str>, server: Arc<str>, end: &End) {
        let mut edge = (client, server);
        if self.edges.len() >= EDGES && !self.edges.contains_key(&edge) {
            edge = ("other".into(), "other".into());
        }
        let (failed, duration) = self.edges.entry(edge).or_default();
        *failed += u64::from(end.failed);
        duration.record(end.seconds, None);
    }

    pub(super) fn edges(&self) -> Vec<Edge> {
        self.edges
            .iter()
            .map(|((client, server), (failed, duration))| Edge {
                client: Arc::clone(client),
                server: Arc::clone(server),
                failed: *failed,
                duration: duration.clone(),
            })
            .collect()
    }
}
