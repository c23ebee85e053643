//! tokio, and hyper's and tonic's HTTP/2 on it, by symbols: a stripped
//! program is not followed, and says so. Bias: names are those of the crates'
//! sources, and all that a mechanism needs must be there.

use std::path::Path;

use tracewire_common::link::runtime;
use tracewire_common::link::tokio::layout;

use super::{Ability, Found, Layout, Point, Runtime};
use crate::binary::decoder::{FlowControl, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};
use crate::binary::{Binary, Function};

/// Programs that run tokio.
pub struct Tokio;

const STATE: &str = "tokio::runtime::task::state::State::";
const STREAMS: &str = "h2::proto::streams::streams::";

impl Runtime for Tokio {
    fn number(&self) -> u32 {
        runtime::TOKIO
    }

    fn may_be_in(&self, _path: &Path, main: bool) -> bool {
        main
    }

    fn look(&self, binary: &Binary) -> Option<Found> {
        // Go's programs are large, and none of them is one of these.
        if binary.go_version().is_some() {
            return None;
        }
        let program = Program { binary };
        let mut numbers: Layout = [0; runtime::LAYOUT];
        let tasks = program.tasks();
        let tasks = match tasks {
            Ok(tasks) => tasks,
            Err(reason) => {
                let lacking = Ability {
                    name: "tokio tasks",
                    points: Err(reason),
                };
                return program.mentions_tokio().then(|| Found {
                    what: "tokio".to_owned(),
                    layout: numbers,
                    abilities: vec![lacking],
                });
            }
        };
        let server = program.server(&tasks);
        let client = program.client(&tasks);
        let holder = "tokio::runtime::task::harness";
        let awaited = program.points("tokio_awaits", holder, "can_read_output", &[Register::RDI]);
        let reading = program.points("h2_poll_data", "h2::share::RecvStream", "poll_data", &[Register::RSI]);
        if let Ok((_, extensions)) = &client {
            numbers[layout::EXTENSIONS] = *extensions;
        }
        Some(Found {
            what: "tokio".to_owned(),
            layout: numbers,
            abilities: vec![
                Ability {
                    name: "hyper and tonic HTTP/2 server",
                    points: server,
                },
                Ability {
                    name: "tonic client",
                    points: client.map(|(points, _)| points),
                },
                Ability {
                    name: "tasks that are awaited",
                    points: awaited,
                },
                Ability {
                    name: "tasks that read a request",
                    points: reading,
                },
            ],
        })
    }
}

struct Program<'a> {
    binary: &'a Binary,
}

impl Program<'_> {
    /// A stripped program still has the paths of tokio's sources, for messages.
    fn mentions_tokio(&self) -> bool {
        memchr::memmem::find(self.binary.bytes(), b"/src/runtime/task/").is_some()
            && memchr::memmem::find(self.binary.bytes(), b"/tokio-1.").is_some()
    }

    /// All instances of a generic function, or the one that is none.
    fn instances(&self, holder: &str, name: &str) -> Result<Vec<Function>, String> {
        let ending = format!("::{name}");
        let found = self
            .binary
            .demangled(name, |full| full.contains(holder) && full.ends_with(&ending));
        let mut functions: Vec<Function> = found.into_iter().map(|symbol| symbol.function).collect();
        functions.dedup();
        if functions.is_empty() {
            return Err(format!("no symbol {holder}…{ending} (stripped, or inlined)"));
        }
        Ok(functions)
    }

    fn points(
        &self,
        program: &'static str,
        holder: &str,
        name: &str,
        wanted: &[Register],
    ) -> Result<Vec<Point>, String> {
        self.instances(holder, name)?
            .into_iter()
            .map(|function| {
                let offset = self
                    .place(function, wanted)
                    .ok_or_else(|| format!("no place for a probe in {holder}…::{name}"))?;
                Ok(Point {
                    program,
                    offset,
                    cookie: 0,
                })
            })
            .collect()
    }

    /// The first instruction that the kernel emulates while these registers are what the caller
    /// passed. It may be in a loop: the programs do the same again then.
    fn place(&self, function: Function, wanted: &[Register]) -> Option<u64> {
        let code = self.binary.code(function)?;
        let mut facts = InstructionInfoFactory::new();
        for instruction in code.instructions().take(32) {
            let direct = instruction.op0_kind() == OpKind::NearBranch64;
            let emulated = match instruction.flow_control() {
                FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch | FlowControl::Call => direct,
                FlowControl::Next => {
                    instruction.mnemonic() == Mnemonic::Push && instruction.op0_kind() == OpKind::Register
                }
                _ => false,
            };
            if emulated {
                return self.binary.offset(instruction.ip());
            }
            if instruction.flow_control() != FlowControl::Next {
                return None;
            }
            let written = facts.info(&instruction).used_registers().iter().any(|used| {
                !matches!(
                    used.access(),
                    OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess
                ) && wanted.contains(&used.register().full_register())
            });
            if written {
                return None;
            }
        }
        None
    }

    fn tasks(&self) -> Result<Vec<Point>, String> {
        let state = |program, name| self.points(program, STATE, name, &[Register::RDI]);
        let mut points = state("tokio_running", "transition_to_running")?;
        points.extend(state("tokio_idle", "transition_to_idle")?);
        points.extend(state("tokio_complete", "transition_to_complete")?);
        points.extend(self.points(
            "tokio_spawn",
            "tokio::runtime::task::list::OwnedTasks<",
            "bind_inner",
            &[Register::RSI],
        )?);
        Ok(points)
    }

    fn server(&self, tasks: &[Point]) -> Result<Vec<Point>, String> {
        let mut points = tasks.to_vec();
        let holder = format!("{STREAMS}StreamRef<");
        points.extend(self.points("h2_take_request", &holder, "take_request", &[Register::RSI])?);
        points.extend(self.flushes()?);
        Ok(points)
    }

    fn flushes(&self) -> Result<Vec<Point>, String> {
        self.points(
            "h2_poll_complete",
            &format!("{STREAMS}Streams<"),
            "poll_complete",
            &[Register::RDI],
        )
    }

    /// And where a request has its extensions.
    fn client(&self, tasks: &[Point]) -> Result<(Vec<Point>, u32), String> {
        let mut points = tasks.to_vec();
        points.extend(self.points(
            "tonic_call",
            "tower::buffer::service::Buffer<",
            "call",
            &[Register::RDX],
        )?);
        let holder = format!("{STREAMS}Streams<");
        let sends = self.instances(&holder, "send_request")?;
        let mut extensions = sends.iter().map(|function| self.extensions(*function));
        let offset = extensions
            .next()
            .flatten()
            .ok_or("where h2 finds a request's extensions can't be read")?;
        if extensions.any(|other| other != Some(offset)) {
            return Err("requests of several layouts".to_owned());
        }
        points.extend(self.points("h2_send_request", &holder, "send_request", &[Register::RDX])?);
        let holder = format!("{STREAMS}StreamRef<");
        points.extend(self.points("h2_opened", &holder, "is_pending_open", &[Register::RDI])?);
        points.extend(self.flushes()?);
        Ok((points, offset))
    }

    /// `send_request` begins with `request.extensions_mut().remove()`: the offset in what RDX points to.
    fn extensions(&self, function: Function) -> Option<u32> {
        let code = self.binary.code(function)?;
        let mut offset = None;
        for instruction in code.instructions().take(48) {
            if instruction.mnemonic() == Mnemonic::Lea
                && instruction.memory_base() == Register::RDX
                && instruction.memory_index() == Register::None
            {
                offset = u32::try_from(instruction.memory_displacement64()).ok();
            }
            if instruction.flow_control() == FlowControl::Call {
                let target = instruction.near_branch_target();
                let called = self
                    .binary
                    .demangled("xtensions", |full| full.ends_with("Extensions::remove"));
                return called
                    .iter()
                    .any(|symbol| symbol.function.address == target)
                    .then_some(offset)
                    .flatten()
                    .filter(|offset| *offset < 4096);
            }
        }
        None
    }
}
