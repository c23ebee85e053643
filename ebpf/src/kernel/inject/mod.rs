//! Contexts that go out: which sockets are followed (`enrol`), what is put
//! into their messages (`message`), and what the rest must know of it.
//!
//! Bias: nothing is written that is not certain to arrive whole.

/// A member of a program's own context. Volatile: no two loads become one that the verifier
/// refuses, and helpers move what some members point to.
macro_rules! member {
    ($context:expr, $($member:tt)+) => {{
        // SAFETY: the program's own context.
        let at = unsafe { &raw const (*$context).$($member)+ };
        // SAFETY: as above.
        unsafe { core::ptr::read_volatile(at) }
    }};
}

pub mod enrol;
mod head;
pub mod message;
pub mod read;

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, SockHash};
use tracewire_common::inject::{self, Fate};
use tracewire_common::link::StreamKey;
use tracewire_common::trace::Context;
use tracewire_ebpf::outbound::Outbound;

/// Sockets whose messages pass the injector, by cookie. The injector itself must not name
/// it: the map holds the program, and neither would ever be freed.
#[map]
static SOCKETS: SockHash<u64> = SockHash::with_max_entries(16384, 0);

/// What is remembered of them. A socket's own lock keeps writers apart.
#[map]
static OUTBOUND: HashMap<u64, Outbound> = HashMap::with_max_entries(16384, BPF_F_NO_PREALLOC);

/// Contexts of the requests that processes serve.
#[map]
static SERVED: LruHashMap<StreamKey, Context> = LruHashMap::with_max_entries(32768, 0);

/// Whose sockets are followed: one of [`inject::followed`], and nobody's until a trial went well.
/// Then whether only what goes to DESTINATIONS is.
#[map]
static FOLLOWED: Array<u32> = Array::with_max_entries(2, 0);

/// To whom contexts are written.
#[map]
static DESTINATIONS: LpmTrie<[u8; inject::DESTINATION], u32> = LpmTrie::with_max_entries(4096, 0);

/// Requests by [`Fate`].
#[map]
static INJECTIONS: PerCpuArray<u64> = PerCpuArray::with_max_entries(inject::COUNT, 0);

/// Copied into the map from here: it is too large for the stack.
static EMPTY: Outbound = Outbound::EMPTY;

/// An element of FOLLOWED.
#[inline(always)]
fn followed(index: u32) -> u32 {
    FOLLOWED.get(index).map_or(0, |value| {
        // SAFETY: a live element of an array map that the agent writes whole.
        unsafe { core::ptr::read_volatile(value) }
    })
}

#[inline(always)]
fn outbound(cookie: u64) -> Option<*mut Outbound> {
    OUTBOUND.get_ptr_mut(cookie)
}

#[inline(always)]
fn add_outbound(cookie: u64) -> Option<*mut Outbound> {
    // By reference: a copy of it would not fit the stack.
    let empty: &Outbound = &EMPTY;
    OUTBOUND.insert(cookie, empty, 0).ok()?;
    OUTBOUND.get_ptr_mut(cookie)
}

/// Bytes that were put into what a socket sent, modulo 2³²: its sequence numbers are ahead
/// of the application by so many.
#[inline(always)]
pub fn injected(cookie: u64) -> u32 {
    match OUTBOUND.get_ptr(cookie) {
        // SAFETY: a live element of a map; the member is written whole.
        Some(out) => unsafe { (*out).injected },
        None => 0,
    }
}

/// A socket is gone.
#[inline(always)]
pub fn closed(cookie: u64) {
    let _ = OUTBOUND.remove(cookie);
}

/// The context of a request that a process serves, if it was read.
#[inline(always)]
pub fn served(request: &StreamKey) -> Option<*const Context> {
    SERVED.get_ptr(request)
}

#[inline(always)]
fn count(fate: Fate) {
    if let Some(slot) = INJECTIONS.get_ptr_mut(fate as u32) {
        // SAFETY: a live element of a per-CPU map.
        unsafe { *slot += 1 };
    }
}
