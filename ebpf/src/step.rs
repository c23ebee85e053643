//! One step of a direction: a phase, some contiguous bytes, the next phase.
//!
//! ```text
//!            +--preface--> PREFACE --+
//!   START ---+--SETTINGS-----------> HEAD <--> COPY | SKIP | PAD > DATA
//!            +--method, status line-> HTTP1_HEAD <--> HTTP1_BODY | _CHUNK… | _CLOSE
//!            +--anything else------> DEAD
//!   (gap) -> LOST --a call that proves the framing--> HEAD | HTTP1_HEAD
//! ```

use tracewire_common::elided::Head;

use crate::connection::{Flow, Shared, phase, protocol};
use crate::http1::{self, Turn};
use crate::http2;
use crate::io::{Io, SIGHT};

/// What a step led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Go on while there are bytes.
    More,
    /// The bytes can't be what the phase says.
    Malformed,
    /// The bytes could not be read.
    Unreadable,
}

/// Does one step; `io` has at least one byte at hand.
#[inline(always)]
pub fn step<I: Io>(shared: &mut Shared, flow: &mut Flow, io: &mut I) -> Step {
    if in_frames(flow.phase) {
        http2::step(flow, io)
    } else {
        rest(shared, flow, io)
    }
}

/// Whether a phase is one of HTTP/2's, past the preface: [`http2::step`] does it, which
/// needs nothing of what the two directions share.
#[inline(always)]
pub fn in_frames(phase: u8) -> bool {
    (phase::HEAD..=phase::DATA).contains(&phase)
}

/// A step in any other phase.
#[inline(always)]
pub fn rest<I: Io>(shared: &mut Shared, flow: &mut Flow, io: &mut I) -> Step {
    match flow.phase {
        phase::START => start(shared, flow, io),
        phase::PREFACE => preface(shared, flow, io),
        phase::HTTP1_HEAD => http1::head(shared, flow, io),
        phase::HTTP1_BODY | phase::HTTP1_CHUNK_DATA => http1::body(flow, io),
        phase::HTTP1_CHUNK | phase::HTTP1_TRAILER => http1::lines(flow, io),
        phase::HTTP1_CLOSE => http1::until_close(flow, io),
        _ => {
            let n = io.available();
            io.skip(n);
            Step::More
        }
    }
}

/// At the first bytes: gathers nothing, looks at what is at hand and chooses.
///
/// Where fewer than four bytes are at hand they are judged by the first one:
/// the phases that follow check every byte themselves.
#[inline(always)]
fn start<I: Io>(shared: &mut Shared, flow: &mut Flow, io: &mut I) -> Step {
    match shared.protocol {
        protocol::HTTP2 => {
            // The other direction decided; the client's bytes begin with the preface, the server's do not.
            if io.look(1) == 0 {
                return Step::Unreadable;
            }
            flow.have = 0;
            flow.http1.column = 0;
            flow.phase = if io.byte(0) == b'P' {
                phase::PREFACE
            } else {
                phase::HEAD
            };
            return Step::More;
        }
        protocol::HTTP1 => {
            http1::enter(flow);
            return Step::More;
        }
        protocol::OTHER | protocol::TLS => {
            flow.phase = phase::DEAD;
            return Step::More;
        }
        _ => {}
    }
    let n = io.look(9);
    if n == 0 {
        return Step::Unreadable;
    }
    let word = io.word(0);
    let first = (word >> 56) as u8;
    if first == b'P' && (n < 3 || word >> 40 == 0x50_52_49) {
        flow.have = 0;
        flow.http1.column = 0;
        flow.phase = phase::PREFACE;
    } else if first.is_ascii_uppercase() {
        if n >= 4 && !http1::begins((word >> 32) as u32) {
            return other(shared, flow);
        }
        shared.protocol = protocol::HTTP1;
        http1::enter(flow);
    } else if n >= 5 && tls(word) {
        shared.protocol = protocol::TLS;
        flow.phase = phase::DEAD;
    } else if n >= 9 {
        let head = Head::of(word, io.byte(8));
        // The server's preface: SETTINGS without ACK (RFC 9113 §3.4).
        if http2::server_preface(&head) {
            shared.protocol = protocol::HTTP2;
            flow.have = 0;
            flow.phase = phase::HEAD;
        } else {
            return other(shared, flow);
        }
    } else {
        return other(shared, flow);
    }
    Step::More
}

/// Whether a TLS record begins with the first five of these bytes, big-endian (RFC 8446 §5.1):
/// type, legacy version, length.
#[inline(always)]
pub fn tls(word: u64) -> bool {
    let (kind, version, length) = (word >> 56, (word >> 40) as u16, (word >> 24) as u16);
    matches!(kind, 0x14..=0x17) && version & 0xfff8 == 0x0300 && length != 0 && length <= 16384 + 2048
}

#[inline(always)]
fn other(shared: &mut Shared, flow: &mut Flow) -> Step {
    shared.protocol = protocol::OTHER;
    flow.phase = phase::DEAD;
    Step::More
}

/// In the client's preface, or in an HTTP/1 method that begins with P and was cut before its third byte.
#[inline(always)]
fn preface<I: Io>(shared: &mut Shared, flow: &mut Flow, io: &mut I) -> Step {
    let n = io.look(http2::PREFACE.len() as u32).min(SIGHT);
    if n == 0 {
        return Step::Unreadable;
    }
    let have = flow.http1.column;
    let (used, turn) = io.scan::<http2::PrefaceBytes>(n, &mut flow.http1);
    if turn == Turn::Malformed {
        // What matched is the same in every call, so it need not have been kept.
        let matched = u32::from(have) + used;
        if !(2..=3).contains(&matched) {
            return other(shared, flow);
        }
        shared.protocol = protocol::HTTP1;
        http1::enter(flow);
        http1::replay(flow, io, have);
        return Step::More;
    }
    io.skip(used);
    if turn == Turn::End {
        flow.http1.column = 0;
        flow.phase = phase::HEAD;
        // The preface comes before any header block of either direction.
        shared.origin = 1;
        shared.protocol = protocol::HTTP2;
    }
    Step::More
}
