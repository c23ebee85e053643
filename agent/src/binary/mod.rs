//! What stands in an executable or a shared library, and where: functions by
//! name, by the strings they use or by their virtual table, and the places in
//! them where a probe is cheap.
//!
//! Bias: a wrong address is never given. What is not confirmed (a unique match,
//! an instruction boundary, the start of a frame description) is not found.
//! Files come from observed processes: every access is bounds-checked and
//! nothing here panics, whatever they hold.
//!
//! Addresses are those of the file (`p_vaddr`), not of a process; offsets are
//! from the file's first byte, as `perf_event_open` wants them for a uprobe.

mod cache;
mod code;
mod frames;
mod golang;
mod image;
mod indirect;
mod probe;
mod references;
mod symbols;
#[cfg(test)]
mod tests;
mod vtable;

pub use cache::Cache;
pub use code::{Call, Code};
pub use golang::{Go, Version};
pub use image::{Binary, Error, Identity};
pub use indirect::Targets;
pub use probe::{GO_ARGUMENTS, Point, SYSV_ARGUMENTS, probe_point};
pub use references::Entered;
pub use symbols::Symbol;

pub use iced_x86 as decoder;

/// The extent of a function: addresses in the file's own space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Function {
    /// Of its first instruction.
    pub address: u64,
    /// One past its last byte.
    pub end: u64,
}

impl Function {
    /// Whether `address` is inside.
    pub fn contains(&self, address: u64) -> bool {
        (self.address..self.end).contains(&address)
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.end.saturating_sub(self.address)
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.end <= self.address
    }
}
