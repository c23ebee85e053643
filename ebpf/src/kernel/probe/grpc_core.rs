//! grpc-core (C++, Python): which call is which stream of which connection, and
//! on behalf of which served call another one is made.
//!
//! Three facts are joined, all exact:
//! 1. A stream is made for a call: both name the same arena. A server's is made
//!    with its stream identifier.
//! 2. A client's stream gets its identifier at one place in the transport.
//! 3. A transport's endpoint holds the file descriptor of its socket.
//!
//! What is made on behalf of what: the batches that a call starts on a thread,
//! or, where Python runs in a context, in that context.
//!
//! Bias: a thread that works for several open calls at once serves none.

use aya_ebpf::helpers::generated::bpf_get_current_pid_tgid;
use aya_ebpf::macros::{map, uprobe};
use aya_ebpf::maps::LruHashMap;
use aya_ebpf::programs::ProbeContext;
use tracewire_common::link::grpc_core::{FROM_TRANSPORT, MANY_THREADS, layout as at};
use tracewire_common::link::{StreamKey, Unit, mechanism, runtime, unit};

use super::{asyncio, cookie, cpython, indexed, layout, register, watched};
use crate::kernel::memory::user;
use crate::kernel::{context, maps, socket, syscall};

/// Operations of a batch that are looked at.
const OPERATIONS: u64 = 8;
/// `sizeof(grpc_op)`
const OPERATION: u64 = 80;
/// More than the size of a library with grpc-core in it.
const NEAR: u64 = 1 << 27;
/// Words of a transport that are searched for its endpoint: it is the second or third in 1.51 to 1.85.
const ENDPOINT_WORDS: u32 = 12;
/// Words of a call that are searched for its arena, and how far before the call that may begin.
const HEAD: usize = 5;
const ARENA: u64 = 16 * 1024;

/// Bits by `grpc_op_type`.
mod operation {
    pub const SEND_INITIAL_METADATA: u32 = 1;
    pub const SEND_CLOSE_FROM_CLIENT: u32 = 1 << 2;
    pub const SEND_STATUS_FROM_SERVER: u32 = 1 << 3;
    pub const RECV_INITIAL_METADATA: u32 = 1 << 4;
    pub const RECV_MESSAGE: u32 = 1 << 5;
    pub const RECV_STATUS_ON_CLIENT: u32 = 1 << 6;
    pub const RECV_CLOSE_ON_SERVER: u32 = 1 << 7;
    pub const CLIENT: u32 = SEND_CLOSE_FROM_CLIENT | RECV_INITIAL_METADATA | RECV_STATUS_ON_CLIENT;
    pub const SERVER: u32 = SEND_STATUS_FROM_SERVER | RECV_CLOSE_ON_SERVER;
}

/// On whose behalf a call was begun.
#[derive(Clone, Copy)]
#[repr(C)]
struct Made {
    /// [`StreamKey::DOUBT`]: several could be it.
    parent: StreamKey,
    mechanism: u64,
}

/// Calls that a process makes, by their arena, until their stream has its identifier.
#[map]
static GRPC_MADE: LruHashMap<Unit, Made> = LruHashMap::with_max_entries(8192, 0);

/// The arena of a stream.
#[map]
static GRPC_STREAMS: LruHashMap<Unit, u64> = LruHashMap::with_max_entries(16384, 0);

/// Served calls without a status so far.
#[map]
static GRPC_OPEN: LruHashMap<StreamKey, u64> = LruHashMap::with_max_entries(16384, 0);

/// Which word at the head of a call is its arena, by process.
#[map]
static GRPC_ARENA_WORD: LruHashMap<u32, u32> = LruHashMap::with_max_entries(4096, 0);

/// Which word of a transport is its endpoint, by process.
#[map]
static GRPC_ENDPOINT_WORD: LruHashMap<u32, u32> = LruHashMap::with_max_entries(4096, 0);

/// Threads that wait on a completion queue between two pieces of work.
#[map]
static GRPC_QUEUED: LruHashMap<u32, u32> = LruHashMap::with_max_entries(8192, 0);

#[inline(always)]
fn call(arena: u64, pid: u32) -> Unit {
    Unit {
        id: arena,
        pid,
        kind: unit::GRPC_CALL,
    }
}

/// `grpc_chttp2_stream(transport, refcount, server_data, arena)`, or `InitStream` with the same but for the first two.
#[uprobe]
pub fn grpc_stream(ctx: ProbeContext) -> u32 {
    if let Some(pid) = watched() {
        stream(&ctx, pid);
    }
    0
}

#[inline(always)]
fn stream(ctx: &ProbeContext, pid: u32) -> Option<()> {
    let (first, second) = (register!(ctx, rdi), register!(ctx, rsi));
    let (server_data, arena) = (register!(ctx, rcx), register!(ctx, r8));
    let swapped = cookie(ctx) & FROM_TRANSPORT != 0;
    let (transport, stream) = if swapped { (first, second) } else { (second, first) };
    let unit = call(arena, pid);
    // Whatever had this arena before is gone.
    context::leave(&unit);
    if server_data == 0 {
        let key = Unit {
            id: stream,
            pid,
            kind: unit::GRPC_CALL,
        };
        let _ = GRPC_STREAMS.insert(key, arena, 0);
        return None;
    }
    let bias = register!(ctx, rip).wrapping_sub(cookie(ctx) >> 32);
    let connection = connection(transport, pid, bias)?;
    let request = StreamKey::served(connection, server_data as u32);
    context::serve(&unit, &request);
    let _ = GRPC_OPEN.insert(request, 1, 0);
    None
}

/// The place where a client's stream has just got its identifier.
#[uprobe]
pub fn grpc_stream_id(ctx: ProbeContext) -> u32 {
    if let Some(pid) = watched() {
        identified(&ctx, pid);
    }
    0
}

#[inline(always)]
fn identified(ctx: &ProbeContext, pid: u32) -> Option<()> {
    let places = layout(pid, runtime::GRPC_CORE)?;
    let registers = cookie(ctx);
    let stream = indexed(ctx, registers & 15);
    let transport = indexed(ctx, registers >> 4 & 15);
    // The transport's next one; they go by twos.
    let identifier = (indexed(ctx, registers >> 8 & 15) as u32).wrapping_sub(2);
    let key = Unit {
        id: stream,
        pid,
        kind: unit::GRPC_CALL,
    };
    // SAFETY: the value is an integer.
    let arena = *unsafe { GRPC_STREAMS.get(key) }?;
    let _ = GRPC_STREAMS.remove(key);
    let unit = call(arena, pid);
    // SAFETY: the value is plain and written once for each call.
    let made = *unsafe { GRPC_MADE.get(unit) }?;
    // It stays: each further attempt of the call has a stream of its own.
    let bias = register!(ctx, rip).wrapping_sub(u64::from(places[at::IDENTIFIER]));
    let connection = connection(transport, pid, bias)?;
    context::join(connection, identifier, &made.parent, made.mechanism as u32);
    None
}

/// `grpc_call_start_batch(call, ops, nops, tag, reserved)`.
#[uprobe]
pub fn grpc_batch(ctx: ProbeContext) -> u32 {
    if let Some(pid) = watched() {
        batch(&ctx, pid);
    }
    0
}

#[inline(always)]
fn batch(ctx: &ProbeContext, pid: u32) -> Option<()> {
    let places = layout(pid, runtime::GRPC_CORE)?;
    let (address, operations, count) = (register!(ctx, rdi), register!(ctx, rsi), register!(ctx, rdx));
    let mut mask = 0u32;
    for n in 0..OPERATIONS {
        if n < count {
            mask |= 1 << (user::<u32>(operations.wrapping_add(n * OPERATION))? & 31);
        }
    }
    let unit = call(arena(address, pid)?, pid);
    // SAFETY: a helper without arguments.
    let tid = unsafe { bpf_get_current_pid_tgid() } as u32;
    let request = context::of(&unit);
    if mask & operation::SERVER == 0 && (mask & operation::CLIENT != 0 || request.is_none()) {
        if mask & operation::SEND_INITIAL_METADATA != 0 {
            begin(&unit, tid, calls_back(ctx));
        }
        return None;
    }
    let request = request?;
    let threads = places[at::FLAGS] & MANY_THREADS != 0;
    if mask & operation::SEND_STATUS_FROM_SERVER != 0 {
        let _ = GRPC_OPEN.remove(request);
        context::leave(&unit);
        if context::of(&thread(tid, pid)) == Some(request) {
            context::leave(&thread(tid, pid));
        }
    } else if let Some(current) = cpython::current(tid, pid) {
        if !calls_back(ctx) {
            asyncio::occupies(&current, &request, mask == operation::RECV_CLOSE_ON_SERVER);
        } else if mask == operation::RECV_CLOSE_ON_SERVER {
            asyncio::schedules(&current, &request);
        } else {
            asyncio::serves(&current, &request, mask & operation::RECV_MESSAGE != 0);
        }
    } else if threads || mask != operation::RECV_CLOSE_ON_SERVER {
        // Python's thread that takes calls only hands them on.
        occupy(&thread(tid, pid), tid, &request, threads);
    }
    None
}

/// Whether the batch's tag begins with a function of the same file: grpcio's asyncio API is called back,
/// the blocking one gives Python objects, which begin with their number of references.
#[inline(always)]
fn calls_back(ctx: &ProbeContext) -> bool {
    let function = user::<u64>(register!(ctx, rcx)).unwrap_or(0);
    function.wrapping_sub(register!(ctx, rip)).wrapping_add(NEAR) < 2 * NEAR
}

/// A call is about to be made.
#[inline(always)]
fn begin(unit: &Unit, tid: u32, calls_back: bool) {
    let (parent, mechanism) = match cpython::current(tid, unit.pid) {
        // Stacks that are switched under it: neither the thread nor its context is certain.
        _ if maps::runs(unit.pid, runtime::GREENLET) => (StreamKey::DOUBT, mechanism::GRPC_CORE),
        Some(current) if calls_back => (asyncio::parent(&current), mechanism::GRPC_AIO),
        Some(current) => (asyncio::blocking(&current), mechanism::GRPC_AIO),
        None => (
            context::of(&thread(tid, unit.pid)).unwrap_or(StreamKey::NONE),
            mechanism::GRPC_CORE,
        ),
    };
    // One that ended has no more calls of its own: what runs on is nobody's.
    let over = parent.is_some() && !open(&parent);
    if over || parent == StreamKey::NONE {
        let _ = GRPC_MADE.remove(unit);
        return;
    }
    let made = Made {
        parent,
        mechanism: u64::from(mechanism),
    };
    let _ = GRPC_MADE.insert(unit, made, 0);
}

/// The thread works for `request`; if it also works for another open one, for none.
#[inline(always)]
fn occupy(thread: &Unit, tid: u32, request: &StreamKey, threads: bool) {
    let before = context::of(thread);
    let certain = match before {
        Some(before) if before == *request => return,
        Some(before) if before.is_some() => !open(&before),
        // Once in doubt, always, until it waits for work again.
        Some(_) => false,
        None => true,
    };
    // Work that comes by a completion queue has a beginning; work that comes by call-backs has none.
    let queued = !threads || GRPC_QUEUED.get_ptr(tid).is_some();
    let doubt = StreamKey::DOUBT;
    context::serve(thread, if certain && queued { request } else { &doubt });
}

/// Whether a served call is without a status so far.
#[inline(always)]
pub fn open(request: &StreamKey) -> bool {
    GRPC_OPEN.get_ptr(request).is_some()
}

/// `grpc_completion_queue_next(queue, deadline, reserved)`: the thread asks for its next piece of work.
#[uprobe]
pub fn grpc_next(_ctx: ProbeContext) -> u32 {
    if let Some(pid) = watched() {
        // SAFETY: a helper without arguments.
        let tid = unsafe { bpf_get_current_pid_tgid() } as u32;
        context::leave(&thread(tid, pid));
        let _ = GRPC_QUEUED.insert(tid, 1, 0);
    }
    0
}

#[inline(always)]
fn thread(tid: u32, pid: u32) -> Unit {
    Unit {
        id: u64::from(tid),
        pid,
        kind: unit::THREAD,
    }
}

/// The arena of a call: a word at its head. Which one, the first served call of the process tells, whose arena is
/// known; until then it is the nearest address before the call, which joins nothing if it is another.
#[inline(always)]
fn arena(address: u64, pid: u32) -> Option<u64> {
    let [_, first, second, third, fourth] = user::<[u64; HEAD]>(address)?;
    // SAFETY: the value is an integer.
    let known = unsafe { GRPC_ARENA_WORD.get(pid) }.copied().unwrap_or(0);
    if known != 0 {
        return Some(match known {
            1 => first,
            2 => second,
            3 => third,
            _ => fourth,
        });
    }
    let mut nearest = ARENA;
    for (word, number) in [(first, 1), (second, 2), (third, 3), (fourth, 4)] {
        if context::of(&call(word, pid)).is_some() {
            let _ = GRPC_ARENA_WORD.insert(pid, number, 0);
            return Some(word);
        }
        let before = address.wrapping_sub(word);
        if before != 0 && before < nearest {
            nearest = before;
        }
    }
    if nearest == ARENA {
        None
    } else {
        Some(address - nearest)
    }
}

/// The connection of a transport: its endpoint's file descriptor is a socket.
#[inline(always)]
fn connection(transport: u64, pid: u32, bias: u64) -> Option<u64> {
    // SAFETY: the value is an integer.
    let known = unsafe { GRPC_ENDPOINT_WORD.get(pid) }.copied().unwrap_or(0);
    let mut found = grpc_descriptor(transport.wrapping_add(8 * u64::from(known)), pid, bias);
    let mut word = 0;
    // Where it stands differs by version; the table of functions proves which it is.
    while word < ENDPOINT_WORDS && found < 0 {
        found = grpc_descriptor(transport.wrapping_add(8 * u64::from(word)), pid, bias);
        if found >= 0 {
            let _ = GRPC_ENDPOINT_WORD.insert(pid, word, 0);
        }
        word += 1;
    }
    // It may have moved nothing yet: a first call's header goes out with the preface.
    syscall::sock(u32::try_from(found).ok()?).map(socket::name_at)
}

/// The file descriptor of the endpoint to which a member of a transport points; negative: it is none.
/// A part of its own, which the verifier walks once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn grpc_descriptor(member: u64, pid: u32, bias: u64) -> i64 {
    match layout(pid, runtime::GRPC_CORE).and_then(|places| descriptor(member, bias, places)) {
        Some(descriptor) => i64::from(descriptor),
        None => -1,
    }
}

/// The file descriptor of the endpoint to which a member of a transport points.
#[inline(always)]
fn descriptor(member: u64, bias: u64, places: &[u32; runtime::LAYOUT]) -> Option<u32> {
    let endpoint = user::<u64>(member)?;
    let table = user::<u64>(endpoint)?.wrapping_sub(bias);
    for n in 0..at::TABLES {
        let place = at::TABLE + 3 * n;
        if u64::from(places[place]) == table && table != 0 {
            let mut holder = endpoint;
            if places[place + 1] != 0 {
                holder = user::<u64>(holder.wrapping_add(u64::from(places[place + 1])))?;
            }
            return user::<u32>(holder.wrapping_add(u64::from(places[place + 2])));
        }
    }
    None
}
