//! The background task: takes batches off the queue, sends each until it is
//! taken, refused, or out of time, and counts what became of every span.

use std::sync::Arc;
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message as _;
use tokio::sync::watch;

use super::retry::{Attempt, Backoff};
use super::transport::Transport;
use super::{MAX_REQUEST_BYTES, Queue, message};
use crate::config::{Batch, Headers};
use crate::span::Span;
use crate::telemetry::Counters;

/// Longest text of the receiver that is logged, characters.
const MAX_SAID: usize = 200;

pub(super) struct Worker {
    pub queue: Arc<Queue>,
    pub transport: Transport,
    pub headers: Headers,
    pub batch: Batch,
    pub timeout: Duration,
    pub backoff: Backoff,
    pub counters: Arc<Counters>,
    /// Set to the deadline when the exporter shuts down.
    pub stopped: watch::Receiver<Option<Instant>>,
}

/// What became of a batch.
enum Fate {
    Taken { rejected: u64 },
    Refused,
    OutOfTime,
}

impl Worker {
    /// Until the exporter shuts down and the queue is empty or the deadline is over.
    pub async fn run(mut self) {
        let mut stopped = self.stopped.clone();
        loop {
            let delay = self.batch.schedule_delay;
            let (all, stopping) = tokio::select! {
                () = self.queue.filled.notified() => (false, false),
                () = tokio::time::sleep(delay) => (true, false),
                _ = stopped.wait_for(Option::is_some) => (true, true),
            };
            // A round sends all that is there now, or full batches only; more may come meanwhile.
            let mut due = if all { self.queue.len() } else { 0 };
            while due > 0 || self.queue.len() >= self.batch.max_export_batch_size {
                let batch = self.queue.pop(self.batch.max_export_batch_size);
                if batch.is_empty() {
                    break;
                }
                due = due.saturating_sub(batch.len());
                self.send_split(&batch).await;
            }
            if stopping {
                return;
            }
        }
    }

    /// Sends a batch, in halves while it is larger than a request may be.
    async fn send_split(&mut self, batch: &[Span]) {
        let mut parts = vec![batch];
        while let Some(part) = parts.pop() {
            let request = message::request(part);
            if request.encoded_len() <= MAX_REQUEST_BYTES {
                self.send(part, request).await;
            } else if part.len() > 1 {
                let (first, second) = part.split_at(part.len() / 2);
                parts.extend([second, first]);
            } else if self.queue.settle(1) {
                self.counters.dropped_too_large.increment();
            }
        }
    }

    async fn send(&mut self, batch: &[Span], request: ExportTraceServiceRequest) {
        let n = batch.len() as u64;
        let fate = self.try_until_settled(batch, request).await;
        if !self.queue.settle(n) {
            return;
        }
        let counters = &self.counters;
        match fate {
            Fate::Taken { rejected } => {
                let rejected = rejected.min(n);
                counters.dropped_rejected.add(rejected);
                counters.spans_exported.add(n - rejected);
            }
            Fate::Refused => counters.dropped_refused.add(n),
            Fate::OutOfTime if self.stopped.borrow().is_some() => counters.dropped_shutdown.add(n),
            Fate::OutOfTime => counters.dropped_timeout.add(n),
        }
    }

    async fn try_until_settled(&mut self, batch: &[Span], request: ExportTraceServiceRequest) -> Fate {
        // Retries are rare: building the request again costs less than keeping a copy of each.
        let mut first = Some(request);
        let end = Instant::now() + self.batch.export_timeout;
        for retry in 0.. {
            let Some(left) = self.left(end) else { break };
            let request = first.take().unwrap_or_else(|| message::request(batch));
            let attempt = self.transport.send(request, left.min(self.timeout)).await;
            let (after, problem) = match attempt {
                Attempt::Taken { rejected, message } => {
                    if rejected > 0 || !message.is_empty() {
                        tracing::warn!(
                            rejected,
                            spans = batch.len(),
                            "OTLP receiver: {}",
                            self.readable(&message)
                        );
                    }
                    return Fate::Taken { rejected };
                }
                Attempt::Refused { problem } => {
                    self.counters.export_failures.increment();
                    tracing::warn!(spans = batch.len(), "OTLP export refused, spans dropped: {problem}");
                    return Fate::Refused;
                }
                Attempt::Retryable { after, problem } => (after, problem),
            };
            self.counters.export_failures.increment();
            let wait = self.backoff.wait(retry, after);
            if self.left(end).is_none_or(|left| left <= wait) {
                tracing::warn!(spans = batch.len(), "OTLP export gave up, spans dropped: {problem}");
                break;
            }
            tracing::warn!("OTLP export failed, next try in {} ms: {problem}", wait.as_millis());
            self.pause(wait, end).await;
            if self.left(end).is_some() {
                self.counters.export_retries.increment();
            }
        }
        Fate::OutOfTime
    }

    /// Time left for a batch that has until `end`, less if the exporter shuts down.
    fn left(&self, end: Instant) -> Option<Duration> {
        let end = self.stopped.borrow().map_or(end, |stop| stop.min(end));
        end.checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero())
    }

    /// Waits, but not past the deadline of a shutdown that comes meanwhile.
    async fn pause(&self, wait: Duration, end: Instant) {
        let mut stopped = self.stopped.clone();
        let until = tokio::time::Instant::now() + wait;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return,
                changed = stopped.changed() => {
                    if changed.is_err() || self.left(end).is_none_or(|left| left <= until - tokio::time::Instant::now()) {
                        return;
                    }
                }
            }
        }
    }

    /// The receiver's words, cut, without control characters (they reach a terminal) and
    /// without what it may repeat of the header fields.
    fn readable(&self, text: &str) -> String {
        self.headers
            .redact(text)
            .chars()
            .filter(|c| !c.is_control())
            .take(MAX_SAID)
            .collect()
    }
}
