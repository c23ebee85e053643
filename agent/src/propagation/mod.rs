//! Which trace a request belongs to: what the wire says, and what both ends
//! of one connection on this node tell of each other.
//!
//! Bias: a wrong parent is worse than none.

pub mod edge;
pub mod head;
pub mod identity;
pub mod tracestate;
pub mod w3c;
