//! CPython's contexts: where a thread enters and leaves one, and where new
//! ones come from. The inner functions are found from the exported ones and
//! from the methods of `contextvars.Context`, which must agree.

use std::path::Path;

use tracewire_common::link::runtime;

use super::{Ability, Found, Point, Runtime};
use crate::binary::decoder::{FlowControl, Instruction, Mnemonic, OpKind, Register};
use crate::binary::{Binary, Code, Function, SYSV_ARGUMENTS};

/// `PyTypeObject.tp_methods` and `tp_new`, `sizeof(PyMethodDef)`: the same since Python 3.8.
const METHODS: u64 = 0xe8;
const NEW: u64 = 0x138;
const METHOD: u64 = 32;
/// `PyContext.ctx_prev`
const PREVIOUS: u64 = 16;

/// See the module.
pub struct CPython;

impl Runtime for CPython {
    fn number(&self) -> u32 {
        runtime::CPYTHON
    }

    fn may_be_in(&self, path: &Path, _main: bool) -> bool {
        let name = path.file_name().map(|name| name.to_string_lossy());
        name.is_some_and(|name| name.starts_with("python") || name.starts_with("libpython"))
    }

    fn look(&self, binary: &Binary) -> Option<Found> {
        binary.variable("PyContext_Type")?;
        Some(Found {
            what: "CPython".to_owned(),
            layout: [0; runtime::LAYOUT],
            abilities: vec![Ability {
                name: "Python contexts",
                points: places(binary),
            }],
        })
    }
}

/// greenlet switches stacks under Python, so that a thread's order of events means nothing. Nothing is probed in it.
pub struct Greenlet;

impl Runtime for Greenlet {
    fn number(&self) -> u32 {
        runtime::GREENLET
    }

    fn may_be_in(&self, path: &Path, _main: bool) -> bool {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("_greenlet"))
    }

    fn look(&self, _binary: &Binary) -> Option<Found> {
        Some(Found {
            what: "greenlet: calls of Python are ambiguous with it".to_owned(),
            layout: [0; runtime::LAYOUT],
            abilities: Vec::new(),
        })
    }
}

fn places(binary: &Binary) -> Result<Vec<Point>, String> {
    let class = binary.variable("PyContext_Type").ok_or("no PyContext_Type")?;
    let run = method(binary, class, b"run\0").ok_or("Context.run is not found")?;
    let mut points = changes(binary, run)?;
    let (_, running) = binary
        .probe(run, SYSV_ARGUMENTS.get(..2).unwrap_or_default())
        .ok_or("Context.run has no place for a probe")?;
    points.push(Point {
        program: "py_context_run",
        offset: running,
        cookie: 0,
    });
    let copy = binary
        .symbol("PyContext_CopyCurrent")
        .ok_or("no PyContext_CopyCurrent")?;
    let new = binary.symbol("PyContext_New").ok_or("no PyContext_New")?;
    let constructor = pointed(binary, class + NEW).ok_or("Context.__new__ is not found")?;
    // The exported function may be nothing but a jump to it.
    let made: Vec<Function> = calls(binary, constructor)
        .into_iter()
        .filter(|f| *f == new || calls(binary, new).contains(f))
        .collect();
    let [empty] = made[..] else {
        return Err("where new contexts are made is not clear".to_owned());
    };
    for (program, function) in [("py_context_copied", copy), ("py_context_new", empty)] {
        points.push(Point {
            program,
            offset: binary.offset(function.address).ok_or("no offset")?,
            cookie: 0,
        });
    }
    Ok(points)
}

/// Where the current context changes: in functions that `Context.run` and the exported ones share, or, where the
/// compiler put them into it, in `Context.run` itself.
fn changes(binary: &Binary, run: Function) -> Result<Vec<Point>, String> {
    let inner = calls(binary, run);
    let shared = |exported: &str| {
        let common: Vec<Function> = calls(binary, binary.symbol(exported)?)
            .into_iter()
            .filter(|f| inner.contains(f))
            .collect();
        match common[..] {
            [function] => binary.probe(function, SYSV_ARGUMENTS.get(..2)?),
            _ => None,
        }
    };
    let point = |program, offset, register: Register| Point {
        program,
        offset,
        cookie: u64::try_from(register.number()).unwrap_or(u64::MAX),
    };
    if let (Some((_, enter)), Some((_, exit))) = (shared("PyContext_Enter"), shared("PyContext_Exit")) {
        return Ok(vec![
            point("py_context_enter", enter, Register::RSI),
            point("py_context_exit", exit, Register::RSI),
        ]);
    }
    // Then the exported ones have the same in them, or are what it calls.
    let exported = |name: &str| {
        let function = binary.symbol(name)?;
        binary.probe(function, SYSV_ARGUMENTS.get(..1)?)
    };
    let (Some((_, entered)), Some((_, left))) = (exported("PyContext_Enter"), exported("PyContext_Exit")) else {
        return Err("no PyContext_Enter or PyContext_Exit".to_owned());
    };
    let mut points = vec![
        point("py_context_enter", entered, Register::RDI),
        point("py_context_exit", left, Register::RDI),
    ];
    let called = |name: &str| binary.symbol(name).is_some_and(|function| inner.contains(&function));
    if called("PyContext_Enter") && called("PyContext_Exit") {
        return Ok(points);
    }
    let code = binary.code(run).ok_or("Context.run is not code")?;
    let all: Vec<Instruction> = code.instructions().collect();
    let place = |i: &Instruction| (i.memory_base(), i.memory_displacement64());
    let stores: Vec<usize> = (0..all.len())
        .filter(|n| all.get(*n).is_some_and(stores_word))
        .collect();
    // Given twice, read at least twice: the thread state's current context.
    let twice: Vec<usize> = stores
        .iter()
        .copied()
        .filter(|n| {
            all.get(*n).is_some_and(|i| {
                let same = |m: &&usize| all.get(**m).is_some_and(|other| place(other) == place(i));
                let reads = all.iter().filter(|other| reads_word(other) && place(other) == place(i));
                stores.iter().filter(same).count() == 2 && reads.count() >= 2
            })
        })
        .collect();
    let [enter, exit] = twice[..] else {
        return Err("where Context.run changes the current context is not clear".to_owned());
    };
    for store in [enter, exit] {
        let found = behind(&all, store).or_else(|| before(&all, store));
        let (program, address, register) =
            found.ok_or("Context.run has no place where it changes the current context")?;
        points.push(point(program, binary.offset(address).ok_or("no offset")?, register));
    }
    Ok(points)
}

/// The branch behind the change of the current context, where a register still holds the new one.
fn behind(all: &[Instruction], store: usize) -> Option<(&'static str, u64, Register)> {
    let held = all.get(store)?.op1_register();
    let branch = all
        .get(store + 1..)?
        .iter()
        .take(12)
        .take_while(|i| i.op0_kind() != OpKind::Register || i.op0_register().full_register() != held)
        .find(|i| i.flow_control() != FlowControl::Next)
        .filter(|i| i.flow_control() == FlowControl::ConditionalBranch)?;
    Some(("py_context_set", branch.ip(), held))
}

/// The branch before a change back, where a register holds the context that is left: it has proven to be the
/// current one, and the one before it is read from it next.
fn before(all: &[Instruction], store: usize) -> Option<(&'static str, u64, Register)> {
    let [branch, load] = all.get(store.checked_sub(2)?..store)? else {
        return None;
    };
    let from = load.memory_base();
    let loads = reads_word(load) && load.op0_register() == all.get(store)?.op1_register();
    let right = loads && load.memory_displacement64() == PREVIOUS && from.is_gpr64();
    (right && branch.flow_control() == FlowControl::ConditionalBranch).then_some(("py_context_exit", branch.ip(), from))
}

/// `mov [register + displacement], register`, eight bytes
fn stores_word(i: &Instruction) -> bool {
    i.mnemonic() == Mnemonic::Mov
        && i.op0_kind() == OpKind::Memory
        && i.op1_kind() == OpKind::Register
        && i.op1_register().size() == 8
        && i.memory_index() == Register::None
        && i.memory_displacement64() >= 0x40
        && i.memory_base() != Register::RSP
}

fn reads_word(i: &Instruction) -> bool {
    i.mnemonic() == Mnemonic::Mov
        && i.op1_kind() == OpKind::Memory
        && i.op0_kind() == OpKind::Register
        && i.memory_index() == Register::None
}

/// Functions that this one calls or goes on in, by way of the linkage table too.
fn calls(binary: &Binary, function: Function) -> Vec<Function> {
    let mut found: Vec<Function> = binary
        .code(function)
        .map(|code| code.calls())
        .unwrap_or_default()
        .iter()
        .filter_map(|call| linked(binary, call.target).or_else(|| begins(binary, call.target)))
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

fn begins(binary: &Binary, address: u64) -> Option<Function> {
    binary.function_at(address).filter(|f| f.address == address)
}

/// Where an entry of the linkage table leads: `jmp [rip + …]`, maybe after an `endbr64`.
fn linked(binary: &Binary, address: u64) -> Option<Function> {
    let jump = Code::new(address, binary.at(address, 16)?)
        .instructions()
        .take(2)
        .find(|i| i.flow_control() == FlowControl::IndirectBranch && i.is_ip_rel_memory_operand())?;
    let target = binary.pointers_at(&[jump.ip_rel_memory_address()]).pop()??;
    begins(binary, target)
}

fn pointed(binary: &Binary, at: u64) -> Option<Function> {
    let address = binary.pointers_at(&[at]).pop()??;
    binary.function_at(address).filter(|f| f.address == address)
}

fn method(binary: &Binary, class: u64, name: &[u8]) -> Option<Function> {
    let table = binary.pointers_at(&[class.checked_add(METHODS)?]).pop()??;
    for n in 0..32 {
        let entry = table.checked_add(n * METHOD)?;
        let ends = binary.pointers_at(&[entry, entry.checked_add(8)?]);
        let [Some(text), Some(function)] = ends[..] else {
            return None;
        };
        if binary.at(text, name.len()) == Some(name) {
            return binary.function_at(function).filter(|f| f.address == function);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_are_found_in_a_stripped_python() {
        let mut paths = vec!["/usr/bin/python3".to_owned()];
        let more = std::env::var("TRACEWIRE_PYTHONS");
        paths.extend(more.iter().flat_map(|list| list.split(':').map(str::to_owned)));
        for path in paths {
            let Ok(binary) = Binary::open(&path) else { continue };
            if binary.variable("PyContext_Type").is_some() {
                let points = places(&binary);
                // Where the compiler put the changes of the current context into three functions, each has its own.
                let right = points.as_ref().is_ok_and(|points| [5, 7].contains(&points.len()));
                assert!(right, "{path} {points:x?}");
                println!("{path} {points:x?}");
            }
        }
    }
}
