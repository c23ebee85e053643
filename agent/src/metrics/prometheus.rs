//! The table and the agent's own counts in OpenMetrics, by prometheus-client;
//! histograms with exemplars beside it (`openmetrics`).
//! Names as OpenTelemetry puts them for Prometheus (SPEC
//! `compatibility/prometheus_and_openmetrics.md`): dots become underscores,
//! the unit is written out.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabel, EncodeLabelSet, EncodeMetric, LabelSetEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::openmetrics::Family;
use super::{Histogram, Metric, Metrics, Service, Snapshot};
use crate::attribute::Value;
use crate::telemetry::{Counters, Kind, Reading, Value as Said};

/// What `/metrics` answers with.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All numbers as text.
pub fn text(metrics: &Arc<Metrics>, counters: &Arc<Counters>) -> String {
    let snapshot = metrics.snapshot();
    let mut registry = Registry::default();
    let mut text = String::new();
    let (own, others): (Vec<_>, Vec<_>) = counters.readings().into_iter().partition(|r| r.kind == Kind::Histogram);
    // Writing to a string does not fail.
    let _ = histograms(&snapshot, &mut text);
    let _ = durations(&own, &mut text);
    registry.register_collector(Box::new(Own(others)));
    registry.register_collector(Box::new(Requests(snapshot)));
    let _ = encode_registry(&mut text, &registry).and_then(|()| encode_eof(&mut text));
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

fn histograms(snapshot: &Snapshot, text: &mut String) -> Result<(), fmt::Error> {
    for metric in Metric::ALL {
        let mut series = snapshot.series.iter().filter(|s| s.metric == metric).peekable();
        if series.peek().is_none() {
            continue;
        }
        let name = format!("{}_seconds", label(metric.name()));
        let mut family = Family::begin(text, &name, metric.about())?;
        for series in series {
            let labels = series
                .attributes
                .iter()
                .fold(Labels::of(&series.service), |labels, (name, value)| {
                    labels.and(name, text_of(value))
                });
            family.series(&labels.0, &series.histogram)?;
        }
    }
    if snapshot.edges.is_empty() {
        return Ok(());
    }
    // Named as Grafana's service graph expects it.
    let name = "traces_service_graph_request_server_seconds";
    let mut family = Family::begin(text, name, "Duration of calls between services")?;
    for edge in &snapshot.edges {
        family.series(&ends(edge).0, &edge.duration)?;
    }
    Ok(())
}

fn ends(edge: &super::Edge) -> Labels {
    Labels::default()
        .and("client", &*edge.client)
        .and("server", &*edge.server)
}

#[derive(Debug)]
struct Requests(Snapshot);

impl Collector for Requests {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        lives(&self.0, &mut encoder)?;
        edges(&self.0, &mut encoder)
    }
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
    let mut family = encoder.encode_descriptor(
        "traces_service_graph_request",
        "Calls between services",
        None,
        MetricType::Counter,
    )?;
    for edge in &snapshot.edges {
        ConstCounter::new(edge.duration.count()).encode(family.encode_family(&ends(edge))?)?;
    }
    let mut family = encoder.encode_descriptor(
        "traces_service_graph_request_failed",
        "Calls between services that failed",
        None,
        MetricType::Counter,
    )?;
    for edge in &snapshot.edges {
        ConstCounter::new(edge.failed).encode(family.encode_family(&ends(edge))?)?;
    }
    Ok(())
}

/// The agent's own numbers, less its histograms.
#[derive(Debug)]
struct Own(Vec<Reading>);

/// The name by OpenTelemetry's rules: the unit is a part of it.
fn named(reading: &Reading) -> String {
    let unit = match (reading.unit, reading.kind) {
        ("s", _) => "_seconds",
        ("By", _) => "_bytes",
        ("1", Kind::Gauge) => "_ratio",
        _ => "",
    };
    let name = label(reading.name);
    if name.ends_with(unit) { name } else { name + unit }
}

/// Label names are short beside `tracewire_`: `cause`, not `tracewire_cause`.
fn labels(point: &[(&'static str, String)]) -> Labels {
    point.iter().fold(Labels::default(), |labels, (name, value)| {
        labels.and(name.strip_prefix("tracewire.").unwrap_or(name), value)
    })
}

impl Collector for Own {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for reading in &self.0 {
            let kind = match reading.kind {
                Kind::Counter => MetricType::Counter,
                _ => MetricType::Gauge,
            };
            let name = named(reading);
            let mut encoder = encoder.encode_descriptor(&name, reading.about, None, kind)?;
            for (point, value) in &reading.points {
                let labels = labels(point);
                let whole = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
                match (value, labels.0.is_empty()) {
                    (Said::Whole(n), true) if reading.kind == Kind::Counter => {
                        encoder.encode_counter::<Labels, u64, u64>(n, None)?;
                    }
                    (Said::Whole(n), false) if reading.kind == Kind::Counter => {
                        ConstCounter::new(*n).encode(encoder.encode_family(&labels)?)?;
                    }
                    (Said::Whole(n), true) => encoder.encode_gauge(&whole(*n))?,
                    (Said::Whole(n), false) => {
                        ConstGauge::new(whole(*n)).encode(encoder.encode_family(&labels)?)?;
                    }
                    (Said::Ratio(ratio), _) => {
                        ConstGauge::new(*ratio).encode(encoder.encode_family(&labels)?)?;
                    }
                    (Said::Durations { .. }, _) => {}
                }
            }
        }
        Ok(())
    }
}

/// The agent's own histograms.
fn durations(readings: &[Reading], text: &mut String) -> Result<(), fmt::Error> {
    for reading in readings {
        let name = named(reading);
        let mut family = Family::begin(text, &name, reading.about)?;
        for (point, value) in &reading.points {
            if let Said::Durations { counts, sum } = value {
                let histogram = Histogram {
                    counts: *counts,
                    sum: *sum,
                    ..Histogram::default()
                };
                family.series(&labels(point).0, &histogram)?;
            }
        }
    }
    Ok(())
}
