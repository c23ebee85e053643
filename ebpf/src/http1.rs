//! The HTTP/1 framer (RFC 9112): passes heads on, counts bodies.
//!
//! It reads of a head only what frames the message: the method or status,
//! Content-Length and Transfer-Encoding (RFC 9112 §6.3).

use tracewire_common::elided::{BLOCK_LIMIT, HEAD_END, HEAD_TRUNCATED, Head, frame};
use tracewire_common::fault::Fault;

use crate::connection::{Flow, Http1, Shared, phase, protocol};
use crate::io::{Io, SIGHT};
use crate::step::Step;

/// Bits of [`Http1::bits`].
pub mod bit {
    /// The message is a response.
    pub const RESPONSE: u8 = 1;
    /// Content-Length was seen.
    pub const LENGTH: u8 = 2;
    /// The last transfer coding is chunked.
    pub const CHUNKED: u8 = 4;
    /// The request's method is HEAD.
    pub const METHOD_HEAD: u8 = 8;
    /// The request's method is CONNECT.
    pub const METHOD_CONNECT: u8 = 16;
    /// Transfer-Encoding was seen.
    pub const ENCODED: u8 = 32;
    /// A chunk extension, or the rest of a line, is skipped.
    pub const REST: u8 = 64;
}

/// What entering a state of the head's automaton does. Any other value is
/// bits to set, [`bit::CHUNKED`] being cleared first.
mod act {
    pub const NONE: u8 = 0;
    pub const LENGTH_FIRST: u8 = 0x80;
    pub const LENGTH_NEXT: u8 = 0x81;
    pub const STATUS: u8 = 0x82;
    pub const END: u8 = 0x83;
    pub const BAD: u8 = 0x84;
}

/// States of the head's automaton at most.
const STATES: usize = 128;
/// Classes of bytes: ASCII, with 127 for the rest.
const CLASSES: usize = 128;

/// States with a meaning of their own; the rest spell out names.
mod state {
    /// Before the start line.
    pub const START: u8 = 0;
    /// In the rest of a line that says nothing.
    pub const REST: u8 = 1;
    /// At the start of a header line.
    pub const LINE: u8 = 2;
    pub const END: u8 = 3;
    pub const BAD: u8 = 4;
    /// In the start line of a request.
    pub const REQUEST: u8 = 5;
    /// `HTTP/1.` was read.
    pub const RESPONSE: u8 = 6;
    pub const STATUS_1: u8 = 8;
    pub const STATUS_2: u8 = 9;
    pub const STATUS_3: u8 = 10;
    /// Entered after `HEAD `, `CONNECT `.
    pub const HEAD: u8 = 11;
    pub const CONNECT: u8 = 12;
    /// In the value of Content-Length: before, at the first of, within its digits.
    pub const LENGTH: u8 = 13;
    pub const LENGTH_FIRST: u8 = 14;
    pub const LENGTH_NEXT: u8 = 15;
    /// In the value of Transfer-Encoding, 0 to 7 bytes of `chunked` matched.
    pub const ENCODING: u8 = 16;
    /// At the start of a header line after a Transfer-Encoding that ends with, or without, `chunked`.
    pub const LINE_CHUNKED: u8 = 24;
    pub const LINE_ENCODED: u8 = 25;
    /// The minor version was read.
    pub const VERSION: u8 = 26;
    pub const SPACE: u8 = 27;
    /// First of the states that spell names.
    pub const NAMES: u8 = 28;
}

/// One table for both cases of a letter.
const fn set(table: &mut [u8; STATES * CLASSES], from: u8, byte: u8, to: u8) {
    let lower = byte.to_ascii_lowercase() as usize;
    let upper = byte.to_ascii_uppercase() as usize;
    table[from as usize * CLASSES + lower] = to;
    table[from as usize * CLASSES + upper] = to;
}

/// Every byte from one state leads to another.
const fn fill(table: &mut [u8; STATES * CLASSES], from: u8, to: u8) {
    let mut c = 0;
    while c < CLASSES {
        table[from as usize * CLASSES + c] = to;
        c += 1;
    }
}

/// Spells `name` from a state on with states from `next` on; other bytes than
/// those spelt lead to `miss`, a line end to `line`. Returns the next free state.
const fn spell(
    table: &mut [u8; STATES * CLASSES],
    from: u8,
    name: &[u8],
    to: u8,
    mut next: u8,
    miss: u8,
    line: u8,
) -> u8 {
    let mut at = from;
    let mut i = 0;
    while i < name.len() {
        let last = i + 1 == name.len();
        let known = table[at as usize * CLASSES + name[i].to_ascii_lowercase() as usize];
        if !last && known >= state::NAMES {
            at = known;
        } else {
            let into = if last { to } else { next };
            set(table, at, name[i], into);
            if !last {
                fill(table, next, miss);
                set(table, next, b'\n', line);
                at = next;
                next += 1;
            }
        }
        i += 1;
    }
    next
}

const fn table() -> [u8; STATES * CLASSES] {
    let mut t = [0; STATES * CLASSES];
    // The start line: a method in capitals, or a status line (RFC 9112 §3, §4).
    fill(&mut t, state::START, state::BAD);
    set(&mut t, state::START, b'\r', state::START);
    set(&mut t, state::START, b'\n', state::START);
    let mut c = b'A';
    while c <= b'Z' {
        t[c as usize] = state::REQUEST;
        c += 1;
    }
    let mut next = state::NAMES;
    next = spell(
        &mut t,
        state::START,
        b"HTTP/1.",
        state::RESPONSE,
        next,
        state::REQUEST,
        state::LINE,
    );
    next = spell(
        &mut t,
        state::START,
        b"HEAD ",
        state::HEAD,
        next,
        state::REQUEST,
        state::LINE,
    );
    next = spell(
        &mut t,
        state::START,
        b"CONNECT ",
        state::CONNECT,
        next,
        state::REQUEST,
        state::LINE,
    );
    let mut c = b'a';
    while c <= b'z' {
        t[c as usize] = state::BAD;
        c += 1;
    }
    let in_line = [state::REQUEST, state::HEAD, state::CONNECT, state::REST];
    let mut i = 0;
    while i < in_line.len() {
        fill(
            &mut t,
            in_line[i],
            if in_line[i] == state::REST {
                state::REST
            } else {
                state::REQUEST
            },
        );
        set(&mut t, in_line[i], b'\n', state::LINE);
        i += 1;
    }
    fill(&mut t, state::RESPONSE, state::VERSION);
    set(&mut t, state::RESPONSE, b'\n', state::BAD);
    fill(&mut t, state::VERSION, state::BAD);
    set(&mut t, state::VERSION, b' ', state::SPACE);
    let status = [state::SPACE, state::STATUS_1, state::STATUS_2, state::STATUS_3];
    let mut i = 0;
    while i < 3 {
        fill(&mut t, status[i], state::BAD);
        let mut d = b'0';
        while d <= b'9' {
            set(&mut t, status[i], d, status[i + 1]);
            d += 1;
        }
        i += 1;
    }
    fill(&mut t, state::STATUS_3, state::REST);
    set(&mut t, state::STATUS_3, b'\n', state::LINE);
    // Header lines.
    let lines = [state::LINE, state::LINE_CHUNKED, state::LINE_ENCODED];
    fill(&mut t, state::LINE, state::REST);
    set(&mut t, state::LINE, b'\n', state::END);
    set(&mut t, state::LINE, b'\r', state::LINE);
    next = spell(
        &mut t,
        state::LINE,
        b"content-length:",
        state::LENGTH,
        next,
        state::REST,
        state::LINE,
    );
    next = spell(
        &mut t,
        state::LINE,
        b"transfer-encoding:",
        state::ENCODING,
        next,
        state::REST,
        state::LINE,
    );
    let mut i = 1;
    while i < lines.len() {
        let mut c = 0;
        while c < CLASSES {
            t[lines[i] as usize * CLASSES + c] = t[state::LINE as usize * CLASSES + c];
            c += 1;
        }
        i += 1;
    }
    // Content-Length: of a list of equal values the first counts (RFC 9112 §6.3).
    let digits = [state::LENGTH, state::LENGTH_FIRST, state::LENGTH_NEXT];
    let mut i = 0;
    while i < digits.len() {
        fill(&mut t, digits[i], state::REST);
        set(&mut t, digits[i], b'\n', state::LINE);
        let mut d = b'0';
        while d <= b'9' {
            set(
                &mut t,
                digits[i],
                d,
                if i == 0 {
                    state::LENGTH_FIRST
                } else {
                    state::LENGTH_NEXT
                },
            );
            d += 1;
        }
        i += 1;
    }
    set(&mut t, state::LENGTH, b' ', state::LENGTH);
    set(&mut t, state::LENGTH, b'\t', state::LENGTH);
    // Transfer-Encoding: `chunked` counts only where it ends the value.
    let chunked = b"chunked";
    let mut i = 0;
    while i <= chunked.len() {
        let at = state::ENCODING + i as u8;
        fill(&mut t, at, state::ENCODING);
        set(&mut t, at, b'c', state::ENCODING + 1);
        if i < chunked.len() {
            set(&mut t, at, chunked[i], at + 1);
            set(&mut t, at, b'\n', state::LINE_ENCODED);
        } else {
            set(&mut t, at, b'\n', state::LINE_CHUNKED);
            set(&mut t, at, b'\r', at);
            set(&mut t, at, b' ', at);
            set(&mut t, at, b'\t', at);
        }
        i += 1;
    }
    assert!((next as usize) < STATES);
    t
}

const fn actions() -> [u8; STATES] {
    let mut a = [act::NONE; STATES];
    a[state::END as usize] = act::END;
    a[state::BAD as usize] = act::BAD;
    a[state::RESPONSE as usize] = bit::RESPONSE;
    a[state::HEAD as usize] = bit::METHOD_HEAD;
    a[state::CONNECT as usize] = bit::METHOD_CONNECT;
    a[state::STATUS_1 as usize] = act::STATUS;
    a[state::STATUS_2 as usize] = act::STATUS;
    a[state::STATUS_3 as usize] = act::STATUS;
    a[state::LENGTH_FIRST as usize] = act::LENGTH_FIRST;
    a[state::LENGTH_NEXT as usize] = act::LENGTH_NEXT;
    a[state::LINE_CHUNKED as usize] = bit::ENCODED | bit::CHUNKED;
    a[state::LINE_ENCODED as usize] = bit::ENCODED;
    a
}

static TABLE: [u8; STATES * CLASSES] = table();
static ACTIONS: [u8; STATES] = actions();

/// Whether four first bytes (big-endian) can begin an HTTP/1 message: a method of RFC
/// 9110 or of common use, or a status line.
#[inline(always)]
pub fn begins(word: u32) -> bool {
    matches!(
        &word.to_be_bytes(),
        b"GET "
            | b"POST"
            | b"PUT "
            | b"HEAD"
            | b"DELE"
            | b"PATC"
            | b"OPTI"
            | b"CONN"
            | b"TRAC"
            | b"QUER"
            | b"HTTP"
            | b"PROP"
            | b"REPO"
            | b"MKCO"
            | b"SEAR"
            | b"COPY"
            | b"MOVE"
            | b"LOCK"
            | b"UNLO"
            | b"PURG"
    )
}

/// What one byte led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The next byte, please.
    Next,
    /// This byte is the last one.
    End,
    /// It can't be.
    Malformed,
}

/// Names of the machines, for surroundings that must choose one of several functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// [`HeadBytes`]
    Head,
    /// [`ChunkBytes`]
    Chunk,
    /// [`TrailerBytes`]
    Trailer,
    /// [`crate::http2::PrefaceBytes`]
    Preface,
}

/// A machine that reads byte by byte.
pub trait Bytes {
    /// Its name.
    const MACHINE: Machine;
    /// Takes one byte.
    fn byte(http1: &mut Http1, c: u8) -> Turn;
}

/// The bytes of a head.
pub struct HeadBytes;

impl Bytes for HeadBytes {
    const MACHINE: Machine = Machine::Head;

    #[inline(always)]
    fn byte(http1: &mut Http1, c: u8) -> Turn {
        head_byte(http1, c)
    }
}

/// The size line of a chunk (RFC 9112 §7.1).
pub struct ChunkBytes;

impl Bytes for ChunkBytes {
    const MACHINE: Machine = Machine::Chunk;

    #[inline(always)]
    fn byte(h: &mut Http1, c: u8) -> Turn {
        if c == b'\n' {
            // After the data of a chunk comes a line end of its own: an empty size line.
            let over = h.column != 0;
            h.column = 0;
            h.bits &= !bit::REST;
            return if over { Turn::End } else { Turn::Next };
        }
        if c == b'\r' {
            return Turn::Next;
        }
        h.column = 1;
        if h.bits & bit::REST != 0 {
            return Turn::Next;
        }
        let digit = match c {
            b'0'..=b'9' => c - b'0',
            b'a'..=b'f' => c - b'a' + 10,
            b'A'..=b'F' => c - b'A' + 10,
            b';' | b' ' | b'\t' => {
                h.bits |= bit::REST;
                return Turn::Next;
            }
            _ => return Turn::Malformed,
        };
        if h.left >> 56 != 0 {
            return Turn::Malformed;
        }
        h.left = h.left << 4 | u64::from(digit);
        Turn::Next
    }
}

/// The trailer section after the last chunk.
pub struct TrailerBytes;

impl Bytes for TrailerBytes {
    const MACHINE: Machine = Machine::Trailer;

    #[inline(always)]
    fn byte(h: &mut Http1, c: u8) -> Turn {
        if c == b'\n' {
            if h.column == 0 {
                return Turn::End;
            }
            h.column = 0;
        } else if c != b'\r' {
            h.column = 1;
        }
        Turn::Next
    }
}

/// One byte of a head: a turn of the automaton. Branches are few on purpose: the
/// verifier walks each of them in each state of its caller.
#[inline(always)]
fn head_byte(h: &mut Http1, c: u8) -> Turn {
    let class = if c < 128 { c } else { 127 };
    let at = (h.state as usize & (STATES - 1)) << 7 | (class as usize & 127);
    let state = TABLE[at & (STATES * CLASSES - 1)];
    h.state = state;
    match ACTIONS[state as usize & (STATES - 1)] {
        act::NONE => {}
        act::LENGTH_FIRST => {
            h.bits |= bit::LENGTH;
            h.left = u64::from(c & 15);
        }
        act::LENGTH_NEXT => h.left = h.left.wrapping_mul(10).wrapping_add(u64::from(c & 15)),
        act::STATUS => h.status = h.status.wrapping_mul(10).wrapping_add(u16::from(c & 15)),
        act::END => return Turn::End,
        act::BAD => return Turn::Malformed,
        bits => h.bits = h.bits & !bit::CHUNKED | bits,
    }
    Turn::Next
}

/// In a head.
#[inline(always)]
pub fn head<I: Io>(shared: &mut Shared, flow: &mut Flow, io: &mut I) -> Step {
    let n = io.look(SIGHT).min(SIGHT);
    if n == 0 {
        return Step::Unreadable;
    }
    let (used, turn) = io.scan::<HeadBytes>(n, &mut flow.http1);
    if turn == Turn::Malformed {
        return Step::Malformed;
    }
    let before = flow.http1.head;
    flow.http1.head = before.saturating_add(used);
    let fits = flow.http1.head <= BLOCK_LIMIT;
    let end = turn == Turn::End;
    let number = if flow.http1.bits & bit::RESPONSE == 0 {
        shared.requests.wrapping_add(1)
    } else {
        0
    };
    if fits {
        let flags = if end { HEAD_END } else { 0 };
        io.put(Head {
            length: used,
            kind: frame::HEAD,
            flags,
            stream: number,
        });
        if io.copy(used) != used {
            return Step::Unreadable;
        }
    } else {
        if before <= BLOCK_LIMIT {
            io.fault(Fault::BlockTooLong);
            io.put(Head {
                length: 0,
                kind: frame::HEAD,
                flags: HEAD_TRUNCATED | HEAD_END,
                stream: number,
            });
        }
        io.skip(used);
    }
    if end {
        head_end(shared, flow, io);
    }
    Step::More
}

/// The head is over: what frames the body (RFC 9112 §6.3).
#[inline(always)]
fn head_end<I: Io>(shared: &mut Shared, flow: &mut Flow, io: &mut I) {
    let mut h = flow.http1;
    flow.frames += 1;
    let mut body = true;
    let mut until_close = false;
    if h.bits & bit::RESPONSE != 0 {
        let status = h.status;
        if status == 101 {
            io.put(Head {
                length: 0,
                kind: frame::TUNNEL,
                flags: 0,
                stream: 0,
            });
            shared.protocol = protocol::UNKNOWN;
            shared.upgraded = 1;
            flow.phase = phase::START;
            flow.http1 = Http1::default();
            return;
        }
        if status >= 200 {
            let to_head = shared.heads & 1 != 0;
            let to_connect = shared.connects & 1 != 0;
            if shared.unanswered != 0 {
                shared.unanswered -= 1;
                shared.heads >>= 1;
                shared.connects >>= 1;
            }
            if to_connect && status < 300 {
                io.put(Head {
                    length: 0,
                    kind: frame::TUNNEL,
                    flags: 0,
                    stream: 0,
                });
                shared.protocol = protocol::OTHER;
                flow.phase = phase::DEAD;
                return;
            }
            if to_head || status == 204 || status == 304 {
                body = false;
            }
            until_close = body && h.bits & (bit::LENGTH | bit::CHUNKED) == 0;
        } else {
            body = false;
        }
    } else {
        let at = shared.unanswered;
        if at < 64 {
            let mask = 1u64 << (at & 63);
            shared.heads &= !mask;
            shared.connects &= !mask;
            if h.bits & bit::METHOD_HEAD != 0 {
                shared.heads |= mask;
            }
            if h.bits & bit::METHOD_CONNECT != 0 {
                shared.connects |= mask;
            }
        }
        shared.unanswered = at.saturating_add(1);
        shared.requests = shared.requests.wrapping_add(1);
        if h.bits & bit::ENCODED != 0 && h.bits & bit::CHUNKED == 0 {
            // A request whose length can't be known: the server must refuse it.
            flow.phase = phase::DEAD;
            return;
        }
    }
    // Transfer-Encoding wins over Content-Length.
    h.body = 0;
    h.column = 0;
    h.state = 0;
    let bits = h.bits;
    h.bits = 0;
    if until_close || bits & bit::ENCODED != 0 && bits & bit::CHUNKED == 0 && body {
        flow.phase = phase::HTTP1_CLOSE;
    } else if body && bits & bit::CHUNKED != 0 {
        h.left = 0;
        flow.phase = phase::HTTP1_CHUNK;
    } else if body && bits & bit::LENGTH != 0 && h.left != 0 {
        flow.phase = phase::HTTP1_BODY;
    } else {
        flow.http1 = h;
        body_end(flow, io);
        return;
    }
    flow.http1 = h;
}

/// The message is over.
#[inline(always)]
fn body_end<I: Io>(flow: &mut Flow, io: &mut I) {
    io.put(Head {
        length: 8,
        kind: frame::BODY_END,
        flags: 0,
        stream: 0,
    });
    io.put_u64(flow.http1.body);
    flow.http1 = Http1::default();
    flow.phase = phase::HTTP1_HEAD;
}

/// In a body of known length, or in the data of a chunk.
#[inline(always)]
pub fn body<I: Io>(flow: &mut Flow, io: &mut I) -> Step {
    let left = flow.http1.left;
    let available = io.available();
    let n = if left < u64::from(available) {
        left as u32
    } else {
        available
    };
    io.skip(n);
    flow.http1.left = left - u64::from(n);
    flow.http1.body = flow.http1.body.wrapping_add(u64::from(n));
    if flow.http1.left == 0 {
        if flow.phase == phase::HTTP1_BODY {
            body_end(flow, io);
        } else {
            flow.phase = phase::HTTP1_CHUNK;
        }
    }
    Step::More
}

/// In a body that ends with the shared.
#[inline(always)]
pub fn until_close<I: Io>(flow: &mut Flow, io: &mut I) -> Step {
    let n = io.available();
    io.skip(n);
    flow.http1.body = flow.http1.body.wrapping_add(u64::from(n));
    Step::More
}

/// In a chunk's size line or in the trailer section (RFC 9112 §7.1).
#[inline(always)]
pub fn lines<I: Io>(flow: &mut Flow, io: &mut I) -> Step {
    let n = io.look(SIGHT).min(SIGHT);
    if n == 0 {
        return Step::Unreadable;
    }
    let trailer = flow.phase == phase::HTTP1_TRAILER;
    let (used, turn) = if trailer {
        io.scan::<TrailerBytes>(n, &mut flow.http1)
    } else {
        io.scan::<ChunkBytes>(n, &mut flow.http1)
    };
    if turn == Turn::Malformed {
        return Step::Malformed;
    }
    io.skip(used);
    flow.http1.body = flow.http1.body.wrapping_add(u64::from(used));
    if turn == Turn::End {
        if trailer {
            body_end(flow, io);
        } else if flow.http1.left == 0 {
            flow.phase = phase::HTTP1_TRAILER;
        } else {
            flow.phase = phase::HTTP1_CHUNK_DATA;
        }
    }
    Step::More
}

/// Begins to look for a head.
#[inline(always)]
pub fn enter(flow: &mut Flow) {
    flow.http1 = Http1::default();
    flow.phase = phase::HTTP1_HEAD;
}

/// The first `n` ≤ 2 bytes of the head were taken for the start of HTTP/2's preface, `PR`.
#[inline(always)]
pub fn replay<I: Io>(flow: &mut Flow, io: &mut I, n: u8) {
    if n >= 1 {
        io.put(Head {
            length: 1,
            kind: frame::HEAD,
            flags: 0,
            stream: 0,
        });
        io.put_byte(b'P');
        flow.http1.state = state::REQUEST;
    }
    if n == 2 {
        io.put(Head {
            length: 1,
            kind: frame::HEAD,
            flags: 0,
            stream: 0,
        });
        io.put_byte(b'R');
    }
    flow.http1.head = u32::from(n);
}
