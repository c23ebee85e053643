//! `tracewire record`.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::agent::{idle, prepare};
use super::{Failure, Shared};
use crate::config::{LogFlags, Output};
use crate::discover::{scan, select};
use crate::pipeline::{Children, Until};
use crate::recording::recorder::{Progress, Recorder};

/// Write down what the kernel says of processes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A process to record, with its children; may be given several times
    #[arg(long, short, required = true, value_name = "PID")]
    pid: Vec<u32>,
    /// The recording; what was there is replaced. Only its owner may read it
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    /// End after this time; else with Ctrl-C or when all processes ended
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(1..))]
    seconds: Option<u64>,
    #[command(flatten)]
    shared: Shared,
}

pub(crate) fn main(args: Args, log: &LogFlags) -> Result<(), Failure> {
    let prepared = prepare(&args.shared, log, Output::None, 1.0)?;
    if let Some(source) = prepared.disabled() {
        return idle(source, false);
    }
    for pid in &args.pid {
        select::check_pid(Path::new(scan::PROC), *pid).map_err(|e| Failure::Usage(format!("--pid {pid}: {e}")))?;
    }
    let path = args.out.display();
    let failed = |e: &dyn std::fmt::Display| format!("--out {path}: {e}");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&args.out)
        .map_err(|e| Failure::Usage(failed(&e)))?;
    let allow = prepared.allow().clone();
    let resources = prepared.resources();
    let mut agent = prepared.load(resources, Box::new(Children), |_| {}, &[])?;
    let progress = Progress::default();
    let recorder = Recorder::new(Box::new(file), allow, agent.stop.clone(), progress.clone())
        .map_err(|e| Failure::Other(failed(&e)))?;
    agent.pipeline.record(recorder);
    let mut names = Vec::new();
    for pid in select::with_descendants(Path::new(scan::PROC), &args.pid) {
        if !agent.pipeline.watch(pid) {
            return Err(Failure::Other(format!("process {pid}: the kernel refused to watch it")));
        }
        names.push(format!("{pid} ({})", agent.pipeline.name(pid)));
    }
    if let Some(seconds) = args.seconds {
        let stop = agent.stop.clone();
        agent.runtime.spawn(async move {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            stop.store(true, Ordering::Relaxed);
        });
    }
    agent.run(&names.join(", "), Until::AllEnded)?;
    if let Some(error) = progress.error() {
        return Err(Failure::Other(failed(error)));
    }
    let _ = writeln!(std::io::stderr(), "recorded {} bytes to {path}", progress.bytes());
    Ok(())
}
