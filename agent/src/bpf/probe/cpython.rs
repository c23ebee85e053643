//! CPython's contexts: where a thread enters and leaves one, and where new
//! ones come from. The inner functions are found from the exported ones and
//! from the methods of `contextvars.Context`, which must agree.

use std::path::Path;

use tracewire_common::link::runtime;

use super::{Ability, Found, Point, Runtime};
use crate::binary::decoder::Register;
use crate::binary::{Binary, Function, SYSV_ARGUMENTS};

/// `PyTypeObject.tp_methods` and `tp_new`, `sizeof(PyMethodDef)`: the same since Python 3.8.
const METHODS: u64 = 0xe8;
const NEW: u64 = 0x138;
const METHOD: u64 = 32;

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
    let inner = calls(binary, run);
    let shared = |exported: &'static str| {
        let function = binary.symbol(exported).ok_or(format!("no {exported}"))?;
        let common: Vec<Function> = calls(binary, function)
            .into_iter()
            .filter(|f| inner.contains(f))
            .collect();
        match common[..] {
            [function] => Ok(function),
            _ => Err(format!("what {exported} and Context.run have in common is not clear")),
        }
    };
    let (enter, exit) = (shared("PyContext_Enter")?, shared("PyContext_Exit")?);
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
    let probe = |program, function| {
        let (_, offset) = binary
            .probe(function, &SYSV_ARGUMENTS[..2])
            .ok_or(format!("{program} has no place in its function"))?;
        Ok::<_, String>(Point {
            program,
            offset,
            cookie: 0,
        })
    };
    let at_return = |program, function: Function| {
        let offset = binary.offset(function.address).ok_or("no offset")?;
        Ok::<_, String>(Point {
            program,
            offset,
            cookie: 0,
        })
    };
    debug_assert!(SYSV_ARGUMENTS.starts_with(&[Register::RDI, Register::RSI]));
    Ok(vec![
        probe("py_context_enter", enter)?,
        probe("py_context_exit", exit)?,
        at_return("py_context_copied", copy)?,
        at_return("py_context_new", empty)?,
    ])
}

/// Functions that this one calls or goes on in.
fn calls(binary: &Binary, function: Function) -> Vec<Function> {
    let mut found: Vec<Function> = binary
        .code(function)
        .map(|code| code.calls())
        .unwrap_or_default()
        .iter()
        .filter_map(|call| binary.function_at(call.target).filter(|f| f.address == call.target))
        .collect();
    found.sort_unstable();
    found.dedup();
    found
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
        let Ok(binary) = Binary::open("/usr/bin/python3") else {
            return;
        };
        if binary.variable("PyContext_Type").is_none() {
            return;
        }
        let points = places(&binary);
        assert_eq!(points.as_ref().map(Vec::len), Ok(4), "{points:?}");
    }
}
