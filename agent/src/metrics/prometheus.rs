//! The table and the agent's own counts in OpenMetrics, by prometheus-client.
//! Names as OpenTelemetry puts them for Prometheus (SPEC
//! `compatibility/prometheus_and_openmetrics.md`): dots become underscores,
//! the unit is written out.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabel, EncodeLabelSet, EncodeMetric, LabelSetEncoder, MetricEncoder,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::{BOUNDS, Histogram, Metric, Metrics, Service, Snapshot};
use crate::attribute::Value;
use crate::telemetry::Counters;

/// What `/metrics` answers with.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All numbers as text.
pub fn text(metrics: &Arc<Metrics>, counters: &Arc<Counters>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Requests(Arc::clone(metrics))));
    registry.register_collector(Box::new(Own(Arc::clone(counters))));
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
    text
}

/// Names and values of labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Labels(Vec<(String, String)>);

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        self.0
            .iter()
            .try_for_each(|label| (label.0.as_str(), label.1.as_str()).encode(encoder.encode_label()))
    }
}

fn label(name: &str) -> String {
    name.replace(['.', '-'], "_")
}

impl Labels {
    fn of(service: &Service) -> Self {
        Labels(
            service
                .0
                .iter()
                .map(|(name, value)| (label(name), value.clone()))
                .collect(),
        )
    }

    fn and(mut self, name: &str, value: impl Into<String>) -> Self {
        self.0.push((label(name), value.into()));
        self
    }
}

fn text_of(value: &Value) -> String {
    match value {
        Value::Int(n) => n.to_string(),
        Value::Bool(b) => b.to_string(),
        Value::Double(d) => d.to_string(),
        Value::Strings(list) => list.join(","),
        other => other.as_str().unwrap_or_default().to_owned(),
    }
}

#[derive(Debug)]
struct Requests(Arc<Metrics>);

impl Collector for Requests {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let snapshot = self.0.snapshot();
        for metric in Metric::ALL {
            let name = label(metric.name());
            let mut family =
                encoder.encode_descriptor(&name, metric.about(), Some(&Unit::Seconds), MetricType::Histogram)?;
            for series in snapshot.series.iter().filter(|s| s.metric == metric) {
                let labels = series
                    .attributes
                    .iter()
                    .fold(Labels::of(&series.service), |labels, (name, value)| {
                        labels.and(name, text_of(value))
                    });
                histogram(family.encode_family(&labels)?, &series.histogram)?;
            }
        }
        lives(&snapshot, &mut encoder)?;
        edges(&snapshot, &mut encoder)
    }
}

fn histogram(mut encoder: MetricEncoder<'_>, histogram: &Histogram) -> Result<(), fmt::Error> {
    let bounds = BOUNDS.iter().copied().chain([f64::MAX]);
    let buckets: Vec<(f64, u64)> = bounds.zip(histogram.counts).collect();
    // prometheus-client lets nobody make its exemplars: they go by OTLP only.
    encoder.encode_histogram(
        histogram.sum,
        histogram.count(),
        &buckets,
        None::<&HashMap<usize, Exemplar<Labels, f64>>>,
    )
}

fn lives(snapshot: &Snapshot, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
    let mut family = encoder.encode_descriptor(
        "tracewire_requests_active",
        "Requests that are open now",
        None,
        MetricType::Gauge,
    )?;
    for (service, life) in &snapshot.lives {
        for (role, count) in ["server", "client"].into_iter().zip(life.active) {
            let labels = Labels::of(service).and("role", role);
            ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX)).encode(family.encode_family(&labels)?)?;
        }
    }
    let mut family = encoder.encode_descriptor(
        "tracewire_processes_started",
        "Processes that were observed from some moment on",
        None,
        MetricType::Counter,
    )?;
    for (service, life) in &snapshot.lives {
        ConstCounter::new(life.started).encode(family.encode_family(&Labels::of(service))?)?;
    }
    let mut family = encoder.encode_descriptor(
        "tracewire_processes_exited",
        "Observed processes that ended, by exit code or signal",
        None,
        MetricType::Counter,
    )?;
    for (service, life) in &snapshot.lives {
        for (end, count) in &life.ended {
            let labels = Labels::of(service).and("end", end);
            ConstCounter::new(*count).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

/// Named as Grafana's service graph expects it.
fn edges(snapshot: &Snapshot, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
    let labels = |edge: &super::Edge| {
        Labels::default()
            .and("client", &*edge.client)
            .and("server", &*edge.server)
    };
    let mut family = encoder.encode_descriptor(
        "traces_service_graph_request",
        "Calls between services",
        None,
        MetricType::Counter,
    )?;
    for edge in &snapshot.edges {
        ConstCounter::new(edge.duration.count()).encode(family.encode_family(&labels(edge))?)?;
    }
    let mut family = encoder.encode_descriptor(
        "traces_service_graph_request_failed",
        "Calls between services that failed",
        None,
        MetricType::Counter,
    )?;
    for edge in &snapshot.edges {
        ConstCounter::new(edge.failed).encode(family.encode_family(&labels(edge))?)?;
    }
    let mut family = encoder.encode_descriptor(
        "traces_service_graph_request_server",
        "Duration of calls between services",
        Some(&Unit::Seconds),
        MetricType::Histogram,
    )?;
    for edge in &snapshot.edges {
        histogram(family.encode_family(&labels(edge))?, &edge.duration)?;
    }
    Ok(())
}

#[derive(Debug)]
struct Own(Arc<Counters>);

impl Collector for Own {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        // One family a name; what stands behind a dot is its cause.
        let mut families: Vec<(String, Vec<(Labels, u64)>)> = Vec::new();
        for (name, value) in self.0.snapshot() {
            let (family, labels) = match name.split_once('.') {
                Some((family, cause)) => (family.to_owned(), Labels::default().and("cause", cause)),
                None => (name.into_owned(), Labels::default()),
            };
            match families.iter_mut().find(|(known, _)| *known == family) {
                Some((_, values)) => values.push((labels, value)),
                None => families.push((family, vec![(labels, value)])),
            }
        }
        for (family, values) in &families {
            let name = format!("tracewire_{}", label(family));
            let about = format!("The agent's own count: {}", family.replace('_', " "));
            let mut encoder = encoder.encode_descriptor(&name, &about, None, MetricType::Counter)?;
            for (labels, value) in values {
                if labels.0.is_empty() {
                    encoder.encode_counter::<Labels, u64, u64>(value, None)?;
                } else {
                    ConstCounter::new(*value).encode(encoder.encode_family(labels)?)?;
                }
            }
        }
        for (name, about, value) in self.0.gauges() {
            let mut encoder = encoder.encode_descriptor(name, about, None, MetricType::Gauge)?;
            encoder.encode_gauge(&i64::try_from(value).unwrap_or(i64::MAX))?;
        }
        Ok(())
    }
}
