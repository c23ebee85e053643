//! The head decision where the kernel makes it: by the process that a trace
//! begins in. What depends on more (a route, a method, a caller's address) is
//! the agent's to decide; until it has, nothing is written.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, LruHashMap};
use tracewire_common::link::StreamKey;
use tracewire_common::sampling::{Rule, Threshold};
use tracewire_common::trace::Context;

/// [`Rule`]s by process, written by the agent; that of 0 holds for all that have none.
#[map]
static HEADS: HashMap<u32, u64> = HashMap::with_max_entries(65536, BPF_F_NO_PREALLOC);

/// Contexts of served requests that the agent decided over.
#[map]
static DECIDED: LruHashMap<StreamKey, Context> = LruHashMap::with_max_entries(32768, 0);

/// How traces are chosen that begin in a process.
#[inline(always)]
pub fn rule(pid: u32) -> Rule {
    let found = match HEADS.get_ptr(pid) {
        Some(rule) => Some(rule),
        None => HEADS.get_ptr(0u32),
    };
    match found {
        // SAFETY: an integer that only the agent writes, whole.
        Some(rule) => Rule::of(unsafe { *rule }),
        None => Rule::new(Threshold::NEVER, true, true),
    }
}

/// The context of a served request that the agent decided over, if it has.
#[inline(always)]
pub fn decided(request: &StreamKey) -> Option<*const Context> {
    DECIDED.get_ptr(request)
}
