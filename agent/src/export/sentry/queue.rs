//! Envelopes that wait for the way to one project, bounded in number, and what became of
//! them. Whoever makes an envelope takes its place first, so that what finds none costs
//! nothing; who sends it gives the place back.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use reqwest::header::{HeaderMap, HeaderName, RETRY_AFTER};
use tokio::sync::{Notify, watch};

use super::envelope;
use super::limits::{Category, Limits};
use super::losses::{Losses, Reason};
use crate::telemetry::{Component, Counters};

/// Envelopes that wait at a time: one second's of a busy node.
pub const QUEUE: usize = 2048;
/// How often somebody who waits looks again.
const LOOK: Duration = Duration::from_millis(2);

/// What the senders and the exporter both know of one project.
#[derive(Debug)]
pub struct Shared {
    limits: Mutex<Limits>,
    /// Counts for client reports.
    pub losses: Losses,
    queue: Mutex<VecDeque<Vec<u8>>>,
    filled: Notify,
    /// Places taken: envelopes in the making, in the queue or under way.
    waiting: AtomicUsize,
    /// The agent's numbers.
    pub counters: Arc<Counters>,
    /// The same by OpenTelemetry's names.
    pub component: Arc<Component>,
    closing: watch::Sender<bool>,
    warned: Mutex<Option<Instant>>,
}

impl Shared {
    /// Nothing sent yet.
    pub fn new(counters: Arc<Counters>, component: Arc<Component>) -> Self {
        Shared {
            limits: Mutex::default(),
            losses: Losses::default(),
            queue: Mutex::default(),
            filled: Notify::new(),
            waiting: AtomicUsize::new(0),
            counters,
            component,
            closing: watch::Sender::new(false),
            warned: Mutex::default(),
        }
    }

    /// Whether that kind may be sent now.
    pub fn allows(&self, category: Category) -> bool {
        let limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        limits.allows(category, Instant::now())
    }

    /// Takes a place in the queue; false: it is full, at `until` too if that is given.
    pub fn enter(&self, until: Option<Instant>) -> bool {
        let take = || {
            self.waiting
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < QUEUE).then_some(n + 1))
                .is_ok()
        };
        loop {
            if take() {
                return true;
            }
            if until.is_none_or(|until| Instant::now() >= until) {
                return false;
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Gives the place back of an envelope that was not made.
    pub fn leave(&self) {
        let _ = self
            .waiting
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
    }

    /// An envelope that has a place.
    pub fn push(&self, bytes: Vec<u8>) {
        self.component.bytes.add(bytes.len() as u64);
        self.component.inflight.add(envelope::content(&bytes).1);
        self.queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(bytes);
        self.filled.notify_one();
    }

    /// The oldest envelope, once there is one.
    pub async fn pop(&self) -> Vec<u8> {
        loop {
            let oldest = self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            match oldest {
                Some(bytes) => return bytes,
                None => self.filled.notified().await,
            }
        }
    }

    /// An envelope of that size met its fate.
    pub fn settled(&self, bytes: usize, spans: u64) {
        self.component.bytes.sub(bytes as u64);
        self.component.inflight.sub(spans);
        self.leave();
    }

    /// Envelopes on their way.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Waits until none is; false: some are after `timeout`.
    pub fn drained(&self, timeout: Duration) -> bool {
        let end = Instant::now() + timeout;
        while self.waiting() > 0 {
            if Instant::now() >= end {
                return false;
            }
            std::thread::sleep(LOOK);
        }
        true
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

    /// Gives up what is under way or waits.
    pub fn give_up(&self) {
        self.closing.send_replace(true);
    }

    /// Once it is given up.
    pub async fn given_up(&self) {
        let mut closing = self.closing.subscribe();
        // The sender is this very structure's.
        let _ = closing.wait_for(|closing| *closing).await;
    }

    /// Nobody sends any more: what is left is lost.
    pub fn abandon(&self) {
        let left = self.waiting.swap(0, Ordering::Relaxed);
        self.counters.sentry_shutdown.add(left as u64);
        let spans = self.component.inflight.get();
        self.component.exported(spans, Reason::Shutdown.word().into());
        self.component.inflight.set(0);
        self.component.bytes.set(0);
    }

    /// Takes over what an answer says of limits.
    pub fn answered(&self, status: u16, headers: &HeaderMap) {
        let fields = headers.get_all(HeaderName::from_static("x-sentry-rate-limits"));
        let fields: Vec<&str> = fields.iter().filter_map(|v| v.to_str().ok()).collect();
        let limits = (!fields.is_empty()).then(|| fields.join(","));
        if let Some(limits) = &limits {
            tracing::debug!("Sentry limits what it takes: {limits}");
        }
        let retry = headers.get(RETRY_AFTER).and_then(|v| v.to_str().ok());
        let mut known = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        known.answer(status, limits.as_deref(), retry, Instant::now(), SystemTime::now());
    }

    /// Says once a minute that it does not work.
    pub fn warn(&self, problem: &str) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if warned.is_none_or(|at| now.duration_since(at) >= Duration::from_secs(60)) {
            *warned = Some(now);
            tracing::warn!("Sentry did not take an envelope: {problem}");
        }
    }
}
