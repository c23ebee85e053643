//! Keep or drop: what the head decision did not choose is held until its
//! request has ended, and let go after all if something went wrong in it.
//! Bias: an error is always kept, and what is kept for it never counts for
//! more than itself.
//!
//! ```text
//!              sampled ──────────────────────────────► out
//! span ──►   not sampled ──► held, by trace ──► dropped
//!                              │ an error, or slow
//!                              └──────────────────────► out, with `tracewire.sampling.reason`
//! ```
//!
//! A trace is held until its root ends here. What ended for a caller that is not
//! seen waits [`LINGER`] for it, a call [`Config::buffer_time`] for the request
//! that it was made for; if more than [`Config::buffer_bytes`] wait, the oldest go.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use crate::attribute::Value;
use crate::propagation::head::{self, Head};
use crate::propagation::tracestate;
use crate::span::conventions::key;
use crate::span::{Span, Status};

mod hold;
#[cfg(test)]
mod tests;

use hold::{Hold, Kept};

/// How long the spans of a trace wait for a caller that may be observed here.
pub const LINGER: Duration = Duration::from_secs(5);

/// What is kept.
#[derive(Clone, Debug)]
pub struct Config {
    /// The head decision.
    pub head: head::Config,
    /// Whether traces with an error are kept whatever the head decided.
    pub keep_errors: bool,
    /// Traces with a span of at least this length are kept likewise.
    pub keep_slower_than: Option<Duration>,
    /// Most memory for spans that wait, bytes.
    pub buffer_bytes: usize,
    /// Longest wait of a span for the request that it belongs to.
    pub buffer_time: Duration,
}

impl Default for Config {
    /// Everything.
    fn default() -> Self {
        Config {
            head: head::Config::default(),
            keep_errors: true,
            keep_slower_than: None,
            buffer_bytes: 8 << 20,
            buffer_time: Duration::from_secs(60),
        }
    }
}

/// What became of spans, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Let through because they were sampled.
    pub sampled: u64,
    /// Let through because of an error or their length.
    pub released: u64,
    /// Dropped by the decision.
    pub unsampled: u64,
    /// Dropped before their request ended, because too much waited.
    pub evicted: u64,
}

/// Why an unsampled trace is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Error,
    Slow,
}

impl Reason {
    fn word(self) -> &'static str {
        match self {
            Reason::Error => "error",
            Reason::Slow => "slow",
        }
    }
}

/// Sifts spans.
pub struct Sampler {
    config: Config,
    head: Head,
    hold: Hold,
    counts: Counts,
}

impl Sampler {
    /// One that keeps what `config` says.
    pub fn new(config: Config) -> Self {
        Sampler {
            head: Head::new(config.head.clone()),
            hold: Hold::new(config.buffer_bytes, config.buffer_time),
            counts: Counts::default(),
            config,
        }
    }

    /// Leaves in `spans` what is exported now: sampled ones, and held ones that an error
    /// let go. `now_ns`: any steady clock, ns.
    pub fn sift(&mut self, spans: &mut Vec<Span>, now_ns: u64) {
        self.counts.unsampled += self.hold.expire(now_ns);
        let all = |spans: &[Span]| {
            spans.iter().all(|span| {
                let context = &span.context;
                self.head
                    .keeps(&context.trace_id, context.flags, context.trace_state.as_deref())
            })
        };
        if all(spans) {
            self.counts.sampled += spans.len() as u64;
            return;
        }
        let mut out = Vec::with_capacity(spans.len());
        for span in spans.drain(..) {
            self.take(span, now_ns, &mut out);
        }
        *spans = out;
    }

    /// The end: what waits is dropped, for no error came.
    pub fn stop(&mut self) {
        self.counts.unsampled += self.hold.clear();
    }

    /// Memory of what waits, bytes.
    pub fn held_bytes(&self) -> usize {
        self.hold.bytes()
    }

    /// The share of traces that is asked for.
    pub fn asked(&self) -> f64 {
        self.config.head.root.ratio()
    }

    /// What became of spans.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    fn take(&mut self, mut span: Span, now_ns: u64, out: &mut Vec<Span>) {
        let context = &span.context;
        if self
            .head
            .keeps(&context.trace_id, context.flags, context.trace_state.as_deref())
        {
            self.counts.sampled += 1;
            out.push(span);
            return;
        }
        let reason = self.reason(&span);
        if let Some(reason) = reason {
            let released = self.hold.release(&span, reason, now_ns);
            self.counts.released += 1 + released.len() as u64;
            for mut held in released {
                mark(&mut held, reason);
                out.push(held);
            }
            mark(&mut span, reason);
            out.push(span);
            return;
        }
        match self.hold.put(span, now_ns) {
            Kept::Released(mut span, reason) => {
                self.counts.released += 1;
                mark(&mut span, reason);
                out.push(*span);
            }
            Kept::Held { evicted } => self.counts.evicted += evicted,
            Kept::Ended { dropped } => self.counts.unsampled += dropped,
        }
    }

    fn reason(&self, span: &Span) -> Option<Reason> {
        if self.config.keep_errors && matches!(span.status, Status::Error(_)) {
            return Some(Reason::Error);
        }
        let length = span.end_unix_ns.saturating_sub(span.start_unix_ns);
        let slow = self
            .config
            .keep_slower_than
            .is_some_and(|limit| u128::from(length) >= limit.as_nanos());
        slow.then_some(Reason::Slow)
    }
}

/// Says why it is there, and takes away the threshold: whoever scales counts up by it must
/// not scale this one.
fn mark(span: &mut Span, reason: Reason) {
    if let Some(state) = &span.context.trace_state
        && tracestate::threshold(state).is_some()
    {
        span.context.trace_state = tracestate::with_threshold(Some(state), None).map(Arc::from);
    }
    span.attributes.push((
        Cow::Borrowed(key::SAMPLING_REASON),
        Value::Str(Cow::Borrowed(reason.word())),
    ));
}
