//! Harness of the end-to-end tests: real services, a real kernel, the real
//! agent. Bias: a test never passes because something was left out; what it
//! needs and does not find (root, a workload, the agent) fails it by name.
//!
//! Every test begins with [`alone`]: it holds the machine to itself, since
//! figures of two tests at once would be nobody's.

use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Result, ensure};

pub mod agent;
pub mod answering;
pub mod answers;
pub mod attached;
pub mod bytes;
pub mod compare;
pub mod exchange;
pub mod folder;
pub mod otlp;
pub mod peer;
pub mod place;
pub mod prometheus;
pub mod relay;
pub mod running;
pub mod session;
pub mod span;
pub mod tls;
pub mod truth;
pub mod web;
pub mod workload;

/// The turn of one test.
pub type Turn = MutexGuard<'static, ()>;

/// Waits for the test's turn.
///
/// # Errors
/// Without root, which loading kernel programs needs.
pub fn alone() -> Result<Turn> {
    static TURN: Mutex<()> = Mutex::new(());
    // SAFETY: geteuid has no preconditions and can't fail.
    let user = unsafe { libc::geteuid() };
    ensure!(
        user == 0,
        "this test loads programs into the kernel: run it as root (`sudo -E cargo xtask test`)"
    );
    Ok(TURN.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Whether the whole matrix is asked for (`TRACEWIRE_TESTS=full`), not the
/// smaller one that fits a few minutes.
pub fn full() -> bool {
    std::env::var_os("TRACEWIRE_TESTS").is_some_and(|value| value == "full")
}
