//! The bytes of one system call, walked piece by piece in the caller's
//! memory: the kernel's [`Io`].

use aya_ebpf::helpers::generated::{bpf_loop, bpf_probe_read_user};
use tracewire_common::elided::{FRAME_HEADER, Head};
use tracewire_common::event::{Header, flags};
use tracewire_common::fault::Fault;
use tracewire_common::link::StreamKey;
use tracewire_ebpf::connection::{Flow, Http1, Message, Shared, flow_flag, phase};
use tracewire_ebpf::http1::{Bytes, Turn};
use tracewire_ebpf::io::{Io, WINDOW};
use tracewire_ebpf::step::{Step, step};

use crate::kernel::maps::{self, COPY, Cursor, RECORD, Scratch};
use crate::kernel::memory::{opaque, user};

/// Steps of one call at most: frames, their parts and the iovecs they lie in.
const STEPS: u32 = 16 * 1024;
/// The same where `bpf_loop` does not exist (before 5.17), so that the verifier can follow.
const STEPS_UNROLLED: u32 = 24;
/// A record is sent before a frame header when it holds more than this, bytes.
const FULL_FOR_HEAD: u32 = 8 * 1024;
/// A record is sent before a copy when it holds more than this, bytes.
const FULL_FOR_COPY: u32 = 12 * 1024;

/// Why a walk stopped early.
pub mod stop {
    /// It did not.
    pub const NONE: u32 = 0;
    /// The bytes can't be what the framing says.
    pub const MALFORMED: u32 = 1;
    /// User memory could not be read.
    pub const UNREADABLE: u32 = 2;
}

/// `struct iovec`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Vector {
    base: u64,
    length: u64,
}

/// A walk over one call. It lies on the program's stack; `bpf_loop` hands it to each step.
#[repr(C)]
pub struct Walk {
    pub flow: *mut Flow,
    pub shared: *mut Shared,
    pub scratch: *mut Scratch,
}

impl Walk {
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
        self.at().base = self.at().base.wrapping_add(u64::from(n));
        self.at().segment = self.at().segment.wrapping_sub(n);
        self.at().left = self.at().left.wrapping_sub(n);
    }

    /// Goes to the next iovec. False: there is none, or it can't be read.
    #[inline(always)]
    pub fn next_vector(&mut self) -> bool {
        if self.at().vectors == 0 {
            return false;
        }
        let Some(v) = user::<Vector>(self.at().vector) else {
            return false;
        };
        self.at().vector = self.at().vector.wrapping_add(size_of::<Vector>() as u64);
        self.at().vectors -= 1;
        self.at().base = v.base;
        self.at().segment = if v.length < u64::from(self.at().left) {
            v.length as u32
        } else {
            self.at().left
        };
        true
    }

    /// One step, or the next iovec. False: done.
    #[inline(always)]
    fn one(&mut self) -> bool {
        if self.at().left == 0 || self.at().stop != stop::NONE {
            return false;
        }
        if self.at().segment == 0 {
            if !self.next_vector() {
                self.at().stop = stop::UNREADABLE;
                return false;
            }
            return true;
        }
        // SAFETY: live elements of maps; no other program works on this direction at the same time,
        // and a race on the shared part costs at most one direction's framing.
        let flow = unsafe { &mut *self.flow };
        // SAFETY: as above; `shared` and `flow` are different members.
        let shared = unsafe { &mut *self.shared };
        match step(shared, flow, self) {
            Step::More => true,
            Step::Malformed => {
                self.at().stop = stop::MALFORMED;
                false
            }
            Step::Unreadable => {
                self.at().stop = stop::UNREADABLE;
                false
            }
        }
    }

    /// Walks to the end of the call, or to what stops it.
    #[inline(always)]
    pub fn run(&mut self) {
        if maps::setting!(has_loop) != 0 {
            // SAFETY: `walk_step` takes what is passed here; the walk outlives the call.
            unsafe { bpf_loop(STEPS, walk_step as *mut _, core::ptr::from_mut(self).cast(), 0) };
        } else {
            for _ in 0..STEPS_UNROLLED {
                if !self.one() {
                    break;
                }
            }
        }
    }

    /// Sends the record built so far.
    #[inline(always)]
    pub fn flush(&mut self) {
        if self.at().dry != 0 || self.at().out == 0 {
            self.at().out = 0;
            return;
        }
        let out = self.at().out;
        self.at().out = 0;
        let scratch = self.scratch();
        scratch.header.length = out;
        let size = opaque(u64::from(out) + size_of::<Header>() as u64);
        if size > (RECORD + COPY) as u64 {
            return;
        }
        // SAFETY: the record and its header are the first bytes of the scratch, which is larger than `size`.
        let sent = unsafe { maps::output((&raw const scratch.header).cast(), size) };
        scratch.header.flags &= !flags::GAP;
        // SAFETY: a live element of a map, as in `one`.
        let flow = unsafe { &mut *self.flow };
        if sent {
            flow.flags |= flow_flag::SPOKEN;
        } else {
            flow.flags |= flow_flag::GAP;
            self.at().dropped = 1;
            if flow.phase == phase::COPY {
                flow.phase = phase::SKIP;
            }
        }
    }

    /// Where `n` ≤ 16 more bytes of the record go.
    #[inline(always)]
    fn append<const N: usize>(&mut self, bytes: [u8; N]) {
        if self.at().dry != 0 {
            return;
        }
        let at = opaque(u64::from(self.at().out)) & (RECORD as u64 - 1);
        let data = (&raw mut self.scratch().data).cast::<u8>();
        let mut i = 0;
        while i < N {
            // SAFETY: `at` is below RECORD and the data has COPY bytes more.
            let to = unsafe { data.add(at as usize + i) };
            // SAFETY: inside the data, as said.
            unsafe { to.write(bytes[i]) };
            i += 1;
        }
        self.at().out = self.at().out.wrapping_add(N as u32);
    }
}

/// One turn of `bpf_loop`; 1 ends it.
unsafe extern "C" fn walk_step(_turn: u64, walk: *mut Walk) -> i64 {
    // SAFETY: `run` passes its own walk.
    let walk = unsafe { &mut *walk };
    i64::from(!walk.one())
}

/// A scan over the window, for `bpf_loop`.
#[repr(C)]
struct Scan {
    http1: *mut Http1,
    scratch: *mut Scratch,
    used: u32,
    turn: u32,
}

const TURN_NEXT: u32 = 0;
const TURN_END: u32 = 1;
const TURN_MALFORMED: u32 = 2;

/// One byte of a scan; 1 ends it.
unsafe extern "C" fn scan_step<B: Bytes>(at: u64, scan: *mut Scan) -> i64 {
    // SAFETY: `Walk::scan` passes its own scan.
    let scan = unsafe { &mut *scan };
    let at = opaque(at) & (WINDOW as u64 - 1);
    // SAFETY: live elements of maps.
    let scratch = unsafe { &*scan.scratch };
    // SAFETY: `at` is below the window's size.
    let c = unsafe { *scratch.window.get_unchecked(at as usize) };
    // SAFETY: as in `Walk::one`.
    let http1 = unsafe { &mut *scan.http1 };
    scan.used += 1;
    scan.turn = match B::byte(http1, c) {
        Turn::Next => return 0,
        Turn::End => TURN_END,
        Turn::Malformed => TURN_MALFORMED,
    };
    1
}

impl Io for Walk {
    #[inline(always)]
    fn available(&mut self) -> u32 {
        self.at().segment
    }

    #[inline(always)]
    fn take(&mut self, into: &mut [u8; 32], at: u32, n: u32) -> bool {
        let at = opaque(u64::from(at)) & 15;
        let size = opaque(u64::from(n)) & 15;
        // SAFETY: `at` and `size` are below 16, the buffer has 32 bytes.
        let to = unsafe { into.as_mut_ptr().add(at as usize) };
        // SAFETY: as above; a bad user address is an error, not a fault.
        if unsafe { bpf_probe_read_user(to.cast(), size as u32, self.at().base as *const _) } != 0 {
            return false;
        }
        self.advance(n);
        true
    }

    #[inline(always)]
    fn peek(&mut self) -> u32 {
        let n = if self.at().segment < WINDOW as u32 {
            self.at().segment
        } else {
            WINDOW as u32
        };
        let size = opaque(u64::from(n));
        if size > WINDOW as u64 {
            return 0;
        }
        let base = self.at().base;
        let window = (&raw mut self.scratch().window).cast();
        // SAFETY: `size` is at most the window's; a bad user address is an error, not a fault.
        if unsafe { bpf_probe_read_user(window, size as u32, base as *const _) } != 0 {
            return 0;
        }
        n
    }

    #[inline(always)]
    fn window(&self, at: u32) -> u8 {
        let at = opaque(u64::from(at)) & (WINDOW as u64 - 1);
        // SAFETY: a live element of a per-CPU map.
        let scratch = unsafe { &*self.scratch };
        // SAFETY: `at` is below the window's size.
        unsafe { *scratch.window.get_unchecked(at as usize) }
    }

    /// Without `bpf_loop` (before 5.17) HTTP/1 is not followed: every head is malformed.
    #[inline(always)]
    fn scan<B: Bytes>(&mut self, n: u32, http1: &mut Http1) -> (u32, Turn) {
        let mut scan = Scan {
            http1,
            scratch: self.scratch,
            used: 0,
            turn: TURN_NEXT,
        };
        if maps::setting!(has_loop) == 0 {
            return (0, Turn::Malformed);
        }
        // SAFETY: `scan_step` takes what is passed here; the scan outlives the call.
        unsafe { bpf_loop(n, scan_step::<B> as *mut _, core::ptr::from_mut(&mut scan).cast(), 0) };
        let turn = match scan.turn {
            TURN_NEXT => Turn::Next,
            TURN_END => Turn::End,
            _ => Turn::Malformed,
        };
        (scan.used, turn)
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
        if self.at().out > FULL_FOR_COPY {
            self.flush();
        }
        let n = if n > COPY as u32 - 1 { COPY as u32 - 1 } else { n };
        if self.at().dropped != 0 {
            self.advance(n);
            return n;
        }
        let at = opaque(u64::from(self.at().out)) & (RECORD as u64 - 1);
        let size = opaque(u64::from(n)) & (COPY as u64 - 1);
        let base = self.at().base;
        // SAFETY: `at` is below RECORD and the data has COPY bytes more.
        let to = unsafe { (&raw mut self.scratch().data).cast::<u8>().add(at as usize) };
        // SAFETY: as above; a bad user address is an error, not a fault.
        if unsafe { bpf_probe_read_user(to.cast(), size as u32, base as *const _) } != 0 {
            return 0;
        }
        self.at().out = self.at().out.wrapping_add(n);
        self.advance(n);
        n
    }

    #[inline(always)]
    fn put(&mut self, head: Head) {
        if self.at().out > FULL_FOR_HEAD {
            self.flush();
        }
        self.at().dropped = 0;
        self.append::<FRAME_HEADER>(head.bytes());
    }

    #[inline(always)]
    fn put_u64(&mut self, value: u64) {
        self.append::<8>(value.to_be_bytes());
    }

    #[inline(always)]
    fn put_prefix(&mut self, p: &[u8; 8]) {
        self.append::<5>([p[0], p[1], p[2], p[3], p[4]]);
    }

    #[inline(always)]
    fn put_byte(&mut self, byte: u8) {
        self.append::<1>([byte]);
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
