//! `cargo xtask stop`: ends what `demo --keep` left running.

use anyhow::Result;

use crate::kept;

/// Ends the noted processes, the last started first.
///
/// # Errors
/// None so far.
pub fn run() -> Result<()> {
    let processes = kept::take();
    for process in processes.iter().rev() {
        let outcome = if process.end() { "ended" } else { "was gone already" };
        eprintln!("{} ({}) {outcome}", process.name, process.pid);
    }
    if processes.is_empty() {
        eprintln!("nothing was left running");
    }
    Ok(())
}
