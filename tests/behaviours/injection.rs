//! Contexts that the agent writes to the wire: what unmodified services say
//! they received is exactly one `traceparent` a request, it is what the spans
//! say, and every call is what it was without.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tracewire_tests::agent::Agent;
use tracewire_tests::bytes::{ANSWER, Kind, noise};
use tracewire_tests::folder::Folder;
use tracewire_tests::running::Running;
use tracewire_tests::session::{CALLS, Session, Sides};
use tracewire_tests::truth::{self, Truth};
use tracewire_tests::workload::{Client, Language, Load, Server};
use tracewire_tests::{alone, full};

/// As a user gives it.
const FLAGS: &[&str] = &["--inject"];
/// Java's own library can ask a socket how many bytes it holds, so where the kernel would answer wrongly Java
/// gets no context; netty, which is tried here, never asks.
const JAVA: &[&str] = &["--inject", "--inject-despite-trial"];

fn loads() -> Vec<Load> {
    vec![
        Load::new("unary", 40),
        Load::new("mixed", 120).at_once(16).over(3),
        Load::new("errors", 34).at_once(4),
        Load::new("large", 6).at_once(3),
        Load::new("metadata", 20).at_once(4).over(2),
        Load::new("churn", 10),
    ]
}

/// Every request that the server got carried one context, which is its client's span and its own span's parent.
fn check(server: Language, client: Language, loads: &[Load]) -> Result<()> {
    let client_language = client;
    let _turn = alone()?;
    let flags = if client == Language::Java { JAVA } else { FLAGS };
    let session = Session::run_with(server, client, loads, flags)?;
    session.assert_true(Sides::Both);
    let mut wrong = Vec::new();
    let mut seen = 0;
    for ((side, id), call) in &session.truth {
        if side != "server" {
            continue;
        }
        seen += 1;
        let span = |side: &str| {
            let mut spans = session.report.spans.iter();
            spans.find(|span| span.side() == side && span.call_id() == Some(id))
        };
        let (Some(server), Some(client)) = (span("server"), span("client")) else {
            wrong.push(format!("{id}: a span is missing"));
            continue;
        };
        let expected = format!("00-{}-{}-01", client.trace_id, client.span_id);
        // Known limit (ARCHITECTURE.md): after a write that ended early, on a full send buffer, the
        // rest of that connection may go without a context. grpc-core's C++ client does that here.
        let left_out = call.traceparent.is_empty() && client_language == Language::Cpp && id.contains("-large-");
        if call.traceparent != expected && !left_out {
            wrong.push(format!(
                "{id}: received {:?}, the client's span is {expected}",
                call.traceparent
            ));
        }
        if server.trace_id != client.trace_id || server.parent_span_id != client.span_id {
            wrong.push(format!("{id}: the server's span hangs elsewhere"));
        }
    }
    wrong.truncate(20);
    ensure!(
        wrong.is_empty(),
        "{}: of {seen}\n{}\n{:?}\n{}",
        session.title,
        wrong.join("\n"),
        session.report.counters,
        session.report.messages
    );
    let counters = &session.report.counters;
    ensure!(!counters.contains_key("injections.rolled_back"), "{counters:?}");
    ensure!(!counters.contains_key("malformed"), "{counters:?}");
    Ok(())
}

macro_rules! languages {
    ($($name:ident: $language:ident),* $(,)?) => {$(
        #[test]
        fn $name() -> Result<()> {
            check(Language::$language, Language::$language, &loads())
        }
    )*};
}

languages! {
    go_receives_what_its_spans_say: Go,
    python_receives_what_its_spans_say: Python,
    python_aio_receives_what_its_spans_say: PythonAio,
    node_receives_what_its_spans_say: Node,
    java_receives_what_its_spans_say: Java,
    cpp_receives_what_its_spans_say: Cpp,
    rust_receives_what_its_spans_say: Rust,
}

/// What goes to other hosts than those that were named carries nothing.
#[test]
fn contexts_go_only_where_they_may() -> Result<()> {
    let _turn = alone()?;
    let loads = [Load::new("unary", 20)];
    for (to, expected) in [("10.0.0.0/8", 0), ("127.0.0.0/8:1", 0), ("127.0.0.0/8", 20)] {
        let flags = ["--inject", "--inject-to", to];
        let session = Session::run_with(Language::Go, Language::Go, &loads, &flags)?;
        session.assert_true(Sides::Both);
        let served = session.truth.iter().filter(|((side, _), _)| side == "server");
        let with = served.filter(|(_, call)| !call.traceparent.is_empty()).count();
        ensure!(with == expected, "--inject-to {to}: {with} of 20 calls had a context");
    }
    Ok(())
}

/// However the agent ends, the services that it wrote for go on as if it had never been there.
#[test]
fn an_agent_that_is_killed_again_and_again_harms_no_call() -> Result<()> {
    let _turn = alone()?;
    let kills = if full() { 20 } else { 4 };
    let folder = Folder::new()?;
    let mut server = Server::start(Language::Go, &folder)?;
    let delay = Duration::from_secs(5);
    let loads = [
        Load::new("unary", 20_000 * kills).at_once(2).over(2),
        Load::new("large", 60 * kills).at_once(2),
        Load::new("churn", 6000 * kills).at_once(2),
    ];
    let mut clients = Vec::new();
    for (number, load) in loads.iter().enumerate() {
        clients.push(Client::start(
            Language::Go,
            &server.address,
            *load,
            delay,
            number,
            &folder,
        )?);
    }
    let mut pids = vec![server.running.pid()];
    pids.extend(clients.iter().map(|client| client.running.pid()));
    let mut told = 0;
    for _ in 0..kills {
        let alive: Vec<u32> = pids.iter().copied().filter(|pid| running(*pid)).collect();
        if alive.len() < 2 {
            break;
        }
        let folder = Folder::new()?;
        let mut agent = Agent::attach_with(&alive, FLAGS, &folder)?;
        std::thread::sleep(Duration::from_millis(3000));
        agent.signal(libc::SIGKILL);
        // It is reaped, and its programs go with it.
        let _ = agent.wait(Duration::from_secs(20));
        told += 1;
    }
    ensure!(told > 0, "no agent was there while calls were made");
    let mut truth = Truth::new();
    for client in &mut clients {
        client.finish(CALLS)?;
        truth::read(&client.log, &mut truth)?;
    }
    server.running.end()?;
    truth::read(&server.log, &mut truth)?;
    let calls: u32 = loads.iter().map(|load| load.calls).sum();
    ensure!(
        truth.len() as u64 == 2 * u64::from(calls),
        "{} of {calls} calls on both sides",
        truth.len()
    );
    let mut with = 0;
    for ((side, id), call) in &truth {
        ensure!(call.code == "OK", "{side} {id}: {} {}", call.code, call.message);
        ensure!(call.traceparent.len() <= 55, "{side} {id}: {}", call.traceparent);
        with += u32::from(call.traceparent.len() == 55);
    }
    println!("{told} agents killed, {calls} calls, {with} with a context");
    ensure!(with > 0, "none of {calls} calls was given a context");
    Ok(())
}

fn running(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !status.is_empty() && !status.contains(") Z ")
}

/// Every byte but the field, of all that is sent and received; what only looks like HTTP/2 gets nothing.
#[test]
fn no_byte_changes_but_the_field() -> Result<()> {
    let numbers: Vec<String> = (0..Kind::ALL.len()).map(|n| n.to_string()).collect();
    sent(&numbers, |listener| {
        let mut fields = 0;
        for kind in Kind::ALL {
            let (mut stream, _) = listener.accept()?;
            let mut arrived = Vec::new();
            stream.read_to_end(&mut arrived)?;
            let put = kind.compare(&arrived)?;
            ensure!(
                (put > 0) == (kind.requests() > 0),
                "{kind:?}: {put} of {} requests got a context",
                kind.requests()
            );
            fields += put;
            stream.write_all(&noise(99, ANSWER))?;
        }
        Ok(fields)
    })?;
    Ok(())
}

/// Reads that wait in a followed socket may end early; so it is let go.
#[test]
fn a_socket_that_blocks_late_reads_as_it_would() -> Result<()> {
    let fields = sent(&["late".to_owned()], |listener| {
        let (mut stream, _) = listener.accept()?;
        std::thread::sleep(Duration::from_millis(200));
        stream.write_all(b"hello")?;
        std::thread::sleep(Duration::from_millis(800));
        let mut arrived = Vec::new();
        stream.read_to_end(&mut arrived)?;
        std::thread::sleep(Duration::from_millis(100));
        stream.write_all(&noise(99, ANSWER))?;
        Kind::Http2.compare(&arrived)
    })?;
    ensure!(fields > 0, "its first request got no context, so nothing was tried");
    Ok(())
}

/// A followed socket would tell otherwise of the memory that may be used again; so it is none.
#[test]
fn what_is_sent_without_a_copy_is_told_as_ever() -> Result<()> {
    sent(&["zerocopy".to_owned()], |listener| {
        let (mut stream, _) = listener.accept()?;
        let mut arrived = Vec::new();
        stream.read_to_end(&mut arrived)?;
        stream.write_all(&noise(99, ANSWER))?;
        Kind::Http2.compare(&arrived)
    })?;
    Ok(())
}

/// Lets an observed `sender` send while `receive` takes it.
fn sent(words: &[String], receive: impl FnOnce(TcpListener) -> Result<usize> + Send + 'static) -> Result<usize> {
    let _turn = alone()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let folder = Folder::new()?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_sender"));
    command.args(words).stdin(Stdio::piped());
    let mut sender = Running::start("sender", &mut command)?;
    let agent = Agent::attach_with(&[sender.pid()], FLAGS, &folder)?;
    let mut stdin = sender.take_stdin().context("stdin")?;
    writeln!(stdin, "{}", listener.local_addr()?)?;
    let receiver = std::thread::spawn(move || receive(listener));
    let status = sender.wait(Duration::from_secs(60))?;
    let received = receiver.join().map_err(|_| anyhow::anyhow!("the receiver failed"))?;
    let report = agent.finish()?;
    ensure!(status.success(), "the sender failed: {status}; {received:?}");
    println!("{:?}", report.counters);
    received
}
