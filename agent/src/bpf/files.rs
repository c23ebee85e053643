//! Which Unix sockets the observed processes hold: reads the kernel's iterator over their files.
//! No hook tells of the close of one.

use std::io::{ErrorKind, Read};

use aya::Ebpf;
use aya::programs::Iter;
use rustc_hash::FxHashSet;

use super::load::reason;

const PROGRAM: &str = "socket_files";

fn program(ebpf: &mut Ebpf) -> Result<&mut Iter, String> {
    ebpf.program_mut(PROGRAM)
        .and_then(|p| p.try_into().ok())
        .ok_or_else(|| format!("no program {PROGRAM}"))
}

/// Loads the iterator; it costs nothing until it is read.
pub(super) fn load(ebpf: &mut Ebpf, types: &aya::Btf) -> Result<(), String> {
    program(ebpf)?.load("task_file", types).map_err(|e| reason(&e))?;
    held(ebpf).map(drop)
}

/// Names of all Unix sockets that observed processes hold now.
pub(super) fn held(ebpf: &mut Ebpf) -> Result<FxHashSet<u64>, String> {
    let program = program(ebpf)?;
    let link = program.attach().map_err(|e| reason(&e))?;
    let link = program.take_link(link).map_err(|e| reason(&e))?;
    let mut file = link.into_file().map_err(|e| e.to_string())?;
    let mut bytes = Vec::new();
    loop {
        match file.read_to_end(&mut bytes) {
            Ok(_) => break,
            // A million files without an observed socket among them: the kernel takes a breath.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(bytes
        .as_chunks()
        .0
        .iter()
        .map(|name| u64::from_ne_bytes(*name))
        .collect())
}
