//! Calls, errors and latencies by service, kind and method: what a person
//! wants to know at the end of a run.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use hdrhistogram::Histogram;

use super::console::{clean, duration, fit};
use crate::span::{Kind, Span, Status};

/// Most rows; calls beyond go to one more, [`OTHERS`].
const MAX_ROWS: usize = 256;
const OTHERS: &str = "(others)";
/// Digits to which latencies are kept.
const DIGITS: u8 = 2;

/// Figures of the run so far.
#[derive(Default)]
pub struct Summary {
    rows: BTreeMap<(Arc<str>, &'static str, Arc<str>), Row>,
}

#[derive(Default)]
struct Row {
    calls: u64,
    errors: u64,
    /// ns; `None` only if it could not be made.
    latency: Option<Histogram<u32>>,
}

impl Summary {
    /// Counts `spans` in.
    pub fn record(&mut self, spans: &[Span]) {
        for span in spans {
            let kind = match span.kind {
                Kind::Client => "client",
                Kind::Server => "server",
            };
            let mut key = (span.resource.service_name.clone(), kind, span.name.clone());
            if self.rows.len() >= MAX_ROWS && !self.rows.contains_key(&key) {
                key = (OTHERS.into(), "", "".into());
            }
            let row = self.rows.entry(key).or_insert_with(|| Row {
                latency: Histogram::new(DIGITS).ok(),
                ..Row::default()
            });
            row.calls += 1;
            row.errors += u64::from(matches!(span.status, Status::Error(_)));
            if let Some(latency) = &mut row.latency {
                // Grows as need be; a length that does not fit is not one.
                let _ = latency.record(span.end_unix_ns.saturating_sub(span.start_unix_ns));
            }
        }
    }

    /// A table of at most `width` columns; `None` if nothing was recorded.
    pub fn render(&self, width: usize) -> Option<String> {
        if self.rows.is_empty() {
            return None;
        }
        const NUMBERS: usize = 6 + 4 * 2 + 7 + 7 + 8 + 8;
        let longest = |texts: &mut dyn Iterator<Item = usize>, least: usize| texts.max().unwrap_or(0).max(least);
        let free = width.saturating_sub(NUMBERS + 4);
        let service = longest(&mut self.rows.keys().map(|(s, ..)| s.chars().count()), 7).min(free / 3);
        let method =
            longest(&mut self.rows.keys().map(|(_, _, m)| m.chars().count()), 6).min(free.saturating_sub(service));
        let mut table = format!(
            "{:service$}  {:6}  {:method$}  {:>7}  {:>7}  {:>8}  {:>8}\n",
            "service", "kind", "method", "calls", "errors", "p50", "p99"
        );
        for ((name, kind, span), row) in &self.rows {
            let (name, span) = (clean(name), clean(span));
            let quantile = |q| {
                row.latency
                    .as_ref()
                    .map_or_else(|| "-".to_owned(), |l| duration(l.value_at_quantile(q)))
            };
            // Writing to a string does not fail.
            let _ = writeln!(
                table,
                "{:service$}  {kind:6}  {:method$}  {:>7}  {:>7}  {:>8}  {:>8}",
                fit(&name, service),
                fit(&span, method),
                row.calls,
                row.errors,
                quantile(0.5),
                quantile(0.99),
            );
        }
        Some(table)
    }
}
