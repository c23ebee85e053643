//! All of the agent's own numbers at one moment, named once for `/metrics` and OTLP
//! alike: OpenTelemetry's names where there are any, `tracewire.*` where there are none.

use tracewire_common::{fault, inject};

use super::Counters;
use super::durations::BOUNDS;
use super::memory;

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It can be added up over agents.
    UpDown,
    /// It can't.
    Gauge,
    /// Durations.
    Histogram,
}

/// What a series says.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A number.
    Whole(u64),
    /// A ratio.
    Ratio(f64),
    /// By the buckets of [`super::durations::BOUNDS`], and their sum, s.
    Durations {
        /// The last is above all bounds.
        counts: [u64; BOUNDS.len() + 1],
        /// s
        sum: f64,
    },
}

/// A series: attributes and value.
pub type Point = (Vec<(&'static str, String)>, Value);

/// A metric.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Name, with dots.
    pub name: &'static str,
    /// UCUM.
    pub unit: &'static str,
    /// What it is.
    pub about: &'static str,
    /// What kind of.
    pub kind: Kind,
    /// Its series.
    pub points: Vec<Point>,
}

/// Counts that [`super::component`] tells by OpenTelemetry's names.
const TOLD: [&str; 4] = ["spans_exported", "spans_written", "export_failures", "export_retries"];

impl Counters {
    /// All numbers.
    pub fn readings(&self) -> Vec<Reading> {
        let mut all: Vec<Reading> = Vec::new();
        for (name, metric, about, value) in self.named() {
            // Of the losses, those behind an exporter's queue are told by the exporter.
            let exporters = name.starts_with("spans_dropped.")
                && !matches!(name, "spans_dropped.output" | "spans_dropped.pipeline");
            if TOLD.contains(&name) || exporters {
                continue;
            }
            let labels = match name.split_once('.') {
                Some((_, cause)) => vec![("tracewire.cause", cause.to_owned())],
                None => Vec::new(),
            };
            let point = (labels, Value::Whole(value));
            match all.iter_mut().find(|reading| reading.name == metric) {
                Some(reading) => reading.points.push(point),
                None => all.push(Reading {
                    name: metric,
                    unit: "1",
                    about,
                    kind: Kind::Counter,
                    points: vec![point],
                }),
            }
        }
        let mut push = |name, unit, about, kind, points| {
            all.push(Reading {
                name,
                unit,
                about,
                kind,
                points,
            });
        };
        let by = |label: &'static str, names: &[&str], counts: &[super::Counter]| -> Vec<Point> {
            let pairs = names.iter().zip(counts);
            pairs
                .map(|(name, count)| (vec![(label, (*name).to_owned())], Value::Whole(count.get())))
                .collect()
        };
        push(
            "tracewire.lost_events",
            "{event}",
            "Events that the kernel programs lost",
            Kind::Counter,
            by("tracewire.cause", &fault::NAMES, &self.lost_events),
        );
        push(
            "tracewire.injections",
            "{request}",
            "Requests that an injector looked at",
            Kind::Counter,
            by("tracewire.outcome", &inject::NAMES, &self.injections),
        );
        let probes = self
            .probe_points
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone();
        push(
            "tracewire.probes.attached",
            "{probe}",
            "Probes in place in observed programs",
            Kind::UpDown,
            probes
                .attached
                .into_iter()
                .map(|(program, n)| (vec![("tracewire.probe", program.to_owned())], Value::Whole(n)))
                .collect(),
        );
        push(
            "tracewire.probes.failed",
            "{ability}",
            "What could not be probed in files of observed programs",
            Kind::Counter,
            probes
                .failed
                .into_iter()
                .map(|((ability, reason), n)| {
                    let labels = vec![("tracewire.ability", ability.to_owned()), ("tracewire.reason", reason)];
                    (labels, Value::Whole(n))
                })
                .collect(),
        );
        let one = |value| vec![(Vec::new(), value)];
        push(
            "tracewire.span.processing.duration",
            "s",
            "Time from the end of a request to its span being given to the exporters",
            Kind::Histogram,
            one(self.processing.read()),
        );
        push(
            "tracewire.sampling.ratio",
            "1",
            "Share of traces that is asked for, and share of spans that was kept by it",
            Kind::Gauge,
            vec![
                (vec![("tracewire.sampling", "asked".into())], self.asked.read()),
                (vec![("tracewire.sampling", "actual".into())], self.actual.read()),
            ],
        );
        push(
            "tracewire.processes.observed",
            "{process}",
            "Processes observed now",
            Kind::UpDown,
            one(Value::Whole(self.processes.get())),
        );
        push(
            "tracewire.connections",
            "{connection}",
            "Connections followed now",
            Kind::UpDown,
            one(Value::Whole(self.connections.get())),
        );
        push(
            "process.memory.usage",
            "By",
            "Resident memory of the agent",
            Kind::UpDown,
            one(Value::Whole(memory::resident())),
        );
        let (ring, maps) = memory::kernel();
        let part = |name: &str, bytes| (vec![("tracewire.part", name.to_owned())], Value::Whole(bytes));
        push(
            "tracewire.memory.usage",
            "By",
            "Memory of the agent's parts; the kernel's maps are not in the resident memory",
            Kind::UpDown,
            vec![
                part("kernel_ring_buffer", ring),
                part("kernel_maps", maps),
                part("export_queues", self.components.queued_bytes()),
                part("sampling_hold", self.hold_bytes.get()),
                part(
                    "other",
                    memory::resident().saturating_sub(self.components.queued_bytes() + self.hold_bytes.get()),
                ),
            ],
        );
        self.components.read(&mut all);
        all
    }
}

/// A ratio that threads share.
#[derive(Debug)]
pub struct Ratio(std::sync::atomic::AtomicU64);

impl Default for Ratio {
    fn default() -> Self {
        Ratio(std::sync::atomic::AtomicU64::new(1f64.to_bits()))
    }
}

impl Ratio {
    /// From 0 to 1.
    pub fn set(&self, ratio: f64) {
        self.0.store(ratio.to_bits(), std::sync::atomic::Ordering::Relaxed);
    }

    fn read(&self) -> Value {
        Value::Ratio(f64::from_bits(self.0.load(std::sync::atomic::Ordering::Relaxed)))
    }
}

/// What is in place in observed programs, and what is not.
#[derive(Clone, Debug, Default)]
pub struct ProbePoints {
    /// By the kernel program.
    pub attached: Vec<(&'static str, u64)>,
    /// By ability and reason.
    pub failed: Vec<((&'static str, String), u64)>,
}
