//! The way to one project: the `sentry` crate's thread and queue, with what it
//! lacks in the function that sends. Limits that only grow, spans among them;
//! bodies compressed; an end to each request; a count of all that is lost.

use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use flate2::Compression;
use flate2::write::GzEncoder;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use sentry::transports::{RateLimiter, TokioTransportThread, TokioTransportThreadOptions};
use sentry::{Envelope, Transport, TransportFactory, TransportOptions};
use tokio::sync::watch;

use super::envelope;
use super::limits::{Category, Limits};
use super::losses::{Losses, Reason};
use crate::export::otlp::chain;
use crate::telemetry::Counters;

/// Envelopes that wait at a time.
pub const QUEUE: usize = 256;
/// Longest wait for one answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Waits before another try after no answer, or one that says it is the server's fault.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(2)];

/// What the sender and the exporter both know of one project.
#[derive(Debug)]
pub struct Shared {
    limits: Mutex<Limits>,
    /// Counts for client reports.
    pub losses: Losses,
    /// Envelopes handed over and not yet settled.
    waiting: AtomicUsize,
    counters: Arc<Counters>,
    closing: watch::Sender<bool>,
    warned: Mutex<Option<Instant>>,
}

impl Shared {
    /// Nothing sent yet.
    pub fn new(counters: Arc<Counters>) -> Self {
        Shared {
            limits: Mutex::default(),
            losses: Losses::default(),
            waiting: AtomicUsize::new(0),
            counters,
            closing: watch::Sender::new(false),
            warned: Mutex::default(),
        }
    }

    /// Whether that kind may be sent now.
    pub fn allows(&self, category: Category) -> bool {
        let limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        limits.allows(category, Instant::now())
    }

    /// Takes a place in the queue; false: it is full.
    pub fn enter(&self) -> bool {
        self.waiting
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < QUEUE).then_some(n + 1))
            .is_ok()
    }

    /// Gives the place back.
    fn leave(&self) {
        let _ = self
            .waiting
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
    }

    /// Envelopes on their way.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Something was lost.
    pub fn lost(&self, reason: Reason, category: Category, spans: u64) {
        self.losses.lost(reason, category, spans);
        if category == Category::Report {
            return;
        }
        match reason {
            Reason::RateLimit => self.counters.sentry_rate_limited.increment(),
            Reason::QueueOverflow => self.counters.sentry_queue_full.increment(),
            Reason::Network => self.counters.sentry_unreachable.increment(),
            Reason::SendError => self.counters.sentry_refused.increment(),
            Reason::Shutdown => self.counters.sentry_shutdown.increment(),
            Reason::TooLarge => self.counters.sentry_too_large.increment(),
            // A choice, no loss.
            Reason::SampleRate => {}
        }
    }

    /// Gives up what is under way: its thread ends soon.
    pub fn give_up(&self) {
        self.closing.send_replace(true);
    }

    /// The thread has ended: what it left is lost.
    pub fn abandon(&self) {
        let left = self.waiting.swap(0, Ordering::Relaxed);
        self.counters.sentry_shutdown.add(left as u64);
    }

    fn answered(&self, status: u16, headers: &HeaderMap) {
        let text = |name: HeaderName| headers.get(name).and_then(|v| v.to_str().ok());
        let limits = text(HeaderName::from_static("x-sentry-rate-limits"));
        if let Some(limits) = limits {
            tracing::debug!("Sentry limits what it takes: {limits}");
        }
        let mut known = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        known.answer(status, limits, text(RETRY_AFTER), Instant::now(), SystemTime::now());
    }

    /// Says once a minute that it does not work.
    fn warn(&self, problem: &str) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if warned.is_none_or(|at| now.duration_since(at) >= Duration::from_secs(60)) {
            *warned = Some(now);
            tracing::warn!("Sentry did not take an envelope: {problem}");
        }
    }
}

/// Makes the transport of a `sentry::Client`.
pub struct Factory {
    /// Trusts and proxies as the agent does.
    pub http: reqwest::Client,
    /// Of the same project.
    pub shared: Arc<Shared>,
}

impl TransportFactory for Factory {
    fn create_transport_with_options(&self, options: TransportOptions) -> Arc<dyn Transport> {
        let mut headers = HeaderMap::new();
        let auth = options.dsn.to_auth(Some(&options.user_agent)).to_string();
        if let Ok(mut value) = HeaderValue::from_str(&auth) {
            value.set_sensitive(true);
            headers.insert(HeaderName::from_static("x-sentry-auth"), value);
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-sentry-envelope"));
        let sender = Arc::new(Sender {
            http: self.http.clone(),
            url: options.dsn.envelope_api_url(),
            headers,
            shared: self.shared.clone(),
        });
        let send = move |envelope: Envelope, limiter: RateLimiter| {
            let sender = sender.clone();
            async move {
                sender.send(&envelope).await;
                sender.shared.leave();
                limiter
            }
        };
        // Room for more than ever waits: what finds none would be lost without a count.
        let thread = TokioTransportThreadOptions::new(send)
            .with_channel_capacity(QUEUE + 16)
            .spawn_thread();
        Arc::new(Thread(thread))
    }
}

struct Thread(TokioTransportThread);

impl Transport for Thread {
    fn send_envelope(&self, envelope: Envelope) {
        self.0.send(envelope);
    }

    fn flush(&self, timeout: Duration) -> bool {
        self.0.flush(timeout)
    }
}

enum Answer {
    Taken,
    Limited,
}

struct Sender {
    http: reqwest::Client,
    url: reqwest::Url,
    headers: HeaderMap,
    shared: Arc<Shared>,
}

impl Sender {
    async fn send(&self, envelope: &Envelope) {
        let mut bytes = Vec::new();
        if envelope.to_writer(&mut bytes).is_err() {
            return;
        }
        let (category, spans) = envelope::content(&bytes);
        let shared = &self.shared;
        if !shared.allows(category) {
            shared.lost(Reason::RateLimit, category, spans);
            return;
        }
        let mut closing = shared.closing.subscribe();
        let sending = self.settle(bytes);
        let result = tokio::select! {
            result = sending => result,
            _ = closing.wait_for(|closing| *closing) => Err(Reason::Shutdown),
        };
        match result {
            // The server counts what it answers with 429 itself.
            Ok(Answer::Limited) => shared.counters.sentry_rate_limited.increment(),
            Ok(Answer::Taken) => match category {
                Category::Error => shared.counters.sentry_issues.increment(),
                Category::Transaction => shared.counters.sentry_transactions.increment(),
                Category::Span | Category::Report => {}
            },
            Err(reason) => shared.lost(reason, category, spans),
        }
    }

    /// Sends until it is taken or refused.
    async fn settle(&self, bytes: Vec<u8>) -> Result<Answer, Reason> {
        let body = compress(&bytes).map_err(|_| Reason::SendError)?;
        let mut pauses = PAUSES.into_iter();
        loop {
            let request = self
                .http
                .post(self.url.clone())
                .headers(self.headers.clone())
                .header(CONTENT_ENCODING, "gzip")
                .timeout(TIMEOUT)
                .body(body.clone())
                .send()
                .await;
            let reason = match request {
                Ok(response) => {
                    let status = response.status().as_u16();
                    self.shared.answered(status, response.headers());
                    match status {
                        200..=299 => return Ok(Answer::Taken),
                        429 => return Ok(Answer::Limited),
                        502..=504 => Reason::SendError,
                        _ => {
                            self.shared.warn(&format!("HTTP status {status}"));
                            return Err(Reason::SendError);
                        }
                    }
                }
                Err(error) => {
                    // Never the address: it holds the project's.
                    self.shared.warn(&chain(&error.without_url()));
                    Reason::Network
                }
            };
            match pauses.next() {
                // Those that wait are worth more than another try.
                Some(pause) if self.shared.waiting() < QUEUE / 2 => tokio::time::sleep(pause).await,
                _ => return Err(reason),
            }
        }
    }
}

fn compress(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 2), Compression::fast());
    encoder.write_all(bytes)?;
    encoder.finish()
}
