//! Which sockets are followed: those on which a watched process connects, from
//! before their first byte. The process is known when it calls `connect`; the
//! socket can be put into the sockhash when it is established, which may be
//! told in anybody's context.
//!
//! A read that waits in a followed socket ends with EAGAIN at every wake-up
//! without data (`tcp_bpf_recvmsg` of all kernels: a signal, a reset, the
//! acknowledgement of the own FIN), which nobody expects who blocks in reads.
//! So only sockets that do not block are followed, and within its first write
//! a socket is let go that blocks by now, or does not speak HTTP.

use aya_ebpf::bindings::{
    BPF_ANY, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_HDR_OPT_LEN_CB, BPF_SOCK_OPS_TCP_CONNECT_CB,
    BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG, bpf_sock_ops,
};
use aya_ebpf::helpers::generated::{
    bpf_get_current_task, bpf_get_socket_cookie, bpf_map_delete_elem, bpf_sock_hash_update, bpf_sock_ops_cb_flags_set,
};
use aya_ebpf::maps::lpm_trie::Key;
use tracewire_common::event::{Header, kind};
use tracewire_common::inject::{DESTINATION, Fate, followed};
use tracewire_common::link::runtime;
use tracewire_common::settings::watch;
use tracewire_ebpf::outbound::phase;

use super::{DESTINATIONS, SOCKETS, add_outbound, closed, count, outbound};
use crate::kernel::emit;
use crate::kernel::maps::{self, offset};
use crate::kernel::memory::kernel;

/// A value of `Outbound::enrolling`: the agent was asked to let it go.
const LEAVING: u8 = 2;
/// AF_INET6.
const AF_INET6: u16 = 10;
/// SOCK_ZEROCOPY of `enum sock_flags` (Linux 5.10 and up).
const ZEROCOPY: u32 = 18;
/// O_NONBLOCK of x86-64.
const NONBLOCK: u32 = 0o4000;

/// Something happened to a socket.
#[inline(always)]
pub fn event(ops: *mut bpf_sock_ops) {
    match member!(ops, op) {
        // In the caller's context, before the SYN is sent.
        BPF_SOCK_OPS_TCP_CONNECT_CB => connects(ops),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => established(ops),
        // Asked for by `established`: the size of a segment is worked out, also at each write's beginning.
        BPF_SOCK_OPS_HDR_OPT_LEN_CB => writes(ops),
        _ => {}
    }
}

/// Whether sockets of this process are followed.
#[inline(always)]
fn wanted(pid: u32) -> bool {
    let Some(how) = maps::process(pid) else { return false };
    if !matches!(how & watch::MASK, watch::WATCHED | watch::PENDING) {
        return false;
    }
    match super::followed(0) {
        followed::ALL => true,
        followed::UNCOUNTED => how & (watch::LOOKED | runtime::bit(runtime::COUNTS)) == watch::LOOKED,
        _ => false,
    }
}

/// The socket's address as a number: the verifier lets nobody calculate with what the context gives.
#[inline(always)]
fn address(ops: *mut bpf_sock_ops) -> u64 {
    let socket = member!(ops, __bindgen_anon_2.sk);
    kernel::<u64>((&raw const socket) as u64).unwrap_or(0)
}

/// Whether the socket promises to tell when the memory of a send may be used again
/// (MSG_ZEROCOPY): a followed one copies, and counts its promises otherwise.
#[inline(always)]
fn promises(sk: u64) -> bool {
    kernel::<u64>(sk.wrapping_add(offset!(sk_flags) as u64)).is_none_or(|flags| flags & 1 << ZEROCOPY != 0)
}

/// Whether calls on the socket do not block, and send in the usual way.
#[inline(always)]
fn never_blocks(sk: u64) -> bool {
    if promises(sk) {
        return false;
    }
    let flags = kernel::<u64>(sk.wrapping_add(offset!(sk_socket) as u64))
        .and_then(|socket| kernel::<u64>(socket.wrapping_add(offset!(socket_file) as u64)))
        .and_then(|file| kernel::<u32>(file.wrapping_add(offset!(file_flags) as u64)));
    flags.is_some_and(|flags| flags & NONBLOCK != 0)
}

/// Whether contexts are written to where this socket connects.
#[inline(always)]
fn goes_there(sk: u64) -> bool {
    if super::followed(1) == 0 {
        return true;
    }
    let at = |offset: usize| sk.wrapping_add(offset as u64);
    let mut key = Key::new(8 * DESTINATION as u32, [0u8; DESTINATION]);
    let port = kernel::<[u8; 2]>(at(offset!(sk_dport))).unwrap_or([0; 2]);
    if kernel::<u16>(at(offset!(sk_family))) == Some(AF_INET6) {
        let Some(address) = kernel::<[u8; 16]>(at(offset!(sk_v6_daddr))) else {
            return false;
        };
        key.data[2..].copy_from_slice(&address);
    } else {
        let Some(address) = kernel::<[u8; 4]>(at(offset!(sk_daddr))) else {
            return false;
        };
        key.data[12] = 0xff;
        key.data[13] = 0xff;
        key.data[14..].copy_from_slice(&address);
    }
    if DESTINATIONS.get(&key).is_some() {
        return true;
    }
    key.data[0] = port[0];
    key.data[1] = port[1];
    DESTINATIONS.get(&key).is_some()
}

#[inline(always)]
fn connects(ops: *mut bpf_sock_ops) {
    // SAFETY: a helper without arguments.
    let task = unsafe { bpf_get_current_task() };
    let Some(pid) = kernel::<u32>(task.wrapping_add(offset!(task_tgid) as u64)) else {
        return;
    };
    if !wanted(pid) {
        return;
    }
    let sk = address(ops);
    if !goes_there(sk) {
        return;
    }
    if !never_blocks(sk) {
        count(Fate::Blocking);
        return;
    }
    // SAFETY: the program's own context.
    let cookie = unsafe { bpf_get_socket_cookie(ops.cast()) };
    if let Some(out) = add_outbound(cookie) {
        // SAFETY: a live element of a map, just made.
        unsafe { (*out).enrolling = 1 };
    }
}

#[inline(always)]
fn established(ops: *mut bpf_sock_ops) {
    // SAFETY: the program's own context.
    let mut cookie = unsafe { bpf_get_socket_cookie(ops.cast()) };
    let Some(out) = outbound(cookie) else { return };
    // SAFETY: a live element of a map; the socket has sent nothing yet.
    let out = unsafe { &mut *out };
    if out.enrolling != 1 {
        return;
    }
    out.enrolling = 0;
    out.next = member!(ops, snd_nxt);
    let flags = member!(ops, bpf_sock_ops_cb_flags) | BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG;
    // SAFETY: the program's own context.
    let mut refused = unsafe { bpf_sock_ops_cb_flags_set(ops, flags as i32) } != 0;
    if !refused {
        let sockets = (&raw const SOCKETS).cast_mut().cast();
        // SAFETY: the map is a sockhash with keys of eight bytes.
        refused = unsafe { bpf_sock_hash_update(ops, sockets, (&raw mut cookie).cast(), u64::from(BPF_ANY)) } != 0;
    }
    if refused {
        closed(cookie);
    }
}

/// A receive on a socket is over: one that blocks by now is to be let go before the next.
#[inline(always)]
pub fn received(sk: u64, header: &Header) {
    let Some(out) = outbound(header.connection) else { return };
    // SAFETY: a live element of a map; a race with the socket's holder costs one more record.
    let out = unsafe { &mut *out };
    if out.enrolling != 0 || never_blocks(sk) {
        return;
    }
    out.enrolling = LEAVING;
    out.phase = phase::DEAD;
    count(Fate::Blocking);
    emit::bare(Header {
        kind: kind::BLOCKS,
        direction: 0,
        flags: 0,
        length: 0,
        time_ns: emit::now(),
        ..*header
    });
}

/// A followed socket writes for the first time, the injector has seen what: whether it stays.
#[inline(always)]
fn writes(ops: *mut bpf_sock_ops) {
    // SAFETY: the program's own context.
    let cookie = unsafe { bpf_get_socket_cookie(ops.cast()) };
    let mut stays = false;
    let mut kept = false;
    if let Some(out) = outbound(cookie) {
        // SAFETY: a live element of a map; the socket is locked.
        let out = unsafe { &mut *out };
        if out.phase == phase::START {
            return;
        }
        stays = matches!(
            out.phase,
            phase::PREFACE | phase::HEAD | phase::SKIP | phase::FRAGMENT | phase::HTTP1 | phase::BODY1
        ) && never_blocks(address(ops));
        if !stays {
            out.phase = phase::DEAD;
            // What was put in must be known as long as the socket lives.
            kept = out.injected != 0;
        }
    }
    let flags = member!(ops, bpf_sock_ops_cb_flags) & !BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG;
    // SAFETY: the program's own context. If it is refused this comes again.
    unsafe { bpf_sock_ops_cb_flags_set(ops, flags as i32) };
    if stays {
        return;
    }
    let sockets = (&raw const SOCKETS).cast_mut().cast();
    // SAFETY: the map is a sockhash with keys of eight bytes.
    unsafe { bpf_map_delete_elem(sockets, (&raw const cookie).cast()) };
    if !kept {
        closed(cookie);
    }
}
