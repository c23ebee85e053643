//! The table of request metrics, and the agent's own counts, as OTLP metrics:
//! one resource a service, histograms with exemplars. A receiver that takes no
//! metrics is told of once and then left alone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::metrics::v1 as proto;
use opentelemetry_proto::tonic::metrics::v1::exemplar::Value as ExemplarValue;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Number;
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message as _;
use rustc_hash::FxHashMap;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::endpoint::Target;
use super::message::{SCHEMA_URL, SCOPE_NAME, any};
use super::retry::Attempt;
use super::transport::Transport;
use crate::config;
use crate::metrics::{BOUNDS, Histogram, Metric, Metrics, Service, Snapshot};
use crate::telemetry::{Counters, Kind, Reading, Value};

/// Sends the table now and then.
pub struct MetricsExporter {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
    runtime: Handle,
}

impl MetricsExporter {
    /// Sends from a task on `runtime`.
    ///
    /// # Errors
    /// A setting that can't work.
    pub fn new(
        settings: &config::metrics::Config,
        runtime: &Handle,
        metrics: Arc<Metrics>,
        counters: Arc<Counters>,
    ) -> Result<Self, config::Error> {
        let target = Target::of_metrics(&settings.otlp)?;
        let transport = {
            let _guard = runtime.enter();
            Transport::for_metrics(&settings.otlp, &target)?
        };
        let (stop, stopped) = watch::channel(false);
        let mut sender = Sender {
            transport,
            timeout: settings.otlp.timeout,
            delta: settings.delta,
            before: FxHashMap::default(),
            before_ns: 0,
            metrics,
            counters,
            gone: false,
        };
        let interval = settings.interval;
        let task = runtime.spawn(async move {
            let mut stopped = stopped;
            loop {
                let stopping = tokio::select! {
                    () = tokio::time::sleep(interval) => false,
                    _ = stopped.wait_for(|stop| *stop) => true,
                };
                sender.send().await;
                if stopping {
                    return;
                }
            }
        });
        Ok(MetricsExporter {
            stop,
            task,
            runtime: runtime.clone(),
        })
    }

    /// Sends a last time, within `deadline`.
    pub fn shutdown(self, deadline: Duration) {
        let _ = self.stop.send(true);
        let _ = self
            .runtime
            .block_on(async { tokio::time::timeout(deadline, self.task).await });
    }
}

struct Sender {
    transport: Transport,
    timeout: Duration,
    delta: bool,
    /// What was sent of each series, for deltas.
    before: FxHashMap<String, Histogram>,
    before_ns: u64,
    metrics: Arc<Metrics>,
    counters: Arc<Counters>,
    /// The receiver takes no metrics.
    gone: bool,
}

impl Sender {
    async fn send(&mut self) {
        if self.gone {
            return;
        }
        let snapshot = self.metrics.snapshot();
        let mut sent = FxHashMap::default();
        let request = self.request(&snapshot, &mut sent);
        let bytes = Bytes::from(request.encode_to_vec());
        let begin = Instant::now();
        match self.transport.send(bytes, self.timeout).await {
            Attempt::Taken { rejected, .. } => {
                self.before = sent;
                self.before_ns = snapshot.time_unix_ns;
                self.counters.metrics_exported.increment();
                if rejected > 0 {
                    tracing::warn!(rejected, "OTLP receiver left out metrics");
                }
            }
            Attempt::Refused { problem, .. } if takes_none(&problem) => {
                tracing::warn!("the OTLP receiver takes no metrics ({problem}): none are sent");
                self.gone = true;
            }
            Attempt::Refused { problem, .. } | Attempt::Retryable { problem, .. } => {
                // Totals are sent again next time, whole; so are deltas, for nothing was noted as sent.
                self.counters.metrics_failures.increment();
                tracing::warn!(
                    "OTLP metrics not sent after {} ms: {problem}",
                    begin.elapsed().as_millis()
                );
            }
        }
    }

    fn request(&self, snapshot: &Snapshot, sent: &mut FxHashMap<String, Histogram>) -> ExportMetricsServiceRequest {
        let temporality = match self.delta {
            true => proto::AggregationTemporality::Delta,
            false => proto::AggregationTemporality::Cumulative,
        } as i32;
        let mut services: Vec<(&Arc<Service>, Vec<proto::Metric>)> = Vec::new();
        for metric in Metric::ALL {
            for series in snapshot.series.iter().filter(|s| s.metric == metric) {
                let id = format!("{:?}{:?}{:?}", series.service, metric, series.attributes);
                let whole = &series.histogram;
                let (histogram, start) = match self.before.get(&id).filter(|_| self.delta) {
                    Some(before) => (whole.since(before), self.before_ns),
                    None => (whole.clone(), series.start_unix_ns),
                };
                sent.insert(id, whole.clone());
                if self.delta && histogram.count() == 0 {
                    continue;
                }
                let attributes = series
                    .attributes
                    .iter()
                    .map(|(key, value)| KeyValue {
                        key: key.to_string(),
                        value: Some(any(value)),
                        ..KeyValue::default()
                    })
                    .collect();
                let point = point(&histogram, attributes, start, snapshot.time_unix_ns);
                let list = of(&mut services, &series.service);
                match list.iter_mut().find(|m| m.name == metric.name()) {
                    Some(proto::Metric {
                        data: Some(Data::Histogram(known)),
                        ..
                    }) => known.data_points.push(point),
                    _ => list.push(proto::Metric {
                        name: metric.name().into(),
                        description: metric.about().into(),
                        unit: "s".into(),
                        data: Some(Data::Histogram(proto::Histogram {
                            data_points: vec![point],
                            aggregation_temporality: temporality,
                        })),
                        ..proto::Metric::default()
                    }),
                }
            }
        }
        for (service, life) in &snapshot.lives {
            let list = of(&mut services, service);
            let time = snapshot.time_unix_ns;
            let active = ["server", "client"].into_iter().zip(life.active);
            let points = active
                .map(|(role, count)| number(count, vec![text("tracewire.role", role)], snapshot.start_unix_ns, time));
            list.push(proto::Metric {
                name: "tracewire.requests.active".into(),
                unit: "{request}".into(),
                description: "Requests that are open now".into(),
                data: Some(Data::Sum(proto::Sum {
                    data_points: points.collect(),
                    aggregation_temporality: proto::AggregationTemporality::Cumulative as i32,
                    is_monotonic: false,
                })),
                ..proto::Metric::default()
            });
            let started = vec![number(life.started, Vec::new(), snapshot.start_unix_ns, time)];
            list.push(sum("tracewire.processes.started", "{process}", started));
            let ended = life.ended.iter().map(|(end, count)| {
                number(
                    *count,
                    vec![text("tracewire.process.end", end)],
                    snapshot.start_unix_ns,
                    time,
                )
            });
            list.push(sum("tracewire.processes.exited", "{process}", ended.collect()));
        }
        let mut resources: Vec<proto::ResourceMetrics> = services
            .into_iter()
            .map(|(service, metrics)| {
                let attributes = service.0.iter().map(|(key, value)| text(key, value)).collect();
                scoped(attributes, metrics)
            })
            .collect();
        resources.push(self.own(snapshot));
        ExportMetricsServiceRequest {
            resource_metrics: resources,
        }
    }

    /// The agent's own counts, and the service graph that only it sees whole.
    fn own(&self, snapshot: &Snapshot) -> proto::ResourceMetrics {
        let (start, time) = (snapshot.start_unix_ns, snapshot.time_unix_ns);
        let mut metrics: Vec<proto::Metric> = Vec::new();
        for reading in self.counters.readings() {
            metrics.push(own(reading, start, time));
        }
        let ends = |edge: &crate::metrics::Edge| vec![text("client", &edge.client), text("server", &edge.server)];
        let points = snapshot.edges.iter();
        metrics.push(sum(
            "traces.service_graph.request.failed",
            "{call}",
            points.clone().map(|e| number(e.failed, ends(e), start, time)).collect(),
        ));
        metrics.push(proto::Metric {
            name: "traces.service_graph.request.server".into(),
            unit: "s".into(),
            data: Some(Data::Histogram(proto::Histogram {
                data_points: points.map(|e| point(&e.duration, ends(e), start, time)).collect(),
                aggregation_temporality: proto::AggregationTemporality::Cumulative as i32,
            })),
            ..proto::Metric::default()
        });
        let version = env!("CARGO_PKG_VERSION");
        scoped(
            vec![text("service.name", SCOPE_NAME), text("service.version", version)],
            metrics,
        )
    }
}

fn own(reading: Reading, start: u64, time: u64) -> proto::Metric {
    let cumulative = proto::AggregationTemporality::Cumulative as i32;
    let mut numbers = Vec::new();
    let mut histograms = Vec::new();
    for (labels, value) in reading.points {
        let attributes = labels.iter().map(|(key, value)| text(key, value)).collect();
        match value {
            Value::Whole(n) => numbers.push(number(n, attributes, start, time)),
            Value::Ratio(ratio) => numbers.push(proto::NumberDataPoint {
                value: Some(Number::AsDouble(ratio)),
                ..number(0, attributes, start, time)
            }),
            Value::Durations { counts, sum } => histograms.push(proto::HistogramDataPoint {
                attributes,
                start_time_unix_nano: start,
                time_unix_nano: time,
                count: counts.iter().sum(),
                sum: Some(sum),
                bucket_counts: counts.to_vec(),
                explicit_bounds: BOUNDS.to_vec(),
                ..proto::HistogramDataPoint::default()
            }),
        }
    }
    let data = match reading.kind {
        Kind::Gauge => Data::Gauge(proto::Gauge { data_points: numbers }),
        Kind::Histogram => Data::Histogram(proto::Histogram {
            data_points: histograms,
            aggregation_temporality: cumulative,
        }),
        Kind::Counter | Kind::UpDown => Data::Sum(proto::Sum {
            data_points: numbers,
            aggregation_temporality: cumulative,
            is_monotonic: reading.kind == Kind::Counter,
        }),
    };
    proto::Metric {
        name: reading.name.to_owned(),
        unit: reading.unit.to_owned(),
        description: reading.about.to_owned(),
        data: Some(data),
        ..proto::Metric::default()
    }
}

fn of<'v, 's>(
    services: &'v mut Vec<(&'s Arc<Service>, Vec<proto::Metric>)>,
    service: &'s Arc<Service>,
) -> &'v mut Vec<proto::Metric> {
    let known = services.iter().position(|(known, _)| *known == service);
    if known.is_none() {
        services.push((service, Vec::new()));
    }
    let place = known.unwrap_or(services.len() - 1);
    &mut services[place].1
}

fn takes_none(problem: &str) -> bool {
    problem.contains("Unimplemented") || problem.contains("status 404") || problem.contains("status 405")
}

fn scoped(attributes: Vec<KeyValue>, metrics: Vec<proto::Metric>) -> proto::ResourceMetrics {
    proto::ResourceMetrics {
        resource: Some(Resource {
            attributes,
            ..Resource::default()
        }),
        scope_metrics: vec![proto::ScopeMetrics {
            scope: Some(InstrumentationScope {
                name: SCOPE_NAME.to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                ..InstrumentationScope::default()
            }),
            metrics,
            schema_url: SCHEMA_URL.to_owned(),
        }],
        schema_url: SCHEMA_URL.to_owned(),
    }
}

fn text(key: &str, value: &str) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue {
            value: Some(Any::StringValue(value.to_owned())),
        }),
        ..KeyValue::default()
    }
}

/// A total; like all of the agent's, it counts from the start.
fn sum(name: &str, unit: &str, data_points: Vec<proto::NumberDataPoint>) -> proto::Metric {
    proto::Metric {
        name: name.to_owned(),
        unit: unit.to_owned(),
        data: Some(Data::Sum(proto::Sum {
            data_points,
            aggregation_temporality: proto::AggregationTemporality::Cumulative as i32,
            is_monotonic: true,
        })),
        ..proto::Metric::default()
    }
}

fn number(value: u64, attributes: Vec<KeyValue>, start: u64, time: u64) -> proto::NumberDataPoint {
    proto::NumberDataPoint {
        attributes,
        start_time_unix_nano: start,
        time_unix_nano: time,
        value: Some(Number::AsInt(i64::try_from(value).unwrap_or(i64::MAX))),
        ..proto::NumberDataPoint::default()
    }
}

fn point(histogram: &Histogram, attributes: Vec<KeyValue>, start: u64, time: u64) -> proto::HistogramDataPoint {
    let exemplars = histogram.exemplars.iter().flatten().map(|exemplar| proto::Exemplar {
        time_unix_nano: exemplar.time_unix_ns,
        trace_id: exemplar.trace_id.to_vec(),
        span_id: exemplar.span_id.to_vec(),
        value: Some(ExemplarValue::AsDouble(exemplar.value)),
        ..proto::Exemplar::default()
    });
    proto::HistogramDataPoint {
        attributes,
        start_time_unix_nano: start,
        time_unix_nano: time,
        count: histogram.count(),
        sum: Some(histogram.sum),
        bucket_counts: histogram.counts.to_vec(),
        explicit_bounds: BOUNDS.to_vec(),
        exemplars: exemplars.collect(),
        ..proto::HistogramDataPoint::default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
    use super::*;
    use crate::export::example;
    use crate::metrics::prometheus;

    fn sender(delta: bool, metrics: &Arc<Metrics>) -> Sender {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let _guard = runtime.enter();
        let otlp = config::Otlp::default();
        let target = Target::of_metrics(&otlp).unwrap();
        assert_eq!(target.url.path(), "/v1/metrics");
        Sender {
            transport: Transport::for_metrics(&otlp, &target).unwrap(),
            timeout: Duration::from_secs(1),
            delta,
            before: FxHashMap::default(),
            before_ns: 0,
            metrics: metrics.clone(),
            counters: Arc::default(),
            gone: false,
        }
    }

    fn histogram(request: &ExportMetricsServiceRequest) -> Option<proto::HistogramDataPoint> {
        let mut all = request
            .resource_metrics
            .iter()
            .flat_map(|r| &r.scope_metrics)
            .flat_map(|s| &s.metrics);
        match &all.find(|m| m.name == "rpc.server.call.duration")?.data {
            Some(Data::Histogram(h)) => h.data_points.first().cloned(),
            _ => None,
        }
    }

    #[test]
    fn both_ways_out_say_the_same_and_an_exemplar_names_its_trace() {
        let metrics = Arc::new(Metrics::new(true));
        let mut span = example::server(7, 2, None);
        span.context.flags = 1;
        metrics.record(&[span.clone(), span]);
        let request = sender(false, &metrics).request(&metrics.snapshot(), &mut FxHashMap::default());
        let point = histogram(&request).unwrap();
        assert_eq!((point.count, point.bucket_counts.iter().sum::<u64>()), (2, 2));
        assert_eq!(point.exemplars[0].trace_id, 7u128.to_be_bytes());
        let text = prometheus::text(&metrics, &Arc::default());
        let line = |name: &str| {
            let line = text.lines().find(|l| l.starts_with(name)).unwrap();
            line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
        };
        assert_eq!(line("rpc_server_call_duration_seconds_count"), 2.0);
        assert_eq!(line("rpc_server_call_duration_seconds_sum"), point.sum.unwrap());
    }

    #[test]
    fn deltas_begin_anew_only_when_the_last_ones_were_taken() {
        let metrics = Arc::new(Metrics::new(true));
        let mut sender = sender(true, &metrics);
        metrics.record(&[example::server(7, 2, None)]);
        let mut sent = FxHashMap::default();
        let first = sender.request(&metrics.snapshot(), &mut sent);
        assert_eq!(histogram(&first).unwrap().count, 1);
        metrics.record(&[example::server(7, 3, None)]);
        let again = sender.request(&metrics.snapshot(), &mut FxHashMap::default());
        assert_eq!(histogram(&again).unwrap().count, 2, "the first was not taken");
        sender.before = sent;
        let rest = sender.request(&metrics.snapshot(), &mut FxHashMap::default());
        assert_eq!(histogram(&rest).unwrap().count, 1);
    }
}
