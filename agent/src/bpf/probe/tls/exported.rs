//! Libraries whose functions have symbols: OpenSSL and its likes as shared
//! libraries or inside a program (Node), GnuTLS, netty-tcnative.

use super::{Kind, Library};
use crate::binary::decoder::{FlowControl, InstructionInfoFactory, OpAccess, Register};
use crate::binary::{Binary, Function};
use crate::bpf::probe::{Ability, Point};

/// Instructions of a wrapper before its call, at most.
const WRAPPER: usize = 12;

/// Functions of one library: what each does, and whether nothing works without it.
type Functions = [(&'static str, Kind, bool)];

const OPENSSL: &Functions = &[
    ("SSL_read", Kind::Read, true),
    ("SSL_write", Kind::Write, true),
    ("SSL_read_ex", Kind::ReadCounted, false),
    ("SSL_write_ex", Kind::WriteCounted, false),
    ("SSL_do_handshake", Kind::Handshake, false),
    ("SSL_free", Kind::Free, false),
];

const GNUTLS: &Functions = &[
    ("gnutls_record_recv", Kind::Read, true),
    ("gnutls_record_send", Kind::Write, true),
    // Sends again what was taken while corked: calls inside a call do not count, and what it
    // returns is no count of this kind.
    ("gnutls_record_uncork", Kind::WriteCounted, false),
    ("gnutls_handshake", Kind::Handshake, false),
    ("gnutls_deinit", Kind::Free, false),
];

/// What is there of them.
pub fn look(binary: &Binary) -> Vec<Library> {
    // One pass over the symbols, of which a large program has a hundred thousand.
    let wanted: Vec<&str> = OPENSSL.iter().chain(GNUTLS).map(|(symbol, ..)| *symbol).collect();
    let symbols = binary.symbols(|name| wanted.contains(&name));
    let function = |name: &str| {
        let mut found = symbols.iter().filter(|s| s.name == name).map(|s| s.function);
        let first = found.next()?;
        found.all(|other| other.address == first.address).then_some(first)
    };
    [("OpenSSL", "openssl", OPENSSL), ("GnuTLS", "gnutls", GNUTLS)]
        .into_iter()
        .filter(|(.., functions)| {
            functions
                .iter()
                .all(|(symbol, _, needed)| !needed || function(symbol).is_some())
        })
        .map(|(what, name, functions)| library(binary, &function, what, name, functions))
        .collect()
}

fn library(
    binary: &Binary,
    function: &impl Fn(&str) -> Option<Function>,
    what: &str,
    name: &'static str,
    functions: &Functions,
) -> Library {
    let mut points = Vec::new();
    let mut missing = None;
    for (symbol, kind, needed) in functions {
        let Some(found) = function(symbol) else { continue };
        let (found, kind) = match (inner(binary, function, symbol), kind) {
            (Some(inner), Kind::Read) => (inner, Kind::ReadCounted),
            (Some(inner), Kind::Write) => (inner, Kind::WriteCounted),
            (Some(inner), kind) => (inner, *kind),
            (None, kind) => (found, *kind),
        };
        match super::points(binary, found, kind) {
            Some(more) => points.extend(more),
            None if *needed => missing = Some(format!("{symbol} is no code")),
            None => {}
        }
    }
    points.sort_by_key(|p: &Point| (p.offset, p.program));
    points.dedup();
    Library {
        what: what.to_owned(),
        abilities: vec![Ability {
            name,
            points: missing.map_or(Ok(points), Err),
        }],
    }
}

/// OpenSSL's `SSL_read` and `SSL_read_ex` are wrappers of one function with the arguments of the
/// latter (`ssl_read_internal`, since 1.1.1); the same for writing. It begins with an instruction that is cheap to
/// probe where the wrappers do not. Certain only if both hand their arguments on to it untouched, and do nothing before.
fn inner(binary: &Binary, function: &impl Fn(&str) -> Option<Function>, symbol: &str) -> Option<Function> {
    let plain = symbol.strip_suffix("_ex").unwrap_or(symbol);
    if plain != "SSL_read" && plain != "SSL_write" {
        return None;
    }
    let target = wrapped(binary, function(plain)?)?;
    if wrapped(binary, function(&format!("{plain}_ex"))?)? != target {
        return None;
    }
    binary.function_at(target).filter(|f| f.address == target)
}

/// What a wrapper calls: its first call, before which it neither looks at the connection nor changes the first two arguments.
fn wrapped(binary: &Binary, function: Function) -> Option<u64> {
    let code = binary.code(function)?;
    let mut facts = InstructionInfoFactory::new();
    for instruction in code.instructions().take(WRAPPER) {
        if instruction.flow_control() == FlowControl::Call {
            return code.calls().iter().find(|c| c.at == instruction.ip()).map(|c| c.target);
        }
        let facts = facts.info(&instruction);
        let looks = facts.used_memory().iter().any(|m| m.base() == Register::RDI);
        let changes = facts.used_registers().iter().any(|r| {
            matches!(r.register().full_register(), Register::RDI | Register::RSI)
                && !matches!(r.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess)
        });
        if looks || changes {
            return None;
        }
    }
    None
}
