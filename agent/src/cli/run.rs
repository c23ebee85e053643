//! `tracewire run`.

use std::path::Path;

use super::agent::{default_output, idle, prepare};
use super::{Failure, Selection, Shared};
use crate::config::LogFlags;
use crate::discover::Resource;
use crate::discover::resource::Resources;
use crate::discover::scan::{self, Listeners};
use crate::discover::select::{Facts, Selector};
use crate::pipeline::{Chooser, Until};

/// Traces kept if nobody says another share.
pub(super) const SHARE: f64 = 0.01;

/// Trace what selectors choose.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    shared: Shared,
}

/// Chooses new processes by program and service name; their ports are matched in the kernel.
struct Chosen(Selector);

impl Chooser for Chosen {
    fn chooses(&mut self, pid: u32, resource: &Resource) -> bool {
        fits(&self.0, pid, resource, &[])
    }
}

fn fits(selector: &Selector, pid: u32, resource: &Resource, ports: &[u16]) -> bool {
    let executable = scan::executable(Path::new(scan::PROC), pid).unwrap_or_default();
    let facts = Facts {
        executable: &executable,
        service: &resource.service_name,
        ports,
    };
    pid != std::process::id() && selector.chooses(&facts)
}

/// Processes that are there already and fit.
fn existing(selector: &Selector, mut resources: Resources) -> Vec<u32> {
    let proc = Path::new(scan::PROC);
    let mut listeners = Listeners::default();
    let mut chosen = scan::processes(proc).unwrap_or_default();
    chosen.retain(|pid| {
        let ports = if selector.wants_ports() {
            listeners.ports(proc, *pid)
        } else {
            Vec::new()
        };
        fits(selector, *pid, &resources.of(*pid), &ports)
    });
    chosen
}

pub(crate) fn main(args: Args, log: &LogFlags) -> Result<(), Failure> {
    let selector = args.selection.selector(log)?;
    if selector.is_empty() {
        return Err(Failure::Usage(
            "run: nothing is selected; give --executable GLOB, --port PORT or --service GLOB \
             (or use `tracewire attach --pid PID`)"
                .into(),
        ));
    }
    let mut prepared = prepare(&args.shared, log, default_output(), SHARE)?;
    if let Some(source) = prepared.disabled() {
        return idle(source, true);
    }
    prepared.long = true;
    let choose_new = selector.wants_executables() || selector.wants_services();
    let resources = prepared.resources();
    let names_of = prepared.resources();
    let mut agent = prepared.load(
        resources,
        Box::new(Chosen(selector.clone())),
        |request| {
            request.choose_new = choose_new;
            request.match_ports = selector.wants_ports();
        },
        selector.ports(),
    )?;
    let (again, common) = (args.selection.clone(), log.clone());
    agent.reload_by(args.shared.clone(), log.clone(), default_output(), SHARE, move || {
        let selector = again.selector(&common)?;
        if selector.is_empty() {
            return Err(Failure::Usage("nothing is selected any more".into()));
        }
        let ports = selector.ports().to_vec();
        let config = crate::config::Config::load(&crate::config::ExportFlags::default(), &common)
            .map_err(|e| Failure::Usage(e.to_string()))?;
        let pids = existing(&selector, Resources::new(config.resource));
        Ok((Box::new(Chosen(selector)) as Box<dyn Chooser>, pids, ports))
    });
    let mut names = Vec::new();
    // New processes are seen already, so none is missed between this list and them.
    for pid in existing(&selector, names_of) {
        if agent.pipeline.watch(pid) {
            names.push(format!("{pid} ({})", agent.pipeline.name(pid)));
        }
    }
    let attached = if names.is_empty() {
        "no process yet".to_owned()
    } else {
        names.join(", ")
    };
    agent.run(&attached, Until::Stopped)
}
