//! Spans to an OTLP receiver, by gRPC or HTTP. The caller never waits: a
//! bounded queue takes what it can, a background task sends it in batches, and
//! what finds no room, no receiver or no time is dropped and counted by cause.
//!
//! Encoded directly (`encode`), tested against opentelemetry-proto's messages,
//! instead of opentelemetry-otlp's `SpanExporter`, which takes one resource a request
//! (the agent has one a process), tells nobody how many spans a partial
//! success left out, and gives up retrying after one request's timeout.
//! `examples/otlp_bench.rs` measures both.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::Exporter;
use crate::config::{self, Batch};
use crate::span::Span;
use crate::telemetry::{Component, Counters};

mod codec;
mod encode;
mod endpoint;
pub mod file;
mod json;
mod message;
pub mod metrics;
mod proxy;
mod retry;
pub mod rotation;
pub(super) mod tls;
mod transport;
mod worker;

#[cfg(test)]
mod tests;

pub use message::{SCHEMA_URL, SCOPE_NAME, request};

use endpoint::Target;
pub(super) use retry::{chain, word};

use retry::Backoff;
use transport::Transport;
use worker::Worker;

/// Largest request that is sent, bytes (OTLP specification, "Maximum message size").
const MAX_REQUEST_BYTES: usize = 64 << 20;

/// Sends spans to one receiver.
pub struct OtlpExporter {
    queue: Arc<Queue>,
    batch_size: usize,
    stop: watch::Sender<Option<Instant>>,
    finished: mpsc::Receiver<()>,
    task: JoinHandle<()>,
    counters: Arc<Counters>,
    component: Arc<Component>,
    closed: bool,
}

impl OtlpExporter {
    /// An exporter by those settings, sending from a task on `runtime`. Connects when
    /// there is something to send, so a receiver may start later than the agent.
    ///
    /// # Errors
    /// A setting that can't work: an endpoint that is no URL, a certificate that can't be read.
    pub fn new(
        otlp: &config::Otlp,
        batch: &Batch,
        runtime: &Handle,
        counters: Arc<Counters>,
    ) -> Result<Self, config::Error> {
        Self::with_backoff(otlp, batch, runtime, counters, Backoff::default())
    }

    fn with_backoff(
        otlp: &config::Otlp,
        batch: &Batch,
        runtime: &Handle,
        counters: Arc<Counters>,
        backoff: Backoff,
    ) -> Result<Self, config::Error> {
        let target = Target::of(otlp)?;
        let transport = {
            // tonic's channel spawns its connection task where it is made.
            let _guard = runtime.enter();
            Transport::new(otlp, &target)?
        };
        tracing::debug!(endpoint = %target.url, protocol = ?otlp.protocol.value, headers = ?otlp.headers, "OTLP export");
        let kind = match otlp.protocol.value {
            config::Protocol::Grpc => "otlp_grpc_span_exporter",
            config::Protocol::HttpProtobuf => "otlp_http_span_exporter",
            config::Protocol::HttpJson => "otlp_http_json_span_exporter",
        };
        let to = target.socket.as_deref().unwrap_or(target.url.as_str());
        let component = counters.components.register(kind, to, batch.max_queue_size);
        let queue = Arc::new(Queue::new(
            batch.max_queue_size,
            batch.max_export_batch_size,
            component.clone(),
        ));
        let (stop, stopped) = watch::channel(None);
        let (finish, finished) = mpsc::sync_channel(1);
        let worker = Worker {
            queue: queue.clone(),
            transport,
            headers: otlp.headers.clone(),
            batch: batch.clone(),
            timeout: otlp.timeout,
            backoff,
            counters: counters.clone(),
            component: component.clone(),
            stopped,
        };
        let task = runtime.spawn(async move {
            worker.run().await;
            let _ = finish.send(());
        });
        Ok(OtlpExporter {
            queue,
            batch_size: batch.max_export_batch_size,
            stop,
            finished,
            task,
            counters,
            component,
            closed: false,
        })
    }
}

impl Exporter for OtlpExporter {
    fn export(&mut self, spans: &[Span]) {
        if self.closed {
            self.counters.dropped_shutdown.add(spans.len() as u64);
            self.component.unprocessed(spans.len() as u64, "already_shutdown");
            return;
        }
        let (taken, held) = self.queue.push(spans);
        let left_out = (spans.len() - taken) as u64;
        self.counters.dropped_queue_full.add(left_out);
        self.component.unprocessed(left_out, "queue_full");
        if held >= self.batch_size {
            self.queue.filled.notify_one();
        }
    }

    /// Blocks the calling thread until all is sent, at most for `deadline`: not to be
    /// called on the only thread of the runtime that the exporter was given.
    fn shutdown(&mut self, deadline: Duration) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        let _ = self.stop.send(Some(Instant::now() + deadline));
        if self.finished.recv_timeout(deadline).is_err() {
            self.task.abort();
        }
        let (held, under_way) = self.queue.abandon();
        self.counters.dropped_shutdown.add(held + under_way);
        self.component.unprocessed(held, "already_shutdown");
        self.component.exported(under_way, "shutdown".into());
    }
}

impl Drop for OtlpExporter {
    fn drop(&mut self) {
        self.shutdown(Duration::ZERO);
    }
}

/// Spans that wait, encoded, and the number of those under way.
struct Queue {
    waiting: Mutex<Waiting>,
    limit: usize,
    batch_size: usize,
    /// Woken when a batch is full.
    filled: Notify,
    /// Spans taken by the worker and not yet accounted for. Whoever sets it to zero accounts.
    in_flight: AtomicU64,
    component: Arc<Component>,
}

#[derive(Default)]
struct Waiting {
    batches: VecDeque<encode::Batch>,
    spans: usize,
}

impl Queue {
    fn new(limit: usize, batch_size: usize, component: Arc<Component>) -> Self {
        Queue {
            waiting: Mutex::default(),
            limit,
            batch_size: batch_size.max(1),
            filled: Notify::new(),
            in_flight: AtomicU64::new(0),
            component,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what it has room for: number taken, number held now.
    fn push(&self, spans: &[Span]) -> (usize, usize) {
        let mut waiting = self.lock();
        let taken = spans.len().min(self.limit.saturating_sub(waiting.spans));
        for span in spans.iter().take(taken) {
            match waiting.batches.back_mut() {
                Some(last) if self.has_room(last) => last.push(span),
                _ => {
                    let mut batch = encode::Batch::default();
                    batch.push(span);
                    waiting.batches.push_back(batch);
                }
            }
        }
        waiting.spans += taken;
        self.tell(&waiting);
        (taken, waiting.spans)
    }

    fn tell(&self, waiting: &Waiting) {
        let bytes: usize = waiting.batches.iter().map(encode::Batch::bytes).sum();
        self.component.waiting.set(waiting.spans as u64);
        self.component.bytes.set(bytes as u64);
    }

    fn has_room(&self, batch: &encode::Batch) -> bool {
        batch.len() < self.batch_size && batch.bytes() < MAX_REQUEST_BYTES / 2
    }

    /// The oldest batch; one that has room for more only if `unfilled`.
    fn pop(&self, unfilled: bool) -> Option<encode::Batch> {
        let mut waiting = self.lock();
        if !unfilled && waiting.batches.front().is_none_or(|first| self.has_room(first)) {
            return None;
        }
        let batch = waiting.batches.pop_front()?;
        waiting.spans = waiting.spans.saturating_sub(batch.len());
        self.tell(&waiting);
        self.component.inflight.add(batch.len() as u64);
        self.component.processed.add(batch.len() as u64);
        self.in_flight.fetch_add(batch.len() as u64, Ordering::Relaxed);
        Some(batch)
    }

    fn len(&self) -> usize {
        self.lock().spans
    }

    /// `n` spans of the last `pop` have met their fate; false if [`Queue::abandon`] has
    /// already counted them.
    fn settle(&self, n: u64) -> bool {
        let settled = self
            .in_flight
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |all| all.checked_sub(n))
            .is_ok();
        if settled {
            self.component.inflight.sub(n);
        }
        settled
    }

    /// Gives up everything held and under way, and says how many spans that were.
    fn abandon(&self) -> (u64, u64) {
        let mut waiting = self.lock();
        let held = std::mem::take(&mut *waiting).spans as u64;
        self.tell(&waiting);
        let under_way = self.in_flight.swap(0, Ordering::Relaxed);
        self.component.inflight.sub(under_way);
        (held, under_way)
    }
}

/// The encoded request that carries those spans.
pub fn encoded(spans: &[Span]) -> bytes::Bytes {
    let mut batch = encode::Batch::default();
    for span in spans {
        batch.push(span);
    }
    batch.finish()
}
