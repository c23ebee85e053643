//! Which traces reach the exporters: whole ones, as many as were asked for,
//! those with an error all of them; and where contexts are written, everybody
//! is told the same.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tracewire_tests::agent::{self, Report};
use tracewire_tests::folder::Folder;
use tracewire_tests::relay::{self, Kind, Load, Relayed};
use tracewire_tests::running::Running;
use tracewire_tests::session::{CALLS, Session};
use tracewire_tests::span::Span;
use tracewire_tests::workload::{self, Client, Language, Server};
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

/// A recording of so many calls by two clients, of which a part fails.
fn recorded(calls: u32, folder: &Folder) -> Result<std::path::PathBuf> {
    let mut server = Server::start(Language::Go, folder)?;
    let loads = [
        workload::Load::new("unary", calls).at_once(8).over(4),
        workload::Load::new("errors", calls / 20).at_once(2),
    ];
    let mut clients = Vec::new();
    for (number, load) in loads.into_iter().enumerate() {
        let delay = Duration::from_secs(3);
        let mut client = Client::start(Language::Go, &server.address, load, delay, number, folder)?;
        // It stands still before its first call until the recorder is there.
        client.running.signal(libc::SIGSTOP);
        clients.push(client);
    }
    let (file, said) = (folder.file("recording"), folder.file("record.err"));
    let mut command = agent::command(&["record", "--ring-buffer", "65536", "--out"])?;
    command.arg(&file).args(["--pid", &server.running.pid().to_string()]);
    for client in &clients {
        command.args(["--pid", &client.running.pid().to_string()]);
    }
    let out = folder.file("record.out");
    let mut recorder = Running::start_into("tracewire", command.stdin(Stdio::null()), &out, &said)?;
    recorder.wait_for_line(&said, "attached ", Duration::from_secs(60))?;
    for client in &mut clients {
        client.running.signal(libc::SIGCONT);
    }
    for client in &mut clients {
        client.finish(CALLS)?;
    }
    server.running.end()?;
    ensure!(recorder.wait(Duration::from_secs(60))?.success(), "the recorder failed");
    Ok(file)
}

/// What a replay said of a trace: how many spans, why they are there, whether one failed.
#[derive(Default)]
struct Kept {
    spans: usize,
    sampled: usize,
    failed: bool,
}

/// The traces of a recording as the agent keeps them at that share.
fn replayed(recording: &Path, share: &str) -> Result<BTreeMap<String, Kept>> {
    let mut command = agent::command(&["replay", "--output", "json", "--sample-ratio", share])?;
    command.env_remove("OTEL_TRACES_SAMPLER").arg(recording);
    let mut replay = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut traces: BTreeMap<String, Kept> = BTreeMap::new();
    for line in BufReader::new(replay.stdout.take().context("an output")?).lines() {
        let line = line?;
        let span: serde_json::Value = serde_json::from_str(&line)?;
        let trace = traces
            .entry(span["traceId"].as_str().context("a trace")?.to_owned())
            .or_default();
        trace.spans += 1;
        trace.sampled += usize::from(span["flags"].as_u64().unwrap_or(0) & 1 == 1);
        trace.failed |= span["status"]["code"] == "ERROR";
    }
    ensure!(replay.wait()?.success(), "the replay failed");
    Ok(traces)
}

/// `TRACEWIRE_TESTS=full`: 100,000 roots.
#[test]
fn of_many_roots_as_many_are_kept_as_were_asked_for_and_every_error() -> Result<()> {
    let _turn = alone()?;
    let folder = Folder::new()?;
    let recording = recorded(if full() { 100_000 } else { 4_000 }, &folder)?;
    let all = replayed(&recording, "1")?;
    let least = if full() { 100_000 } else { 4_000 };
    ensure!(all.len() >= least, "{} roots", all.len());
    ensure!(all.values().all(|t| t.spans == 2), "a call is two spans");
    let failed = all.values().filter(|t| t.failed).count();
    ensure!(failed > least / 40, "{failed} calls failed");
    for (share, ratio) in [("0.01", 0.01), ("0.1", 0.1), ("0.5", 0.5)] {
        let kept = replayed(&recording, share)?;
        let mut sampled = 0;
        for (id, trace) in &kept {
            let whole = all.get(id).with_context(|| format!("{id} is of no call"))?;
            // Both ends of a call decide alike, and none is torn.
            ensure!(trace.spans == whole.spans, "{share}: {id} is torn");
            ensure!([0, 2].contains(&trace.sampled), "{share}: {id} is half sampled");
            ensure!(
                trace.sampled > 0 || trace.failed,
                "{share}: {id} is there for no reason"
            );
            sampled += usize::from(trace.sampled > 0);
        }
        let errors = kept.values().filter(|t| t.failed).count();
        assert_eq!(errors, failed, "{share}: errors that are kept");
        assert!(
            binomial(sampled, all.len(), ratio),
            "{share}: {sampled} of {}",
            all.len()
        );
        println!(
            "{share}: {sampled} of {} sampled, {errors} of {failed} errors kept",
            all.len()
        );
    }
    Ok(())
}
