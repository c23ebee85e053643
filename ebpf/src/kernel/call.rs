//! One call that moved bytes: where they lie, whether any are missing before
//! them, and what is made of them.

use tracewire_common::event::{Header, direction, flags};
use tracewire_common::fault::Fault;
use tracewire_common::settings::ABSENT;
use tracewire_ebpf::connection::{Flow, Shared, flow_flag, phase, protocol};
use tracewire_ebpf::order;

use crate::kernel::maps::{self, Cursor, Scratch, offset};
use crate::kernel::memory::{kernel, user};
use crate::kernel::open::first_sight;
use crate::kernel::proof::prove;
use crate::kernel::threads::heads;
use crate::kernel::tls::join;
use crate::kernel::walk::{Walk, flush, stop, walk};
use crate::kernel::{emit, inject, log};

const RCV_SHUTDOWN: u8 = 1;
const SEND_SHUTDOWN: u8 = 2;
const MSG_PEEK: u64 = 2;
const MSG_TRUNC: u64 = 0x20;
const MSG_ERRQUEUE: u64 = 0x2000;
/// iovecs of one call at most (UIO_MAXIOV).
const IOVECS: u64 = 1024;

/// `struct pt_regs` of x86_64 from `dx` on.
#[repr(C)]
#[derive(Clone, Copy)]
struct Registers {
    dx: u64,
    si: u64,
    di: u64,
    orig_ax: u64,
    ip: u64,
    cs: u64,
}
const PT_REGS_R10: u64 = 56;
const PT_REGS_DX: u64 = 96;
/// Code segment of 32-bit programs.
const USER32_CS: u64 = 0x23;

/// What a call was.
mod found {
    /// Its bytes are where [`super::Cursor::first`] says.
    pub const BYTES: u32 = 0;
    /// Bytes moved that can't be found in memory.
    pub const OPAQUE: u32 = 1;
    /// Nothing was consumed.
    pub const PEEK: u32 = 2;
    /// An orderly end of file.
    pub const EOF: u32 = 3;
}

/// Finds the buffer of the system call under way: one of [`found`].
#[inline(always)]
fn find(cursor: &mut Cursor, send: bool, tid: u32) -> u32 {
    let (regs, moved) = (cursor.regs, cursor.moved);
    let Some(r) = kernel::<Registers>(regs.wrapping_add(PT_REGS_DX)) else {
        return found::OPAQUE;
    };
    if r.cs & 0xffff == USER32_CS {
        return found::OPAQUE;
    }
    // Numbers of x86_64; odd kinds first, the rest by what they take.
    let (sends, vector, message, flagged) = match r.orig_ax {
        0 => (false, false, false, 0),
        1 | 44 => (true, false, false, 0),
        45 => (false, false, false, 1),
        19 | 295 | 327 => (false, true, false, 0),
        20 | 296 | 328 => (true, true, false, 0),
        46 => (true, true, true, 0),
        47 => (false, true, true, 2),
        299 => (false, true, true, 3),
        307 => (true, true, true, 4),
        _ => return found::OPAQUE,
    };
    if sends != send {
        return found::OPAQUE;
    }
    let flags = match flagged {
        2 => r.dx,
        1 | 3 => kernel::<u64>(regs.wrapping_add(PT_REGS_R10)).unwrap_or(0),
        _ => 0,
    };
    if flags & (MSG_PEEK | MSG_ERRQUEUE) != 0 {
        return found::PEEK;
    }
    let mut header = r.si;
    if flagged >= 3 {
        // recvmmsg and sendmmsg: the n-th `struct mmsghdr` of 64 bytes.
        let done = maps::multi(tid);
        let over = moved == 0 || u64::from(done) + 1 >= r.dx;
        maps::set_multi(tid, if over { 0 } else { done + 1 });
        header = header.wrapping_add(u64::from(done) * 64);
    }
    if moved == 0 {
        // A receive into no room at all is no end of file.
        return if !send && (vector || r.dx != 0) {
            found::EOF
        } else {
            found::PEEK
        };
    }
    if flags & MSG_TRUNC != 0 {
        return found::OPAQUE;
    }
    if vector {
        let (at, count) = if message {
            // msg_iov and msg_iovlen follow msg_name and msg_namelen.
            match user::<[u64; 2]>(header.wrapping_add(16)) {
                Some([iov, count]) => (iov, count),
                None => return found::OPAQUE,
            }
        } else {
            (r.si, r.dx)
        };
        cursor.first = (at, 0, count.min(IOVECS) as u32, 0);
    } else {
        cursor.first = (0, r.si, 0, moved);
    }
    found::BYTES
}

/// A call ended: the scratch says on which socket, how many bytes it moved and where its registers are.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn call_ended(slot: u32) -> u32 {
    let Some(scratch) = maps::scratch(slot) else { return 0 };
    // SAFETY: a live element of a per-CPU map that only this program uses on this CPU.
    let parts = unsafe { &mut *scratch };
    let send = parts.header.direction == direction::SEND;
    let found = find(&mut parts.cursor, send, parts.header.tid);
    if found == found::PEEK {
        return 0;
    }
    let cookie = parts.header.connection;
    let connection = match maps::connection(cookie) {
        Some(connection) => connection,
        None => {
            if found == found::EOF || first_sight(slot) == 0 {
                return 0;
            }
            match maps::connection(cookie) {
                Some(connection) => connection,
                None => return 0,
            }
        }
    };
    // SAFETY: a live element of a map; a race on what both directions share costs at most one direction's framing.
    let shared: &mut Shared = unsafe { &mut (*connection).shared };
    if shared.protocol == protocol::OTHER {
        return 0;
    }
    if shared.protocol == protocol::TLS {
        return ciphertext(slot, found, parts.cursor.sk);
    }
    // SAFETY: a live element of a map.
    let flows: *mut Flow = unsafe { &raw mut (*connection).flows }.cast();
    let flow = flows.wrapping_add(usize::from(send));
    // SAFETY: as above; there are two flows. No other program works on this direction at the same time.
    unsafe { core::ptr::copy_nonoverlapping(flow, &raw mut parts.flow, 1) };
    if parts.flow.phase == phase::DEAD {
        return 0;
    }
    parts.header.time_ns = emit::now();
    // Here and not on the stack, of which old kernels give 512 bytes to all functions of a call.
    parts.cursor.heads = shared.requests;
    piece(slot, shared, parts, found, send);
    // SAFETY: as above.
    unsafe { core::ptr::copy_nonoverlapping(&raw const parts.flow, flow, 1) };
    parts.cursor.heads = heads_ended(shared, parts.cursor.heads);
    parts.cursor.settled = u32::from(settled(shared, parts.cursor.g, send));
    if shared.protocol == protocol::TLS {
        join::met(slot);
        return ciphertext(slot, found, parts.cursor.sk);
    }
    0
}

/// One of [`heads`], given how many requests' heads had ended before.
#[inline(always)]
fn heads_ended(shared: &Shared, before: u32) -> u32 {
    if shared.protocol != protocol::HTTP1 {
        return heads::OTHER;
    }
    match shared.requests.wrapping_sub(before) {
        0 => heads::NONE,
        1 => heads::ONE,
        _ => heads::SEVERAL,
    }
}

/// Whether a goroutine is known for what it does with this connection.
#[inline(always)]
fn settled(shared: &Shared, g: u64, send: bool) -> bool {
    // Volatile: a choice between two addresses is one that the verifier of Linux 5.10 can't follow.
    // SAFETY: a reference is valid.
    let reader = unsafe { core::ptr::read_volatile(&raw const shared.reader) };
    // SAFETY: as above.
    let writer = unsafe { core::ptr::read_volatile(&raw const shared.writer) };
    let known = if send { writer } else { reader };
    g != 0 && (known == g || send && shared.serves != 0)
}

/// A call on a socket whose bytes are TLS.
#[inline(always)]
fn ciphertext(slot: u32, found: u32, sk: u64) -> u32 {
    if found == found::BYTES {
        join::moved(slot)
    } else if found == found::EOF && is_shut(sk, RCV_SHUTDOWN) {
        join::ended(slot)
    } else {
        0
    }
}

/// Plaintext of TLS: the scratch says where it is and how much, and its connection is in the map.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn plaintext_moved(slot: u32) -> u32 {
    let Some(scratch) = maps::scratch(slot) else { return 0 };
    // SAFETY: a live element of a per-CPU map that this thread took.
    let parts = unsafe { &mut *scratch };
    let Some(connection) = maps::connection(parts.header.connection) else {
        return 0;
    };
    let send = parts.header.direction == direction::SEND;
    // SAFETY: a live element of a map; a race on what both directions share costs at most one direction's framing.
    let shared: &mut Shared = unsafe { &mut (*connection).shared };
    // SAFETY: a live element of a map.
    let flows: *mut Flow = unsafe { &raw mut (*connection).flows }.cast();
    let flow = flows.wrapping_add(usize::from(send));
    // SAFETY: as above; there are two flows. A TLS connection's direction is not used by two threads at once.
    unsafe { core::ptr::copy_nonoverlapping(flow, &raw mut parts.flow, 1) };
    if shared.protocol >= protocol::OTHER || parts.flow.phase == phase::DEAD {
        return 0;
    }
    parts.header.time_ns = emit::now();
    piece(slot, shared, parts, found::BYTES, send);
    // SAFETY: as above.
    unsafe { core::ptr::copy_nonoverlapping(&raw const parts.flow, flow, 1) };
    0
}

/// One piece of one direction.
#[inline(always)]
fn piece(slot: u32, shared: &mut Shared, parts: &mut Scratch, found: u32, send: bool) {
    let (sk, cookie) = (parts.cursor.sk, parts.header.connection);
    if found == found::EOF {
        // A receive into no room returns 0 too (grpc-core does that): only the socket knows.
        if is_shut(sk, RCV_SHUTDOWN) {
            parts.header.flags = flags::END | common_flags(&parts.flow, shared);
            // SAFETY: the scratch begins with the header.
            unsafe { maps::output((&raw const parts.header).cast(), size_of::<Header>() as u64) };
        }
        return;
    }
    if shared.tcp != 0 && !in_order(sk, cookie, shared, &mut parts.flow, parts.cursor.moved, send) {
        maps::count(Fault::Sequence);
        log::tell(slot, log::told::GAP);
    }
    if found == found::OPAQUE {
        maps::count(Fault::OpaqueCall);
        log::tell(slot, log::told::OPAQUE);
        order::missed(&mut parts.flow, parts.cursor.moved);
        return;
    }
    if shared.upgraded != 0 && parts.flow.phase == phase::HTTP1_HEAD && parts.flow.http1.state == 0 {
        parts.flow.phase = phase::START;
    }
    let Some(mut at) = Walk::of(slot) else { return };
    at.begin();
    if parts.flow.phase == phase::LOST {
        if prove(slot) == 0 {
            if shared.protocol == protocol::OTHER {
                log::tell(slot, log::told::OTHER);
            }
            return;
        }
        log::tell(slot, log::told::PROVEN);
        at.begin();
    }
    parts.header.flags = common_flags(&parts.flow, shared);
    parts.flow.flags &= !flow_flag::GAP;
    walk(slot);
    if parts.cursor.stop != stop::NONE || parts.cursor.left != 0 {
        let fault = if parts.cursor.stop == stop::MALFORMED {
            Fault::Malformed
        } else if parts.cursor.stop == stop::UNREADABLE {
            Fault::UserMemory
        } else {
            Fault::TooManySteps
        };
        if shared.protocol != protocol::OTHER {
            maps::count(fault);
        }
        log::tell(slot, log::told::GAVE_UP);
        order::lose(&mut parts.flow);
    }
    // The protocol may have become known only now.
    parts.header.flags |= common_flags(&parts.flow, shared) & !flags::GAP;
    flush(slot);
}

#[inline(always)]
fn common_flags(flow: &Flow, shared: &Shared) -> u16 {
    let mut bits = 0;
    if flow.flags & flow_flag::GAP != 0 {
        bits |= flags::GAP;
    }
    if shared.origin != 0 {
        bits |= flags::ORIGIN;
    }
    if shared.protocol == protocol::HTTP1 {
        bits |= flags::HTTP1;
    }
    bits
}

/// Whether a side is closed: no more bytes will be received, or sent. Where the kernel
/// keeps that in a bit-field it is not known, and the socket's close tells it.
#[inline(always)]
fn is_shut(sk: u64, side: u8) -> bool {
    let at = offset!(sk_shutdown);
    at != ABSENT as usize && kernel::<u8>(sk.wrapping_add(at as u64)).unwrap_or(0) & side != 0
}

/// Compares where this call's bytes begin with where the last one's ended.
#[inline(always)]
fn in_order(sk: u64, cookie: u64, shared: &mut Shared, flow: &mut Flow, moved: u32, send: bool) -> bool {
    let at = if send {
        offset!(tcp_write_seq)
    } else {
        offset!(tcp_copied_seq)
    };
    let Some(position) = kernel::<u32>(sk.wrapping_add(at as u64)) else {
        return true;
    };
    // What was put in on its way out is no byte of the application's.
    let ahead = if send && inject::read::wanted() {
        inject::injected(cookie)
    } else {
        0
    };
    let position = position.wrapping_sub(ahead);
    // Another thread may have closed the sending side since this call's bytes were taken.
    let side = if send { SEND_SHUTDOWN } else { RCV_SHUTDOWN };
    order::follow(shared, flow, position, moved, || is_shut(sk, side))
}
