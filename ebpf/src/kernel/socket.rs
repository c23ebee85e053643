//! Sockets as the hooks name them: the ends of sends and receives, and TCP's
//! changes of state.

use aya_ebpf::helpers::generated::{
    bpf_get_current_pid_tgid, bpf_get_current_task, bpf_get_current_task_btf, bpf_get_socket_cookie, bpf_task_pt_regs,
};
use tracewire_common::event::{Close, Header, direction, kind};
use tracewire_common::link::runtime;
use tracewire_common::settings::watch;
use tracewire_ebpf::connection::{Flow, flow_flag, phase, protocol};

use crate::kernel::call::call_ended;
use crate::kernel::maps::{self, offset, setting};
use crate::kernel::memory::kernel;
use crate::kernel::probe::{go, node, tokio};
use crate::kernel::tls::join;
use crate::kernel::{emit, inject, open, threads};

const AF_UNIX: u16 = 1;
const TCP_ESTABLISHED: i32 = 1;
const TCP_CLOSE: i32 = 7;
const TCP_LISTEN: i32 = 10;

/// User registers of the current task.
#[inline(always)]
pub fn registers() -> u64 {
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

/// The name of a socket at an address. Without a generated cookie the address is the name of a
/// TCP socket: unique while it lives, and [`state`] forgets it when it ends. Nobody tells of the
/// end of a Unix socket, so its inode's number is in its name.
#[inline(always)]
pub fn name_at(sk: u64) -> u64 {
    let at = |offset: usize| sk.wrapping_add(offset as u64);
    match kernel::<u64>(at(offset!(sk_cookie))) {
        Some(cookie) if cookie != 0 => cookie,
        _ if kernel::<u16>(at(offset!(sk_family))) != Some(AF_UNIX) => sk,
        _ => inode(sk).wrapping_shl(32) | low_half(sk),
    }
}

/// The lower half of an address. By way of the stack: the verifier allows no arithmetic on a pointer that it knows.
#[inline(always)]
fn low_half(address: u64) -> u64 {
    kernel::<u32>((&raw const address) as u64).map_or(0, u64::from)
}

/// Number of a socket's inode, 0 if it has none.
#[inline(always)]
fn inode(sk: u64) -> u64 {
    let follow = |from: u64, offset: usize| kernel::<u64>(from.wrapping_add(offset as u64)).unwrap_or(0);
    let socket = follow(sk, offset!(sk_socket));
    let file = follow(socket, offset!(socket_file));
    let inode = follow(file, offset!(file_inode));
    follow(inode, offset!(inode_ino))
}

/// The name of a socket whose pointer the verifier knows.
#[inline(always)]
fn name(sk: *const core::ffi::c_void) -> u64 {
    if setting!(has_cookie) == 0 {
        return name_at(sk as u64);
    }
    // SAFETY: `sk` is the hook's own `struct sock *`.
    unsafe { bpf_get_socket_cookie(sk.cast_mut()) }
}

/// The caller of an observed process.
#[derive(Clone, Copy)]
pub struct Caller {
    /// tgid and thread, as the kernel's helper gives them.
    pub id: u64,
    /// What [`maps::process`] knows of it.
    pub how: u32,
}

/// Who calls, if it is observed.
#[inline(always)]
pub fn observed() -> Option<Caller> {
    // SAFETY: a helper without arguments.
    let id = unsafe { bpf_get_current_pid_tgid() };
    let how = maps::process((id >> 32) as u32)?;
    (how & watch::MASK != watch::IGNORED).then_some(Caller { id, how })
}

/// The end of a send or receive on a socket whose pointer the verifier knows.
#[inline(always)]
pub fn transferred(sk: *const core::ffi::c_void, moved: i32, way: u8, slot: u32) {
    let Some(caller) = observed() else { return };
    if sk.is_null() {
        return;
    }
    if moved < 0 {
        // It ends a sendmmsg or recvmmsg; the thread's next one begins anew.
        maps::set_multi(caller.id as u32, 0);
        return;
    }
    let connection = name(sk);
    ended(sk as u64, connection, moved as u32, way, slot, caller, registers());
}

/// The same behind a program that the kernel may have skipped for this call. TCP's counters tell:
/// where a call was seen, its direction stands where they do. Ends of streams are left to the socket's close.
#[inline(always)]
pub fn transferred_again(sk: *const core::ffi::c_void, moved: i32, way: u8, slot: u32) {
    let Some(caller) = observed() else { return };
    if moved <= 0 || sk.is_null() {
        return;
    }
    let connection = name(sk);
    if !was_skipped(sk as u64, connection, way) {
        return;
    }
    ended(sk as u64, connection, moved as u32, way, slot, caller, registers());
}

#[inline(always)]
fn was_skipped(sk: u64, name: u64, way: u8) -> bool {
    let Some(known) = maps::connection(name) else {
        // Not even its first call was seen, or it is no stream of TCP.
        return kernel::<u16>(sk.wrapping_add(offset!(sk_family) as u64)) != Some(AF_UNIX);
    };
    // SAFETY: a live element of a map.
    let shared = unsafe { (*known).shared };
    if shared.tcp == 0 || shared.protocol >= protocol::OTHER {
        return false;
    }
    // SAFETY: a live element of a map.
    let flows: *const Flow = unsafe { &raw const (*known).flows }.cast();
    let flow = flows.wrapping_add(usize::from(way == direction::SEND));
    // SAFETY: as above; there are two flows.
    let phase = unsafe { (*flow).phase };
    // SAFETY: as above.
    let flags = unsafe { (*flow).flags };
    // SAFETY: as above.
    let sequence = unsafe { (*flow).sequence };
    if phase == phase::DEAD || flags & flow_flag::SEQUENCE == 0 {
        return false;
    }
    open::positions(sk).is_some_and(|now| {
        let (now, ahead) = if way == direction::SEND {
            (
                now.sent,
                if inject::read::wanted() {
                    inject::injected(name)
                } else {
                    0
                },
            )
        } else {
            (now.received, 0)
        };
        now.wrapping_sub(ahead) != sequence
    })
}

/// The end of a send or receive on a `struct socket` of Unix.
#[inline(always)]
pub fn transferred_unix(socket: *const core::ffi::c_void, moved: i32, way: u8, slot: u32) {
    let Some(caller) = observed() else { return };
    if moved < 0 || socket.is_null() {
        return;
    }
    let at = socket.wrapping_byte_add(offset!(socket_sk));
    // SAFETY: a member of the hook's own `struct socket`; the verifier knows its type, and so that of what it points to.
    let sk = unsafe { core::ptr::read_volatile(at.cast::<*const core::ffi::c_void>()) };
    if sk.is_null() {
        return;
    }
    let connection = name(sk);
    ended(sk as u64, connection, moved as u32, way, slot, caller, registers());
}

/// The same where `sk` is just an address and the process is known to be observed.
#[inline(always)]
pub fn transferred_at(sk: u64, moved: i32, way: u8, slot: u32, caller: Caller, regs: u64) {
    ended(sk, name_at(sk), moved as u32, way, slot, caller, regs);
}

#[inline(always)]
fn ended(sk: u64, connection: u64, moved: u32, way: u8, slot: u32, caller: Caller, regs: u64) {
    let Some(scratch) = maps::scratch(slot) else { return };
    // SAFETY: a live element of a per-CPU map that only this program uses on this CPU.
    let parts = unsafe { &mut *scratch };
    parts.header = Header {
        kind: kind::FRAMES,
        direction: way,
        flags: 0,
        length: 0,
        time_ns: 0,
        connection,
        pid: (caller.id >> 32) as u32,
        tid: caller.id as u32,
    };
    parts.cursor.sk = sk;
    parts.cursor.regs = regs;
    parts.cursor.moved = moved;
    parts.cursor.dry = 0;
    parts.cursor.records = 0;
    parts.cursor.settled = 0;
    parts.cursor.heads = threads::heads::OTHER;
    parts.cursor.how = caller.how;
    let go = caller.how & runtime::bit(runtime::GO) != 0;
    parts.cursor.g = if go { go::current_g(regs) } else { 0 };
    call_ended(slot);
    if way == direction::RECEIVE && inject::read::wanted() {
        inject::read::contexts(slot);
        inject::enrol::received(sk, &parts.header);
    }
    runtimes_moved(slot);
}

/// Bytes were moved, as the scratch says: for those who follow what executes on whose behalf. The
/// verifier walks it by itself, and its stack is not that of the programs.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn runtimes_moved(slot: u32) -> u32 {
    let Some(scratch) = maps::scratch(slot) else { return 0 };
    // SAFETY: a live element of a per-CPU map that only this program uses on this CPU.
    let parts = unsafe { &*scratch };
    let how = parts.cursor.how;
    if how & runtime::bit(runtime::GO) != 0 {
        if parts.cursor.settled == 0 {
            go::moved(slot);
        }
    } else if how & runtime::bit(runtime::TOKIO) != 0 {
        tokio::moved(slot);
    } else if parts.cursor.heads != threads::heads::OTHER {
        if how & runtime::bit(runtime::NODE) != 0 {
            node::moved(slot);
        } else if setting!(links) != 0 && how & runtime::bit(runtime::GREENLET) == 0 {
            threads::moved(slot);
        }
    }
    0
}

/// Whether a thread of the process may be all that a request is served by.
#[inline(always)]
pub fn may_serve_by_thread(pid: u32) -> bool {
    setting!(links) != 0 && !maps::runs(pid, runtime::GREENLET)
}

/// A TCP socket changed its state.
#[inline(always)]
pub fn state(sk: *const core::ffi::c_void, new: i32) {
    match new {
        TCP_ESTABLISHED => born(sk),
        TCP_LISTEN if setting!(match_ports) != 0 => listen(sk as u64),
        TCP_CLOSE => closed(sk as u64),
        _ => {}
    }
}

/// Both of its sequence numbers are set and no byte was moved yet.
#[inline(always)]
fn born(sk: *const core::ffi::c_void) {
    if sk.is_null() {
        return;
    }
    let name = name(sk);
    if let Some(birth) = open::origins(sk as u64) {
        maps::born(name, &birth);
    }
}

#[inline(always)]
fn closed(sk: u64) {
    let cookie = kernel::<u64>(sk.wrapping_add(offset!(sk_cookie) as u64)).unwrap_or(0);
    inject::closed(cookie);
    let name = if cookie != 0 && maps::connection(cookie).is_some() {
        cookie
    } else {
        sk
    };
    let Some(connection) = maps::connection(name) else {
        return;
    };
    // SAFETY: a live element of a map.
    let ciphertext = unsafe { (*connection).shared.protocol } == protocol::TLS;
    maps::forget_connection(name);
    let error = kernel::<u32>(sk.wrapping_add(offset!(sk_err) as u64)).unwrap_or(0);
    if ciphertext {
        join::closed(name, error);
    }
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
