//! What Sentry asks for is done, by the agent as it runs: limits by category, of two the
//! longer, told again in reports; a project for each service; by way of a proxy; a trace that
//! Sentry's own SDK began goes on. Against a stand-in that answers as no real server can be
//! made to at will.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tracewire_tests::agent::Agent;
use tracewire_tests::answering::Answering;
use tracewire_tests::folder::Folder;
use tracewire_tests::otlp::get;
use tracewire_tests::prometheus::sum;
use tracewire_tests::running::Running;
use tracewire_tests::workload::free_port;
use tracewire_tests::{alone, place};

#[path = "../../agent/tests/sentry/peers.rs"]
#[expect(dead_code, reason = "what needs Node is another test")]
mod peers;
#[path = "../../agent/tests/sentry/sink.rs"]
#[expect(dead_code, reason = "what is slow is another test's")]
mod sink;

use sink::Sink;

const PATIENCE: Duration = Duration::from_secs(30);
const EXPORTED: &str = "otel_sdk_exporter_span_exported_total";
const SENTRY: &str = "sentry_span_exporter/0";

fn until(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !done()? {
        ensure!(Instant::now() < deadline, "{what}: not in {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// An agent that observes these and sends to that DSN.
fn observe(of: &[&Answering], folder: &Folder, variables: &[(&str, &str)]) -> Result<(Agent, String)> {
    let mut arguments = vec!["attach".to_owned(), "--health-listen".into(), "127.0.0.1:0".into()];
    for answering in of {
        arguments.extend(["--pid".to_owned(), answering.pid().to_string()]);
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut agent = Agent::start_changed(&arguments, folder, |command| {
        command.envs(variables.iter().copied());
    })?;
    agent.wait_attached()?;
    let health = agent.health()?;
    Ok((agent, health))
}

#[test]
fn limits_hold_by_category_and_what_they_cost_is_reported() -> Result<()> {
    let _turn = alone()?;
    let folder = Folder::new()?;
    let (answering, sentry) = (Answering::start()?, Sink::start());
    let (agent, health) = observe(&[&answering], &folder, &[("SENTRY_DSN", &sentry.dsn("abc", 7))])?;
    let told = |labels: &[&str]| Ok::<_, anyhow::Error>(sum(&get(&health, "/metrics")?.1, EXPORTED, labels));
    let limited = [SENTRY, "error_type=\"rate_limited\""];

    // Transactions for long, errors for a little; then again, both for less: the longer holds.
    sentry.answer("HTTP/1.1 200 OK\r\nX-Sentry-Rate-Limits: 600:transaction;span:organization, 3:error:key");
    sentry.answer("HTTP/1.1 200 OK\r\nX-Sentry-Rate-Limits: 1:transaction:key");
    answering.calls(1)?;
    sentry.wait_for("transaction", 1);
    until("the first is taken", || Ok(told(&[SENTRY])? >= 1.0))?;
    let (mut good, mut bad) = (1_u32, 0_u32);
    until("an error is let through again", || {
        answering.failures(1)?;
        bad += 1;
        std::thread::sleep(Duration::from_millis(200));
        Ok(!sentry.payloads("event").is_empty())
    })?;
    ensure!(bad > 1, "the first error went although it was limited");
    // The shorter limit that came with the answer to it is over by then.
    std::thread::sleep(Duration::from_millis(1200));
    answering.calls(2)?;
    good += 2;
    let all = f64::from(good + bad);
    until("all of them met their fate", || Ok(told(&[SENTRY])? >= all))?;
    assert_eq!(told(&limited)?, all - 1.0);
    let report = agent.interrupt()?;
    assert_eq!(sentry.payloads("transaction").len(), 1, "{}", report.messages);
    let events = u64::try_from(sentry.payloads("event").len())?;
    let mut lost = std::collections::BTreeMap::new();
    for report in sentry.payloads("client_report") {
        for entry in report["discarded_events"].as_array().unwrap() {
            assert_eq!(entry["reason"], "ratelimit_backoff", "{report}");
            let category = entry["category"].as_str().unwrap().to_owned();
            *lost.entry(category).or_insert(0) += entry["quantity"].as_u64().unwrap();
        }
    }
    let (all, bad) = (u64::from(good + bad), u64::from(bad));
    let wanted = [("error", bad - events), ("span", all - 1), ("transaction", all - 1)];
    assert_eq!(lost, wanted.map(|(name, n)| (name.to_owned(), n)).into());
    Ok(())
}

#[test]
fn a_429_stops_everything_for_as_long_as_it_says() -> Result<()> {
    let _turn = alone()?;
    let folder = Folder::new()?;
    let (answering, sentry) = (Answering::start()?, Sink::start());
    let (agent, health) = observe(&[&answering], &folder, &[("SENTRY_DSN", &sentry.dsn("abc", 7))])?;
    sentry.answer("HTTP/1.1 429 Too Many Requests\r\nRetry-After: 600");
    answering.calls(1)?;
    let counts = |error: &str, least: f64| {
        let error = format!("error_type=\"{error}\"");
        until(&error.clone(), || {
            let (_, page) = get(&health, "/metrics")?;
            Ok(sum(&page, EXPORTED, &[SENTRY, &error]) >= least)
        })
    };
    counts("429", 1.0)?;
    answering.failures(2)?;
    counts("rate_limited", 2.0)?;
    let report = agent.interrupt()?;
    assert_eq!(sentry.came().len(), 1, "nothing after it, not even a report");
    // The one that was refused, two transactions and two events.
    assert_eq!(report.counters["sentry_dropped.rate_limited"], 5);
    Ok(())
}

#[test]
fn each_service_has_its_project_and_a_proxy_is_gone_through() -> Result<()> {
    let _turn = alone()?;
    let Some(tinyproxy) = place::program("tinyproxy-bin", "tinyproxy") else {
        return Ok(());
    };
    let folder = Folder::new()?;
    let sentry = Sink::start();
    let (port, log) = (free_port()?, folder.file("proxy.log"));
    let config = folder.file("tinyproxy.conf");
    let settings = format!(
        "Port {port}\nListen 127.0.0.1\nLogLevel Connect\nLogFile \"{}\"\n",
        log.display()
    );
    fs::write(&config, settings)?;
    let mut command = Command::new(tinyproxy);
    command.arg("-d").arg("-c").arg(&config);
    let _proxy = Running::start_into("tinyproxy", &mut command, &folder.file("t.out"), &folder.file("t.err"))?;
    until("tinyproxy listens", || {
        Ok(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok())
    })?;

    let of = |name: &str, namespace: &str| {
        let resource = format!("service.namespace={namespace}");
        Answering::start_with(&[("OTEL_SERVICE_NAME", name), ("OTEL_RESOURCE_ATTRIBUTES", &resource)])
    };
    let services = [of("pay-api", "bank")?, of("cart", "shop")?, of("mail", "bank")?];
    let dsns = folder.file("dsns");
    let (one, two, three) = (sentry.dsn("a", 1), sentry.dsn("b", 2), sentry.dsn("c", 3));
    fs::write(&dsns, format!("pay* {one}\nshop/* {two}\n{three}\n"))?;
    let all: Vec<&Answering> = services.iter().collect();
    let proxy = format!("http://127.0.0.1:{port}");
    let file = dsns.to_string_lossy();
    let variables = [("SENTRY_DSN_FILE", &*file), ("HTTP_PROXY", &proxy)];
    let (agent, _) = observe(&all, &folder, &variables)?;
    for service in &services {
        service.calls(1)?;
        service.failures(1)?;
    }
    sentry.wait_for("transaction", 6);
    sentry.wait_for("event", 3);
    let report = agent.interrupt()?;
    let came = sentry.came();
    let mut seen = BTreeSet::new();
    for envelope in came.iter().filter(|e| e.kind() != "client_report") {
        let service = envelope.payload["tags"]["service.name"].as_str().unwrap();
        let key = envelope.header["trace"]["public_key"].as_str().unwrap();
        seen.insert((service, envelope.path.as_str().rsplit("/api/").next().unwrap(), key));
    }
    let wanted = [
        ("cart", "2/envelope/", "b"),
        ("mail", "3/envelope/", "c"),
        ("pay-api", "1/envelope/", "a"),
    ];
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), wanted);
    let proxied = fs::read_to_string(&log)?;
    let through = proxied.matches("/envelope/").count();
    assert!(
        through >= 9,
        "{through} of {} went through the proxy:\n{proxied}",
        came.len()
    );
    for secret in [&one, &two, &three] {
        assert!(!report.messages.contains(secret.as_str()), "{}", report.messages);
    }
    Ok(())
}

/// A program with Sentry's own SDK, which asks an address within a transaction.
const SDK: &str = r#"
import sys, urllib.request
import sentry_sdk
dsn, url = sys.argv[1:]
sentry_sdk.init(dsn=dsn, traces_sample_rate=1.0, release="batch@1.0", environment="nightly",
                auto_session_tracking=False)
with sentry_sdk.start_transaction(op="task", name="nightly"):
    urllib.request.urlopen(url).read()
sentry_sdk.flush()
"#;

#[test]
fn a_trace_of_sentry_s_own_sdk_goes_on_with_what_it_said() -> Result<()> {
    let _turn = alone()?;
    let Some(programs) = peers::python("sdk", &["sentry-sdk==2.75.0"]) else {
        return Ok(());
    };
    let folder = Folder::new()?;
    let (answering, sentry) = (Answering::start()?, Sink::start());
    let (agent, _) = observe(&[&answering], &folder, &[("SENTRY_DSN", &sentry.dsn("abc", 7))])?;
    let url = format!("http://{}/", answering.address());
    let output = Command::new(programs.join("python"))
        .args(["-c", SDK, &sentry.dsn("sdk", 9), &url])
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    sentry.wait_for("transaction", 2);
    agent.interrupt()?;
    let came = sentry.came();
    let of = |project: &str| {
        came.iter()
            .find(|e| e.kind() == "transaction" && e.path.ends_with(&format!("/{project}/envelope/")))
            .unwrap()
    };
    let (theirs, ours) = (of("9"), of("7"));
    let trace = &ours.payload["contexts"]["trace"];
    assert_eq!(trace["trace_id"], theirs.payload["contexts"]["trace"]["trace_id"]);
    let call = &theirs.payload["spans"][0];
    assert_eq!(
        (&call["op"], &trace["parent_span_id"]),
        (&"http.client".into(), &call["span_id"])
    );
    // What the head said of the trace goes with it unchanged.
    assert_eq!(ours.header["trace"], theirs.header["trace"]);
    Ok(())
}
