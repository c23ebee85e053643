//! Recordings: what the core was given, in a file, so that it can be given it
//! again without a kernel.
//!
//! Bias: privacy. What a recording holds is at most what a span shows: values
//! of header fields that no span needs never reach the file.
//!
//! # Format
//! A line, [`MAGIC`], then entries: a little-endian u32, the entry's length,
//! and the entry. An entry is a [`Header`](tracewire_common::event::Header)
//! and its payload, in the byte order of the machine that recorded. Kinds
//! below 0x80 are records of the ring buffer, redacted; those of [`kind`] are
//! the recording's own and say what the core was told beside them.

use std::sync::Arc;

use tracewire_common::event::Header;
use tracewire_common::event::Plain;

use crate::connection::record::Event;
use crate::discover::Resource;

pub mod file;
pub mod recorder;
pub mod redact;
pub mod replay;
pub mod resource;
#[cfg(test)]
mod tests;

/// First line of every recording; the number is the version of the format.
pub const MAGIC: &[u8] = b"tracewire recording 1\n";

/// Longest entry, bytes.
pub const ENTRY_LIMIT: u32 = 1 << 20;

/// Kinds of entries that the kernel does not write.
pub mod kind {
    /// What is added to CLOCK_BOOTTIME to get Unix time; payload: i64, ns.
    pub const CLOCK: u8 = 0x80;
    /// What process `pid` is called from here on; payload: JSON, see [`super::resource`].
    pub const RESOURCE: u8 = 0x81;
    /// Time passed, to `time_ns`; no payload.
    pub const TICK: u8 = 0x82;
    /// Process `pid` ended at `time_ns`, and its last records were waited for; no payload.
    pub const EXITED: u8 = 0x83;
    /// The agent stopped at `time_ns`; no payload.
    pub const STOP: u8 = 0x84;
}

/// One entry of a recording.
#[derive(Debug, PartialEq)]
pub enum Entry<'a> {
    /// A record of the ring buffer.
    Event(Event<'a>),
    /// From here on Unix time is CLOCK_BOOTTIME plus this many ns.
    Clock(i64),
    /// From here on the process is called so.
    Resource {
        /// The process.
        pid: u32,
        /// Its names.
        resource: Arc<Resource>,
    },
    /// Time passed: CLOCK_BOOTTIME, ns.
    Tick(u64),
    /// A process ended some time ago.
    Exited {
        /// The process.
        pid: u32,
        /// When it ended: CLOCK_BOOTTIME, ns.
        time_ns: u64,
    },
    /// The agent stopped: CLOCK_BOOTTIME, ns.
    Stop(u64),
}

impl<'a> Entry<'a> {
    /// Reads the bytes of one entry. None: they are none.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let header = Header::read(bytes)?;
        let payload = bytes.get(size_of::<Header>()..)?;
        if payload.len() != header.length as usize {
            return None;
        }
        Some(match header.kind {
            kind::CLOCK => Entry::Clock(i64::from_le_bytes(*payload.first_chunk()?)),
            kind::RESOURCE => Entry::Resource {
                pid: header.pid,
                resource: Arc::new(resource::decode(payload)?),
            },
            kind::TICK => Entry::Tick(header.time_ns),
            kind::EXITED => Entry::Exited {
                pid: header.pid,
                time_ns: header.time_ns,
            },
            kind::STOP => Entry::Stop(header.time_ns),
            _ => Entry::Event(Event::parse(bytes)?),
        })
    }
}
