//! Which trace a request belongs to: what the wire says, and what both ends
//! of one connection on this node tell of each other.
//!
//! Bias: a wrong parent is worse than none.

pub mod edge;
pub mod identity;
pub mod w3c;
