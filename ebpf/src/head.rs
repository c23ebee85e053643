//! Heads of HTTP/1.1 requests, read strictly (RFC 9112): for a context in them, and for
//! where one may be put in. What two readers could read in two ways is no head.
//!
//! Bias: strict. Lines end with CRLF, names are tokens followed by a colon, nothing is folded,
//! the target is in origin form, a body is counted in one way; all else is malformed,
//! and what is malformed is neither read nor written.
//!
//! ```text
//!   START > METHOD > TARGET > VERSION > LINE <--> NAME > VALUE     LINE --CRLF--> END
//!   CHUNK > SIZE --CRLF--> DATA      DATA_END --CRLF--> CHUNK      (RFC 9112 §7.1)
//! ```

use crate::block::{Block, name};
use crate::bound::opaque;

/// Bits of [`Strict::bits`].
pub mod bit {
    /// Content-Length was there.
    pub const LENGTH: u8 = 1;
    /// Transfer-Encoding was there, and is `chunked`.
    pub const CHUNKED: u8 = 2;
    /// Upgrade was there: another protocol may follow.
    pub const UPGRADE: u8 = 4;
    /// Expect was there: the body may be left out.
    pub const EXPECT: u8 = 8;
    /// It is HTTP/1.0.
    pub const OLD: u8 = 16;
    /// The trailer section is under way, no head.
    pub const TRAILER: u8 = 32;
}

/// States at most.
const STATES: usize = 128;
/// Classes of bytes: ASCII, with 127 for the rest.
const CLASSES: usize = 128;
/// Bytes that are read in one go: more would only cost the verifier.
pub const GO: u32 = 16;
/// Longest Content-Length, and size of a chunk, that is believed.
const MOST: u64 = 1 << 56;

/// States with a meaning of their own; the rest spell out names.
pub mod state {
    /// It can't be.
    pub const BAD: u8 = 0;
    /// Before the first byte.
    pub const START: u8 = 1;
    pub(super) const METHOD: u8 = 2;
    pub(super) const TARGET_FIRST: u8 = 3;
    pub(super) const TARGET: u8 = 4;
    /// 0 to 7 bytes of `HTTP/1.` were read.
    pub(super) const VERSION: u8 = 5;
    pub(super) const MINOR_1: u8 = 13;
    pub(super) const MINOR_0: u8 = 14;
    pub(super) const START_CR: u8 = 15;
    /// At the start of a line.
    pub const LINE: u8 = 16;
    pub(super) const NAME: u8 = 17;
    pub(super) const VALUE: u8 = 18;
    pub(super) const LINE_CR: u8 = 19;
    pub(super) const END_CR: u8 = 20;
    pub(super) const END: u8 = 21;
    /// In the value of `traceparent`: before it, in it, behind it, behind what can't be; its end.
    pub(super) const PARENT: u8 = 22;
    /// The same of `sentry-trace`.
    pub(super) const SENTRY: u8 = 27;
    pub(super) const LENGTH: u8 = 32;
    pub(super) const LENGTH_SPACE: u8 = 33;
    pub(super) const LENGTH_DIGIT: u8 = 34;
    pub(super) const LENGTH_TAIL: u8 = 35;
    pub(super) const CODING: u8 = 36;
    /// 0 to 6 bytes of `chunked` were read.
    pub(super) const CODING_TEXT: u8 = 37;
    pub(super) const CODED: u8 = 44;
    pub(super) const CODED_TAIL: u8 = 45;
    pub(super) const UPGRADE: u8 = 46;
    pub(super) const EXPECT: u8 = 47;
    /// Before the size of a chunk.
    pub const CHUNK: u8 = 48;
    pub(super) const SIZE: u8 = 49;
    pub(super) const SIZE_CR: u8 = 50;
    pub(super) const DATA: u8 = 51;
    /// Behind the data of a chunk.
    pub const DATA_END: u8 = 52;
    pub(super) const DATA_CR: u8 = 53;
    /// First of the states that spell names.
    pub(super) const NAMES: u8 = 54;
}

/// What entering a state does.
mod act {
    pub const NONE: u8 = 0;
    pub const BAD: u8 = 1;
    pub const END: u8 = 2;
    pub const DATA: u8 = 3;
    pub const LINE: u8 = 4;
    pub const PARENT: u8 = 5;
    pub const SENTRY: u8 = 6;
    pub const TEXT: u8 = 7;
    pub const ODD: u8 = 8;
    pub const VALUE: u8 = 9;
    pub const LENGTH: u8 = 10;
    pub const DIGIT: u8 = 11;
    pub const CODING: u8 = 12;
    pub const HEX: u8 = 13;
    /// Sets the bit of the number less this.
    pub const BITS: u8 = 64;
}

type Table = [u8; STATES * CLASSES];

const fn set(table: &mut Table, from: u8, byte: u8, to: u8) {
    table[from as usize * CLASSES + byte as usize] = to;
}

/// Both cases of a letter.
const fn letter(table: &mut Table, from: u8, byte: u8, to: u8) {
    set(table, from, byte.to_ascii_lowercase(), to);
    set(table, from, byte.to_ascii_uppercase(), to);
}

const fn blank(table: &mut Table, from: u8, to: u8) {
    set(table, from, b' ', to);
    set(table, from, b'\t', to);
}

/// Characters of a token (RFC 9110 §5.6.2).
const fn token(table: &mut Table, from: u8, to: u8) {
    let others = b"!#$%&'*+-.^_`|~";
    let mut i = 0;
    while i < others.len() {
        set(table, from, others[i], to);
        i += 1;
    }
    let mut c = 0u8;
    while c < 128 {
        if c.is_ascii_alphanumeric() {
            set(table, from, c, to);
        }
        c += 1;
    }
}

/// Characters of a value (RFC 9110 §5.5), blanks included.
const fn text(table: &mut Table, from: u8, to: u8) {
    let mut c = 0x20;
    while c < 128 {
        set(table, from, c, to);
        c += 1;
    }
    set(table, from, b'\t', to);
}

/// Spells a name from the start of a line on, in any case; its colon leads to `to`.
const fn spell(table: &mut Table, name: &[u8], to: u8, mut next: u8) -> u8 {
    let mut at = state::LINE;
    let mut i = 0;
    while i < name.len() {
        let known = table[at as usize * CLASSES + name[i] as usize];
        if known >= state::NAMES {
            at = known;
        } else {
            token(table, next, state::NAME);
            set(table, next, b':', state::VALUE);
            letter(table, at, name[i], next);
            at = next;
            next += 1;
        }
        i += 1;
    }
    set(table, at, b':', to);
    next
}

/// The value of a context.
const fn context(t: &mut Table, before: u8) {
    let (within, behind, odd, over) = (before + 1, before + 2, before + 3, before + 4);
    text(t, before, within);
    text(t, within, within);
    text(t, behind, odd);
    text(t, odd, odd);
    blank(t, before, before);
    blank(t, within, behind);
    blank(t, behind, behind);
    let mut from = before;
    while from < over {
        set(t, from, b'\r', over);
        from += 1;
    }
    set(t, over, b'\n', state::LINE);
}

const fn table() -> Table {
    // Where nothing else is said, BAD.
    let mut t = [0; STATES * CLASSES];
    let mut c = b'A';
    while c <= b'Z' {
        set(&mut t, state::START, c, state::METHOD);
        set(&mut t, state::METHOD, c, state::METHOD);
        c += 1;
    }
    set(&mut t, state::METHOD, b'-', state::METHOD);
    set(&mut t, state::METHOD, b'_', state::METHOD);
    set(&mut t, state::METHOD, b' ', state::TARGET_FIRST);
    // Origin form, and that of OPTIONS for the server itself (RFC 9112 §3.2.1, §3.2.4).
    set(&mut t, state::TARGET_FIRST, b'/', state::TARGET);
    set(&mut t, state::TARGET_FIRST, b'*', state::TARGET);
    text(&mut t, state::TARGET, state::TARGET);
    set(&mut t, state::TARGET, b'\t', state::BAD);
    set(&mut t, state::TARGET, b' ', state::VERSION);
    let version = b"HTTP/1.";
    let mut i = 0;
    while i < version.len() {
        let from = state::VERSION + i as u8;
        set(&mut t, from, version[i], from + 1);
        i += 1;
    }
    set(&mut t, state::VERSION + 7, b'1', state::MINOR_1);
    set(&mut t, state::VERSION + 7, b'0', state::MINOR_0);
    set(&mut t, state::MINOR_1, b'\r', state::START_CR);
    set(&mut t, state::MINOR_0, b'\r', state::START_CR);
    set(&mut t, state::START_CR, b'\n', state::LINE);

    token(&mut t, state::LINE, state::NAME);
    set(&mut t, state::LINE, b'\r', state::END_CR);
    set(&mut t, state::END_CR, b'\n', state::END);
    token(&mut t, state::NAME, state::NAME);
    set(&mut t, state::NAME, b':', state::VALUE);
    let values = [state::VALUE, state::UPGRADE, state::EXPECT];
    i = 0;
    while i < values.len() {
        text(&mut t, values[i], state::VALUE);
        set(&mut t, values[i], b'\r', state::LINE_CR);
        i += 1;
    }
    set(&mut t, state::LINE_CR, b'\n', state::LINE);
    context(&mut t, state::PARENT);
    context(&mut t, state::SENTRY);

    let mut next = state::NAMES;
    next = spell(&mut t, b"traceparent", state::PARENT, next);
    next = spell(&mut t, b"transfer-encoding", state::CODING, next);
    next = spell(&mut t, b"sentry-trace", state::SENTRY, next);
    next = spell(&mut t, b"content-length", state::LENGTH, next);
    next = spell(&mut t, b"upgrade", state::UPGRADE, next);
    next = spell(&mut t, b"expect", state::EXPECT, next);
    assert!((next as usize) <= STATES);

    blank(&mut t, state::LENGTH, state::LENGTH_SPACE);
    blank(&mut t, state::LENGTH_SPACE, state::LENGTH_SPACE);
    blank(&mut t, state::LENGTH_DIGIT, state::LENGTH_TAIL);
    blank(&mut t, state::LENGTH_TAIL, state::LENGTH_TAIL);
    c = b'0';
    while c <= b'9' {
        set(&mut t, state::LENGTH, c, state::LENGTH_DIGIT);
        set(&mut t, state::LENGTH_SPACE, c, state::LENGTH_DIGIT);
        set(&mut t, state::LENGTH_DIGIT, c, state::LENGTH_DIGIT);
        c += 1;
    }
    set(&mut t, state::LENGTH_DIGIT, b'\r', state::LINE_CR);
    set(&mut t, state::LENGTH_TAIL, b'\r', state::LINE_CR);

    // `chunked` alone: what else a body went through, its end is not certain.
    let chunked = b"chunked";
    blank(&mut t, state::CODING, state::CODING_TEXT);
    letter(&mut t, state::CODING, chunked[0], state::CODING_TEXT + 1);
    blank(&mut t, state::CODING_TEXT, state::CODING_TEXT);
    i = 0;
    while i < chunked.len() {
        let from = state::CODING_TEXT + i as u8;
        letter(&mut t, from, chunked[i], from + 1);
        i += 1;
    }
    blank(&mut t, state::CODED, state::CODED_TAIL);
    blank(&mut t, state::CODED_TAIL, state::CODED_TAIL);
    set(&mut t, state::CODED, b'\r', state::LINE_CR);
    set(&mut t, state::CODED_TAIL, b'\r', state::LINE_CR);

    c = 0;
    while c < 128 {
        if c.is_ascii_hexdigit() {
            set(&mut t, state::CHUNK, c, state::SIZE);
            set(&mut t, state::SIZE, c, state::SIZE);
        }
        c += 1;
    }
    set(&mut t, state::SIZE, b'\r', state::SIZE_CR);
    set(&mut t, state::SIZE_CR, b'\n', state::DATA);
    set(&mut t, state::DATA_END, b'\r', state::DATA_CR);
    set(&mut t, state::DATA_CR, b'\n', state::CHUNK);
    t
}

const fn actions() -> [u8; STATES] {
    let mut a = [act::NONE; STATES];
    a[state::BAD as usize] = act::BAD;
    a[state::END as usize] = act::END;
    a[state::DATA as usize] = act::DATA;
    a[state::LINE as usize] = act::LINE;
    a[state::PARENT as usize] = act::PARENT;
    a[state::SENTRY as usize] = act::SENTRY;
    let mut i = 0;
    while i < 2 {
        let before = if i == 0 { state::PARENT } else { state::SENTRY } as usize;
        a[before + 1] = act::TEXT;
        a[before + 3] = act::ODD;
        a[before + 4] = act::VALUE;
        i += 1;
    }
    a[state::LENGTH as usize] = act::LENGTH;
    a[state::LENGTH_DIGIT as usize] = act::DIGIT;
    a[state::CODING as usize] = act::CODING;
    a[state::SIZE as usize] = act::HEX;
    a[state::CODED as usize] = act::BITS | bit::CHUNKED;
    a[state::UPGRADE as usize] = act::BITS | bit::UPGRADE;
    a[state::EXPECT as usize] = act::BITS | bit::EXPECT;
    a[state::MINOR_0 as usize] = act::BITS | bit::OLD;
    a
}

static TABLE: Table = table();
static ACTIONS: [u8; STATES] = actions();

/// What a byte led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Turn {
    /// The next byte, please.
    Next = 0,
    /// The next byte, after [`Block::value_ends`].
    Value = 1,
    /// The head, or the trailer section, is over.
    End = 2,
    /// The data of a chunk begins, [`Strict::left`] bytes; none: the trailer section.
    Data = 3,
    /// It can't be.
    Malformed = 4,
}

/// A head under way.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Strict {
    /// Content-Length, or the size of the chunk.
    pub left: u64,
    /// Bytes of the head so far.
    pub bytes: u32,
    /// Lines of the head so far.
    pub lines: u16,
    /// One of [`state`].
    pub state: u8,
    /// Bits of [`bit`].
    pub bits: u8,
}

impl Strict {
    /// Before the first byte of a head.
    pub const START: Strict = Strict {
        left: 0,
        bytes: 0,
        lines: 0,
        state: state::START,
        bits: 0,
    };

    /// One byte of a head, or of what stands between chunks. Branches are few on purpose: the
    /// verifier walks each of them in each turn of its caller.
    #[inline(always)]
    pub fn byte(&mut self, block: &mut Block, c: u8) -> Turn {
        let class = if c < 128 { c } else { 127 };
        let at = opaque((self.state as u64 & (STATES as u64 - 1)) << 7 | class as u64);
        let state = TABLE[at as usize & (STATES * CLASSES - 1)];
        self.state = state;
        self.bytes = self.bytes.wrapping_add(1);
        match ACTIONS[opaque(state as u64) as usize & (STATES - 1)] {
            act::NONE => {}
            act::BAD => return Turn::Malformed,
            act::END => return Turn::End,
            act::DATA => return Turn::Data,
            act::LINE => self.lines = self.lines.wrapping_add(1),
            act::PARENT => block.value_begins(name::TRACEPARENT),
            act::SENTRY => block.value_begins(name::SENTRY),
            act::TEXT => block.value_byte(c),
            act::ODD => block.value_odd(),
            act::VALUE => return Turn::Value,
            act::LENGTH => {
                if self.bits & bit::LENGTH != 0 {
                    return Turn::Malformed;
                }
                self.bits |= bit::LENGTH;
                self.left = 0;
            }
            act::DIGIT => {
                if self.left >= MOST {
                    return Turn::Malformed;
                }
                self.left = self.left.wrapping_mul(10).wrapping_add(u64::from(c & 15));
            }
            act::CODING => {
                if self.bits & bit::CHUNKED != 0 {
                    return Turn::Malformed;
                }
            }
            act::HEX => {
                if self.left >= MOST {
                    return Turn::Malformed;
                }
                let digit = if c > b'9' { (c & 7) + 9 } else { c & 15 };
                self.left = self.left << 4 | u64::from(digit);
            }
            bits => self.bits |= bits & !act::BITS,
        }
        Turn::Next
    }
}
