//! Calls, errors and latencies by service, kind and method: what a person
//! wants to know at the end of a run.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use hdrhistogram::Histogram;

use super::console::{NARROW, clean, duration, fit};
use crate::span::{Kind, Span, Status};

/// Most rows; calls beyond go to one more, [`OTHERS`].
const MAX_ROWS: usize = 256;
const OTHERS: &str = "(others)";
/// Digits to which latencies are kept.
const DIGITS: u8 = 2;

impl Row {
    fn quantile(&self, q: f64) -> String {
        let latency = self.latency.as_ref();
        latency.map_or_else(|| "-".to_owned(), |l| duration(l.value_at_quantile(q)))
    }
}

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
        if width < NARROW {
            return Some(self.render_narrow(width));
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
            // Writing to a string does not fail.
            let _ = writeln!(
                table,
                "{:service$}  {kind:6}  {:method$}  {:>7}  {:>7}  {:>8}  {:>8}",
                fit(&name, service),
                fit(&span, method),
                row.calls,
                row.errors,
                row.quantile(0.5),
                row.quantile(0.99),
            );
        }
        Some(table)
    }

    /// The same where a row does not fit a line: who, then below it what.
    fn render_narrow(&self, width: usize) -> String {
        let mut table = String::new();
        for ((name, kind, span), row) in &self.rows {
            let who = format!("{} {kind} ", fit(&clean(name), width / 3));
            let room = width.saturating_sub(who.chars().count());
            let figures = format!("calls {}  errors {}", row.calls, row.errors);
            let times = format!("p50 {}  p99 {}", row.quantile(0.5), row.quantile(0.99));
            // Writing to a string does not fail.
            let _ = writeln!(table, "{who}{}", fit(&clean(span), room));
            let fits = figures.len() + times.chars().count() + 4 <= width;
            let separator = if fits { "  " } else { "\n  " };
            let _ = writeln!(table, "  {figures}{separator}{times}");
        }
        table
    }
}
