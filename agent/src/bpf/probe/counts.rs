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

/// FIONREAD as x86-64's code has it: the last four bytes of a `mov` of an immediate to a register.
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

/// How often the number is moved to a register in code.
fn uses(binary: &Binary) -> usize {
    let bytes = binary.bytes();
    memchr::memmem::find_iter(bytes, &NUMBER)
        .filter(|at| {
            at.checked_sub(1)
                .and_then(|before| bytes.get(before))
                .is_some_and(|code| (0xb8..=0xbf).contains(code))
        })
        .filter(|at| {
            binary
                .address(*at as u64)
                .is_some_and(|address| binary.executable(address))
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
        assert!(Counts.look(&binary).is_some());
    }

    #[test]
    fn the_c_library_asks_for_the_resolver_only() {
        assert!(!Counts.may_be_in(Path::new("/lib/x86_64-linux-gnu/libc.so.6"), false));
        assert!(Counts.may_be_in(Path::new("/lib/libnet.so"), false));
    }
}
