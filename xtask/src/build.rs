//! `cargo xtask build`: the kernel programs, then the agent that carries them.

use anyhow::Result;

use crate::build_ebpf;
use crate::command::{cargo, shown};

/// Builds the agent, `release/tracewire` in the target folder.
///
/// # Errors
/// When something does not compile.
pub fn run() -> Result<()> {
    build_ebpf::run()?;
    shown(&mut cargo(&["build", "--release", "--package", "tracewire"]))
}
