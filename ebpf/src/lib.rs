//! The kernel side's own logic, free of any kernel: the framers that turn the
//! bytes of a socket into its elided stream ([`tracewire_common::elided`]).
//! It is compiled for the kernel by `main.rs` and for the host by its tests.
//!
//! Bias: a direction whose framing is in doubt emits nothing until it is
//! proven again; what was lost is said, never smoothed over.
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod block;
pub mod bound;
pub mod connection;
pub mod head;
pub mod http1;
pub mod http2;
pub mod inbound;
pub mod io;
pub mod order;
pub mod outbound;
pub mod outbound1;
pub mod step;

#[cfg(test)]
mod tests;
