//! One run: server, agent if it is its turn, client; all of them fresh, so
//! that no run inherits another's memory or connections.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::Observe;
use super::figures::{Agent, Run};
use super::process::{self, Programs, Statistics};
use super::sink::Sink;
use super::tls::Certificate;
use super::variant::Variant;
use crate::running::{Running, Stop};

/// How long a program may take until it is ready.
const READY: Duration = Duration::from_secs(30);
/// How long a load may take.
const PATIENCE: Duration = Duration::from_secs(900);
/// How often the client is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Rest between the last call and the agent's end: its reader sleeps 8 ms at most while there is something to read.
const REST: Duration = Duration::from_millis(300);
/// The client's own delay before it connects, ms: long enough to stop it within.
const START_DELAY_MS: &str = "500";
/// Calls under way at once.
const CONCURRENCY: &str = "16";
/// Connections that they share.
const CONNECTIONS: &str = "4";

/// The agent's part in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// It does not run.
    Off,
    /// It observes.
    On(Variant),
    /// It observes, and the kernel times its programs, which costs a little by itself.
    Timed(Variant),
}

/// How much of what.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Calls.
    pub calls: u64,
    /// Calls a second; 0: as many as go.
    pub rate: u64,
}

/// The programs of a measurement.
pub struct Bench {
    agent: PathBuf,
    workload: PathBuf,
    observe: Observe,
    tls: Option<Certificate>,
    sink: Sink,
    /// In memory: a disk would be measured too.
    folder: PathBuf,
}

impl Bench {
    /// Makes the folder of its logs.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn new(agent: PathBuf, workload: PathBuf, observe: Observe, tls: bool) -> Result<Self> {
        let folder = PathBuf::from("/dev/shm").join(format!("tracewire-bench-{}", std::process::id()));
        fs::create_dir_all(&folder).context("folder of the logs")?;
        Ok(Bench {
            agent,
            workload,
            observe,
            tls: tls.then(|| Certificate::make(&folder)).transpose()?,
            sink: Sink::start()?,
            folder,
        })
    }

    /// Runs the load once.
    ///
    /// # Errors
    /// When a program or a call fails.
    pub fn run(&self, watch: Watch, load: Load, stop: &Stop) -> Result<Run> {
        let statistics = matches!(watch, Watch::Timed(_)).then(Statistics::on).transpose()?;
        let address = free_address()?;
        let mut server = self.server(&address, stop)?;
        let mut client = self.client(&address, load)?;
        let agent = match watch {
            Watch::Off => None,
            Watch::On(variant) | Watch::Timed(variant) => Some(Observer::start(self, variant, &server, &client, stop)?),
        };
        let before = process::cpu(server.pid())?;
        signal(&client, Signal::CONT)?;
        let time = ended(&client, stop)?;
        let status = client.ended().context("the client is still there")?;
        ensure!(status.success(), "the client failed ({status})");
        let calls = fs::read_to_string(self.log()).context("log of the calls")?;
        let mut run = Run::of_log(&calls, load.calls)?;
        run.client = time;
        run.server = process::cpu(server.pid())?.saturating_sub(before);
        run.agent = agent.map(|agent| agent.end(self, stop)).transpose()?;
        server.end();
        drop(statistics);
        Ok(run)
    }

    /// Runs the load once while the agent writes down what the kernel says: the recording.
    ///
    /// # Errors
    /// When a program fails.
    pub fn record(&self, load: Load, stop: &Stop) -> Result<PathBuf> {
        let address = free_address()?;
        let mut server = self.server(&address, stop)?;
        let client = self.client(&address, load)?;
        let file = self.folder.join("recording");
        let log = self.folder.join("recorder");
        let mut record = Command::new(&self.agent);
        record.args(["record", "--pid", &server.pid().to_string()]);
        record.args(["--pid", &client.pid().to_string(), "--out"]).arg(&file);
        record
            .stdout(Stdio::null())
            .stderr(File::create(&log).context("log of the recorder")?);
        let mut recorder = Running::start("tracewire", &mut record, Signal::INT, false)?;
        recorder.wait_for_line(&log, "attached", READY, stop)?;
        signal(&client, Signal::CONT)?;
        ended(&client, stop)?;
        std::thread::sleep(REST);
        recorder.ask();
        ended(&recorder, stop)?;
        server.end();
        Ok(file)
    }

    fn server(&self, address: &str, stop: &Stop) -> Result<Running> {
        let log = self.folder.join("server");
        let mut serve = Command::new(&self.workload);
        serve.args(["server", "--log", "/dev/null", "--listen", address]);
        serve.stdout(File::create(&log).context("log")?);
        self.secure(&mut serve);
        let mut server = Running::start("server", &mut serve, Signal::TERM, false)?;
        server.wait_for_line(&log, "listening", READY, stop)?;
        Ok(server)
    }

    fn secure(&self, workload: &mut Command) {
        if let Some(certificate) = &self.tls {
            certificate.give(workload);
        }
    }

    fn log(&self) -> PathBuf {
        self.folder.join("calls")
    }

    /// Starts the client and stops it before it connects, so that the agent can attach to it.
    fn client(&self, address: &str, load: Load) -> Result<Running> {
        // The client appends.
        File::create(self.log()).context("log of the calls")?;
        let mut call = Command::new(&self.workload);
        call.args(["client", "--target", address, "--scenario", "unary", "--log"]);
        call.arg(self.log());
        call.args(["--concurrency", CONCURRENCY, "--connections", CONNECTIONS]);
        call.args(["--calls", &load.calls.to_string(), "--rate", &load.rate.to_string()]);
        call.args(["--start-delay-ms", START_DELAY_MS]);
        self.secure(&mut call);
        let client = Running::start("client", call.stdout(Stdio::null()), Signal::TERM, false)?;
        signal(&client, Signal::STOP)?;
        Ok(client)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn signal(running: &Running, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(running.pid().cast_signed()).context("process 0")?;
    kill_process(pid, signal).context("signal to the client")
}

/// Waits until a process has ended, and before it is forgotten reads its CPU time.
fn ended(process: &Running, stop: &Stop) -> Result<Duration> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if process::has_ended(process.pid())? {
            return process::cpu(process.pid());
        }
        ensure!(!stop.is_wanted(), "interrupted");
        ensure!(
            Instant::now() < deadline,
            "process {} did not end in time",
            process.pid()
        );
        std::thread::sleep(LOOK);
    }
}

fn free_address() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").context("a free port")?;
    Ok(listener.local_addr().context("a free port")?.to_string())
}

/// The agent at work.
struct Observer {
    running: Running,
    log: PathBuf,
    peak: u64,
    before: Duration,
    received: u64,
    programs: Programs,
}

impl Observer {
    fn start(bench: &Bench, variant: Variant, server: &Running, client: &Running, stop: &Stop) -> Result<Self> {
        let log = bench.folder.join("agent");
        let mut observe = Command::new(&bench.agent);
        observe.args(["attach", "--pid", &server.pid().to_string()]);
        if bench.observe == Observe::Both {
            observe.args(["--pid", &client.pid().to_string()]);
        }
        observe.args(variant.arguments(&bench.sink, &bench.folder));
        observe.envs(variant.variables(&bench.sink));
        observe.env("TRACEWIRE_COUNTERS", "1").stdout(Stdio::null());
        observe.stderr(File::create(&log).context("log of the agent")?);
        let mut running = Running::start("tracewire", &mut observe, Signal::INT, false)?;
        running.wait_for_line(&log, "attached", READY, stop)?;
        let pid = running.pid();
        let peak = process::memory(pid, "VmHWM");
        process::forget_peak(pid);
        Ok(Observer {
            running,
            log,
            peak,
            before: process::cpu(pid)?,
            received: bench.sink.spans(),
            programs: process::programs(pid),
        })
    }

    /// Lets it end what it has begun, then reads what it took.
    fn end(mut self, bench: &Bench, stop: &Stop) -> Result<Agent> {
        std::thread::sleep(REST);
        let pid = self.running.pid();
        let programs = process::programs(pid);
        let peak_in_load = process::memory(pid, "VmHWM");
        self.running.ask();
        let cpu = ended(&self.running, stop)?.saturating_sub(self.before);
        let status = self.running.ended().context("the agent is still there")?;
        let text = fs::read_to_string(&self.log).context("log of the agent")?;
        ensure!(status.success(), "the agent failed ({status}): {text}");
        let counters = text.lines().filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Ok(Agent {
            cpu,
            peak: self.peak.max(peak_in_load),
            peak_in_load,
            counters: counters.collect(),
            received: bench.sink.spans() - self.received,
            programs: Programs {
                runs: programs.runs - self.programs.runs,
                ns: programs.ns - self.programs.ns,
            },
        })
    }
}
