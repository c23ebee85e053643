//! The HTTP/2 injector (RFC 9113): follows the frames that a client sends and
//! puts `traceparent` at the end of the header block of each request, as a
//! literal without indexing (RFC 7541 §6.2.2), so that nobody's table moves.
//!
//! Bias: a connection whose framing is in doubt, a request that may have a
//! context already, a block that is not whole in one write are left as they
//! are, and counted. Nothing is ever put anywhere but at the end of a block.
//!
//! ```text
//!   START --preface--> PREFACE > HEAD <--> SKIP
//!         --anything else--> DEAD   ^--> FRAGMENT: the block is walked, then the field goes in
//!   (gap) --> LOST
//! ```

use tracewire_common::elided::{FRAME_HEADER, Head, flag, frame};
use tracewire_common::event::Header;
use tracewire_common::inject::Fate;
use tracewire_common::trace::{Context, Injected, LENGTH, NAME, SAMPLED, TraceParent};

use crate::block::{self, Block, Piece, Table, sign};
use crate::bound::opaque;
use crate::head::{self, Strict};
use crate::http2::{PREFACE, PREFACE_TABLE, plausible};
use crate::outbound1;

/// Bytes of the field: a literal without indexing with a new name, both strings plain.
pub const FIELD: usize = 3 + NAME.len() + LENGTH;
/// Room for what is put in, bytes.
pub const TEXT: usize = 72;
/// Payload that every peer takes (RFC 9113 §6.5.2, SETTINGS_MAX_FRAME_SIZE).
const FRAME_LIMIT: u32 = 16_384;
/// Bytes that are looked at in one step, at most.
pub const PIECE: usize = 256;
/// What the field adds to a header list (RFC 9113 §6.5.2, SETTINGS_MAX_HEADER_LIST_SIZE).
const LIST_BYTES: u32 = (NAME.len() + LENGTH) as u32 + 32;

/// Values of [`Outbound::phase`].
pub mod phase {
    /// Before the first byte.
    pub const START: u8 = 0;
    /// In the client's preface.
    pub const PREFACE: u8 = 1;
    /// In a frame header.
    pub const HEAD: u8 = 2;
    /// In bytes that are passed over.
    pub const SKIP: u8 = 3;
    /// In a fragment of a header block.
    pub const FRAGMENT: u8 = 4;
    /// Out of step.
    pub const LOST: u8 = 5;
    /// Not to be touched any more.
    pub const DEAD: u8 = 6;
    /// HTTP/1, in a head or between chunks: see [`crate::outbound1`].
    pub const HTTP1: u8 = 7;
    /// HTTP/1, in a body.
    pub const BODY1: u8 = 8;
}

/// Values of [`Outbound::proof`].
pub mod proof {
    /// None yet.
    pub const NONE: u8 = 0;
    /// The client's preface was seen.
    pub const PREFACE: u8 = 1;
    /// And its SETTINGS.
    pub const SETTINGS: u8 = 2;
}

/// What the agent is told of an insertion: a whole record.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Its header.
    pub header: Header,
    /// What was put in.
    pub injected: Injected,
}

/// What is remembered of a connection that requests are sent on.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outbound {
    /// The record under way.
    pub told: Told,
    /// TCP sequence number at which the next run must begin.
    pub next: u32,
    /// Bytes put in so far, modulo 2³².
    pub injected: u32,
    /// Bytes of the run's message.
    pub size: u32,
    /// Where the run stands.
    pub at: u32,
    /// Bytes that this run speaks for; 0: all.
    pub apply: u32,
    /// Bytes left of what the phase is in.
    pub need: u32,
    /// Padding after the fragment.
    pub pad: u32,
    /// Payload length of the current frame.
    pub length: u32,
    /// Stream of the block under way.
    pub stream: u32,
    /// Highest stream that a request was sent on.
    pub newest: u32,
    /// Bytes of the block under way.
    pub total: u32,
    /// Peer's SETTINGS_MAX_HEADER_LIST_SIZE; 0: none that is known.
    pub list_limit: u32,
    /// HTTP/1: requests so far.
    pub requests: u32,
    /// One of [`phase`].
    pub phase: u8,
    /// One of [`proof`].
    pub proof: u8,
    /// Bytes gathered in `header`, or of the preface.
    pub have: u8,
    /// Flags of the current frame.
    pub flags: u8,
    /// 1: a block waits for its CONTINUATION.
    pub open: u8,
    /// 1: the block under way is a request's.
    pub request: u8,
    /// 1: the current frame begins at the first byte of the run's message.
    pub whole: u8,
    /// 1: it is to be put in the sockhash once it is established; 2: it is to be taken out again.
    pub enrolling: u8,
    /// The current frame's header.
    pub header: [u8; 32],
    /// What is put in: [`FIELD`] bytes, or [`crate::outbound1::LINE`].
    pub field: [u8; TEXT],
    /// HTTP/1: bytes left of the body, or of the chunk.
    pub body: u64,
    /// HTTP/1: the head under way, or what stands between chunks.
    pub strict: Strict,
    /// HTTP/1: what the walk over the piece led to, a [`crate::head::Turn`].
    pub turn: u8,
    /// HTTP/1: 1: the body may be left out.
    pub expects: u8,
    /// 1: the run began elsewhere than the last one ended: see [`Outbound::resume`].
    pub astray: u8,
    /// Must be 0.
    pub reserved: [u8; 1],
    /// Frames of header blocks so far, modulo 2³².
    pub blocks: u32,
    /// Where the walk stands in `piece`, and how many bytes are left.
    pub walked: u32,
    /// As said.
    pub unwalked: u32,
    /// Bytes of the message.
    pub piece: [u8; PIECE],
    /// The block under way.
    pub block: Block,
    /// Its table.
    pub table: Table,
}

/// What came of an insertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// It is there.
    Done,
    /// Nothing was changed.
    Refused,
    /// What was changed was changed back.
    RolledBack,
}

/// A piece of what the application writes, from the run's first byte on.
pub trait Message {
    /// How many bytes can be read.
    fn window(&self) -> u32;
    /// Makes the first `n` bytes readable. False: it can't be done.
    fn linear(&mut self, n: u32) -> bool;
    /// Copies bytes `at..at + n`, which can be read, to the first of [`Outbound::piece`]; `n` is at most [`PIECE`].
    fn copy(&mut self, out: &mut Outbound, at: u32, n: u32) -> bool;
    /// Walks the first `n` bytes of [`Outbound::piece`]: [`Outbound::walk_block`], or of HTTP/1 [`Outbound::walk_head`].
    fn walk(&mut self, out: &mut Outbound, n: u32);
    /// Whether the next `n` bytes are certain to fit the send buffer.
    fn room(&mut self, n: u32) -> bool;
    /// Finds the context of a request, [`Outbound::told`], and makes a field of it, [`Outbound::field`].
    /// Else why there is none.
    fn context(&mut self, out: &mut Outbound) -> Result<(), Fate>;
    /// Puts [`Outbound::field`] in at `at` and makes `length` the payload length of the
    /// frame that begins at 0.
    fn insert(&mut self, out: &mut Outbound, at: u32, length: u32) -> Inserted;
    /// HTTP/1: puts the line in [`Outbound::field`] in at `at`.
    fn insert_line(&mut self, out: &mut Outbound, at: u32) -> Inserted;
    /// Counts.
    fn fate(&mut self, fate: Fate);
}

/// A context as it goes to the wire.
#[inline(always)]
pub fn parent(context: &Context) -> TraceParent {
    TraceParent {
        trace_id: context.trace_id,
        span_id: context.span_id,
        // Level 1 knows no flag but this one, and some of its readers refuse others.
        flags: context.flags & SAMPLED,
    }
}

/// Writes the field as it goes into a block.
#[inline(always)]
pub fn write(context: &Context, bytes: &mut [u8; FIELD]) {
    let context = parent(context);
    bytes[0] = 0;
    bytes[1] = NAME.len() as u8;
    let mut i = 0;
    while i < NAME.len() {
        bytes[2 + i] = NAME[i];
        i += 1;
    }
    bytes[2 + NAME.len()] = LENGTH as u8;
    // SAFETY: the last 55 of the field's bytes, which have no alignment.
    let value = unsafe { bytes.as_mut_ptr().add(3 + NAME.len()) };
    // SAFETY: as above.
    context.write(unsafe { &mut *value.cast::<[u8; LENGTH]>() });
}

pub(crate) struct Bytes<'a>(pub(crate) &'a [u8; PIECE]);

impl Bytes<'_> {
    #[inline(always)]
    pub(crate) fn at(&self, at: u32) -> u8 {
        self.0[(opaque(u64::from(at)) & (PIECE as u64 - 1)) as usize]
    }
}

impl Piece for Bytes<'_> {
    #[inline(always)]
    fn byte(&self, at: u32) -> u8 {
        self.0[at as usize & (PIECE - 1)]
    }
}

impl Outbound {
    /// Before the first byte.
    pub const EMPTY: Outbound = Outbound {
        next: 0,
        injected: 0,
        size: 0,
        at: 0,
        apply: 0,
        need: 0,
        pad: 0,
        length: 0,
        stream: 0,
        newest: 0,
        total: 0,
        list_limit: 0,
        requests: 0,
        phase: phase::START,
        proof: proof::NONE,
        have: 0,
        flags: 0,
        open: 0,
        request: 0,
        whole: 0,
        enrolling: 0,
        header: [0; 32],
        field: [0; TEXT],
        body: 0,
        strict: Strict::START,
        turn: 0,
        expects: 0,
        astray: 0,
        reserved: [0; 1],
        blocks: 0,
        walked: 0,
        unwalked: 0,
        piece: [0; PIECE],
        told: Told {
            header: Header::EMPTY,
            injected: Injected::EMPTY,
        },
        block: Block::EMPTY,
        table: Table::EMPTY,
    };

    /// A run over a message of `size` bytes begins at sequence number `sequence`.
    #[inline(always)]
    pub fn begin(&mut self, size: u32, sequence: u32) {
        let unseen = sequence.wrapping_sub(self.next);
        self.next = sequence;
        self.size = size;
        self.at = 0;
        self.apply = 0;
        self.whole = 0;
        self.astray = 0;
        if unseen == 0 {
            return;
        }
        if self.phase == phase::SKIP && unseen <= self.need {
            self.need -= unseen;
        } else if self.phase == phase::BODY1 && self.expects == 0 && u64::from(unseen) < self.body {
            self.body -= u64::from(unseen);
        } else if matches!(self.phase, phase::HEAD | phase::SKIP | phase::HTTP1 | phase::BODY1) {
            // A write that ended early, and one that passed unseen because of it.
            self.astray = 1;
        } else if self.phase != phase::DEAD {
            self.lose();
        }
    }

    /// Goes on where the observer stands, which saw what the kernel took: in the middle of a frame
    /// or body, `left` bytes before its end, and behind as many header blocks (HTTP/1: requests).
    #[inline(always)]
    pub fn resume(&mut self, left: u64, blocks: u32) {
        self.astray = 0;
        self.have = 0;
        let certain = match self.phase {
            phase::HEAD | phase::SKIP => {
                self.skip(left as u32);
                self.proof == proof::SETTINGS && self.open == 0 && blocks == self.blocks
            }
            // Of chunks it can't be told where the next size is.
            phase::HTTP1 | phase::BODY1 => {
                let counted = self.strict.bits & head::bit::CHUNKED == 0 && self.expects == 0;
                self.body = left;
                self.phase = phase::BODY1;
                if left == 0 {
                    outbound1::passed(self);
                }
                counted && blocks == self.requests
            }
            _ => false,
        };
        if !certain {
            self.lose();
        }
    }

    /// Bytes went by unseen.
    #[inline(always)]
    pub fn lose(&mut self) {
        self.phase = phase::LOST;
        self.have = 0;
        self.open = 0;
        self.table.lose();
    }

    /// One step of the walk over the piece, as a part of a block. False: it is over.
    #[inline(always)]
    pub fn walk_block(&mut self) -> bool {
        if self.unwalked == 0 {
            return false;
        }
        let piece = Bytes(&self.piece);
        let n = self.block.step(&mut self.table, &piece, self.walked, self.unwalked);
        self.walked = self.walked.wrapping_add(n);
        self.unwalked = self.unwalked.wrapping_sub(n);
        true
    }

    /// The run is over.
    #[inline(always)]
    pub fn end(&mut self) {
        let spoken = if self.apply == 0 { self.size } else { self.apply };
        self.next = self.next.wrapping_add(spoken);
    }

    #[inline(always)]
    fn skip(&mut self, n: u32) {
        self.need = n;
        self.phase = if n == 0 { phase::HEAD } else { phase::SKIP };
    }
}

/// One step of a run. False: it is over.
#[inline(always)]
pub fn step<M: Message>(out: &mut Outbound, message: &mut M) -> bool {
    if out.at >= out.size {
        return false;
    }
    let left = out.size - out.at;
    match out.phase {
        phase::SKIP => {
            let n = if out.need < left { out.need } else { left };
            out.at += n;
            out.skip(out.need - n);
            true
        }
        phase::HEAD => head(out, message, left),
        phase::FRAGMENT => fragment(out, message, left),
        phase::START | phase::PREFACE => preface(out, message, left),
        phase::HTTP1 => outbound1::lines(out, message, left),
        phase::BODY1 => outbound1::body(out, message, left),
        _ => false,
    }
}

/// Fetches the next `n` bytes, if they can be read; where they lie beyond what can, the run
/// ends before `at`, so that the next one begins there.
#[inline(always)]
pub(crate) fn readable<M: Message>(out: &mut Outbound, message: &mut M, n: u32) -> bool {
    if out.at != 0 && message.window() < out.at + n {
        out.apply = out.at;
        return false;
    }
    fetch(out, message, n)
}

/// Fetches the next `n` bytes of a frame that the run began with.
#[inline(always)]
pub(crate) fn fetch<M: Message>(out: &mut Outbound, message: &mut M, n: u32) -> bool {
    let at = out.at;
    let end = at.saturating_add(n);
    if (message.window() >= end || message.linear(end)) && message.copy(out, at, n) {
        return true;
    }
    out.phase = phase::DEAD;
    false
}

/// All ones if `i < n`, else 0.
#[inline(always)]
fn mask(i: u32, n: u32) -> u8 {
    ((i.wrapping_sub(n) as i32) >> 31) as u8
}

#[inline(always)]
fn preface<M: Message>(out: &mut Outbound, message: &mut M, left: u32) -> bool {
    let have = u32::from(out.have);
    let missing = PREFACE.len() as u32 - have;
    let n = if missing < left { missing } else { left };
    if !readable(out, message, n) {
        return false;
    }
    // Branches are few on purpose: the verifier walks each combination of them.
    let mut i = 0;
    let mut different = 0;
    while i < PREFACE.len() as u32 {
        let from = (have + i) as usize & 31;
        different |= (out.piece[i as usize] ^ PREFACE_TABLE[from]) & mask(i, n);
        i += 1;
    }
    if different != 0 {
        // HTTP/1 is told by its own bytes, from the first one on.
        out.phase = if have == 0 { phase::HTTP1 } else { phase::DEAD };
        return have == 0;
    }
    out.at += n;
    out.phase = phase::PREFACE;
    out.have = (have + n) as u8;
    if have + n == PREFACE.len() as u32 {
        out.have = 0;
        out.phase = phase::HEAD;
        out.proof = proof::PREFACE;
    }
    true
}

#[inline(always)]
fn head<M: Message>(out: &mut Outbound, message: &mut M, left: u32) -> bool {
    let have = u32::from(out.have);
    let missing = (FRAME_HEADER as u32).wrapping_sub(have);
    let n = if missing < left { missing } else { left };
    if !readable(out, message, n) {
        return false;
    }
    let mut i = 0;
    while i < FRAME_HEADER as u32 {
        // Beyond `n` it writes what is overwritten later, or not looked at.
        out.header[((have + i) & 31) as usize] = out.piece[i as usize];
        i += 1;
    }
    if n < missing {
        out.have = (have + n) as u8;
        out.at += n;
        return true;
    }
    let b = &out.header;
    let head = Head::parse(&[b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8]]);
    let block = head.kind == frame::HEADERS || head.kind == frame::CONTINUATION;
    if block && out.at != 0 {
        // It begins a run of its own.
        out.apply = out.at;
        return false;
    }
    out.have = 0;
    out.blocks = out.blocks.wrapping_add(u32::from(block));
    if !allowed(out, &head) {
        out.phase = phase::DEAD;
        return false;
    }
    out.whole = u8::from(have == 0 && block);
    out.at += n;
    out.length = head.length;
    out.flags = head.flags;
    out.pad = 0;
    if !block {
        out.skip(head.length);
        return true;
    }
    let mut before = 0;
    if head.kind == frame::HEADERS {
        out.stream = head.stream;
        out.request = u8::from(head.stream > out.newest);
        if head.stream > out.newest {
            out.newest = head.stream;
        }
        out.total = 0;
        out.block.begin();
        let padded = head.flags & flag::PADDED != 0;
        before = u32::from(padded) + if head.flags & flag::PRIORITY != 0 { 5 } else { 0 };
        if before != 0 {
            if out.whole == 0 || out.size - out.at < before {
                // What the block is can't be told.
                out.lose();
                return false;
            }
            if !fetch(out, message, 1) {
                return false;
            }
            if padded {
                out.pad = u32::from(out.piece[0]);
            }
        }
    }
    if before + out.pad > head.length {
        out.phase = phase::DEAD;
        return false;
    }
    out.at += before;
    out.need = head.length - before - out.pad;
    out.total = out.total.saturating_add(out.need);
    out.open = u8::from(head.flags & flag::END_HEADERS == 0);
    out.phase = phase::FRAGMENT;
    if out.need == 0 {
        block_end(out, message);
    }
    true
}

/// Whether a client may send this frame now.
#[inline(always)]
fn allowed(out: &mut Outbound, head: &Head) -> bool {
    if !plausible(head, false) || head.kind == frame::PUSH_PROMISE {
        return false;
    }
    if (out.open != 0) != (head.kind == frame::CONTINUATION) {
        return false;
    }
    if head.kind == frame::CONTINUATION && head.stream != out.stream {
        return false;
    }
    if head.kind == frame::HEADERS && head.stream & 1 == 0 {
        return false;
    }
    if out.proof == proof::PREFACE {
        // The preface ends with SETTINGS (RFC 9113 §3.4).
        if head.kind != frame::SETTINGS || head.flags & flag::ACK != 0 {
            return false;
        }
        out.proof = proof::SETTINGS;
    }
    true
}

#[inline(always)]
fn fragment<M: Message>(out: &mut Outbound, message: &mut M, left: u32) -> bool {
    let n = if out.need < left { out.need } else { left };
    let n = if n < PIECE as u32 { n } else { PIECE as u32 };
    if !fetch(out, message, n) {
        return false;
    }
    message.walk(out, n);
    out.at += n;
    out.need -= n;
    if out.need == 0 {
        block_end(out, message);
    }
    true
}

/// The fragment is over, and the block with it unless it is open.
#[inline(always)]
fn block_end<M: Message>(out: &mut Outbound, message: &mut M) {
    if out.open == 0 {
        if !out.block.whole() {
            out.phase = phase::DEAD;
            return;
        }
        if out.request != 0 {
            request(out, message);
        }
    }
    out.skip(out.pad);
}

/// The block of a request is over at `out.at`.
#[inline(always)]
fn request<M: Message>(out: &mut Outbound, message: &mut M) {
    let signs = out.block.signs;
    if signs & sign::REQUEST == 0 || signs & sign::RESPONSE != 0 {
        return;
    }
    let length = out.length + FIELD as u32;
    let fate = if out.proof != proof::SETTINGS {
        Fate::Unproven
    } else if out.block.found[0].state != block::state::ABSENT {
        Fate::Own
    } else if signs & sign::UNNAMED != 0 {
        Fate::Unnamed
    } else if out.whole == 0 || out.at + out.pad > out.size {
        Fate::Split
    } else if length > FRAME_LIMIT || !listed(out) {
        Fate::TooLong
    } else if !message.room(FRAME_HEADER as u32 + length) {
        Fate::NoRoom
    } else {
        insert(out, message, length)
    };
    message.fate(fate);
}

/// Whether the peer's limit of header lists is far: a block's list is seldom longer than four times its bytes.
#[inline(always)]
fn listed(out: &Outbound) -> bool {
    out.list_limit == 0 || out.total.saturating_mul(4) + LIST_BYTES <= out.list_limit
}

#[inline(always)]
fn insert<M: Message>(out: &mut Outbound, message: &mut M, length: u32) -> Fate {
    if let Err(fate) = message.context(out) {
        return fate;
    }
    let at = out.at;
    match message.insert(out, at, length) {
        Inserted::Done => {
            out.injected = out.injected.wrapping_add(FIELD as u32);
            out.size += FIELD as u32;
            out.at += FIELD as u32;
            Fate::Injected
        }
        Inserted::Refused => Fate::Refused,
        Inserted::RolledBack => Fate::RolledBack,
    }
}

#[cfg(test)]
pub(crate) mod tests;
