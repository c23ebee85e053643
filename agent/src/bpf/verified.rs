//! What the kernel's verifier goes through for each program, in each way in
//! which an agent loads it. Nothing is attached. Bias: what can't be loaded here
//! is named, and not taken for small.

use std::collections::BTreeMap;

use aya::programs::{Program, ProgramError};
use serde::Serialize;

use super::load::{Error, Request, chain, open, reason, version};

/// A program as it is loaded in some way.
#[derive(Clone, Debug, Serialize)]
pub struct Verified {
    /// Its name.
    pub name: String,
    /// The way: what is asked of the agent, or what the kernel lacks.
    pub way: &'static str,
    /// Instructions that the verifier went through (kernels from 5.16 on say it).
    pub instructions: Option<u32>,
    /// Why this kernel refused it.
    pub refused: Option<String>,
}

/// A kernel without the helpers that are asked for where they are there.
const OLD: (u32, u32) = (5, 10);

/// Every way that makes other programs of the same code: what is off is not walked by the verifier.
fn ways() -> [(&'static str, Request, (u32, u32)); 5] {
    let plain = Request {
        choose_new: true,
        match_ports: true,
        ring_bytes: 64 * 1024,
        connections: 64,
        ..Request::default()
    };
    let inject = Request { inject: true, ..plain };
    let log = Request { log: true, ..plain };
    let both = Request { log: true, ..inject };
    [
        ("plain", plain, version()),
        ("inject", inject, version()),
        ("log", log, version()),
        ("inject and log", both, version()),
        ("without newer helpers", both, OLD),
    ]
}

/// Loads all programs in all ways.
///
/// # Errors
/// When their maps can't be made.
pub fn all() -> Result<Vec<Verified>, Error> {
    let types = aya::Btf::from_sys_fs().map_err(|e| Error::Load(chain(&e)))?;
    let mut all = Vec::new();
    for (way, request, version) in ways() {
        let mut ebpf = open(&request, version, &types)?;
        let found: BTreeMap<String, _> = ebpf
            .programs_mut()
            .map(|(name, program)| (name.to_owned(), load(name, program, &types)))
            .collect();
        all.extend(found.into_iter().map(|(name, found)| Verified {
            name,
            way,
            instructions: found.as_ref().ok().copied().flatten(),
            refused: found.err(),
        }));
    }
    Ok(all)
}

/// Loads one; how many instructions the verifier went through.
fn load(name: &str, program: &mut Program, types: &aya::Btf) -> Result<Option<u32>, String> {
    let loaded = match program {
        Program::BtfTracePoint(program) => program.load(hook(name), types),
        Program::FExit(program) => program.load(hook(name), types),
        Program::RawTracePoint(program) => program.load(),
        Program::UProbe(program) => program.load(),
        Program::SkMsg(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::Iter(program) => program.load("task_file", types),
        _ => Err(ProgramError::UnexpectedProgramType),
    };
    loaded.map_err(|e| reason(&e))?;
    let info = program.info().map_err(|e| reason(&e))?;
    Ok(info.verified_instruction_count())
}

/// The tracepoint or function of a program, which most are named after.
fn hook(name: &str) -> &str {
    match name {
        "sock_send_again" => "sock_send_length",
        "sock_recv_again" => "sock_recv_length",
        "tcp_recvmsg_flags" | "tcp_recvmsg_nonblock" => "tcp_recvmsg",
        name => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_is_another() {
        let ways = ways();
        for (i, (name, request, version)) in ways.iter().enumerate() {
            for (other, request_of_other, version_of_other) in &ways[i + 1..] {
                assert_ne!(name, other);
                let same = (request.inject, request.log, version)
                    == (request_of_other.inject, request_of_other.log, version_of_other);
                assert!(!same, "{name} and {other}");
            }
        }
    }
}
