//! TLS: another source of the same bytes. The functions by which a program
//! gives plaintext to its TLS library and takes it back are probed, and what
//! they moved goes through the framers as if it came from a socket, under a
//! connection of its own ([`tracewire_common::tls`]). The socket beneath, whose
//! bytes are ciphertext, only tells the ends: see [`join`].
//!
//! Bias: only what a call says it moved is counted, so that retries count
//! once; where a call's outcome was missed its direction has a gap.

pub mod call;
pub mod feed;
pub mod go;
pub mod join;
pub mod rustls;
pub mod state;
