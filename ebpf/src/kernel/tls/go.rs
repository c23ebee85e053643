//! Calls of Go's crypto/tls. A goroutine is the unit: it may go on on another
//! thread. Its last connection is what its socket calls belong to, since
//! crypto/tls reads and writes the socket itself.
//!
//! `(*Conn).Write` takes all or breaks the connection, so its entry tells
//! enough. `(*Conn).Read` is taken where it copies its bytes; the depth of the
//! stack tells whose copying it is if one connection lies in another.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::pt_regs;
use tracewire_common::tls;

use super::call::{self, observed};
use super::state::{self, Thread};
use crate::kernel::maps;
use crate::kernel::memory::user;

/// `g.stack.hi`: `stack` is the first member, `hi` its second.
const STACK_HI: u64 = 8;

/// The goroutine's thread, in a call on `object` from here on.
#[inline(always)]
fn enter(id: u64, regs: &pt_regs, way: u32) -> Option<*mut Thread> {
    let pid = (id >> 32) as u32;
    if !maps::marked(pid, tls::GO) {
        maps::mark(pid, tls::GO);
    }
    let at = state::thread(&state::goroutine_unit(id, regs.r14), true)?;
    // SAFETY: a live element of a map that only this goroutine's programs write.
    let thread = unsafe { &mut *at };
    if thread.object != regs.rax {
        thread.object = regs.rax;
        thread.buffer = 0;
    }
    thread.call = way;
    Some(at)
}

/// How deep a stack pointer is: a stack that grows is moved, and this stays.
#[inline(always)]
fn depth(g: u64, stack: u64) -> u64 {
    user::<u64>(g.wrapping_add(STACK_HI)).unwrap_or(0).wrapping_sub(stack)
}

/// `func (c *Conn) Read(b []byte) (int, error)` begins.
#[inline(always)]
pub fn read(regs: *const pt_regs) {
    let Some(id) = observed() else { return };
    // SAFETY: the context of a probe.
    let regs = unsafe { &*regs };
    let Some(thread) = enter(id, regs, state::call::READ) else {
        return;
    };
    // SAFETY: as in `enter`.
    let thread = unsafe { &mut *thread };
    thread.buffer = regs.rbx;
    thread.stack = depth(regs.r14, regs.rsp);
}

/// The same copies, `runtime.memmove(to AX, from BX, n CX)`, in its frame.
#[inline(always)]
pub fn copying<C: EbpfContext>(ctx: &C, regs: *const pt_regs) {
    // SAFETY: the context of a probe.
    let r = unsafe { &*regs };
    // BP holds the frame: the caller's BP lies there, the return address above it.
    copied(ctx, r, r.rbp.wrapping_add(8), r.rbx, r.rcx);
}

/// The same has copied AX bytes, in its frame.
#[inline(always)]
pub fn taken<C: EbpfContext>(ctx: &C, regs: *const pt_regs) {
    // SAFETY: the context of a probe.
    let r = unsafe { &*regs };
    copied(ctx, r, r.rbp.wrapping_add(8), 0, r.rax);
}

/// The same returns AX bytes.
#[inline(always)]
pub fn returns<C: EbpfContext>(ctx: &C, regs: *const pt_regs) {
    // SAFETY: the context of a probe.
    let r = unsafe { &*regs };
    copied(ctx, r, r.rsp, 0, r.rax);
}

/// `n` bytes came out of the goroutine's connection, at `from` or in the buffer it was given.
#[inline(always)]
fn copied<C: EbpfContext>(ctx: &C, regs: &pt_regs, stack: u64, from: u64, n: u64) {
    let Some(id) = observed() else { return };
    let Some(thread) = state::thread(&state::goroutine_unit(id, regs.r14), false) else {
        return;
    };
    // SAFETY: as in `enter`.
    let thread = unsafe { &mut *thread };
    if thread.buffer == 0 || depth(regs.r14, stack) != thread.stack {
        return;
    }
    let (object, buffer) = (thread.object, thread.buffer);
    thread.buffer = 0;
    if n == 0 || n > i32::MAX as u64 {
        return;
    }
    let buffer = if from == 0 { buffer } else { from };
    call::moved(ctx, id, thread, object, buffer, n as u32, true);
}

/// `func (c *Conn) Write(b []byte) (int, error)` begins.
#[inline(always)]
pub fn write<C: EbpfContext>(ctx: &C, regs: *const pt_regs) {
    let Some(id) = observed() else { return };
    // SAFETY: the context of a probe.
    let regs = unsafe { &*regs };
    let Some(thread) = enter(id, regs, state::call::WRITE) else {
        return;
    };
    // SAFETY: as in `enter`.
    let thread = unsafe { &mut *thread };
    if regs.rcx == 0 || regs.rcx > i32::MAX as u64 {
        return;
    }
    call::moved(ctx, id, thread, regs.rax, regs.rbx, regs.rcx as u32, false);
}

/// `func (c *Conn) clientHandshake(ctx context.Context) error` begins, or `serverHandshake`.
#[inline(always)]
pub fn handshake(regs: *const pt_regs) {
    let Some(id) = observed() else { return };
    // SAFETY: the context of a probe.
    let regs = unsafe { &*regs };
    enter(id, regs, state::call::HANDSHAKE);
    let key = state::SessionKey {
        object: regs.rax,
        pid: (id >> 32) as u32,
        reserved: 0,
    };
    state::session(&key, state::session::FRESH);
}
