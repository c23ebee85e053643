//! What OpenTelemetry's SDKs say of their parts, by the same names (SC
//! `docs/otel/sdk-metrics.md`, development): one exporter with the queue before it.
//! An exporter that is made anew (a configuration read again) goes on counting where the
//! old one of the same kind and target stopped.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::Counter;
use super::durations::Durations;
use super::readings::{Kind, Point, Reading, Value};

/// Most causes of failures that are told apart, an exporter.
const CAUSES: usize = 32;

/// An exporter.
#[derive(Debug)]
pub struct Component {
    /// `otel.component.type`.
    kind: &'static str,
    /// `otel.component.name`: the type, and its number among those of its kind.
    name: String,
    target: String,
    /// Spans that wait, and most that may.
    pub waiting: Counter,
    /// Most that may wait; 0: nothing does.
    pub capacity: Counter,
    /// Bytes of what waits.
    pub bytes: Counter,
    /// Spans under way.
    pub inflight: Counter,
    /// Spans given to the exporter.
    pub processed: Counter,
    /// Requests tried again.
    pub retries: Counter,
    /// From a request's end to the receiver's answer.
    pub delay: Durations,
    causes: Mutex<Causes>,
}

/// By `error.type`, empty where nothing failed.
#[derive(Debug, Default)]
struct Causes {
    exported: BTreeMap<Cow<'static, str>, u64>,
    unprocessed: BTreeMap<Cow<'static, str>, u64>,
    attempts: BTreeMap<Cow<'static, str>, u64>,
    operations: BTreeMap<Cow<'static, str>, Durations>,
}

impl Component {
    fn causes(&self) -> std::sync::MutexGuard<'_, Causes> {
        self.causes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `spans` met their end; `error` says why if it was none that was wished for.
    pub fn exported(&self, spans: u64, error: Cow<'static, str>) {
        add(&mut self.causes().exported, error, spans);
    }

    /// `spans` never reached the exporter: `queue_full` or `already_shutdown`.
    pub fn unprocessed(&self, spans: u64, error: &'static str) {
        add(&mut self.causes().unprocessed, error.into(), spans);
    }

    /// One attempt to send failed.
    pub fn failed(&self, error: Cow<'static, str>) {
        add(&mut self.causes().attempts, error, 1);
    }

    /// A request took so long from its first attempt to its fate.
    pub fn operation(&self, time: Duration, error: Cow<'static, str>) {
        let mut causes = self.causes();
        let error = known(&causes.operations, error);
        causes.operations.entry(error).or_default().record(time);
    }

    fn point(&self, error: &str, value: Value) -> Point {
        let mut labels = vec![
            ("otel.component.name", self.name.clone()),
            ("otel.component.type", self.kind.to_owned()),
        ];
        if !error.is_empty() {
            labels.push(("error.type", error.to_owned()));
        }
        (labels, value)
    }

    fn before(&self, error: &str, value: Value) -> Point {
        // The queue is a part of its own to OpenTelemetry; it has its exporter's number.
        let number = self.name.rsplit('/').next().unwrap_or_default();
        let mut labels = vec![
            (
                "otel.component.name",
                format!("batching_span_processor/{}/{number}", self.kind),
            ),
            ("otel.component.type", "batching_span_processor".to_owned()),
        ];
        if !error.is_empty() {
            labels.push(("error.type", error.to_owned()));
        }
        (labels, value)
    }
}

/// `error.type` of what a file or a pipe did not take.
pub fn cause(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::StorageFull => "storage_full",
        std::io::ErrorKind::BrokenPipe => "broken_pipe",
        _ => "_OTHER",
    }
}

/// A target without what stands behind its host: there may be a token in it.
fn origin(target: &str) -> &str {
    let host = target.find("://").map_or(0, |place| place + 3);
    let rest = target.get(host..).unwrap_or_default();
    match rest.find('/').filter(|_| host > 0) {
        Some(end) => target.get(..host + end).unwrap_or(target),
        None => target,
    }
}

fn known<V>(map: &BTreeMap<Cow<'static, str>, V>, error: Cow<'static, str>) -> Cow<'static, str> {
    if map.len() < CAUSES || map.contains_key(&error) {
        error
    } else {
        "_OTHER".into()
    }
}

fn add(map: &mut BTreeMap<Cow<'static, str>, u64>, error: Cow<'static, str>, n: u64) {
    if n > 0 {
        let error = known(map, error);
        *map.entry(error).or_default() += n;
    }
}

/// All exporters that there are or were.
#[derive(Debug, Default)]
pub struct Components(Mutex<Vec<Arc<Component>>>);

impl Components {
    /// The exporter of that kind to that target, known by its place among those of its kind.
    pub fn register(&self, kind: &'static str, target: &str, capacity: usize) -> Arc<Component> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let same = all.iter().find(|c| c.kind == kind && c.target == target);
        let component = same.cloned().unwrap_or_else(|| {
            let number = all.iter().filter(|c| c.kind == kind).count();
            let component = Arc::new(Component {
                kind,
                name: format!("{kind}/{number}"),
                target: target.to_owned(),
                waiting: Counter::default(),
                capacity: Counter::default(),
                bytes: Counter::default(),
                inflight: Counter::default(),
                processed: Counter::default(),
                retries: Counter::default(),
                delay: Durations::default(),
                causes: Mutex::default(),
            });
            all.push(component.clone());
            component
        });
        component.capacity.set(capacity as u64);
        component
    }

    /// Their names, for people.
    pub fn names(&self) -> String {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let names: Vec<_> = all
            .iter()
            .map(|c| format!("{} to {}", c.kind, origin(&c.target)))
            .collect();
        names.join(", ")
    }

    /// Bytes in all queues.
    pub(super) fn queued_bytes(&self) -> u64 {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|c| c.bytes.get()).sum()
    }

    pub(super) fn read(&self, readings: &mut Vec<Reading>) {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut processed = Vec::new();
        let mut exported = Vec::new();
        let mut attempts = Vec::new();
        let mut operations = Vec::new();
        for component in &all {
            let causes = component.causes();
            if component.capacity.get() > 0 {
                processed.push(component.before("", Value::Whole(component.processed.get())));
                let full = causes.unprocessed.get("queue_full").copied().unwrap_or(0);
                processed.push(component.before("queue_full", Value::Whole(full)));
            }
            for (error, n) in causes.unprocessed.iter().filter(|(error, _)| *error != "queue_full") {
                processed.push(component.before(error, Value::Whole(*n)));
            }
            let good = causes.exported.get("").copied().unwrap_or(0);
            exported.push(component.point("", Value::Whole(good)));
            for (error, n) in causes.exported.iter().filter(|(error, _)| !error.is_empty()) {
                exported.push(component.point(error, Value::Whole(*n)));
            }
            for (error, n) in &causes.attempts {
                attempts.push(component.point(error, Value::Whole(*n)));
            }
            for (error, durations) in &causes.operations {
                operations.push(component.point(error, durations.read()));
            }
        }
        let queues = || all.iter().filter(|c| c.capacity.get() > 0);
        let mut push = |name, unit, about, kind, points: Vec<Point>| {
            if !points.is_empty() {
                readings.push(Reading {
                    name,
                    unit,
                    about,
                    kind,
                    points,
                });
            }
        };
        push(
            "otel.sdk.processor.span.queue.size",
            "{span}",
            "Spans in the queue before an exporter",
            Kind::UpDown,
            queues().map(|c| c.before("", Value::Whole(c.waiting.get()))).collect(),
        );
        push(
            "otel.sdk.processor.span.queue.capacity",
            "{span}",
            "Most spans that the queue before an exporter holds",
            Kind::UpDown,
            queues().map(|c| c.before("", Value::Whole(c.capacity.get()))).collect(),
        );
        push(
            "otel.sdk.processor.span.processed",
            "{span}",
            "Spans given to an exporter, or why not",
            Kind::Counter,
            processed,
        );
        push(
            "otel.sdk.exporter.span.inflight",
            "{span}",
            "Spans on their way to the receiver",
            Kind::UpDown,
            all.iter()
                .map(|c| c.point("", Value::Whole(c.inflight.get())))
                .collect(),
        );
        push(
            "otel.sdk.exporter.span.exported",
            "{span}",
            "Spans whose export has ended, well or not",
            Kind::Counter,
            exported,
        );
        push(
            "otel.sdk.exporter.operation.duration",
            "s",
            "Duration of exporting a batch, all attempts together",
            Kind::Histogram,
            operations,
        );
        push(
            "tracewire.exporter.attempts.failed",
            "{attempt}",
            "Attempts to send a batch that failed, by what the network or the receiver said",
            Kind::Counter,
            attempts,
        );
        push(
            "tracewire.exporter.retries",
            "{attempt}",
            "Attempts that followed a failed one",
            Kind::Counter,
            all.iter().map(|c| c.point("", Value::Whole(c.retries.get()))).collect(),
        );
        push(
            "tracewire.exporter.delay",
            "s",
            "Time from the end of a request to the receiver's answer to its span",
            Kind::Histogram,
            all.iter().map(|c| c.point("", c.delay.read())).collect(),
        );
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn an_exporter_made_anew_goes_on_counting_and_another_has_a_number_of_its_own() {
        let components = Components::default();
        let first = components.register("otlp_http_span_exporter", "http://a/TOKEN?key=x", 10);
        first.exported(3, "".into());
        let again = components.register("otlp_http_span_exporter", "http://a/TOKEN?key=x", 20);
        again.exported(4, "".into());
        again.exported(2, "rejected".into());
        let other = components.register("otlp_http_span_exporter", "http://b/", 10);
        other.unprocessed(5, "queue_full");
        let mut readings = Vec::new();
        components.read(&mut readings);
        let of = |name: &str| readings.iter().find(|r| r.name == name).unwrap().points.clone();
        assert_eq!(
            components.names(),
            "otlp_http_span_exporter to http://a, otlp_http_span_exporter to http://b"
        );
        let exported: Vec<_> = of("otel.sdk.exporter.span.exported")
            .into_iter()
            .map(|(labels, value)| (labels[0].1.clone(), labels.get(2).map(|l| l.1.clone()), value))
            .collect();
        let (zero, one) = ("otlp_http_span_exporter/0", "otlp_http_span_exporter/1");
        assert_eq!(
            exported,
            [
                (zero.to_owned(), None, Value::Whole(7)),
                (zero.to_owned(), Some("rejected".to_owned()), Value::Whole(2)),
                (one.to_owned(), None, Value::Whole(0)),
            ]
        );
        let full = of("otel.sdk.processor.span.processed").pop().unwrap();
        assert_eq!((full.0[2].1.as_str(), full.1), ("queue_full", Value::Whole(5)));
    }

    #[test]
    fn causes_are_bounded() {
        let components = Components::default();
        let component = components.register("x", "", 1);
        for i in 0..100 {
            component.failed(format!("{i}").into());
        }
        let causes = component.causes();
        assert_eq!(causes.attempts.len(), CAUSES + 1);
        assert_eq!(causes.attempts.get("_OTHER"), Some(&(100 - CAUSES as u64)));
    }
}
