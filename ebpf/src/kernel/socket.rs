//! The end of a send or receive: whose it was, which bytes, in which order.

use aya_ebpf::helpers::generated::{
    bpf_get_current_pid_tgid, bpf_get_current_task, bpf_get_current_task_btf, bpf_get_socket_cookie,
    bpf_probe_read_kernel, bpf_task_pt_regs,
};
use tracewire_common::event::{Close, Header, Open, direction, flags, kind};
use tracewire_common::fault::Fault;
use tracewire_common::settings::{ABSENT, watch};
use tracewire_ebpf::connection::{Connection, Flow, Shared, flow_flag, phase, protocol};

use crate::kernel::emit;
use tracewire_ebpf::io::Io;

use crate::kernel::maps::{self, Cursor, Scratch, offset, setting};
use crate::kernel::memory::{kernel, user};
use crate::kernel::walk::{Walk, stop};

const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const SOCK_STREAM: u16 = 1;
const IPPROTO_TCP: u16 = 6;
const TCP_CLOSE: i32 = 7;
const TCP_LISTEN: i32 = 10;
const RCV_SHUTDOWN: u8 = 1;
const MSG_PEEK: u64 = 2;
const MSG_TRUNC: u64 = 0x20;
const MSG_ERRQUEUE: u64 = 0x2000;
/// Calls of a connection that may look like nothing before it is left alone.
const ATTEMPTS: u32 = 256;
/// Fewest bytes that prove a framing in mid-stream.
const PROOF: u32 = 13;
/// Whole frames that prove it even where the last one is cut.
const PROOF_FRAMES: u32 = 3;

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

/// What a call was, as [`Cursor::stop`] holds it until the walk begins.
mod found {
    /// Its bytes are where [`Cursor::first`] says.
    pub const BYTES: u32 = 0;
    /// Bytes moved that can't be found in memory.
    pub const OPAQUE: u32 = 1;
    /// Nothing was consumed.
    pub const PEEK: u32 = 2;
    /// An orderly end of file.
    pub const EOF: u32 = 3;
}

/// `socket.sk` of a `struct socket`.
#[inline(always)]
pub fn sock_of(socket: u64) -> u64 {
    kernel::<u64>(socket.wrapping_add(offset!(socket_sk) as u64)).unwrap_or(0)
}

/// User registers of the current task.
#[inline(always)]
fn registers() -> u64 {
    if setting!(has_task_pt_regs) != 0 {
        // SAFETY: a helper without arguments.
        let task = unsafe { bpf_get_current_task_btf() };
        // SAFETY: `task` is the current task, as the helper asks.
        return unsafe { bpf_task_pt_regs(task) } as u64;
    }
    // SAFETY: a helper without arguments.
    let task = unsafe { bpf_get_current_task() };
    let stack = kernel::<u64>(task.wrapping_add(offset!(task_stack) as u64)).unwrap_or(0);
    stack.wrapping_add(u64::from(setting!(stack_top)))
}

/// Finds the buffer of the system call that moved `moved` bytes: one of [`found`].
#[inline(always)]
fn find(cursor: &mut Cursor, regs: u64, moved: i32, send: bool, tid: u32) -> u32 {
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
        maps::set_multi(
            tid,
            if moved <= 0 || u64::from(done) + 1 >= r.dx {
                0
            } else {
                done + 1
            },
        );
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
        cursor.first = (at, 0, if count > 1024 { 1024 } else { count as u32 }, 0);
    } else {
        cursor.first = (0, r.si, 0, moved as u32);
    }
    found::BYTES
}

/// The end of a send or receive on a socket whose pointer the verifier knows.
#[inline(always)]
pub fn transferred(sk: *const core::ffi::c_void, moved: i32, way: u8) {
    // SAFETY: a helper without arguments.
    let id = unsafe { bpf_get_current_pid_tgid() };
    let Some(how) = maps::watched((id >> 32) as u32) else {
        return;
    };
    if how == watch::IGNORED || sk.is_null() {
        return;
    }
    if moved < 0 {
        // It ends a sendmmsg or recvmmsg; the thread's next one begins anew.
        maps::set_multi(id as u32, 0);
        return;
    }
    // SAFETY: `sk` is the tracepoint's own `struct sock *`.
    let cookie = unsafe { bpf_get_socket_cookie(sk.cast_mut()) };
    observe(sk as u64, cookie, moved, way, id, registers());
}

/// The end of a send or receive on a `struct socket` of Unix.
#[inline(always)]
pub fn transferred_unix(socket: u64, moved: i32, way: u8) {
    // SAFETY: a helper without arguments.
    let id = unsafe { bpf_get_current_pid_tgid() };
    let Some(how) = maps::watched((id >> 32) as u32) else {
        return;
    };
    let sk = sock_of(socket);
    if how == watch::IGNORED || moved < 0 || sk == 0 {
        return;
    }
    transferred_at(sk, moved, way, id, registers());
}

/// The same where `sk` is just an address.
#[inline(always)]
pub fn transferred_at(sk: u64, moved: i32, way: u8, id: u64, regs: u64) {
    // Without a generated cookie the address names the socket: unique while it lives, and
    // `state` forgets it when it ends.
    let cookie = kernel::<u64>(sk.wrapping_add(offset!(sk_cookie) as u64)).unwrap_or(0);
    observe(sk, if cookie == 0 { sk } else { cookie }, moved, way, id, regs);
}

#[inline(always)]
fn observe(sk: u64, cookie: u64, moved: i32, way: u8, id: u64, regs: u64) {
    let Some(scratch) = maps::scratch(way) else { return };
    // SAFETY: a live element of a per-CPU map that only this program uses on this CPU.
    let parts = unsafe { &mut *scratch };
    let (cursor, header) = (&mut parts.cursor, &mut parts.header);
    cursor.stop = find(cursor, regs, moved, way == direction::SEND, id as u32);
    cursor.moved = moved as u32;
    cursor.dry = 0;
    *header = Header {
        kind: kind::FRAMES,
        direction: way,
        flags: 0,
        length: 0,
        time_ns: emit::now(),
        connection: cookie,
        pid: (id >> 32) as u32,
        tid: id as u32,
    };
    if cursor.stop == found::PEEK {
        return;
    }
    let connection = match maps::connection(cookie) {
        Some(connection) => connection,
        None => {
            if cursor.stop == found::EOF {
                return;
            }
            match open(sk, cookie, way, scratch) {
                Some(connection) => connection,
                None => return,
            }
        }
    };
    // SAFETY: a live element of a map; see `Walk::one` on races.
    let shared: *mut Shared = unsafe { &raw mut (*connection).shared };
    // SAFETY: as above.
    if unsafe { (*shared).protocol } == protocol::OTHER {
        return;
    }
    // SAFETY: as above; `way` is 0 or 1.
    let flows: *mut Flow = unsafe { &raw mut (*connection).flows }.cast();
    let flow = flows.wrapping_add(usize::from(way == direction::SEND));
    piece(sk, flow, shared, scratch, way);
}

/// One piece of one direction.
#[inline(always)]
fn piece(sk: u64, flow_at: *mut Flow, shared_at: *mut Shared, scratch: *mut Scratch, way: u8) {
    // SAFETY: a live element of a map; see `Walk::one` on races.
    let flow = unsafe { &mut *flow_at };
    // SAFETY: as above, another member.
    let shared = unsafe { &mut *shared_at };
    // SAFETY: a live element of a per-CPU map that only this program uses on this CPU.
    let parts = unsafe { &mut *scratch };
    let (cursor, header) = (&mut parts.cursor, &mut parts.header);
    if flow.phase == phase::DEAD {
        return;
    }
    if cursor.stop == found::EOF {
        // A receive into no room returns 0 too (grpc-core does that): only the socket knows.
        if !receive_ended(sk) {
            return;
        }
        header.flags = flags::END | common_flags(flow, shared);
        // SAFETY: the scratch begins with the header.
        unsafe { maps::output(scratch.cast(), size_of::<Header>() as u64) };
        return;
    }
    if shared.tcp != 0 {
        in_order(sk, flow, cursor.moved, way);
    }
    if cursor.stop == found::OPAQUE {
        maps::count(Fault::OpaqueCall);
        missed(flow, cursor.moved);
        return;
    }
    if shared.upgraded != 0 && flow.phase == phase::HTTP1_HEAD && flow.http1.state == 0 {
        flow.phase = phase::START;
    }
    let mut walk = Walk {
        flow: flow_at,
        shared: shared_at,
        scratch,
    };
    walk.begin();
    if flow.phase == phase::LOST {
        if !prove(&mut walk, flow, shared) {
            return;
        }
        walk.begin();
    }
    header.flags = common_flags(flow, shared);
    flow.flags &= !flow_flag::GAP;
    walk.run();
    if cursor.stop != stop::NONE || cursor.left != 0 {
        let fault = if cursor.stop == stop::MALFORMED {
            Fault::Malformed
        } else if cursor.stop == stop::UNREADABLE {
            Fault::UserMemory
        } else {
            Fault::TooManySteps
        };
        if shared.protocol != protocol::OTHER {
            maps::count(fault);
        }
        lose(flow);
    }
    // The protocol may have become known only now.
    header.flags |= common_flags(flow, shared) & !flags::GAP;
    walk.flush();
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

/// The framing of this direction is in doubt from here on.
#[inline(always)]
fn lose(flow: &mut Flow) {
    flow.flags |= flow_flag::GAP;
    flow.phase = phase::LOST;
    flow.have = 0;
}

/// `n` bytes went by unseen: no harm where nobody needed them.
#[inline(always)]
fn missed(flow: &mut Flow, n: u32) {
    match flow.phase {
        phase::SKIP if n < flow.need => flow.need -= n,
        phase::DATA if n < flow.need && (flow.message.state == 1 || n <= flow.message.left) => {
            flow.need -= n;
            if flow.message.state != 1 {
                flow.message.left -= n;
            }
        }
        phase::HTTP1_BODY | phase::HTTP1_CHUNK_DATA if u64::from(n) < flow.http1.left => {
            flow.http1.left -= u64::from(n);
            flow.http1.body += u64::from(n);
        }
        phase::HTTP1_CLOSE => flow.http1.body += u64::from(n),
        phase::LOST => {}
        _ => lose(flow),
    }
}

/// Whether no more bytes will be received: the peer closed its side. Where the kernel
/// keeps that in a bit-field it is not known, and the socket's close tells it.
#[inline(always)]
fn receive_ended(sk: u64) -> bool {
    let at = offset!(sk_shutdown);
    at != ABSENT as usize && kernel::<u8>(sk.wrapping_add(at as u64)).unwrap_or(0) & RCV_SHUTDOWN != 0
}

/// Compares where this call's bytes begin with where the last one's ended.
#[inline(always)]
fn in_order(sk: u64, flow: &mut Flow, moved: u32, way: u8) {
    let at = if way == direction::SEND {
        offset!(tcp_write_seq)
    } else {
        offset!(tcp_copied_seq)
    };
    let Some(now) = kernel::<u32>(sk.wrapping_add(at as u64)) else {
        return;
    };
    let begin = now.wrapping_sub(moved);
    let expected = flow.sequence;
    let known = flow.flags & flow_flag::SEQUENCE != 0;
    flow.sequence = now;
    flow.flags |= flow_flag::SEQUENCE;
    if !known || begin == expected {
        return;
    }
    let lost = begin.wrapping_sub(expected);
    if lost == 1 && way == direction::RECEIVE {
        // The peer's FIN takes a number of its own, consumed with the last bytes.
        if receive_ended(sk) {
            return;
        }
    }
    maps::count(Fault::Sequence);
    if lost < 1 << 31 { missed(flow, lost) } else { lose(flow) }
}

/// Whether this call's bytes prove a framing from its first byte on; if so the
/// flow is set to it.
#[inline(always)]
fn prove(walk: &mut Walk, flow: &mut Flow, shared: &mut Shared) -> bool {
    // The first bytes, wherever they lie.
    if walk.at().segment == 0 && !walk.next_vector() {
        return false;
    }
    if walk.peek() >= 4 {
        let word = [walk.window(0), walk.window(1), walk.window(2), walk.window(3)];
        let preface = word == *b"PRI ";
        let head = tracewire_ebpf::http1::begins(word);
        if shared.protocol != protocol::HTTP2 && head || shared.protocol != protocol::HTTP1 && preface {
            flow.phase = phase::START;
            return true;
        }
    }
    if shared.protocol != protocol::HTTP1 && walk.at().moved >= PROOF {
        let (flow_at, shared_at) = (walk.flow, walk.shared);
        // SAFETY: a live element of a per-CPU map that only this program uses on this CPU.
        let parts = unsafe { &mut *walk.scratch };
        let (dry, dry_shared) = (&mut parts.dry, &mut parts.dry_shared);
        *dry = Flow::EMPTY;
        dry.phase = phase::HEAD;
        dry.flags = flow_flag::DRY;
        walk.flow = dry;
        walk.shared = dry_shared;
        walk.at().dry = 1;
        walk.run();
        walk.flow = flow_at;
        walk.shared = shared_at;
        let at = walk.at();
        at.dry = 0;
        let ended = at.stop == stop::NONE && at.left == 0;
        let whole = dry.phase == phase::HEAD && dry.have == 0 && dry.frames != 0;
        if ended && (whole || dry.frames > PROOF_FRAMES) {
            shared.protocol = protocol::HTTP2;
            flow.phase = phase::HEAD;
            flow.have = 0;
            flow.stored = 1;
            return true;
        }
    }
    if shared.protocol == protocol::UNKNOWN {
        shared.attempts += 1;
        if shared.attempts > ATTEMPTS {
            shared.protocol = protocol::OTHER;
        }
    }
    false
}

/// First sight of a connection: says who its ends are. None: not a stream socket of a known family.
#[inline(always)]
fn open(sk: u64, cookie: u64, way: u8, scratch: *mut Scratch) -> Option<*mut Connection> {
    let at = |offset: usize| sk.wrapping_add(offset as u64);
    let family = kernel::<u16>(at(offset!(sk_family)))?;
    if family != AF_INET && family != AF_INET6 && family != AF_UNIX
        || kernel::<u16>(at(offset!(sk_type)))? != SOCK_STREAM
    {
        return None;
    }
    let tcp = family != AF_UNIX && kernel::<u16>(at(offset!(sk_protocol)))? == IPPROTO_TCP;
    if family != AF_UNIX && !tcp {
        return None;
    }
    // SAFETY: a live element of a per-CPU map that only this program uses on this CPU; the data is larger than an `Open` and aligned to 8 bytes behind the header.
    let data = unsafe { &raw mut (*scratch).data };
    // SAFETY: as above.
    let open = unsafe { &mut *data.cast::<Open>() };
    open.family = family;
    open.role = 0;
    open.netns = 0;
    open.reserved = 0;
    open.socket = sk;
    open.peer_socket = 0;
    open.local_port = 0;
    open.peer_port = 0;
    open.local_address = [0; 16];
    open.peer_address = [0; 16];
    if let Some(net) = kernel::<u64>(at(offset!(sk_net))) {
        open.netns = kernel::<u32>(net.wrapping_add(offset!(net_inum) as u64)).unwrap_or(0);
    }
    if family == AF_UNIX {
        open.peer_socket = kernel::<u64>(at(offset!(unix_peer))).unwrap_or(0);
    } else {
        open.local_port = kernel::<u16>(at(offset!(sk_num)))?;
        open.peer_port = u16::from_be(kernel::<u16>(at(offset!(sk_dport)))?);
        if family == AF_INET {
            read_into(&raw mut open.local_address, at(offset!(sk_rcv_saddr)), 4);
            read_into(&raw mut open.peer_address, at(offset!(sk_daddr)), 4);
        } else {
            read_into(&raw mut open.local_address, at(offset!(sk_v6_rcv_saddr)), 16);
            read_into(&raw mut open.peer_address, at(offset!(sk_v6_daddr)), 16);
        }
    }
    // SAFETY: as above.
    let moved = unsafe { (*scratch).cursor.moved };
    let origin = tcp && fresh(sk, moved, way);
    let connection = maps::add_connection(cookie)?;
    // SAFETY: a live element of a map, just made.
    let c = unsafe { &mut *connection };
    c.shared.tcp = u8::from(tcp);
    c.shared.origin = u8::from(origin);
    let first = if origin { phase::START } else { phase::LOST };
    c.flows[0].phase = first;
    c.flows[1].phase = first;
    // SAFETY: as above.
    let header = unsafe { &mut (*scratch).header };
    header.kind = kind::OPEN;
    header.flags = if origin { flags::ORIGIN } else { 0 };
    header.length = size_of::<Open>() as u32;
    // SAFETY: the scratch begins with the header and the `Open`, filled above.
    if !unsafe { maps::output(scratch.cast(), (size_of::<Header>() + size_of::<Open>()) as u64) } {
        maps::forget_connection(cookie);
        return None;
    }
    header.kind = kind::FRAMES;
    Some(connection)
}

/// Reads `n` ≤ 16 bytes of kernel memory.
#[inline(always)]
fn read_into(to: *mut [u8; 16], from: u64, n: u32) {
    // SAFETY: `to` has 16 bytes; a bad address is an error, not a fault.
    unsafe { bpf_probe_read_kernel(to.cast(), n, from as *const _) };
}

/// Whether a TCP connection moved nothing in either direction before this call.
#[inline(always)]
fn fresh(sk: u64, moved: u32, way: u8) -> bool {
    let at = |offset: usize| sk.wrapping_add(offset as u64);
    let word = |offset: usize| kernel::<u32>(at(offset)).unwrap_or(0);
    let received = kernel::<u64>(at(offset!(tcp_bytes_received))).unwrap_or(1 << 40);
    let waiting = word(offset!(tcp_rcv_nxt)).wrapping_sub(word(offset!(tcp_copied_seq)));
    let acked = kernel::<u64>(at(offset!(tcp_bytes_acked))).unwrap_or(1 << 40);
    let unacked = word(offset!(tcp_write_seq)).wrapping_sub(word(offset!(tcp_snd_una)));
    let consumed = received.wrapping_sub(u64::from(waiting));
    let sent = acked.wrapping_add(u64::from(unacked));
    let (consumed_now, sent_now) = if way == direction::SEND { (0, moved) } else { (moved, 0) };
    // The SYN (and a FIN that came with the data) may count as one byte.
    consumed.wrapping_sub(u64::from(consumed_now)) <= 1 && sent.wrapping_sub(u64::from(sent_now)) <= 1
}

/// A TCP socket changed its state.
#[inline(always)]
pub fn state(sk: *const core::ffi::c_void, new: i32) {
    let sk = sk as u64;
    if new == TCP_LISTEN {
        if setting!(match_ports) != 0 {
            listen(sk);
        }
        return;
    }
    if new != TCP_CLOSE {
        return;
    }
    let cookie = kernel::<u64>(sk.wrapping_add(offset!(sk_cookie) as u64)).unwrap_or(0);
    let name = if cookie != 0 && maps::connection(cookie).is_some() {
        cookie
    } else {
        sk
    };
    if maps::connection(name).is_none() {
        return;
    }
    maps::forget_connection(name);
    let error = kernel::<u32>(sk.wrapping_add(offset!(sk_err) as u64)).unwrap_or(0);
    let header = Header {
        kind: kind::CLOSE,
        time_ns: emit::now(),
        connection: name,
        ..Header::EMPTY
    };
    emit::small(header, Close { error });
}

/// A process began to listen: chosen if its port is.
#[inline(always)]
fn listen(sk: u64) {
    let Some(port) = kernel::<u16>(sk.wrapping_add(offset!(sk_num) as u64)) else {
        return;
    };
    if !maps::port_chosen(u32::from(port)) {
        return;
    }
    // SAFETY: a helper without arguments.
    let id = unsafe { bpf_get_current_pid_tgid() };
    let pid = (id >> 32) as u32;
    maps::watch(pid, watch::WATCHED);
    let header = Header {
        kind: kind::LISTEN,
        time_ns: emit::now(),
        pid,
        tid: id as u32,
        ..Header::EMPTY
    };
    emit::small(header, Close { error: u32::from(port) });
}
