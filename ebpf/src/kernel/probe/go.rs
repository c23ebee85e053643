//! Go: goroutines, grpc-go's transports. R14 is the goroutine (`runtime.g`)
//! in all Go code and in its system calls (ABIInternal, Go 1.17 and later).
//!
//! A goroutine is named by its `goid`, which never comes again, so what is
//! known of one that is gone does no harm.
//!
//! grpc-go, the serving side: a connection's reader goroutine begins with
//! `HandleStreams`, and a goroutine that it makes, or a worker, handles the stream
//! (`Server.handleStream`); where that can't be asked for the stream, the reader
//! goroutine decodes header fields (`operateHeaders`) and makes it (`runtime.newproc`). The calling side: any goroutine
//! makes the header fields (`createHeaderFields`), and the connection's writer
//! goroutine writes them (`loopyWriter.writeHeader`): the slice joins the two.
//!
//! `net/http`, HTTP/1: the goroutine that reads a connection runs its handlers,
//! one request at a time (`serverHandler.ServeHTTP`); a client's goroutine waits
//! in `persistConn.roundTrip` while the connection's own writes its one request
//! (`persistConnWriter.Write`). HTTP/2 (its own and `golang.org/x/net`'s): a
//! goroutine a request on both sides, `runHandler`, `writeRequest` and `writeHeaders`;
//! `ClientConn.roundTrip` on the caller's.
//!
//! From Go 1.21 on a goroutine knows its maker, so what it was begun by is asked when it makes
//! a request. Before, each new goroutine is told of (`runtime.newproc`), which every `go` pays for.

mod contexts;

use aya_ebpf::macros::{map, uprobe};
use aya_ebpf::maps::LruHashMap;
use aya_ebpf::programs::ProbeContext;
use tracewire_common::event::direction;
use tracewire_common::link::go::layout as at;
use tracewire_common::link::{StreamKey, Unit, mechanism, runtime, unit};
use tracewire_ebpf::connection::protocol;

use super::{Pointer, layout, name, register, watched};
use crate::kernel::memory::{kernel, user};
use crate::kernel::socket::registers;
use crate::kernel::{context, maps};

/// Offset of R14 in `struct pt_regs` of x86-64.
const PT_REGS_R14: u64 = 8;
/// Header fields that may be written before the writer's first system call is seen.
const PENDING: u32 = 16 * 1024;
/// How many of them [`go_settle_some`] settles.
const SETTLED: u32 = 128;

/// Connection that a goroutine receives from.
#[map]
static GO_READERS: LruHashMap<Unit, u64> = LruHashMap::with_max_entries(8192, 0);

/// Connection that a goroutine sends to.
#[map]
static GO_WRITERS: LruHashMap<Unit, u64> = LruHashMap::with_max_entries(8192, 0);

/// A connection that requests are served on.
#[repr(C)]
#[derive(Clone, Copy)]
struct Transport {
    connection: u64,
    /// 1: older than the agent.
    late: u64,
}

/// Connection of an `*http2Server`.
#[map]
static GO_TRANSPORTS: LruHashMap<Pointer, Transport> = LruHashMap::with_max_entries(8192, 0);

/// The stream whose header fields a reader goroutine decodes.
#[map]
static GO_DECODED: LruHashMap<Unit, u32> = LruHashMap::with_max_entries(8192, 0);

/// On whose behalf header fields were made, by their first.
#[map]
static GO_FIELDS: LruHashMap<Pointer, StreamKey> = LruHashMap::with_max_entries(8192, 0);

/// First and last stream that a goroutine has written before its connection is known, and the mechanism.
#[map]
static GO_PENDING: LruHashMap<Unit, [u32; 3]> = LruHashMap::with_max_entries(1024, 0);

/// On whose behalf those streams are.
#[map]
static GO_PENDING_FOR: LruHashMap<Pointer, StreamKey> = LruHashMap::with_max_entries(8192, 0);

/// Connection that a goroutine of this maker receives from.
#[map]
static GO_MAKERS: LruHashMap<Unit, u64> = LruHashMap::with_max_entries(8192, 0);

/// HTTP/1: number of the latest request that a connection's handler began with.
#[map]
static GO_HANDLED: LruHashMap<u64, u32> = LruHashMap::with_max_entries(8192, 0);

/// HTTP/1: number of the latest request that was written to a connection.
#[map]
static GO_WRITTEN: LruHashMap<u64, u32> = LruHashMap::with_max_entries(8192, 0);

/// A goroutine of the process that was there when its first request was served; what was begun
/// later may descend from a request.
#[map]
static GO_SINCE: LruHashMap<u32, u64> = LruHashMap::with_max_entries(4096, 0);

/// On whose behalf the request is that a `*persistConn` carries, or that an `*http.Request` of HTTP/2 is.
#[map]
static GO_ROUND_TRIPS: LruHashMap<Pointer, StreamKey> = LruHashMap::with_max_entries(8192, 0);

/// The same by the goroutine that writes it; no request: on nobody's.
#[map]
static GO_WRITES_FOR: LruHashMap<Unit, StreamKey> = LruHashMap::with_max_entries(8192, 0);

/// The goroutine of a `runtime.g`.
#[inline(always)]
fn goroutine(pid: u32, layout: &[u32], g: u64) -> Option<Unit> {
    let id = user::<u64>(g.wrapping_add(u64::from(layout[at::GOID])))?;
    (id != 0).then_some(Unit {
        id,
        pid,
        kind: unit::GOROUTINE,
    })
}

/// The goroutine that made `unit`, whose `g` is given.
#[inline(always)]
fn maker(unit: &Unit, layout: &[u32], g: u64) -> Option<Unit> {
    let offset = layout[at::PARENT_GOID];
    if offset == 0 {
        return None;
    }
    let id = user::<u64>(g.wrapping_add(u64::from(offset)))?;
    Some(Unit { id, ..*unit })
}

#[inline(always)]
fn get(map: &LruHashMap<Unit, u64>, unit: &Unit) -> Option<u64> {
    // SAFETY: an integer, written whole.
    unsafe { map.get(unit) }.copied()
}

/// Remembers a connection; a look-up is cheaper than a write, and nearly always enough.
#[inline(always)]
fn set(map: &LruHashMap<Unit, u64>, unit: &Unit, connection: u64) {
    if get(map, unit) != Some(connection) {
        let _ = map.insert(unit, connection, 0);
    }
}

/// The goroutine that executes the probed instruction.
#[inline(always)]
fn current(ctx: &ProbeContext) -> Option<(Unit, &'static [u32])> {
    let pid = watched()?;
    let layout = layout(pid, runtime::GO)?;
    Some((goroutine(pid, layout, register!(ctx, r14))?, layout))
}

/// The same if its process serves requests: else nothing that it calls has a parent, and the
/// chain of its context, which is dear to follow, leads nowhere.
#[inline(always)]
fn current_of_server(ctx: &ProbeContext) -> Option<(Unit, &'static [u32])> {
    let pid = watched()?;
    GO_SINCE.get_ptr(pid)?;
    let layout = layout(pid, runtime::GO)?;
    Some((goroutine(pid, layout, register!(ctx, r14))?, layout))
}

/// The `g` that made the system call under way; 0: it can't be read.
#[inline(always)]
pub fn current_g(regs: u64) -> u64 {
    kernel::<u64>(regs.wrapping_add(PT_REGS_R14)).unwrap_or(0)
}

/// A goroutine moved bytes of an HTTP/2 connection: which reads it, which writes it. The
/// scratch of the call says the rest.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn go_moved(slot: u32) -> u32 {
    let _ = moved_by(slot);
    0
}

/// Calls [`go_moved`], which the verifier walks by itself.
#[inline(always)]
pub fn moved(slot: u32) {
    go_moved(slot);
}

#[inline(always)]
fn moved_by(slot: u32) -> Option<()> {
    let scratch = maps::scratch(slot)?;
    // SAFETY: a live element of a per-CPU map that only this program uses on this CPU.
    let parts = unsafe { &*scratch };
    let (pid, connection) = (parts.header.pid, parts.header.connection);
    let way = parts.header.direction;
    let known = maps::connection(connection)?;
    // SAFETY: a live element of a map.
    let shared = unsafe { (*known).shared };
    if shared.protocol != protocol::HTTP2 && shared.protocol != protocol::HTTP1 {
        return None;
    }
    let layout = layout(pid, runtime::GO)?;
    // Of the system call, or of the probe in `crypto/tls`.
    let regs = registers();
    let g = kernel::<u64>(regs.wrapping_add(PT_REGS_R14))?;
    let unit = goroutine(pid, layout, g)?;
    if way == direction::RECEIVE {
        if get(&GO_READERS, &unit) != Some(connection) {
            let _ = GO_READERS.insert(unit, connection, 0);
            if let Some(maker) = maker(&unit, layout, g) {
                let _ = GO_MAKERS.insert(maker, connection, 0);
            }
        }
        // SAFETY: a live element of a map; written whole.
        unsafe { (*known).shared.reader = g };
        return None;
    }
    if shared.protocol == protocol::HTTP1 {
        return wrote_http1(&unit, connection, shared.requests);
    }
    set(&GO_WRITERS, &unit, connection);
    // SAFETY: integers that only this goroutine's programs write.
    let [first, last, _] = unsafe { GO_PENDING.get(unit) }.copied()?;
    let streams = (last.wrapping_sub(first) / 2).wrapping_add(1);
    let mut i = 0;
    while i < PENDING / SETTLED {
        if i * SETTLED >= streams {
            break;
        }
        let from = first.wrapping_add(2 * i * SETTLED);
        go_settle_some(unit.id, unit.pid, connection, from, streams - i * SETTLED);
        i += 1;
    }
    let _ = GO_PENDING.remove(unit);
    Some(())
}

/// A goroutine wrote to an HTTP/1 connection, to which that many requests were written by now.
#[inline(always)]
fn wrote_http1(unit: &Unit, connection: u64, requests: u32) -> Option<()> {
    // SAFETY: an integer, written whole.
    let before = unsafe { GO_WRITTEN.get(connection) }.copied().unwrap_or(0);
    if requests == before {
        return None;
    }
    let _ = GO_WRITTEN.insert(connection, requests, 0);
    // SAFETY: plain, and only this goroutine's programs write it.
    let parent = unsafe { GO_WRITES_FOR.get(unit) }.copied()?;
    context::join(connection, requests, &parent, mechanism::GO_HTTP1);
    Some(())
}

/// Settles up to [`SETTLED`] of `streams` streams from `first` on. A part of its own, as is
/// [`go_settle`], so that the socket programs need no `bpf_loop`: kernels before 5.17 have none.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn go_settle_some(goid: u64, pid: u32, connection: u64, first: u32, streams: u32) -> u32 {
    let mut i = 0;
    while i < SETTLED {
        if i >= streams {
            break;
        }
        // A client's streams are odd (RFC 9113 §5.1.1).
        go_settle(goid, pid, connection, first.wrapping_add(2 * i));
        i += 1;
    }
    0
}

/// The connection of a stream whose header fields were written before it was known.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn go_settle(goid: u64, pid: u32, connection: u64, stream: u32) -> u32 {
    let unit = Unit {
        id: goid,
        pid,
        kind: unit::GOROUTINE,
    };
    let key = pending(&unit, stream);
    // SAFETY: plain, and written once.
    if let Some(parent) = unsafe { GO_PENDING_FOR.get(key) }.copied() {
        let _ = GO_PENDING_FOR.remove(key);
        // SAFETY: integers that only this goroutine's programs write.
        let how = unsafe { GO_PENDING.get(unit) }.map_or(mechanism::GO_GRPC, |[_, _, how]| *how);
        context::join(connection, stream, &parent, how);
    }
    0
}

#[inline(always)]
fn pending(writer: &Unit, stream: u32) -> Pointer {
    Pointer {
        address: writer.id,
        pid: writer.pid,
        more: stream,
    }
}

/// The parent of a request whose header fields the current goroutine is writing, for
/// injectors: they come before [`moved`].
#[inline(always)]
pub fn writing(pid: u32, stream: u32, regs: u64) -> Option<StreamKey> {
    let layout = layout(pid, runtime::GO)?;
    let unit = goroutine(pid, layout, kernel::<u64>(regs.wrapping_add(PT_REGS_R14))?)?;
    // SAFETY: plain, and written once.
    unsafe { GO_PENDING_FOR.get(pending(&unit, stream)) }
        .copied()
        .filter(StreamKey::is_some)
}

/// The same of the request that a connection's goroutine of `net/http` writes by HTTP/1.
#[inline(always)]
pub fn writing_http1(pid: u32, regs: u64) -> Option<StreamKey> {
    let layout = layout(pid, runtime::GO)?;
    let unit = goroutine(pid, layout, kernel::<u64>(regs.wrapping_add(PT_REGS_R14))?)?;
    // SAFETY: plain, and only this goroutine's programs write it.
    unsafe { GO_WRITES_FOR.get(unit) }.copied().filter(StreamKey::is_some)
}

/// `http2Server.operateHeaders(t, ctx, frame *http2.MetaHeadersFrame, …)` on the reader goroutine.
#[uprobe]
pub fn go_operate_headers(ctx: ProbeContext) -> u32 {
    let _ = operate_headers(&ctx);
    0
}

#[inline(always)]
fn operate_headers(ctx: &ProbeContext) -> Option<()> {
    let (unit, layout) = current(ctx)?;
    serves_by(&unit);
    let frame = register!(ctx, rdi);
    // MetaHeadersFrame embeds *HeadersFrame, which begins with its FrameHeader: StreamID at 8.
    let headers = user::<u64>(frame)?;
    let stream = user::<u32>(headers.wrapping_add(8))?;
    if layout[at::HANDLE_STREAM] == 0 {
        let _ = GO_DECODED.insert(unit, stream, 0);
    }
    // The goroutine that made the reader read the preface, and maybe header fields behind it.
    let connection =
        get(&GO_READERS, &unit).or_else(|| get(&GO_READERS, &maker(&unit, layout, register!(ctx, r14))?))?;
    let transport = Pointer {
        address: register!(ctx, rax),
        pid: unit.pid,
        more: 0,
    };
    // SAFETY: plain, and written by its reader goroutine alone.
    if unsafe { GO_TRANSPORTS.get(transport) }.is_none_or(|known| known.connection != connection) {
        serves(&transport, connection);
    }
    // Fields []hpack.HeaderField follow.
    let fields = user::<u64>(frame.wrapping_add(8))?;
    path(fields, &StreamKey::served(connection, stream));
    Some(())
}

/// `http2Server.HandleStreams(t, …)` on the reader goroutine, which has read nothing yet: the one
/// that made it read the preface.
#[uprobe]
pub fn go_handle_streams(ctx: ProbeContext) -> u32 {
    let _ = handle_streams(&ctx);
    0
}

#[inline(always)]
fn handle_streams(ctx: &ProbeContext) -> Option<()> {
    let (unit, layout) = current(ctx)?;
    serves_by(&unit);
    let transport = Pointer {
        address: register!(ctx, rax),
        pid: unit.pid,
        more: 0,
    };
    let made_by = maker(&unit, layout, register!(ctx, r14));
    match made_by.and_then(|maker| get(&GO_READERS, &maker)) {
        Some(connection) => serves(&transport, connection),
        None => {
            // Another one may have stood there.
            let _ = GO_TRANSPORTS.remove(transport);
        }
    }
    Some(())
}

/// Remembers which connection a server's transport has.
#[inline(always)]
fn serves(transport: &Pointer, connection: u64) {
    let Some(known) = maps::connection(connection) else {
        let _ = GO_TRANSPORTS.remove(transport);
        return;
    };
    // SAFETY: a live element of a map; written whole.
    unsafe { (*known).shared.serves = 1 };
    // SAFETY: as above.
    let late = u64::from(unsafe { (*known).shared.origin } == 0);
    let _ = GO_TRANSPORTS.insert(transport, Transport { connection, late }, 0);
}

/// The connection of a transport: a handler's goroutine is made by the one that reads it.
#[inline(always)]
fn transport(address: &Pointer, unit: &Unit, layout: &[u32], g: u64) -> Option<Transport> {
    // SAFETY: plain; an address comes again only behind `HandleStreams`.
    if let Some(known) = unsafe { GO_TRANSPORTS.get(address) }.copied() {
        return Some(known);
    }
    if layout[at::ASKS_MAKER] == 0 {
        return None;
    }
    // It began before the probes: a worker's maker reads nothing.
    let reader = maker(unit, layout, g)?;
    let connection = get(&GO_READERS, &reader)?;
    serves_by(&reader);
    serves(address, connection);
    // SAFETY: as above.
    unsafe { GO_TRANSPORTS.get(address) }.copied()
}

/// `Server.handleStream(s, t transport.ServerTransport, stream)` on the goroutine that handles it.
#[uprobe]
pub fn go_handle_stream(ctx: ProbeContext) -> u32 {
    let _ = handle_stream(&ctx);
    0
}

#[inline(always)]
fn handle_stream(ctx: &ProbeContext) -> Option<()> {
    let (unit, layout) = current(ctx)?;
    let address = Pointer {
        address: register!(ctx, rcx),
        pid: unit.pid,
        more: 0,
    };
    let transport = transport(&address, &unit, layout, register!(ctx, r14));
    let mut stream = register!(ctx, rdi);
    if layout[at::STREAM_POINTER] != 0 {
        stream = user::<u64>(stream)?;
    }
    let id = user::<u32>(stream.wrapping_add(u64::from(layout[at::STREAM_ID])));
    match (transport, id) {
        (Some(transport), Some(id)) if id != 0 => {
            let request = StreamKey::served(transport.connection, id);
            context::serve(&unit, &request);
            contexts::holds(unit.pid, register!(ctx, rdi), &request);
            let method = layout[at::STREAM_METHOD];
            if transport.late != 0 && method != 0 {
                let [name, length] = user::<[u64; 2]>(stream.wrapping_add(u64::from(method)))?;
                name::tell(&request, name, length);
            }
        }
        // A worker must not go on for the stream before.
        _ => context::leave(&unit),
    }
    Some(())
}

/// The call of `runtime.runqput(p, newg, …)` in `runtime.newproc`, on the system stack (R14 is g0).
#[uprobe]
pub fn go_newproc(ctx: ProbeContext) -> u32 {
    let _ = newproc(&ctx);
    0
}

#[inline(always)]
fn newproc(ctx: &ProbeContext) -> Option<()> {
    let pid = watched()?;
    let layout = layout(pid, runtime::GO)?;
    let new = register!(ctx, rbx);
    let by = match layout[at::PARENT_GOID] {
        // The goroutine that the system stack works for.
        0 => user::<u64>(creator(ctx, layout)?.wrapping_add(u64::from(layout[at::GOID])))?,
        offset => user::<u64>(new.wrapping_add(u64::from(offset)))?,
    };
    let parent = Unit {
        id: by,
        pid,
        kind: unit::GOROUTINE,
    };
    if let Some(active) = context::standing(&parent) {
        let child = goroutine(pid, layout, new)?;
        context::descend(&child, &active);
    } else if layout[at::HANDLE_STREAM] == 0 {
        // Nothing tells which stream is handled, but that the reader makes a goroutine for it.
        // SAFETY: an integer, written whole.
        let stream = unsafe { GO_DECODED.get(parent) }.copied()?;
        let _ = GO_DECODED.remove(parent);
        let connection = match get(&GO_READERS, &parent) {
            Some(connection) => connection,
            None => get(&GO_READERS, &maker(&parent, layout, creator(ctx, layout)?)?)?,
        };
        let child = goroutine(pid, layout, new)?;
        context::serve(&child, &StreamKey::served(connection, stream));
    }
    Some(())
}

/// The `g` of the goroutine for which the system stack works.
#[inline(always)]
fn creator(ctx: &ProbeContext, layout: &[u32]) -> Option<u64> {
    let m = user::<u64>(register!(ctx, r14).wrapping_add(u64::from(layout[at::G_M])))?;
    user::<u64>(m.wrapping_add(u64::from(layout[at::M_CURG])))
}

/// Behind the call of `http2Client.createHeaderFields` in `NewStream`, on the calling goroutine: RAX is the first field.
#[uprobe]
pub fn go_header_fields(ctx: ProbeContext) -> u32 {
    let _ = header_fields(&ctx);
    0
}

#[inline(always)]
fn header_fields(ctx: &ProbeContext) -> Option<()> {
    let (unit, layout) = current_of_server(ctx)?;
    let fields = Pointer {
        address: register!(ctx, rax),
        pid: unit.pid,
        more: 0,
    };
    let mut called = None;
    if layout[at::FIELDS_CONTEXT] != 0 {
        // Where the callee saved its second argument: ABIInternal has a place for each in the caller's frame.
        called = user::<[u64; 2]>(register!(ctx, rsp).wrapping_add(8));
    }
    match parent(&unit, layout, register!(ctx, r14), called) {
        Some(request) => {
            let _ = GO_FIELDS.insert(fields, request, 0);
        }
        // Where others of a stream that never went out may have stood.
        None => {
            let _ = GO_FIELDS.remove(fields);
        }
    }
    Some(())
}

/// On whose behalf a goroutine makes a request with this context; [`StreamKey::DOUBT`]: it is not certain.
#[inline(always)]
fn parent(unit: &Unit, layout: &[u32], g: u64, called: Option<[u64; 2]>) -> Option<StreamKey> {
    if let Some(request) = contexts::parent(unit, called, 0) {
        return Some(request);
    }
    if layout[at::ASKS_MAKER] == 0 {
        return None;
    }
    // What a request began may work for anybody by now. Of those farther than its own goroutine's
    // children it is only known that they are younger than the first request.
    let maker = maker(unit, layout, g)?;
    // SAFETY: an integer, written whole.
    let young = || unsafe { GO_SINCE.get(unit.pid) }.is_some_and(|since| maker.id >= *since);
    (context::standing(&maker).is_some() || young()).then_some(StreamKey::DOUBT)
}

/// A goroutine of the process serves requests.
#[inline(always)]
fn serves_by(unit: &Unit) {
    if GO_SINCE.get_ptr(unit.pid).is_none() {
        let _ = GO_SINCE.insert(unit.pid, unit.id, 0);
    }
}

/// The call of `loopyWriter.writeHeader(l, streamID, endStream, hf []hpack.HeaderField, …)` for a new
/// stream, on the writer goroutine; or where that call can't be told from others, the function.
#[uprobe]
pub fn go_write_header(ctx: ProbeContext) -> u32 {
    let _ = write_header(&ctx);
    0
}

#[inline(always)]
fn write_header(ctx: &ProbeContext) -> Option<()> {
    let (unit, _) = current(ctx)?;
    let stream = register!(ctx, rbx) as u32;
    let first = register!(ctx, rdi);
    let fields = Pointer {
        address: first,
        pid: unit.pid,
        more: 0,
    };
    let connection = get(&GO_WRITERS, &unit);
    if let Some(connection) = connection {
        if let Some(known) = maps::connection(connection) {
            let g = register!(ctx, r14);
            // SAFETY: a live element of a map; written whole.
            unsafe { (*known).shared.writer = g };
        }
        path(first, &StreamKey::made(connection, stream));
    }
    // SAFETY: plain, and written once.
    let parent = unsafe { GO_FIELDS.get(fields) }.copied()?;
    let _ = GO_FIELDS.remove(fields);
    if let Some(connection) = connection {
        context::join(connection, stream, &parent, mechanism::GO_GRPC);
        return Some(());
    }
    let _ = GO_PENDING_FOR.insert(pending(&unit, stream), parent, 0);
    // SAFETY: integers that only this goroutine's programs write.
    let begun = unsafe { GO_PENDING.get(unit) }.copied();
    let first = begun.map_or(stream, |[first, ..]| first);
    let _ = GO_PENDING.insert(unit, [first, stream, mechanism::GO_GRPC], 0);
    Some(())
}

/// `serverHandler.ServeHTTP` on the goroutine that reads the connection.
#[uprobe]
pub fn go_serve_http(ctx: ProbeContext) -> u32 {
    let _ = serve_http(&ctx);
    0
}

#[inline(always)]
fn serve_http(ctx: &ProbeContext) -> Option<()> {
    let (unit, layout) = current(ctx)?;
    // Of HTTP/2 the handler's goroutine reads nothing itself.
    let connection = get(&GO_READERS, &unit)?;
    let known = maps::connection(connection)?;
    // SAFETY: a live element of a map.
    let shared = unsafe { (*known).shared };
    if shared.protocol != protocol::HTTP1 {
        return None;
    }
    // Several may have been read at once (RFC 9112 §9.3.2); handlers run in order.
    // SAFETY: an integer, written whole.
    let number = match unsafe { GO_HANDLED.get(connection) }.copied() {
        Some(last) if last < shared.requests => last.wrapping_add(1),
        None if shared.origin != 0 => 1,
        _ => shared.requests,
    };
    let _ = GO_HANDLED.insert(connection, number, 0);
    serves_by(&unit);
    let request = StreamKey::served(connection, number);
    context::serve(&unit, &request);
    contexts::begins(unit.pid, layout, register!(ctx, rdi), &request);
    Some(())
}

/// `persistConn.roundTrip(pc, req)` on the goroutine that makes the request.
#[uprobe]
pub fn go_round_trip(ctx: ProbeContext) -> u32 {
    let _ = round_trip(&ctx);
    0
}

#[inline(always)]
fn round_trip(ctx: &ProbeContext) -> Option<()> {
    let (unit, layout) = current_of_server(ctx)?;
    let carrier = Pointer {
        address: register!(ctx, rax),
        pid: unit.pid,
        more: 0,
    };
    // transportRequest embeds *Request first.
    let called = user::<u64>(register!(ctx, rbx)).and_then(|request| contexts::of(layout, request));
    match parent(&unit, layout, register!(ctx, r14), called) {
        Some(request) => {
            let _ = GO_ROUND_TRIPS.insert(carrier, request, 0);
        }
        None => {
            let _ = GO_ROUND_TRIPS.remove(carrier);
        }
    }
    Some(())
}

/// `persistConnWriter.Write(w, p)` on the goroutine that writes the connection: RAX is the `*persistConn`.
#[uprobe]
pub fn go_conn_write(ctx: ProbeContext) -> u32 {
    let _ = conn_write(&ctx);
    0
}

#[inline(always)]
fn conn_write(ctx: &ProbeContext) -> Option<()> {
    let (unit, _) = current(ctx)?;
    let carrier = Pointer {
        address: register!(ctx, rax),
        pid: unit.pid,
        more: 0,
    };
    // SAFETY: plain, and one request at a time is on a connection.
    let parent = unsafe { GO_ROUND_TRIPS.get(carrier) }.copied();
    let _ = GO_WRITES_FOR.insert(unit, parent.unwrap_or(StreamKey::NONE), 0);
    Some(())
}

/// HTTP/2 `serverConn.runHandler(sc, rw, …)` on the handler's goroutine, which the connection's makes.
#[uprobe]
pub fn go_run_handler(ctx: ProbeContext) -> u32 {
    let _ = run_handler(&ctx);
    0
}

#[inline(always)]
fn run_handler(ctx: &ProbeContext) -> Option<()> {
    let (unit, layout) = current(ctx)?;
    // responseWriter.rws, responseWriterState.stream, each the first member; stream.id behind its serverConn.
    let state = user::<u64>(register!(ctx, rbx))?;
    let stream = user::<u64>(state)?;
    let id = user::<u32>(stream.wrapping_add(8))?;
    let connection = get(&GO_MAKERS, &maker(&unit, layout, register!(ctx, r14))?)?;
    let request = StreamKey::served(connection, id);
    serves_by(&unit);
    context::serve(&unit, &request);
    contexts::begins(unit.pid, layout, register!(ctx, rcx), &request);
    Some(())
}

/// HTTP/2 `ClientConn.roundTrip(cc, req, …)` on the goroutine that makes the request.
#[uprobe]
pub fn go_client_round_trip(ctx: ProbeContext) -> u32 {
    let _ = client_round_trip(&ctx);
    0
}

#[inline(always)]
fn client_round_trip(ctx: &ProbeContext) -> Option<()> {
    let (unit, layout) = current_of_server(ctx)?;
    let request = Pointer {
        address: register!(ctx, rbx),
        pid: unit.pid,
        more: 0,
    };
    let called = contexts::of(layout, request.address);
    match parent(&unit, layout, register!(ctx, r14), called) {
        Some(served) => {
            let _ = GO_ROUND_TRIPS.insert(request, served, 0);
        }
        None => {
            let _ = GO_ROUND_TRIPS.remove(request);
        }
    }
    Some(())
}

/// HTTP/2 `clientStream.writeRequest(cs, req, …)` on a goroutine that the caller's made for the request.
#[uprobe]
pub fn go_write_request(ctx: ProbeContext) -> u32 {
    let _ = write_request(&ctx);
    0
}

#[inline(always)]
fn write_request(ctx: &ProbeContext) -> Option<()> {
    let (unit, layout) = current(ctx)?;
    let request = register!(ctx, rbx);
    let parent = if layout[at::ASKS_MAKER] == 0 {
        contexts::parent(&unit, contexts::of(layout, request), 1)
    } else {
        let request = Pointer {
            address: request,
            pid: unit.pid,
            more: 0,
        };
        // SAFETY: plain, and written before this goroutine was made.
        let told = unsafe { GO_ROUND_TRIPS.get(request) }.copied();
        if told.is_some() {
            let _ = GO_ROUND_TRIPS.remove(request);
        }
        told
    };
    // The goroutine does nothing else: what its request is for, it executes for.
    match parent {
        Some(parent) => context::serve(&unit, &parent),
        None => context::leave(&unit),
    }
    Some(())
}

/// HTTP/2 `ClientConn.writeHeaders(cc, streamID, …)` on the goroutine of the request, which writes them itself.
#[uprobe]
pub fn go_write_headers(ctx: ProbeContext) -> u32 {
    let _ = write_headers(&ctx);
    0
}

#[inline(always)]
fn write_headers(ctx: &ProbeContext) -> Option<()> {
    let (unit, _) = current(ctx)?;
    let stream = register!(ctx, rbx) as u32;
    let request = context::of(&unit)?;
    let _ = GO_PENDING_FOR.insert(pending(&unit, stream), request, 0);
    let _ = GO_PENDING.insert(unit, [stream, stream, mechanism::GO_HTTP2], 0);
    Some(())
}

/// Bytes of `hpack.HeaderField`: Name and Value, strings; Sensitive.
const FIELD: u64 = 40;

/// Tells the `:path` of header fields where the wire may have it as an index from before the agent.
#[inline(always)]
fn path(fields: u64, request: &StreamKey) {
    let Some(connection) = maps::connection(request.connection) else {
        return;
    };
    // SAFETY: a live element of a map.
    if unsafe { (*connection).shared.origin } != 0 {
        return;
    }
    // grpc-go writes :method, :scheme, :path; others may have another order.
    let mut n = 0;
    while n < 4 {
        let field = fields.wrapping_add(n * FIELD);
        let Some([name_at, name_length, value_at, value_length]) = user::<[u64; 4]>(field) else {
            return;
        };
        if name_length == 5 && user::<[u8; 5]>(name_at) == Some(*b":path") {
            name::tell(request, value_at, value_length);
            return;
        }
        n += 1;
    }
}
