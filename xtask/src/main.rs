//! `cargo xtask TASK`: the project's own commands, one file a task.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod backends;
mod bench;
mod budget;
mod build;
mod build_ebpf;
mod command;
mod demo;
mod fuzz;
mod kept;
mod kernels;
mod place;
mod progress;
mod running;
mod setup;
mod stack;
mod stop;
mod tally;
mod test;
mod toolchain;
mod validate_deploy;
mod vm;

/// The project's own commands.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Installs what is missing and mounts what tracing needs (root, if there is anything to do).
    Setup,
    /// Compiles the kernel programs to target/bpf/tracewire.bpf.o.
    BuildEbpf,
    /// Compiles the kernel programs and the agent.
    Build,
    /// Runs two services that nobody changed, observes them and shows their traces (root).
    Demo {
        /// Leave the services and their load running afterwards, for an hour at most.
        #[arg(long)]
        keep: bool,
        /// How long to observe.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3600))]
        seconds: u64,
    },
    /// Ends what `demo --keep` left running.
    Stop,
    /// Checks everything (root; with --fast what needs neither root nor the kernel).
    Test {
        /// Only format, lints, documents and unit tests.
        #[arg(long)]
        fast: bool,
        /// Only ground truth, deaths and late attaches, in all languages and with five times the calls.
        #[arg(long, conflicts_with = "fast")]
        long: bool,
    },
    /// Feeds the parsers made-up input.
    Fuzz {
        /// Time for all targets together.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// Sends spans to rotel, the OpenTelemetry Collector and Jaeger, which it builds if need be.
    Backends,
    /// Measures what observation costs (root).
    Bench(bench::Arguments),
    /// Checks the manifests in deploy/, without a cluster.
    ValidateDeploy,
    /// Tries the agent under other kernels, from 5.10 to the newest, in virtual machines (root).
    Kernels(kernels::Arguments),
    /// Runs a command under other kernels, in virtual machines with this machine's files (root).
    Vm(vm::Arguments),
}

fn run(task: &Task) -> Result<ExitCode> {
    match task {
        Task::Setup => setup::run().inspect(|()| eprintln!("setup: everything is in place")),
        Task::BuildEbpf => build_ebpf::run(),
        Task::Build => build::run(),
        Task::Demo { keep, seconds } => demo::run(*keep, *seconds),
        Task::Stop => {
            stop::run();
            Ok(())
        }
        Task::Test { long: true, .. } => test::long(),
        Task::Test { fast, .. } => test::run(*fast),
        Task::Fuzz { seconds } => fuzz::run(*seconds),
        Task::Backends => backends::run(),
        Task::Bench(arguments) => bench::run(arguments),
        Task::ValidateDeploy => validate_deploy::run(),
        Task::Kernels(arguments) => return kernels::run(arguments),
        Task::Vm(arguments) => return vm::run(arguments),
    }
    .map(|()| ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    match run(&Arguments::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
