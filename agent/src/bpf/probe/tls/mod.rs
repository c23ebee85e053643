//! TLS libraries: where a program gives its plaintext away and takes it back.
//!
//! Bias: what is not certain to be the function is not probed; its library is
//! named by `tracewire check --pid`, with the reason.

use std::path::Path;

use aya::Ebpf;
use aya::maps::ProgramArray;
use aya::programs::UProbe;
use tracewire_common::link::runtime::{self, LAYOUT};

use super::{Ability, Found, Point, Runtime};
use crate::binary::{Binary, Cache, Function, SYSV_ARGUMENTS};

mod boring;
mod exported;
mod go;
mod rustls;

/// Parts of the names of libraries that may hold a TLS library.
const NAMES: &[&str] = &["ssl", "tls", "tcnative", "grpc", "conscrypt", "curl"];

/// All TLS libraries. What was found is kept by build id: netty unpacks its library anew in each process.
#[derive(Default)]
pub struct Tls {
    known: Cache<Option<Found>>,
}

impl Runtime for Tls {
    fn number(&self) -> u32 {
        runtime::TLS
    }

    fn may_be_in(&self, path: &Path, main: bool) -> bool {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        main || NAMES.iter().any(|part| name.contains(part))
    }

    fn look(&self, binary: &Binary) -> Option<Found> {
        (*self.known.of(binary, look)).clone()
    }

    fn prepare(&self, ebpf: &mut Ebpf) -> Result<(), String> {
        let name = "tls_plaintext";
        let program: &mut UProbe = ebpf
            .program_mut(name)
            .and_then(|p| p.try_into().ok())
            .ok_or_else(|| format!("no program {name}"))?;
        if program.fd().is_ok() {
            return Ok(());
        }
        program
            .load()
            .map_err(|e| format!("the kernel refused {name}: {}", crate::bpf::load::reason(&e)))?;
        let fd = program
            .fd()
            .and_then(|fd| Ok(fd.try_clone()?))
            .map_err(|e| crate::bpf::load::chain(&e))?;
        let mut programs = ebpf
            .map_mut("TLS_PROGRAMS")
            .and_then(|m| ProgramArray::try_from(m).ok())
            .ok_or("no map TLS_PROGRAMS")?;
        programs.set(0, &fd, 0).map_err(|e| crate::bpf::load::chain(&e))
    }
}

fn look(binary: &Binary) -> Option<Found> {
    let mut libraries = exported::look(binary);
    // The searches that read the whole file come last.
    if libraries.is_empty() {
        libraries.extend(go::look(binary));
    }
    if libraries.is_empty() {
        libraries.extend(boring::look(binary));
    }
    if binary.go_version().is_none() {
        libraries.extend(rustls::look(binary));
    }
    if libraries.is_empty() {
        return None;
    }
    let what: Vec<String> = libraries.iter().map(|l| l.what.clone()).collect();
    Some(Found {
        what: what.join(", "),
        layout: [0; LAYOUT],
        abilities: libraries.into_iter().flat_map(|l| l.abilities).collect(),
    })
}

/// One TLS library in a file.
struct Library {
    what: String,
    abilities: Vec<Ability>,
}

/// What a function does, by the program at its entry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    ReadCounted,
    Write,
    WriteCounted,
    Handshake,
    Free,
}

impl Kind {
    fn program(self) -> &'static str {
        match self {
            Kind::Read => "tls_read",
            Kind::ReadCounted => "tls_read_counted",
            Kind::Write => "tls_write",
            Kind::WriteCounted => "tls_write_counted",
            Kind::Handshake => "tls_handshake",
            Kind::Free => "tls_free",
        }
    }
}

/// The probes on a C function. The return's must stand where the return address is on top of the
/// stack, and the entry's stands with it, so that one breakpoint does for both.
fn points(binary: &Binary, function: Function, kind: Kind) -> Option<Vec<Point>> {
    let (point, offset) = binary.probe(function, SYSV_ARGUMENTS)?;
    let at = |program, offset| Point {
        program,
        offset,
        cookie: 0,
    };
    if kind == Kind::Free {
        return Some(vec![at(kind.program(), offset)]);
    }
    let offset = if point.pushed == 0 {
        offset
    } else {
        binary.offset(function.address)?
    };
    Some(vec![at("tls_returned", offset), at(kind.program(), offset)])
}
