//! `cargo xtask bench`: what observation costs. The same load runs with the
//! agent off and on, in turns, against a gRPC service that nobody changed.
//! Bias: ratios of neighbouring rounds rather than absolute figures, which
//! speak of the machine; figures are shown, and never fail the task.
//!
//! Every span is kept and exported by OTLP to a [`sink`] in this process, which
//! takes the spans, counts them and throws them away. The client logs each
//! call to memory for its latency, the server to `/dev/null`; both are part of
//! the workload, off and on alike.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::ValueEnum;

use crate::command::{cargo, command, quiet, shown};
use crate::progress::Step;
use crate::running::Stop;
use crate::{build, place, setup};

mod figures;
mod process;
mod report;
mod round;
mod sink;

use figures::Run;
use round::{Bench, Load, Watch};

/// Calls of the first run, which warms up and finds out how long one takes.
const WARM_UP: u64 = 10_000;
/// Calls that are recorded for the core.
const RECORDED: u64 = 30_000;

/// Services to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Service {
    /// grpc-go.
    Go,
    /// tonic.
    Rust,
}

impl Service {
    const ALL: [Service; 2] = [Service::Go, Service::Rust];

    fn name(self) -> &'static str {
        match self {
            Service::Go => "go",
            Service::Rust => "rust",
        }
    }
}

/// Which ends of the calls are observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Observe {
    /// The service and its client: two spans a call.
    Both,
    /// The service alone: one span a call.
    Server,
}

impl Observe {
    /// Spans that one call makes.
    fn sides(self) -> u64 {
        match self {
            Observe::Both => 2,
            Observe::Server => 1,
        }
    }
}

/// What to measure.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Arguments {
    /// Length of one run
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Runs with the agent, and as many without
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=100))]
    rounds: u64,
    /// Only this service
    #[arg(long, value_enum)]
    service: Option<Service>,
    /// Ends of the calls that the agent observes
    #[arg(long, value_enum, default_value_t = Observe::Both)]
    observe: Observe,
}

/// Measures and prints.
///
/// # Errors
/// When something can't be built or run.
pub fn run(arguments: Arguments) -> Result<()> {
    setup::need_root("bench: load programs into the kernel")?;
    let agent = match std::env::var_os("TRACEWIRE_BIN") {
        Some(built) => PathBuf::from(built),
        None => {
            build::run()?;
            place::agent()
        }
    };
    let stop = Stop::on_signals()?;
    for service in Service::ALL {
        if arguments.service.is_none_or(|only| only == service) {
            let bench = Bench::new(agent.clone(), workload(service)?, arguments.observe)?;
            measure(&bench, service, arguments, &stop)?;
        }
    }
    Ok(())
}

/// Builds a workload: server and client in one program.
fn workload(service: Service) -> Result<PathBuf> {
    let folder = place::target().join("workloads").join(service.name());
    let step = Step::begin(format!("{} workload", service.name()));
    let script = place::root()
        .join("tests/workloads")
        .join(service.name())
        .join("build.sh");
    quiet(&step, command(script).arg(&folder), "see tests/workloads")?;
    step.done();
    Ok(folder.join("run"))
}

fn measure(bench: &Bench, service: Service, arguments: Arguments, stop: &Stop) -> Result<()> {
    let length = Duration::from_secs(arguments.seconds);
    let warm = bench.run(
        Watch::Off,
        Load {
            calls: WARM_UP,
            rate: 0,
        },
        stop,
    )?;
    let full = Load {
        calls: calls(warm.throughput(), length),
        rate: 0,
    };
    let saturated = turns(
        bench,
        &format!("{}, saturated", service.name()),
        full,
        arguments.rounds,
        stop,
    )?;
    let rate = saturated.iter().map(|(off, _)| off.throughput()).fold(0.0, f64::max) / 2.0;
    let half = Load {
        calls: calls(rate, length),
        rate: rate as u64,
    };
    let halved = turns(
        bench,
        &format!("{}, half load", service.name()),
        half,
        arguments.rounds,
        stop,
    )?;
    let inside = [full, half].map(|load| bench.run(Watch::Timed, load, stop));
    let [full_inside, half_inside] = inside;
    let sides = arguments.observe.sides();
    report::print(
        &format!("{}: both cores saturated", service.name()),
        &saturated,
        &full_inside?,
        sides,
    );
    report::print(
        &format!("{}: half load, {rate:.0} calls/s", service.name()),
        &halved,
        &half_inside?,
        sides,
    );
    core(bench, service, stop)
}

/// The agent's pure core alone, fed from a recording of this service: no kernel, no sockets.
fn core(bench: &Bench, service: Service, stop: &Stop) -> Result<()> {
    let step = Step::begin(format!("{}, recorded and replayed", service.name()));
    let recording = bench.record(
        Load {
            calls: RECORDED,
            rate: 0,
        },
        stop,
    )?;
    let build = [
        "build",
        "--release",
        "--quiet",
        "--package",
        "tracewire",
        "--example",
        "core_bench",
    ];
    quiet(&step, &mut cargo(&build), "see the messages above")?;
    step.done();
    println!("\n{}: the core, from a recording", service.name());
    shown(command(place::target().join("release/examples/core_bench")).arg(recording))
}

fn calls(throughput: f64, length: Duration) -> u64 {
    (throughput * length.as_secs_f64()).max(100.0) as u64
}

/// Off, on, off, on …
fn turns(bench: &Bench, what: &str, load: Load, rounds: u64, stop: &Stop) -> Result<Vec<(Run, Run)>> {
    let step = Step::begin(what);
    let mut runs = Vec::new();
    for round in 1..=rounds {
        ensure!(!stop.is_wanted(), "interrupted");
        step.line(&format!("round {round} of {rounds}"));
        runs.push((bench.run(Watch::Off, load, stop)?, bench.run(Watch::On, load, stop)?));
    }
    step.done();
    Ok(runs)
}
