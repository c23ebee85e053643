//! rustls in a Rust program with symbols: where it keeps what it decrypted, and
//! the writing functions of the streams on it. What these are called depends on
//! what the compiler put into what: each function that calls rustls's writer
//! must be a `poll_write` (or `poll_write_vectored`) of tokio's, hyper's or
//! futures' trait for writing, whose arguments are known.
//!
//! Bias: the decrypted bytes are taken from an argument whose layout is Rust's
//! own, so the function's code must use it as such; a stripped program is not
//! followed, and says so.

use super::Library;
use crate::binary::decoder::{FlowControl, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};
use crate::binary::{Binary, Code, Function, Symbol, Targets};
use crate::bpf::probe::{Ability, Point};

/// Parts of the names of functions that are looked at, as they are mangled.
const PARTS: &[&str] = &[
    "take_received_plaintext",
    "poll_write",
    "write_to",
    "PlaintextSink",
    "conn..Writer",
    "connection..Writer",
    "conn6Writer",
    "connection6Writer",
    "send_plaintext",
    "buffer_plaintext",
];

/// rustls, if the program has it.
pub fn look(binary: &Binary) -> Option<Library> {
    let versions = versions(binary);
    if versions.is_empty() {
        return None;
    }
    let symbols = Symbols(
        binary
            .symbols(|name| PARTS.iter().any(|part| name.contains(part)))
            .into_iter()
            .map(|symbol| (symbol.demangled(), symbol))
            .collect(),
    );
    let older: Vec<String> = versions.iter().filter(|version| is_older(version)).cloned().collect();
    let program = Program {
        binary,
        symbols,
        mixed: !older.is_empty(),
    };
    let mut abilities = Vec::new();
    if !older.is_empty() {
        abilities.push(Ability {
            name: "older rustls",
            points: Err(format!(
                "{} has no place where all it decrypts passes: 0.23 is needed",
                older.join(", ")
            )),
        });
    }
    if older.len() == versions.len() {
        return Some(Library {
            what: format!("rustls {}", versions.join(", ")),
            abilities,
        });
    }
    let (points, others) = match program.readers().and_then(|readers| Ok((readers, program.writers()?))) {
        Ok((mut points, (writers, others))) => {
            points.extend(writers);
            (Ok(points), others)
        }
        Err(reason) => (Err(reason), Vec::new()),
    };
    abilities.push(Ability { name: "rustls", points });
    if !others.is_empty() {
        abilities.push(Ability {
            name: "rustls, what else writes",
            points: Err(format!("not followed in {}", binary.names_of(&others).join(", "))),
        });
    }
    Some(Library {
        what: format!("rustls {}", versions.join(", ")),
        abilities,
    })
}

/// The versions by the paths of sources, which are there for messages of panics.
fn versions(binary: &Binary) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let bytes = binary.bytes();
    for at in memchr::memmem::find_iter(bytes, b"/rustls-0.") {
        let rest = bytes.get(at + 8..at + 28).unwrap_or_default();
        let version = rest.split(|byte| *byte == b'/').next().unwrap_or_default();
        if let Ok(version) = std::str::from_utf8(version)
            && version.len() < rest.len()
            && version.split('.').count() >= 3
            && !found.iter().any(|known| known == version)
        {
            found.push(version.to_owned());
        }
    }
    found.sort();
    found
}

/// Versions before 0.23 append what they decrypt wherever the compiler put that.
fn is_older(version: &str) -> bool {
    let minor = version.split('.').nth(1).and_then(|minor| minor.parse().ok());
    minor.is_none_or(|minor: u32| minor < 23)
}

struct Symbols(Vec<(String, Symbol)>);

impl Symbols {
    fn functions(&self, wanted: impl Fn(&str) -> bool) -> Vec<Function> {
        let mut found: Vec<Function> = self
            .0
            .iter()
            .filter(|(name, _)| wanted(name))
            .map(|(_, symbol)| symbol.function)
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    fn name(&self, function: Function) -> Option<&str> {
        let symbol = self.0.iter().find(|(_, s)| s.function.address == function.address);
        symbol.map(|(name, _)| name.as_str())
    }
}

struct Program<'a> {
    binary: &'a Binary,
    symbols: Symbols,
    /// An older version is in the program too.
    mixed: bool,
}

impl Program<'_> {
    fn readers(&self) -> Result<Vec<Point>, String> {
        let readers = self
            .symbols
            .functions(|name| name.contains("::CommonState") && name.ends_with("::take_received_plaintext"));
        if readers.is_empty() {
            return Err("no symbol CommonState::take_received_plaintext (stripped, or inlined)".to_owned());
        }
        if self.mixed && readers.len() > 1 {
            return Err("which take_received_plaintext is of which version is not certain".to_owned());
        }
        readers
            .into_iter()
            .map(|function| {
                let code = self.binary.code(function).ok_or("take_received_plaintext is no code")?;
                if !hands_on(&code) {
                    return Err("take_received_plaintext does not use its bytes as it should".to_owned());
                }
                let (_, offset) = self
                    .binary
                    .probe(function, &[Register::RSI])
                    .ok_or("take_received_plaintext is no code")?;
                Ok(Point {
                    program: "tls_rust_decrypted",
                    offset,
                    cookie: 0,
                })
            })
            .collect()
    }

    /// The probes of the writing functions, and who else calls the writer.
    fn writers(&self) -> Result<(Vec<Point>, Vec<Function>), String> {
        let of = |wanted: &dyn Fn(&str, &str) -> bool| {
            self.symbols.functions(|name| {
                name.rsplit_once("::")
                    .is_some_and(|(holder, method)| wanted(holder, method))
            })
        };
        let writes = |holder: &str, method: &str| {
            ["write", "write_vectored"].contains(&method)
                && (holder.contains("PlaintextSink") || holder.contains("rustls::conn::") && holder.contains("Writer"))
        };
        let sinks = of(&|holder, method| writes(holder, method) && holder.contains("conn::connection::"));
        let older = of(&|holder, method| writes(holder, method) && !holder.contains("conn::connection::"));
        let counting = of(&|holder, method| {
            ["send_plaintext", "buffer_plaintext"].contains(&method) && holder.contains("rustls::")
        });
        let sends = of(&|holder, method| method == "write_to" && holder.contains("::ChunkVecBuffer"));
        let own: Vec<Function> = sinks.iter().chain(&counting).copied().collect();
        if own.is_empty() || sends.is_empty() {
            return Err("no symbol of rustls's writer (stripped, or inlined)".to_owned());
        }
        let calls = Calls {
            sink: self.binary.targets(&sinks),
            counting: self.binary.targets(&counting),
            send: self.binary.targets(&sends),
        };
        let (mut points, mut others) = (Vec::new(), Vec::new());
        for function in self.binary.users_of(&self.binary.targets(&own)) {
            if own.iter().chain(&older).any(|own| own.address == function.address) {
                continue;
            }
            let name = self.symbols.name(function).unwrap_or_default();
            match kind(name) {
                Some(program) => points.extend(self.writer(function, program, &calls)?),
                None => others.push(function),
            }
        }
        if points.is_empty() {
            return Err("no function that writes a stream calls rustls's writer".to_owned());
        }
        Ok((points, others))
    }

    fn writer(&self, function: Function, program: &'static str, calls: &Calls) -> Result<Vec<Point>, String> {
        let lacking = |what: &str| {
            let name = self.symbols.name(function).unwrap_or_default();
            format!("{what} in {name}")
        };
        let code = self.binary.code(function).ok_or_else(|| lacking("no code"))?;
        let at = |program, offset| Point {
            program,
            offset,
            cookie: 0,
        };
        let (_, entry) = self
            .binary
            .probe(function, &[Register::RDI, Register::RDX, Register::RCX])
            .ok_or_else(|| lacking("no code"))?;
        let behind = |program, targets, kept: &[Register]| {
            code.calls_of(targets)
                .into_iter()
                .map(|call| {
                    let place = code
                        .branch_after(call, kept)
                        .and_then(|place| self.binary.offset(place));
                    place.map(|offset| at(program, offset))
                })
                .collect::<Option<Vec<_>>>()
                .ok_or_else(|| lacking("no place for a probe behind a call"))
        };
        let mut accepted = behind("tls_rust_accepted", &calls.sink, &[Register::RAX, Register::RDX])?;
        accepted.extend(behind("tls_rust_counted", &calls.counting, &[Register::RAX])?);
        let sent = behind("tls_rust_sent", &calls.send, &[])?;
        if accepted.is_empty() || sent.is_empty() {
            return Err(lacking("calls that can't be told"));
        }
        let mut points = vec![at(program, entry)];
        points.extend(accepted);
        points.extend(sent);
        Ok(points)
    }
}

/// What a writing function calls.
struct Calls {
    /// What returns an `io::Result` of how much was accepted.
    sink: Targets,
    /// What returns how much was accepted.
    counting: Targets,
    /// What sends.
    send: Targets,
}

/// The program for a function's entry, if its name tells its arguments.
fn kind(name: &str) -> Option<&'static str> {
    let (holder, method) = name.rsplit_once("::")?;
    if !["AsyncWrite", "::io::Write"].iter().any(|part| holder.contains(part)) {
        return None;
    }
    let borrowed = holder.contains("rustls::common::Stream<");
    match (method, borrowed) {
        ("poll_write", false) => Some("tls_rust_writes"),
        ("poll_write", true) => Some("tls_rust_writes_borrowed"),
        ("poll_write_vectored", false) => Some("tls_rust_writes_vectored"),
        ("poll_write_vectored", true) => Some("tls_rust_writes_borrowed_vectored"),
        _ => None,
    }
}

/// Whether a function that gets an owner of bytes by address in RSI takes the words at 8 and 16 of it for their
/// address and length: it copies them so, or stores the three words in a row elsewhere.
fn hands_on(code: &Code<'_>) -> bool {
    let mut facts = InstructionInfoFactory::new();
    // Words of the owner in registers, by their offset; the argument itself; words stored, by register and offset.
    let mut holds: Vec<(Register, u64)> = Vec::new();
    let mut arguments = vec![Register::RSI];
    let mut stored: Vec<(Register, u64, u64)> = Vec::new();
    for instruction in code.instructions() {
        let held = |register: Register| holds.iter().find(|(r, _)| *r == register).map(|(_, word)| *word);
        if matches!(
            instruction.flow_control(),
            FlowControl::Call | FlowControl::IndirectCall
        ) {
            if held(Register::RSI) == Some(8) && held(Register::RDX) == Some(16) {
                return true;
            }
            let kept = |register: &Register| {
                matches!(
                    register,
                    Register::RBX | Register::RBP | Register::R12 | Register::R13 | Register::R14 | Register::R15
                )
            };
            holds.retain(|(register, _)| kept(register));
            arguments.retain(kept);
            continue;
        }
        let moves = instruction.mnemonic() == Mnemonic::Mov;
        let (to, from) = (
            instruction.op0_kind(),
            instruction.op_kind(1.min(instruction.op_count().saturating_sub(1))),
        );
        let loaded = if moves && to == OpKind::Register && from == OpKind::Memory {
            (arguments.contains(&instruction.memory_base()) && instruction.memory_index() == Register::None)
                .then(|| instruction.memory_displacement64())
        } else if moves && to == OpKind::Register && from == OpKind::Register {
            held(instruction.op1_register())
        } else {
            None
        };
        let copied = moves
            && to == OpKind::Register
            && from == OpKind::Register
            && arguments.contains(&instruction.op1_register());
        if moves
            && to == OpKind::Memory
            && from == OpKind::Register
            && let Some(word) = held(instruction.op1_register())
        {
            stored.push((instruction.memory_base(), instruction.memory_displacement64(), word));
            let whole = |(base, at, word): &(Register, u64, u64)| {
                let has = |at, word| stored.contains(&(*base, at, word));
                *word == 0 && has(at.wrapping_add(8), 8) && has(at.wrapping_add(16), 16)
            };
            if stored.iter().any(whole) {
                return true;
            }
        }
        for used in facts.info(&instruction).used_registers() {
            if !matches!(
                used.access(),
                OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess
            ) {
                let register = used.register().full_register();
                holds.retain(|(r, _)| *r != register);
                arguments.retain(|r| *r != register);
            }
        }
        if let Some(word) = loaded {
            holds.push((instruction.op0_register(), word));
        }
        if copied {
            arguments.push(instruction.op0_register());
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_functions_whose_arguments_are_known_are_writers() {
        let stream = "<tokio_rustls::common::Stream<IO,C> as tokio::io::async_write::AsyncWrite>";
        assert_eq!(kind(&format!("{stream}::poll_write")), Some("tls_rust_writes_borrowed"));
        let io = "<hyper_util::rt::tokio::TokioIo<T> as hyper::rt::io::Write>";
        let vectored = format!("{io}::poll_write_vectored");
        assert_eq!(kind(&vectored), Some("tls_rust_writes_vectored"));
        assert_eq!(kind(&format!("{io}::poll_flush")), None);
        assert_eq!(
            kind("hyper::proto::h1::dispatch::Dispatcher<D,Bs,I,T>::poll_write"),
            None
        );
        assert_eq!(kind(""), None);
    }

    #[test]
    fn versions_before_0_23_are_older() {
        assert!(is_older("0.21.12") && is_older("0.22.4") && is_older("none"));
        assert!(!is_older("0.23.5"));
    }

    /// A function that takes an owner of bytes in RSI and does with it what these instructions do.
    fn takes(bytes: &[u8]) -> bool {
        hands_on(&Code::new(0x1000, bytes))
    }

    #[test]
    fn an_owner_of_bytes_is_told_by_what_is_done_with_it() {
        let load = [
            0x4c, 0x8b, 0x26, // mov r12, [rsi]
            0x48, 0x8b, 0x5e, 0x08, // mov rbx, [rsi+8]
            0x4c, 0x8b, 0x76, 0x10, // mov r14, [rsi+16]
        ];
        let copy = [
            0x48, 0x89, 0xde, // mov rsi, rbx
            0x4c, 0x89, 0xf2, // mov rdx, r14
            0xe8, 0, 0, 0, 0, // call
        ];
        let store = [
            0x4c, 0x89, 0x21, // mov [rcx], r12
            0x48, 0x89, 0x59, 0x08, // mov [rcx+8], rbx
            0x4c, 0x89, 0x71, 0x10, // mov [rcx+16], r14
        ];
        assert!(takes(&[&load[..], &copy].concat()));
        assert!(takes(&[&load[..], &store].concat()));
        // xor ebx, ebx: it is no longer what was loaded.
        assert!(!takes(&[&load[..], &[0x31, 0xdb], &copy].concat()));
        assert!(!takes(&load));
    }
}
