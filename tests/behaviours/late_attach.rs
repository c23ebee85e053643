//! Connections that are older than the agent: durations, statuses, peers and
//! messages are never wrong, and the method is right where it can be read, else
//! `_OTHER` with the attribute that says so. Never a wrong one.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tracewire_tests::agent::Agent;
use tracewire_tests::alone;
use tracewire_tests::compare;
use tracewire_tests::folder::Folder;
use tracewire_tests::session::{CALLS, Session, now};
use tracewire_tests::truth::{self, Truth};
use tracewire_tests::workload::{Client, Language, Load, Server};

const PATIENCE: Duration = Duration::from_secs(60);
/// Calls before the agent comes, by which both sides' tables have all that is repeated.
const BEFORE: usize = 60;

/// Attaches while a client is in the middle of its calls; what is seen of the rest is held against
/// the logs.
fn late(language: Language, load: Load) -> Result<()> {
    let _turn = alone()?;
    let folder = Folder::new()?;
    let mut server = Server::start(language, &folder)?;
    let mut client = Client::start(language, &server.address, load, Duration::ZERO, 0, &folder)?;
    let made = || std::fs::read_to_string(folder.file("client-0.log")).map_or(0, |log| log.lines().count());
    let deadline = Instant::now() + PATIENCE;
    while made() < BEFORE {
        ensure!(Instant::now() < deadline, "{language}: the client makes no calls");
        std::thread::sleep(Duration::from_millis(2));
    }
    // It stands still while the agent comes, so that the calls before and after are told apart.
    client.running.signal(libc::SIGSTOP);
    let agent = Agent::attach(&[server.running.pid(), client.running.pid()], &folder)?;
    let attached = now();
    client.running.signal(libc::SIGCONT);
    client.finish(CALLS)?;
    server.running.end()?;
    let mut truth = Truth::new();
    truth::read(&client.log, &mut truth)?;
    truth::read(&server.log, &mut truth)?;
    let report = agent.finish()?;
    let comparison = compare::late(&truth, &report.spans, attached, &server.address);
    let session = Session {
        title: format!("{language}, late: {load}"),
        truth,
        report,
        address: server.address.clone(),
        folder,
    };
    session.assert(&comparison);
    let missing = comparison.allowed.get("missing").copied().unwrap_or(0);
    assert!(missing <= MISSING, "{}: {missing} are missing", session.title);
    Ok(())
}

/// Spans that may be missing: those of the calls by which a connection's framing is found.
const MISSING: usize = 10;
/// One connection, and calls that take some time, so that each can be told by it.
const LOAD: Load = Load::new("server-stream", 140);

macro_rules! languages {
    ($($name:ident: $language:ident),* $(,)?) => {$(
        #[test]
        fn $name() -> Result<()> {
            late(Language::$language, LOAD)
        }
    )*};
}

languages! {
    a_go_connection_joined_late_is_never_told_wrong: Go,
    a_python_connection_joined_late_is_never_told_wrong: Python,
    an_asyncio_connection_joined_late_is_never_told_wrong: PythonAio,
    a_node_connection_joined_late_is_never_told_wrong: Node,
    a_java_connection_joined_late_is_never_told_wrong: Java,
    a_cpp_connection_joined_late_is_never_told_wrong: Cpp,
    a_rust_connection_joined_late_is_never_told_wrong: Rust,
}
