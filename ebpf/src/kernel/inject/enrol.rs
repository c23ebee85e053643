//! Which sockets are followed: those on which a watched process connects, from
//! before their first byte. The process is known when it calls `connect`; the
//! socket can be put into the sockhash when it is established, which may be
//! told in anybody's context.

use aya_ebpf::bindings::{BPF_ANY, bpf_sock_ops};
use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_get_socket_cookie, bpf_sock_hash_update};
use tracewire_common::settings::watch;

use super::{SOCKETS, add_outbound, closed, outbound};
use crate::kernel::maps::{self, offset};
use crate::kernel::memory::kernel;

/// In the caller's context, before the SYN is sent.
const TCP_CONNECT: u32 = 3;
const ACTIVE_ESTABLISHED: u32 = 4;

/// Something happened to a socket.
#[inline(always)]
pub fn event(ops: *mut bpf_sock_ops) {
    match member!(ops, op) {
        TCP_CONNECT => connects(ops),
        ACTIVE_ESTABLISHED => established(ops),
        _ => {}
    }
}

#[inline(always)]
fn connects(ops: *mut bpf_sock_ops) {
    // SAFETY: a helper without arguments.
    let task = unsafe { bpf_get_current_task() };
    let Some(pid) = kernel::<u32>(task.wrapping_add(offset!(task_tgid) as u64)) else {
        return;
    };
    match maps::watched(pid) {
        Some(watch::WATCHED | watch::PENDING) => {}
        _ => return,
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
    if out.enrolling == 0 {
        return;
    }
    out.enrolling = 0;
    out.next = member!(ops, snd_nxt);
    let sockets = (&raw const SOCKETS).cast_mut().cast();
    // SAFETY: the map is a sockhash with keys of eight bytes.
    let refused = unsafe { bpf_sock_hash_update(ops, sockets, (&raw mut cookie).cast(), u64::from(BPF_ANY)) } != 0;
    if refused {
        closed(cookie);
    }
}
