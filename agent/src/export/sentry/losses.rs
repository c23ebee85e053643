//! What was not sent, by cause: for Sentry's client reports, so that its
//! numbers are right, and for the agent's own counts.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde_json::{Value as Json, json};

use super::limits::Category;

/// Why something was discarded (develop.sentry.dev, "Client Reports").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// A limit that the server asked for.
    RateLimit,
    /// Too much waited.
    QueueOverflow,
    /// No answer.
    Network,
    /// An answer that refuses it.
    SendError,
    /// Left out by `SENTRY_TRACES_SAMPLE_RATE`, or by the cap on an issue's events.
    SampleRate,
    /// Not sent by the end of the shutdown's deadline.
    Shutdown,
    /// More spans than a transaction may have, or larger than an item may be.
    TooLarge,
}

impl Reason {
    fn name(self) -> &'static str {
        match self {
            Reason::RateLimit => "ratelimit_backoff",
            Reason::QueueOverflow => "queue_overflow",
            Reason::Network => "network_error",
            Reason::SendError => "send_error",
            Reason::SampleRate => "sample_rate",
            Reason::Shutdown => "internal_sdk_error",
            Reason::TooLarge => "buffer_overflow",
        }
    }

    /// The same as `error.type` of the agent's own numbers.
    pub fn word(self) -> &'static str {
        match self {
            Reason::RateLimit => "rate_limited",
            Reason::QueueOverflow => "queue_full",
            Reason::Network => "network",
            Reason::SendError => "refused",
            Reason::SampleRate => "sample_rate",
            Reason::Shutdown => "shutdown",
            Reason::TooLarge => "too_large",
        }
    }
}

/// Counts since the last report.
#[derive(Debug, Default)]
pub struct Losses(Mutex<BTreeMap<(Reason, Category), u64>>);

impl Losses {
    /// An item was lost; a transaction takes its spans with it.
    pub fn lost(&self, reason: Reason, category: Category, spans: u64) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if category != Category::Span {
            *counts.entry((reason, category)).or_default() += 1;
        }
        if spans > 0 {
            *counts.entry((reason, Category::Span)).or_default() += spans;
        }
    }

    /// The payload of a report, and nothing is counted any more; `None` if nothing was.
    pub fn report(&self, unix_seconds: f64) -> Option<Json> {
        let counts = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let events: Vec<Json> = counts
            .into_iter()
            .filter(|((_, category), _)| *category != Category::Report)
            .map(|((reason, category), n)| json!({"reason": reason.name(), "category": category.name(), "quantity": n}))
            .collect();
        (!events.is_empty()).then(|| json!({"timestamp": unix_seconds, "discarded_events": events}))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_transaction_is_lost_with_its_spans_and_told_once() {
        let losses = Losses::default();
        losses.lost(Reason::RateLimit, Category::Transaction, 3);
        losses.lost(Reason::RateLimit, Category::Transaction, 1);
        losses.lost(Reason::SampleRate, Category::Error, 0);
        let report = losses.report(12.5).unwrap();
        assert_eq!(
            report["discarded_events"],
            json!([
                {"reason": "ratelimit_backoff", "category": "transaction", "quantity": 2},
                {"reason": "ratelimit_backoff", "category": "span", "quantity": 4},
                {"reason": "sample_rate", "category": "error", "quantity": 1},
            ])
        );
        assert_eq!(losses.report(13.0), None);
    }
}
