//! Relays: services that pass calls on, and the truth about who called on
//! whose behalf, which is in the calls' own ids (`proto/relay.proto`).
//!
//! A language joins with a program that knows `serve` (and, if it likes,
//! `load`) as `relay/go/main.go` does, a folder `tests/workloads/relay/NAME`
//! with a `build.sh`, and a [`Kind`]. The rest, the chains and what is
//! compared, is here for all.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::agent::{Agent, Report};
use crate::folder::Folder;
use crate::place;
use crate::running::Running;
use crate::span::Span;
use crate::tls::Tls;
use crate::workload::free_port;

/// How long a relay may take to listen.
const START: Duration = Duration::from_secs(60);
/// How long all calls of a load may take.
const CALLS: Duration = Duration::from_secs(180);
/// The load is a new program when it begins; its probes are placed meanwhile.
const SETTLE: u32 = 1500;

/// A relay program and how it is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Folder of `tests/workloads/relay`.
    pub folder: &'static str,
    /// What `build.sh` is given after the folder it builds to.
    pub build: &'static [&'static str],
    /// Flags of `serve` beside the common ones.
    pub serve: &'static [&'static str],
    /// Flags of `load` likewise.
    pub load: &'static [&'static str],
    /// It serves by mutual TLS.
    pub encrypted: bool,
}

impl Kind {
    /// grpc-go of the newest version.
    pub const GO: Kind = Kind::new("go");

    /// Go's net/http; it speaks with its like alone.
    pub const HTTP: Kind = Kind::new("http");
    /// HTTP/1 in Python, without any library; a thread a connection.
    pub const THREADS: Kind = Kind::new("threads");
    /// tonic.
    pub const RUST: Kind = Kind::new("rust");

    /// grpcio with blocking services.
    pub const PYTHON: Kind = Kind::new("python");

    /// grpcio with asyncio.
    pub const PYTHON_AIO: Kind = Kind::new("python").serving(&["--aio"]);

    /// grpc++ with blocking services.
    pub const CPP: Kind = Kind::new("cpp");

    /// grpc-js.
    pub const NODE: Kind = Kind::new("node");

    /// A program of this folder, built in the usual way.
    pub const fn new(folder: &'static str) -> Self {
        Kind {
            folder,
            build: &[],
            serve: &[],
            load: &[],
            encrypted: false,
        }
    }

    /// The same with these flags for `build.sh`.
    pub const fn built(self, build: &'static [&'static str]) -> Self {
        Kind { build, ..self }
    }

    /// The same with these flags for `serve`.
    pub const fn serving(self, serve: &'static [&'static str]) -> Self {
        Kind { serve, ..self }
    }

    /// The same with these flags for `load`.
    pub const fn loading(self, load: &'static [&'static str]) -> Self {
        Kind { load, ..self }
    }

    /// The same, serving by mutual TLS.
    pub const fn encrypted(self) -> Self {
        Kind {
            encrypted: true,
            ..self
        }
    }

    /// Builds it, once a test run.
    ///
    /// # Errors
    /// When it does not build.
    pub fn program(self) -> Result<PathBuf> {
        static BUILT: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
        let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
        let variant: String = self.build.iter().flat_map(|flag| ["-", flag]).collect();
        let variant: String = variant
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' })
            .collect();
        let out = place::workload(&format!("relay-{}{variant}", self.folder));
        if !built.contains(&out) {
            let script = place::workload_source("relay").join(self.folder).join("build.sh");
            let output = Command::new("bash")
                .arg(&script)
                .arg(&out)
                .args(self.build)
                .stdin(Stdio::null())
                .output()
                .with_context(|| script.display().to_string())?;
            ensure!(
                output.status.success(),
                "{} failed ({}):\n{}",
                script.display(),
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
            built.insert(out.clone());
        }
        Ok(out.join("run"))
    }
}

/// What the calls are like.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    /// Root calls.
    pub calls: u32,
    /// Root calls at once.
    pub concurrency: u32,
    /// Calls to the next hop of each call; 0 is 1.
    pub fan: u32,
    /// Longest wait before each call onwards, ms.
    pub delay: u32,
    /// Tasks between a handler and its call.
    pub depth: u32,
    /// Messages of a streaming call in place of unary root calls.
    pub stream: u32,
    /// Connections of each process to each address.
    pub connections: u32,
}

/// What was done, and what was seen of it.
#[derive(Debug)]
pub struct Relayed {
    /// The agent's spans and counters.
    pub report: Report,
    /// Calls made, by the load's own count.
    pub calls: u64,
    /// `traceparent` fields that each call came with, as the services were told, by its id.
    pub contexts: BTreeMap<String, Vec<String>>,
    /// Keeps the logs while the test may fail.
    pub folder: Folder,
}

/// What a relay writes of a call that it serves.
#[derive(serde::Deserialize)]
struct Served {
    id: String,
    traceparent: Vec<String>,
}

/// Sends calls by `load` (a program that knows `load`) through relays in a row, all observed.
///
/// # Errors
/// When a program fails.
pub fn run(caller: Kind, relays: &[Kind], load: Load) -> Result<Relayed> {
    run_with(caller, relays, load, &[])
}

/// The same with more flags for the agent.
///
/// # Errors
/// As there.
pub fn run_with(caller: Kind, relays: &[Kind], load: Load, flags: &[&str]) -> Result<Relayed> {
    let folder = Folder::new()?;
    let (caller, caller_flags) = (caller.program()?, caller.load);
    let tls = Tls::new(&folder, true)?;
    let mut services = Vec::new();
    let connections = load.connections.max(1).to_string();
    for (n, kind) in relays.iter().enumerate() {
        let address = format!("127.0.0.1:{}", free_port()?);
        let mut command = Command::new(kind.program()?);
        command.args(["serve", "--listen", &address, "--connections", &connections, "--log"]);
        command.arg(folder.file(&format!("served-{n}.log"))).args(kind.serve);
        tls.tell(&mut command);
        if kind.encrypted {
            command.arg("--tls");
        }
        let out = folder.file(&format!("relay-{n}.out"));
        let errors = folder.file(&format!("relay-{n}.err"));
        let mut running = Running::start_into(&format!("{} relay", kind.folder), &mut command, &out, &errors)?;
        running.wait_for_line(&out, "listening", START)?;
        let prefix = if kind.encrypted { "tls:" } else { "" };
        services.push((running, format!("{prefix}{address}")));
    }
    let addresses: Vec<&str> = services.iter().map(|(_, address)| address.as_str()).collect();
    let (to, route) = addresses.split_first().context("a chain needs a relay")?;
    // It waits for a line, so that the agent is there first, then becomes the load.
    let mut command = Command::new("bash");
    command.args(["-c", "read -r && exec \"$@\"", "bash"]).arg(&caller);
    command.args(["load", "--to", to, "--route", &route.join(",")]);
    for (name, value) in [
        ("--calls", load.calls),
        ("--concurrency", load.concurrency.max(1)),
        ("--fan", load.fan),
        ("--delay", load.delay),
        ("--depth", load.depth),
        ("--stream", load.stream),
        ("--connections", load.connections.max(1)),
        ("--start-delay-ms", SETTLE),
    ] {
        command.args([name, &value.to_string()]);
    }
    command.args(caller_flags);
    tls.tell(&mut command);
    let out = folder.file("load.out");
    let file = |name: &str| std::fs::File::create(folder.file(name)).with_context(|| name.to_owned());
    command
        .stdin(Stdio::piped())
        .stdout(file("load.out")?)
        .stderr(file("load.err")?);
    let mut caller = Running::start("load", &mut command)?;
    let mut pids: Vec<u32> = services.iter().map(|(running, _)| running.pid()).collect();
    pids.push(caller.pid());
    let pids: Vec<String> = pids
        .iter()
        .flat_map(|pid| ["--pid".to_owned(), pid.to_string()])
        .collect();
    let mut arguments = vec!["attach"];
    arguments.extend(pids.iter().map(String::as_str));
    arguments.extend(flags);
    let agent = Agent::start(&arguments, &folder)?;
    caller
        .take_stdin()
        .context("the load has no input")?
        .write_all(b"go\n")?;
    let status = caller.wait(CALLS)?;
    let said = std::fs::read_to_string(folder.file("load.err")).unwrap_or_default();
    ensure!(status.success(), "the load failed ({status}):\n{said}");
    let text = std::fs::read_to_string(&out)?;
    let calls = text.lines().find_map(|line| line.strip_prefix("calls "));
    let calls = calls.context("the load did not say how many calls it made")?.parse()?;
    for (running, _) in &mut services {
        running.end()?;
    }
    let report = agent.finish()?;
    let mut contexts = BTreeMap::new();
    for n in 0..services.len() {
        for line in std::fs::read_to_string(folder.file(&format!("served-{n}.log")))
            .unwrap_or_default()
            .lines()
        {
            let served: Served = serde_json::from_str(line).with_context(|| line.to_owned())?;
            contexts.insert(served.id, served.traceparent);
        }
    }
    Ok(Relayed {
        report,
        calls,
        contexts,
        folder,
    })
}

/// The call on whose behalf a call was made, by their ids: `r7/0/1` by `r7/0`, `r7.2/0` by `r7`.
pub fn parent_of(id: &str) -> Option<&str> {
    let (parent, _) = id.rsplit_once('/')?;
    let message = parent
        .rsplit('/')
        .next()
        .and_then(|last| last.find('.').map(|at| last.len() - at));
    Some(&parent[..parent.len() - message.unwrap_or(0)])
}

/// How the spans of a relay compare with the truth.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links {
    /// Calls on behalf of others, made by observed processes.
    pub made: u64,
    /// Of those, client spans that hang below the server span of the right call.
    pub linked: u64,
    /// Of those, client spans that begin a trace.
    pub roots: u64,
    /// Whatever is wrong, in words.
    pub wrong: Vec<String>,
}

impl Relayed {
    /// Compares all parents with the truth.
    pub fn links(&self) -> Links {
        let by_span: HashMap<&str, &Span> = self.report.spans.iter().map(|s| (s.span_id.as_str(), s)).collect();
        let mut links = Links::default();
        let mut seen: BTreeMap<(String, &str), u32> = BTreeMap::new();
        for span in &self.report.spans {
            let Some(id) = span.call_id() else {
                links.wrong.push(format!("a span of no call: {}", span.name));
                continue;
            };
            *seen.entry((span.side(), id)).or_default() += 1;
            let parent = by_span.get(span.parent_span_id.as_str());
            let right = |side: &str, call: &str| {
                parent.is_some_and(|p| p.side() == side && p.call_id() == Some(call) && p.trace_id == span.trace_id)
            };
            let found = || {
                parent.map_or_else(
                    || format!("{:?}, which is no span", span.parent_span_id),
                    |p| format!("{} {:?}", p.side(), p.call_id()),
                )
            };
            if span.side() == "server" {
                if !right("client", id) {
                    links.wrong.push(format!("server {id} hangs below {}", found()));
                }
            } else if let Some(call) = parent_of(id) {
                links.made += 1;
                if span.parent_span_id.is_empty() {
                    links.roots += 1;
                } else if right("server", call) {
                    links.linked += 1;
                } else {
                    links.wrong.push(format!("client {id} hangs below {}", found()));
                }
            } else if !span.parent_span_id.is_empty() {
                links.wrong.push(format!("root call {id} hangs below {}", found()));
            }
        }
        for side in ["client", "server"] {
            let calls = seen.keys().filter(|(s, _)| s == side).count() as u64;
            if calls != self.calls {
                links.wrong.push(format!("{} calls, {calls} {side} spans", self.calls));
            }
        }
        let twice = seen.iter().filter(|(_, n)| **n > 1);
        links
            .wrong
            .extend(twice.map(|((side, id), _)| format!("{side} {id} twice")));
        links
    }

    /// Calls that hang below the request that they were made for, and all that were made, by the relay that made them.
    pub fn links_by_hop(&self) -> BTreeMap<usize, (u64, u64)> {
        let servers: HashMap<&str, &Span> = self
            .report
            .spans
            .iter()
            .filter(|span| span.side() == "server")
            .map(|span| (span.span_id.as_str(), span))
            .collect();
        let mut hops: BTreeMap<usize, (u64, u64)> = BTreeMap::new();
        for span in self.report.spans.iter().filter(|span| span.side() == "client") {
            let Some((id, called)) = span.call_id().and_then(|id| Some((id, parent_of(id)?))) else {
                continue;
            };
            let hop = hops.entry(id.matches('/').count() - 1).or_default();
            hop.1 += 1;
            let parent = servers.get(span.parent_span_id.as_str());
            hop.0 += u64::from(parent.is_some_and(|parent| parent.call_id() == Some(called)));
        }
        hops
    }

    /// Each call came with one `traceparent`, that of its client span.
    ///
    /// # Panics
    /// With what came instead.
    pub fn assert_contexts(&self, what: &str) {
        let mut wrong = Vec::new();
        for span in self.report.spans.iter().filter(|span| span.side() == "client") {
            let Some(id) = span.call_id() else { continue };
            let begins = format!("00-{}-{}-", span.trace_id, span.span_id);
            match self.contexts.get(id).map(Vec::as_slice) {
                Some([one]) if one.starts_with(&begins) => {}
                other => wrong.push(format!("{id}: {other:?}, not {begins}…")),
            }
        }
        wrong.truncate(10);
        assert!(
            wrong.is_empty(),
            "{what}:\n{}\ncounters: {:?}",
            wrong.join("\n"),
            self.report.counters
        );
    }

    /// All spans are there and no parent is wrong; at least `share` of the links were found.
    ///
    /// # Panics
    /// With a list of what is wrong.
    pub fn assert_linked(&self, what: &str, share: f64) {
        let links = self.links();
        println!(
            "{what}: {} calls, {} of {} linked",
            self.calls, links.linked, links.made
        );
        let shown: Vec<&str> = links.wrong.iter().take(10).map(String::as_str).collect();
        assert!(
            links.wrong.is_empty(),
            "{what}: {} wrong\n{}\ncounters: {:?}\n{}",
            links.wrong.len(),
            shown.join("\n"),
            self.report.counters,
            self.report.messages
        );
        assert!(
            links.linked as f64 >= share * links.made as f64 && links.made > 0,
            "{what}: {} of {} linked\ncounters: {:?}\n{}",
            links.linked,
            links.made,
            self.report.counters,
            self.report.messages
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_is_in_the_id() {
        assert_eq!(parent_of("r7"), None);
        assert_eq!(parent_of("r7/0"), Some("r7"));
        assert_eq!(parent_of("r7/0/12"), Some("r7/0"));
        assert_eq!(parent_of("r7.2/0"), Some("r7"));
        assert_eq!(parent_of("r7.2/0/1"), Some("r7.2/0"));
    }
}
