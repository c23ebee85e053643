//! What the agent says of itself: its log on standard error, and counts of
//! all that went right, was dropped or was lost. Silent about what it
//! observes: no span data and no secrets are logged.

mod counters;
mod log;

pub use counters::{Counter, Counters};
pub use log::init;
