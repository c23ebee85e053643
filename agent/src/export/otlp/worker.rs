//! The background task: takes batches off the queue, sends each until it is
//! taken, refused, or out of time, and counts what became of every span.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;

use super::retry::{Attempt, Backoff};
use super::transport::Transport;
use super::{MAX_REQUEST_BYTES, Queue, encode};
use crate::clock;
use crate::config::{Batch, Headers};
use crate::telemetry::{Component, Counters};

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
    pub component: Arc<Component>,
    /// Set to the deadline when the exporter shuts down.
    pub stopped: watch::Receiver<Option<Instant>>,
}

/// What became of a batch.
enum Fate {
    Taken { rejected: u64 },
    Refused(Cow<'static, str>),
    OutOfTime(Cow<'static, str>),
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
            while let Some(batch) = self.queue.pop(due > 0) {
                due = due.saturating_sub(batch.len());
                self.send(batch).await;
            }
            if stopping {
                return;
            }
        }
    }

    async fn send(&mut self, mut batch: encode::Batch) {
        let n = batch.len() as u64;
        let ends = batch.take_ends();
        let request = batch.finish();
        // Batches end at half of it, and no span is as large as the other half.
        if request.len() > MAX_REQUEST_BYTES {
            if self.queue.settle(n) {
                self.counters.dropped_too_large.add(n);
                self.component.exported(n, "too_large".into());
            }
            return;
        }
        let begin = Instant::now();
        let fate = self.try_until_settled(n, request).await;
        let error = match &fate {
            Fate::Taken { .. } => Cow::Borrowed(""),
            Fate::Refused(error) | Fate::OutOfTime(error) => error.clone(),
        };
        self.component.operation(begin.elapsed(), error.clone());
        if !self.queue.settle(n) {
            return;
        }
        let counters = &self.counters;
        match fate {
            Fate::Taken { rejected } => {
                let rejected = rejected.min(n);
                counters.dropped_rejected.add(rejected);
                counters.spans_exported.add(n - rejected);
                self.component.exported(rejected, "rejected".into());
                self.component.exported(n - rejected, error);
                let now = clock::unix_ns();
                for end in ends {
                    self.component
                        .delay
                        .record(Duration::from_nanos(now.saturating_sub(end)));
                }
                return;
            }
            Fate::Refused(_) => counters.dropped_refused.add(n),
            Fate::OutOfTime(_) if self.stopped.borrow().is_some() => counters.dropped_shutdown.add(n),
            Fate::OutOfTime(_) => counters.dropped_timeout.add(n),
        }
        self.component.exported(n, error);
    }

    async fn try_until_settled(&mut self, spans: u64, request: Bytes) -> Fate {
        let end = Instant::now() + self.batch.export_timeout;
        let mut last = Cow::Borrowed("timeout");
        for retry in 0.. {
            let Some(left) = self.left(end) else { break };
            let attempt = self.transport.send(request.clone(), left.min(self.timeout)).await;
            let (after, problem) = match attempt {
                Attempt::Taken { rejected, message } => {
                    if rejected > 0 || !message.is_empty() {
                        tracing::warn!(rejected, spans, "OTLP receiver: {}", self.readable(&message));
                    }
                    return Fate::Taken { rejected };
                }
                Attempt::Refused { error, problem } => {
                    self.counters.export_failures.increment();
                    self.component.failed(error.clone());
                    tracing::warn!(spans, "OTLP export refused, spans dropped: {problem}");
                    return Fate::Refused(error);
                }
                Attempt::Retryable { after, error, problem } => {
                    last = error;
                    (after, problem)
                }
            };
            self.counters.export_failures.increment();
            self.component.failed(last.clone());
            let wait = self.backoff.wait(retry, after);
            if self.left(end).is_none_or(|left| left <= wait) {
                tracing::warn!(spans, "OTLP export gave up, spans dropped: {problem}");
                break;
            }
            tracing::warn!("OTLP export failed, next try in {} ms: {problem}", wait.as_millis());
            self.pause(wait, end).await;
            if self.left(end).is_some() {
                self.counters.export_retries.increment();
                self.component.retries.increment();
            }
        }
        Fate::OutOfTime(last)
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
