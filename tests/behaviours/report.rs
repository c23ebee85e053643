//! What the agent reports, by every way out at once: to a real collector, to a real
//! Prometheus, to a file and to standard output the same, once, and all of it.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use tracewire_tests::agent::Agent;
use tracewire_tests::folder::Folder;
use tracewire_tests::otlp::{self, Received, Receiver, get, text};
use tracewire_tests::prometheus::{Prometheus, sum};
use tracewire_tests::running::Running;
use tracewire_tests::session::{CALLS, now};
use tracewire_tests::tls::Tls;
use tracewire_tests::truth::{self, Truth};
use tracewire_tests::workload::{Client, Language, Load, Server, free_port};
use tracewire_tests::{alone, answers, place};

#[path = "../../agent/tests/sentry/peers.rs"]
#[expect(dead_code, reason = "what needs Node is another test")]
mod peers;
#[path = "../../agent/tests/sentry/sink.rs"]
#[expect(dead_code, reason = "it answers well here")]
mod sink;

use sink::Sink;

const PATIENCE: Duration = Duration::from_secs(30);
/// Statuses that are errors of a server (semantic conventions, `docs/rpc/grpc.md`).
const SERVER_ERRORS: [&str; 6] = [
    "UNKNOWN",
    "DEADLINE_EXCEEDED",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
];

/// rotel, a collector of others, that hands on to `receiver` what it gets. None: it can't be installed.
struct Rotel {
    _running: Running,
    program: PathBuf,
    grpc: u16,
    http: u16,
}

impl Rotel {
    fn start(receiver: &Receiver, folder: &Folder) -> Result<Option<Self>> {
        let Some(programs) = peers::python("rotel", &["rotel==0.0.1a15"]) else {
            return Ok(None);
        };
        let libraries = programs.parent().context("a folder")?.join("lib");
        let python = fs::read_dir(&libraries)?.next().context("a Python")??.path();
        let program = python.join("site-packages/rotel/rotel-agent");
        let (grpc, http) = (free_port()?, free_port()?);
        let mut command = Command::new(&program);
        command
            .args(["start", "--exporter", "otlp", "--otlp-exporter-protocol", "http"])
            .args(["--otlp-exporter-endpoint", &receiver.url()])
            .args(["--otlp-grpc-endpoint", &format!("127.0.0.1:{grpc}")])
            .args(["--otlp-http-endpoint", &format!("127.0.0.1:{http}")])
            .env("ROTEL_PID_FILE", folder.file("rotel.pid"));
        let (out, err) = (folder.file("rotel.out"), folder.file("rotel.err"));
        let running = Running::start_into("rotel", &mut command, &out, &err)?;
        let deadline = Instant::now() + PATIENCE;
        for port in [grpc, http] {
            while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
                ensure!(
                    Instant::now() < deadline,
                    "rotel does not listen:\n{}{}",
                    fs::read_to_string(&out)?,
                    fs::read_to_string(&err)?
                );
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(Some(Rotel {
            _running: running,
            program,
            grpc,
            http,
        }))
    }
}

/// The Go server under the name of a service.
fn server(name: &str, folder: &Folder) -> Result<Server> {
    let address = format!("127.0.0.1:{}", free_port()?);
    let (log, ready) = (folder.file("server.log"), folder.file("server.out"));
    let mut command = Language::Go.command("server")?;
    command
        .env("OTEL_SERVICE_NAME", name)
        .args(["--listen", &address, "--log"])
        .arg(&log);
    let mut running = Running::start_into("server", &mut command, &ready, &folder.file("server.err"))?;
    running.wait_for_line(&ready, "listening", PATIENCE)?;
    Ok(Server { running, address, log })
}

/// The last value of each series of a name, summed up; only of that service, if one is named.
fn last(received: &Received, name: &str, service: &str) -> f64 {
    let mut series = BTreeMap::new();
    for request in &received.metrics {
        for (of, attributes, value) in otlp::points(request, name) {
            series.insert(format!("{of}{attributes:?}"), (of, value));
        }
    }
    let of = |(of, _): &&(String, f64)| service.is_empty() || of == service;
    series.values().filter(of).map(|(_, value)| value).sum()
}

/// Waits until a page says what is wanted; the page.
fn page_when(address: &str, what: &str, good: impl Fn(&str) -> bool) -> Result<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (_, page) = get(address, "/metrics")?;
        if good(&page) {
            return Ok(page);
        }
        ensure!(Instant::now() < deadline, "{what}:\n{page}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Hex digits.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn every_way_out_says_the_same_and_counts_once() -> Result<()> {
    let _turn = alone()?;
    let folder = Folder::new()?;
    let receiver = Receiver::start()?;
    let Some(rotel) = Rotel::start(&receiver, &folder)? else {
        return Ok(());
    };
    let program = Language::Go.build()?;
    let file = folder.file("spans.jsonl");
    let endpoint = format!("http://127.0.0.1:{}", rotel.grpc);
    let mut agent = Agent::start_changed(
        &[
            "run",
            "--sample-ratio",
            "1",
            "--executable",
            &program.to_string_lossy(),
            "--health-listen",
            "127.0.0.1:0",
            "--otlp-file",
            &file.to_string_lossy(),
        ],
        &folder,
        |command| {
            command
                .env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)
                .env("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
                .env("OTEL_METRIC_EXPORT_INTERVAL", "300")
                .env("OTEL_BSP_SCHEDULE_DELAY", "100")
                .env("OTEL_BSP_MAX_QUEUE_SIZE", "10000")
                .env("TRACE_ENVIRONMENT", "testing");
        },
    )?;
    agent.wait_attached()?;
    let health = agent.health()?;
    assert_eq!(get(&health, "/healthz")?, (200, "ok\n".to_owned()));
    assert_eq!(get(&health, "/readyz")?, (200, "ok\n".to_owned()));
    let prometheus = Prometheus::start(&health, &folder)?;

    let mut server = server("stock", &folder)?;
    let mut truth = Truth::new();
    let mut clients = Vec::new();
    for (number, scenario) in ["unary", "errors", "bidi"].into_iter().enumerate() {
        let load = Load::new(scenario, 40);
        let address = &server.address;
        let client = Client::start_with(
            Language::Go,
            address,
            load,
            Duration::ZERO,
            number,
            &folder,
            |command| {
                command.env("OTEL_SERVICE_NAME", "shop");
            },
        )?;
        clients.push(client);
    }
    for client in &mut clients {
        client.finish(CALLS)?;
        truth::read(&client.log, &mut truth)?;
    }
    let calls = truth.len() as f64;
    let failed = truth.values().filter(|c| SERVER_ERRORS.contains(&&*c.code)).count() as f64;
    assert!(failed > 0.0 && failed < calls, "{failed} of {calls} calls failed");

    // Calls that wait for a server that stands still are open, and only they.
    let load = Load::new("unary", 600).at_once(4);
    let mut late = Client::start_with(
        Language::Go,
        &server.address,
        load,
        Duration::ZERO,
        3,
        &folder,
        |command| {
            command.env("OTEL_SERVICE_NAME", "shop").args(["--rate", "200"]);
        },
    )?;
    let open = "tracewire_requests_active";
    let client = [r#"service_name="shop""#, r#"role="client""#];
    let made = "rpc_client_call_duration_seconds_count";
    page_when(&health, "the calls have begun", |page| sum(page, made, &[]) > calls)?;
    server.running.signal(libc::SIGSTOP);
    page_when(&health, "four calls are open", |page| sum(page, open, &client) == 4.0)?;
    server.running.signal(libc::SIGCONT);
    late.finish(CALLS)?;
    truth::read(&late.log, &mut truth)?;
    let calls = truth.len() as f64;
    server.running.signal(libc::SIGKILL);
    server.running.wait(PATIENCE)?;

    let (stock, shop) = (r#"service_name="stock""#, r#"service_name="shop""#);
    let edge = [r#"client="shop""#, r#"server="stock""#];
    let exited = "tracewire_processes_exited_total";
    let page = page_when(&health, "all processes ended", |page| {
        sum(page, exited, &[stock]) == 1.0 && sum(page, exited, &[shop]) == 4.0 && sum(page, open, &[]) == 0.0
    })?;
    for (name, labels, wanted) in [
        ("rpc_server_call_duration_seconds_count", &[stock][..], calls),
        ("rpc_server_call_duration_seconds_count", &[], calls),
        (
            "rpc_server_call_duration_seconds_bucket",
            &[stock, r#"le="+Inf""#],
            calls,
        ),
        ("rpc_client_call_duration_seconds_count", &[shop], calls),
        ("traces_service_graph_request_total", &edge, calls),
        ("traces_service_graph_request_failed_total", &edge, failed),
        ("tracewire_processes_started_total", &[stock], 1.0),
        ("tracewire_processes_started_total", &[shop], 4.0),
        (exited, &[stock, r#"end="signal 9""#], 1.0),
        (exited, &[shop, r#"end="code 0""#], 4.0),
        (open, &[stock], 0.0),
    ] {
        assert_eq!(sum(&page, name, labels), wanted, "{name} {labels:?}:\n{page}");
    }
    let ids: BTreeSet<String> = agent.spans()?.into_iter().map(|span| span.trace_id).collect();
    if let Some(prometheus) = &prometheus {
        prometheus.wait_for("sum(rpc_server_call_duration_seconds_count)", calls)?;
        prometheus.wait_for("sum(rpc_client_call_duration_seconds_bucket{le=\"+Inf\"})", calls)?;
        prometheus.wait_for("sum(tracewire_requests_active)", 0.0)?;
        prometheus.wait_for(
            "traces_service_graph_request_total{client=\"shop\",server=\"stock\"}",
            calls,
        )?;
        let exemplars = prometheus.exemplars("rpc_server_call_duration_seconds_bucket")?;
        assert!(!exemplars.is_empty(), "Prometheus knows no exemplar");
        for id in exemplars {
            assert!(ids.contains(&id), "an exemplar of no trace: {id}");
        }
    }
    let report = agent.interrupt()?;

    let wanted = 2 * truth.len();
    let received = receiver.wait(PATIENCE, "all spans and metrics", |received| {
        received.spans.len() >= wanted && last(received, "tracewire.processes.exited", "shop") == 4.0
    })?;
    for (name, service, wanted) in [
        ("rpc.server.call.duration", "stock", calls),
        ("rpc.server.call.duration", "", calls),
        ("rpc.client.call.duration", "shop", calls),
        ("traces.service_graph.request.server", "tracewire", calls),
        ("traces.service_graph.request.failed", "tracewire", failed),
        ("tracewire.processes.started", "shop", 4.0),
        ("tracewire.processes.exited", "stock", 1.0),
        ("tracewire.requests.active", "", 0.0),
    ] {
        assert_eq!(last(&received, name, service), wanted, "{name} of {service:?}");
    }
    // The same spans by each way, each once.
    let mut by_output: Vec<_> = report.spans.iter().map(|s| s.span_id.clone()).collect();
    let mut by_collector: Vec<_> = received.spans.iter().map(|(_, s)| hex(&s.span_id)).collect();
    let lines = fs::read_to_string(&file)?;
    let mut by_file: Vec<_> = lines
        .split("\"spanId\":\"")
        .skip(1)
        .map(|rest| rest[..16].to_owned())
        .collect();
    for list in [&mut by_output, &mut by_collector, &mut by_file] {
        list.sort();
    }
    assert_eq!(by_output.len(), wanted, "{}", report.messages);
    assert_eq!(by_output, by_collector);
    assert_eq!(by_output, by_file);
    for (service, span) in &received.spans {
        let of = if span.kind == i32::from(SpanKind::Server) {
            "stock"
        } else {
            "shop"
        };
        assert_eq!(service, of);
    }
    for span in &report.spans {
        // On the resource, and on the span for whoever looks at it alone.
        for place in [&span.resource, &span.attributes] {
            let environment = place.get("deployment.environment.name");
            assert_eq!(environment.and_then(|e| e.as_str()), Some("testing"));
        }
    }
    Ok(())
}

/// Call ids by side of spans that came.
fn ids(received: &Received) -> Result<BTreeSet<(String, String)>> {
    let mut ids = BTreeSet::new();
    for (_, span) in &received.spans {
        let side = if span.kind == i32::from(SpanKind::Server) {
            "server"
        } else {
            "client"
        };
        let name = "rpc.request.metadata.x-call-id";
        let value = span.attributes.iter().find(|a| a.key == name);
        let id = format!("{:?}", value.context("a span of no call")?.value);
        let id = id.split('"').nth(1).context("no id")?.to_owned();
        ensure!(ids.insert((side.to_owned(), id)), "twice: {span:?}");
    }
    Ok(ids)
}

#[test]
fn sigterm_under_load_loses_no_finished_span() -> Result<()> {
    let _turn = alone()?;
    let folder = Folder::new()?;
    let receiver = Receiver::start()?;
    let mut server = Server::start(Language::Go, &folder)?;
    let load = Load::new("unary", 3000).at_once(8).over(3);
    let delay = Duration::from_secs(2);
    let mut client = Client::start_with(Language::Go, &server.address, load, delay, 0, &folder, |command| {
        command.args(["--rate", "600"]);
    })?;
    let sentry = Sink::start();
    client.running.signal(libc::SIGSTOP);
    let pids = [server.running.pid(), client.running.pid()].map(|pid| pid.to_string());
    let mut agent = Agent::start_changed(&["attach", "--pid", &pids[0], "--pid", &pids[1]], &folder, |command| {
        command
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url())
            .env("OTEL_BSP_MAX_QUEUE_SIZE", "100000")
            .env("SENTRY_DSN", sentry.dsn("abc", 7));
    })?;
    agent.wait_attached()?;
    client.running.signal(libc::SIGCONT);
    receiver.wait(PATIENCE, "the first spans", |received| received.spans.len() > 300)?;
    let asked = now();
    agent.signal(libc::SIGTERM);
    let began = Instant::now();
    let status = agent.wait(PATIENCE)?;
    let said = agent.said();
    assert!(status.success(), "{status}:\n{said}");
    assert!(began.elapsed() < Duration::from_secs(8), "the deadline is five seconds");
    // The rest of the calls is nobody's business any more, and undisturbed.
    client.finish(CALLS)?;
    server.running.end()?;
    let mut truth = Truth::new();
    truth::read(&client.log, &mut truth)?;
    truth::read(&server.log, &mut truth)?;
    let received = receiver.received();
    let seen = ids(&received)?;
    let over: Vec<_> = truth.iter().filter(|(_, call)| call.end_ns < asked).collect();
    let missing: Vec<_> = over.iter().filter(|(key, _)| !seen.contains(*key)).collect();
    assert!(over.len() > 300 && over.len() < truth.len(), "it did not end at work");
    assert!(
        missing.is_empty(),
        "{} of {}: {:?}\n{said}",
        missing.len(),
        over.len(),
        missing[0]
    );
    // Sentry has the same spans, each once, though most waited for the rest of their transaction.
    let mut by_sentry = Vec::new();
    for transaction in sentry.payloads("transaction") {
        let calls = transaction["spans"].as_array().context("calls")?;
        let own = &transaction["contexts"]["trace"];
        let ids = calls.iter().chain([own]).filter_map(|s| s["span_id"].as_str());
        by_sentry.extend(ids.map(str::to_owned));
    }
    let mut by_otlp: Vec<_> = received.spans.iter().map(|(_, s)| hex(&s.span_id)).collect();
    by_sentry.sort();
    by_otlp.sort();
    assert_eq!(by_sentry.len(), by_otlp.len(), "{said}");
    assert_eq!(by_sentry, by_otlp);
    let sent = format!("spans {}, dropped 0, lost events 0", received.spans.len());
    assert!(said.contains(&sent), "{sent}:\n{said}");
    Ok(())
}

/// A collector that is observed as the agent's own requests are: what carries spans makes none.
#[test]
fn the_agent_and_an_observed_collector_make_no_loop() -> Result<()> {
    let _turn = alone()?;
    let folder = Folder::new()?;
    let receiver = Receiver::start()?;
    let Some(rotel) = Rotel::start(&receiver, &folder)? else {
        return Ok(());
    };
    let answering = answers::listen()?;
    let me = std::env::current_exe()?;
    let chosen = [
        rotel.program.as_path(),
        me.as_path(),
        Path::new(&tracewire_tests::place::agent()?),
    ]
    .map(|path| path.to_string_lossy().into_owned());
    let mut calls = 0;
    for (protocol, port) in [("grpc", rotel.grpc), ("http/protobuf", rotel.http)] {
        let mut arguments = vec!["run", "--sample-ratio", "1"];
        chosen.iter().for_each(|path| arguments.extend(["--executable", path]));
        let endpoint = format!("http://127.0.0.1:{port}");
        let mut agent = Agent::start_changed(&arguments, &folder, |command| {
            command
                .env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)
                .env("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
                .env("OTEL_METRIC_EXPORT_INTERVAL", "200")
                .env("OTEL_BSP_SCHEDULE_DELAY", "50");
        })?;
        agent.wait_attached()?;
        for _ in 0..10 {
            get(&answering, "/200")?;
        }
        calls += 10;
        // Both ends of each call, by way of the collector, which is observed at both of its sides.
        let enough = |received: &Received| spans_of(received, "/200") >= 2 * calls;
        receiver.wait(PATIENCE, protocol, enough)?;
        std::thread::sleep(Duration::from_millis(1500));
        let report = agent.interrupt()?;
        std::thread::sleep(Duration::from_millis(500));
        let received = receiver.received();
        assert_eq!(spans_of(&received, "/200"), 2 * calls);
        for (service, span) in &received.spans {
            let carries = format!("{} {}", span.name, text(&span.attributes, "url.path"));
            assert!(
                !carries.contains("v1/traces") && !carries.contains("TraceService"),
                "{service}: {span:?}"
            );
        }
        let own = report.counters.get("own_requests").copied().unwrap_or(0);
        assert!(
            own > 0,
            "the exporter's requests were not seen, so nothing was tested: {report:?}"
        );
    }
    Ok(())
}

/// nginx asks for a certificate of the test's own authority, tinyproxy stands before it, and
/// behind it is the collector.
#[test]
fn spans_go_through_a_proxy_and_mutual_tls() -> Result<()> {
    let _turn = alone()?;
    let folder = Folder::new()?;
    let receiver = Receiver::start()?;
    let (Some(rotel), Some(nginx), Some(tinyproxy)) = (
        Rotel::start(&receiver, &folder)?,
        place::program("nginx", "nginx"),
        place::program("tinyproxy-bin", "tinyproxy"),
    ) else {
        return Ok(());
    };
    let tls = Tls::new(&folder, true)?;
    let pem = |name: &str| tls.folder.join(name).to_string_lossy().into_owned();
    let (port, proxy) = (free_port()?, free_port()?);
    let config = folder.file("nginx.conf");
    fs::write(
        &config,
        format!(
            "daemon off; master_process off; pid {home}/nginx.pid; error_log {home}/nginx.log;\n\
             events {{}}\n\
             http {{ log_format who '$ssl_client_s_dn $request $status'; access_log {home}/access.log who;\n\
             client_body_temp_path {home}/b; proxy_temp_path {home}/p; fastcgi_temp_path {home}/f;\n\
             uwsgi_temp_path {home}/u; scgi_temp_path {home}/s;\n\
             server {{ listen 127.0.0.1:{port} ssl http2; ssl_certificate {cert}; ssl_certificate_key {key};\n\
             ssl_client_certificate {ca}; ssl_verify_client on;\n\
             location /v1/ {{ proxy_pass http://127.0.0.1:{http}; }}\n\
             location / {{ grpc_pass grpc://127.0.0.1:{grpc}; }} }} }}\n",
            home = folder.path().display(),
            cert = pem("cert.pem"),
            key = pem("key.pem"),
            ca = pem("ca.pem"),
            http = rotel.http,
            grpc = rotel.grpc,
        ),
    )?;
    let mut command = Command::new(nginx);
    command
        .arg("-p")
        .arg(folder.path())
        .arg("-c")
        .arg(&config)
        .args(["-e", "stderr"]);
    let _nginx = Running::start_into("nginx", &mut command, &folder.file("n.out"), &folder.file("n.err"))?;
    let config = folder.file("tinyproxy.conf");
    let proxied = folder.file("proxy.log");
    let settings = format!(
        "Port {proxy}\nListen 127.0.0.1\nLogLevel Connect\nLogFile \"{}\"\n",
        proxied.display()
    );
    fs::write(&config, settings)?;
    let mut command = Command::new(tinyproxy);
    command.arg("-d").arg("-c").arg(&config);
    let _proxy = Running::start_into("tinyproxy", &mut command, &folder.file("t.out"), &folder.file("t.err"))?;
    let deadline = Instant::now() + PATIENCE;
    while [port, proxy]
        .iter()
        .any(|port| std::net::TcpStream::connect(("127.0.0.1", *port)).is_err())
    {
        let said = fs::read_to_string(folder.file("n.err"))? + &fs::read_to_string(folder.file("t.err"))?;
        ensure!(Instant::now() < deadline, "nginx or tinyproxy does not listen:\n{said}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let answering = answers::listen()?;
    let me = std::process::id().to_string();
    let mut calls = 0;
    for (protocol, identity) in [("grpc", true), ("http/protobuf", true), ("http/json", false)] {
        let mut agent = Agent::start_changed(&["attach", "--pid", &me], &folder, |command| {
            command
                .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("https://localhost:{port}"))
                .env("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
                .env("OTEL_EXPORTER_OTLP_CERTIFICATE", pem("ca.pem"))
                .env("OTEL_BSP_SCHEDULE_DELAY", "50")
                .env("HTTPS_PROXY", format!("http://127.0.0.1:{proxy}"))
                .env("NO_PROXY", "elsewhere");
            if identity {
                command
                    .env("OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE", pem("cert.pem"))
                    .env("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", pem("key.pem"));
            }
        })?;
        agent.wait_attached()?;
        for _ in 0..3 {
            get(&answering, "/200")?;
        }
        let access = folder.file("access.log");
        if identity {
            calls += 3;
            let enough = |received: &Received| spans_of(received, "/200") >= 2 * calls;
            receiver.wait(PATIENCE, protocol, enough)?;
            // nginx notes a request when it has answered it, a little after the receiver has the spans.
            let deadline = Instant::now() + PATIENCE;
            while !fs::read_to_string(&access)?.contains("CN=localhost POST") {
                ensure!(Instant::now() < deadline, "{protocol}: no certificate was shown");
                std::thread::sleep(Duration::from_millis(20));
            }
            agent.interrupt()?;
        } else {
            let report = agent.interrupt()?;
            assert!(report.messages.contains("HTTP status 400"), "{}", report.messages);
            assert!(report.counters["spans_dropped.refused"] >= 6, "{:?}", report.counters);
        }
        let said = fs::read_to_string(&proxied)?;
        let asked = format!("CONNECT localhost:{port}");
        assert!(said.contains(&asked), "{protocol} went past the proxy:\n{said}");
        fs::write(&proxied, "")?;
    }
    assert_eq!(spans_of(&receiver.received(), "/200"), 2 * calls);
    Ok(())
}

fn spans_of(received: &Received, path: &str) -> usize {
    let of = |attributes: &[_]| text(attributes, "url.path") == path || text(attributes, "url.full").ends_with(path);
    received.spans.iter().filter(|(_, span)| of(&span.attributes)).count()
}
