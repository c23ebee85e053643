//! What the agent is told: what turns it off, what it refuses, and what it
//! takes anew while it runs.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tracewire_tests::folder::Folder;
use tracewire_tests::running::Running;
use tracewire_tests::span::Span;
use tracewire_tests::workload::free_port;
use tracewire_tests::{agent, alone};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a refusal may take.
const SOON: Duration = Duration::from_secs(20);

/// An agent as a user starts it: with the defaults of sampling, too.
fn command(arguments: &[&str]) -> Result<Command> {
    let mut command = agent::command(arguments)?;
    command
        .env_remove("OTEL_TRACES_SAMPLER")
        .env_remove("TRACEWIRE_COUNTERS");
    Ok(command)
}

fn until(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !done()? {
        ensure!(start.elapsed() < PATIENCE, "{what}: not in {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn lines_with(log: &Path, text: &str) -> usize {
    let log = fs::read_to_string(log).unwrap_or_default();
    log.lines().filter(|line| line.contains(text)).count()
}

/// Programs and maps of the kernel that a process holds.
fn held(pid: u32) -> Result<usize> {
    let mut held = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        let info = fs::read_to_string(entry?.path()).unwrap_or_default();
        held += info
            .lines()
            .filter(|l| l.starts_with("prog_id:") || l.starts_with("map_id:"))
            .count();
    }
    Ok(held)
}

#[test]
fn what_is_turned_off_loads_nothing() -> Result<()> {
    let _turn = alone()?;
    for (variable, value) in [("TRACING_ENABLED", "false"), ("OTEL_SDK_DISABLED", "TRUE")] {
        let folder = Folder::new()?;
        let log = folder.file("log");
        let mut command = command(&["run", "--executable", "/**"])?;
        command.env(variable, value);
        let mut agent = Running::start_into("off", &mut command, &folder.file("out"), &log)?;
        let said = agent.wait_for_line(&log, "tracing is off by ", PATIENCE)?;
        ensure!(said.contains(variable), "{said}");
        assert_eq!(held(agent.pid())?, 0, "{variable}: programs or maps are loaded");
        agent.signal(libc::SIGTERM);
        ensure!(agent.wait(PATIENCE)?.success(), "{}", fs::read_to_string(&log)?);
        // A person at a terminal gets the prompt back.
        let pid = std::process::id().to_string();
        let output = self::command(&["attach", "--pid", &pid])?
            .env(variable, value)
            .output()?;
        ensure!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    }
    // The measure works: one that is on holds some.
    let folder = Folder::new()?;
    let log = folder.file("log");
    let mut agent = Running::start_into(
        "on",
        &mut command(&["run", "--executable", "/no/such"])?,
        &folder.file("out"),
        &log,
    )?;
    agent.wait_for_line(&log, "attached ", PATIENCE)?;
    ensure!(held(agent.pid())? > 5, "{} programs and maps", held(agent.pid())?);
    Ok(())
}

/// What is given wrongly: a flag, a variable or a line of the file; and what the message must name.
#[test]
fn what_can_t_be_obeyed_ends_with_2_before_anything_is_loaded() -> Result<()> {
    let _turn = alone()?;
    let folder = Folder::new()?;
    let file = folder.file("tw.yaml");
    let path = file.to_str().context("a path is text")?;
    let none: &[&str] = &[];
    type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a str, &'a str);
    let cases: &[Case<'_>] = &[
        // Flags.
        (&["--sample-ratio", "2"], &[], "", "--sample-ratio"),
        (&["--sample-rule", "route=/x"], &[], "", "--sample-rule"),
        (&["--sample-limit", "0"], &[], "", "--sample-limit"),
        (&["--trust-sampling", "nobody"], &[], "", "--trust-sampling"),
        (&["--keep-slower-than", "soon"], &[], "", "--keep-slower-than"),
        (&["--ring-buffer", "1000"], &[], "", "--ring-buffer"),
        (&["--redact", "("], &[], "", "--redact"),
        (&["--route", "users"], &[], "", "--route"),
        (&["--otlp-endpoint", "nowhere"], &[], "", "--otlp-endpoint"),
        (
            &[
                "--otlp-endpoint",
                "https://c:4318",
                "--otlp-certificate",
                "/no/such.pem",
            ],
            &[],
            "",
            "--otlp-certificate",
        ),
        (&["--sentry-dsn-file", "/no/such"], &[], "", "--sentry-dsn-file"),
        (
            &["--sentry-traces-sample-rate", "7"],
            &[],
            "",
            "--sentry-traces-sample-rate",
        ),
        (&["--health-listen", "nowhere"], &[], "", "--health-listen"),
        (&["--executable", "["], &[], "", "GLOB"),
        (&["--inject"], &[("OTEL_PROPAGATORS", "none")], "", "--inject"),
        // Variables.
        (none, &[("TRACING_ENABLED", "maybe")], "", "TRACING_ENABLED"),
        (none, &[("TRACE_SAMPLE_RATE", "many")], "", "TRACE_SAMPLE_RATE"),
        (
            none,
            &[
                ("OTEL_TRACES_SAMPLER", "traceidratio"),
                ("OTEL_TRACES_SAMPLER_ARG", "1.5"),
            ],
            "",
            "OTEL_TRACES_SAMPLER_ARG",
        ),
        (none, &[("OTEL_BSP_MAX_QUEUE_SIZE", "0")], "", "OTEL_BSP_MAX_QUEUE_SIZE"),
        (
            none,
            &[("OTEL_BSP_SCHEDULE_DELAY", "5s")],
            "",
            "OTEL_BSP_SCHEDULE_DELAY",
        ),
        (
            none,
            &[("OTEL_METRIC_EXPORT_INTERVAL", "1m")],
            "",
            "OTEL_METRIC_EXPORT_INTERVAL",
        ),
        (
            none,
            &[("OTEL_SPAN_EVENT_COUNT_LIMIT", "-1")],
            "",
            "OTEL_SPAN_EVENT_COUNT_LIMIT",
        ),
        (
            none,
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://c")],
            "",
            "OTEL_EXPORTER_OTLP_ENDPOINT",
        ),
        (
            none,
            &[("OTEL_EXPORTER_OTLP_HEADERS", "hunter2")],
            "",
            "OTEL_EXPORTER_OTLP_HEADERS",
        ),
        (none, &[("OTEL_CONFIG_FILE", "/no/such")], "", "OTEL_CONFIG_FILE"),
        (none, &[("SENTRY_DSN", "https://hunter2@")], "", "SENTRY_DSN"),
        (none, &[("TRACEWIRE_CONNECTIONS", "0")], "", "TRACEWIRE_CONNECTIONS"),
        (none, &[("TRACEWIRE_RING_BUFFER", "big")], "", "TRACEWIRE_RING_BUFFER"),
        (none, &[("TRACEWIRE_REDACT", "(")], "", "TRACEWIRE_REDACT"),
        // The file.
        (
            none,
            &[],
            "sampling:\n  ratoi: 1\n",
            "tw.yaml:2: unknown key `sampling.ratoi`; did you mean `sampling.ratio`?",
        ),
        (none, &[], "enabled: perhaps\n", "tw.yaml:1: enabled"),
        (none, &[], "output: loud\n", "tw.yaml:1: output"),
        (
            none,
            &[],
            "kernel:\n  connections: few\n",
            "tw.yaml:2: kernel.connections",
        ),
        (none, &[], "sampling:\n  limit: x\n", "tw.yaml:2: sampling.limit"),
        (none, &[], "sampling:\n  ratio: 2\n", "tw.yaml:2: sampling.ratio"),
        (
            none,
            &[],
            "batch:\n  schedule_delay: 5s\n",
            "tw.yaml:2: batch.schedule_delay",
        ),
        (none, &[], "routes:\n  patterns: {a: b}\n", "tw.yaml:2: routes.patterns"),
        (none, &[], "sentry:\n  dsn_file: /no/such\n", "sentry.dsn_file"),
        (none, &[], "sentry: [\n", "tw.yaml"),
    ];
    let mut wrong = Vec::new();
    for (flags, variables, text, named) in cases {
        let mut arguments = vec!["run", "--port", "1", "--config", path];
        arguments.extend(*flags);
        fs::write(&file, text)?;
        let log = folder.file("log");
        let mut command = command(&arguments)?;
        command.envs(variables.iter().copied());
        let mut agent = Running::start_into("agent", &mut command, &folder.file("out"), &log)?;
        let code = agent.wait(SOON).ok().and_then(|status| status.code());
        let said = fs::read_to_string(&log)?;
        let loaded = said.contains("kernel programs in place") || said.contains("attached");
        if code != Some(2) || !said.contains(named) || loaded || said.contains("hunter2") {
            wrong.push(format!("{flags:?} {variables:?} {text:?}: {code:?}\n{said}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn what_holds_is_printed_without_its_secrets() -> Result<()> {
    let output = command(&["config", "--sample-ratio", "0.5"])?
        .env("SENTRY_DSN", "https://hunter2@o1.ingest.sentry.io/7")
        .env("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20hunter2")
        .env("TRACE_ENVIRONMENT", "staging")
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(output.status.success() && !text.contains("hunter2"), "{text}");
    // Nobody's terminal: no colours.
    ensure!(!text.contains('\x1b'), "{text:?}");
    for (key, value, source) in [
        ("sampling.ratio", "0.5", "--sample-ratio"),
        ("environment", "staging", "TRACE_ENVIRONMENT"),
        ("otlp.headers", "authorization=…", "OTEL_EXPORTER_OTLP_HEADERS"),
        ("sentry.dsn", "…", "SENTRY_DSN"),
        ("batch.max_queue_size", "2048", "default"),
    ] {
        let line = text.lines().find(|line| line.split_whitespace().next() == Some(key));
        let words: Vec<&str> = line.unwrap_or_default().split_whitespace().collect();
        assert_eq!(words, [key, value, source], "{text}");
    }
    Ok(())
}

/// Every variable that means something (SPEC `sdk-environment-variables.md`, `protocol/exporter.md`,
/// and the names of the tracing specification), a value for it, and the setting that it gives.
const VARIABLES: &[(&str, &str, &str)] = &[
    ("TRACING_ENABLED", "false", "enabled"),
    ("TRACE_ENVIRONMENT", "staging", "environment"),
    ("ENVIRONMENT", "staging", "environment"),
    ("TRACE_SERVICE_NAME", "shop", "service.name"),
    ("OTEL_SERVICE_NAME", "shop", "service.name"),
    ("SERVICE_NAME", "shop", "service.name"),
    ("TRACE_SERVICE_VERSION", "1.2", "service.version"),
    ("SERVICE_VERSION", "1.2", "service.version"),
    ("OTEL_RESOURCE_ATTRIBUTES", "a=b", "resource.attributes"),
    ("OTEL_LOG_LEVEL", "debug", "log.level"),
    ("OTEL_PROPAGATORS", "tracecontext", "propagation.propagators"),
    ("OTEL_TRACES_SAMPLER", "traceidratio", "sampling.sampler"),
    ("OTEL_TRACES_SAMPLER_ARG", "0.5", "sampling.sampler_argument"),
    ("TRACE_SAMPLE_RATE", "0.5", "sampling.ratio"),
    ("OTEL_TRACES_EXPORTER", "none", "traces.exporter"),
    ("OTEL_METRICS_EXPORTER", "none", "metrics.exporter"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318", "otlp.endpoint"),
    (
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        "http://c:4318/v1/traces",
        "otlp.endpoint",
    ),
    ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "otlp.protocol"),
    ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json", "otlp.protocol"),
    ("OTEL_EXPORTER_OTLP_HEADERS", "key=hunter2", "otlp.headers"),
    ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "key=hunter2", "otlp.headers"),
    ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip", "otlp.compression"),
    ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "gzip", "otlp.compression"),
    ("OTEL_EXPORTER_OTLP_TIMEOUT", "7", "otlp.timeout"),
    ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "7", "otlp.timeout"),
    ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem", "otlp.certificate"),
    ("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "/ca.pem", "otlp.certificate"),
    (
        "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
        "/c.pem",
        "otlp.client_certificate",
    ),
    (
        "OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE",
        "/c.pem",
        "otlp.client_certificate",
    ),
    ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/k.pem", "otlp.client_key"),
    ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "/k.pem", "otlp.client_key"),
    ("OTEL_EXPORTER_OTLP_INSECURE", "true", "otlp.insecure"),
    ("OTEL_EXPORTER_OTLP_TRACES_INSECURE", "true", "otlp.insecure"),
    (
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
        "http://c:4318/v1/metrics",
        "metrics.endpoint",
    ),
    ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "grpc", "metrics.protocol"),
    ("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "key=hunter2", "metrics.headers"),
    ("OTEL_EXPORTER_OTLP_METRICS_COMPRESSION", "gzip", "metrics.compression"),
    ("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "7", "metrics.timeout"),
    (
        "OTEL_EXPORTER_OTLP_METRICS_CERTIFICATE",
        "/ca.pem",
        "metrics.certificate",
    ),
    (
        "OTEL_EXPORTER_OTLP_METRICS_CLIENT_CERTIFICATE",
        "/c.pem",
        "metrics.client_certificate",
    ),
    ("OTEL_EXPORTER_OTLP_METRICS_CLIENT_KEY", "/k.pem", "metrics.client_key"),
    ("OTEL_EXPORTER_OTLP_METRICS_INSECURE", "true", "metrics.insecure"),
    (
        "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE",
        "delta",
        "metrics.temporality",
    ),
    ("OTEL_METRIC_EXPORT_INTERVAL", "7", "metrics.interval"),
    ("OTEL_BSP_MAX_QUEUE_SIZE", "7", "batch.max_queue_size"),
    ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "7", "batch.max_export_batch_size"),
    ("OTEL_BSP_SCHEDULE_DELAY", "7", "batch.schedule_delay"),
    ("OTEL_BSP_EXPORT_TIMEOUT", "7", "batch.export_timeout"),
    (
        "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
        "7",
        "limits.attribute_value_length",
    ),
    (
        "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
        "7",
        "limits.attribute_value_length",
    ),
    ("OTEL_ATTRIBUTE_COUNT_LIMIT", "7", "limits.attribute_count"),
    ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "7", "limits.attribute_count"),
    ("OTEL_SPAN_EVENT_COUNT_LIMIT", "7", "limits.event_count"),
    ("OTEL_SPAN_LINK_COUNT_LIMIT", "7", "limits.link_count"),
    ("OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT", "7", "limits.event_attribute_count"),
    ("OTEL_LINK_ATTRIBUTE_COUNT_LIMIT", "7", "limits.link_attribute_count"),
    ("OTEL_SEMCONV_STABILITY_OPT_IN", "rpc/dup", "conventions.opt_in"),
    (
        "OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS",
        "GET",
        "conventions.http_known_methods",
    ),
    ("SENTRY_DSN", "https://hunter2@o1.ingest.sentry.io/7", "sentry.dsn"),
    ("SENTRY_ENVIRONMENT", "staging", "sentry.environment"),
    ("SENTRY_RELEASE", "shop@1.2", "sentry.release"),
    ("SENTRY_TRACES_SAMPLE_RATE", "0.5", "sentry.traces_sample_rate"),
];

fn printed(variables: &[(&str, &str)]) -> Result<serde_json::Value> {
    let output = command(&["config", "--json"])?
        .envs(variables.iter().copied())
        .output()?;
    let (text, said) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
    ensure!(output.status.success(), "{variables:?}: {said}");
    ensure!(
        !text.contains("hunter2") && !said.contains("hunter2"),
        "{variables:?}: {text}{said}"
    );
    Ok(serde_json::from_str(&text)?)
}

#[test]
fn each_variable_gives_its_setting_and_no_other() -> Result<()> {
    let nothing = printed(&[])?;
    let default = |key: &str| nothing[key]["source"] == "default";
    ensure!(
        nothing
            .as_object()
            .is_some_and(|all| all.keys().all(|key| default(key))),
        "{nothing}"
    );
    for (variable, value, key) in VARIABLES {
        let all = printed(&[(variable, value)])?;
        let wanted = match value.split_once("hunter2") {
            Some(("key=", _)) => "key=…",
            Some(_) => "…",
            None => value,
        };
        let found = (&all[key]["value"], &all[key]["source"]);
        ensure!(found == (&wanted.into(), &(*variable).into()), "{variable}: {found:?}");
        for (other, shown) in all.as_object().context("an object")? {
            ensure!(
                other == key || *shown == nothing[other],
                "{variable} changes {other}: {shown}"
            );
        }
    }
    // Said the other way round.
    let off = printed(&[("OTEL_SDK_DISABLED", "true")])?;
    assert_eq!(
        (&off["enabled"]["value"], &off["enabled"]["source"]),
        (&"false".into(), &"OTEL_SDK_DISABLED".into())
    );
    // Of two names for one thing the more specific wins, whatever their order.
    for (setting, names) in [
        (
            "service.name",
            &["TRACE_SERVICE_NAME", "OTEL_SERVICE_NAME", "SERVICE_NAME"][..],
        ),
        ("service.version", &["TRACE_SERVICE_VERSION", "SERVICE_VERSION"]),
        ("environment", &["TRACE_ENVIRONMENT", "ENVIRONMENT"]),
        (
            "otlp.timeout",
            &["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"],
        ),
        (
            "limits.attribute_count",
            &["OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "OTEL_ATTRIBUTE_COUNT_LIMIT"],
        ),
    ] {
        for strongest in 0..names.len() {
            let given: Vec<_> = names[strongest..]
                .iter()
                .enumerate()
                .map(|(i, name)| (*name, ["5", "6", "7"][i]))
                .collect();
            let all = printed(&given)?;
            let found = (&all[setting]["value"], &all[setting]["source"]);
            ensure!(found == (&"5".into(), &names[strongest].into()), "{given:?}: {found:?}");
        }
    }
    Ok(())
}

/// An ordinary web server, and requests to it.
struct Web {
    port: u16,
    _server: Running,
}

impl Web {
    fn start(folder: &Folder) -> Result<Self> {
        let port = free_port()?;
        let mut command = Command::new("python3");
        command.args(["-m", "http.server", "--bind", "127.0.0.1", &port.to_string()]);
        command.current_dir(folder.file(".").parent().context("a folder")?);
        let name = format!("web-{port}");
        let server = Running::start_into(&name, &mut command, &folder.file(&name), &folder.file("web.err"))?;
        until("the server listens", || {
            Ok(TcpStream::connect(("127.0.0.1", port)).is_ok())
        })?;
        Ok(Web { port, _server: server })
    }

    fn get(&self, path: &str) -> Result<()> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        ensure!(answer.starts_with(b"HTTP/1"), "no answer");
        Ok(())
    }
}

#[test]
fn a_running_agent_takes_a_new_file_and_keeps_the_old_one_if_it_is_wrong() -> Result<()> {
    let _turn = alone()?;
    let folder = Folder::new()?;
    let (first, second) = (Web::start(&folder)?, Web::start(&folder)?);
    let (file, log, out) = (folder.file("tw.yaml"), folder.file("log"), folder.file("out"));
    let exported = folder.file("exported");
    // What a moment ago was written has the same time on coarse clocks, but another length.
    let give = |text: &str| fs::write(&file, text);
    give(&format!(
        "select:\n  port: [{}]\nsampling:\n  ratio: 1\noutput: json\n",
        first.port
    ))?;
    let path = file.to_str().context("a path is text")?;
    let mut agent = Running::start_into("agent", &mut command(&["run", "--config", path])?, &out, &log)?;
    agent.wait_for_line(&log, "attached ", PATIENCE)?;
    let paths = || -> Result<Vec<String>> {
        let text = |s: &Span, key| s.attributes.get(key).and_then(|v| v.as_str()).map(str::to_owned);
        Ok(Span::read(&out)?.iter().filter_map(|s| text(s, "url.path")).collect())
    };
    let seen = |path: &str| Ok(paths()?.iter().any(|p| p == path));
    first.get("/before/a")?;
    second.get("/before/b")?;
    until("the first server's span", || seen("/before/a"))?;
    ensure!(!seen("/before/b")?, "it was not selected");

    // By itself, as the file changes: selectors, routes, exporters.
    give(&format!(
        "select:\n  port: [{}, {}]\nsampling:\n  ratio: 1\noutput: json\nroutes:\n  patterns: ['/after/{{what}}']\n\
         otlp:\n  file: {}\nbatch:\n  schedule_delay: 100\n",
        first.port,
        second.port,
        exported.display()
    ))?;
    until("the new file", || Ok(lines_with(&log, "configuration read again") == 1))?;
    let attached = format!("attached {}", second._server.pid());
    until("the second server", || Ok(lines_with(&log, &attached) == 1))?;
    second.get("/after/b")?;
    until("the second server's span", || seen("/after/b"))?;
    let spans = Span::read(&out)?;
    let after = spans.iter().find(|s| s.name == "GET /after/{what}");
    ensure!(after.is_some(), "the route of the new file: {spans:?}");
    until("the new exporter", || Ok(lines_with(&exported, "/after/b") > 0))?;

    // Wrong ones: the old one holds.
    for (number, wrong) in ["sampling:\n  ratoi: 0\n", "sampling:\n  ratio: 7\n", "select: {}\n"]
        .iter()
        .enumerate()
    {
        give(wrong)?;
        until("a wrong file", || {
            Ok(lines_with(&log, "the old one holds") == number + 1)
        })?;
    }
    let said = fs::read_to_string(&log)?;
    ensure!(said.contains("did you mean `sampling.ratio`?"), "{said}");
    second.get("/still/b")?;
    until("what was seen before", || seen("/still/b"))?;

    // On SIGHUP, though nothing else changed since it was read: sampling.
    let choose = |ratio: u8| {
        give(&format!(
            "select:\n  port: [{}]\nsampling:\n  ratio: {ratio}\noutput: json\n",
            first.port
        ))
    };
    choose(0)?;
    agent.signal(libc::SIGHUP);
    until("the third file", || {
        Ok(lines_with(&log, "configuration read again") >= 2)
    })?;
    for _ in 0..5 {
        first.get("/unsampled")?;
    }
    let before = lines_with(&log, "configuration read again");
    choose(1)?;
    agent.signal(libc::SIGHUP);
    until("the fourth file", || {
        Ok(lines_with(&log, "configuration read again") > before)
    })?;
    first.get("/sampled")?;
    until("a sampled span", || seen("/sampled"))?;
    ensure!(!seen("/unsampled")?, "nothing of it was to be kept");
    agent.signal(libc::SIGTERM);
    ensure!(agent.wait(PATIENCE)?.success(), "{}", fs::read_to_string(&log)?);
    Ok(())
}
