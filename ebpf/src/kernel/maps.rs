//! The maps and globals, behind getters.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf};
use tracewire_common::event::Header;
use tracewire_common::fault::{self, Fault};
use tracewire_common::link::StreamKey;
use tracewire_common::settings::{Offsets, Settings, watch};
use tracewire_ebpf::connection::{Connection, Flow, Message};
use tracewire_ebpf::inbound::Inbound;
use tracewire_ebpf::order::Birth;

/// Bytes of elided stream that a record holds at most.
pub const RECORD: usize = 16 * 1024;
/// Bytes that one copy moves at most.
pub const COPY: usize = 4 * 1024;

/// Bytes of user memory that are read at once.
pub const WINDOW: usize = 1024;
/// iovecs that are read at once.
pub const VECTORS: u32 = 8;

/// Scratches: one for each program, since two programs may interleave on one CPU where the
/// kernel only keeps them from migrating; one and the same program never does.
pub mod slot {
    /// Receives of `sock_recv_length` and `tcp_recvmsg`.
    pub const RECEIVE: u32 = 0;
    /// Sends of `sock_send_length` and `tcp_sendmsg`.
    pub const SEND: u32 = 1;
    /// `unix_stream_recvmsg`
    pub const UNIX_RECEIVE: u32 = 2;
    /// `unix_stream_sendmsg`
    pub const UNIX_SEND: u32 = 3;
    /// `sys_exit`
    pub const SYSTEM_CALL: u32 = 4;
    /// Plaintext of TLS, where probes of user space can interrupt each other: the first of [`TLS_COUNT`].
    pub const TLS: u32 = 5;
    /// How many of those there are.
    pub const TLS_COUNT: u32 = 3;
    /// `sock_recv_again`
    pub const RECEIVE_AGAIN: u32 = 8;
    /// `sock_send_again`
    pub const SEND_AGAIN: u32 = 9;
    /// How many there are.
    pub const COUNT: u32 = 10;
}

/// `struct iovec`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Vector {
    pub base: u64,
    pub length: u64,
}

/// What a program knows of the call that it observes, and the record that it builds.
#[repr(C)]
pub struct Scratch {
    /// Header of the record.
    pub header: Header,
    /// The elided stream of the record.
    pub data: [u8; RECORD + COPY],
    /// Where the walk over the call stands.
    pub cursor: Cursor,
    /// The direction's state while the call is walked.
    pub flow: Flow,
    /// The same, kept during a dry run.
    pub kept: Flow,
    /// iovecs that were read ahead.
    pub vectors: [Vector; VECTORS as usize],
    /// Bytes that were read ahead, and a word more.
    pub window: [u8; WINDOW + 16],
    /// The direction's contexts, while its record is read.
    pub inbound: Inbound,
}

/// Where a walk stands. It is here and not on the stack, because the verifier
/// forgets what it knew of a value that went through a map: paths that differ
/// only in such values are then one path.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Cursor {
    /// User address of the next iovec that is not in [`Scratch::vectors`].
    pub vector: u64,
    /// User address of the next byte.
    pub base: u64,
    /// iovecs left.
    pub vectors: u32,
    /// Bytes left at `base`.
    pub segment: u32,
    /// Bytes left of the call.
    pub left: u32,
    /// Bytes of the record so far.
    pub out: u32,
    /// One of [`crate::kernel::walk::stop`].
    pub stop: u32,
    /// 1: nothing is emitted or stored.
    pub dry: u32,
    /// 1: a record was dropped, so that the rest of the frame must not follow.
    pub dropped: u32,
    /// Records of the call so far, how many bytes the latest has, and whether it says `GAP`.
    pub records: u32,
    /// As said; 0 if it was dropped.
    pub told: u32,
    /// As said.
    pub gap: u32,
    /// Bytes of the call.
    pub moved: u32,
    /// Bytes at `base` that are in the window.
    pub ahead: u32,
    /// Where they begin in it.
    pub seen: u32,
    /// iovecs left in [`Scratch::vectors`].
    pub known: u32,
    /// Which of them is next.
    pub next: u32,
    /// The first piece, to begin again after a dry run: as `vector`, `base`, `vectors`, `segment`.
    pub first: (u64, u64, u32, u32),
    /// Address of the `struct sock`.
    pub sk: u64,
    /// Address of the user registers.
    pub regs: u64,
    /// The goroutine's `g` if the process is a Go program, else 0.
    pub g: u64,
    /// 1: this call tells nothing new of who reads or writes its connection.
    pub settled: u32,
    /// Heads of HTTP/1 requests that ended in this call: one of [`crate::kernel::threads::heads`].
    pub heads: u32,
    /// What [`process`] knows of the caller's process.
    pub how: u32,
    /// Must be 0.
    pub reserved: u32,
}

/// Records to the agent. Its size is set by the agent.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(16 * 1024 * 1024, 0);

/// Processes by tgid: see `settings::watch`.
#[map]
static PROCESSES: HashMap<u32, u32> = HashMap::with_max_entries(65536, BPF_F_NO_PREALLOC);

/// Ports whose listeners are chosen.
#[map]
static PORTS: HashMap<u32, u32> = HashMap::with_max_entries(1024, BPF_F_NO_PREALLOC);

/// Connections by cookie.
#[map]
static CONNECTIONS: LruHashMap<u64, Connection> = LruHashMap::with_max_entries(16384, 0);

/// Streams in the middle of a message, or that are not gRPC.
#[map]
static STREAMS: LruHashMap<StreamKey, Message> = LruHashMap::with_max_entries(8192, 0);

/// Messages done of a sendmmsg or recvmmsg under way, by thread.
#[map]
static MULTI: LruHashMap<u32, u32> = LruHashMap::with_max_entries(1024, 0);

/// By [`slot`].
#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(slot::COUNT, 0);

/// Where TCP connections began that were born in sight, by cookie.
#[map]
static BIRTHS: LruHashMap<u64, Birth> = LruHashMap::with_max_entries(16384, 0);

/// Faults by number.
#[map]
static FAULTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(fault::COUNT, 0);

/// Bytes that left by the ring buffer, per CPU.
#[map]
static BYTES: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Element 0 is 1 while the agent sleeps and must be woken.
#[map]
static SLEEPING: Array<u32> = Array::with_max_entries(1, 0);

/// Set by the agent before loading.
#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets {
    sk_family: 0,
    sk_dport: 0,
    sk_num: 0,
    sk_daddr: 0,
    sk_rcv_saddr: 0,
    sk_v6_daddr: 0,
    sk_v6_rcv_saddr: 0,
    sk_net: 0,
    sk_cookie: 0,
    sk_state: 0,
    net_inum: 0,
    sk_type: 0,
    sk_protocol: 0,
    sk_err: 0,
    sk_shutdown: 0,
    tcp_write_seq: 0,
    tcp_copied_seq: 0,
    tcp_rcv_nxt: 0,
    unix_peer: 0,
    task_stack: 0,
    task_files: 0,
    files_fdt: 0,
    fdt_fd: 0,
    fdt_max_fds: 0,
    file_op: 0,
    file_private_data: 0,
    socket_sk: 0,
    socket_file: 0,
    file_flags: 0,
    sk_socket: 0,
    file_inode: 0,
    inode_ino: 0,
    task_signal: 0,
    signal_live: 0,
    task_exit_code: 0,
    task_tgid: 0,
    task_pid: 0,
    sk_sndbuf: 0,
    sk_wmem_queued: 0,
    sk_prot: 0,
    sk_flags: 0,
    proto_memory_pressure: 0,
    task_sighand: 0,
    sighand_action: 0,
};

/// Set by the agent before loading.
#[unsafe(no_mangle)]
static SETTINGS: Settings = Settings {
    choose_new: 0,
    follow_children: 0,
    has_cookie: 0,
    stack_top: 0,
    has_task_pt_regs: 0,
    match_ports: 0,
    key: [0; 2],
    inject: 0,
    log: 0,
    links: 0,
    reserved: 0,
};

/// An empty connection, copied into the map from here: it is too large for the stack.
static EMPTY: Connection = Connection::EMPTY;

/// A member of [`Offsets`], read so that the compiler does not use the value it sees here.
macro_rules! offset {
    ($member:ident) => {
        $crate::kernel::maps::offset_at::<{ core::mem::offset_of!(tracewire_common::settings::Offsets, $member) }>()
    };
}
pub(crate) use offset;

/// A member of [`Settings`], read likewise.
macro_rules! setting {
    ($member:ident) => {
        $crate::kernel::maps::setting_at::<{ core::mem::offset_of!(tracewire_common::settings::Settings, $member) }>()
    };
}
pub(crate) use setting;

#[inline(always)]
pub fn offset_at<const AT: usize>() -> usize {
    // SAFETY: `offset_of!` gave AT: a u32 inside OFFSETS.
    let member = unsafe { (&raw const OFFSETS).byte_add(AT) };
    // SAFETY: as above; it lives as long as the program.
    unsafe { core::ptr::read_volatile(member.cast::<u32>()) as usize }
}

#[inline(always)]
pub fn setting_at<const AT: usize>() -> u32 {
    // SAFETY: `offset_of!` gave AT: a u32 inside SETTINGS.
    let member = unsafe { (&raw const SETTINGS).byte_add(AT) };
    // SAFETY: as above; it lives as long as the program.
    unsafe { core::ptr::read_volatile(member.cast::<u32>()) }
}

/// A half of the key of all ids.
#[inline(always)]
pub fn key(half: usize) -> u64 {
    // SAFETY: `half` is 0 or 1, at every caller a constant.
    let member = unsafe { (&raw const SETTINGS.key).cast::<u64>().add(half & 1) };
    // SAFETY: as above; it lives as long as the program.
    unsafe { core::ptr::read_volatile(member) }
}

/// What is known of a process: how it is treated and which probes are in it; None: nothing.
#[inline(always)]
pub fn process(pid: u32) -> Option<u32> {
    // SAFETY: the value is an integer that only the agent and `watch` write, whole.
    unsafe { PROCESSES.get(pid) }.copied()
}

/// How a process is treated; None: not at all.
#[inline(always)]
pub fn watched(pid: u32) -> Option<u32> {
    process(pid).map(|how| how & watch::MASK)
}

/// Whether the probes of a [`tracewire_common::link::runtime`] are in a process.
#[inline(always)]
pub fn runs(pid: u32, runtime: u32) -> bool {
    process(pid).is_some_and(|how| how & tracewire_common::link::runtime::bit(runtime) != 0)
}

#[inline(always)]
pub fn watch(pid: u32, how: u32) {
    let _ = PROCESSES.insert(pid, how, 0);
}

/// Whether a bit of how a process is treated is set.
#[inline(always)]
pub fn marked(pid: u32, bit: u32) -> bool {
    // SAFETY: as above.
    unsafe { PROCESSES.get(pid) }.is_some_and(|how| how & bit != 0)
}

/// Sets it, if the process is known.
#[inline(always)]
pub fn mark(pid: u32, bit: u32) {
    if let Some(how) = PROCESSES.get_ptr_mut(pid) {
        // SAFETY: a live element of a map; a race with the agent's write costs one more turn.
        unsafe { *how |= bit };
    }
}

#[inline(always)]
pub fn unwatch(pid: u32) {
    let _ = PROCESSES.remove(pid);
}

#[inline(always)]
pub fn port_chosen(port: u32) -> bool {
    PORTS.get_ptr(port).is_some()
}

#[inline(always)]
pub fn connection(cookie: u64) -> Option<*mut Connection> {
    CONNECTIONS.get_ptr_mut(cookie)
}

#[inline(always)]
pub fn add_connection(cookie: u64) -> Option<*mut Connection> {
    // By reference: a copy of it would not fit the stack.
    let empty: &Connection = &EMPTY;
    if CONNECTIONS.insert(cookie, empty, 0).is_err() {
        count(Fault::ConnectionsFull);
        return None;
    }
    CONNECTIONS.get_ptr_mut(cookie)
}

#[inline(always)]
pub fn forget_connection(cookie: u64) {
    let _ = CONNECTIONS.remove(cookie);
}

#[inline(always)]
pub fn stream(key: &StreamKey) -> Option<*const Message> {
    STREAMS.get_ptr(key)
}

#[inline(always)]
pub fn store_stream(key: &StreamKey, message: &Message) -> bool {
    STREAMS.insert(key, message, 0).is_ok()
}

#[inline(always)]
pub fn forget_stream(key: &StreamKey) {
    let _ = STREAMS.remove(key);
}

#[inline(always)]
pub fn multi(tid: u32) -> u32 {
    // SAFETY: the value is an integer that only this thread's programs write.
    unsafe { MULTI.get(tid) }.copied().unwrap_or(0)
}

#[inline(always)]
pub fn set_multi(tid: u32, done: u32) {
    if done == 0 {
        // To look is cheaper than to remove what is not there.
        if MULTI.get_ptr(tid).is_some() {
            let _ = MULTI.remove(tid);
        }
    } else {
        let _ = MULTI.insert(tid, done, 0);
    }
}

#[inline(always)]
pub fn scratch(slot: u32) -> Option<*mut Scratch> {
    SCRATCH.get_ptr_mut(slot)
}

/// Notes where a connection begins.
#[inline(always)]
pub fn born(cookie: u64, birth: &Birth) {
    let _ = BIRTHS.insert(cookie, birth, 0);
}

/// Where a connection began, if that was seen.
#[inline(always)]
pub fn birth(cookie: u64) -> Option<Birth> {
    // SAFETY: written once, before any call of the connection.
    unsafe { BIRTHS.get(cookie) }.copied()
}

/// Counts a fault.
#[inline(always)]
pub fn count(fault: Fault) {
    if let Some(slot) = FAULTS.get_ptr_mut(fault as u32) {
        // SAFETY: a live element of a per-CPU map.
        unsafe { *slot += 1 };
    }
}

/// Sends `size` bytes from `record`; wakes the agent only if it sleeps.
///
/// # Safety
/// `record` points to `size` readable bytes, which the verifier checks too.
#[inline(always)]
pub unsafe fn output(record: *const u8, size: u64) -> bool {
    let map = (&raw const EVENTS).cast_mut().cast();
    // SAFETY: the caller vouches for the record, the map is a ring buffer.
    let result =
        unsafe { aya_ebpf::helpers::generated::bpf_ringbuf_output(map, record.cast_mut().cast(), size, wake()) };
    if result != 0 {
        count(Fault::RingFull);
        return false;
    }
    sent(size);
    true
}

/// Flags with which a record is sent: the agent is woken only if it sleeps.
#[inline(always)]
fn wake() -> u64 {
    use aya_ebpf::bindings::{BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};
    let flags = match SLEEPING.get_ptr_mut(0) {
        // SAFETY: a live element of an array map; the race with the agent's write costs one wake-up.
        Some(sleeping) if unsafe { core::ptr::read_volatile(sleeping) } != 0 => {
            // SAFETY: as above.
            unsafe { core::ptr::write_volatile(sleeping, 0) };
            BPF_RB_FORCE_WAKEUP
        }
        _ => BPF_RB_NO_WAKEUP,
    };
    u64::from(flags)
}

#[inline(always)]
fn sent(size: u64) {
    if let Some(bytes) = BYTES.get_ptr_mut(0) {
        // SAFETY: a live element of a per-CPU map.
        unsafe { *bytes += size };
    }
}

/// A record of `size` bytes in the ring buffer itself, for a program that may be preempted and has no room of its own.
/// What comes back must go to [`submit`] or [`discard`].
#[inline(always)]
pub fn reserve(size: u64) -> Option<core::ptr::NonNull<u8>> {
    let map = (&raw const EVENTS).cast_mut().cast();
    // SAFETY: the map is a ring buffer.
    let record = unsafe { aya_ebpf::helpers::generated::bpf_ringbuf_reserve(map, size, 0) };
    let record = core::ptr::NonNull::new(record.cast());
    if record.is_none() {
        count(Fault::RingFull);
    }
    record
}

/// Sends a record that was reserved with this size.
#[inline(always)]
pub fn submit(record: core::ptr::NonNull<u8>, size: u64) {
    // SAFETY: it was reserved, which the verifier checks too.
    unsafe { aya_ebpf::helpers::generated::bpf_ringbuf_submit(record.as_ptr().cast(), wake()) };
    sent(size);
}

/// Gives a reserved record up.
#[inline(always)]
pub fn discard(record: core::ptr::NonNull<u8>) {
    // SAFETY: it was reserved, which the verifier checks too.
    unsafe { aya_ebpf::helpers::generated::bpf_ringbuf_discard(record.as_ptr().cast(), 0) };
}
