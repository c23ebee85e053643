//! Go's crypto/tls. Where `(*Conn).Read` hands its bytes over depends on what
//! the compiler inlined: the copy itself (`memmove`, whose arguments are all
//! one needs), else behind the call of `(*bytes.Reader).Read`, else each RET,
//! which is dear. Never by the return address: Go moves stacks.

use super::Library;
use crate::binary::decoder::{FlowControl, InstructionInfoFactory, OpAccess, Register};
use crate::binary::{Binary, Code, Function, GO_ARGUMENTS, Go, Version};
use crate::bpf::probe::{Ability, Point};

/// Oldest toolchain whose functions take their arguments in registers.
const OLDEST: Version = Version {
    major: 1,
    minor: 17,
    patch: 0,
};

/// Program on `call runtime.memmove(to, from, n)`.
const COPYING: &str = "tls_go_copying";
/// Program where AX is what `Read` returns, its frame still in BP.
const COPIED: &str = "tls_go_copied";
/// Program on a RET of `Read`.
const RETURNS: &str = "tls_go_returns";

/// crypto/tls, if the program has it.
pub fn look(binary: &Binary) -> Option<Library> {
    let go = binary.go()?;
    let read = go.function("crypto/tls.(*Conn).Read")?;
    let what = match go.version {
        Some(version) => format!("crypto/tls of {version}"),
        None => "crypto/tls of Go".to_owned(),
    };
    let points = if go.version.is_some_and(|v| v < OLDEST) {
        Err("its functions take their arguments on the stack: Go 1.17 or newer is needed".to_owned())
    } else {
        points(binary, &go, read)
    };
    Some(Library {
        what,
        abilities: vec![Ability {
            name: "crypto/tls",
            points,
        }],
    })
}

fn points(binary: &Binary, go: &Go<'_>, read: Function) -> Result<Vec<Point>, String> {
    let at = |program, address| {
        let offset = binary.offset(address).ok_or("outside the file")?;
        Ok::<_, String>(Point {
            program,
            offset,
            cookie: 0,
        })
    };
    let mut points = Vec::new();
    for (name, program) in [
        ("crypto/tls.(*Conn).clientHandshake", "tls_go_handshake"),
        ("crypto/tls.(*Conn).serverHandshake", "tls_go_handshake"),
        ("crypto/tls.(*Conn).Write", "tls_go_write"),
        ("crypto/tls.(*Conn).Read", "tls_go_read"),
    ] {
        let function = match go.function(name) {
            Some(function) => function,
            None if program == "tls_go_handshake" => continue,
            None => return Err(format!("{name} is not there: inlined or not linked")),
        };
        let (point, offset) = binary
            .probe(function, GO_ARGUMENTS)
            .ok_or_else(|| format!("{name} is no code"))?;
        if program == "tls_go_read" && point.pushed != 0 {
            return Err(format!("{name} begins in an unknown way"));
        }
        points.push(Point {
            program,
            offset,
            cookie: 0,
        });
    }
    let code = binary.code(read).ok_or("(*Conn).Read is no code")?;
    let called = |name: &str| {
        let target = go.function(name)?;
        let mut calls = code.calls().into_iter().filter(|c| c.target == target.address);
        let only = calls.next()?;
        (calls.next().is_none() && !only.tail).then_some(only.at)
    };
    if let Some(copy) = called("runtime.memmove") {
        points.push(at(COPYING, copy)?);
    } else if let Some(cheap) = called("bytes.(*Reader).Read").and_then(|call| after(&code, call)) {
        points.push(at(COPIED, cheap)?);
    } else {
        let returns = code.returns();
        if returns.is_empty() {
            return Err("the ends of (*Conn).Read were not found".to_owned());
        }
        for address in returns {
            points.push(at(RETURNS, address)?);
        }
    }
    Ok(points)
}

/// The first instruction behind a call that the kernel emulates, if AX still holds the result there.
fn after(code: &Code<'_>, call: u64) -> Option<u64> {
    let mut facts = InstructionInfoFactory::new();
    for instruction in code.instructions().skip_while(|i| i.ip() <= call).take(8) {
        if instruction.flow_control() == FlowControl::ConditionalBranch {
            return Some(instruction.ip());
        }
        let kept = instruction.flow_control() == FlowControl::Next
            && facts
                .info(&instruction)
                .used_registers()
                .iter()
                .filter(|r| r.register().full_register() == Register::RAX)
                .all(|r| matches!(r.access(), OpAccess::Read | OpAccess::CondRead));
        if !kept {
            return None;
        }
    }
    None
}
