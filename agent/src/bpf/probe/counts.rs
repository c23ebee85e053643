//! Code that asks a socket how many bytes it holds (`ioctl` with FIONREAD):
//! where the kernel says so wrongly for followed sockets, its process has none.
//!
//! Bias: an immediate operand 0x541b anywhere in the code counts, unless it is
//! in one of the few libraries whose use of it is known and is no HTTP/2
//! client's. Nothing is probed.

use std::path::Path;

use tracewire_common::link::runtime;

use super::{Found, Runtime};
use crate::binary::Binary;

/// FIONREAD as x86-64's code has it: an immediate operand of four bytes.
const NUMBER: [u8; 4] = [0x1b, 0x54, 0, 0];
/// A file that holds both texts is grpc-core: its one use is for the sockets of its DNS resolver, and a
/// static libstdc++ may be in it.
const GRPC_CORE: [&[u8]; 2] = [b"grpc.primary_user_agent", b"GrpcPolledFdPosix"];

/// See the module.
pub struct Counts;

impl Runtime for Counts {
    fn number(&self) -> u32 {
        runtime::COUNTS
    }

    fn may_be_in(&self, path: &Path, _main: bool) -> bool {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // They ask datagrams of the resolver, and files.
        !(name.starts_with("libc.so.") || name.starts_with("ld-musl-") || name.starts_with("libstdc++.so."))
    }

    fn look(&self, binary: &Binary) -> Option<Found> {
        let uses = uses(binary);
        if uses == 0 {
            return None;
        }
        let core = GRPC_CORE
            .iter()
            .all(|text| memchr::memmem::find(binary.bytes(), text).is_some());
        if core && uses <= 2 {
            return None;
        }
        Some(Found {
            what: "asks sockets how many bytes they hold (FIONREAD)".to_owned(),
            layout: [0; runtime::LAYOUT],
            abilities: Vec::new(),
        })
    }
}

/// How often the number is moved to a register or to memory in code, or pushed.
fn uses(binary: &Binary) -> usize {
    let bytes = binary.bytes();
    memchr::memmem::find_iter(bytes, &NUMBER)
        .filter(|at| {
            let before = |n: usize| at.checked_sub(n).and_then(|at| bytes.get(at)).copied().unwrap_or(0);
            // `mov r32, imm32`, `push imm32`; `mov r/m, imm32` (C7 /0) with a register, or with memory
            // and a displacement of one byte, with SIB or without.
            matches!(before(1), 0xb8..=0xbf | 0x68)
                || before(2) == 0xc7 && matches!(before(1), 0xc0..=0xc7)
                || before(3) == 0xc7 && matches!(before(2), 0x40..=0x47)
                || before(4) == 0xc7 && before(3) == 0x44
        })
        .filter(|at| {
            let address = binary.address(*at as u64);
            address.is_some_and(|address| binary.executable(address))
        })
        .count()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// This very test binary asks.
    #[test]
    fn who_asks_is_found() {
        let mut n: libc::c_int = 0;
        // SAFETY: FIONREAD writes one int, if it writes.
        unsafe { libc::ioctl(0, libc::FIONREAD, &raw mut n) };
        let binary = Binary::open("/proc/self/exe").unwrap();
        assert!(uses(&binary) > 0);
    }

    #[test]
    fn the_c_library_asks_for_the_resolver_only() {
        assert!(!Counts.may_be_in(Path::new("/lib/x86_64-linux-gnu/libc.so.6"), false));
        assert!(Counts.may_be_in(Path::new("/lib/libnet.so"), false));
    }
}
