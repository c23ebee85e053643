//! From services that nobody changed to Sentry: the demo's ledger and treasury
//! under load, the agent, and two servers that speak Sentry's protocol and tell
//! by their own interfaces what they got.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value as Json;
use tracewire_tests::folder::Folder;
use tracewire_tests::running::Running;
use tracewire_tests::{agent, alone, place};

#[path = "../../agent/tests/sentry/bugsink.rs"]
mod bugsink;
#[path = "../../agent/tests/sentry/peers.rs"]
mod peers;
#[path = "../../agent/tests/sentry/spotlight.rs"]
mod spotlight;

use bugsink::Bugsink;
use spotlight::Spotlight;

/// How long a service may take to listen, and an agent to attach.
const READY: Duration = Duration::from_secs(60);
/// How long the load lasts, seconds, and what it may take for its last calls.
const SECONDS: &str = "8";
const LOAD: Duration = Duration::from_secs(30);

/// Starts one of the demo's programs.
fn service(name: &str, arguments: &[&str], folder: &Folder) -> Result<Running> {
    let program = place::root().join("target/release").join(name);
    ensure!(
        program.is_file(),
        "no {}: `cargo xtask demo` builds it",
        program.display()
    );
    let log = folder.file(name);
    Running::start_into(name, Command::new(program).args(arguments), &log, &folder.file("err"))
}

/// The same, once it listens: its address too.
fn listening(name: &str, arguments: &[&str], folder: &Folder) -> Result<(Running, String)> {
    let mut running = service(name, arguments, folder)?;
    let line = running.wait_for_line(&folder.file(name), &format!("{name} listening on "), READY)?;
    let address = line.rsplit(' ').next().unwrap_or_default().to_owned();
    Ok((running, address))
}

/// An agent that sends to that DSN, attached.
fn attach(name: &str, dsn: &str, pids: &[u32], more: &[&str], folder: &Folder) -> Result<Running> {
    let secret = folder.file("dsn");
    fs::write(&secret, dsn)?;
    let mut command = agent::command(&["attach", "--output", "none"])?;
    command.arg("--sentry-dsn-file").arg(&secret).args(more);
    command
        .env("SENTRY_ENVIRONMENT", "test")
        .env("SENTRY_RELEASE", "bank@1.0.0");
    for pid in pids {
        command.args(["--pid", &pid.to_string()]);
    }
    let log = folder.file(&format!("{name}.log"));
    let mut running = Running::start_into(name, &mut command, &folder.file("out"), &log)?;
    running.wait_for_line(&log, "attached ", READY)?;
    let arguments = fs::read(format!("/proc/{}/cmdline", running.pid()))?;
    ensure!(
        !String::from_utf8_lossy(&arguments).contains('@'),
        "the DSN shows in the arguments"
    );
    Ok(running)
}

/// Ends an agent and gives its counters and its log.
fn finish(mut agent: Running, name: &str, folder: &Folder) -> Result<(BTreeMap<String, u64>, String)> {
    agent.signal(libc::SIGINT);
    let status = agent.wait(READY)?;
    let log = fs::read_to_string(folder.file(&format!("{name}.log")))?;
    ensure!(status.success(), "{name} ended with {status}:\n{log}");
    let counters = log
        .lines()
        .filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        })
        .collect();
    Ok((counters, log))
}

/// Calls by method and status, as the load itself counted them.
fn truth(log: &str, method: &str, status: &str) -> u64 {
    log.lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|words| words.len() == 3 && words[0] == method && words[1].eq_ignore_ascii_case(status))
        .and_then(|words| words[2].parse().ok())
        .unwrap_or(0)
}

#[test]
fn failing_calls_are_issues_and_every_call_is_in_the_tree() -> Result<()> {
    let _turn = alone()?;
    let Some(bugsink) = Bugsink::start() else { return Ok(()) };
    let Some(spotlight) = Spotlight::start() else {
        return Ok(());
    };
    let folder = Folder::new()?;
    let none = "127.0.0.1:0";
    let (treasury, treasury_address) = listening("treasury", &["--listen", none], &folder)?;
    let arguments = ["--listen", none, "--treasury", &treasury_address];
    let (ledger, ledger_address) = listening("ledger", &arguments, &folder)?;
    let pids = [ledger.pid(), treasury.pid()];
    // One in a hundred is sampled: the errors are there all the same.
    let issues = attach("issues", &bugsink.dsn, &pids, &["--sample-ratio", "0.01"], &folder)?;
    let traces = attach("traces", &spotlight.dsn(), &pids, &[], &folder)?;
    let arguments = ["--ledger", &ledger_address, "--rate", "20", "--seconds", SECONDS];
    let mut load = service("load", &arguments, &folder)?;
    ensure!(load.wait(LOAD)?.success(), "the load failed");
    std::thread::sleep(Duration::from_secs(1));
    let (counted, said) = finish(issues, "issues", &folder)?;
    let (sent, _) = finish(traces, "traces", &folder)?;
    let key = bugsink.dsn.split(['/', '@']).nth(2).context("a DSN has a key")?;
    assert!(!said.contains(key), "the key of the DSN is logged");

    let load = fs::read_to_string(folder.file("load"))?;
    let failed = truth(&load, "ImportEntries", "INTERNAL");
    assert!(failed > 0, "nothing failed:\n{load}");
    bugsink.wait_for(counted["sentry_issues"]);
    let all = bugsink.issues();
    let issue: Vec<&Json> = all
        .iter()
        .filter(|i| i["transaction"] == "bank.v1.Ledger/ImportEntries" && i["calculated_type"] == "gRPC INTERNAL")
        .collect();
    assert_eq!(issue.len(), 1, "{all:#?}");
    // Ten a minute of one kind are sent.
    assert_eq!(
        issue[0]["digested_event_count"].as_u64(),
        Some(failed.min(10)),
        "{load}"
    );
    let event = &bugsink.events(issue[0])[0];
    assert_eq!(
        (&event["environment"], &event["release"]),
        (&"test".into(), &"bank@1.0.0".into())
    );
    assert!(
        event["tags"]["custom.instance_id"]
            .as_str()
            .is_some_and(|id| id.len() == 32)
    );
    assert!(
        counted.get("spans_unsampled").is_some_and(|n| *n > 0),
        "everything was sampled: {counted:?}"
    );

    // One transaction a served request: those of the ledger are those of the load.
    let transactions = spotlight.wait_for("transaction", usize::try_from(sent["sentry_transactions"].min(400))?);
    let served = |t: &&Json| t["contexts"]["trace"]["op"] == "grpc.server";
    let name = |t: &Json| t["transaction"].as_str().unwrap_or_default().to_owned();
    let imports = transactions
        .iter()
        .filter(served)
        .filter(|t| name(t) == "bank.v1.Ledger/ImportEntries")
        .filter(|t| t["contexts"]["trace"]["status"] == "internal_error")
        .count();
    assert_eq!(imports as u64, failed);
    assert!(
        transactions
            .iter()
            .filter(served)
            .any(|t| name(t).starts_with("bank.v1.Treasury/"))
    );
    assert!(
        transactions
            .iter()
            .all(|t| t["transaction_info"]["source"] != Json::Null)
    );
    assert_eq!(sent.get("sentry_dropped.queue_full"), Some(&0), "{sent:?}");
    Ok(())
}
