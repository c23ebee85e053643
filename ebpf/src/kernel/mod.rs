//! The rooms that touch the kernel: maps, user memory, tracepoints. All
//! `unsafe` of the kernel side stands below this module.

pub mod call;
pub mod context;
pub mod emit;
pub mod files;
pub mod handlers;
pub mod inject;
pub mod log;
pub mod maps;
pub mod memory;
pub mod open;
pub mod probe;
pub mod process;
pub mod proof;
pub mod socket;
pub mod syscall;
pub mod threads;
pub mod tls;
pub mod walk;
