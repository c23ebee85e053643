//! Libraries whose functions have symbols: OpenSSL and its likes as shared
//! libraries or inside a program (Node), GnuTLS, netty-tcnative.

use super::{Kind, Library, points};
use crate::binary::{Binary, Function};
use crate::bpf::probe::{Ability, Point};

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
    ("gnutls_handshake", Kind::Handshake, false),
    ("gnutls_deinit", Kind::Free, false),
];

/// What is there of them.
pub fn look(binary: &Binary) -> Vec<Library> {
    let mut libraries = Vec::new();
    for (what, name, functions) in [("OpenSSL", "openssl", OPENSSL), ("GnuTLS", "gnutls", GNUTLS)] {
        let there = functions
            .iter()
            .filter(|(.., needed)| *needed)
            .all(|(symbol, ..)| binary.symbol(symbol).is_some());
        if there {
            libraries.push(library(binary, what, name, functions));
        }
    }
    libraries
}

fn library(binary: &Binary, what: &str, name: &'static str, functions: &Functions) -> Library {
    let found = functions.iter().filter_map(|(symbol, kind, needed)| {
        let function = binary.symbol(symbol)?;
        Some((*symbol, function, *kind, *needed))
    });
    let mut all = Ok(Vec::new());
    for (symbol, mut function, mut kind, needed) in found {
        if let Some(inner) = inner(binary, symbol) {
            function = inner;
            kind = match kind {
                Kind::Read => Kind::ReadCounted,
                Kind::Write => Kind::WriteCounted,
                other => other,
            };
        }
        match (points(binary, function, kind), &mut all) {
            (Some(points), Ok(all)) => all.extend(points),
            (None, all) if needed => *all = Err(format!("{symbol} is no code")),
            _ => {}
        }
    }
    if let Ok(points) = &mut all {
        let key = |p: &Point| (p.offset, p.program);
        points.sort_by_key(key);
        points.dedup();
    }
    Library {
        what: what.to_owned(),
        abilities: vec![Ability { name, points: all }],
    }
}

/// OpenSSL's `SSL_read` and `SSL_read_ex` are wrappers of one function with the arguments of the
/// latter (`ssl_read_internal`, since 1.1.1); the same for writing. It begins with an instruction that is cheap to
/// probe where the wrappers do not. Certain only if both call it, and nothing before.
fn inner(binary: &Binary, symbol: &str) -> Option<Function> {
    let plain = symbol.strip_suffix("_ex").unwrap_or(symbol);
    if plain != "SSL_read" && plain != "SSL_write" {
        return None;
    }
    let first_call = |name: &str| {
        let code = binary.code(binary.symbol(name)?)?;
        Some(code.calls().first()?.target)
    };
    let target = first_call(plain)?;
    if first_call(&format!("{plain}_ex"))? != target {
        return None;
    }
    binary.function_at(target).filter(|f| f.address == target)
}
