//! `cargo xtask demo`: two services that nobody changed, a load on them, and
//! the agent beside them. Bias: leaves nothing behind, however it ends.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use crate::command::{cargo, command, for_each_line, shown};
use crate::kept::{self, Process};
use crate::running::{Running, Stop};
use crate::{build, place, setup, stop};

/// How long a service may take to listen, and the agent to attach.
const READY: Duration = Duration::from_secs(30);
/// How long the load may take for its last calls.
const LAST_CALLS: Duration = Duration::from_secs(10);
/// How often the demo looks whether all goes well.
const LOOK: Duration = Duration::from_millis(100);
/// Calls a second.
const RATE: &str = "20";
/// How long the load of `--keep` goes on, seconds.
const KEPT: u64 = 3600;

/// Shows the traces of two services for `seconds`; with `keep` the services
/// and their load go on afterwards.
///
/// # Errors
/// When a step fails; what was started has been ended by then.
pub fn run(keep: bool, seconds: u64) -> Result<()> {
    setup::run()?;
    setup::need_root("demo: load programs into the kernel")?;
    build::run()?;
    services()?;
    stop::end_kept();
    fs::create_dir_all(kept::folder()).context("folder of the demo's logs")?;
    let stop = Stop::on_signals()?;

    let none = "127.0.0.1:0";
    let (treasury, treasury_address) = service("treasury", &["--listen", none], keep, &stop)?;
    let arguments = ["--listen", none, "--treasury", &treasury_address];
    let (ledger, ledger_address) = service("ledger", &arguments, keep, &stop)?;
    let mut agent = attach(&[&ledger, &treasury], &stop)?;

    let load_seconds = if keep { KEPT } else { seconds }.to_string();
    let arguments = ["--ledger", &ledger_address, "--rate", RATE, "--seconds", &load_seconds];
    let mut load = start("load", &arguments, keep)?;
    if keep {
        let left = [("treasury", &treasury), ("ledger", &ledger), ("load", &load)];
        let left = left.map(|(name, running)| Process::new(name, running.pid()));
        kept::write(&left.into_iter().collect::<Result<Vec<_>>>()?)?;
    }

    let end = Instant::now() + Duration::from_secs(seconds);
    if keep {
        ensure!(agent.wait(end, &stop).is_none(), "the agent ended by itself");
    } else {
        // The load ends by itself, after its last calls.
        let late = end + LAST_CALLS;
        while load.ended().is_none() && Instant::now() < late && !stop.is_wanted() {
            ensure!(
                agent.wait(Instant::now() + LOOK, &stop).is_none(),
                "the agent ended by itself"
            );
        }
        ensure!(
            load.ended().is_none_or(|s| s.success()),
            "the load failed; see {}",
            log("load").display()
        );
        load.end();
        // What was sent last shall still be seen.
        agent.wait(Instant::now() + Duration::from_millis(500), &stop);
    }
    agent.end();
    ensure!(agent.ended().is_some_and(|status| status.success()), "the agent failed");
    if keep {
        let (ledger, treasury) = (ledger.pid(), treasury.pid());
        eprintln!("\nstill running: ledger ({ledger}), treasury ({treasury}) and their load. To observe them again:");
        eprintln!("  {} attach --pid {ledger} --pid {treasury}", place::agent().display());
        eprintln!("To end them: cargo xtask stop");
    } else {
        println!("\nwhat the load generator itself got:");
        print!("{}", fs::read_to_string(log("load")).unwrap_or_default());
    }
    Ok(())
}

/// Builds the services and their load.
///
/// # Errors
/// When they do not compile.
pub fn services() -> Result<()> {
    let manifest = place::root().join("tests/services/Cargo.toml");
    let mut build = cargo(&["build", "--release", "--locked", "--manifest-path"]);
    shown(build.arg(manifest).arg("--target-dir").arg(place::target()))
}

fn log(name: &str) -> PathBuf {
    kept::folder().join(name).with_extension("log")
}

fn start(name: &'static str, arguments: &[&str], keep: bool) -> Result<Running> {
    let file = File::create(log(name)).with_context(|| format!("log of {name}"))?;
    let mut command = Command::new(place::target().join("release").join(name));
    command
        .args(arguments)
        .stderr(file.try_clone().context("log")?)
        .stdout(file);
    Running::start(name, &mut command, Signal::INT, keep)
}

/// Starts a service and waits until it listens; returns its address too.
fn service(name: &'static str, arguments: &[&str], keep: bool, stop: &Stop) -> Result<(Running, String)> {
    let mut running = start(name, arguments, keep)?;
    match running.wait_for_line(&log(name), "listening on", READY, stop) {
        Ok(address) => Ok((running, address)),
        Err(error) => {
            running.end();
            Err(error)
        }
    }
}

/// Starts the agent and waits until its probes are in place. Its standard
/// output, the traces, goes where this program's goes.
fn attach(services: &[&Running], stop: &Stop) -> Result<Running> {
    let mut attach = command(place::agent());
    attach.args(["attach", "--output", "tree"]).stderr(Stdio::piped());
    for service in services {
        attach.args(["--pid", &service.pid().to_string()]);
    }
    let mut agent = Running::start("tracewire", &mut attach, Signal::INT, false)?;
    let attached = forward(&mut agent);
    let deadline = Instant::now() + READY;
    loop {
        match attached.recv_timeout(Duration::from_millis(50)) {
            Ok(()) => return Ok(agent),
            // It has closed its standard error, so it has ended or is about to.
            Err(RecvTimeoutError::Disconnected) => bail!("the agent ended before it was attached"),
            Err(RecvTimeoutError::Timeout) => {}
        }
        ensure!(!stop.is_wanted(), "interrupted");
        ensure!(Instant::now() < deadline, "the agent did not attach in time");
    }
}

/// Passes on the agent's standard error, and tells when it says `attached`.
fn forward(agent: &mut Running) -> Receiver<()> {
    let (sender, receiver) = channel();
    if let Some(stderr) = agent.take_stderr() {
        std::thread::spawn(move || {
            for_each_line(stderr, |line| {
                eprintln!("{line}");
                if line.starts_with("attached") {
                    let _ = sender.send(());
                }
            });
        });
    }
    receiver
}
