//! Identities on the wire: ids that kernel and agent compute alike, and
//! `traceparent` in bytes (W3C Trace Context level 2). Bias: what is not
//! exactly a valid value is none.
//!
//! Ids are a keyed function of the request that they name, so that both sides
//! know them without a record: SipHash-2-4 (Aumasson, Bernstein: "SipHash: a
//! fast short-input PRF") of connection, stream and direction, squeezed three
//! times. The key is random for each start of the agent, so that ids are as
//! good as random to anybody else (level 2, §3.2.2.5.2).

use crate::link::StreamKey;
use crate::plain::Plain;

/// The sampled flag, §3.2.2.5.1.
pub const SAMPLED: u8 = 1;
/// The random trace id flag, level 2 §3.2.2.5.2.
pub const RANDOM: u8 = 2;
/// Bytes of a `traceparent` of version 00, §3.2.1.
pub const LENGTH: usize = 55;
/// Its field name, as HTTP/2 has it.
pub const NAME: [u8; 11] = *b"traceparent";

/// What a request's span is called, and where it hangs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// Never all zero.
    pub trace_id: [u8; 16],
    /// The request's own span. Never all zero.
    pub span_id: [u8; 8],
    /// The span that it is a child of; all zero: of none that is known.
    pub parent: [u8; 8],
    /// Trace flags.
    pub flags: u8,
    /// 1: it had a context that could not be read, so nothing can hang below it.
    pub unknown: u8,
    /// 1: `flags` are not the head decision, which the agent makes.
    pub undecided: u8,
    /// Must be 0.
    pub reserved: [u8; 5],
}

/// Payload of [`crate::event::kind::INJECTED`]: a context that was written to the wire.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Injected {
    /// The request that carries it; direction SEND.
    pub child: StreamKey,
    /// The served request on whose behalf; [`StreamKey::NONE`]: the context begins a trace.
    pub parent: StreamKey,
    /// As on the wire.
    pub context: Context,
}

/// Ids that a request has if nobody else chose them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Minted {
    /// Never all zero.
    pub trace_id: [u8; 16],
    /// Never all zero.
    pub span_id: [u8; 8],
}

/// What a `traceparent` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// Never all zero.
    pub trace_id: [u8; 16],
    /// The sender's span. Never all zero.
    pub span_id: [u8; 8],
    /// Trace flags.
    pub flags: u8,
}

#[inline(always)]
const fn round(mut v: [u64; 4]) -> [u64; 4] {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
    v
}

#[inline(always)]
const fn absorb(mut v: [u64; 4], word: u64) -> [u64; 4] {
    v[3] ^= word;
    v = round(round(v));
    v[0] ^= word;
    v
}

#[inline(always)]
const fn squeeze(v: [u64; 4]) -> ([u64; 4], u64) {
    let v = round(round(round(round(v))));
    (v, v[0] ^ v[1] ^ v[2] ^ v[3])
}

/// The ids of a request, see [`crate::link::StreamKey`].
#[inline(always)]
pub const fn mint(key: [u64; 2], connection: u64, stream: u32, direction: u32) -> Minted {
    let mut v = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d ^ 0xee,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    v = absorb(v, connection);
    v = absorb(v, (direction as u64) << 32 | stream as u64);
    // The length of the message, 16 bytes, ends it.
    v = absorb(v, 16 << 56);
    v[2] ^= 0xee;
    let (mut v, first) = squeeze(v);
    v[1] ^= 0xdd;
    let (mut v, second) = squeeze(v);
    v[1] ^= 0xbb;
    let (_, third) = squeeze(v);
    // All zero is no id (§3.2.2.3, §3.2.2.4).
    let second = if first | second == 0 { 1 } else { second };
    let third = if third == 0 { 1 } else { third };
    let (a, b) = (first.to_be_bytes(), second.to_be_bytes());
    Minted {
        trace_id: [
            a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7],
        ],
        span_id: third.to_be_bytes(),
    }
}

#[inline(always)]
const fn digit(value: u8) -> u8 {
    let value = value & 15;
    if value < 10 { b'0' + value } else { b'a' + value - 10 }
}

/// The value of a lower-case hexadecimal digit, §3.2.2; above 15: it is none.
#[inline(always)]
const fn value(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        _ => 0xff,
    }
}

impl Injected {
    /// All zero.
    pub const EMPTY: Injected = Injected {
        child: StreamKey::NONE,
        parent: StreamKey::NONE,
        context: Context {
            trace_id: [0; 16],
            span_id: [0; 8],
            parent: [0; 8],
            flags: 0,
            unknown: 0,
            undecided: 0,
            reserved: [0; 5],
        },
    };
}

impl TraceParent {
    /// Its value in version 00, §3.2.2.
    pub const fn encode(&self) -> [u8; LENGTH] {
        let mut text = [0; LENGTH];
        self.write(&mut text);
        text
    }

    /// The same, in place.
    #[inline(always)]
    pub const fn write(&self, text: &mut [u8; LENGTH]) {
        text[0] = b'0';
        text[1] = b'0';
        text[2] = b'-';
        text[35] = b'-';
        text[52] = b'-';
        let mut i = 0;
        while i < 16 {
            text[3 + 2 * i] = digit(self.trace_id[i] >> 4);
            text[4 + 2 * i] = digit(self.trace_id[i]);
            i += 1;
        }
        i = 0;
        while i < 8 {
            text[36 + 2 * i] = digit(self.span_id[i] >> 4);
            text[37 + 2 * i] = digit(self.span_id[i]);
            i += 1;
        }
        text[53] = digit(self.flags >> 4);
        text[54] = digit(self.flags);
    }

    /// Reads the first 55 bytes of a value; None: it must be ignored. The caller sees to
    /// what may follow them: nothing in version 00, nothing or `-…` in later ones (§4.3).
    #[inline(always)]
    pub const fn decode(text: &[u8; LENGTH]) -> Option<Self> {
        let version = (value(text[0]) as u32) << 8 | value(text[1]) as u32;
        let mut bad = (value(text[0]) | value(text[1])) >> 4;
        // Version ff is forbidden.
        if version == 0x0f0f {
            bad |= 1;
        }
        bad |= (text[2] ^ b'-') | (text[35] ^ b'-') | (text[52] ^ b'-');
        let mut trace_id = [0; 16];
        let mut span_id = [0; 8];
        let mut some = 0;
        let mut i = 0;
        while i < 16 {
            let (high, low) = (value(text[3 + 2 * i]), value(text[4 + 2 * i]));
            bad |= (high | low) >> 4;
            trace_id[i] = high << 4 | low & 15;
            some |= trace_id[i];
            i += 1;
        }
        let mut some_span = 0;
        i = 0;
        while i < 8 {
            let (high, low) = (value(text[36 + 2 * i]), value(text[37 + 2 * i]));
            bad |= (high | low) >> 4;
            span_id[i] = high << 4 | low & 15;
            some_span |= span_id[i];
            i += 1;
        }
        let (high, low) = (value(text[53]), value(text[54]));
        bad |= (high | low) >> 4;
        if bad != 0 || some == 0 || some_span == 0 {
            return None;
        }
        Some(TraceParent {
            trace_id,
            span_id,
            flags: high << 4 | low & 15,
        })
    }
}

const _: () = {
    assert!(size_of::<Context>() == 40);
    assert!(size_of::<Injected>() == 72);
};

// SAFETY: byte arrays and bytes only; 40 bytes without padding (asserted above).
unsafe impl Plain for Context {}
// SAFETY: plain parts; 72 bytes without padding (asserted above).
unsafe impl Plain for Injected {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn ids_are_told_apart_by_all_that_names_a_request() {
        let one = mint([1, 2], 3, 4, 0);
        assert_eq!(one, mint([1, 2], 3, 4, 0));
        let others = [
            mint([0, 2], 3, 4, 0),
            mint([1, 0], 3, 4, 0),
            mint([1, 2], 4, 4, 0),
            mint([1, 2], 3, 5, 0),
            mint([1, 2], 3, 4, 1),
        ];
        for other in others {
            assert_ne!(one.trace_id, other.trace_id);
            assert_ne!(one.span_id, other.span_id);
            assert_ne!(one.trace_id[..8], other.trace_id[..8]);
            assert_ne!(one.trace_id[8..], other.trace_id[8..]);
        }
        assert_ne!(one.trace_id[8..], one.span_id);
        assert_ne!(one.trace_id[..8], one.span_id);
    }

    /// Kernel and agent of different builds must not disagree.
    #[test]
    fn ids_are_what_they_were() {
        let minted = mint([0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908], 1, 1, 1);
        assert_eq!(
            (minted.trace_id[0], minted.trace_id[15], minted.span_id[0]),
            (56, 231, 17)
        );
    }

    /// Sampling looks at the low 56 bits: half of them must be in the upper half.
    #[test]
    fn bits_are_even() {
        let mut ones = [0u32; 192];
        for stream in 0..4096 {
            let minted = mint([5, 6], 7, stream, 1);
            let bytes = minted.trace_id.iter().chain(&minted.span_id);
            for (i, byte) in bytes.enumerate() {
                for bit in 0..8 {
                    ones[i * 8 + bit] += u32::from(byte >> bit & 1);
                }
            }
        }
        // Six standard deviations of a fair coin.
        assert!(ones.iter().all(|n| n.abs_diff(2048) < 192), "{ones:?}");
    }

    #[test]
    fn what_is_written_is_read() {
        let text = *b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let read = TraceParent::decode(&text).unwrap();
        assert_eq!((read.trace_id[0], read.span_id[7], read.flags), (0x0a, 0x31, 1));
        assert_eq!(read.encode(), text);
        for i in 0..LENGTH {
            for wrong in [b'G', b'A', b' ', b'g', 0, 0xff] {
                let mut text = text;
                text[i] = wrong;
                assert_eq!(TraceParent::decode(&text), None, "{i} {wrong}");
            }
        }
        for bad in [
            b"ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            b"00-00000000000000000000000000000000-b7ad6b7169203331-01",
            b"00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        ] {
            assert_eq!(TraceParent::decode(bad), None);
        }
        assert!(TraceParent::decode(b"f0-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-ff").is_some());
    }
}
