//! `cargo xtask stop`: ends what `demo --keep` left running.

use crate::kept;

/// Ends the noted processes and says so.
pub fn run() {
    if end_kept() == 0 {
        eprintln!("nothing was left running");
    }
}

/// Ends the noted processes, the last started first; returns how many were noted.
pub fn end_kept() -> usize {
    let processes = kept::take();
    for process in processes.iter().rev() {
        let outcome = if process.end() { "ended" } else { "was gone already" };
        eprintln!("{} ({}) {outcome}", process.name, process.pid);
    }
    processes.len()
}
