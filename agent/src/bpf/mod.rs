//! The only door to the kernel: loads the programs, attaches the best hooks
//! that this kernel allows, reads their records.
//!
//! Everything attached is held by file descriptors of this process and by
//! nothing else: however the agent ends, the kernel detaches it all.

pub mod btf;
pub mod check;
mod files;
mod head;
pub mod inject;
pub mod load;
mod log;
mod preempt;
pub mod privileges;
pub mod probe;
pub mod ring;
pub mod verified;

/// The kernel programs, as `cargo xtask build-ebpf` made them; empty if the
/// agent was built without.
pub(crate) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tracewire.bpf.o"));
