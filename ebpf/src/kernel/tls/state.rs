//! What is remembered of TLS: sessions, the threads in them, the sockets beneath.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::helpers::generated::bpf_get_smp_processor_id;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, LruHashMap, PerCpuArray, ProgramArray};
use tracewire_common::fault::Fault;
use tracewire_common::link::{Unit, unit};
use tracewire_common::tls;

use super::rustls::Writing;
use crate::kernel::emit;
use crate::kernel::maps::{self, slot};
use crate::kernel::memory::kernel;

/// Threads and goroutines that are remembered.
const UNITS: u32 = 256 * 1024;
/// TLS connections that are remembered.
const SESSIONS: u32 = 16 * 1024;

/// A connection of a TLS library, as its programs name it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SessionKey {
    /// `SSL *`, `gnutls_session_t`, `*tls.Conn`.
    pub object: u64,
    /// Process (tgid).
    pub pid: u32,
    /// 0.
    pub reserved: u32,
}

/// What is known of it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Session {
    /// Its name in records.
    pub name: u64,
    /// Cookie of its socket, 0: not known.
    pub socket: u64,
    /// Cookie of the socket that it may belong to.
    pub candidate: u64,
    /// Times that the candidate was named in a row.
    pub named: u32,
    /// Bits of [`session`].
    pub flags: u32,
    /// rustls: where the connection was when it was last written.
    pub writer: u64,
}

/// Bits of [`Session::flags`].
pub mod session {
    /// Its handshake was seen before any plaintext.
    pub const FRESH: u32 = 1;
    /// Plaintext was seen.
    pub const SPOKE: u32 = 2;
    /// The outcome of a receive was missed.
    pub const MISSED_RECEIVE: u32 = 4;
    /// The outcome of a send was missed.
    pub const MISSED_SEND: u32 = 8;
    /// Plaintext was received.
    pub const RECEIVED: u32 = 16;
    /// Plaintext was sent.
    pub const SENT: u32 = 32;
}

/// A thread or goroutine: the call it is in, and what it did around it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Thread {
    /// Connection of the call under way, 0: none.
    pub object: u64,
    /// Buffer of the call.
    pub buffer: u64,
    /// Where the call writes how much it moved; 0: it returns that.
    pub count: u64,
    /// Stack pointer at the call's entry.
    pub stack: u64,
    /// Cookie of the TLS socket last received from, 0: none since the last plaintext.
    pub received: u64,
    /// Address of that socket.
    pub received_sk: u64,
    /// Connection that was given what was received and had no plaintext yet.
    pub tried: u64,
    /// Connection that took plaintext since the last send; or [`SEVERAL`].
    pub wrote: u64,
    /// Bytes received since the last plaintext.
    pub received_bytes: u32,
    /// Bytes of plaintext since the last send.
    pub wrote_bytes: u32,
    /// One of [`call`].
    pub call: u32,
    /// 1: received from several sockets, which says nothing.
    pub several: u32,
    /// rustls: cookie and address of the TLS socket last received from.
    pub received_last: (u64, u64),
    /// rustls: the same of the one last sent to, since what is written now began.
    pub sent_last: (u64, u64),
    /// rustls: what is written now.
    pub writing: Writing,
}

/// Values of [`Thread::call`].
pub mod call {
    /// Plaintext comes out.
    pub const READ: u32 = 0;
    /// Plaintext goes in.
    pub const WRITE: u32 = 1;
    /// The handshake.
    pub const HANDSHAKE: u32 = 2;
}

/// Value of [`Thread::wrote`]: more than one.
pub const SEVERAL: u64 = u64::MAX;

impl Thread {
    const EMPTY: Thread = Thread {
        object: 0,
        buffer: 0,
        count: 0,
        stack: 0,
        received: 0,
        received_sk: 0,
        tried: 0,
        wrote: 0,
        received_bytes: 0,
        wrote_bytes: 0,
        call: 0,
        several: 0,
        received_last: (0, 0),
        sent_last: (0, 0),
        writing: Writing::NONE,
    };
}

/// The TLS connection above a socket.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Above {
    /// The session.
    pub session: SessionKey,
    /// Its name in records.
    pub name: u64,
}

/// Who builds a record in each of a processor's places for that: pid and tgid of the thread, 0: nobody.
#[map]
static TLS_OWNERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(slot::TLS_COUNT, 0);

#[map]
static TLS_SESSIONS: LruHashMap<SessionKey, Session> = LruHashMap::with_max_entries(SESSIONS, 0);

#[map]
static TLS_UNITS: HashMap<Unit, Thread> = HashMap::with_max_entries(UNITS, BPF_F_NO_PREALLOC);

/// By the socket's cookie.
#[map]
static TLS_SOCKETS: LruHashMap<u64, Above> = LruHashMap::with_max_entries(SESSIONS, 0);

/// rustls: the socket's cookie, by where its connection was when it was written.
#[map]
static TLS_WRITERS: LruHashMap<SessionKey, u64> = LruHashMap::with_max_entries(SESSIONS, 0);

/// Element 0: the program that frames plaintext.
#[map]
pub static TLS_PROGRAMS: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Takes a place to build a record in: its number among the scratches.
#[inline(always)]
pub fn place(me: u64) -> Option<u32> {
    let mut i = 0;
    while i < slot::TLS_COUNT {
        if take(TLS_OWNERS.get_ptr_mut(i)?, me) {
            return Some(slot::TLS + i);
        }
        i += 1;
    }
    maps::count(Fault::Nested);
    None
}

/// The place that this thread took.
#[inline(always)]
pub fn own_place(me: u64) -> Option<u32> {
    let mut i = 0;
    while i < slot::TLS_COUNT {
        // SAFETY: a live element of a per-CPU map.
        if unsafe { core::ptr::read_volatile(TLS_OWNERS.get_ptr(i)?) } == me {
            return Some(slot::TLS + i);
        }
        i += 1;
    }
    None
}

/// Gives it back.
#[inline(always)]
pub fn release(place: u32) {
    if let Some(owner) = TLS_OWNERS.get_ptr_mut(place - slot::TLS) {
        // SAFETY: a live element of a per-CPU map, taken by this thread.
        unsafe { core::ptr::write_volatile(owner, 0) };
    }
}

/// Makes `me` the owner if there is none, in one step.
#[inline(always)]
fn take(owner: *mut u64, me: u64) -> bool {
    let mut was = 0_u64;
    // SAFETY: `owner` is an aligned u64 in a map, which the verifier checks too.
    unsafe {
        core::arch::asm!(
            "r0 = cmpxchg_64({owner} + 0, r0, {me})",
            owner = in(reg) owner,
            me = in(reg) me,
            inout("r0") was,
            options(nostack),
        );
    }
    was == 0
}

/// The thread `id`.
#[inline(always)]
pub fn thread_unit(id: u64) -> Unit {
    Unit {
        id: id & 0xffff_ffff,
        pid: (id >> 32) as u32,
        kind: unit::THREAD,
    }
}

/// The goroutine whose `g` is at this address: it is told only while it is in a call, so the address will do.
#[inline(always)]
pub fn goroutine_unit(id: u64, g: u64) -> Unit {
    Unit {
        id: g,
        pid: (id >> 32) as u32,
        kind: unit::GOROUTINE,
    }
}

/// What executes the current system call, whose registers are at `regs`.
#[inline(always)]
pub fn unit(id: u64, regs: u64) -> Unit {
    if maps::marked((id >> 32) as u32, tls::GO) {
        // The goroutine is in R14 (Go's internal ABI), the second word of `struct pt_regs`.
        return goroutine_unit(id, kernel::<u64>(regs.wrapping_add(8)).unwrap_or(0));
    }
    thread_unit(id)
}

/// What is remembered of a thread; may be made.
#[inline(always)]
pub fn thread(unit: &Unit, make: bool) -> Option<*mut Thread> {
    if let Some(thread) = TLS_UNITS.get_ptr_mut(unit) {
        return Some(thread);
    }
    let empty: &Thread = &Thread::EMPTY;
    if !make || TLS_UNITS.insert(unit, empty, 0).is_err() {
        return None;
    }
    TLS_UNITS.get_ptr_mut(unit)
}

/// A thread ended.
#[inline(always)]
pub fn forget_thread(unit: &Unit) {
    let _ = TLS_UNITS.remove(unit);
}

/// What is known of a session.
#[inline(always)]
pub fn known(key: &SessionKey) -> Option<*mut Session> {
    TLS_SESSIONS.get_ptr_mut(key)
}

/// The same; it is made if it is new.
#[inline(always)]
pub fn session(key: &SessionKey, flags: u32) -> Option<*mut Session> {
    if let Some(session) = known(key) {
        return Some(session);
    }
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let new = Session {
        name: tls::name(emit::now(), cpu),
        socket: 0,
        candidate: 0,
        named: 0,
        flags,
        writer: 0,
    };
    let new: &Session = &new;
    if TLS_SESSIONS.insert(key, new, 0).is_err() {
        maps::count(Fault::ConnectionsFull);
        return None;
    }
    known(key)
}

/// A session is gone.
#[inline(always)]
pub fn forget_session(key: &SessionKey) {
    let _ = TLS_SESSIONS.remove(key);
}

/// The TLS connection above a socket.
#[inline(always)]
pub fn above(socket: u64) -> Option<*mut Above> {
    TLS_SOCKETS.get_ptr_mut(socket)
}

/// Says which TLS connection is above a socket.
#[inline(always)]
pub fn set_above(socket: u64, above: &Above) -> bool {
    TLS_SOCKETS.insert(socket, above, 0).is_ok()
}

/// The socket is free again.
#[inline(always)]
pub fn forget_above(socket: u64) {
    let _ = TLS_SOCKETS.remove(socket);
}

/// rustls: the socket of what was written from here.
#[inline(always)]
pub fn written_by(at: &SessionKey) -> Option<u64> {
    // SAFETY: an integer, written whole.
    unsafe { TLS_WRITERS.get(at) }.copied()
}

/// rustls: says it.
#[inline(always)]
pub fn set_written_by(at: &SessionKey, socket: u64) {
    let _ = TLS_WRITERS.insert(at, socket, 0);
}
