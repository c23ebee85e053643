//! Makes the recordings in tests/replays anew, which agent/tests/replays.rs
//! replays. Not run by default, since it changes the repository:
//!
//! ```text
//! cargo test -p tracewire-tests --test recordings -- --ignored
//! TRACEWIRE_UPDATE=1 cargo test -p tracewire --test replays
//! ```

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tracewire_tests::agent;
use tracewire_tests::folder::Folder;
use tracewire_tests::running::Running;
use tracewire_tests::session::CALLS;
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
