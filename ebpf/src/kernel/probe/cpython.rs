//! CPython's contexts (PEP 567): which one a thread runs in, and which was made
//! from which. asyncio runs every step of a task in the task's own context.
//!
//! Bias: a new context inherits nothing unless it is a copy.

use aya_ebpf::helpers::generated::bpf_get_current_pid_tgid;
use aya_ebpf::macros::{map, uprobe, uretprobe};
use aya_ebpf::maps::LruHashMap;
use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use tracewire_common::link::{Unit, unit};

use super::{cookie, indexed, register, watched};
use crate::kernel::context;
use crate::kernel::memory::user;

/// `PyContext.ctx_prev`, CPython 3.7 to 3.13.
const PREVIOUS: u64 = 16;

/// The context that a thread runs in.
#[map]
static PY_CURRENT: LruHashMap<u32, u64> = LruHashMap::with_max_entries(16384, 0);

/// The context that a thread runs in, if it is in one.
#[inline(always)]
pub fn current(tid: u32, pid: u32) -> Option<Unit> {
    // SAFETY: the value is an integer that only this thread's programs write.
    unsafe { PY_CURRENT.get(tid) }.map(|context| named(*context, pid))
}

#[inline(always)]
fn named(context: u64, pid: u32) -> Unit {
    Unit {
        id: context,
        pid,
        kind: unit::PY_CONTEXT,
    }
}

#[inline(always)]
fn tid() -> u32 {
    // SAFETY: a helper without arguments.
    (unsafe { bpf_get_current_pid_tgid() }) as u32
}

/// `_PyContext_Enter(thread state, context)`.
#[uprobe]
pub fn py_context_enter(ctx: ProbeContext) -> u32 {
    if watched().is_some() {
        let _ = PY_CURRENT.insert(tid(), register!(ctx, rsi), 0);
    }
    0
}

/// `_PyContext_Exit(thread state, context)`: the one before it is current again.
#[uprobe]
pub fn py_context_exit(ctx: ProbeContext) -> u32 {
    if watched().is_some() {
        match user::<u64>(register!(ctx, rsi).wrapping_add(PREVIOUS)) {
            Some(previous) if previous != 0 => {
                let _ = PY_CURRENT.insert(tid(), previous, 0);
            }
            _ => {
                let _ = PY_CURRENT.remove(tid());
            }
        }
    }
    0
}

/// The thread's state was just given its current context, which a register holds.
#[uprobe]
pub fn py_context_set(ctx: ProbeContext) -> u32 {
    if watched().is_some() {
        match indexed(&ctx, cookie(&ctx)) {
            0 => {
                let _ = PY_CURRENT.remove(tid());
            }
            context => {
                let _ = PY_CURRENT.insert(tid(), context, 0);
            }
        }
    }
    0
}

/// The end of `PyContext_CopyCurrent()`.
#[uretprobe]
pub fn py_context_copied(ctx: RetProbeContext) -> u32 {
    if let Some(pid) = watched() {
        let child = named(register!(ctx, rax), pid);
        match current(tid(), pid) {
            Some(parent) => context::inherit(&child, &parent),
            None => context::leave(&child),
        }
    }
    0
}

/// The end of `context_new_empty()`.
#[uretprobe]
pub fn py_context_new(ctx: RetProbeContext) -> u32 {
    if let Some(pid) = watched() {
        context::leave(&named(register!(ctx, rax), pid));
    }
    0
}
