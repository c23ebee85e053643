//! Which traces reach the exporters: whole ones, as many as were asked for,
//! those with an error all of them; and where contexts are written, everybody
//! is told the same.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::BTreeMap;

use anyhow::Result;
use tracewire_tests::agent::Report;
use tracewire_tests::relay::{self, Kind, Load, Relayed};
use tracewire_tests::session::Session;
use tracewire_tests::span::Span;
use tracewire_tests::workload::{self, Language};
use tracewire_tests::{alone, full};

/// Contexts are written whatever the trial says: gRPC libraries do not block in reads.
const INJECT: [&str; 2] = ["--inject", "--inject-despite-trial"];
/// Spans of a root call through three relays: a client's and a server's for each hop.
const SPANS: usize = 6;

fn reason(span: &Span) -> Option<&str> {
    span.attributes.get("tracewire.sampling.reason")?.as_str()
}

fn traces(report: &Report) -> BTreeMap<&str, Vec<&Span>> {
    let mut traces: BTreeMap<&str, Vec<&Span>> = BTreeMap::new();
    for span in &report.spans {
        traces.entry(&span.trace_id).or_default().push(span);
    }
    traces
}

/// Within four standard deviations of `share` of `all`.
fn binomial(kept: usize, all: usize, share: f64) -> bool {
    let mean = all as f64 * share;
    (kept as f64 - mean).abs() <= 4.0 * (mean * (1.0 - share)).sqrt()
}

/// Root calls through three Go relays, contexts written, with these flags.
fn chain(calls: u32, delay: u32, flags: &[&str]) -> Result<Relayed> {
    let load = Load {
        calls,
        delay,
        concurrency: 8,
        connections: 2,
        ..Load::default()
    };
    let flags = [&INJECT, flags].concat();
    relay::run_with(Kind::GO, &[Kind::GO; 3], load, &flags)
}

/// Flag that each service was told, by trace and root call: all hops of a call say the same.
fn told(relayed: &Relayed) -> BTreeMap<String, u8> {
    let mut told: BTreeMap<String, (String, u8)> = BTreeMap::new();
    for (id, contexts) in &relayed.contexts {
        let [one] = contexts.as_slice() else {
            panic!("{id} came with {contexts:?}; {:?}", relayed.report.counters)
        };
        let (trace, flags) = (one[3..35].to_owned(), u8::from_str_radix(&one[53..], 16).unwrap());
        let root = id.split('/').next().unwrap().to_owned();
        let first = told.entry(root).or_insert_with(|| (trace.clone(), flags));
        assert_eq!(*first, (trace, flags), "{id}: the trace of its root, and its decision");
    }
    told.into_values().collect()
}

#[test]
fn what_the_wire_says_is_what_is_kept_and_whole() -> Result<()> {
    let _turn = alone()?;
    let calls = if full() { 20_000 } else { 400 };
    let relayed = chain(calls, 0, &["--sample-ratio", "0.5"])?;
    let told = told(&relayed);
    let kept = traces(&relayed.report);
    let sampled = told.values().filter(|flags| **flags == 1).count();
    assert_eq!(kept.len(), sampled, "traces kept, and traces said to be sampled");
    assert!(binomial(sampled, calls as usize, 0.5), "{sampled} of {calls}");
    for (id, spans) in kept {
        assert_eq!(told.get(id), Some(&1), "{id}");
        assert_eq!(spans.len(), SPANS, "{id} is torn: {spans:#?}");
        for span in spans {
            assert_eq!((span.flags & 1, &*span.trace_state, reason(span)), (1, "ot=th:8", None));
        }
    }
    Ok(())
}

#[test]
fn rules_by_service_hold_in_the_kernel_and_those_by_route_are_asked_for() -> Result<()> {
    let _turn = alone()?;
    // Each process is named after its program, which is the same.
    let relayed = chain(
        40,
        0,
        &["--sample-ratio", "0", "--sample-rule", "service=*run*,ratio=1"],
    )?;
    assert!(told(&relayed).values().all(|flags| *flags == 1));
    assert_eq!(relayed.report.spans.len(), 40 * SPANS);
    assert_eq!(relayed.report.counters.get("injections.undecided"), None);

    let relayed = chain(
        40,
        100,
        &[
            "--sample-ratio",
            "0",
            "--sample-rule",
            "method=tracewire.relay.*/*,ratio=1",
        ],
    )?;
    // The load's own calls begin traces of which the kernel does not know the method.
    let undecided = relayed.report.counters["injections.undecided"];
    assert!(undecided >= 40, "{:?}", relayed.report.counters);
    relayed.assert_linked("rules by method", 1.0);
    assert_eq!(relayed.report.spans.len(), 40 * SPANS, "all are kept");
    let written = relayed
        .contexts
        .values()
        .filter(|contexts| !contexts.is_empty())
        .count();
    assert!(
        written > 0,
        "what was decided in time is written: {:?}",
        relayed.report.counters
    );
    for (id, contexts) in &relayed.contexts {
        let span = relayed
            .report
            .spans
            .iter()
            .find(|s| s.side() == "client" && s.call_id() == Some(id));
        let span = span.unwrap();
        for context in contexts {
            assert_eq!(*context, format!("00-{}-{}-01", span.trace_id, span.span_id), "{id}");
        }
    }
    Ok(())
}

#[test]
fn every_error_is_kept_at_one_percent_and_says_why_it_is_there() -> Result<()> {
    let _turn = alone()?;
    let loads = [
        workload::Load::new("unary", 1000).at_once(8).over(2),
        workload::Load::new("errors", 170).at_once(4),
    ];
    let session = Session::run_with(Language::Go, Language::Go, &loads, &["--sample-ratio", "0.01"])?;
    let mut failed = 0;
    for ((side, id), call) in &session.truth {
        let span = session
            .report
            .spans
            .iter()
            .find(|s| s.side() == *side && s.call_id() == Some(id));
        let kept = span.and_then(reason);
        let sampled = span.is_some_and(|s| s.flags & 1 == 1);
        // What is an error differs by side (semantic conventions, gRPC), what is kept does not.
        let error = session
            .report
            .spans
            .iter()
            .any(|s| s.call_id() == Some(id) && s.status.code == "ERROR");
        let wrong = !matches!(call.code.as_str(), "OK");
        failed += usize::from(wrong && side == "client");
        assert!(
            !wrong || side != "client" || error,
            "{id} failed ({}) and is not there",
            call.code
        );
        assert_eq!(span.is_some(), error || sampled, "{side} {id}: {span:?}");
        assert_eq!(kept.is_some(), span.is_some() && !sampled, "{side} {id}: {span:?}");
        if let (Some(span), Some(why)) = (span, kept) {
            assert_eq!((why, &*span.trace_state), ("error", ""), "{id}: it stands for itself");
        } else if let Some(span) = span {
            assert_eq!(span.trace_state, "ot=th:fd70a4", "{id}");
        }
    }
    assert!(failed > 100, "{failed} calls failed");
    let sampled = traces(&session.report).values().filter(|t| t[0].flags & 1 == 1).count();
    assert!(binomial(sampled, 1170, 0.01), "{sampled} of 1170");
    Ok(())
}

#[test]
fn what_is_slow_is_kept_if_asked_for() -> Result<()> {
    let _turn = alone()?;
    let load = Load {
        calls: 60,
        concurrency: 8,
        delay: 200,
        ..Load::default()
    };
    let flags = ["--sample-ratio", "0", "--keep-slower-than", "100"];
    let relayed = relay::run_with(Kind::GO, &[Kind::GO; 2], load, &flags)?;
    let kept = traces(&relayed.report);
    assert!(!kept.is_empty() && kept.len() < 60, "{} of 60 were slow", kept.len());
    for (id, spans) in kept {
        assert_eq!(spans.len(), 4, "{id} is torn: {spans:#?}");
        assert!(spans.iter().all(|s| reason(s) == Some("slow")), "{spans:#?}");
        let longest = spans.iter().map(|s| s.end_ns - s.start_ns).max().unwrap();
        assert!(longest >= 100_000_000, "{id} took {longest} ns");
    }
    Ok(())
}
