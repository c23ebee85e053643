//! Probes in the observed programs, one file a runtime: they tell
//! [`crate::kernel::context`] who executes on behalf of which request.
//!
//! A runtime is a file here with its `#[uprobe]` programs and its maps, and a
//! file in the agent's `bpf/probe/` that finds their places in a binary and
//! fills the [`layout`]. A probe stands in a file, so it is hit by every
//! process that runs it: each program begins with [`watched`].
#![allow(dead_code, unused_macros, unused_imports, reason = "each runtime uses a part of it")]

pub mod asyncio;
pub mod cpython;
pub mod go;
pub mod grpc_core;
pub mod name;
pub mod node;
pub mod tokio;

use aya_ebpf::helpers::generated::{bpf_get_attach_cookie, bpf_get_current_pid_tgid};
use aya_ebpf::macros::map;
use aya_ebpf::maps::HashMap;
use aya_ebpf::programs::ProbeContext;
use tracewire_common::link::StreamKey;
use tracewire_common::link::runtime::{self, LAYOUT};
use tracewire_common::settings::watch;

use crate::kernel::memory::opaque;
use crate::kernel::socket::{self, registers};
use crate::kernel::{context, maps, threads};

/// What a runtime's module of the agent knows of a process: by tgid, and in the upper half the runtime.
#[map]
static LAYOUTS: HashMap<u64, [u32; LAYOUT]> = HashMap::with_max_entries(8192, aya_ebpf::bindings::BPF_F_NO_PREALLOC);

/// An address in a process, as a key.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Pointer {
    /// The address, or what else the runtime names things by.
    pub address: u64,
    /// Process (tgid).
    pub pid: u32,
    /// What tells several of one address apart, else 0.
    pub more: u32,
}

/// The tgid of the current process, if it is observed.
#[inline(always)]
pub fn watched() -> Option<u32> {
    // SAFETY: a helper without arguments.
    let pid = (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32;
    maps::watched(pid).filter(|how| *how != watch::IGNORED).map(|_| pid)
}

/// Offsets and the like of a runtime in the current process, as the agent's module laid them out.
#[inline(always)]
pub fn layout(pid: u32, runtime: u32) -> Option<&'static [u32; LAYOUT]> {
    let key = u64::from(runtime) << 32 | u64::from(pid);
    // SAFETY: written whole by the agent before the process is marked with the runtime, and not changed.
    unsafe { LAYOUTS.get(key) }
}

/// Registers of the probed instruction, by their names in the x86-64 psABI.
macro_rules! register {
    ($context:expr, $name:ident) => {{
        let regs = $context.regs;
        // SAFETY: the context of a uprobe is the registers of the probed instruction, live for the program's run.
        unsafe { core::ptr::read_volatile(&raw const (*regs).$name) }
    }};
}
pub(crate) use register;

/// The served request on whose behalf `connection/stream` is made, whose header fields the
/// current thread is writing: the runtime may know the writer before it knows the socket.
#[inline(always)]
pub fn parent_of_written(connection: u64, stream: u32, http1: bool) -> Option<StreamKey> {
    if let Some(parent) = context::parent(connection, stream) {
        return Some(parent);
    }
    // SAFETY: a helper without arguments.
    let id = unsafe { bpf_get_current_pid_tgid() };
    let pid = (id >> 32) as u32;
    if maps::runs(pid, runtime::GO) {
        return if http1 {
            go::writing_http1(pid, registers())
        } else {
            go::writing(pid, stream, registers())
        };
    }
    if !http1 && maps::runs(pid, runtime::TOKIO) {
        return tokio::writing(pid, stream);
    }
    if !http1 {
        return None;
    }
    if maps::runs(pid, runtime::NODE) {
        return node::writing(connection);
    }
    socket::may_serve_by_thread(pid)
        .then(|| threads::serves(id))
        .flatten()
        .and_then(|(request, certain)| certain.then_some(request))
}

/// What the agent gave the probe.
#[inline(always)]
pub fn cookie(ctx: &ProbeContext) -> u64 {
    // SAFETY: the context is the program's own.
    unsafe { bpf_get_attach_cookie(ctx.regs.cast()) }
}

/// A register by its number in instructions. All are read: a choice among places of the context is refused.
#[inline(always)]
pub fn indexed(ctx: &ProbeContext, number: u64) -> u64 {
    let all = [
        register!(ctx, rax),
        register!(ctx, rcx),
        register!(ctx, rdx),
        register!(ctx, rbx),
        0,
        register!(ctx, rbp),
        register!(ctx, rsi),
        register!(ctx, rdi),
        register!(ctx, r8),
        register!(ctx, r9),
        register!(ctx, r10),
        register!(ctx, r11),
        register!(ctx, r12),
        register!(ctx, r13),
        register!(ctx, r14),
        register!(ctx, r15),
    ];
    all[(opaque(number) & 15) as usize]
}
