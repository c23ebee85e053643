//! Header blocks, decoded and written anew without compression: a block then
//! stands for itself, whatever came before it.
//!
//! Each frame is answered by a frame of the same kind, so that what a
//! direction remembers of half a block is the same on both sides, and a block
//! that was damaged is damaged again.

use tracewire_common::elided::{BLOCK_LIMIT, Head, flag, frame};

use super::policy::{self, REDACTED, Side};
use crate::protocol::fields::Allow;
use crate::protocol::hpack::encoder;
use crate::protocol::http2::{Direction, Opening, Signal, Sink};

/// Longest redacted block, bytes: a decoder takes 64 KiB of literals at most.
const BLOCK: usize = 60 * 1024;
/// Longest redacted gRPC-Web trailer, bytes.
const TRAILER: usize = BLOCK_LIMIT as usize;
/// Most unknown fields of a promise that are written.
const PROMISED: u64 = 1024;
/// Index 0, which is no field (RFC 7541 §6.1).
const WRONG: u8 = 0x80;

/// Takes what a direction says of one frame.
pub(super) struct Rewriter<'a> {
    allow: &'a Allow,
    /// Whether this direction carries requests, if it is known.
    requests: Option<bool>,
    opening: Opening,
    block: Vec<u8>,
    full: bool,
    /// Fields of a block that may be a request's or a response's, and their octets.
    held: Vec<crate::request::sort::Held>,
    octets: usize,
    /// A block was given, field by field.
    given: bool,
    trailer: Vec<u8>,
    /// SETTINGS_HEADER_TABLE_SIZE that this direction named.
    pub(super) limit: Option<u32>,
    /// What a block showed this direction to carry.
    pub(super) shown: Option<bool>,
}

impl<'a> Rewriter<'a> {
    /// For one frame of a direction.
    pub(super) fn new(allow: &'a Allow, requests: Option<bool>) -> Self {
        Rewriter {
            allow,
            requests,
            opening: Opening::Unclear,
            block: Vec::new(),
            full: false,
            held: Vec::new(),
            octets: 0,
            given: false,
            trailer: Vec::new(),
            limit: None,
            shown: None,
        }
    }

    /// Whether the block at hand is a request's.
    fn side(&self) -> Option<bool> {
        match self.opening {
            Opening::Request => Some(true),
            Opening::Response => Some(false),
            Opening::Unclear => self.requests,
        }
    }

    /// Reads a frame and appends what may be kept of it.
    pub(super) fn frame(&mut self, http2: &mut Direction, head: Head, payload: &[u8], origin: bool, out: &mut Vec<u8>) {
        let before = http2.malformed;
        let unknown = http2.unknown_indexes();
        // Times are the records' and stay there.
        http2.frame(head, payload, 0, origin, self);
        let malformed = http2.malformed != before;
        if !self.given {
            // The block of a promise, of which nothing is made; only what it lacked is counted.
            let count = http2.unknown_indexes() - unknown;
            (0..count.min(PROMISED)).for_each(|_| encoder::unknown(&mut self.block));
        }
        let flags = head.flags & !(flag::PADDED | flag::PRIORITY);
        match head.kind {
            frame::HEADERS | frame::PUSH_PROMISE if !readable(head, payload) => {
                // Padding that does not fit: neither does it here.
                put(
                    out,
                    Head {
                        flags: flags | flag::PADDED,
                        ..head
                    },
                    &[],
                );
            }
            frame::PUSH_PROMISE => {
                let mut promise = vec![0; 4];
                promise.append(&mut self.block);
                promise.extend(malformed.then_some(WRONG));
                put(out, Head { flags, ..head }, &promise);
            }
            frame::HEADERS | frame::CONTINUATION => {
                if malformed {
                    self.damage();
                }
                let block = std::mem::take(&mut self.block);
                let whole = flags & flag::END_HEADERS != 0;
                let (mut head, mut rest) = (Head { flags, ..head }, &block[..]);
                while let Some((piece, more)) = rest.split_at_checked(BLOCK_LIMIT as usize).filter(|_| whole) {
                    put(
                        out,
                        Head {
                            flags: head.flags & !flag::END_HEADERS,
                            ..head
                        },
                        piece,
                    );
                    (head.kind, rest) = (frame::CONTINUATION, more);
                }
                put(out, head, rest);
            }
            frame::WEB_TRAILER => put(out, head, &std::mem::take(&mut self.trailer)),
            // Of the others no more than what is ever read.
            frame::MESSAGE => put(out, head, payload.get(..5).unwrap_or(payload)),
            frame::RST_STREAM => put(out, head, payload.get(..4).unwrap_or(payload)),
            frame::GOAWAY => put(out, head, payload.get(..8).unwrap_or(payload)),
            frame::SETTINGS => put(out, head, payload),
            _ => put(out, head, &[]),
        }
    }

    /// Appends a field, of a request's block or a response's.
    fn write(&mut self, name: Option<&[u8]>, value: Option<&[u8]>, side: Side) {
        if self.full {
            return;
        }
        let (Some(name), Some(value)) = (name, value) else {
            encoder::unknown(&mut self.block);
            self.full = self.block.len() > BLOCK;
            return;
        };
        let value = &*policy::value(name, value, side, self.allow);
        if self.block.len() + name.len() + value.len() + 16 > BLOCK {
            // A block of thousands of indexes: that there was more is kept, not what.
            self.full = true;
            encoder::unknown(&mut self.block);
            return;
        }
        // What a block opens is told by its first field's static index.
        match (self.block.is_empty(), self.opening, name) {
            (true, Opening::Request, b":authority") => encoder::indexed_name(&mut self.block, 1, value),
            (true, Opening::Request, b":method") => encoder::indexed_name(&mut self.block, 2, value),
            (true, Opening::Request, b":path") => encoder::indexed_name(&mut self.block, 4, value),
            (true, Opening::Request, b":scheme") => encoder::indexed_name(&mut self.block, 6, value),
            (true, Opening::Response, b":status") => encoder::indexed_name(&mut self.block, 8, value),
            _ => encoder::literal(&mut self.block, name, value),
        }
    }

    /// Makes the block as wrong as the one it stands for.
    fn damage(&mut self) {
        match self.opening {
            // Nothing but the name of the first field was readable.
            Opening::Request if self.block.is_empty() => self.block.push(0x12),
            Opening::Response if self.block.is_empty() => self.block.push(0x18),
            _ => self.block.push(WRONG),
        }
    }
}

impl Sink for Rewriter<'_> {
    fn block(&mut self, _stream: u32, opening: Opening) {
        self.opening = opening;
        self.given = true;
    }

    fn field(&mut self, name: Option<&[u8]>, value: Option<&[u8]>) {
        let side = self.side();
        if side != Some(false) {
            // What may be kept depends on whose the block is, which its pseudo-headers tell,
            // and of a request's path on whether it is a method's name.
            let takes = |text: Option<&[u8]>| text.map_or(0, <[u8]>::len);
            let before = self.octets;
            self.octets += takes(name) + takes(value) + usize::from(side.is_some());
            if self.octets <= BLOCK {
                self.held.push((name.map(<[u8]>::to_vec), value.map(<[u8]>::to_vec)));
            } else if side.is_none() || before <= BLOCK {
                self.held.push((None, None));
            }
            return;
        }
        self.write(
            name,
            value,
            Side {
                request: side,
                rpc: false,
            },
        );
    }

    fn signal(&mut self, signal: Signal, _time_ns: u64) {
        if let Signal::Headers { .. } = signal {
            let held = std::mem::take(&mut self.held);
            let has = |names: &[&[u8]]| {
                held.iter()
                    .any(|(n, _)| n.as_deref().is_some_and(|n| names.contains(&n)))
            };
            self.shown = match self.opening {
                Opening::Request => Some(true),
                Opening::Response => Some(false),
                // The connection's past tells it; a stray pseudo-header does not change that.
                Opening::Unclear if self.requests.is_some() => None,
                Opening::Unclear if has(&[b":method", b":path", b":scheme", b":authority"]) => Some(true),
                Opening::Unclear if has(&[b":status"]) => Some(false),
                Opening::Unclear => None,
            };
            let whose = self.shown.or(self.side());
            let known = |(name, value): &'_ crate::request::sort::Held| Some((name.clone()?, value.clone()?));
            let whole: Vec<_> = held.iter().filter_map(known).collect();
            let side = Side::of(whose, whole.iter().map(|(n, v)| (n.as_slice(), v.as_slice())));
            for (name, value) in &held {
                self.write(name.as_deref(), value.as_deref(), side);
            }
        }
    }

    fn web_trailer(&mut self, _stream: u32, bytes: &[u8]) {
        for line in bytes.split(|b| *b == b'\n') {
            let Some(colon) = memchr::memchr(b':', line) else {
                continue;
            };
            let (name, value) = line.split_at(colon);
            let (name, value) = (name.trim_ascii(), value.get(1..).unwrap_or_default().trim_ascii());
            let side = Side {
                request: Some(false),
                rpc: false,
            };
            let value = &*policy::value(name, value, side, self.allow);
            if self.trailer.len() + name.len() + value.len() + 3 > TRAILER {
                return;
            }
            for part in [name, b":", value, b"\r\n"] {
                self.trailer.extend_from_slice(part);
            }
        }
    }

    fn header_table_size(&mut self, bytes: u32) {
        self.limit = Some(bytes);
    }
}

/// Appends a frame.
pub(super) fn put(out: &mut Vec<u8>, head: Head, payload: &[u8]) {
    out.extend_from_slice(
        &Head {
            length: payload.len() as u32,
            ..head
        }
        .bytes(),
    );
    out.extend_from_slice(payload);
}

/// Whether padding, priority and promised stream fit the payload (RFC 9113 §6.2, §6.6).
fn readable(head: Head, payload: &[u8]) -> bool {
    let mut left = payload.len();
    if head.flags & flag::PADDED != 0 {
        let Some(pad) = payload.first() else { return false };
        let Some(rest) = left.checked_sub(1 + usize::from(*pad)) else {
            return false;
        };
        left = rest;
    }
    match head.kind {
        frame::PUSH_PROMISE => left >= 4,
        _ => head.flags & flag::PRIORITY == 0 || left >= 5,
    }
}

const _: () = assert!(REDACTED.len() < 16);
