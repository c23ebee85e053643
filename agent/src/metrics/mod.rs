//! Request metrics: what every finished request adds, whether its span is kept
//! or not. One table holds them; `/metrics` and OTLP read the same numbers out
//! of it, so they can't differ.
//!
//! Bias: bounded. Series beyond [`SERIES`] go to one series a metric that says
//! `otel.metric.overflow` (SPEC `metrics/sdk.md`, "Cardinality limits").
//!
//! Not by opentelemetry_sdk's `MeterProvider`: it has one resource where the
//! agent has one a service, and keeps no exemplars.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustc_hash::{FxHashMap, FxHasher};

use crate::attribute::{Key, Value};
use crate::discover::Resource;
use crate::request::Role;
use crate::span::conventions::key;
use crate::span::{Kind, Span};

mod graph;
mod histogram;
mod openmetrics;
pub mod prometheus;
#[cfg(test)]
mod tests;

pub use graph::Edge;
pub use histogram::{BOUNDS, Exemplar, Histogram};

/// Most series of all metrics of requests.
pub const SERIES: usize = 2000;
/// Services that are told apart.
const SERVICES: usize = 512;
/// Time without a request after which a series is forgotten.
const IDLE: Duration = Duration::from_secs(3600);

/// Which histogram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Metric {
    /// `rpc.server.call.duration`
    RpcServer,
    /// `rpc.client.call.duration`
    RpcClient,
    /// `http.server.request.duration`
    HttpServer,
    /// `http.client.request.duration`
    HttpClient,
}

impl Metric {
    /// All of them.
    pub const ALL: [Metric; 4] = [
        Metric::RpcServer,
        Metric::RpcClient,
        Metric::HttpServer,
        Metric::HttpClient,
    ];

    /// Its name by the semantic conventions 1.45 (`docs/rpc/rpc-metrics.md`, `docs/http/http-metrics.md`).
    pub fn name(self) -> &'static str {
        match self {
            Metric::RpcServer => "rpc.server.call.duration",
            Metric::RpcClient => "rpc.client.call.duration",
            Metric::HttpServer => "http.server.request.duration",
            Metric::HttpClient => "http.client.request.duration",
        }
    }

    /// What it measures.
    pub fn about(self) -> &'static str {
        match self {
            Metric::RpcServer => "Duration of inbound calls",
            Metric::RpcClient => "Duration of outbound calls",
            Metric::HttpServer => "Duration of HTTP server requests",
            Metric::HttpClient => "Duration of HTTP client requests",
        }
    }

    fn of(span: &Span) -> Self {
        let rpc = span.attribute(key::RPC_SYSTEM_NAME).is_some();
        match (rpc, span.kind) {
            (true, Kind::Server) => Metric::RpcServer,
            (true, Kind::Client) => Metric::RpcClient,
            (false, Kind::Server) => Metric::HttpServer,
            (false, Kind::Client) => Metric::HttpClient,
        }
    }

    /// Whether the attribute is one of the metric's.
    fn has(self, name: &str) -> bool {
        match name {
            key::ERROR_TYPE => true,
            key::RPC_SYSTEM_NAME | key::RPC_METHOD | key::RPC_STATUS_CODE => {
                matches!(self, Metric::RpcServer | Metric::RpcClient)
            }
            key::HTTP_REQUEST_METHOD | key::HTTP_RESPONSE_STATUS_CODE | key::NETWORK_PROTOCOL_VERSION => {
                matches!(self, Metric::HttpServer | Metric::HttpClient)
            }
            key::HTTP_ROUTE | key::URL_SCHEME => self == Metric::HttpServer,
            key::SERVER_ADDRESS | key::SERVER_PORT => matches!(self, Metric::RpcClient | Metric::HttpClient),
            _ => false,
        }
    }
}

/// A service as metrics tell it from others: all its processes on this node together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Service(pub Vec<(&'static str, String)>);

impl Service {
    const KEYS: [&'static str; 5] = [
        "service.name",
        "service.namespace",
        "service.version",
        "deployment.environment.name",
        "host.name",
    ];

    fn of(resource: &Resource) -> Self {
        let text = |name: &&'static str| {
            let (_, value) = resource.attributes.iter().find(|(key, _)| key == name)?;
            Some((*name, value.as_str()?.to_owned()))
        };
        let mut all: Vec<_> = Self::KEYS.iter().filter_map(text).collect();
        if all.is_empty() {
            all.push(("service.name", resource.service_name.to_string()));
        }
        Service(all)
    }

    /// `service.name`.
    pub fn name(&self) -> &str {
        self.0.first().map_or("", |(_, name)| name)
    }
}

/// One series.
#[derive(Clone, Debug)]
pub struct Series {
    /// Whose.
    pub service: Arc<Service>,
    /// Of which metric.
    pub metric: Metric,
    /// Its attributes, by name.
    pub attributes: Vec<(Key, Value)>,
    /// Its values.
    pub histogram: Histogram,
    /// When it began, Unix time ns.
    pub start_unix_ns: u64,
    used: Instant,
}

/// What happened to the processes of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Life {
    /// Processes that were observed from some moment on.
    pub started: u64,
    /// Processes that ended, by their end: `code 0`, `signal 9`.
    pub ended: BTreeMap<String, u64>,
    /// Requests open at present, those that the service serves and those that it makes.
    pub active: [u64; 2],
}

/// All numbers at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Histograms of requests.
    pub series: Vec<Series>,
    /// Processes and open requests.
    pub lives: Vec<(Arc<Service>, Life)>,
    /// Calls between services.
    pub edges: Vec<Edge>,
    /// Unix time, ns.
    pub time_unix_ns: u64,
    /// When counting began, Unix time ns.
    pub start_unix_ns: u64,
}

/// The table, shared by those who write and those who read.
#[derive(Debug, Default)]
pub struct Metrics(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    on: bool,
    start_unix_ns: u64,
    /// By the resource's id.
    services: FxHashMap<u64, Arc<Service>>,
    series: FxHashMap<u64, Series>,
    lives: BTreeMap<Arc<Service>, Life>,
    graph: graph::Graph,
}

impl Metrics {
    /// A table that counts, if anybody is going to read it.
    pub fn new(on: bool) -> Self {
        Metrics(Mutex::new(Table {
            on,
            start_unix_ns: unix_ns(),
            ..Table::default()
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts finished requests.
    pub fn record(&self, spans: &[Span]) {
        if spans.is_empty() {
            return;
        }
        let mut table = self.lock();
        if !table.on {
            return;
        }
        let now = Instant::now();
        for span in spans {
            table.record(span, now);
        }
    }

    /// A process of that resource is observed from now on.
    pub fn started(&self, resource: &Resource) {
        let mut table = self.lock();
        if table.on {
            table.life(resource).started += 1;
        }
    }

    /// A process ended; `status` as `wait` gives it.
    pub fn ended(&self, resource: &Resource, status: u32) {
        let mut table = self.lock();
        if table.on {
            let end = match status & 0x7f {
                0 => format!("code {}", status >> 8 & 0xff),
                signal => format!("signal {signal}"),
            };
            *table.life(resource).ended.entry(end).or_default() += 1;
        }
    }

    /// A process is gone, nobody knows how.
    pub fn missed(&self, resource: &Resource) {
        let mut table = self.lock();
        if table.on {
            *table.life(resource).ended.entry("unknown".to_owned()).or_default() += 1;
        }
    }

    /// All requests that are open now, by process; those not named have none.
    pub fn active(&self, open: impl Iterator<Item = (Arc<Resource>, Role, u64)>) {
        let mut table = self.lock();
        if !table.on {
            return;
        }
        table.lives.values_mut().for_each(|life| life.active = [0, 0]);
        for (resource, role, count) in open {
            let place = usize::from(role == Role::Client);
            if let Some(active) = table.life(&resource).active.get_mut(place) {
                *active += count;
            }
        }
        let now = Instant::now();
        table
            .series
            .retain(|_, series| now.saturating_duration_since(series.used) < IDLE);
        table.graph.tick(now);
    }

    /// All numbers.
    pub fn snapshot(&self) -> Snapshot {
        let table = self.lock();
        let mut series: Vec<Series> = table.series.values().cloned().collect();
        series.sort_by(|a, b| (a.metric, &a.service).cmp(&(b.metric, &b.service)));
        Snapshot {
            series,
            lives: table.lives.iter().map(|(s, l)| (Arc::clone(s), l.clone())).collect(),
            edges: table.graph.edges(),
            time_unix_ns: unix_ns(),
            start_unix_ns: table.start_unix_ns,
        }
    }
}

impl Table {
    fn service(&mut self, resource: &Resource) -> Arc<Service> {
        if let Some(known) = self.services.get(&resource.id) {
            return Arc::clone(known);
        }
        let service = Service::of(resource);
        let shared = match self.services.values().find(|known| ***known == service) {
            Some(known) => Arc::clone(known),
            None => Arc::new(service),
        };
        if self.services.len() >= 8 * SERVICES {
            self.services.clear();
        }
        self.services.insert(resource.id, Arc::clone(&shared));
        shared
    }

    fn life(&mut self, resource: &Resource) -> &mut Life {
        let service = self.service(resource);
        let full = self.lives.len() >= SERVICES && !self.lives.contains_key(&service);
        let service = if full { Arc::default() } else { service };
        self.lives.entry(service).or_default()
    }

    fn record(&mut self, span: &Span, now: Instant) {
        let service = self.service(&span.resource);
        self.graph.record(span, service.name(), now);
        // How long it lasted is not known.
        if span.attribute(key::UNFINISHED).is_some() {
            return;
        }
        let metric = Metric::of(span);
        let seconds = span.end_unix_ns.saturating_sub(span.start_unix_ns) as f64 / 1e9;
        let exemplar = (span.context.flags & 1 != 0).then_some(Exemplar {
            value: seconds,
            time_unix_ns: span.end_unix_ns,
            trace_id: span.context.trace_id,
            span_id: span.context.span_id,
        });
        let place = self.place(&service, metric, span);
        let place = if place.1 || self.series.len() < SERIES {
            place.0
        } else {
            overflow(&service, metric)
        };
        let fresh = self.series.len() >= SERIES;
        let series = self.series.entry(place).or_insert_with(|| Series {
            service,
            metric,
            attributes: if fresh {
                vec![("otel.metric.overflow".into(), Value::Bool(true))]
            } else {
                own(metric, span).map(|(k, v)| (k.clone(), v.clone())).collect()
            },
            histogram: Histogram::default(),
            start_unix_ns: unix_ns(),
            used: now,
        });
        series.used = now;
        series.histogram.record(seconds, exemplar);
    }

    /// Where the span's series is or belongs, and whether it is there.
    fn place(&self, service: &Arc<Service>, metric: Metric, span: &Span) -> (u64, bool) {
        let mut hasher = FxHasher::default();
        (Arc::as_ptr(service) as usize, metric).hash(&mut hasher);
        for (name, value) in own(metric, span) {
            name.hash(&mut hasher);
            hash(value, &mut hasher);
        }
        let mut place = hasher.finish();
        while let Some(series) = self.series.get(&place) {
            let same = series.metric == metric
                && Arc::ptr_eq(&series.service, service)
                && own(metric, span).eq(series.attributes.iter().map(|(k, v)| (k, v)));
            if same {
                return (place, true);
            }
            place = place.wrapping_add(1);
        }
        (place, false)
    }
}

/// The span's attributes that are the metric's, in the span's order.
fn own(metric: Metric, span: &Span) -> impl Iterator<Item = (&Key, &Value)> {
    span.attributes
        .iter()
        .filter(move |(name, _)| metric.has(name))
        .map(|(k, v)| (k, v))
}

fn overflow(service: &Arc<Service>, metric: Metric) -> u64 {
    let mut hasher = FxHasher::default();
    (Arc::as_ptr(service) as usize, metric, "overflow").hash(&mut hasher);
    hasher.finish()
}

fn hash(value: &Value, hasher: &mut FxHasher) {
    match value {
        Value::Int(n) => n.hash(hasher),
        other => other.as_str().hash(hasher),
    }
}

fn unix_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
