//! Calls of C functions: from their entry, where the arguments are, to their
//! return, where it is known what they moved.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::pt_regs;
use aya_ebpf::helpers::generated::bpf_get_current_pid_tgid;
use tracewire_common::event::{Header, direction, kind};
use tracewire_common::fault::Fault;
use tracewire_common::settings::watch;

use super::state::{self, SessionKey, Thread, call, session};
use super::{feed, join};
use crate::kernel::maps;
use crate::kernel::memory::user;

/// Most bytes of plaintext that a call moves.
pub const LARGEST: u64 = i32::MAX as u64;

/// The first bytes of HTTP/2's connection preface (RFC 9113 §3.4): no frame begins so.
const PREFACE: u64 = u64::from_le_bytes(*b"PRI * HT");
/// Bytes of the whole.
const PREFACE_LENGTH: u32 = 24;

/// pid and tgid, if the process is observed.
#[inline(always)]
pub fn observed() -> Option<u64> {
    // SAFETY: a helper without arguments.
    let id = unsafe { bpf_get_current_pid_tgid() };
    match maps::watched((id >> 32) as u32) {
        Some(how) if how != watch::IGNORED => Some(id),
        _ => None,
    }
}

/// A call begins: `(object, buffer, length)`, and if `counted` the address of its count.
#[inline(always)]
pub fn entered(regs: *const pt_regs, way: u32, counted: bool) {
    let Some(id) = observed() else { return };
    // SAFETY: the context of a probe.
    let regs = unsafe { &*regs };
    let (object, stack) = (regs.rdi, regs.rsp);
    if object == 0 {
        return;
    }
    let Some(thread) = state::thread(&state::thread_unit(id), true) else {
        maps::count(Fault::ConnectionsFull);
        return;
    };
    // SAFETY: a live element of a map that only this thread's programs write.
    let thread = unsafe { &mut *thread };
    if thread.object != 0 {
        if stack < thread.stack {
            // Inside another call: TLS in TLS, of which the outer is the tunnel.
            return;
        }
        missed(thread, id);
    }
    thread.object = object;
    thread.stack = stack;
    thread.call = way;
    thread.buffer = regs.rsi;
    thread.count = if counted { regs.rcx } else { 0 };
    if way == call::HANDSHAKE {
        let key = SessionKey {
            object,
            pid: (id >> 32) as u32,
            reserved: 0,
        };
        state::session(&key, session::FRESH);
    }
}

/// The return of a call was never seen: what it moved is not known.
#[inline(always)]
pub fn missed(thread: &Thread, id: u64) {
    let key = SessionKey {
        object: thread.object,
        pid: (id >> 32) as u32,
        reserved: 0,
    };
    if let Some(session) = state::known(&key) {
        // SAFETY: a live element of a map.
        let session = unsafe { &mut *session };
        session.flags |= if thread.call == call::READ {
            session::MISSED_RECEIVE
        } else {
            session::MISSED_SEND
        };
    }
}

/// A call returns.
#[inline(always)]
pub fn returned<C: EbpfContext>(ctx: &C, regs: *const pt_regs) {
    let Some(id) = observed() else { return };
    let Some(thread) = state::thread(&state::thread_unit(id), false) else {
        return;
    };
    // SAFETY: the context of a probe.
    let regs = unsafe { &*regs };
    // SAFETY: a live element of a map that only this thread's programs write.
    let thread = unsafe { &mut *thread };
    if thread.object == 0 || regs.rsp != thread.stack.wrapping_add(8) {
        return;
    }
    let object = thread.object;
    thread.object = 0;
    if thread.call == call::HANDSHAKE {
        // What it left to send goes out next.
        wrote(thread, object, 0);
        return;
    }
    let result = regs.rax as i32;
    let n = if thread.count == 0 {
        if result > 0 { result as u64 } else { 0 }
    } else if result == 1 || result == 2 {
        // 2: SSL_READ_EARLY_DATA_FINISH, with the last bytes or none.
        user::<u64>(thread.count).unwrap_or(0)
    } else {
        0
    };
    let read = thread.call == call::READ;
    if n == 0 || n > LARGEST {
        if read && thread.received != 0 && thread.tried == 0 {
            thread.tried = object;
        }
        return;
    }
    let buffer = thread.buffer;
    moved(ctx, id, thread, object, buffer, n as u32, read);
}

/// Plaintext went in and has not been sent yet, as far as seen.
#[inline(always)]
pub fn wrote(thread: &mut Thread, object: u64, n: u32) {
    if thread.wrote == object {
        thread.wrote_bytes = thread.wrote_bytes.saturating_add(n);
    } else {
        thread.wrote = if thread.wrote == 0 { object } else { state::SEVERAL };
        thread.wrote_bytes = n;
    }
}

/// `n` bytes of plaintext at `buffer` came out of or went into a connection.
#[inline(always)]
pub fn moved<C: EbpfContext>(ctx: &C, id: u64, thread: &mut Thread, object: u64, buffer: u64, n: u32, read: bool) {
    let pid = (id >> 32) as u32;
    let key = SessionKey {
        object,
        pid,
        reserved: 0,
    };
    let (missed, way) = if read {
        (session::MISSED_RECEIVE, session::RECEIVED)
    } else {
        (session::MISSED_SEND, session::SENT)
    };
    if n >= PREFACE_LENGTH && user::<u64>(buffer) == Some(PREFACE) {
        join::begins(&key, way, id);
    }
    let Some(session) = state::session(&key, 0) else { return };
    // SAFETY: a live element of a map; what races for it is one more word of evidence.
    let session = unsafe { &mut *session };
    let Some(place) = state::place(id) else {
        session.flags |= missed;
        return;
    };
    let Some(scratch) = maps::scratch(place) else { return };
    // SAFETY: a live element of a per-CPU map that this thread took.
    let parts = unsafe { &mut *scratch };
    if read {
        join::read(&key, session, thread, n, parts, id);
    } else {
        wrote(thread, object, n);
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
        pid,
        tid: id as u32,
    };
    parts.cursor.sk = 0;
    parts.cursor.regs = 0;
    parts.cursor.moved = n;
    parts.cursor.dry = 0;
    parts.cursor.first = (0, buffer, 0, n);
    if feed::ready(session.name, origin, gap, read) {
        // SAFETY: the program behind it takes the same context.
        unsafe { state::TLS_PROGRAMS.tail_call(ctx, 0) };
        // Only if there is no such program.
        maps::count(Fault::Nested);
        session.flags |= missed;
    }
    state::release(place);
}

/// A connection is freed: its name is never used again.
#[inline(always)]
pub fn freed(regs: *const pt_regs) {
    let Some(id) = observed() else { return };
    // SAFETY: the context of a probe.
    let object = unsafe { (*regs).rdi };
    let key = SessionKey {
        object,
        pid: (id >> 32) as u32,
        reserved: 0,
    };
    join::freed(&key, id);
}
