//! `cargo xtask bench`: what observation costs. A stub: the measurements are
//! written by another change.

use anyhow::{Result, bail};

/// Measures nothing yet.
///
/// # Errors
/// Always.
pub fn run() -> Result<()> {
    bail!("there are no benchmarks yet: they are written by another change")
}
