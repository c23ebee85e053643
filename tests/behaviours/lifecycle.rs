//! Whoever begins, ends or dies, and whenever: no span is lost, no service is
//! harmed, and nothing stays in the kernel.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tracewire_tests::agent::{Agent, Report};
use tracewire_tests::attached::Attached;
use tracewire_tests::compare;
use tracewire_tests::folder::Folder;
use tracewire_tests::running::Running;
use tracewire_tests::session::{CALLS, Sides, now};
use tracewire_tests::truth::{self, Truth};
use tracewire_tests::workload::{Client, Language, Load, Server, free_port};
use tracewire_tests::{alone, answers};

const PATIENCE: Duration = Duration::from_secs(60);

/// A caller whose children call and are gone, and how it is told to begin.
fn caller(children: usize, folder: &Folder) -> Result<Running> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_caller"));
    command
        .args([&answers::listen()?, &children.to_string()])
        .stdin(Stdio::piped())
        .stdout(std::fs::File::create(folder.file("caller.out"))?);
    Running::start("caller", &mut command)
}

/// Process ids by call id, as the children wrote them.
fn children(log: &Path) -> Result<BTreeMap<String, i64>> {
    let text = std::fs::read_to_string(log)?;
    let pair = |line: &str| {
        let (id, pid) = line.split_once(' ')?;
        Some((id.to_owned(), pid.parse().ok()?))
    };
    Ok(text.lines().filter_map(pair).collect())
}

#[test]
fn processes_that_are_gone_with_the_last_byte_lose_no_span() -> Result<()> {
    let _turn = alone()?;
    let folder = Folder::new()?;
    const CHILDREN: usize = 30;
    let mut caller = caller(CHILDREN, &folder)?;
    let agent = Agent::attach(&[caller.pid()], &folder)?;
    caller.take_stdin().context("stdin")?.write_all(b"go\n")?;
    let status = caller.wait(PATIENCE)?;
    ensure!(status.success(), "the caller failed: {status}");
    let report = agent.finish()?;
    let mut wanted = children(&folder.file("caller.out"))?;
    assert_eq!(wanted.len(), CHILDREN);
    for span in &report.spans {
        let pid = span.call_id().and_then(|id| wanted.remove(id));
        let of = span.resource.get("process.pid").and_then(serde_json::Value::as_i64);
        assert_eq!(
            (of, pid.is_some()),
            (pid, true),
            "of another process, twice or of no call: {span:?}"
        );
        assert_eq!(span.number("http.response.status_code"), Some(200), "{span:?}");
        assert!(!span.attributes.contains_key("tracewire.unfinished"), "{span:?}");
        assert_eq!(span.status.code, "UNSET", "{span:?}");
    }
    assert!(wanted.is_empty(), "missing: {wanted:?}\n{}", report.messages);
    Ok(())
}

/// A server and a client at work, both observed.
struct Work {
    server: Server,
    client: Client,
    agent: Agent,
    folder: Folder,
}

impl Work {
    /// The client calls until it is told to end.
    fn begin() -> Result<Self> {
        Self::begin_with(&[])
    }

    /// The same with flags of the agent's.
    fn begin_with(flags: &[&str]) -> Result<Self> {
        let folder = Folder::new()?;
        let server = Server::start(Language::Go, &folder)?;
        let load = Load::new("mixed", u32::from(u16::MAX) * 16).at_once(8).over(3);
        let client = Client::start(Language::Go, &server.address, load, Duration::ZERO, 0, &folder)?;
        let pids = [server.running.pid(), client.running.pid()];
        let agent = Agent::attach_with(&pids, flags, &folder)?;
        Ok(Work {
            server,
            client,
            agent,
            folder,
        })
    }

    /// Waits until the agent has written some spans, so that it is in the middle of its work.
    fn until_spans(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.agent.spans()?.len() < 50 {
            ensure!(Instant::now() < deadline, "there are no spans");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Waits for calls that begin now, when the agent is gone, then for the end of all: each ended as
    /// its scenario asks, whatever became of the agent.
    fn all_calls_succeed(&mut self) -> Result<Truth> {
        let gone = now();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut truth = Truth::new();
            truth::read_whole_lines(&self.client.log, &mut truth)?;
            if truth.values().filter(|call| call.start_ns > gone).count() > 100 {
                break;
            }
            ensure!(self.client.running.ended().is_none(), "the client ended");
            ensure!(Instant::now() < deadline, "no calls are made any more");
            std::thread::sleep(Duration::from_millis(10));
        }
        self.client.running.signal(libc::SIGTERM);
        self.client.finish(CALLS)?;
        let mut truth = Truth::new();
        truth::read(&self.client.log, &mut truth)?;
        for call in truth.values() {
            // A failure that was asked for says so; one that was not would be Unavailable or worse.
            let good = call.code == "OK" || call.message.starts_with("expected failure");
            assert!(good, "{call:?}");
        }
        ensure!(self.server.running.ended().is_none(), "the server ended");
        Ok(truth)
    }
}

#[test]
fn an_agent_killed_under_load_leaves_the_services_and_the_kernel_as_they_were() -> Result<()> {
    let _turn = alone()?;
    let mut work = Work::begin()?;
    let attached = Attached::by(work.agent.pid())?;
    assert!(!attached.is_empty(), "the agent holds nothing, so nothing is tested");
    work.until_spans()?;
    work.agent.signal(libc::SIGKILL);
    work.agent.wait(PATIENCE)?;
    attached.gone()?;
    work.all_calls_succeed()?;
    Ok(())
}

/// What the kernel programs decide is logged where details are asked for, and never what they read.
#[test]
fn the_kernel_programs_tell_what_they_decide_when_asked() -> Result<()> {
    let _turn = alone()?;
    let mut work = Work::begin_with(&["--log-level", "debug"])?;
    work.until_spans()?;
    work.agent.signal(libc::SIGINT);
    work.agent.wait(PATIENCE)?;
    let said = std::fs::read_to_string(work.folder.file("agent.err"))?;
    let (kernel, rest): (Vec<&str>, Vec<&str>) = said.lines().partition(|line| line.contains(" tracewire::kernel: "));
    assert!(kernel.iter().any(|line| line.ends_with("framing proven")), "{said}");
    assert!(
        !rest.is_empty() && !said.contains("go-mixed-"),
        "the log holds what was sent: {said}"
    );
    work.all_calls_succeed()?;
    Ok(())
}

#[test]
fn an_agent_that_is_told_to_end_detaches_and_tells_what_it_saw() -> Result<()> {
    let _turn = alone()?;
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let mut work = Work::begin()?;
        let attached = Attached::by(work.agent.pid())?;
        work.until_spans()?;
        work.agent.signal(signal);
        let status = work.agent.wait(PATIENCE)?;
        assert!(status.success(), "signal {signal}: {status}");
        attached.gone()?;
        let said = std::fs::read_to_string(work.folder.file("agent.err"))?;
        assert!(
            said.lines().any(|line| line.starts_with("spans ")),
            "no summary:\n{said}"
        );
        // What is open at the end is said to be unfinished; all else is whole.
        let spans = work.agent.spans()?;
        let truth = work.all_calls_succeed()?;
        let whole = spans
            .iter()
            .filter(|s| !s.attributes.contains_key("tracewire.unfinished"));
        for span in whole {
            let call = span
                .call_id()
                .and_then(|id| truth.get(&("client".to_owned(), id.to_owned())));
            let code = call.map(|call| call.code.as_str());
            let seen = span.text("rpc.status_code");
            assert!(seen == code || span.is_unseen("rpc.status_code"), "{code:?}: {span:?}");
        }
    }
    Ok(())
}

#[test]
fn attach_ends_when_the_last_process_has_ended_and_not_before() -> Result<()> {
    let _turn = alone()?;
    let folder = Folder::new()?;
    let mut first = caller(3, &folder)?;
    let mut second = caller(3, &folder)?;
    let mut agent = Agent::attach(&[first.pid(), second.pid()], &folder)?;
    let attached = Attached::by(agent.pid())?;
    first.take_stdin().context("stdin")?.write_all(b"go\n")?;
    first.wait(PATIENCE)?;
    assert!(
        agent.wait(Duration::from_secs(2)).is_err(),
        "it ended while a process was there"
    );
    second.take_stdin().context("stdin")?.write_all(b"go\n")?;
    second.wait(PATIENCE)?;
    let report = agent.finish()?;
    assert_eq!(report.spans.len(), 6);
    attached.gone()
}

/// A server and clients that start after the agent, and what was seen of them.
fn chosen(arguments: &[&str], port: u16, sides: Sides, change: fn(&mut Command)) -> Result<()> {
    let folder = Folder::new()?;
    Language::Go.build()?;
    let agent = Agent::start(&[&["run", "--sample-ratio", "1"], arguments].concat(), &folder)?;
    let mut server = Server::start_on(Language::Go, &format!("127.0.0.1:{port}"), &folder)?;
    let mut truth = Truth::new();
    for (number, scenario) in ["unary", "churn", "mixed"].into_iter().enumerate() {
        let load = Load::new(scenario, 10);
        let address = &server.address;
        // Who is chosen is read from the living process, so it lives a moment.
        let delay = Duration::from_millis(300);
        let mut client = Client::start_with(Language::Go, address, load, delay, number, &folder, change)?;
        client.finish(CALLS)?;
        truth::read(&client.log, &mut truth)?;
    }
    server.running.end()?;
    truth::read(&server.log, &mut truth)?;
    let Report {
        mut spans, messages, ..
    } = agent.interrupt()?;
    // Another agent's test may run the same programs: only these calls are compared.
    spans.retain(|span| {
        span.call_id()
            .is_some_and(|id| truth.contains_key(&(span.side(), id.to_owned())))
    });
    let comparison = compare::whole(&truth, &spans, &server.address, sides);
    assert!(
        comparison.problems.is_empty(),
        "{arguments:?}: {} problems\n{}\n{messages}",
        comparison.problems.len(),
        comparison.shown()
    );
    Ok(())
}

#[test]
fn processes_chosen_by_their_program_are_seen_from_their_first_call() -> Result<()> {
    let _turn = alone()?;
    let program = Language::Go.build()?;
    let program = program.to_string_lossy();
    chosen(&["--executable", &program], free_port()?, Sides::Both, |_| ())
}

#[test]
fn processes_chosen_by_their_port_are_seen_from_their_first_call() -> Result<()> {
    let _turn = alone()?;
    let port = free_port()?;
    chosen(&["--port", &port.to_string()], port, Sides::Server, |_| ())
}

#[test]
fn processes_chosen_by_their_service_name_are_seen_from_their_first_call() -> Result<()> {
    let _turn = alone()?;
    chosen(&["--service", "chosen-*"], free_port()?, Sides::Clients, |command| {
        command.env("OTEL_SERVICE_NAME", "chosen-client");
    })
}

/// Kills the server in the middle of its calls; the clients' spans against what the clients saw.
fn a_server_dies(client: Language) -> Result<()> {
    let folder = Folder::new()?;
    let mut server = Server::start(client, &folder)?;
    let load = Load::new("server-stream", 600).at_once(8).over(2);
    let address = server.address.clone();
    let mut running = Client::start(client, &address, load, Duration::from_secs(3), 0, &folder)?;
    // It stands still before its first call until the agent is there.
    running.running.signal(libc::SIGSTOP);
    let agent = Agent::attach(&[server.running.pid(), running.running.pid()], &folder)?;
    running.running.signal(libc::SIGCONT);
    let deadline = Instant::now() + PATIENCE;
    while agent.spans()?.len() < 100 {
        ensure!(Instant::now() < deadline, "there are no spans");
        std::thread::sleep(Duration::from_millis(5));
    }
    server.running.signal(libc::SIGKILL);
    server.running.wait(PATIENCE)?;
    running.finish(CALLS)?;
    let report = agent.finish()?;
    let mut truth = Truth::new();
    truth::read(&running.log, &mut truth)?;
    let mut lost = 0;
    let mut spans: BTreeMap<&str, _> = BTreeMap::new();
    for span in report.spans.iter().filter(|span| span.kind == "CLIENT") {
        let Some(id) = span.call_id() else {
            // Sent as the connection died, which then was a new one for the agent: what it could not
            // read it says.
            let code = span.text("rpc.status_code").unwrap_or("UNAVAILABLE");
            assert!(
                span.is_unseen("rpc.method") && code == "UNAVAILABLE",
                "{client}: of no call: {span:?}"
            );
            continue;
        };
        assert!(spans.insert(id, span).is_none(), "twice: {span:?}");
    }
    for call in truth.values() {
        let span = spans.remove(call.id.as_str());
        let unavailable = call.code == "UNAVAILABLE";
        let Some(span) = span else {
            // Most of those after the death never reach a wire.
            assert!(unavailable, "{client}: missing: {call:?}");
            continue;
        };
        let code = span.text("rpc.status_code");
        assert_eq!(code, Some(call.code.as_str()), "{client}: {call:?}\n{span:?}");
        if unavailable {
            lost += 1;
            let error = span.text("error.type").unwrap_or_default();
            assert!(
                error.starts_with("connection_") && span.status.code == "ERROR",
                "{span:?}"
            );
        }
    }
    assert!(spans.is_empty(), "{client}: invented: {spans:?}");
    println!("{client}: {lost} calls were open when the server died");
    assert!(lost > 0, "{client}: no call was open, so nothing was tested");
    Ok(())
}

/// A server's span of a call whose client died has no status, for none was sent.
fn a_client_dies(language: Language) -> Result<()> {
    let folder = Folder::new()?;
    let mut server = Server::start(language, &folder)?;
    let load = Load::new("server-stream", 600).at_once(8).over(2);
    let mut client = Client::start(language, &server.address, load, Duration::from_secs(3), 0, &folder)?;
    client.running.signal(libc::SIGSTOP);
    let agent = Agent::attach(&[server.running.pid()], &folder)?;
    client.running.signal(libc::SIGCONT);
    let deadline = Instant::now() + PATIENCE;
    while agent.spans()?.len() < 50 {
        ensure!(Instant::now() < deadline, "there are no spans");
        std::thread::sleep(Duration::from_millis(5));
    }
    client.running.signal(libc::SIGKILL);
    client.running.wait(PATIENCE)?;
    server.running.end()?;
    let mut truth = Truth::new();
    truth::read(&server.log, &mut truth)?;
    let report = agent.finish()?;
    let mut seen = BTreeMap::new();
    for span in &report.spans {
        let id = span.call_id().context("a span of no call")?;
        ensure!(seen.insert(id, span).is_none(), "{language}: twice: {span:?}");
        let code = span.text("rpc.status_code");
        let Some(call) = truth.get(&("server".to_owned(), id.to_owned())) else {
            // It came and its connection was gone before the library called the handler.
            assert_eq!(code, None, "{language}: of no handler: {span:?}");
            continue;
        };
        match code {
            // The handler hears of the end of its connection as a cancellation, or where it sends.
            None => assert!(matches!(&*call.code, "CANCELLED" | "UNAVAILABLE"), "{call:?} {span:?}"),
            code => assert_eq!(code, Some(call.code.as_str()), "{language}: {span:?}"),
        }
    }
    for call in truth.values() {
        assert!(seen.contains_key(call.id.as_str()), "{language}: missing: {call:?}");
    }
    Ok(())
}

/// The short form is what is not `#[ignore]`d; `cargo xtask test --long` runs them all.
macro_rules! deaths {
    ($($(#[$attribute:meta])* $name:ident: $language:ident),* $(,)?) => {$(
        mod $name {
            use super::*;

            #[test]
            $(#[$attribute])*
            fn calls_whose_server_dies_are_unavailable() -> Result<()> {
                let _turn = alone()?;
                a_server_dies(Language::$language)
            }

            #[test]
            $(#[$attribute])*
            fn calls_whose_client_dies_have_no_status() -> Result<()> {
                let _turn = alone()?;
                a_client_dies(Language::$language)
            }
        }
    )*};
}

deaths! {
    go: Go,
    #[ignore = "long form"]
    python: Python,
    #[ignore = "long form"]
    asyncio: PythonAio,
    #[ignore = "long form"]
    node: Node,
    #[ignore = "long form"]
    java: Java,
    #[ignore = "long form"]
    cpp: Cpp,
    #[ignore = "long form"]
    rust: Rust,
}
