//! `cargo xtask bench`: what observation costs. The same load runs with the
//! agent off and on, in turns, against a gRPC service that nobody changed.
//! Bias: ratios of neighbouring rounds rather than absolute figures, which
//! speak of the machine; figures are shown, and never fail the task.
//!
//! Every span is kept and exported to a [`sink`] in this process, which takes
//! the spans, counts them and throws them away. The client logs each call to
//! memory for its latency, the server to `/dev/null`; both are part of the
//! workload, off and on alike. Several ways to run the agent ([`variant`]) are
//! compared in one run, in turns.

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
mod tls;
mod variant;

use figures::Run;
use round::{Bench, Load, Watch};
use variant::Variant;

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

/// How much the service has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Stage {
    /// As many calls as go: both cores are busy
    Saturated,
    /// Half as many a second as go without the agent
    Half,
    /// 10,000 spans a second
    Fixed,
}

/// Spans a second of [`Stage::Fixed`].
const FIXED: u64 = 10_000;

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// Length of one run
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Runs of each variant, and as many without the agent
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=100))]
    rounds: u64,
    /// Only this service
    #[arg(long, value_enum)]
    service: Option<Service>,
    /// Ends of the calls that the agent observes
    #[arg(long, value_enum, default_value_t = Observe::Both)]
    observe: Observe,
    /// How the agent runs; several are compared in the same rounds
    #[arg(long, value_enum, value_delimiter = ',', default_value = "on,links-off")]
    variant: Vec<Variant>,
    /// Loads to measure at
    #[arg(long, value_enum, value_delimiter = ',', default_value = "saturated,half,fixed")]
    load: Vec<Stage>,
    /// The service and its client speak TLS
    #[arg(long)]
    tls: bool,
    /// What each exporter costs a span, at 10,000 spans a second, and nothing else
    #[arg(long, conflicts_with_all = ["variant", "load", "tls"])]
    exporters: bool,
    /// Also a run of each variant in which the kernel times the programs
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    timed: bool,
    /// Also the core alone, from a recording
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    core: bool,
}

/// Measures and prints.
///
/// # Errors
/// When something can't be built or run.
pub fn run(arguments: &Arguments) -> Result<()> {
    setup::need_root("bench: load programs into the kernel")?;
    let agent = match std::env::var_os("TRACEWIRE_BIN") {
        Some(built) => PathBuf::from(built),
        None => {
            build::run()?;
            place::agent()
        }
    };
    let stop = Stop::on_signals()?;
    if arguments.exporters {
        return exporters(agent, arguments, &stop);
    }
    for service in Service::ALL {
        if arguments.service.is_none_or(|only| only == service) {
            let bench = Bench::new(agent.clone(), workload(service)?, arguments.observe, arguments.tls)?;
            measure(&bench, service, arguments, &stop)?;
        }
    }
    Ok(())
}

/// The same load with each exporter in turn.
fn exporters(agent: PathBuf, arguments: &Arguments, stop: &Stop) -> Result<()> {
    let service = arguments.service.unwrap_or(Service::Go);
    let bench = Bench::new(agent, workload(service)?, arguments.observe, false)?;
    let sides = arguments.observe.sides();
    let rate = FIXED / sides;
    let load = Load {
        calls: rate * arguments.seconds,
        rate,
    };
    let step = Step::begin(format!("{}: each exporter at {FIXED} spans/s", service.name()));
    let mut runs: Vec<(Variant, Vec<Run>)> = Variant::EXPORTERS.map(|variant| (variant, Vec::new())).into();
    for round in 1..=arguments.rounds {
        ensure!(!stop.is_wanted(), "interrupted");
        step.line(&format!("round {round} of {}", arguments.rounds));
        for (variant, runs) in &mut runs {
            runs.push(bench.run(Watch::On(*variant), load, stop)?);
        }
    }
    step.done();
    report::exporters(&runs);
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

fn measure(bench: &Bench, service: Service, arguments: &Arguments, stop: &Stop) -> Result<()> {
    let length = Duration::from_secs(arguments.seconds);
    let warm = bench.run(
        Watch::Off,
        Load {
            calls: WARM_UP,
            rate: 0,
        },
        stop,
    )?;
    let mut most = warm.throughput();
    let sides = arguments.observe.sides();
    for stage in &arguments.load {
        let rate = match stage {
            Stage::Saturated => 0.0,
            Stage::Half => most / 2.0,
            Stage::Fixed => (FIXED / sides) as f64,
        };
        let load = Load {
            calls: calls(if rate == 0.0 { most } else { rate }, length),
            rate: rate as u64,
        };
        let what = match stage {
            Stage::Saturated => "both cores saturated".to_owned(),
            Stage::Half => format!("half load, {rate:.0} calls/s"),
            Stage::Fixed => format!("{FIXED} spans/s"),
        };
        let title = format!("{}: {what}", service.name());
        let rounds = turns(bench, &title, load, arguments, stop)?;
        if *stage == Stage::Saturated {
            most = rounds.iter().map(|round| round.off.throughput()).fold(0.0, f64::max);
        }
        for (i, variant) in arguments.variant.iter().enumerate() {
            let again = || bench.run(Watch::Timed(*variant), load, stop);
            let timed = arguments.timed.then(again).transpose()?;
            let pairs: Vec<(Run, Run)> = rounds
                .iter()
                .filter_map(|round| Some((round.off.clone(), round.on.get(i)?.clone())))
                .collect();
            report::print(
                &format!("{title}; {}", variant.name()),
                *stage,
                &pairs,
                timed.as_ref(),
                sides,
                *variant,
            );
        }
    }
    if arguments.core && !arguments.tls {
        core(bench, service, stop)?;
    }
    Ok(())
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

/// One round: without the agent, then with it in each of its variants.
struct Round {
    off: Run,
    on: Vec<Run>,
}

fn turns(bench: &Bench, what: &str, load: Load, arguments: &Arguments, stop: &Stop) -> Result<Vec<Round>> {
    let step = Step::begin(what);
    let mut rounds = Vec::new();
    for round in 1..=arguments.rounds {
        ensure!(!stop.is_wanted(), "interrupted");
        step.line(&format!("round {round} of {}", arguments.rounds));
        let off = bench.run(Watch::Off, load, stop)?;
        let on = arguments.variant.iter().map(|v| bench.run(Watch::On(*v), load, stop));
        rounds.push(Round {
            off,
            on: on.collect::<Result<_>>()?,
        });
    }
    step.done();
    Ok(rounds)
}
