//! The bytes of one system call, walked piece by piece in the caller's
//! memory: the kernel's [`Io`].
//!
//! Everything that a walk knows lies in the scratch of its program, and its parts
//! are functions of their own (`extern "C"`, not inlined, named): the verifier walks
//! each of them once and alone, knowing nothing of its callers, so that they do
//! not multiply. They take a number, the scratch's, because kernels before 5.12
//! let such a function take nothing else.

use aya_ebpf::helpers::generated::{bpf_probe_read_kernel, bpf_probe_read_user};
use tracewire_common::elided::{FRAME_HEADER, Head};
use tracewire_common::event::{Header, flags};
use tracewire_common::fault::Fault;
use tracewire_common::link::StreamKey;
use tracewire_ebpf::connection::{Http1, Message, flow_flag, phase};
use tracewire_ebpf::http1::{Bytes, ChunkBytes, HeadBytes, Machine, TrailerBytes, Turn};
use tracewire_ebpf::http2::{self, PrefaceBytes};
use tracewire_ebpf::io::{Io, SIGHT};
use tracewire_ebpf::step::{self, Step};

use crate::kernel::maps::{self, COPY, Cursor, RECORD, Scratch, VECTORS, Vector, WINDOW};
use crate::kernel::memory::{load_word, opaque, store_word};

/// Turns of [`walk_on`].
const TURNS: u32 = 128;
/// Rounds of them: 16,384 steps of one call at most, frames and the iovecs they lie in.
const ROUNDS: u32 = 128;
/// A record is sent before a frame header when it holds more than this, bytes.
const FULL_FOR_HEAD: u32 = 8 * 1024;
/// A record is sent before a copy when it holds more than this, bytes.
const FULL_FOR_COPY: u32 = 12 * 1024;
/// Bytes read ahead of a piece that does not fit the window whole: what comes is mostly
/// the middle of a message, which nobody reads.
const AHEAD: u32 = 256;

/// What a turn led to.
mod turn {
    /// The call is done, or something stopped the walk.
    pub const DONE: u32 = 0;
    /// Go on.
    pub const MORE: u32 = 1;
    /// It is not for [`super::walk_frames`].
    pub const REST: u32 = 2;
}

/// Why a walk stopped early.
pub mod stop {
    /// It did not.
    pub const NONE: u32 = 0;
    /// The bytes can't be what the framing says.
    pub const MALFORMED: u32 = 1;
    /// User memory could not be read.
    pub const UNREADABLE: u32 = 2;
}

/// A walk over one call.
pub struct Walk {
    scratch: *mut Scratch,
    slot: u32,
}

impl Walk {
    /// The walk of a scratch.
    #[inline(always)]
    pub fn of(slot: u32) -> Option<Self> {
        let scratch = maps::scratch(slot)?;
        Some(Walk { scratch, slot })
    }

    #[inline(always)]
    fn scratch(&mut self) -> &mut Scratch {
        // SAFETY: set from a live element of a per-CPU map, which only this program uses on this CPU.
        unsafe { &mut *self.scratch }
    }

    /// Where the walk stands.
    #[inline(always)]
    pub fn at(&mut self) -> &mut Cursor {
        &mut self.scratch().cursor
    }

    /// Back to the first byte of the call.
    #[inline(always)]
    pub fn begin(&mut self) {
        let at = self.at();
        (at.vector, at.base, at.vectors, at.segment) = at.first;
        at.left = at.moved;
        at.out = 0;
        at.stop = stop::NONE;
        at.dropped = 0;
        at.ahead = 0;
        at.known = 0;
    }

    #[inline(always)]
    fn key(&mut self, stream: u32) -> StreamKey {
        let header = &self.scratch().header;
        StreamKey {
            connection: header.connection,
            stream,
            direction: u32::from(header.direction),
        }
    }

    #[inline(always)]
    fn advance(&mut self, n: u32) {
        let at = self.at();
        at.base = at.base.wrapping_add(u64::from(n));
        at.segment = at.segment.wrapping_sub(n);
        at.left = at.left.wrapping_sub(n);
        if n < at.ahead {
            at.ahead -= n;
            at.seen = at.seen.wrapping_add(n);
        } else {
            at.ahead = 0;
        }
    }

    /// Goes to the next iovec. False: there is none, or it can't be read.
    #[inline(always)]
    pub fn next_vector(&mut self) -> bool {
        if self.at().vectors == 0 {
            return false;
        }
        if self.at().known == 0 {
            let n = self.at().vectors.min(VECTORS);
            let size = opaque(u64::from(n) * size_of::<Vector>() as u64);
            if size > u64::from(VECTORS) * size_of::<Vector>() as u64 {
                return false;
            }
            let from = self.at().vector;
            let to = (&raw mut self.scratch().vectors).cast();
            // SAFETY: `size` is at most that of the vectors; a bad user address is an error, not a fault.
            if unsafe { bpf_probe_read_user(to, size as u32, from as *const _) } != 0 {
                return false;
            }
            self.at().known = n;
            self.at().next = 0;
            self.at().vector = from.wrapping_add(size);
        }
        let index = opaque(u64::from(self.at().next)) & u64::from(VECTORS - 1);
        // SAFETY: `index` is below their number.
        let v = unsafe { *self.scratch().vectors.get_unchecked(index as usize) };
        let at = self.at();
        at.next = at.next.wrapping_add(1);
        at.known = at.known.wrapping_sub(1);
        at.vectors = at.vectors.wrapping_sub(1);
        at.base = v.base;
        at.segment = if v.length < u64::from(at.left) {
            v.length as u32
        } else {
            at.left
        };
        at.ahead = 0;
        true
    }

    /// One step, or the next iovec.
    #[inline(always)]
    fn turn(&mut self, step: impl FnOnce(&mut Self) -> Step) -> u32 {
        if self.at().left == 0 || self.at().stop != stop::NONE {
            return turn::DONE;
        }
        if self.at().segment == 0 {
            if self.next_vector() {
                return turn::MORE;
            }
            self.at().stop = stop::UNREADABLE;
            return turn::DONE;
        }
        match step(self) {
            Step::More => return turn::MORE,
            Step::Malformed => self.at().stop = stop::MALFORMED,
            Step::Unreadable => self.at().stop = stop::UNREADABLE,
        }
        turn::DONE
    }

    /// Where byte `at` of what is in sight lies.
    #[inline(always)]
    fn sight(&self, at: u32) -> *const u8 {
        // SAFETY: a live element of a per-CPU map.
        let scratch = unsafe { &*self.scratch };
        let index = opaque(u64::from(scratch.cursor.seen.wrapping_add(at))) & (WINDOW as u64 - 1);
        // SAFETY: `index` is below WINDOW, and a word more is there.
        unsafe { (&raw const scratch.window).cast::<u8>().add(index as usize) }
    }

    /// Where the next ≤ 16 bytes of the record go.
    #[inline(always)]
    fn room(&mut self) -> *mut u8 {
        let at = opaque(u64::from(self.at().out)) & (RECORD as u64 - 1);
        // SAFETY: `at` is below RECORD and the data has COPY bytes more.
        unsafe { (&raw mut self.scratch().data).cast::<u8>().add(at as usize) }
    }

    #[inline(always)]
    fn flush_over(&mut self, limit: u32) {
        if self.at().out > limit {
            flush(self.slot);
        }
    }
}

/// A step in the phases of HTTP/2's frames.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn walk_frames(slot: u32) -> u32 {
    let Some(mut walk) = Walk::of(slot) else {
        return turn::DONE;
    };
    // SAFETY: a live element of a per-CPU map; the walk's own methods leave the flow alone.
    let flow = unsafe { &mut (*walk.scratch).flow };
    if !step::in_frames(flow.phase) {
        return turn::REST;
    }
    walk.turn(|walk| http2::step(flow, walk))
}

/// A step in any other phase.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn walk_rest(slot: u32) -> u32 {
    let Some(mut walk) = Walk::of(slot) else {
        return turn::DONE;
    };
    let connection = walk.scratch().header.connection;
    let Some(connection) = maps::connection(connection) else {
        return turn::DONE;
    };
    // SAFETY: a live element of a map; a race on what both directions share costs at most one direction's framing.
    let shared = unsafe { &mut (*connection).shared };
    // SAFETY: as in `walk_frames`.
    let flow = unsafe { &mut (*walk.scratch).flow };
    walk.turn(|walk| step::rest(shared, flow, walk))
}

/// Many turns.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn walk_on(slot: u32) -> u32 {
    let mut i = 0;
    while i < TURNS {
        let mut after = walk_frames(slot);
        if after == turn::REST {
            after = walk_rest(slot);
        }
        if after == turn::DONE {
            return turn::DONE;
        }
        i += 1;
    }
    turn::MORE
}

/// Walks to the end of the call, or to what stops it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn walk(slot: u32) -> u32 {
    let mut i = 0;
    while i < ROUNDS {
        if walk_on(slot) == turn::DONE {
            return turn::DONE;
        }
        i += 1;
    }
    turn::MORE
}

/// Sends the record built so far.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn flush(slot: u32) -> u32 {
    let Some(mut walk) = Walk::of(slot) else { return 0 };
    let out = walk.at().out;
    walk.at().out = 0;
    if walk.at().dry != 0 || out == 0 {
        return 0;
    }
    let scratch = walk.scratch();
    scratch.header.length = out;
    let size = opaque(u64::from(out) + size_of::<Header>() as u64);
    if size > (RECORD + COPY) as u64 {
        return 0;
    }
    scratch.cursor.records = scratch.cursor.records.wrapping_add(1);
    scratch.cursor.told = out;
    scratch.cursor.gap = u32::from(scratch.header.flags & flags::GAP);
    // SAFETY: the record and its header are the first bytes of the scratch, which is larger than `size`.
    let sent = unsafe { maps::output((&raw const scratch.header).cast(), size) };
    scratch.header.flags &= !flags::GAP;
    if sent {
        scratch.flow.flags |= flow_flag::SPOKEN;
    } else {
        scratch.flow.flags |= flow_flag::GAP;
        scratch.cursor.dropped = 1;
        scratch.cursor.told = 0;
        if scratch.flow.phase == phase::COPY {
            scratch.flow.phase = phase::SKIP;
        }
    }
    0
}

/// Runs a machine over what is in sight: how many bytes it took, and in bits 16 and up how it stands.
#[inline(always)]
fn scan(slot: u32, n: u32, some: extern "C" fn(u32, u32, u32) -> u32) -> u32 {
    let mut i = 0;
    while i < SIGHT / SCANNED {
        let from = i * SCANNED;
        if from >= n {
            return from | SCAN_NEXT;
        }
        let scanned = some(slot, from, n);
        if scanned != from.wrapping_add(SCANNED) {
            return scanned;
        }
        i += 1;
    }
    SIGHT | SCAN_NEXT
}

/// The same over up to [`SCANNED`] bytes from `from` on.
#[inline(always)]
fn scan_some<B: Bytes>(slot: u32, from: u32, n: u32) -> u32 {
    let Some(mut walk) = Walk::of(slot) else {
        return SCAN_MALFORMED;
    };
    let mut i = 0;
    while i < SCANNED {
        let at = from.wrapping_add(i);
        if at >= n {
            return at | SCAN_NEXT;
        }
        let c = walk.byte(at);
        let turn = B::byte(&mut walk.scratch().flow.http1, c);
        i += 1;
        match turn {
            Turn::Next => {}
            Turn::End => return at.wrapping_add(1) | SCAN_END,
            Turn::Malformed => return at.wrapping_add(1) | SCAN_MALFORMED,
        }
    }
    from.wrapping_add(SCANNED) | SCAN_NEXT
}

/// Bytes that are scanned by one call: the verifier walks each of them in the functions below.
const SCANNED: u32 = 8;
const SCAN_NEXT: u32 = 0;
const SCAN_END: u32 = 1 << 16;
const SCAN_MALFORMED: u32 = 2 << 16;

/// [`scan_some`] of an HTTP/1 head.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn scan_head(slot: u32, from: u32, n: u32) -> u32 {
    scan_some::<HeadBytes>(slot, from, n)
}

/// [`scan_some`] of the size line of a chunk.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn scan_chunk(slot: u32, from: u32, n: u32) -> u32 {
    scan_some::<ChunkBytes>(slot, from, n)
}

/// [`scan_some`] of a trailer section.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn scan_trailer(slot: u32, from: u32, n: u32) -> u32 {
    scan_some::<TrailerBytes>(slot, from, n)
}

/// [`scan_some`] of HTTP/2's preface.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn scan_preface(slot: u32, from: u32, n: u32) -> u32 {
    scan_some::<PrefaceBytes>(slot, from, n)
}

impl Io for Walk {
    #[inline(always)]
    fn available(&mut self) -> u32 {
        self.at().segment
    }

    #[inline(always)]
    fn look(&mut self, n: u32) -> u32 {
        let (ahead, segment) = (self.at().ahead, self.at().segment);
        if ahead >= n || ahead == segment {
            return ahead;
        }
        let n = if segment > WINDOW as u32 { AHEAD } else { segment };
        let size = opaque(u64::from(n));
        if size > WINDOW as u64 {
            return 0;
        }
        let base = self.at().base;
        let window = (&raw mut self.scratch().window).cast();
        // SAFETY: `size` is at most the window's; a bad user address is an error, not a fault.
        if unsafe { bpf_probe_read_user(window, size as u32, base as *const _) } != 0 {
            self.at().ahead = 0;
            return 0;
        }
        self.at().seen = 0;
        self.at().ahead = n;
        n
    }

    #[inline(always)]
    fn byte(&self, at: u32) -> u8 {
        // SAFETY: inside the window.
        unsafe { *self.sight(at) }
    }

    #[inline(always)]
    fn word(&self, at: u32) -> u64 {
        // SAFETY: inside the window, which is a word longer than its mask.
        unsafe { load_word(self.sight(at)) }
    }

    #[inline(always)]
    fn scan<B: Bytes>(&mut self, n: u32, _http1: &mut Http1) -> (u32, Turn) {
        // The machine works on the scratch's flow, which is the one that is passed.
        let scanned = match B::MACHINE {
            Machine::Head => scan(self.slot, n, scan_head),
            Machine::Chunk => scan(self.slot, n, scan_chunk),
            Machine::Trailer => scan(self.slot, n, scan_trailer),
            Machine::Preface => scan(self.slot, n, scan_preface),
        };
        let turn = match scanned & !0xffff {
            SCAN_NEXT => Turn::Next,
            SCAN_END => Turn::End,
            _ => Turn::Malformed,
        };
        (scanned & 0xffff, turn)
    }

    #[inline(always)]
    fn skip(&mut self, n: u32) {
        self.advance(n);
    }

    #[inline(always)]
    fn copy(&mut self, n: u32) -> u32 {
        if self.at().dry != 0 {
            self.advance(n);
            return n;
        }
        self.flush_over(FULL_FOR_COPY);
        let n = if n > COPY as u32 - 1 { COPY as u32 - 1 } else { n };
        if self.at().dropped != 0 {
            self.advance(n);
            return n;
        }
        let to = self.room();
        let size = opaque(u64::from(n)) & (COPY as u64 - 1);
        let failed = if n <= self.at().ahead {
            let from = self.sight(0);
            // SAFETY: `room` leaves COPY bytes; what is in sight is read as any kernel address.
            unsafe { bpf_probe_read_kernel(to.cast(), size as u32, from.cast()) }
        } else {
            let base = self.at().base;
            // SAFETY: `room` leaves COPY bytes; a bad user address is an error, not a fault.
            unsafe { bpf_probe_read_user(to.cast(), size as u32, base as *const _) }
        };
        if failed != 0 {
            return 0;
        }
        self.at().out = self.at().out.wrapping_add(n);
        self.advance(n);
        n
    }

    #[inline(always)]
    fn put(&mut self, head: Head) {
        if self.at().dry != 0 {
            return;
        }
        self.flush_over(FULL_FOR_HEAD);
        self.at().dropped = 0;
        let to = self.room();
        // SAFETY: `room` leaves more than nine bytes.
        unsafe { store_word(to, head.word()) };
        // SAFETY: as above.
        let last = unsafe { to.add(FRAME_HEADER - 1) };
        // SAFETY: as above.
        unsafe { last.write(head.stream as u8) };
        self.at().out = self.at().out.wrapping_add(FRAME_HEADER as u32);
    }

    #[inline(always)]
    fn put_u64(&mut self, value: u64) {
        if self.at().dry == 0 {
            let to = self.room();
            // SAFETY: `room` leaves more than eight bytes.
            unsafe { store_word(to, value) };
            self.at().out = self.at().out.wrapping_add(8);
        }
    }

    #[inline(always)]
    fn put_prefix(&mut self, p: &[u8; 8]) {
        if self.at().dry == 0 {
            let to = self.room();
            // The three bytes behind the prefix are written over by what comes next, or not sent.
            // SAFETY: `room` leaves more than eight bytes.
            unsafe { store_word(to, u64::from_be_bytes(*p)) };
            self.at().out = self.at().out.wrapping_add(5);
        }
    }

    #[inline(always)]
    fn put_byte(&mut self, byte: u8) {
        if self.at().dry == 0 {
            let to = self.room();
            // SAFETY: `room` leaves more than a byte.
            unsafe { to.write(byte) };
            self.at().out = self.at().out.wrapping_add(1);
        }
    }

    #[inline(always)]
    fn load(&mut self, stream: u32) -> Option<Message> {
        let key = self.key(stream);
        // SAFETY: a live element of a map; only this direction writes it.
        maps::stream(&key).map(|m| unsafe { *m })
    }

    #[inline(always)]
    fn store(&mut self, stream: u32, message: &Message) -> bool {
        if self.at().dry != 0 {
            return false;
        }
        let key = self.key(stream);
        maps::store_stream(&key, message)
    }

    #[inline(always)]
    fn forget(&mut self, stream: u32) {
        if self.at().dry != 0 {
            return;
        }
        let key = self.key(stream);
        maps::forget_stream(&key);
    }

    #[inline(always)]
    fn fault(&mut self, fault: Fault) {
        if self.at().dry == 0 {
            maps::count(fault);
        }
    }
}
