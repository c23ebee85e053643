//! Whichever socket a service uses, and however its bytes are cut: the same
//! spans.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tracewire_tests::agent::{Agent, Report};
use tracewire_tests::alone;
use tracewire_tests::folder::Folder;
use tracewire_tests::peer::{Expected, Flights, Way};
use tracewire_tests::running::Running;
use tracewire_tests::session::{Session, Sides};
use tracewire_tests::span::Span;
use tracewire_tests::workload::{Language, Load};

fn seen(span: &Span) -> Expected {
    let text = |name: &str| span.text(name).unwrap_or("absent").to_owned();
    Expected {
        kind: if span.kind == "CLIENT" { "CLIENT" } else { "SERVER" },
        id: span.call_id().unwrap_or("absent").to_owned(),
        method: text("rpc.method"),
        code: text("rpc.status_code"),
        error: span.text("error.type").map(str::to_owned),
        message: span.status.message.clone(),
        messages: (
            span.number("tracewire.request.messages").unwrap_or(-1),
            span.number("tracewire.response.messages").unwrap_or(-1),
        ),
    }
}

fn observe(family: &str, ways: &[Way]) -> Result<Report> {
    let folder = Folder::new()?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_peer"));
    command
        .arg(family)
        .args(ways.iter().map(|way| way.name()))
        .stdin(Stdio::piped());
    let mut peer = Running::start("peer", &mut command)?;
    let agent = Agent::attach(&[peer.pid()], &folder)?;
    peer.take_stdin().context("stdin")?.write_all(b"go\n")?;
    let status = peer.wait(Duration::from_secs(60))?;
    ensure!(status.success(), "the peer failed: {status}");
    agent.finish()
}

/// What one way gave, as lines: missing, and wrong.
fn differences(way: Way, report: &Report) -> (Vec<String>, Vec<String>) {
    let name = format!("{}-", way.name());
    let of_way = |span: &&Span| span.call_id().is_some_and(|id| id.starts_with(&name));
    let is: Vec<Expected> = report.spans.iter().filter(of_way).map(seen).collect();
    let wanted = Flights::new(&way.name()).expected;
    let missing = wanted
        .iter()
        .filter(|expected| !is.contains(expected))
        .map(|e| format!("missing: {e:?}"));
    let wrong = is
        .iter()
        .enumerate()
        .filter(|(i, span)| !wanted.contains(span) || is[..*i].contains(span));
    (
        missing.collect(),
        wrong.map(|(_, span)| format!("wrong or twice: {span:?}")).collect(),
    )
}

/// The same spans, whichever way; of the `rough` ways nothing wrong.
fn check(family: &str, ways: &[Way], rough: &[Way], address: Option<&str>) -> Result<()> {
    let _turn = alone()?;
    let report = observe(family, &[ways, rough].concat())?;
    let mut problems = Vec::new();
    for way in ways {
        let (missing, wrong) = differences(*way, &report);
        problems.extend(missing.into_iter().chain(wrong));
    }
    for way in rough {
        problems.extend(differences(*way, &report).1);
    }
    for span in &report.spans {
        if span.call_id().is_none() {
            problems.push(format!("a span of no call: {span:?}"));
        }
        if span.text("server.address") != Some("peer.test") || span.text("network.peer.address") != address {
            problems.push(format!("wrong ends: {span:?}"));
        }
        let client = report.spans.iter().find(|client| client.span_id == span.parent_span_id);
        if span.kind == "SERVER" && client.and_then(Span::call_id) != span.call_id() {
            problems.push(format!("wrong parent: {span:?}"));
        }
    }
    problems.sort_by_key(|line| std::cmp::Reverse(line.starts_with("wrong")));
    let shown = problems
        .iter()
        .take(60)
        .map(|line| format!("  {line}\n"))
        .collect::<String>();
    assert!(
        problems.is_empty(),
        "{family}: {} problems\n{shown}{:?}",
        problems.len(),
        report.counters
    );
    Ok(())
}

#[test]
fn frames_cut_anywhere_by_any_system_call_give_the_same_spans() -> Result<()> {
    check("v4", &Way::ALL, &[], Some("127.0.0.1"))
}

#[test]
fn ipv6_connections_are_seen() -> Result<()> {
    check("v6", &[Way::Whole, Way::Pieces, Way::Vectors], &[], Some("::1"))
}

#[test]
fn ipv4_mapped_connections_are_told_by_their_ipv4_address() -> Result<()> {
    check("mapped", &[Way::Whole, Way::Messages], &[], Some("127.0.0.1"))
}

#[test]
fn unix_sockets_are_seen() -> Result<()> {
    // Of a Unix socket it is not known whether it is seen from its first byte, so its framing must
    // be proven by a call that is whole.
    check("unix", &[Way::Whole], &[], None)
}

#[test]
fn socket_pairs_are_seen() -> Result<()> {
    check("pair", &[Way::Whole], &[], None)
}

/// The kernel tells of no close of a Unix socket: it is found out while the process lives on.
#[test]
fn calls_end_when_their_unix_socket_is_closed() -> Result<()> {
    let _turn = alone()?;
    let folder = Folder::new()?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_peer"));
    command.args(["left", &Way::Whole.name()]).stdin(Stdio::piped());
    let mut peer = Running::start("peer", &mut command)?;
    let agent = Agent::attach(&[peer.pid()], &folder)?;
    let mut stdin = peer.take_stdin().context("stdin")?;
    stdin.write_all(b"go\n")?;
    let expected = Flights::new(&Way::Whole.name()).expected;
    let clients = expected.iter().filter(|call| call.kind == "CLIENT").count();
    let deadline = Instant::now() + Duration::from_secs(30);
    let closed = loop {
        let mut spans = agent.spans()?;
        spans.retain(|span| span.kind == "CLIENT");
        if spans.len() == clients {
            break spans;
        }
        ensure!(Instant::now() < deadline, "the calls do not end: {spans:?}");
        ensure!(peer.ended().is_none(), "the process ended first");
        std::thread::sleep(Duration::from_millis(50));
    };
    stdin.write_all(b"end\n")?;
    peer.wait(Duration::from_secs(60))?;
    let report = agent.finish()?;
    for span in &closed {
        let reset = span.text("rpc.status_code").is_some();
        assert!(
            reset != span.attributes.contains_key("tracewire.unfinished"),
            "{span:?}"
        );
    }
    let unfinished = closed
        .iter()
        .filter(|span| span.attributes.contains_key("tracewire.unfinished"));
    assert!(unfinished.count() > clients / 2, "{closed:?}");
    let servers = report.spans.iter().filter(|span| span.kind == "SERVER");
    assert_eq!(servers.count(), clients, "each call once");
    assert_eq!(report.spans.len(), 2 * clients, "each call once");
    Ok(())
}

/// Libraries name a Unix socket each in their own way: the address is not compared.
#[test]
fn services_on_unix_sockets_are_told_as_they_were() -> Result<()> {
    let _turn = alone()?;
    for language in [Language::Go, Language::Python, Language::Cpp, Language::Rust] {
        let path = std::env::temp_dir().join(format!("tracewire-tests-{}.sock", std::process::id()));
        let address = format!("unix:{}", path.display());
        let loads = [
            Load::new("mixed", 60).at_once(8).over(2),
            Load::new("large", 3),
            Load::new("churn", 10),
        ];
        let session = Session::run_on(language, language, &loads, Some(&address), Sides::Both)?;
        session.assert_true(Sides::Both);
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}
