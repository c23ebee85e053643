//! Go, stripped or not: its functions are in `.gopclntab`, its versions in
//! `.go.buildinfo`. Bias: an offset or instruction that is not sure is an
//! ability less.

use std::path::Path;

use tracewire_common::link::go::layout;
use tracewire_common::link::runtime;

use super::{Ability, Found, Layout, Point, Runtime};
use crate::binary::decoder::{FlowControl, Instruction, InstructionInfoFactory, OpAccess, Register};
use crate::binary::{Binary, Code, Function, GO_ARGUMENTS, Go as Functions, Version};

mod contexts;
mod modules;

use modules::Modules;

/// Go programs.
pub struct Go;

const TRANSPORT: &str = "google.golang.org/grpc/internal/transport.";
const GRPC: &str = "google.golang.org/grpc";

impl Runtime for Go {
    fn number(&self) -> u32 {
        runtime::GO
    }

    fn may_be_in(&self, _path: &Path, main: bool) -> bool {
        main
    }

    fn look(&self, binary: &Binary) -> Option<Found> {
        let functions = binary.go()?;
        let modules = Modules::of(binary);
        let mut what = functions.version.map_or_else(|| "Go".to_owned(), |v| v.to_string());
        if let Some(version) = modules.version(GRPC) {
            what.push_str(", grpc-go ");
            what.push_str(version);
        }
        let program = Program {
            binary,
            functions,
            modules,
        };
        let mut numbers: Layout = [0; runtime::LAYOUT];
        let abilities = match program.goroutines(&mut numbers) {
            Ok(goroutines) => {
                let mut abilities = Vec::new();
                program.grpc(&mut numbers, &mut abilities);
                numbers[layout::REQUEST_CONTEXT] = program.functions.version.map_or(0, contexts::in_request);
                program.http(&goroutines, &mut abilities);
                abilities
            }
            Err(reason) => vec![Ability {
                name: "goroutines",
                points: Err(reason),
            }],
        };
        Some(Found {
            what,
            layout: numbers,
            abilities,
        })
    }
}

struct Program<'a> {
    binary: &'a Binary,
    functions: Functions<'a>,
    modules: Modules,
}

impl Program<'_> {
    fn function(&self, name: &str) -> Result<Function, String> {
        self.functions
            .function(name)
            .ok_or_else(|| format!("{name} is not in this program"))
    }

    /// At the cheapest place of a function where its arguments still are.
    fn entry(&self, program: &'static str, name: &str) -> Result<Point, String> {
        let function = self.function(name)?;
        let (_, offset) = self
            .binary
            .probe(function, GO_ARGUMENTS)
            .ok_or_else(|| format!("the code of {name} can't be read"))?;
        Ok(Point {
            program,
            offset,
            cookie: 0,
        })
    }

    /// The code of `caller`, and the address of `callee`.
    fn caller(&self, caller: &str, callee: &str) -> Result<(Code<'_>, u64), String> {
        let function = self.function(caller)?;
        let target = self.function(callee)?.address;
        let code = self.binary.code(function);
        let code = code.ok_or_else(|| format!("the code of {caller} can't be read"))?;
        Ok((code, target))
    }

    /// Behind the call of `callee` in `caller`, at the first cheap instruction at which `result`,
    /// which the call returned in RAX, is in `wanted`.
    fn after(&self, program: &'static str, caller: &str, callee: &str, wanted: Register) -> Result<Point, String> {
        let (code, target) = self.caller(caller, callee)?;
        let mut instructions = code.instructions().skip_while(|i| !calls(i, target));
        if instructions.next().is_none() {
            return Err(format!("{caller} does not call {callee}"));
        }
        let address = carried(instructions, wanted)
            .ok_or_else(|| format!("no place for a probe behind the call of {callee} in {caller}"))?;
        // A second call would be another way in.
        if code.instructions().filter(|i| calls(i, target)).count() != 1 {
            return Err(format!("{caller} calls {callee} in several places"));
        }
        let offset = self
            .binary
            .offset(address)
            .ok_or_else(|| format!("the code of {caller} is not in the file"))?;
        Ok(Point {
            program,
            offset,
            cookie: 0,
        })
    }

    /// On the one call of `callee` in `caller`, where the registers hold its arguments.
    fn call(&self, program: &'static str, caller: &str, callee: &str) -> Result<Point, String> {
        let (code, target) = self.caller(caller, callee)?;
        let mut found = code.instructions().filter(|i| calls(i, target));
        let (Some(call), None) = (found.next(), found.next()) else {
            return Err(format!("{caller} does not call {callee} once"));
        };
        let offset = self
            .binary
            .offset(call.ip())
            .ok_or_else(|| format!("the code of {caller} is not in the file"))?;
        Ok(Point {
            program,
            offset,
            cookie: 0,
        })
    }

    /// What all of Go's mechanisms take: offsets in the runtime's structures, and new goroutines
    /// where they don't know what made them.
    fn goroutines(&self, numbers: &mut Layout) -> Result<Vec<Point>, String> {
        let version = self
            .functions
            .version
            .ok_or("the version of Go is not in the program")?;
        let (goid, curg, parent) = runtime_offsets(version)
            .ok_or_else(|| format!("the runtime of {version} is not known to this version of tracewire"))?;
        numbers[layout::GOID] = goid;
        numbers[layout::G_M] = G_M;
        numbers[layout::M_CURG] = curg;
        numbers[layout::PARENT_GOID] = parent;
        if parent != 0 {
            numbers[layout::ASKS_MAKER] = 1;
            return Ok(Vec::new());
        }
        Ok(vec![self.new_goroutines()?])
    }

    fn new_goroutines(&self) -> Result<Point, String> {
        let place = |caller| self.after("go_newproc", caller, "runtime.newproc1", Register::RBX);
        // `newproc` hands newproc1 to the system stack in a closure.
        place("runtime.newproc.func1").or_else(|_| place("runtime.newproc"))
    }

    fn grpc(&self, numbers: &mut Layout, abilities: &mut Vec<Ability>) {
        if self.functions.functions().all(|(name, _)| !name.starts_with(TRANSPORT)) {
            return;
        }
        let handles = self.handle_stream(numbers);
        let server = match &handles {
            Ok(handles) if numbers[layout::ASKS_MAKER] != 0 => self
                .entry("go_handle_streams", &format!("{TRANSPORT}(*http2Server).HandleStreams"))
                .map(|begins| vec![begins, *handles]),
            _ => self.decoding(&handles, numbers),
        };
        abilities.push(Ability {
            name: "grpc-go server",
            points: server,
        });
        abilities.push(Ability {
            name: "grpc-go server with NumStreamWorkers",
            points: handles.map(|point| vec![point]),
        });
        let client = self
            .after(
                "go_header_fields",
                &format!("{TRANSPORT}(*http2Client).NewStream"),
                &format!("{TRANSPORT}(*http2Client).createHeaderFields"),
                Register::RAX,
            )
            .and_then(|made| {
                let write = format!("{TRANSPORT}(*loopyWriter).writeHeader");
                // A server writes header fields too, and more often; they begin no request.
                // The newer name, the older one.
                let begins = ["clientHeaderHandler", "originateStream"].into_iter();
                let written = begins
                    .map(|caller| {
                        self.call(
                            "go_write_header",
                            &format!("{TRANSPORT}(*loopyWriter).{caller}"),
                            &write,
                        )
                    })
                    .find_map(Result::ok);
                let written = match written {
                    Some(point) => point,
                    None => self.entry("go_write_header", &write)?,
                };
                Ok(vec![made, written])
            });
        abilities.push(Ability {
            name: "grpc-go client",
            points: client,
        });
        let saved = self
            .function(&format!("{TRANSPORT}(*http2Client).createHeaderFields"))
            .and_then(|made| {
                self.binary
                    .code(made)
                    .ok_or_else(|| "its code can't be read".to_owned())
            })
            .and_then(|code| contexts::saves_its_context(&code));
        numbers[layout::FIELDS_CONTEXT] = u32::from(saved.is_ok());
        abilities.push(Ability {
            name: "contexts of grpc-go calls",
            points: saved.map(|()| Vec::new()),
        });
    }

    /// The serving side where a handler's goroutine can't be asked, or not for what made it: each
    /// request's header fields are told when they are decoded.
    fn decoding(&self, handles: &Result<Point, String>, numbers: &mut Layout) -> Result<Vec<Point>, String> {
        let decodes = self.entry(
            "go_operate_headers",
            &format!("{TRANSPORT}(*http2Server).operateHeaders"),
        )?;
        self.takes_context()?;
        // It tells the paths as well.
        numbers[layout::STREAM_METHOD] = 0;
        let mut points = vec![self.new_goroutines()?, decodes];
        points.extend(handles.clone().ok());
        Ok(points)
    }

    /// `net/http`, and HTTP/2 as it and `golang.org/x/net` have it, as far as the program uses them.
    fn http(&self, goroutines: &[Point], abilities: &mut Vec<Ability>) {
        let mut add = |name, uses: &str, places: &[(&'static str, &str)]| {
            if self.functions.function(uses).is_none() {
                return;
            }
            let found: Result<Vec<Point>, String> = places
                .iter()
                .map(|(program, function)| self.entry(program, function))
                .collect();
            let points = found.map(|mut points| {
                points.extend(goroutines);
                points
            });
            abilities.push(Ability { name, points });
        };
        let handler = "net/http.serverHandler.ServeHTTP";
        add(
            "net/http server",
            "net/http.(*conn).serve",
            &[("go_serve_http", handler)],
        );
        let trip = "net/http.(*persistConn).roundTrip";
        let write = "net/http.persistConnWriter.Write";
        add(
            "net/http client",
            trip,
            &[("go_round_trip", trip), ("go_conn_write", write)],
        );
        for (name, handler) in [
            ("net/http HTTP/2 server", "net/http.(*http2serverConn).runHandler"),
            ("x/net/http2 server", "golang.org/x/net/http2.(*serverConn).runHandler"),
        ] {
            add(name, handler, &[("go_run_handler", handler)]);
        }
        for (name, stream, connection) in [
            (
                "net/http HTTP/2 client",
                "net/http.(*http2clientStream)",
                "net/http.(*http2ClientConn)",
            ),
            (
                "x/net/http2 client",
                "golang.org/x/net/http2.(*clientStream)",
                "golang.org/x/net/http2.(*ClientConn)",
            ),
        ] {
            let make = format!("{stream}.writeRequest");
            let write = format!("{connection}.writeHeaders");
            let mut places = vec![("go_write_request", make.as_str()), ("go_write_headers", &write)];
            // The newer name, the older one.
            let calls = ["roundTrip", "RoundTrip"].map(|name| format!("{connection}.{name}"));
            let called = calls.iter().find(|name| self.functions.function(name).is_some());
            if goroutines.is_empty() {
                places.push(("go_client_round_trip", called.unwrap_or(&calls[0])));
            }
            add(name, &write, &places);
        }
    }

    /// `operateHeaders` has taken a context before the frame since grpc-go 1.58.
    fn takes_context(&self) -> Result<(), String> {
        match self.modules.number(GRPC) {
            Some(version) if version < (1, 58) => Err("grpc-go older than 1.58".to_owned()),
            _ => Ok(()),
        }
    }

    /// Where the handler's goroutine can be asked for its stream.
    fn handle_stream(&self, numbers: &mut Layout) -> Result<Point, String> {
        let version = self.modules.number(GRPC);
        let version = version.ok_or("the version of grpc-go is not in the program")?;
        let (id, pointer, method) = stream_offsets(version)
            .ok_or_else(|| format!("the streams of grpc-go {}.{} are not known", version.0, version.1))?;
        let point = self.entry("go_handle_stream", "google.golang.org/grpc.(*Server).handleStream")?;
        numbers[layout::HANDLE_STREAM] = 1;
        numbers[layout::STREAM_ID] = id;
        numbers[layout::STREAM_POINTER] = pointer;
        numbers[layout::STREAM_METHOD] = method;
        Ok(point)
    }
}

fn calls(instruction: &Instruction, target: u64) -> bool {
    instruction.flow_control() == FlowControl::Call && instruction.near_branch_target() == target
}

/// Follows a value from RAX through moves to the first instruction that the kernel emulates while it is in `wanted`.
fn carried(instructions: impl Iterator<Item = Instruction>, wanted: Register) -> Option<u64> {
    use crate::binary::decoder::{Mnemonic, OpKind};
    let mut facts = InstructionInfoFactory::new();
    let mut holders = vec![Register::RAX];
    for instruction in instructions.take(24) {
        let flow = instruction.flow_control();
        let direct = instruction.op0_kind() == OpKind::NearBranch64;
        let emulated = match flow {
            FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch | FlowControl::Call => direct,
            _ => false,
        };
        if emulated && holders.contains(&wanted) {
            return Some(instruction.ip());
        }
        // Past a branch the value may have come another way.
        if flow != FlowControl::Next {
            return None;
        }
        let moved = instruction.mnemonic() == Mnemonic::Mov
            && instruction.op0_kind() == OpKind::Register
            && instruction.op1_kind() == OpKind::Register
            && instruction.op0_register().is_gpr64()
            && holders.contains(&instruction.op1_register());
        for used in facts.info(&instruction).used_registers() {
            let written = !matches!(
                used.access(),
                OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess
            );
            if written {
                holders.retain(|h| *h != used.register().full_register());
            }
        }
        if moved {
            holders.push(instruction.op0_register());
        }
    }
    None
}

/// `runtime.g.m`, the same in all versions.
const G_M: u32 = 48;

/// Offsets of `runtime.g.goid`, `runtime.m.curg` and `runtime.g.parentGoid` (0: there is none), from the DWARF of each version.
fn runtime_offsets(version: Version) -> Option<(u32, u32, u32)> {
    if version.major != 1 {
        return None;
    }
    match version.minor {
        17..=20 => Some((152, 192, 0)),
        21..=22 => Some((152, 192, 272)),
        23..=24 => Some((160, 192, 280)),
        25 => Some((152, 184, 272)),
        26 => Some((152, 184, 280)),
        _ => None,
    }
}

/// Where the handler's stream has its id, whether behind a pointer, and where its path: from the sources of each version.
fn stream_offsets((major, minor): (u32, u32)) -> Option<(u32, u32, u32)> {
    match (major, minor) {
        (1, 58..=65) => Some((0, 0, 80)),
        (1, 66..=68) => Some((0, 0, 88)),
        (1, 69..=76) => Some((0, 1, 24)),
        (1, 77..=85) => Some((108, 0, 16)),
        _ => None,
    }
}
