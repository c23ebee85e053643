//! Which socket a TLS connection belongs to.
//!
//! * A library that reads and writes its socket itself does so inside the
//!   call: that is certain at once.
//! * One that is given its bytes through memory (BIO pairs, engines) decrypts
//!   what the thread has just received, and what it encrypted the thread sends
//!   next. Each such sequence names a socket if nothing else came between and
//!   the ciphertext is longer than the plaintext; the second one in a row that
//!   names the same settles it.
//!
//! Then it stays so until the socket closes or the connection is freed. Two
//! connections never share a socket.

use tracewire_common::event::{Close, Header, direction, flags, kind, layer};
use tracewire_common::tls::OVERHEAD;

use super::state::{self, Above, Session, SessionKey, Thread, session};
use crate::kernel::emit;
use crate::kernel::maps::{self, Scratch, offset};
use crate::kernel::memory::kernel;
use crate::kernel::open;

/// Sequences in a row that settle it.
const SETTLED: u32 = 2;
/// Sequences in a row that unsettle what was settled: the object is another connection's now.
const UNSETTLED: u32 = 4;

/// The scratch's socket, whose bytes are TLS, was met for the first time.
#[inline(always)]
pub fn met(slot: u32) {
    let Some(scratch) = maps::scratch(slot) else { return };
    // SAFETY: a live element of a per-CPU map that only this program uses on this CPU.
    let header = unsafe { (*scratch).header };
    emit::bare(Header {
        kind: kind::TLS,
        direction: 0,
        flags: 0,
        time_ns: emit::now(),
        ..header
    });
}

/// Bytes moved on the scratch's socket, whose bytes are TLS.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn moved(slot: u32) -> u32 {
    if let Some(scratch) = maps::scratch(slot) {
        // SAFETY: a live element of a per-CPU map that only this program uses on this CPU.
        beneath(unsafe { &mut *scratch });
    }
    0
}

#[inline(always)]
fn beneath(scratch: &mut Scratch) {
    let Header {
        direction: way,
        connection: cookie,
        pid,
        tid,
        ..
    } = scratch.header;
    let (sk, moved) = (scratch.cursor.sk, scratch.cursor.moved);
    let id = u64::from(pid) << 32 | u64::from(tid);
    let unit = state::unit(id, scratch.cursor.regs);
    let Some(thread) = state::thread(&unit, way == direction::RECEIVE) else {
        return;
    };
    // SAFETY: a live element of a map that only this thread's programs write.
    let thread = unsafe { &mut *thread };
    if way == direction::RECEIVE {
        thread.received_last = (cookie, sk);
    } else {
        thread.sent_last = (cookie, sk);
    }
    if thread.object != 0 {
        let key = SessionKey {
            object: thread.object,
            pid,
            reserved: 0,
        };
        if let Some(session) = state::session(&key, 0) {
            // SAFETY: a live element of a map.
            let session = unsafe { &mut *session };
            name(&key, session, cookie, sk, SETTLED, scratch, id);
        }
        return;
    }
    if way == direction::RECEIVE {
        if thread.received == cookie && thread.several == 0 {
            thread.received_bytes = thread.received_bytes.saturating_add(moved);
            return;
        }
        thread.several = u32::from(thread.received != 0 || thread.several != 0);
        thread.received = if thread.several == 0 { cookie } else { 0 };
        thread.received_sk = sk;
        thread.received_bytes = moved;
        return;
    }
    let (object, bytes) = (thread.wrote, thread.wrote_bytes);
    if object == 0 {
        return;
    }
    thread.wrote = 0;
    if object == state::SEVERAL {
        return;
    }
    if moved < bytes.saturating_add(OVERHEAD) {
        return;
    }
    let key = SessionKey {
        object,
        pid,
        reserved: 0,
    };
    if let Some(session) = state::known(&key) {
        // SAFETY: a live element of a map.
        let session = unsafe { &mut *session };
        name(&key, session, cookie, sk, 1, scratch, id);
    }
}

/// Plaintext came out: what was received just before was its ciphertext.
#[inline(always)]
pub fn read(key: &SessionKey, session: &mut Session, thread: &mut Thread, n: u32, scratch: &mut Scratch, id: u64) {
    let cookie = if thread.tried == 0 || thread.tried == key.object {
        thread.received
    } else {
        0
    };
    thread.tried = 0;
    let enough = thread.received_bytes >= n.saturating_add(OVERHEAD);
    thread.received = 0;
    thread.several = 0;
    if cookie == 0 || !enough {
        return;
    }
    let sk = thread.received_sk;
    // The socket may be gone: its memory then says another name, or none.
    if kernel::<u64>(sk.wrapping_add(offset!(sk_cookie) as u64)) != Some(cookie) && sk != cookie {
        return;
    }
    name(key, session, cookie, sk, 1, scratch, id);
}

/// A sequence of weight `weight` names the socket of a session.
#[inline(always)]
fn name(key: &SessionKey, session: &mut Session, cookie: u64, sk: u64, weight: u32, scratch: &mut Scratch, id: u64) {
    if session.socket == cookie {
        session.candidate = 0;
        session.named = 0;
        return;
    }
    if state::above(cookie).is_some() {
        // Another's.
        return;
    }
    if session.candidate != cookie {
        session.candidate = cookie;
        session.named = 0;
    }
    session.named += weight;
    if session.socket != 0 {
        if session.named >= UNSETTLED {
            let was = session.socket;
            close(session.name, 0, id);
            state::forget_above(was);
            state::forget_session(key);
        }
        return;
    }
    if session.named < SETTLED {
        return;
    }
    settle(key, session, cookie, sk, scratch, id);
}

/// Says who the ends are.
#[inline(always)]
pub fn settle(key: &SessionKey, session: &mut Session, cookie: u64, sk: u64, scratch: &mut Scratch, id: u64) {
    let name = session.name;
    let above = Above { session: *key, name };
    scratch.cursor.sk = sk;
    if open::describe(scratch, layer::TLS).is_none() || !state::set_above(cookie, &above) {
        return;
    }
    scratch.header = Header {
        kind: kind::OPEN,
        direction: 0,
        flags: if session.flags & session::FRESH != 0 {
            flags::ORIGIN
        } else {
            0
        },
        length: 0,
        time_ns: 0,
        connection: name,
        pid: key.pid,
        tid: id as u32,
    };
    if open::announce(scratch) {
        session.socket = cookie;
        session.candidate = 0;
        session.named = 0;
    } else {
        state::forget_above(cookie);
    }
}

/// The peer sends no more on the scratch's socket, whose bytes are TLS.
#[inline(always)]
pub fn ended(slot: u32) -> u32 {
    let Some(scratch) = maps::scratch(slot) else { return 0 };
    // SAFETY: a live element of a per-CPU map that only this program uses on this CPU.
    let header = unsafe { (*scratch).header };
    let Some(above) = state::above(header.connection) else {
        return 0;
    };
    emit::bare(Header {
        flags: flags::END,
        time_ns: emit::now(),
        // SAFETY: a live element of a map.
        connection: unsafe { (*above).name },
        ..header
    });
    0
}

/// A socket whose bytes were TLS is closed.
#[inline(always)]
pub fn closed(cookie: u64, error: u32) {
    let Some(above) = state::above(cookie) else { return };
    // SAFETY: a live element of a map.
    let Above { session, name } = unsafe { *above };
    close(name, error, 0);
    state::forget_session(&session);
    state::forget_above(cookie);
}

/// A connection's first bytes, where others moved before: the object is another connection's now,
/// and the end of the one before was not seen.
#[inline(always)]
pub fn begins(key: &SessionKey, way: u32, id: u64) {
    if let Some(session) = state::known(key)
        // SAFETY: a live element of a map.
        && unsafe { (*session).flags } & way != 0
    {
        freed(key, id);
    }
}

/// A TLS connection is freed.
#[inline(always)]
pub fn freed(key: &SessionKey, id: u64) {
    let Some(session) = state::known(key) else { return };
    // SAFETY: a live element of a map.
    let Session { name, socket, .. } = unsafe { *session };
    close(name, 0, id);
    if socket != 0 {
        state::forget_above(socket);
    }
    state::forget_session(key);
}

#[inline(always)]
fn close(name: u64, error: u32, id: u64) {
    maps::forget_connection(name);
    let header = Header {
        kind: kind::CLOSE,
        time_ns: emit::now(),
        connection: name,
        pid: (id >> 32) as u32,
        tid: id as u32,
        ..Header::EMPTY
    };
    emit::small(header, Close { error });
}
