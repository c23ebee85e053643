//! rustls, which works on memory and has no object that stays where it is: a
//! Rust value is moved. So its connections are named by their sockets, and a
//! socket is only believed where the code leaves no choice: what is decrypted
//! was received just before on the same thread (`read_tls`, then
//! `process_new_packets`), and what a writing function accepts it sends before
//! it returns (`writer().write(…)`, then `write_tls`).
//!
//! A writing function is seen at three places: its entry has the bytes, behind
//! its call of rustls's writer stands how many were accepted, and behind its
//! call of `write_tls` the socket is known and the bytes are still there. No
//! return is probed: a panic could not unwind through it.
//!
//! Bias: bytes whose socket is not certain are a gap of that direction.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::pt_regs;
use tracewire_common::event::{Header, direction, kind};
use tracewire_common::fault::Fault;

use super::call::{LARGEST, observed};
use super::state::{self, SessionKey, Thread, session};
use super::{feed, join};
use crate::kernel::maps::{self, offset};
use crate::kernel::memory::{kernel, user};

/// What a writing function was given, and how far it is.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Writing {
    /// Where its connection is now, 0: none is written.
    writer: u64,
    /// Address of the bytes, or of their iovecs.
    buffer: u64,
    /// Stack pointer behind its calls, 0: none was made yet.
    frame: u64,
    /// How many iovecs; 0: the bytes lie at `buffer`.
    vectors: u32,
    /// Bytes that rustls accepted.
    accepted: u32,
    /// Of these: told.
    told: u32,
    /// 0.
    reserved: u32,
}

impl Writing {
    /// None.
    pub const NONE: Writing = Writing {
        writer: 0,
        buffer: 0,
        frame: 0,
        vectors: 0,
        accepted: 0,
        told: 0,
        reserved: 0,
    };
}

/// Value of `TLS_WRITERS`: what was written from here is not known.
const MISSED: u64 = u64::MAX;

#[inline(always)]
fn key(object: u64, id: u64) -> SessionKey {
    SessionKey {
        object,
        pid: (id >> 32) as u32,
        reserved: 0,
    }
}

/// The current thread; may be made.
#[inline(always)]
fn thread(id: u64, make: bool) -> Option<&'static mut Thread> {
    let at = state::thread(&state::thread_unit(id), make)?;
    // SAFETY: a live element of a map that only this thread's programs write.
    Some(unsafe { &mut *at })
}

/// `CommonState::take_received_plaintext(&mut self, bytes)`. RSI points to the bytes' owner: a word that
/// says which kind it is or how much room it has, then address and length.
#[inline(always)]
pub fn decrypted<C: EbpfContext>(ctx: &C, regs: *const pt_regs) {
    let Some(id) = observed() else { return };
    // SAFETY: the context of a probe.
    let bytes = unsafe { (*regs).rsi };
    let Some(thread) = thread(id, false) else { return };
    let Some([buffer, n]) = user::<[u64; 2]>(bytes.wrapping_add(8)) else {
        return;
    };
    let (socket, sk) = thread.received_last;
    if n == 0 || n > LARGEST || socket == 0 {
        return;
    }
    // The socket may be gone: its memory then says another name, or none.
    if kernel::<u64>(sk.wrapping_add(offset!(sk_cookie) as u64)) != Some(socket) && sk != socket {
        return;
    }
    moved(ctx, id, (socket, sk), 0, (0, buffer, 0, n as u32), n as u32);
}

/// `poll_write(self, context, buffer)` or `poll_write_vectored(self, context, buffers)` of a TLS stream begins:
/// RDX and RCX are what is to be written. `borrowed`: `self` points to a borrow of the stream's parts.
#[inline(always)]
pub fn writes(regs: *const pt_regs, vectored: bool, borrowed: bool) {
    let Some(id) = observed() else { return };
    // SAFETY: the context of a probe.
    let regs = unsafe { &*regs };
    let Some(thread) = thread(id, true) else {
        maps::count(Fault::ConnectionsFull);
        return;
    };
    let writing = &mut thread.writing;
    if writing.accepted != writing.told {
        if regs.rsp < writing.frame {
            // Within the other's sending: TLS in TLS, of which the other is the tunnel.
            return;
        }
        lost(writing, id);
    }
    let writer = if borrowed {
        user::<u64>(regs.rdi).unwrap_or(0)
    } else {
        regs.rdi
    };
    *writing = Writing {
        writer,
        buffer: regs.rdx,
        vectors: if vectored { regs.rcx as u32 } else { 0 },
        ..Writing::NONE
    };
    thread.sent_last = (0, 0);
}

/// Behind its call of rustls's writer: RAX is 0 if it accepted what RDX says; `counted`: RAX says it.
#[inline(always)]
pub fn accepted(regs: *const pt_regs, counted: bool) {
    let Some(id) = observed() else { return };
    // SAFETY: the context of a probe.
    let regs = unsafe { &*regs };
    let Some(thread) = thread(id, false) else { return };
    let writing = &mut thread.writing;
    if writing.writer == 0 || writing.frame != 0 && writing.frame != regs.rsp {
        return;
    }
    writing.frame = regs.rsp;
    let n = if counted {
        regs.rax
    } else if regs.rax as u8 == 0 {
        regs.rdx
    } else {
        0
    };
    if n <= LARGEST {
        writing.accepted = writing.accepted.wrapping_add(n as u32);
    }
}

/// Behind its call of `write_tls`.
#[inline(always)]
pub fn sent<C: EbpfContext>(ctx: &C, regs: *const pt_regs) {
    let Some(id) = observed() else { return };
    // SAFETY: the context of a probe.
    let regs = unsafe { &*regs };
    let Some(thread) = thread(id, false) else { return };
    let writing = &mut thread.writing;
    let (told, n) = (writing.told, writing.accepted.wrapping_sub(writing.told));
    if writing.writer == 0 || writing.frame != regs.rsp || n == 0 {
        return;
    }
    writing.told = writing.accepted;
    let writer = writing.writer;
    let mut socket = thread.sent_last;
    if socket.0 == 0 {
        // Nothing could be sent now.
        let known = state::written_by(&key(writer, id)).unwrap_or(0);
        if known != 0
            && known != MISSED
            && state::known(&key(known, id)).is_some_and(|session| {
                // SAFETY: a live element of a map.
                unsafe { (*session).writer == writer }
            })
        {
            socket = (known, 0);
        }
    }
    if socket.0 == 0 || writing.vectors != 0 && told != 0 {
        lost(writing, id);
        return;
    }
    let first = if writing.vectors == 0 {
        (0, writing.buffer.wrapping_add(u64::from(told)), 0, n)
    } else {
        (writing.buffer, 0, writing.vectors, 0)
    };
    moved(ctx, id, socket, writer, first, n);
}

/// What was accepted was never sent as far as seen, or by nobody knows which socket.
#[inline(always)]
fn lost(writing: &Writing, id: u64) {
    maps::count(Fault::Nested);
    let known = state::written_by(&key(writing.writer, id)).unwrap_or(0);
    if known != 0
        && known != MISSED
        && let Some(session) = state::known(&key(known, id))
    {
        // SAFETY: a live element of a map.
        let session = unsafe { &mut *session };
        if session.writer == writing.writer {
            session.flags |= session::MISSED_SEND;
            return;
        }
    }
    state::set_written_by(&key(writing.writer, id), MISSED);
}

/// `n` bytes of plaintext came out of or went into the connection above a socket. `writer`: where
/// the connection is now that was written; 0: it was read.
#[inline(always)]
fn moved<C: EbpfContext>(ctx: &C, id: u64, (socket, sk): (u64, u64), writer: u64, first: (u64, u64, u32, u32), n: u32) {
    let read = writer == 0;
    let key = key(socket, id);
    let known = state::known(&key);
    let fresh = known.is_none()
        && maps::connection(socket).is_some_and(|connection| {
            // SAFETY: a live element of a map.
            unsafe { (*connection).shared.origin != 0 }
        });
    let flags = if fresh { session::FRESH } else { 0 };
    let Some(session) = known.or_else(|| state::session(&key, flags)) else {
        return;
    };
    // SAFETY: a live element of a map; a connection is read and written by one task.
    let session = unsafe { &mut *session };
    let (missed, way) = if read {
        (session::MISSED_RECEIVE, session::RECEIVED)
    } else {
        (session::MISSED_SEND, session::SENT)
    };
    if !read && session.writer != writer {
        let at = self::key(writer, id);
        if state::written_by(&at) == Some(MISSED) {
            session.flags |= missed;
        }
        session.writer = writer;
        state::set_written_by(&at, socket);
    }
    let Some(place) = state::place(id) else {
        session.flags |= missed;
        return;
    };
    let Some(scratch) = maps::scratch(place) else { return };
    // SAFETY: a live element of a per-CPU map that this thread took.
    let parts = unsafe { &mut *scratch };
    if session.socket == 0 && sk != 0 {
        join::settle(&key, session, socket, sk, parts, id);
    }
    let origin = session.flags & (session::FRESH | session::SPOKE) == session::FRESH;
    let gap = session.flags & missed != 0;
    session.flags = session.flags & !missed | session::SPOKE | way;
    parts.header = Header {
        kind: kind::FRAMES,
        direction: if read { direction::RECEIVE } else { direction::SEND },
        flags: 0,
        length: 0,
        time_ns: 0,
        connection: session.name,
        pid: key.pid,
        tid: id as u32,
    };
    parts.cursor.sk = 0;
    parts.cursor.regs = 0;
    parts.cursor.moved = n;
    parts.cursor.dry = 0;
    parts.cursor.first = first;
    if feed::ready(session.name, origin, gap, read) {
        // SAFETY: the program behind it takes the same context.
        unsafe { state::TLS_PROGRAMS.tail_call(ctx, 0) };
        // Only if there is no such program.
        maps::count(Fault::Nested);
        session.flags |= missed;
    }
    state::release(place);
}
