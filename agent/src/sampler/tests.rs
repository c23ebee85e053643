//! What reaches the exporters and what does not.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tracewire_common::sampling::Threshold;

use super::*;
use crate::propagation::head::Facts;
use crate::span::{Kind, SpanContext, TraceId};

const SECOND: u64 = 1_000_000_000;

fn span(trace: TraceId, id: u64, parent: Option<u64>, kind: Kind) -> Span {
    Span {
        context: SpanContext {
            trace_id: trace,
            span_id: id.to_be_bytes(),
            parent: parent.map(u64::to_be_bytes),
            parent_is_remote: kind == Kind::Server,
            flags: 2,
            trace_state: None,
        },
        name: "bank.v1.Ledger/Transfer".into(),
        kind,
        start_unix_ns: SECOND,
        end_unix_ns: SECOND + 1_000_000,
        status: Status::Unset,
        attributes: vec![("rpc.system.name".into(), Value::Str("grpc".into()))],
        dropped_attributes: 0,
        sentry_head: None,
        resource: Arc::default(),
    }
}

fn failed(mut span: Span) -> Span {
    span.status = Status::Error(None);
    span
}

fn sampled(mut span: Span) -> Span {
    span.context.flags = 3;
    span
}

/// The ids that come out of `spans`, one batch each.
fn sift(sampler: &mut Sampler, spans: Vec<Span>, now_ns: u64) -> Vec<u64> {
    let mut out = Vec::new();
    for span in spans {
        let mut batch = vec![span];
        sampler.sift(&mut batch, now_ns);
        out.extend(batch.iter().map(|s| u64::from_be_bytes(s.context.span_id)));
    }
    out
}

#[test]
fn an_error_brings_back_what_waited_and_what_still_comes() {
    let mut sampler = Sampler::new(Config::default());
    let id = [1; 16];
    let spans = vec![
        span(id, 3, Some(2), Kind::Client),
        span(id, 4, Some(2), Kind::Client),
        failed(span(id, 2, Some(1), Kind::Server)),
        span(id, 1, None, Kind::Client),
        span([2; 16], 9, None, Kind::Server),
    ];
    assert_eq!(sift(&mut sampler, spans, 0), [3, 4, 2, 1]);
    let counts = sampler.counts();
    assert_eq!((counts.released, counts.unsampled, counts.sampled), (4, 1, 0));
}

#[test]
fn an_error_below_keeps_the_request_above_it() {
    let mut sampler = Sampler::new(Config::default());
    let id = [1; 16];
    let spans = vec![
        failed(span(id, 3, Some(2), Kind::Client)),
        span(id, 2, Some(1), Kind::Server),
    ];
    assert_eq!(sift(&mut sampler, spans, 0), [3, 2]);
}

#[test]
fn what_is_kept_for_an_error_says_so_and_has_no_threshold() {
    let mut sampler = Sampler::new(Config::default());
    let mut span = failed(span([1; 16], 1, None, Kind::Server));
    span.context.trace_state = Some("ot=th:8;rv:00000000000001,a=b".into());
    let mut batch = vec![span, sampled(failed(self::span([2; 16], 2, None, Kind::Server)))];
    sampler.sift(&mut batch, 0);
    let reason = |s: &Span| {
        s.attribute(key::SAMPLING_REASON)
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    assert_eq!(reason(&batch[0]).as_deref(), Some("error"));
    assert_eq!(
        batch[0].context.trace_state.as_deref(),
        Some("ot=rv:00000000000001,a=b")
    );
    assert_eq!(reason(&batch[1]), None, "a sampled one counts as all sampled ones do");
}

#[test]
fn calls_wait_for_the_request_that_they_were_made_for() {
    let mut sampler = Sampler::new(Config::default());
    let id = [1; 16];
    assert!(sift(&mut sampler, vec![span(id, 3, Some(2), Kind::Client)], 0).is_empty());
    assert!(sift(&mut sampler, vec![span([7; 16], 8, Some(7), Kind::Server)], 0).is_empty());
    // 50 s later: a served request whose caller is not seen is over, the call still waits.
    assert_eq!(
        sift(
            &mut sampler,
            vec![failed(span(id, 2, Some(1), Kind::Server))],
            50 * SECOND
        ),
        [3, 2]
    );
    assert_eq!(sampler.counts().unsampled, 1);
    assert!(
        sift(
            &mut sampler,
            vec![failed(span([7; 16], 9, Some(8), Kind::Client))],
            51 * SECOND
        ) == [9]
    );
}

#[test]
fn nothing_waits_for_ever() {
    let mut sampler = Sampler::new(Config::default());
    sift(&mut sampler, vec![span([1; 16], 3, Some(2), Kind::Client)], 0);
    sift(&mut sampler, vec![span([2; 16], 3, Some(2), Kind::Client)], 30 * SECOND);
    sampler.sift(&mut Vec::new(), 61 * SECOND);
    assert_eq!(sampler.counts().unsampled, 1);
    sampler.sift(&mut Vec::new(), 91 * SECOND);
    assert_eq!(sampler.counts().unsampled, 2);
    sampler.stop();
    assert_eq!(sampler.counts().unsampled, 2);
}

#[test]
fn the_buffer_is_bounded_and_the_oldest_go_first() {
    let mut sampler = Sampler::new(Config {
        buffer_bytes: 64 << 10,
        ..Config::default()
    });
    for i in 0..10_000u64 {
        let id = u128::from(i + 1).to_be_bytes();
        sift(&mut sampler, vec![span(id, i, Some(1), Kind::Server)], i);
    }
    let counts = sampler.counts();
    assert!(counts.evicted > 9_000, "{counts:?}");
    let last = u128::from(10_000u64).to_be_bytes();
    assert_eq!(
        sift(&mut sampler, vec![failed(span(last, 1, None, Kind::Client))], 10_000).len(),
        2
    );
    let first = u128::from(1u64).to_be_bytes();
    assert_eq!(
        sift(&mut sampler, vec![failed(span(first, 1, None, Kind::Client))], 10_000).len(),
        1
    );
}

#[test]
fn the_slow_are_kept_if_asked_for() {
    let slow = |limit| {
        let mut sampler = Sampler::new(Config {
            keep_slower_than: limit,
            ..Config::default()
        });
        sift(&mut sampler, vec![span([1; 16], 1, None, Kind::Server)], 0).len()
    };
    assert_eq!(slow(None), 0);
    assert_eq!(slow(Some(Duration::from_millis(1))), 1);
    assert_eq!(slow(Some(Duration::from_millis(2))), 0);
}

#[test]
fn where_errors_are_not_wanted_none_is_kept() {
    let mut sampler = Sampler::new(Config {
        keep_errors: false,
        ..Config::default()
    });
    assert!(sift(&mut sampler, vec![failed(span([1; 16], 1, None, Kind::Server))], 0).is_empty());
}

/// 100,000 traces of three spans in two services, at 1, 10 and 50 %: the share that is
/// sampled is binomial, no trace is torn, and every trace with an error is whole.
#[test]
fn shares_hold_and_errors_are_always_whole() {
    const ROOTS: u64 = 100_000;
    for share in [0.01, 0.1, 0.5] {
        let config = Config {
            head: head::Config {
                root: Threshold::of_ratio(share),
                ..head::Config::default()
            },
            ..Config::default()
        };
        let mut head = Head::new(config.head.clone());
        let mut sampler = Sampler::new(config);
        let mut random = StdRng::from_seed([3; 32]);
        let mut errors = 0;
        // Spans of each trace that came out, and whether one has an error, and is sampled.
        let mut out: HashMap<TraceId, (u32, bool, bool)> = HashMap::new();
        for i in 0..ROOTS {
            let id: TraceId = random.random();
            let flags = head.root(&id, &Facts::default()).flags;
            let mut spans = vec![
                span(id, 3, Some(2), Kind::Client),
                span(id, 2, Some(1), Kind::Server),
                span(id, 1, None, Kind::Client),
            ];
            let wrong = i % 50 == 0;
            for span in &mut spans {
                span.context.flags = flags;
            }
            if wrong {
                errors += 1;
                let at = random.random_range(0..3);
                spans[at].status = Status::Error(None);
            }
            sampler.sift(&mut spans, i * 1_000_000);
            for span in spans {
                let trace = out.entry(span.context.trace_id).or_default();
                trace.0 += 1;
                trace.1 |= span.status != Status::Unset;
                trace.2 = span.attribute(key::SAMPLING_REASON).is_none();
            }
        }
        assert!(out.values().all(|t| t.0 == 3), "a trace is torn");
        assert_eq!(out.values().filter(|t| t.1).count(), errors, "an error is missing");
        let kept = out.values().filter(|t| t.2).count() as f64;
        let mean = ROOTS as f64 * share;
        assert!(
            (kept - mean).abs() < 4.0 * (mean * (1.0 - share)).sqrt(),
            "{kept} at {share}"
        );
        assert_eq!(sampler.counts().evicted, 0);
    }
}
