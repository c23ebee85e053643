//! Spans that wait, by trace, bounded in bytes and in time.

use std::collections::VecDeque;
use std::time::Duration;

use rustc_hash::FxHashMap;

use super::{LINGER, Reason};
use crate::attribute::Value;
use crate::span::{Kind, Span, SpanId, TraceId};

/// What became of a span that is not sampled.
pub(super) enum Kept {
    /// Its trace has been let go before.
    Released(Box<Span>, Reason),
    /// It waits; so many others had to go for it.
    Held { evicted: u64 },
    /// Its trace is over: so many spans were dropped, itself among them.
    Ended { dropped: u64 },
}

#[derive(Default)]
struct Trace {
    number: u64,
    spans: Vec<Span>,
    bytes: usize,
    /// Served requests whose calls are here and whose own span is not.
    awaited: Vec<SpanId>,
    until_ns: u64,
    /// Let go: what still comes follows.
    released: Option<Reason>,
    /// Whether an entry of [`Hold::waits`] or [`Hold::lingers`] stands for it.
    waits: bool,
    lingers: bool,
}

type Line = VecDeque<(u64, u64, TraceId)>;

pub(super) struct Hold {
    limit: usize,
    time_ns: u64,
    traces: FxHashMap<TraceId, Trace>,
    bytes: usize,
    next: u64,
    /// By age: (number, trace).
    order: VecDeque<(u64, TraceId)>,
    /// By deadline: (until_ns, number, trace). One line for each length of wait, so each is sorted.
    waits: Line,
    lingers: Line,
}

/// Memory of a trace without its spans, bytes.
const TRACE: usize = size_of::<Trace>() + size_of::<TraceId>() * 3 + 48;

impl Hold {
    pub(super) fn new(limit: usize, time: Duration) -> Self {
        Hold {
            limit,
            time_ns: nanoseconds(time),
            traces: FxHashMap::default(),
            bytes: 0,
            next: 0,
            order: VecDeque::new(),
            waits: VecDeque::new(),
            lingers: VecDeque::new(),
        }
    }

    /// Takes a span without fault.
    pub(super) fn put(&mut self, span: Span, now_ns: u64) -> Kept {
        let id = span.context.trace_id;
        let over = span.context.parent.is_none();
        let Some(trace) = self.traces.get_mut(&id) else {
            if over {
                return Kept::Ended { dropped: 1 };
            }
            self.open(&span, now_ns);
            let bytes = size(&span);
            if let Some(trace) = self.traces.get_mut(&id) {
                trace.bytes += bytes;
                trace.spans.push(span);
            }
            self.bytes += bytes;
            return Kept::Held { evicted: self.evict() };
        };
        if let Some(reason) = trace.released {
            self.extend(&span, now_ns);
            return Kept::Released(Box::new(span), reason);
        }
        trace.awaited.retain(|awaited| *awaited != span.context.span_id);
        if over && trace.awaited.is_empty() {
            let dropped = 1 + self.remove(&id);
            return Kept::Ended { dropped };
        }
        let bytes = size(&span);
        self.extend(&span, now_ns);
        if let Some(trace) = self.traces.get_mut(&id) {
            trace.bytes += bytes;
            trace.spans.push(span);
        }
        self.bytes += bytes;
        Kept::Held { evicted: self.evict() }
    }

    /// Lets go what waits of `span`'s trace, and what of it still comes.
    pub(super) fn release(&mut self, span: &Span, reason: Reason, now_ns: u64) -> Vec<Span> {
        let id = span.context.trace_id;
        if self.traces.contains_key(&id) {
            self.extend(span, now_ns);
        } else {
            self.open(span, now_ns);
        }
        let Some(trace) = self.traces.get_mut(&id) else {
            return Vec::new();
        };
        trace.released.get_or_insert(reason);
        trace.awaited.retain(|awaited| *awaited != span.context.span_id);
        self.bytes -= std::mem::take(&mut trace.bytes);
        std::mem::take(&mut trace.spans)
    }

    /// Drops what waited long enough: number of spans.
    pub(super) fn expire(&mut self, now_ns: u64) -> u64 {
        self.expire_line(now_ns, true) + self.expire_line(now_ns, false)
    }

    /// Memory of what waits, bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Drops everything: number of spans.
    pub(super) fn clear(&mut self) -> u64 {
        let dropped = self.traces.values().map(|t| t.spans.len() as u64).sum();
        *self = Hold::new(self.limit, Duration::from_nanos(self.time_ns));
        dropped
    }

    fn open(&mut self, span: &Span, now_ns: u64) {
        let id = span.context.trace_id;
        self.next += 1;
        let number = self.next;
        self.traces.insert(
            id,
            Trace {
                number,
                ..Trace::default()
            },
        );
        self.order.push_back((number, id));
        self.bytes += TRACE;
        self.extend(span, now_ns);
    }

    /// Sets the deadline anew.
    fn extend(&mut self, span: &Span, now_ns: u64) {
        let id = span.context.trace_id;
        let Some(trace) = self.traces.get_mut(&id) else { return };
        if let Some(parent) = span.context.parent
            && span.kind == Kind::Client
            && !span.context.parent_is_remote
            && !trace.awaited.contains(&parent)
            && !trace.spans.iter().any(|s| s.context.span_id == parent)
        {
            trace.awaited.push(parent);
        }
        let waits = !trace.awaited.is_empty();
        let (line, stands, wait_ns) = if waits {
            (&mut self.waits, &mut trace.waits, self.time_ns)
        } else {
            (
                &mut self.lingers,
                &mut trace.lingers,
                nanoseconds(LINGER).min(self.time_ns),
            )
        };
        trace.until_ns = now_ns.saturating_add(wait_ns);
        if !std::mem::replace(stands, true) {
            line.push_back((trace.until_ns, trace.number, id));
        }
    }

    fn expire_line(&mut self, now_ns: u64, waits: bool) -> u64 {
        let mut dropped = 0;
        loop {
            let line = if waits { &mut self.waits } else { &mut self.lingers };
            let Some(&(until_ns, number, id)) = line.front() else {
                break;
            };
            if until_ns > now_ns {
                break;
            }
            line.pop_front();
            let Some(trace) = self.traces.get_mut(&id).filter(|t| t.number == number) else {
                continue;
            };
            if trace.until_ns <= now_ns {
                dropped += self.remove(&id);
                continue;
            }
            // Its deadline has moved: to the end of the line that it belongs to now.
            *(if waits { &mut trace.waits } else { &mut trace.lingers }) = false;
            let (line, stands) = if trace.awaited.is_empty() {
                (&mut self.lingers, &mut trace.lingers)
            } else {
                (&mut self.waits, &mut trace.waits)
            };
            if !std::mem::replace(stands, true) {
                let entry = (trace.until_ns, number, id);
                let place = line.partition_point(|(until, ..)| *until <= entry.0);
                line.insert(place, entry);
            }
        }
        dropped
    }

    fn remove(&mut self, id: &TraceId) -> u64 {
        let Some(trace) = self.traces.remove(id) else { return 0 };
        self.bytes -= trace.bytes + TRACE;
        if self.order.len() > 2 * self.traces.len() + 1024 {
            let traces = &self.traces;
            let there = |number: &u64, id: &TraceId| traces.get(id).is_some_and(|t| t.number == *number);
            self.order.retain(|(number, id)| there(number, id));
            self.waits.retain(|(_, number, id)| there(number, id));
            self.lingers.retain(|(_, number, id)| there(number, id));
        }
        trace.spans.len() as u64
    }

    fn evict(&mut self) -> u64 {
        let mut evicted = 0;
        while self.bytes > self.limit {
            let Some((number, id)) = self.order.pop_front() else {
                break;
            };
            if self.traces.get(&id).is_some_and(|t| t.number == number) {
                evicted += self.remove(&id);
            }
        }
        evicted
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Memory of a span, about, bytes. Shared strings count as if they were its own.
fn size(span: &Span) -> usize {
    let values: usize = span
        .attributes
        .iter()
        .map(|(_, value)| match value {
            Value::Shared(s) => s.len(),
            Value::Strings(list) => list.iter().map(|s| s.len() + 16).sum(),
            _ => 0,
        })
        .sum();
    size_of::<Span>() + span.attributes.capacity() * size_of::<(crate::attribute::Key, Value)>() + values
}
