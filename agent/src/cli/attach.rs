//! `tracewire attach`.

use std::path::Path;

use super::agent::{idle, prepare};
use super::{Failure, Shared};
use crate::config::{LogFlags, Output};
use crate::discover::scan;
use crate::discover::select;
use crate::pipeline::{Children, Until};

/// A person at a terminal wants to see every trace.
const SHARE: f64 = 1.0;

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
    let prepared = prepare(&args.shared, log, Output::Tree, SHARE)?;
    if let Some(source) = prepared.disabled() {
        return idle(source, false);
    }
    for pid in &args.pid {
        select::check_pid(Path::new(scan::PROC), *pid).map_err(|e| Failure::Usage(format!("--pid {pid}: {e}")))?;
    }
    let resources = prepared.resources();
    let mut agent = prepared.load(resources, Box::new(Children), |_| {}, &[])?;
    let mut names = Vec::new();
    for pid in select::with_descendants(Path::new(scan::PROC), &args.pid) {
        if !agent.pipeline.watch(pid) {
            return Err(Failure::Other(format!("process {pid}: the kernel refused to watch it")));
        }
        names.push(format!("{pid} ({})", agent.pipeline.name(pid)));
    }
    agent.run(&names.join(", "), Until::AllEnded)
}
