//! CPython's contexts (PEP 567): which one a thread runs in, and which was made
//! from which. asyncio runs every step of a task in the task's own context.
//!
//! Bias: a new context inherits nothing unless it is a copy, and a context is named
//! by its address and its birth: addresses come again.

use aya_ebpf::helpers::generated::bpf_get_current_pid_tgid;
use aya_ebpf::macros::{map, uprobe, uretprobe};
use aya_ebpf::maps::LruHashMap;
use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use tracewire_common::link::{StreamKey, Unit, unit};

use super::{cookie, indexed, register, watched};
use crate::kernel::memory::user;
use crate::kernel::{context, emit};

/// `PyContext.ctx_prev`, CPython 3.7 to 3.13.
const PREVIOUS: u64 = 16;
/// `PyContext.ctx_entered` of the same versions.
const ENTERED: u64 = 40;

/// Members of an object behind its head: those of a task's step, wake-up or bound method.
const MEMBERS: u64 = 16;

/// The context that a thread runs in.
#[map]
static PY_CURRENT: LruHashMap<u32, u64> = LruHashMap::with_max_entries(16384, 0);

/// Where a context comes from, and what runs in it.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Origin {
    /// When it was made, ns.
    pub born: u64,
    /// The context that it is a copy of; 0: of none.
    pub of: u64,
    /// When that one was made.
    pub of_born: u64,
    /// Two members of the first thing that ran in it: of a step or wake-up of a task, one of them is the task.
    pub first: [u64; 2],
    /// grpcio's own task for a served call runs in it, which starts the handler's.
    pub schedules: StreamKey,
}

/// By context.
#[map]
static PY_ORIGINS: LruHashMap<Unit, Origin> = LruHashMap::with_max_entries(32768, 0);

/// Where a context comes from, if it was made before the agent's eyes.
#[inline(always)]
pub fn origin(context: &Unit) -> Option<&'static mut Origin> {
    let at = PY_ORIGINS.get_ptr_mut(context)?;
    // SAFETY: a live element of a map; Python's threads run one at a time, and each member is a word or copied whole.
    Some(unsafe { &mut *at })
}

/// The context that this one is a copy of, if it still is that one.
#[inline(always)]
pub fn copied_from(origin: &Origin, pid: u32) -> Option<(Unit, &'static mut Origin)> {
    let from = named(origin.of, pid);
    let of = self::origin(&from)?;
    (origin.of != 0 && of.born == origin.of_born).then_some((from, of))
}

#[inline(always)]
fn born(child: &Unit, parent: Option<&Unit>) {
    let (of, of_born) = match parent {
        Some(parent) => (parent.id, origin(parent).map_or(0, |origin| origin.born)),
        None => (0, 0),
    };
    let origin = Origin {
        born: emit::now(),
        of,
        of_born,
        first: [0; 2],
        schedules: StreamKey::NONE,
    };
    let _ = PY_ORIGINS.insert(child, origin, 0);
}

/// The context that a thread runs in, if it is in one.
#[inline(always)]
pub fn current(tid: u32, pid: u32) -> Option<Unit> {
    // SAFETY: the value is an integer that only this thread's programs write.
    unsafe { PY_CURRENT.get(tid) }.map(|context| named(*context, pid))
}

/// A context by its address.
#[inline(always)]
pub fn named(context: u64, pid: u32) -> Unit {
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

/// `_PyContext_Enter(thread state, context)` or `PyContext_Enter(context)`; the cookie is the number of the
/// register that holds the context.
#[uprobe]
pub fn py_context_enter(ctx: ProbeContext) -> u32 {
    if watched().is_some() {
        let context = indexed(&ctx, cookie(&ctx));
        // One that is entered already is refused.
        if user::<u32>(context.wrapping_add(ENTERED)) == Some(0) {
            let _ = PY_CURRENT.insert(tid(), context, 0);
        }
    }
    0
}

/// `_PyContext_Exit(thread state, context)` or `PyContext_Exit(context)`, likewise: the one before it is current again.
#[uprobe]
pub fn py_context_exit(ctx: ProbeContext) -> u32 {
    if watched().is_some() {
        let context = indexed(&ctx, cookie(&ctx));
        match user::<u64>(context.wrapping_add(PREVIOUS)) {
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
        let parent = current(tid(), pid);
        born(&child, parent.as_ref());
        match parent {
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
        let child = named(register!(ctx, rax), pid);
        born(&child, None);
        context::leave(&child);
    }
    0
}

/// `Context.run(self, arguments, …)`: the first of the arguments is what runs in the context.
#[uprobe]
pub fn py_context_run(ctx: ProbeContext) -> u32 {
    if let Some(pid) = watched() {
        let _ = run(&ctx, pid);
    }
    0
}

#[inline(always)]
fn run(ctx: &ProbeContext, pid: u32) -> Option<()> {
    let origin = origin(&named(register!(ctx, rdi), pid))?;
    if origin.first == [0; 2] {
        origin.first = user::<[u64; 2]>(user::<u64>(register!(ctx, rsi))?.wrapping_add(MEMBERS))?;
    }
    Some(())
}
