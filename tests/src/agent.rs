//! The agent under test: starts it, waits until it is attached, reads its
//! spans. Bias: its own end is part of every test; an agent that has to be
//! killed fails it.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::folder::Folder;
use crate::place;
use crate::running::Running;
use crate::span::Span;

/// Header field that joins a span with the call that it is of.
pub const CALL_ID: &str = "x-call-id";
/// Loading programs into the kernel takes its verifier a while.
const ATTACH: Duration = Duration::from_secs(60);
/// How long the agent may take to end.
const END: Duration = Duration::from_secs(20);

/// A running agent that writes its spans to a file.
#[derive(Debug)]
pub struct Agent {
    running: Running,
    stdout: PathBuf,
    stderr: PathBuf,
}

/// What an agent left behind.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// All spans, in the order of their lines.
    pub spans: Vec<Span>,
    /// Its own counters that are not zero.
    pub counters: BTreeMap<String, u64>,
    /// Its standard error.
    pub messages: String,
}

/// A command line of the agent.
pub fn command(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(place::agent()?);
    command.args(arguments);
    // What a developer's shell sets must not change what is tested.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("OTEL_")) {
        command.env_remove(name);
    }
    command.env("TRACEWIRE_COUNTERS", "1");
    // What is tested is seen whole, though `run` samples by default.
    command.env("OTEL_TRACES_SAMPLER", "parentbased_always_on");
    Ok(command)
}

impl Agent {
    /// Attaches to these processes.
    ///
    /// # Errors
    /// When the agent does not say that it is attached.
    pub fn attach(pids: &[u32], folder: &Folder) -> Result<Self> {
        Self::attach_with(pids, &[], folder)
    }

    /// The same with flags of the caller's.
    ///
    /// # Errors
    /// As there.
    pub fn attach_with(pids: &[u32], flags: &[&str], folder: &Folder) -> Result<Self> {
        let pids: Vec<String> = pids
            .iter()
            .flat_map(|pid| ["--pid".to_owned(), pid.to_string()])
            .collect();
        let mut arguments = vec!["attach"];
        arguments.extend(pids.iter().map(String::as_str));
        arguments.extend(flags);
        Self::start(&arguments, folder)
    }

    /// Starts it with these arguments, which `--output json` and the capture
    /// of [`CALL_ID`] are added to.
    ///
    /// # Errors
    /// When the agent does not say that it is attached.
    pub fn start(arguments: &[&str], folder: &Folder) -> Result<Self> {
        let mut agent = Self::start_unready(arguments, folder)?;
        agent.wait_attached()?;
        Ok(agent)
    }

    /// The same without waiting.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start_unready(arguments: &[&str], folder: &Folder) -> Result<Self> {
        Self::start_changed(arguments, folder, |_| ())
    }

    /// The same, its command changed first.
    ///
    /// # Errors
    /// As there.
    pub fn start_changed(arguments: &[&str], folder: &Folder, change: impl FnOnce(&mut Command)) -> Result<Self> {
        let (stdout, stderr) = (folder.file("spans.json"), folder.file("agent.err"));
        let mut command = command(arguments)?;
        command.args(["--output", "json", "--capture-request-header", CALL_ID]);
        if let Some(more) = std::env::var_os("TRACEWIRE_TESTS_AGENT_FLAGS") {
            command.args(more.to_string_lossy().split_whitespace());
        }
        change(&mut command);
        let running = Running::start_into("tracewire", &mut command, &stdout, &stderr)?;
        Ok(Agent {
            running,
            stdout,
            stderr,
        })
    }

    /// Waits for the line that says that probes are in place.
    ///
    /// # Errors
    /// When it does not come.
    pub fn wait_attached(&mut self) -> Result<String> {
        self.running.wait_for_line(&self.stderr, "attached ", ATTACH)
    }

    /// What it has said so far.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// Where its health page is, once it has said so (`--health-listen`).
    ///
    /// # Errors
    /// When it did not.
    pub fn health(&self) -> Result<String> {
        let said = self.said();
        let address = said
            .split("at http://")
            .nth(1)
            .and_then(|rest| rest.split_whitespace().next());
        Ok(address.context("it names no health page")?.to_owned())
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Sends it a signal.
    pub fn signal(&mut self, signal: i32) {
        self.running.signal(signal);
    }

    /// Waits until it ends, whichever way.
    ///
    /// # Errors
    /// When it does not.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        self.running.wait(patience)
    }

    /// Spans written so far.
    ///
    /// # Errors
    /// When a line is no span.
    pub fn spans(&self) -> Result<Vec<Span>> {
        Span::read(&self.stdout)
    }

    /// Waits until it ends by itself, as it does when all processes ended.
    ///
    /// # Errors
    /// When it does not, or says that it failed.
    pub fn finish(mut self) -> Result<Report> {
        let status = self.running.wait(END);
        let messages = fs::read_to_string(&self.stderr).unwrap_or_default();
        let status = status.with_context(|| messages.clone())?;
        ensure!(status.success(), "tracewire ended with {status}:\n{messages}");
        let counters = messages
            .lines()
            .filter_map(counter)
            .filter(|(_, value)| *value > 0)
            .collect();
        Ok(Report {
            spans: self.spans()?,
            counters,
            messages,
        })
    }

    /// Ctrl-C, then [`Agent::finish`].
    ///
    /// # Errors
    /// As there.
    pub fn interrupt(mut self) -> Result<Report> {
        self.running.signal(libc::SIGINT);
        self.finish()
    }
}

fn counter(line: &str) -> Option<(String, u64)> {
    let (name, value) = line.split_once(' ')?;
    Some((name.to_owned(), value.parse().ok()?))
}
