//! `tracewire run`.

use super::agent::{default_output, prepare};
use super::{Failure, Shared};
use crate::config::LogFlags;
use crate::discover::Resource;
use crate::discover::resource::Resources;
use crate::discover::select::{self, Selector};
use crate::pipeline::{Chooser, Until};

/// Trace what selectors choose.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Choose processes by the path of their program, or by its last part
    #[arg(long, value_name = "GLOB", help_heading = "Selection")]
    executable: Vec<String>,
    /// Choose processes that listen on this port
    #[arg(long, value_name = "PORT", help_heading = "Selection")]
    port: Vec<u16>,
    /// Choose processes by their service.name
    #[arg(long, value_name = "GLOB", help_heading = "Selection")]
    service: Vec<String>,
    #[command(flatten)]
    shared: Shared,
}

/// Chooses by the program and the service's name; ports are matched in the kernel.
struct Selection(Selector);

impl Chooser for Selection {
    fn chooses(&mut self, pid: u32, resource: &Resource) -> bool {
        pid != std::process::id() && self.0.chooses(pid, resource)
    }
}

pub(crate) fn main(args: Args, log: &LogFlags) -> Result<(), Failure> {
    if args.executable.is_empty() && args.port.is_empty() && args.service.is_empty() {
        return Err(Failure::Usage(
            "run: nothing is selected; give --executable GLOB, --port PORT or --service NAME (or use `tracewire attach --pid PID`)"
                .into(),
        ));
    }
    let selector = Selector::new(&args.executable, &args.port, &args.service)
        .map_err(|e| Failure::Usage(e.to_string()))?;
    let prepared = prepare(&args.shared, log, default_output())?;
    let choose_new = !args.executable.is_empty() || !args.service.is_empty();
    let ports = args.port.clone();
    let mut agent = prepared.load(
        Resources::default(),
        Box::new(Selection(selector.clone())),
        |request| {
            request.choose_new = choose_new;
            request.match_ports = !ports.is_empty();
        },
        &args.port,
    )?;
    let mut names = Vec::new();
    // New processes are seen already, so none is missed between this list and them.
    for pid in select::existing(&selector, &mut Resources::default()) {
        if pid != std::process::id() && agent.pipeline.watch(pid) {
            names.push(format!("{pid} ({})", agent.pipeline.name(pid)));
        }
    }
    let attached = if names.is_empty() { "no process yet".to_owned() } else { names.join(", ") };
    agent.run(&attached, Until::Stopped)
}
