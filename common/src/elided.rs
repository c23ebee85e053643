//! The elided stream: what is left of one direction of a connection when the
//! kernel has taken the messages out.
//!
//! It is a sequence of frames in the layout of RFC 9113 §4.1 (24-bit length,
//! 8-bit type, 8-bit flags, 32-bit stream identifier, all big-endian), cut
//! over records at any byte:
//!
//! * HTTP/2 frames HEADERS, CONTINUATION, RST_STREAM, PUSH_PROMISE with their payload whole (padding and priority included);
//! * SETTINGS only without ACK and at most 20 settings, GOAWAY without its
//!   debug data, in both cases with the length that is here;
//! * DATA only where it carries END_STREAM, empty;
//! * frames of our own ([`frame`]) from type 0xe0 on, which HTTP/2 never uses.
//!
//! WINDOW_UPDATE, PING, PRIORITY and unknown types are left out, so is the
//! client's connection preface.

/// Bytes of a frame header, RFC 9113 §4.1.
pub const FRAME_HEADER: usize = 9;

/// Largest header block (HEADERS and its CONTINUATIONs, or an HTTP/1 head)
/// that leaves the kernel, bytes.
pub const BLOCK_LIMIT: u32 = 16 * 1024;

/// Frame types of RFC 9113 §6 and of our own.
pub mod frame {
    /// RFC 9113 §6.1.
    pub const DATA: u8 = 0;
    /// RFC 9113 §6.2.
    pub const HEADERS: u8 = 1;
    /// RFC 9113 §6.3.
    pub const PRIORITY: u8 = 2;
    /// RFC 9113 §6.4.
    pub const RST_STREAM: u8 = 3;
    /// RFC 9113 §6.5.
    pub const SETTINGS: u8 = 4;
    /// RFC 9113 §6.6.
    pub const PUSH_PROMISE: u8 = 5;
    /// RFC 9113 §6.7.
    pub const PING: u8 = 6;
    /// RFC 9113 §6.8.
    pub const GOAWAY: u8 = 7;
    /// RFC 9113 §6.9.
    pub const WINDOW_UPDATE: u8 = 8;
    /// RFC 9113 §6.10.
    pub const CONTINUATION: u8 = 9;

    /// A gRPC message starts on this stream: payload is its prefix, 1 byte
    /// of flags and a big-endian u32 length (gRPC over HTTP/2,
    /// Length-Prefixed-Message). Flags 0.
    pub const MESSAGE: u8 = 0xe0;
    /// A header block frame that was longer than [`super::BLOCK_LIMIT`] and is
    /// not here: the flags are the frame's own, no payload.
    pub const TRUNCATED: u8 = 0xe1;
    /// Payload of a gRPC-Web trailer message (prefix flag 0x80), whole up to 4 KiB.
    pub const WEB_TRAILER: u8 = 0xe2;
    /// A piece of an HTTP/1 head (start line and header fields, through the
    /// empty line); the last piece has flag [`super::HEAD_END`], and of a request
    /// its number on the connection in place of a stream, from 1.
    pub const HEAD: u8 = 0xe8;
    /// The HTTP/1 message ended: payload is a big-endian u64, the bytes its
    /// body had on the wire (chunk sizes and trailers included).
    pub const BODY_END: u8 = 0xe9;
    /// The connection is a tunnel from here on (101, CONNECT): nothing follows.
    pub const TUNNEL: u8 = 0xea;
}

/// Flag of [`frame::MESSAGE`]: so many empty messages in a row that this is likely no gRPC; later
/// messages of the stream's direction are not told.
pub const UNCOUNTED: u8 = 1;
/// Flag of [`frame::HEAD`]: the head ends with this piece.
pub const HEAD_END: u8 = 1;
/// Flag of [`frame::HEAD`]: the head was longer than [`BLOCK_LIMIT`] and the rest is not here.
pub const HEAD_TRUNCATED: u8 = 2;

/// Flags of HTTP/2 frames, RFC 9113 §6.
pub mod flag {
    /// DATA, HEADERS.
    pub const END_STREAM: u8 = 0x1;
    /// SETTINGS, PING.
    pub const ACK: u8 = 0x1;
    /// HEADERS, PUSH_PROMISE, CONTINUATION.
    pub const END_HEADERS: u8 = 0x4;
    /// DATA, HEADERS, PUSH_PROMISE.
    pub const PADDED: u8 = 0x8;
    /// HEADERS.
    pub const PRIORITY: u8 = 0x20;
}

/// A frame header, RFC 9113 §4.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Bytes of payload (24 bits).
    pub length: u32,
    /// One of [`frame`].
    pub kind: u8,
    /// Bits of [`flag`].
    pub flags: u8,
    /// Stream identifier, the reserved bit cleared; 0 is the connection.
    pub stream: u32,
}

impl Head {
    /// Reads the nine bytes.
    #[inline(always)]
    pub const fn parse(b: &[u8; FRAME_HEADER]) -> Self {
        Head {
            length: (b[0] as u32) << 16 | (b[1] as u32) << 8 | b[2] as u32,
            kind: b[3],
            flags: b[4],
            stream: ((b[5] as u32) << 24 | (b[6] as u32) << 16 | (b[7] as u32) << 8 | b[8] as u32) & 0x7fff_ffff,
        }
    }

    /// Reads the nine bytes: the first eight as one big-endian integer, and the last.
    #[inline(always)]
    pub const fn of(word: u64, last: u8) -> Self {
        Head {
            length: (word >> 40) as u32,
            kind: (word >> 32) as u8,
            flags: (word >> 24) as u8,
            stream: ((word as u32) << 8 | last as u32) & 0x7fff_ffff,
        }
    }

    /// The first eight bytes as one big-endian integer; the last one is the stream's lowest byte.
    #[inline(always)]
    pub const fn word(&self) -> u64 {
        (self.length as u64) << 40 | (self.kind as u64) << 32 | (self.flags as u64) << 24 | (self.stream >> 8) as u64
    }

    /// Writes the nine bytes.
    #[inline(always)]
    pub const fn bytes(&self) -> [u8; FRAME_HEADER] {
        [
            (self.length >> 16) as u8,
            (self.length >> 8) as u8,
            self.length as u8,
            self.kind,
            self.flags,
            (self.stream >> 24) as u8,
            (self.stream >> 16) as u8,
            (self.stream >> 8) as u8,
            self.stream as u8,
        ]
    }
}
