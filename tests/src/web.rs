//! The ordinary HTTP services of `tests/workloads/web`: what their clients wrote
//! down, and the spans held against it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::agent::{Agent, Report};
use crate::folder::Folder;
use crate::place;
use crate::running::Running;
use crate::span::Span;
use crate::workload::free_port;

/// Clocks, as in [`crate::compare`].
const CLOCK_NS: u64 = 3_000_000;
const PATIENCE: Duration = Duration::from_secs(60);

/// One request as its client knows it.
#[derive(Clone, Debug, Deserialize)]
pub struct Request {
    /// Value of `x-call-id`.
    pub id: String,
    /// `http`, `connect` (unary), `connect-stream`, `grpc-web`, `grpc-web-gzip` (compressed) or `grpc`.
    pub protocol: String,
    /// Method.
    pub method: String,
    /// Path.
    pub path: String,
    /// HTTP version of the response.
    pub version: String,
    /// Status; 0 where only the code is known.
    pub status: u16,
    /// Canonical gRPC name of the result of a call.
    #[serde(default)]
    pub code: String,
    /// The server takes so long at least.
    #[serde(default)]
    pub least_ns: u64,
    /// Unix time, ns.
    pub start_ns: u64,
    /// Unix time, ns.
    pub end_ns: u64,
}

/// Whether `rpc.status_code` is said to be unseen where it is not there: a unary Connect call that
/// was good has none.
fn unseen(request: &Request) -> Option<String> {
    let good = request.protocol == "connect" && request.code == "OK";
    Some((!good).to_string())
}

/// Builds a workload; its program.
fn program(name: &str) -> Result<PathBuf> {
    let (source, out) = (
        place::workload_source("web").join(name).join("build.sh"),
        place::workload("web").join(name),
    );
    let output = Command::new("bash")
        .args([&source, &out])
        .stdin(Stdio::null())
        .output()?;
    ensure!(
        output.status.success(),
        "{} failed ({}):\n{}",
        source.display(),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(out.join("run"))
}

/// What was done and what was seen of it.
#[derive(Debug)]
pub struct Web {
    /// All requests, by id.
    pub requests: BTreeMap<String, Request>,
    /// The agent's.
    pub report: Report,
    /// Port of the server.
    pub port: u16,
    /// Keeps the logs while the test may fail.
    pub folder: Folder,
}

impl Web {
    /// Runs clients, each with its features, against a server; the agent observes both.
    ///
    /// # Errors
    /// When a program fails.
    pub fn run(server: &str, flags: &[&str], clients: &[(&str, &str)]) -> Result<Self> {
        Self::run_under(server, flags, clients, Agent::attach)
    }

    /// The same under an agent of the caller's.
    ///
    /// # Errors
    /// As there.
    pub fn run_under(
        server: &str,
        flags: &[&str],
        clients: &[(&str, &str)],
        agent: impl FnOnce(&[u32], &Folder) -> Result<Agent>,
    ) -> Result<Self> {
        let folder = Folder::new()?;
        let port = free_port()?;
        let address = format!("127.0.0.1:{port}");
        let mut command = Command::new(program(server)?);
        command.args(["server", "--listen", &address]).args(flags);
        let (out, err) = (folder.file("server.out"), folder.file("server.err"));
        let mut running = Running::start_into(server, &mut command, &out, &err)?;
        running.wait_for_line(&out, "listening", PATIENCE)?;
        let log = folder.file("requests.log");
        let mut started = Vec::new();
        for (client, features) in clients {
            let mut command = Command::new(program(client)?);
            command
                .args(["client", "--target", &address, "--features", features, "--log"])
                .arg(&log)
                .stdin(Stdio::piped());
            started.push(Running::start(*client, &mut command)?);
        }
        let pids: Vec<u32> = started.iter().chain([&running]).map(Running::pid).collect();
        let agent = agent(&pids, &folder)?;
        for client in &mut started {
            client.take_stdin().context("stdin")?.write_all(b"go\n")?;
        }
        for client in &mut started {
            let status = client.wait(PATIENCE)?;
            ensure!(status.success(), "a client failed: {status}");
        }
        running.end()?;
        let report = agent.finish()?;
        let mut requests = BTreeMap::new();
        for line in fs::read_to_string(&log)?.lines() {
            let request: Request = serde_json::from_str(line).with_context(|| line.to_owned())?;
            requests.insert(request.id.clone(), request);
        }
        Ok(Web {
            requests,
            report,
            port,
            folder,
        })
    }

    /// Holds both sides' spans against the requests.
    ///
    /// # Panics
    /// With a list of all that is wrong.
    pub fn assert_true(&self) {
        let mut problems = Vec::new();
        let mut seen: BTreeMap<(String, String), &Span> = BTreeMap::new();
        for span in &self.report.spans {
            let id = span.call_id().unwrap_or("absent").to_owned();
            if !self.requests.contains_key(&id) {
                problems.push(format!("invented: {span:?}"));
            }
            if seen.insert((span.side(), id), span).is_some() {
                problems.push(format!("twice: {span:?}"));
            }
        }
        for request in self.requests.values() {
            let client = seen.get(&("client".to_owned(), request.id.clone()));
            let server = seen.get(&("server".to_owned(), request.id.clone()));
            for (side, span) in [("client", client), ("server", server)] {
                let Some(span) = span else {
                    problems.push(format!("missing on the {side}: {request:?}"));
                    continue;
                };
                let parent = if side == "server" { client } else { None };
                let parent = parent.map_or("", |client| client.span_id.as_str());
                let mut wrong = self.wrong(request, span);
                if span.parent_span_id != parent {
                    wrong.push(format!("parent is {:?}, not {parent:?}", span.parent_span_id));
                }
                if !wrong.is_empty() {
                    problems.push(format!("wrong: {}\n    {request:?}\n    {span:?}", wrong.join("; ")));
                }
            }
        }
        println!("{} requests, {} spans", self.requests.len(), self.report.spans.len());
        assert!(
            problems.is_empty(),
            "{} problems\n{}\n{:?}\n{}",
            problems.len(),
            problems.iter().take(20).cloned().collect::<Vec<_>>().join("\n"),
            self.report.counters,
            self.report.messages
        );
    }

    fn wrong(&self, request: &Request, span: &Span) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut expect = |what: &str, is: Option<String>, wanted: Option<String>| {
            if is != wanted {
                wrong.push(format!("{what} is {is:?}, not {wanted:?}"));
            }
        };
        let text = |name: &str| span.text(name).map(str::to_owned);
        let some = |value: &str| Some(value.to_owned());
        let client = span.side() == "client";
        if request.protocol == "http" {
            let status = i64::from(request.status);
            expect("method", text("http.request.method"), some(&request.method));
            expect(
                "status code",
                span.number("http.response.status_code").map(|n| n.to_string()),
                Some(status.to_string()),
            );
            expect("version", text("network.protocol.version"), some(&request.version));
            let path = if client {
                let url = text("url.full").unwrap_or_default();
                url.strip_prefix(&format!("http://127.0.0.1:{}", self.port))
                    .map(str::to_owned)
            } else {
                text("url.path")
            };
            expect("path", path, some(&request.path));
            let failed = status >= 500 || client && status >= 400;
            expect("error.type", text("error.type"), failed.then(|| status.to_string()));
            let code = if failed { "ERROR" } else { "UNSET" };
            expect("status", some(&span.status.code), some(code));
        } else {
            let connect = request.protocol.starts_with("connect");
            let system = if connect { "connectrpc" } else { "grpc" };
            expect("rpc.system.name", text("rpc.system.name"), some(system));
            // What is in a body is not read: the status of a Connect call, and that of gRPC-Web where
            // its trailers are compressed or come over HTTP/1.
            let web = request.protocol.starts_with("grpc-web");
            let hidden = connect || request.protocol == "grpc-web-gzip" || web && request.version == "1.1";
            let path = request.path.trim_start_matches('/');
            let code = text("rpc.status_code");
            if hidden && code.is_none() {
                expect(
                    "unseen",
                    Some(span.is_unseen("rpc.status_code").to_string()),
                    unseen(request),
                );
                // Whether the method exists is not known then, either.
                let method = text("rpc.method_original").or_else(|| text("rpc.method"));
                expect("rpc.method", method, some(path));
            } else {
                expect("rpc.method", text("rpc.method"), some(path));
                expect("rpc.status_code", code, some(&request.code));
                let failed = client && request.code != "OK";
                expect(
                    "status",
                    some(&span.status.code),
                    some(if failed { "ERROR" } else { "UNSET" }),
                );
            }
        }
        expect("server.address", text("server.address"), some("127.0.0.1"));
        expect(
            "server.port",
            span.number("server.port").map(|n| n.to_string()),
            Some(self.port.to_string()),
        );
        let unfinished = span.attributes.contains_key("tracewire.unfinished");
        expect("unfinished", Some(unfinished.to_string()), some("false"));
        if span.start_ns + CLOCK_NS < request.start_ns || span.end_ns > request.end_ns + CLOCK_NS {
            wrong.push(format!(
                "lies outside of its request: {}..{}",
                span.start_ns, span.end_ns
            ));
        }
        if span.end_ns.saturating_sub(span.start_ns) + CLOCK_NS < request.least_ns {
            wrong.push("ends too early".to_owned());
        }
        wrong
    }
}
