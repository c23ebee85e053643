//! A recording gives the spans that were seen while it was made. And: makes the
//! recordings in tests/replays anew, which agent/tests/replays.rs replays; that is
//! not run by default, since it changes the repository:
//!
//! ```text
//! cargo test -p tracewire-tests --test recordings -- --ignored
//! TRACEWIRE_UPDATE=1 cargo test -p tracewire --test replays
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tracewire_tests::agent::{self, Agent};
use tracewire_tests::folder::Folder;
use tracewire_tests::running::Running;
use tracewire_tests::session::CALLS;
use tracewire_tests::span::Span;
use tracewire_tests::web::Web;
use tracewire_tests::workload::{Client, Language, Load, Server};
use tracewire_tests::{alone, place};

const PATIENCE: Duration = Duration::from_secs(60);
/// The kind of an entry that says what a process is called.
const RESOURCE: u8 = 0x81;
/// Bytes of an entry's header; its kind is the first, its payload's length the second word.
const HEADER: usize = 32;

/// The recording with nothing of this machine in it: of each process only its name.
fn anonymous(recording: &[u8], name: &str) -> Result<Vec<u8>> {
    let start = recording.iter().position(|b| *b == b'\n').context("no first line")? + 1;
    let (magic, mut rest) = recording.split_at(start);
    let mut out = magic.to_vec();
    while let Some((length, more)) = rest.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let (entry, more) = more.split_at_checked(length).context("ends inside an entry")?;
        rest = more;
        let mut entry = entry.to_vec();
        if entry.first() == Some(&RESOURCE) {
            let payload = format!(r#"{{"attributes":{{"service.name":"{name}"}},"name":"{name}"}}"#);
            entry.truncate(HEADER);
            entry.splice(4..8, u32::try_from(payload.len())?.to_le_bytes());
            entry.extend(payload.bytes());
        }
        out.extend(u32::try_from(entry.len())?.to_le_bytes());
        out.extend(entry);
    }
    Ok(out)
}

fn record(language: Language) -> Result<()> {
    let folder = Folder::new()?;
    let mut server = Server::start(language, &folder)?;
    let load = Load::new("mixed", 20).at_once(2);
    let mut client = Client::start(language, &server.address, load, Duration::from_secs(3), 0, &folder)?;
    // It stands still before its first call until the recorder is there.
    client.running.signal(libc::SIGSTOP);
    let (raw, said) = (folder.file("raw.rec"), folder.file("record.err"));
    let pids = [server.running.pid(), client.running.pid()].map(|pid| pid.to_string());
    let mut command = agent::command(&["record", "--pid", &pids[0], "--pid", &pids[1]])?;
    command
        .args(["--capture-request-header", "x-call-id", "--out"])
        .arg(&raw);
    let out = folder.file("record.out");
    let mut recorder = Running::start_into("tracewire", command.stdin(Stdio::null()), &out, &said)?;
    recorder.wait_for_line(&said, "attached ", PATIENCE)?;
    client.running.signal(libc::SIGCONT);
    client.finish(CALLS)?;
    server.running.end()?;
    let status = recorder.wait(PATIENCE)?;
    ensure!(status.success(), "tracewire ended with {status}");
    let file = place::root().join("tests/replays").join(format!("{language}.rec"));
    fs::write(file, anonymous(&fs::read(raw)?, &language.to_string())?)?;
    Ok(())
}

#[test]
#[ignore = "changes tests/replays"]
fn recordings_are_made_anew() -> Result<()> {
    let _turn = alone()?;
    Language::ALL.into_iter().try_for_each(record)
}

const RECORDING: &str = "live.rec";
/// Clocks are compared now and then, by the recorder and by the agent.
const CLOCK_NS: u64 = 1_000_000;

/// An agent that records and shows spans at the same time.
fn recorder(pids: &[u32], folder: &Folder) -> Result<Agent> {
    let out = folder.file(RECORDING).to_string_lossy().into_owned();
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    let mut arguments = vec!["record", "--out", &out];
    for pid in &pids {
        arguments.extend(["--pid", pid]);
    }
    Agent::start(&arguments, folder)
}

fn replayed(folder: &Folder) -> Result<Vec<Span>> {
    let mut command = agent::command(&["replay", "--output", "json", "--capture-request-header", "x-call-id"])?;
    let output = command.arg(folder.file(RECORDING)).stdin(Stdio::null()).output()?;
    ensure!(
        output.status.success(),
        "replay: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let file = folder.file("replayed.json");
    fs::write(&file, output.stdout)?;
    Span::read(Path::new(&file))
}

/// Spans by side and call.
fn by_call(spans: &[Span]) -> Result<BTreeMap<(String, String), &Span>> {
    let mut found = BTreeMap::new();
    for span in spans {
        let id = span.call_id().with_context(|| format!("of no call: {span:?}"))?;
        let twice = found.insert((span.side(), id.to_owned()), span);
        ensure!(twice.is_none(), "twice: {span:?}");
    }
    Ok(found)
}

/// Holds what a recording gives against what was seen while it was made: all but what the recording
/// must not hold, and the ids, which are of another key.
fn assert_same(live: &[Span], replayed: &[Span]) -> Result<()> {
    let (live, replayed) = (by_call(live)?, by_call(replayed)?);
    assert!(!live.is_empty(), "there are no spans");
    assert_eq!(live.keys().collect::<Vec<_>>(), replayed.keys().collect::<Vec<_>>());
    for (key, was) in &live {
        let is = replayed.get(key).context("compared above")?;
        assert_eq!(
            (&is.name, &is.kind, &is.status.code),
            (&was.name, &was.kind, &was.status.code),
            "{key:?}"
        );
        assert!(is.start_ns.abs_diff(was.start_ns) < CLOCK_NS, "{key:?}: {is:?} {was:?}");
        assert!(is.end_ns.abs_diff(was.end_ns) < CLOCK_NS, "{key:?}: {is:?} {was:?}");
        let parent = |span: &Span, all: &BTreeMap<_, &Span>| {
            let found = all.iter().find(|(_, other)| other.span_id == span.parent_span_id);
            found.map(|(key, _)| format!("{key:?}"))
        };
        assert_eq!(parent(is, &replayed), parent(was, &live), "{key:?}");
        let names = |span: &Span| span.attributes.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(is), names(was), "{key:?}");
        for (name, value) in &was.attributes {
            let told = is.attributes.get(name);
            let hidden = told.is_some_and(|told| told.to_string().contains("REDACTED"));
            assert!(
                hidden || told == Some(value),
                "{key:?}: {name} is {told:?}, was {value}"
            );
        }
    }
    Ok(())
}

#[test]
fn a_recording_of_grpc_gives_the_spans_that_were_seen() -> Result<()> {
    let _turn = alone()?;
    let folder = Folder::new()?;
    let mut server = Server::start(Language::Go, &folder)?;
    let load = Load::new("mixed", 60).at_once(4).over(2);
    let mut client = Client::start(Language::Go, &server.address, load, Duration::from_secs(3), 0, &folder)?;
    client.running.signal(libc::SIGSTOP);
    let agent = recorder(&[server.running.pid(), client.running.pid()], &folder)?;
    client.running.signal(libc::SIGCONT);
    client.finish(CALLS)?;
    server.running.end()?;
    let live = agent.finish()?.spans;
    assert_eq!(live.len(), 120);
    assert_same(&live, &replayed(&folder)?)
}

#[test]
fn a_recording_of_http_gives_the_spans_that_were_seen() -> Result<()> {
    let _turn = alone()?;
    let clients = [("node", "http1,websocket"), ("go", "http1,h2c,connect")];
    let web = Web::run_under("go", &[], &clients, recorder)?;
    assert_same(&web.report.spans, &replayed(&web.folder)?)
}
