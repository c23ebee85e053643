//! Elided streams → messages, by protocol.

pub mod baggage;
pub mod elided;
pub mod fields;
pub mod framing;
pub mod hpack;
pub mod http1;
pub mod http2;
