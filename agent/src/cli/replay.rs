//! `tracewire replay`.

use std::fs::File;
use std::io::{BufReader, Write};
use std::path::PathBuf;
use std::time::Duration;

use super::agent::{configure, default_output};
use super::{Failure, View};
use crate::config::{self, LogFlags};
use crate::core::Core;
use crate::propagation::head::Head;
use crate::recording::file::Reader;
use crate::recording::replay::{KEY, Replay};
use crate::sampler::Sampler;

/// How long exporters may take to send what they hold.
const DEADLINE: Duration = Duration::from_secs(5);

/// Make spans of a recording.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What `tracewire record` wrote
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    view: View,
    #[command(flatten)]
    sampling: config::SamplingFlags,
}

pub(crate) fn main(args: Args, log: &LogFlags) -> Result<(), Failure> {
    let path = args.file.display();
    let failed = |e: &dyn std::fmt::Display| Failure::Usage(format!("{path}: {e}"));
    let file = File::open(&args.file).map_err(|e| failed(&e))?;
    let mut reader = Reader::new(BufReader::new(file)).map_err(|e| failed(&e))?;
    let configured = configure(&args.view, log, default_output())?;
    let mut exporters = configured.exporters;
    let (sampling, _) = config::sampling::load(&args.sampling, 1.0, log).map_err(|e| Failure::Usage(e.to_string()))?;
    let mut core = Core::new(configured.allow, configured.builder, KEY, 0);
    core.sample(Head::new(sampling.head.clone()));
    let mut sampler = Sampler::new(sampling);
    let mut replay = Replay::new(core);
    let result = replay.all(&mut reader, |spans, now_ns| {
        sampler.sift(spans, now_ns);
        configured.counters.spans.add(spans.len() as u64);
        for exporter in &mut exporters {
            exporter.export(spans);
        }
    });
    sampler.stop();
    for exporter in &mut exporters {
        exporter.shutdown(DEADLINE);
    }
    let counts = sampler.counts();
    configured.counters.unsampled.set(counts.unsampled);
    configured.counters.evicted.set(counts.evicted);
    let _ = writeln!(std::io::stderr(), "{}", configured.counters.summary());
    configured.runtime.shutdown_timeout(Duration::from_millis(200));
    result.map_err(|e| failed(&e))
}
