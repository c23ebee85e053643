//! One step of a direction: a phase, some contiguous bytes, the next phase.
//!
//! ```text
//!            +--preface--> PREFACE --+
//!   START ---+--SETTINGS-----------> HEAD <--> COPY | SKIP | PAD > DATA
//!            +--method, status line-> HTTP1_HEAD <--> HTTP1_BODY | _CHUNK… | _CLOSE
//!            +--anything else------> DEAD
//!   (gap) -> LOST --a call that proves the framing--> HEAD | HTTP1_HEAD
//! ```

use tracewire_common::elided::{Head, frame};

use crate::connection::{Flow, Shared, phase, protocol};
use crate::http1::{self, Turn};
use crate::http2;
use crate::io::Io;

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
    match flow.phase {
        phase::HEAD => http2::head(flow, io),
        phase::COPY => http2::copy(flow, io),
        phase::SKIP => http2::skip(flow, io),
        phase::DATA => http2::data(flow, io),
        phase::PAD => http2::pad(flow, io),
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
            if io.peek() == 0 {
                return Step::Unreadable;
            }
            flow.have = 0;
            flow.http1.column = 0;
            flow.phase = if io.window(0) == b'P' {
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
        protocol::OTHER => {
            flow.phase = phase::DEAD;
            return Step::More;
        }
        _ => {}
    }
    let n = io.peek();
    if n == 0 {
        return Step::Unreadable;
    }
    let first = io.window(0);
    if first == b'P' && (n < 3 || (io.window(1) == b'R' && io.window(2) == b'I')) {
        flow.have = 0;
        flow.http1.column = 0;
        flow.phase = phase::PREFACE;
    } else if first.is_ascii_uppercase() {
        if n >= 4 && !http1::begins([first, io.window(1), io.window(2), io.window(3)]) {
            return other(shared, flow);
        }
        shared.protocol = protocol::HTTP1;
        http1::enter(flow);
    } else if n >= 9 {
        let head = Head::parse(&[
            first,
            io.window(1),
            io.window(2),
            io.window(3),
            io.window(4),
            io.window(5),
            io.window(6),
            io.window(7),
            io.window(8),
        ]);
        // The server's preface: SETTINGS without ACK (RFC 9113 §3.4).
        if head.kind == frame::SETTINGS && head.flags == 0 && head.length <= 120 && http2::plausible(&head, true) {
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

#[inline(always)]
fn other(shared: &mut Shared, flow: &mut Flow) -> Step {
    shared.protocol = protocol::OTHER;
    flow.phase = phase::DEAD;
    Step::More
}

/// In the client's preface, or in an HTTP/1 method that begins with P and was cut before its third byte.
#[inline(always)]
fn preface<I: Io>(shared: &mut Shared, flow: &mut Flow, io: &mut I) -> Step {
    let n = io.peek();
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
