//! Plaintext of TLS connections: how it is named in records.
//!
//! A TLS connection has a name of its own, since its plaintext may come before
//! it is known which socket it belongs to. Its records carry that name; once
//! the socket is known, a record [`crate::event::kind::OPEN`] with
//! [`crate::event::layer::TLS`] tells the ends. Pieces that came before wait.

/// Bit of a connection's name that says: plaintext of TLS. Socket cookies count
/// from 1 and never reach it; kernel addresses have the bits above it too.
pub const NAMED: u64 = 1 << 62;

/// Whether a connection's name is one of TLS plaintext.
#[inline(always)]
pub const fn named(connection: u64) -> bool {
    connection >> 62 == 1
}

/// A name for a connection first seen at `time_ns` on processor `cpu`: no other has it.
#[inline(always)]
pub const fn name(time_ns: u64, cpu: u32) -> u64 {
    NAMED | (time_ns << 10 | (cpu & 0x3ff) as u64) & (NAMED - 1)
}

/// Bytes that a TLS record has beyond its plaintext at least: header and tag (RFC 8446 §5.2).
pub const OVERHEAD: u32 = 21;

/// Bit of a process's [`crate::settings::watch`] value: its goroutines use crypto/tls.
pub const GO: u32 = 1 << 24;
