//! tokio tasks, and the HTTP/2 of hyper and tonic on them (`h2`). A task is
//! named by its `Header`, of which its state is the first member.
//!
//! Serving: the connection's task takes a request (`StreamRef::take_request`)
//! and spawns a task that handles it. Calling: a handler's task hands a request
//! to tonic's channel (`Buffer::call`), and the connection's task opens a stream
//! for it (`Streams::send_request`): the request's extensions, a box that moves
//! with it, join the two. `Streams::poll_complete` joins `h2`'s connection with
//! the socket that is written next in the same poll.

use aya_ebpf::helpers::generated::bpf_get_current_pid_tgid;
use aya_ebpf::macros::{map, uprobe};
use aya_ebpf::maps::LruHashMap;
use aya_ebpf::programs::ProbeContext;
use tracewire_common::event::direction;
use tracewire_common::link::tokio::layout as at;
use tracewire_common::link::{StreamKey, Unit, mechanism, runtime, unit};
use tracewire_ebpf::connection::protocol;

use super::{Pointer, layout, register, watched};
use crate::kernel::memory::user;
use crate::kernel::{context, maps};

/// Bits of a task's state: RUNNING and COMPLETE.
const BUSY: u64 = 3;
/// Streams of a connection that may be opened before its socket is known.
const PENDING: u32 = 16 * 1024;
/// How many of them [`tokio_settle_some`] settles.
const SETTLED: u32 = 128;

/// On whose behalf a request is made.
#[repr(C)]
#[derive(Clone, Copy)]
struct Claim {
    request: StreamKey,
    /// The task that makes it, if it must still turn out to be a part of the served request; else 0.
    task: u64,
}

impl Claim {
    const NONE: Claim = Claim {
        request: StreamKey::NONE,
        task: 0,
    };
}

/// Tasks between a handler's and one that is awaited, itself included.
const AWAITERS: u32 = 4;

/// What a thread does in the poll of a task.
#[repr(C)]
#[derive(Clone, Copy)]
struct Poll {
    /// The task's `Header*`; 0: none is polled.
    task: u64,
    /// `h2`'s connection whose frames are about to be written.
    flushed: u64,
    /// Connection that was received from.
    read: u64,
    /// On whose behalf the stream is that is being opened.
    claim: Claim,
    /// 1: the task took a request, on whose behalf it spawns.
    taken: u64,
}

impl Poll {
    const NONE: Poll = Poll {
        task: 0,
        flushed: 0,
        read: 0,
        claim: Claim::NONE,
        taken: 0,
    };
}

/// By thread.
#[map]
static TOKIO_POLLS: LruHashMap<u32, Poll> = LruHashMap::with_max_entries(8192, 0);

/// Connection of an `Arc<Mutex<Inner>>` of `h2`.
#[map]
static H2_CONNECTIONS: LruHashMap<Pointer, u64> = LruHashMap::with_max_entries(8192, 0);

/// On whose behalf a request is made, by its extensions.
#[map]
static HTTP_REQUESTS: LruHashMap<Pointer, Claim> = LruHashMap::with_max_entries(8192, 0);

/// The task that waits for a task's end.
#[map]
static TOKIO_AWAITED: LruHashMap<Unit, u64> = LruHashMap::with_max_entries(8192, 0);

/// First and last stream opened before the socket is known, by `h2`'s connection.
#[map]
static H2_PENDING: LruHashMap<Pointer, [u32; 2]> = LruHashMap::with_max_entries(1024, 0);

/// On whose behalf those streams are.
#[map]
static H2_PENDING_FOR: LruHashMap<Pointer, StreamKey> = LruHashMap::with_max_entries(8192, 0);

#[inline(always)]
fn tid() -> u32 {
    // SAFETY: a helper without arguments.
    (unsafe { bpf_get_current_pid_tgid() }) as u32
}

/// What the current thread does.
#[inline(always)]
fn poll() -> Option<&'static mut Poll> {
    let at = TOKIO_POLLS.get_ptr_mut(tid())?;
    // SAFETY: a live element of a map that only this thread's programs use.
    Some(unsafe { &mut *at })
}

#[inline(always)]
fn task(pid: u32, header: u64) -> Unit {
    Unit {
        id: header,
        pid,
        kind: unit::TOKIO_TASK,
    }
}

#[inline(always)]
fn pointer(pid: u32, address: u64, more: u32) -> Pointer {
    Pointer { address, pid, more }
}

#[inline(always)]
fn connection_of(pid: u32, inner: u64) -> Option<u64> {
    // SAFETY: an integer, written whole.
    unsafe { H2_CONNECTIONS.get(pointer(pid, inner, 0)) }.copied()
}

#[inline(always)]
fn bind(pid: u32, inner: u64, connection: u64) {
    if connection_of(pid, inner) != Some(connection) {
        let _ = H2_CONNECTIONS.insert(pointer(pid, inner, 0), connection, 0);
    }
}

/// `State::transition_to_running(&self)`: the poll of a task begins.
#[uprobe]
pub fn tokio_running(ctx: ProbeContext) -> u32 {
    let _ = running(&ctx);
    0
}

#[inline(always)]
fn running(ctx: &ProbeContext) -> Option<()> {
    watched()?;
    let header = register!(ctx, rdi);
    if user::<u64>(header)? & BUSY != 0 {
        // Somebody else polls it, or it is over: it will not be polled now.
        return None;
    }
    let begun = Poll {
        task: header,
        ..Poll::NONE
    };
    match poll() {
        Some(poll) => *poll = begun,
        None => {
            let _ = TOKIO_POLLS.insert(tid(), begun, 0);
        }
    }
    Some(())
}

/// `State::transition_to_idle(&self)`: the poll is over, the task waits.
#[uprobe]
pub fn tokio_idle(ctx: ProbeContext) -> u32 {
    let _ = rest(&ctx, false);
    0
}

/// `State::transition_to_complete(&self)`: the task is over; its address may name another soon.
#[uprobe]
pub fn tokio_complete(ctx: ProbeContext) -> u32 {
    let _ = rest(&ctx, true);
    0
}

#[inline(always)]
fn rest(ctx: &ProbeContext, over: bool) -> Option<()> {
    let pid = watched()?;
    let header = register!(ctx, rdi);
    let poll = poll()?;
    if over || poll.taken != 0 {
        context::leave(&task(pid, header));
    }
    if over {
        let _ = TOKIO_AWAITED.remove(task(pid, header));
    }
    *poll = Poll::NONE;
    Some(())
}

/// `OwnedTasks::bind_inner(&self, task, …)`: a task was spawned.
#[uprobe]
pub fn tokio_spawn(ctx: ProbeContext) -> u32 {
    let _ = spawn(&ctx);
    0
}

#[inline(always)]
fn spawn(ctx: &ProbeContext) -> Option<()> {
    let pid = watched()?;
    let child = task(pid, register!(ctx, rsi));
    let _ = TOKIO_AWAITED.remove(child);
    match poll() {
        Some(poll) if poll.task != 0 => {
            let parent = task(pid, poll.task);
            match context::of(&parent) {
                // The connection's task has one made for each request that it takes: that one handles it.
                Some(request) if poll.taken != 0 => context::serve(&child, &request),
                _ => context::inherit(&child, &parent),
            }
        }
        _ => context::leave(&child),
    }
    Some(())
}

/// `can_read_output(header, …)`: the task that is polled waits for the end of another, which
/// thereby is a part of its work.
#[uprobe]
pub fn tokio_awaits(ctx: ProbeContext) -> u32 {
    let _ = awaits(&ctx);
    0
}

#[inline(always)]
fn awaits(ctx: &ProbeContext) -> Option<()> {
    let pid = watched()?;
    let awaited = task(pid, register!(ctx, rdi));
    let by = poll().filter(|poll| poll.task != 0)?.task;
    if context::standing(&awaited)?.generation != 0 {
        let _ = TOKIO_AWAITED.insert(awaited, by, 0);
    }
    Some(())
}

/// `RecvStream::poll_data(&mut self, …)`: a task reads the messages of a request, so it is a part of its
/// work. RSI is the stream, laid out as in [`h2_take_request`].
#[uprobe]
pub fn h2_poll_data(ctx: ProbeContext) -> u32 {
    let _ = poll_data(&ctx);
    0
}

#[inline(always)]
fn poll_data(ctx: &ProbeContext) -> Option<()> {
    let pid = watched()?;
    let reader = task(pid, poll().filter(|poll| poll.task != 0)?.task);
    let active = context::standing(&reader).filter(|active| active.generation != 0)?;
    let reference = register!(ctx, rsi);
    let connection = connection_of(pid, user::<u64>(reference)?)?;
    let stream = user::<u32>(reference.wrapping_add(12))?;
    if active.request == StreamKey::served(connection, stream) {
        context::serve(&reader, &active.request);
    }
    Some(())
}

/// Whether a task is a part of the work for `request`: it handles it, reads its messages, or is awaited by
/// one that is. One that was merely begun within it may live on beside it and work for others.
#[inline(always)]
fn part_of(pid: u32, header: u64, request: &StreamKey) -> bool {
    let mut unit = task(pid, header);
    let mut i = 0;
    while i < AWAITERS {
        match context::standing(&unit) {
            Some(active) if active.request == *request => {
                if active.generation == 0 {
                    return true;
                }
            }
            _ => return false,
        }
        // SAFETY: an integer, written whole.
        match unsafe { TOKIO_AWAITED.get(unit) } {
            Some(by) => unit.id = *by,
            None => return false,
        }
        i += 1;
    }
    false
}

/// `StreamRef::take_request(&self)`: a request is about to be served. RSI is the reference:
/// `h2`'s connection, the stream's place and its identifier.
#[uprobe]
pub fn h2_take_request(ctx: ProbeContext) -> u32 {
    let _ = take_request(&ctx);
    0
}

#[inline(always)]
fn take_request(ctx: &ProbeContext) -> Option<()> {
    let pid = watched()?;
    let poll = poll().filter(|poll| poll.task != 0)?;
    let taker = task(pid, poll.task);
    poll.taken = 1;
    let reference = register!(ctx, rsi);
    let inner = user::<u64>(reference)?;
    let stream = user::<u32>(reference.wrapping_add(12))?;
    let connection = if poll.read != 0 {
        bind(pid, inner, poll.read);
        Some(poll.read)
    } else {
        connection_of(pid, inner)
    };
    match connection {
        Some(connection) => context::serve(&taker, &StreamKey::served(connection, stream)),
        None => context::leave(&taker),
    }
    Some(())
}

/// tower's `Buffer::call(&mut self, request)`, behind tonic's `Channel`: RDX is the request.
#[uprobe]
pub fn tonic_call(ctx: ProbeContext) -> u32 {
    let _ = call(&ctx);
    0
}

#[inline(always)]
fn call(ctx: &ProbeContext) -> Option<()> {
    let pid = watched()?;
    let layout = layout(pid, runtime::TOKIO)?;
    let extensions = user::<u64>(register!(ctx, rdx).wrapping_add(u64::from(layout[at::EXTENSIONS])))?;
    let request = pointer(pid, extensions, 0);
    let header = poll().map_or(0, |poll| poll.task);
    match context::standing(&task(pid, header)) {
        Some(active) if extensions != 0 && header != 0 => {
            let claim = Claim {
                request: active.request,
                // Whoever began the task may be about to await it.
                task: if active.generation == 0 { 0 } else { header },
            };
            let _ = HTTP_REQUESTS.insert(request, claim, 0);
        }
        // Where another that never went out may have stood.
        _ => {
            let _ = HTTP_REQUESTS.remove(request);
        }
    }
    Some(())
}

/// `Streams::send_request(&mut self, request, …)`: RDX is the request.
#[uprobe]
pub fn h2_send_request(ctx: ProbeContext) -> u32 {
    let _ = send_request(&ctx);
    0
}

#[inline(always)]
fn send_request(ctx: &ProbeContext) -> Option<()> {
    let pid = watched()?;
    let layout = layout(pid, runtime::TOKIO)?;
    let poll = poll()?;
    poll.claim = Claim::NONE;
    let extensions = user::<u64>(register!(ctx, rdx).wrapping_add(u64::from(layout[at::EXTENSIONS])))?;
    let request = pointer(pid, extensions, 0);
    // SAFETY: plain, and written once.
    poll.claim = unsafe { HTTP_REQUESTS.get(request) }.copied()?;
    let _ = HTTP_REQUESTS.remove(request);
    Some(())
}

/// `StreamRef::is_pending_open(&self)`, which is asked of each stream that was just opened.
#[uprobe]
pub fn h2_opened(ctx: ProbeContext) -> u32 {
    let _ = opened(&ctx);
    0
}

#[inline(always)]
fn opened(ctx: &ProbeContext) -> Option<()> {
    let pid = watched()?;
    let poll = poll()?;
    let claim = poll.claim;
    if !claim.request.is_some() {
        return None;
    }
    poll.claim = Claim::NONE;
    let mut parent = claim.request;
    if claim.task != 0 && !part_of(pid, claim.task, &parent) {
        parent = StreamKey::DOUBT;
    }
    let reference = register!(ctx, rdi);
    let inner = user::<u64>(reference)?;
    let stream = user::<u32>(reference.wrapping_add(12))?;
    if let Some(connection) = connection_of(pid, inner) {
        context::join(connection, stream, &parent, mechanism::TOKIO);
        return Some(());
    }
    let _ = H2_PENDING_FOR.insert(pointer(pid, inner, stream), parent, 0);
    let key = pointer(pid, inner, 0);
    // SAFETY: two integers, written whole.
    let begun = unsafe { H2_PENDING.get(key) }.copied();
    let first = begun.map_or(stream, |[first, _]| first);
    let _ = H2_PENDING.insert(key, [first, stream], 0);
    Some(())
}

/// `Streams::poll_complete(&mut self, …)`: RDI begins with `h2`'s connection, whose frames are written next.
#[uprobe]
pub fn h2_poll_complete(ctx: ProbeContext) -> u32 {
    let _ = poll_complete(&ctx);
    0
}

#[inline(always)]
fn poll_complete(ctx: &ProbeContext) -> Option<()> {
    watched()?;
    let poll = poll().filter(|poll| poll.task != 0)?;
    poll.flushed = user::<u64>(register!(ctx, rdi))?;
    Some(())
}

/// The parent of a request whose frames the current thread is writing, for injectors: they
/// come before [`moved`].
#[inline(always)]
pub fn writing(pid: u32, stream: u32) -> Option<StreamKey> {
    let poll = poll().filter(|poll| poll.flushed != 0)?;
    // SAFETY: plain, and written once.
    unsafe { H2_PENDING_FOR.get(pointer(pid, poll.flushed, stream)) }
        .copied()
        .filter(StreamKey::is_some)
}

/// A thread moved bytes of an HTTP/2 connection: whose task reads it, whose frames were written.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tokio_moved(slot: u32) -> u32 {
    let _ = moved_by(slot);
    0
}

/// Calls [`tokio_moved`], which the verifier walks by itself.
#[inline(always)]
pub fn moved(slot: u32) {
    tokio_moved(slot);
}

#[inline(always)]
fn moved_by(slot: u32) -> Option<()> {
    let poll = poll().filter(|poll| poll.task != 0)?;
    let scratch = maps::scratch(slot)?;
    // SAFETY: a live element of a per-CPU map that only this program uses on this CPU.
    let header = unsafe { &(*scratch).header };
    let known = maps::connection(header.connection)?;
    // SAFETY: a live element of a map.
    if unsafe { (*known).shared.protocol } != protocol::HTTP2 {
        return None;
    }
    if header.direction == direction::RECEIVE {
        poll.read = header.connection;
        return None;
    }
    if poll.flushed == 0 {
        return None;
    }
    bind(header.pid, poll.flushed, header.connection);
    let key = pointer(header.pid, poll.flushed, 0);
    // SAFETY: two integers, written whole.
    let [first, last] = unsafe { H2_PENDING.get(key) }.copied()?;
    let _ = H2_PENDING.remove(key);
    let streams = (last.wrapping_sub(first) / 2).wrapping_add(1);
    let mut i = 0;
    while i < PENDING / SETTLED {
        if i * SETTLED >= streams {
            break;
        }
        let from = first.wrapping_add(2 * i * SETTLED);
        tokio_settle_some(poll.flushed, header.pid, header.connection, from, streams - i * SETTLED);
        i += 1;
    }
    Some(())
}

/// Settles up to [`SETTLED`] of `streams` streams from `first` on. A part of its own, as is
/// [`tokio_settle`], so that the socket programs need no `bpf_loop`: kernels before 5.17 have none.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tokio_settle_some(inner: u64, pid: u32, connection: u64, first: u32, streams: u32) -> u32 {
    let mut i = 0;
    while i < SETTLED {
        if i >= streams {
            break;
        }
        // A client's streams are odd (RFC 9113 §5.1.1).
        tokio_settle(inner, pid, connection, first.wrapping_add(2 * i));
        i += 1;
    }
    0
}

/// The connection of a stream whose header fields were written before it was known.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tokio_settle(inner: u64, pid: u32, connection: u64, stream: u32) -> u32 {
    let key = pointer(pid, inner, stream);
    // SAFETY: plain, and written once.
    if let Some(parent) = unsafe { H2_PENDING_FOR.get(key) }.copied() {
        let _ = H2_PENDING_FOR.remove(key);
        context::join(connection, stream, &parent, mechanism::TOKIO);
    }
    0
}
