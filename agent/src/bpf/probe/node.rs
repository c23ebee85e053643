//! Node, only where the user asked for the helper: a script inside the process tells on whose
//! behalf its requests are made, since promises leave no trace that could be read from outside.
//! The helper speaks by `uv_fs_access`, which is probed; it comes in by the inspector, which Node itself
//! opens at SIGUSR1.
//!
//! Bias: a signal that the program handles in its own way is never sent.

mod enter;
mod inspector;

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::programs::Iter;
use tracewire_common::link::runtime;

use super::{Ability, Found, Layout, Point, Runtime};
use crate::binary::{Binary, SYSV_ARGUMENTS};
use crate::bpf::load::reason;

/// Where in the layout Node's own handler of SIGUSR1 stands: its offset in the file.
const HANDLER: usize = 0;
/// Program of the kernel side that tells what handles SIGUSR1.
const HANDLERS: &str = "signal_handlers";
/// How often a process is looked at whose handler is not there yet.
const ATTEMPTS: u32 = 20;
/// How long the observation of a process may be held up by its helper.
const MOMENT: Duration = Duration::from_secs(2);
/// How long the agent's end may be held up by the helpers that are still to be taken out.
const LEAVING: Duration = Duration::from_secs(5);

/// See the module.
pub struct Node;

impl Runtime for Node {
    fn number(&self) -> u32 {
        runtime::NODE
    }

    fn may_be_in(&self, path: &Path, main: bool) -> bool {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        main && name.starts_with("node")
    }

    fn look(&self, binary: &Binary) -> Option<Found> {
        // Node's, and no other program's.
        binary.symbol("node_module_register")?;
        let mut layout: Layout = [0; runtime::LAYOUT];
        Some(Found {
            what: "Node".to_owned(),
            abilities: vec![Ability {
                name: "calls of Node, with --node-helper",
                points: places(binary, &mut layout),
            }],
            layout,
        })
    }
}

fn places(binary: &Binary, layout: &mut Layout) -> Result<Vec<Point>, String> {
    let access = binary.symbol("uv_fs_access").ok_or("no uv_fs_access")?;
    let (_, offset) = binary
        .probe(access, SYSV_ARGUMENTS.get(..3).unwrap_or_default())
        .ok_or("uv_fs_access is not code")?;
    let handlers = binary.symbols(|name| name.contains("StartIoThreadWakeup"));
    let [handler] = &handlers[..] else {
        return Err("Node's handler of SIGUSR1 is not found".to_owned());
    };
    layout[HANDLER] = binary
        .offset(handler.function.address)
        .and_then(|offset| u32::try_from(offset).ok())
        .ok_or("Node's handler of SIGUSR1 has no place in the file")?;
    Ok(vec![Point {
        program: "node_told",
        offset,
        cookie: 0,
    }])
}

/// How it stands with a process.
enum State {
    /// Its own handler was not seen so many times.
    Waiting(u32),
    /// The script is in it, or on its way.
    Entered(Option<JoinHandle<()>>, Layout),
    /// It can't be, which was said.
    Refused,
}

/// The processes into which the helper was put.
#[derive(Default)]
pub struct Helpers {
    processes: HashMap<u32, State>,
}

impl Helpers {
    /// Puts the helper into a process, once. Does not wait for it.
    pub fn enter(&mut self, ebpf: &mut Ebpf, pid: u32, layout: &Layout) {
        let state = self.processes.entry(pid).or_insert(State::Waiting(0));
        let State::Waiting(attempts) = state else { return };
        *attempts += 1;
        let last = *attempts >= ATTEMPTS;
        match is_own(ebpf, pid, layout) {
            Ok(true) => {
                let thread = std::thread::Builder::new()
                    .name("tracewire-node".into())
                    .spawn(move || match enter::evaluate(pid, enter::INSTALL) {
                        Ok(said) if said == enter::IN_PLACE => tracing::info!(pid, "Node's helper is in place"),
                        Ok(said) => tracing::warn!(pid, said, "Node's helper is not in place"),
                        Err(error) => tracing::warn!(pid, %error, "Node's helper is not in place"),
                    });
                *state = State::Entered(thread.ok(), *layout);
            }
            // Early in its life there is none.
            Ok(false) if !last => {}
            Ok(false) => {
                tracing::warn!(pid, "Node's helper: the program handles SIGUSR1 itself, or ignores it");
                *state = State::Refused;
            }
            Err(error) => {
                tracing::warn!(pid, error, "Node's helper: what handles SIGUSR1 can't be told");
                *state = State::Refused;
            }
        }
    }

    /// Waits a moment for what is on its way.
    pub fn settle(&mut self) {
        let end = Instant::now() + MOMENT;
        let on_its_way = |state: &State| matches!(state, State::Entered(Some(thread), _) if !thread.is_finished());
        while Instant::now() < end && self.processes.values().any(on_its_way) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A process is gone.
    pub fn gone(&mut self, pid: u32) {
        self.processes.remove(&pid);
    }

    /// Takes the helper out of all processes.
    pub fn leave(&mut self, ebpf: &mut Ebpf) {
        let end = Instant::now() + LEAVING;
        for (pid, state) in self.processes.drain() {
            let State::Entered(thread, layout) = state else {
                continue;
            };
            if let Some(thread) = thread
                && thread.join().is_err()
            {
                tracing::warn!(pid, "a thread of Node's helper failed");
            }
            // The program may have made the signal its own since.
            if Instant::now() > end || !matches!(is_own(ebpf, pid, &layout), Ok(true)) {
                tracing::warn!(pid, "Node's helper stays: it does nothing without an agent");
            } else if let Err(error) = enter::evaluate(pid, enter::REMOVE) {
                tracing::warn!(pid, %error, "Node's helper stays: it does nothing without an agent");
            }
        }
    }
}

/// Whether SIGUSR1 is handled by Node itself in a process.
fn is_own(ebpf: &mut Ebpf, pid: u32, layout: &Layout) -> Result<bool, String> {
    let handler = handlers(ebpf)?
        .into_iter()
        .find_map(|[of, handler]| (of == u64::from(pid)).then_some(handler))
        .ok_or("the kernel does not tell")?;
    // 0 and 1: the default, and ignored.
    Ok(handler > 1 && enter::offset_in_program(pid, handler) == Some(u64::from(layout[HANDLER])))
}

/// Process and address of its handler of SIGUSR1, of all Node processes that are observed.
fn handlers(ebpf: &mut Ebpf) -> Result<Vec<[u64; 2]>, String> {
    let program: &mut Iter = ebpf
        .program_mut(HANDLERS)
        .and_then(|p| p.try_into().ok())
        .ok_or_else(|| format!("no program {HANDLERS}"))?;
    if program.fd().is_err() {
        let types = aya::Btf::from_sys_fs().map_err(|e| e.to_string())?;
        program.load("task", &types).map_err(|e| reason(&e))?;
    }
    let link = program.attach().map_err(|e| reason(&e))?;
    let link = program.take_link(link).map_err(|e| reason(&e))?;
    let mut bytes = Vec::new();
    link.into_file()
        .map_err(|e| e.to_string())?
        .read_to_end(&mut bytes)
        .map_err(|e| e.to_string())?;
    let (words, _) = bytes.as_chunks::<8>();
    let (pairs, _) = words.as_chunks::<2>();
    Ok(pairs.iter().map(|pair| pair.map(u64::from_ne_bytes)).collect())
}
