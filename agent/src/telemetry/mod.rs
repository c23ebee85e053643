//! What the agent says of itself: its log on standard error, and counts of
//! all that went right, was dropped or was lost. Silent about what it
//! observes: no span data and no secrets are logged.

mod component;
mod counters;
mod durations;
mod log;
mod memory;
mod readings;

pub use component::{Component, Components, cause};
pub use counters::{Counter, Counters};
pub use durations::{BOUNDS, Durations};
pub use log::init;
pub use readings::{Kind, Point, ProbePoints, Ratio, Reading, Value};
