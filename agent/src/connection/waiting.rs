//! Plaintext of TLS connections that waits until it is known which socket it
//! belongs to. What waits too long or grows too large is dropped, and what
//! comes after it begins with a gap: a header table that is not whole would
//! give wrong names.

use rustc_hash::FxHashMap;
use tracewire_common::event::{Header, flags};

/// Bytes that wait for one connection, and for all.
const ONE: usize = 256 * 1024;
const ALL: usize = 8 * 1024 * 1024;
/// How long they wait, ns.
const PATIENCE: u64 = 30_000_000_000;
/// Connections that are remembered to have lost something.
const CONNECTIONS: usize = 16 * 1024;

struct Held {
    pid: u32,
    since_ns: u64,
    bytes: usize,
    pieces: Vec<(Header, Box<[u8]>)>,
    /// Pieces were dropped.
    lost: bool,
}

/// Pieces that wait, by connection.
#[derive(Default)]
pub struct Waiting {
    held: FxHashMap<u64, Held>,
    bytes: usize,
    dropped: u64,
    /// Connections named up to this may have lost something unremembered.
    forgotten: u64,
}

impl Waiting {
    /// A piece of a connection that is not known yet.
    pub fn hold(&mut self, header: Header, bytes: &[u8]) {
        if bytes.is_empty() {
            // An end of what nobody knows.
            return;
        }
        if self.held.len() >= CONNECTIONS {
            self.forget();
        }
        let held = self.held.entry(header.connection).or_insert_with(|| Held {
            pid: header.pid,
            since_ns: header.time_ns,
            bytes: 0,
            pieces: Vec::new(),
            lost: header.connection <= self.forgotten,
        });
        if held.lost || held.bytes + bytes.len() > ONE || self.bytes + bytes.len() > ALL {
            self.dropped += 1;
            drop_pieces(held, &mut self.bytes, &mut self.dropped);
            return;
        }
        held.bytes += bytes.len();
        self.bytes += bytes.len();
        held.pieces.push((header, bytes.into()));
    }

    /// The connection is known now: gives its pieces, in order. True: some are missing before what comes next.
    pub fn release(&mut self, connection: u64, mut each: impl FnMut(Header, &[u8])) -> bool {
        let Some(held) = self.held.remove(&connection) else {
            return connection <= self.forgotten;
        };
        self.bytes -= held.bytes;
        for (header, bytes) in &held.pieces {
            each(*header, bytes);
        }
        held.lost
    }

    /// The connection is gone, unknown.
    pub fn closed(&mut self, connection: u64) {
        if let Some(held) = self.held.remove(&connection) {
            self.bytes -= held.bytes;
            self.dropped += held.pieces.len() as u64;
        }
    }

    /// A process ended.
    pub fn exited(&mut self, pid: u32) {
        let gone: Vec<u64> = self
            .held
            .iter()
            .filter(|(_, held)| held.pid == pid)
            .map(|(key, _)| *key)
            .collect();
        for key in gone {
            self.closed(key);
        }
    }

    /// Time passed: CLOCK_BOOTTIME, ns.
    pub fn tick(&mut self, now_ns: u64) {
        if self.bytes == 0 {
            return;
        }
        let Waiting {
            held, bytes, dropped, ..
        } = self;
        for held in held.values_mut() {
            if held.since_ns.saturating_add(PATIENCE) < now_ns {
                drop_pieces(held, bytes, dropped);
            }
        }
    }

    /// Pieces that were dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn forget(&mut self) {
        let keys = self.held.keys().copied();
        self.forgotten = keys.max().unwrap_or(0).max(self.forgotten);
        self.dropped += self.held.values().map(|held| held.pieces.len() as u64).sum::<u64>();
        self.held.clear();
        self.bytes = 0;
    }
}

fn drop_pieces(held: &mut Held, bytes: &mut usize, dropped: &mut u64) {
    held.lost = true;
    *dropped += held.pieces.len() as u64;
    *bytes -= std::mem::take(&mut held.bytes);
    held.pieces = Vec::new();
}

/// The header of a piece before which bytes are missing.
pub fn after_a_gap(header: Header) -> Header {
    Header {
        flags: header.flags & !flags::ORIGIN | flags::GAP,
        ..header
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(connection: u64, time_ns: u64) -> Header {
        Header {
            connection,
            time_ns,
            pid: 7,
            ..Header::EMPTY
        }
    }

    #[test]
    fn what_waited_comes_out_in_order() {
        let mut waiting = Waiting::default();
        waiting.hold(piece(5, 1), b"a");
        waiting.hold(piece(6, 2), b"x");
        waiting.hold(piece(5, 3), b"b");
        let mut out = Vec::new();
        assert!(!waiting.release(5, |header, bytes| out.push((header.time_ns, bytes.to_vec()))));
        assert_eq!(out, [(1, b"a".to_vec()), (3, b"b".to_vec())]);
        assert_eq!(waiting.dropped(), 0);
        waiting.exited(7);
        assert_eq!((waiting.dropped(), waiting.bytes), (1, 0));
    }

    #[test]
    fn what_waited_too_long_leaves_a_gap() {
        let mut waiting = Waiting::default();
        waiting.hold(piece(5, 1), b"a");
        waiting.tick(PATIENCE + 2);
        waiting.hold(piece(5, PATIENCE + 3), b"b");
        let mut out = 0;
        assert!(waiting.release(5, |_, _| out += 1));
        assert_eq!(out, 0);
        assert_eq!((waiting.dropped(), waiting.bytes), (2, 0));
    }

    #[test]
    fn what_grows_too_large_leaves_a_gap() {
        let mut waiting = Waiting::default();
        for _ in 0..2 {
            waiting.hold(piece(5, 1), &vec![0; ONE / 2 + 1]);
        }
        let mut out = 0;
        assert!(waiting.release(5, |_, _| out += 1));
        assert_eq!(out, 0);
        assert_eq!(waiting.bytes, 0);
    }
}
