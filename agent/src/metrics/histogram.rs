//! A histogram with the conventions' buckets, and an exemplar a bucket.

use crate::span::{SpanId, TraceId};

pub use crate::telemetry::BOUNDS;

/// One measurement that stands for its bucket, and its trace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exemplar {
    /// The measurement, s.
    pub value: f64,
    /// When, Unix time ns.
    pub time_unix_ns: u64,
    /// A sampled trace.
    pub trace_id: TraceId,
    /// The span that was measured.
    pub span_id: SpanId,
}

/// Counts by bucket.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// Measurements a bucket; the last one is above all bounds.
    pub counts: [u64; BOUNDS.len() + 1],
    /// Sum of all measurements, s.
    pub sum: f64,
    /// The latest one of a sampled trace, a bucket.
    pub exemplars: [Option<Exemplar>; BOUNDS.len() + 1],
}

impl Histogram {
    /// Takes a measurement.
    pub fn record(&mut self, seconds: f64, exemplar: Option<Exemplar>) {
        let bucket = BOUNDS
            .iter()
            .position(|bound| seconds <= *bound)
            .unwrap_or(BOUNDS.len());
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
        }
        self.sum += seconds;
        if let (Some(place), Some(_)) = (self.exemplars.get_mut(bucket), exemplar) {
            *place = exemplar;
        }
    }

    /// Number of measurements.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// What came since `before` was the state.
    pub fn since(&self, before: &Histogram) -> Histogram {
        let mut delta = self.clone();
        for (count, before) in delta.counts.iter_mut().zip(&before.counts) {
            *count = count.saturating_sub(*before);
        }
        delta.sum = (delta.sum - before.sum).max(0.0);
        for (place, before) in delta.exemplars.iter_mut().zip(&before.exemplars) {
            if place == before {
                *place = None;
            }
        }
        delta
    }
}
