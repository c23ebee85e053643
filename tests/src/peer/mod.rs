//! A gRPC exchange by hand, for what no library does on purpose: the same
//! bytes, moved by odd system calls in odd pieces. What the agent makes of
//! them must not depend on the pieces.

pub mod exchange;
pub mod ways;

pub use exchange::{CALLS, Expected, Flights};
pub use ways::Way;
