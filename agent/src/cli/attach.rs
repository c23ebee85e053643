//! `tracewire attach`.

use std::path::Path;

use super::agent::prepare;
use super::{Failure, Shared};
use crate::config::{LogFlags, Output};
use crate::discover::resource::{Config, Resources};
use crate::discover::scan::{self, Stat};
use crate::discover::select;
use crate::pipeline::{Children, Until};

/// Where procfs is.
const PROC: &str = "/proc";

/// Trace these processes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A process to trace, with its children; may be given several times
    #[arg(long, short, required = true, value_name = "PID")]
    pid: Vec<u32>,
    #[command(flatten)]
    shared: Shared,
}

pub(crate) fn main(args: Args, log: &LogFlags) -> Result<(), Failure> {
    let prepared = prepare(&args.shared, log, Output::Tree)?;
    for pid in &args.pid {
        select::check_pid(Path::new(PROC), *pid).map_err(|e| Failure::Usage(format!("--pid {pid}: {e}")))?;
    }
    let mut agent = prepared.load(Resources::new(Config::default()), Box::new(Children), |_| {}, &[])?;
    let mut names = Vec::new();
    for pid in with_descendants(&args.pid) {
        if !agent.pipeline.watch(pid) {
            return Err(Failure::Other(format!("process {pid}: the kernel refused to watch it")));
        }
        names.push(format!("{pid} ({})", agent.pipeline.name(pid)));
    }
    agent.run(&names.join(", "), Until::AllEnded)
}

/// The processes and their children at present; children to come are followed by the kernel side.
fn with_descendants(pids: &[u32]) -> Vec<u32> {
    let proc = Path::new(PROC);
    let all: Vec<(u32, u32)> = scan::processes(proc)
        .unwrap_or_default()
        .into_iter()
        .filter_map(|pid| Some((pid, Stat::read(proc, pid).ok()?.parent)))
        .collect();
    let mut chosen = pids.to_vec();
    let mut at = 0;
    while let Some(parent) = chosen.get(at).copied() {
        for (pid, of) in &all {
            if *of == parent && !chosen.contains(pid) && *pid != std::process::id() {
                chosen.push(*pid);
            }
        }
        at += 1;
    }
    chosen
}
