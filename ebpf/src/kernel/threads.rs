//! Threads that serve one HTTP/1 request at a time: one reads a request from a socket that
//! blocks, makes calls of its own, and answers. What it calls meanwhile is on behalf of that request.
//!
//! Bias: a thread means nothing by itself. Event loops, and runtimes that run many tasks on a
//! thread, set their sockets to not block, and one that was seen reading a request from such a socket
//! is never believed. Pools that hand requests on, and loops over sockets that block, betray
//! themselves: another thread answers than the one that read, or a thread reads a request
//! while it has another. That ends it for the whole process, for good; and none is believed
//! before several requests of its process were read and answered by one thread each.

use aya_ebpf::macros::map;
use aya_ebpf::maps::LruHashMap;
use tracewire_common::event::direction;
use tracewire_common::link::{StreamKey, mechanism};
use tracewire_ebpf::connection::Shared;

use crate::kernel::context;
use crate::kernel::maps::{self, Scratch, offset};
use crate::kernel::memory::kernel;
use crate::kernel::socket::name_at;

/// O_NONBLOCK of x86-64.
const NONBLOCK: u32 = 0o4000;
/// MSG_DONTWAIT
const DONT_WAIT: u64 = 0x40;
/// Offsets in `struct pt_regs` of x86-64.
const PT_REGS_R10: u64 = 56;
const PT_REGS_DX: u64 = 96;
const PT_REGS_ORIG_AX: u64 = 120;
/// Requests that a process must have read and answered by one thread each before its threads are believed.
pub const PROOFS: u32 = 8;
/// Value of [`Manners::spoiled`].
const SPOILED: u32 = 1;

/// What a thread serves.
#[derive(Clone, Copy)]
#[repr(C)]
struct Serving {
    /// [`StreamKey::DOUBT`]: the thread reads from sockets that do not block, and is never believed.
    request: StreamKey,
    /// Address of its socket.
    sk: u64,
}

/// How a process was seen to work.
#[derive(Clone, Copy)]
#[repr(C)]
struct Manners {
    /// Requests that were answered by the thread that had read them.
    answered: u32,
    /// [`SPOILED`]: its threads are not to be believed.
    spoiled: u32,
}

/// The request that a thread (tgid and tid) has read and not answered yet.
#[map]
static THREADS: LruHashMap<u64, Serving> = LruHashMap::with_max_entries(16384, 0);

/// The thread that has read the request which is open on a connection.
#[map]
static THREAD_OF: LruHashMap<u64, u64> = LruHashMap::with_max_entries(16384, 0);

/// By tgid.
#[map]
static MANNERS: LruHashMap<u32, Manners> = LruHashMap::with_max_entries(4096, 0);

/// Values of [`maps::Cursor::heads`]: none but requests' heads count.
pub mod heads {
    /// The connection is no HTTP/1.
    pub const OTHER: u32 = 0;
    /// No head of a request ended in the call; one more for each that did, two at most.
    pub const NONE: u32 = 1;
    /// One ended.
    pub const ONE: u32 = 2;
    /// Several did.
    pub const SEVERAL: u32 = 3;
}

/// Bytes of an HTTP/1 connection were moved, as the scratch says.
#[inline(always)]
pub fn moved(slot: u32) {
    thread_moved(slot);
}

/// The same, which the verifier walks by itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn thread_moved(slot: u32) -> u32 {
    let _ = moved_by(slot);
    0
}

#[inline(always)]
fn moved_by(slot: u32) -> Option<()> {
    let scratch = maps::scratch(slot)?;
    // SAFETY: a live element of a per-CPU map that only this program uses on this CPU.
    let parts = unsafe { &*scratch };
    let known = maps::connection(parts.header.connection)?;
    // SAFETY: a live element of a map.
    let shared = unsafe { (*known).shared };
    let id = u64::from(parts.header.pid) << 32 | u64::from(parts.header.tid);
    if parts.header.direction == direction::RECEIVE {
        if parts.cursor.heads >= heads::ONE {
            began(parts, &shared, id);
        }
    } else if parts.cursor.heads == heads::NONE {
        answered(parts, &shared, id);
    } else if parts.cursor.heads == heads::ONE {
        calls(parts, &shared, id);
    }
    None
}

/// A thread has read the head of a request.
#[inline(always)]
fn began(parts: &Scratch, shared: &Shared, id: u64) -> Option<()> {
    let (pid, connection) = (parts.header.pid, parts.header.connection);
    if manners(pid).spoiled != 0 {
        return None;
    }
    // SAFETY: plain, and only this thread's programs write it.
    if let Some(before) = unsafe { THREADS.get(id) }.copied() {
        if before.request == StreamKey::DOUBT {
            return None;
        }
        if before.request.connection != connection && is_open(&before) {
            return spoil(pid, id);
        }
    }
    let mut serving = Serving {
        request: StreamKey::DOUBT,
        sk: parts.cursor.sk,
    };
    if blocks(parts) {
        if parts.cursor.heads != heads::ONE || shared.unanswered != 1 {
            // Several at once (RFC 9112 §9.3.2): which one it works for is not known.
            let _ = THREAD_OF.remove(connection);
            let _ = THREADS.remove(id);
            return None;
        }
        serving.request = StreamKey::served(connection, shared.requests);
        let _ = THREAD_OF.insert(connection, id, 0);
    }
    let _ = THREADS.insert(id, serving, 0);
    None
}

/// A thread has written to a connection, and no request.
#[inline(always)]
fn answered(parts: &Scratch, shared: &Shared, id: u64) -> Option<()> {
    let (pid, connection) = (parts.header.pid, parts.header.connection);
    // SAFETY: an integer, written whole.
    let reader = unsafe { THREAD_OF.get(connection) }.copied()?;
    if reader != id {
        let _ = THREAD_OF.remove(connection);
        // Maybe a child of the process that read it.
        return spoil((reader >> 32) as u32, reader);
    }
    if shared.unanswered == 0 {
        let _ = THREAD_OF.remove(connection);
        let _ = THREADS.remove(id);
        let mut manners = manners(pid);
        if manners.answered < PROOFS {
            manners.answered += 1;
            let _ = MANNERS.insert(pid, manners, 0);
        }
    }
    None
}

/// A thread has written a request.
#[inline(always)]
fn calls(parts: &Scratch, shared: &Shared, id: u64) -> Option<()> {
    let (connection, number) = (parts.header.connection, shared.requests);
    match serves(id)? {
        (request, true) => context::calls(connection, number, &request, mechanism::THREAD),
        (_, false) => context::ambiguous(connection, number, mechanism::THREAD),
    }
    None
}

/// The request that a thread (tgid and tid) serves, and whether that is certain by now.
#[inline(always)]
pub fn serves(id: u64) -> Option<(StreamKey, bool)> {
    // SAFETY: plain, and only this thread's programs write it.
    let serving = unsafe { THREADS.get(id) }.copied()?;
    if !serving.request.is_some() {
        return None;
    }
    let manners = manners((id >> 32) as u32);
    if manners.spoiled != 0 || !is_open(&serving) {
        return None;
    }
    Some((serving.request, manners.answered >= PROOFS))
}

/// A thread (tgid and tid) is gone; another may get its name.
#[inline(always)]
pub fn ended(id: u64) {
    // Absent is as good as removed.
    let _ = THREADS.remove(id);
}

/// The threads of this process are never believed again; that one least.
#[inline(always)]
fn spoil(pid: u32, thread: u64) -> Option<()> {
    let manners = Manners {
        answered: 0,
        spoiled: SPOILED,
    };
    let _ = MANNERS.insert(pid, manners, 0);
    let _ = THREADS.remove(thread);
    None
}

#[inline(always)]
fn manners(pid: u32) -> Manners {
    // SAFETY: two integers; what a race loses is one proof.
    unsafe { MANNERS.get(pid) }.copied().unwrap_or(Manners {
        answered: 0,
        spoiled: 0,
    })
}

/// Whether the request can still be answered: its socket is there, and the process holds it.
#[inline(always)]
fn is_open(serving: &Serving) -> bool {
    let socket = kernel::<u64>(serving.sk.wrapping_add(offset!(sk_socket) as u64));
    socket.is_some_and(|socket| socket != 0)
        && name_at(serving.sk) == serving.request.connection
        && maps::connection(serving.request.connection).is_some()
}

/// Whether the receive under way could have waited for bytes.
#[inline(always)]
fn blocks(parts: &Scratch) -> bool {
    let flags = kernel::<u64>(parts.cursor.sk.wrapping_add(offset!(sk_socket) as u64))
        .and_then(|socket| kernel::<u64>(socket.wrapping_add(offset!(socket_file) as u64)))
        .and_then(|file| kernel::<u32>(file.wrapping_add(offset!(file_flags) as u64)));
    if flags.is_none_or(|flags| flags & NONBLOCK != 0) {
        return false;
    }
    let register = |at: u64| kernel::<u64>(parts.cursor.regs.wrapping_add(at)).unwrap_or(u64::MAX);
    let flags = match register(PT_REGS_ORIG_AX) {
        // read, readv
        0 | 19 => 0,
        // recvfrom
        45 => register(PT_REGS_R10),
        // recvmsg
        47 => register(PT_REGS_DX),
        _ => DONT_WAIT,
    };
    flags & DONT_WAIT == 0
}
