//! Counts shared by the rooms. Each thing that was dropped has a cause, so
//! that a missing span can be explained.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tracewire_common::{fault, inject};

use super::component::Components;
use super::durations::Durations;
use super::readings::{ProbePoints, Ratio};

/// A count that only grows; cheap to share.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts `n` more.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Counts one more.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Takes over a total that is counted elsewhere (the kernel's).
    pub fn set(&self, total: u64) {
        self.0.store(total, Ordering::Relaxed);
    }

    /// Counts `n` less, of what can become less.
    pub fn sub(&self, n: u64) {
        let _ = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |all| Some(all.saturating_sub(n)));
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The metric of a count: what stands behind the second dot is its cause.
fn metric(name: &'static str) -> &'static str {
    match name.match_indices('.').nth(1) {
        Some((cause, _)) => name.get(..cause).unwrap_or(name),
        None => name,
    }
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])* $field:ident: $name:literal,)*) => {
        /// All counts of one agent.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[doc = $doc])* pub $field: Counter,)*
            /// Processes observed now.
            pub processes: Counter,
            /// Events that the kernel programs lost, by [`fault::Fault`].
            pub lost_events: [Counter; fault::COUNT as usize],
            /// Requests that an injector looked at, by [`inject::Fate`].
            pub injections: [Counter; inject::COUNT as usize],
            /// Spans given to the exporters' thread, and those that all exporters took or dropped.
            pub handed: Counter,
            /// See there.
            pub taken: Counter,
            /// Connections followed now.
            pub connections: Counter,
            /// Memory of spans that wait for their trace to end, bytes.
            pub hold_bytes: Counter,
            /// Probes, by kind and reason.
            pub probe_points: Mutex<ProbePoints>,
            /// From a request's end to its span being given to the exporters.
            pub processing: Durations,
            /// Share of traces asked for.
            pub asked: Ratio,
            /// Share of spans kept by that.
            pub actual: Ratio,
            /// The exporters.
            pub components: Components,
        }

        impl Counters {
            /// Name, metric, meaning, count.
            pub(super) fn named(&self) -> impl Iterator<Item = (&'static str, &'static str, &'static str, u64)> {
                [$(($name, metric(concat!("tracewire.", $name)), concat!($($doc,)*).trim_ascii(), self.$field.get()),)*].into_iter()
            }
        }
    };
}

counters! {
    /// Records read from the ring buffer.
    events: "events",
    /// Bytes that left the kernel.
    kernel_bytes: "kernel_bytes",
    /// HPACK indexes that point before the attach or past a gap.
    hpack_unknown: "hpack_unknown",
    /// Heads and blocks that could not be parsed.
    malformed: "malformed",
    /// Pieces of streams before which bytes are missing.
    gaps: "gaps",
    /// Responses whose request was not seen.
    requests_unseen: "requests_unseen",
    /// Server spans that found their client's span on this node.
    spans_joined: "spans_joined",
    /// Client spans that found the served request on whose behalf they are.
    spans_linked: "spans_linked",
    /// Client spans for which several served requests could be the parent; they begin traces.
    parents_ambiguous: "parents_ambiguous",
    /// Client spans whose served request was not seen, or was over before; they begin traces.
    parents_unseen: "parents_unseen",
    /// Probes in place in observed programs.
    probes: "probes",
    /// What runtimes' modules can't do in observed programs; the log says why.
    probes_lacking: "probes_lacking",
    /// Pieces of TLS connections whose socket was not found in time.
    tls_unjoined: "tls_unjoined",
    /// Spans made of exchanges, less those that sampling left out.
    spans: "spans",
    /// Spans that sampling left out.
    unsampled: "spans_unsampled",
    /// Spans that are there for an error or their length, whatever sampling chose.
    released: "spans_kept_for_error",
    /// Unsampled spans that could not wait for the end of their request, because too many did.
    evicted: "spans_unsampled_early",
    /// Spans that the OTLP receiver took.
    spans_exported: "spans_exported",
    /// Spans dropped because the queue was full (`OTEL_BSP_MAX_QUEUE_SIZE`).
    dropped_queue_full: "spans_dropped.queue_full",
    /// Spans of requests that the OTLP receiver refused for good.
    dropped_refused: "spans_dropped.refused",
    /// Spans that the OTLP receiver refused out of a request that it took (partial success).
    dropped_rejected: "spans_dropped.rejected",
    /// Spans whose retries took longer than `OTEL_BSP_EXPORT_TIMEOUT`.
    dropped_timeout: "spans_dropped.timeout",
    /// Spans that alone are larger than a request may be.
    dropped_too_large: "spans_dropped.too_large",
    /// Spans not sent by the end of the shutdown's deadline.
    dropped_shutdown: "spans_dropped.shutdown",
    /// Spans that the exporters' thread was too slow to take.
    dropped_pipeline: "spans_dropped.pipeline",
    /// Spans that standard output did not take.
    dropped_output: "spans_dropped.output",
    /// Spans that the OTLP file did not take.
    dropped_file: "spans_dropped.file",
    /// Spans written to the OTLP file.
    file_exported: "spans_written",
    /// Times that the file of spans was put aside, by the agent for its size or by others.
    files_rotated: "files_rotated",
    /// Files with spans that were given up for newer ones.
    files_discarded: "files_discarded",
    /// Requests with metrics that the OTLP receiver took.
    metrics_exported: "metrics_exported",
    /// Requests with metrics that it did not take.
    metrics_failures: "metrics_failures",
    /// Times that a changed configuration was taken.
    reloads: "reloads",
    /// Times that it was wrong and the old one held.
    reloads_failed: "reloads_failed",
    /// Requests that carry spans, the agent's own or a collector's, of which no span is made.
    own_requests: "own_requests",
    /// OTLP requests that failed, retried or not.
    export_failures: "export_failures",
    /// OTLP requests that were tried again.
    export_retries: "export_retries",
    /// Transactions that Sentry took.
    sentry_transactions: "sentry_transactions",
    /// Events of failed requests that Sentry took.
    sentry_issues: "sentry_issues",
    /// Envelopes not sent because Sentry asked for it.
    sentry_rate_limited: "sentry_dropped.rate_limited",
    /// Envelopes that found the queue full.
    sentry_queue_full: "sentry_dropped.queue_full",
    /// Envelopes that got no answer.
    sentry_unreachable: "sentry_dropped.unreachable",
    /// Envelopes that Sentry refused.
    sentry_refused: "sentry_dropped.refused",
    /// Envelopes not sent by the end of the shutdown's deadline.
    sentry_shutdown: "sentry_dropped.shutdown",
    /// Spans and transactions that are larger than Sentry allows.
    sentry_too_large: "sentry_dropped.too_large",
    /// Traces that the console left out because nobody reads so fast.
    console_hidden: "console_traces_hidden",
}

impl Counters {
    /// All counts by name, `lost_events.CAUSE` for the kernel's.
    pub fn snapshot(&self) -> Vec<(Cow<'static, str>, u64)> {
        let own = self.named().map(|(name, _, _, n)| (Cow::Borrowed(name), n));
        let lost = self
            .lost()
            .map(|(cause, n)| (Cow::Owned(format!("lost_events.{cause}")), n));
        let injections = inject::NAMES
            .iter()
            .zip(&self.injections)
            .map(|(fate, counter)| (Cow::Owned(format!("injections.{fate}")), counter.get()));
        own.chain(lost).chain(injections).collect()
    }

    /// All spans that were made and reached nobody.
    pub fn dropped(&self) -> u64 {
        self.dropped_by_cause().map(|(_, n)| n).sum()
    }

    /// One line for the end of a run, for people. Causes that did not occur are left out.
    pub fn summary(&self) -> String {
        let mut line = format!("spans {}", self.spans.get());
        let unsampled = self.unsampled.get() + self.evicted.get();
        if unsampled > 0 {
            let _ = write!(line, ", not sampled {unsampled}");
        }
        write_group(&mut line, "dropped", self.dropped_by_cause());
        write_group(&mut line, "lost events", self.lost());
        line
    }

    fn dropped_by_cause(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.named()
            .filter_map(|(name, _, _, n)| Some((name.strip_prefix("spans_dropped.")?, n)))
    }

    fn lost(&self) -> impl Iterator<Item = (&'static str, u64)> {
        fault::NAMES.into_iter().zip(self.lost_events.iter().map(Counter::get))
    }
}

fn write_group(line: &mut String, title: &str, counts: impl Iterator<Item = (&'static str, u64)>) {
    let counts: Vec<_> = counts.filter(|(_, n)| *n > 0).collect();
    let total: u64 = counts.iter().map(|(_, n)| n).sum();
    // Writing to a string does not fail.
    let _ = write!(line, ", {title} {total}");
    for (i, (cause, n)) in counts.iter().enumerate() {
        let _ = write!(line, "{}{cause} {n}", if i == 0 { " (" } else { ", " });
    }
    if !counts.is_empty() {
        line.push(')');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_of_a_good_run_is_short() {
        let counters = Counters::default();
        counters.spans.add(12);
        counters.spans_exported.add(12);
        assert_eq!(counters.summary(), "spans 12, dropped 0, lost events 0");
    }

    #[test]
    fn the_summary_names_each_cause_of_a_loss() {
        let counters = Counters::default();
        counters.spans.add(100);
        counters.dropped_queue_full.add(30);
        counters.dropped_rejected.add(4);
        counters.lost_events[fault::Fault::RingFull as usize].set(7);
        assert_eq!(
            counters.summary(),
            "spans 100, dropped 34 (queue_full 30, rejected 4), lost events 7 (ring_full 7)"
        );
        assert_eq!(counters.dropped(), 34);
    }

    #[test]
    fn a_snapshot_has_every_name_once() {
        let snapshot = Counters::default().snapshot();
        let names: std::collections::BTreeSet<_> = snapshot.iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(names.len(), snapshot.len());
        assert!(names.contains("lost_events.ring_full") && names.contains("spans_dropped.queue_full"));
    }
}
