//! Which spans make one transaction: a served request and the calls that were
//! made for it. Calls end before the request that they serve, mostly; so they
//! wait for it, and it waits a little for the late ones. Without clock.
//!
//! A call that nobody's request made (a client's own, or one whose cause is
//! not known) is a transaction by itself, so that the trace stays whole.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use crate::span::{Kind, Span, SpanId, TraceId};

/// How long a served request waits for calls that are reported late, ns.
const GRACE: u64 = 1_000_000_000;
/// How long a call waits for the request that it was made for, ns.
const PATIENCE: u64 = 120_000_000_000;
/// Spans that wait at a time; the oldest make room.
pub const WAITING: usize = 16 * 1024;

/// One transaction in the making.
#[derive(Debug)]
pub struct Family {
    /// The served request, or a call by itself.
    pub root: Span,
    /// Calls made for it, in the order of their beginnings.
    pub calls: Vec<Span>,
}

type Parent = (TraceId, SpanId);

/// Brings them together.
#[derive(Debug, Default)]
pub struct Families {
    calls: FxHashMap<Parent, Vec<Span>>,
    /// Parents of waiting calls by the arrival of the first: (until, parent).
    order: VecDeque<(u64, Parent)>,
    /// Served requests: (due, span).
    served: VecDeque<(u64, Span)>,
    waiting: usize,
}

impl Families {
    /// Takes a finished span; `now_ns`: any steady clock.
    pub fn take(&mut self, span: &Span, now_ns: u64, out: &mut Vec<Family>) {
        match (span.kind, span.context.parent) {
            (Kind::Server, _) => {
                self.served.push_back((now_ns + GRACE, span.clone()));
            }
            (Kind::Client, Some(parent)) if !span.context.parent_is_remote => {
                let parent = (span.context.trace_id, parent);
                let calls = self.calls.entry(parent).or_default();
                if calls.is_empty() {
                    self.order.push_back((now_ns + PATIENCE, parent));
                }
                calls.push(span.clone());
            }
            (Kind::Client, _) => {
                out.push(Family {
                    root: span.clone(),
                    calls: Vec::new(),
                });
                return;
            }
        }
        self.waiting += 1;
        if self.waiting > WAITING {
            self.make_room(out);
        }
    }

    /// Families that waited long enough.
    pub fn due(&mut self, now_ns: u64, out: &mut Vec<Family>) {
        while let Some((due, _)) = self.served.front()
            && *due <= now_ns
        {
            self.serve(out);
        }
        while let Some((until, _)) = self.order.front()
            && *until <= now_ns
        {
            self.orphan(out);
        }
    }

    /// Spans that wait.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// All that wait.
    pub fn finish(&mut self, out: &mut Vec<Family>) {
        self.due(u64::MAX, out);
    }

    fn make_room(&mut self, out: &mut Vec<Family>) {
        if !self.served.is_empty() {
            self.serve(out);
        } else {
            self.orphan(out);
        }
    }

    fn serve(&mut self, out: &mut Vec<Family>) {
        let Some((_, root)) = self.served.pop_front() else {
            return;
        };
        let key = (root.context.trace_id, root.context.span_id);
        let mut calls = self.calls.remove(&key).unwrap_or_default();
        calls.sort_by_key(|call| call.start_unix_ns);
        self.waiting -= 1 + calls.len();
        out.push(Family { root, calls });
    }

    fn orphan(&mut self, out: &mut Vec<Family>) {
        let Some((_, parent)) = self.order.pop_front() else {
            return;
        };
        // Its request may have come meanwhile.
        let calls = self.calls.remove(&parent).unwrap_or_default();
        self.waiting -= calls.len();
        out.extend(calls.into_iter().map(|root| Family {
            root,
            calls: Vec::new(),
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::example;

    const SECOND: u64 = 1_000_000_000;

    fn call(id: u64, parent: Option<u64>, start: u64) -> Span {
        let mut span = example::server(7, id, parent);
        span.kind = Kind::Client;
        span.start_unix_ns = start;
        span
    }

    fn ids(families: &[Family]) -> Vec<(u64, Vec<u64>)> {
        let id = |s: &Span| u64::from_be_bytes(s.context.span_id);
        families
            .iter()
            .map(|f| (id(&f.root), f.calls.iter().map(id).collect()))
            .collect()
    }

    #[test]
    fn calls_join_the_request_that_made_them_early_or_late() {
        let (mut families, mut out) = (Families::default(), Vec::new());
        families.take(&call(3, Some(2), 30), 0, &mut out);
        families.take(&call(4, Some(2), 20), 0, &mut out);
        families.take(&example::server(7, 2, Some(1)), 100 * SECOND, &mut out);
        families.take(&call(5, Some(2), 40), 100 * SECOND + 1, &mut out);
        families.due(100 * SECOND + 2, &mut out);
        assert!(out.is_empty());
        families.due(101 * SECOND, &mut out);
        assert_eq!(ids(&out), [(2, vec![4, 3, 5])]);
        assert_eq!(families.waiting, 0);
    }

    #[test]
    fn a_call_of_nobody_is_a_transaction_by_itself() {
        let (mut families, mut out) = (Families::default(), Vec::new());
        families.take(&call(3, None, 0), 0, &mut out);
        families.take(&call(4, Some(9), 0), 0, &mut out);
        assert_eq!(ids(&out), [(3, vec![])]);
        families.finish(&mut out);
        assert_eq!(ids(&out), [(3, vec![]), (4, vec![])]);
    }

    #[test]
    fn what_waits_is_bounded() {
        let (mut families, mut out) = (Families::default(), Vec::new());
        for i in 0..3 * WAITING as u64 {
            families.take(&call(i, Some(i + 1), 0), i, &mut out);
        }
        assert_eq!(out.len(), 2 * WAITING);
    }
}
