//! Elided streams → messages, by protocol.

pub mod hpack;
pub mod http1;
pub mod http2;
