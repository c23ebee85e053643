//! HTTP/1.1 right on a TLS library (`tests/workloads/openssl` and `rustls`): what
//! the client wrote down of its requests, and the spans held against it.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::agent::{Agent, Report};
use crate::folder::Folder;
use crate::place;
use crate::running::Running;
use crate::span::Span;
use crate::tls::Tls;
use crate::workload::free_port;

const PATIENCE: Duration = Duration::from_secs(60);

/// One request.
#[derive(Clone, Debug, Deserialize)]
pub struct Request {
    /// Value of `x-call-id`.
    pub id: String,
    /// Path.
    pub path: String,
    /// Status; none where there was no answer.
    pub status: Option<i64>,
    /// The connection ended within the record that the request was in.
    #[serde(default)]
    pub cut: bool,
}

/// Runs server and client of a workload with this version of its library, both observed.
///
/// # Errors
/// When a program fails.
pub fn run(workload: &str, version: &str) -> Result<(Vec<Request>, Report)> {
    let folder = Folder::new()?;
    let tls = Tls::new(&folder, true)?;
    let out = place::workload(workload);
    let built = Command::new("bash")
        .arg(place::workload_source(workload).join("build.sh"))
        .arg(&out)
        .stdin(Stdio::null())
        .output()?;
    ensure!(
        built.status.success(),
        "build.sh failed ({}):\n{}",
        built.status,
        String::from_utf8_lossy(&built.stderr)
    );
    let port = free_port()?.to_string();
    let command = |side: &str| {
        let mut command = Command::new(out.join("run"));
        command.args([version, side, &port]);
        tls.tell(&mut command);
        command
    };
    let (said, errors) = (folder.file("server.out"), folder.file("server.err"));
    let mut server = Running::start_into(&format!("{workload} server"), &mut command("serve"), &said, &errors)?;
    server.wait_for_line(&said, "listening", PATIENCE)?;
    let mut client = command("client");
    let file = |name: &str| std::fs::File::create(folder.file(name)).with_context(|| name.to_owned());
    client
        .stdin(Stdio::piped())
        .stdout(file("client.out")?)
        .stderr(file("client.err")?);
    let mut client = Running::start(format!("{workload} client"), &mut client)?;
    let agent = Agent::attach(&[server.pid(), client.pid()], &folder)?;
    client
        .take_stdin()
        .context("the client has no input")?
        .write_all(b"go\n")?;
    let status = client.wait(PATIENCE)?;
    let said = std::fs::read_to_string(folder.file("client.err")).unwrap_or_default();
    ensure!(status.success(), "the client failed ({status}):\n{said}");
    server.end()?;
    let text = std::fs::read_to_string(folder.file("client.out"))?;
    let requests = text
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
        .collect::<Result<_>>()?;
    Ok((requests, agent.finish()?))
}

/// Each request has a client's and a server's span, the one below the other, and there are no others. Of one
/// that was cut the server knows nothing, and its client knows no status.
///
/// # Panics
/// With a list of what is wrong.
pub fn assert_told(requests: &[Request], report: &Report) {
    let mut wrong = Vec::new();
    let of = |request: &Request, side: &str| -> Vec<&Span> {
        let own = |span: &&Span| span.call_id() == Some(request.id.as_str()) && span.side() == side;
        report.spans.iter().filter(own).collect()
    };
    let mut told = 0;
    for request in requests {
        let (clients, servers) = (of(request, "client"), of(request, "server"));
        told += clients.len() + servers.len();
        if request.cut {
            let known = clients
                .iter()
                .any(|span| span.number("http.response.status_code").is_some());
            if !servers.is_empty() || clients.len() > 1 || known {
                wrong.push(format!("{request:?}: {clients:?} {servers:?}"));
            }
            continue;
        }
        let ([client], [server]) = (&clients[..], &servers[..]) else {
            wrong.push(format!("{request:?}: {clients:?} {servers:?}"));
            continue;
        };
        let right = |span: &Span| {
            span.number("http.response.status_code") == request.status
                && [span.text("url.path"), span.text("url.full")]
                    .iter()
                    .flatten()
                    .any(|url| url.ends_with(&request.path))
        };
        let below = server.parent_span_id == client.span_id && server.trace_id == client.trace_id;
        if !right(client) || !right(server) || !below {
            wrong.push(format!("{request:?}:\n  {client:?}\n  {server:?}"));
        }
    }
    if told != report.spans.len() {
        wrong.push(format!("{} spans, {told} of them of a request", report.spans.len()));
    }
    assert!(
        wrong.is_empty() && !requests.is_empty(),
        "{} wrong\n{}\ncounters: {:?}\n{}",
        wrong.len(),
        wrong.join("\n"),
        report.counters,
        report.messages
    );
}
