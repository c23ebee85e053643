//! Go's `context.Context`: what a program itself hands on with a call says on
//! whose behalf the call is made. A served request is found in the chain of a
//! context by what only it has there: grpc-go's stream, which is a value in it,
//! or `net/http`'s own cancelable context.
//!
//! Bias: the chain is believed before the goroutine. A goroutine that a request
//! began may live on beside it and work for others, so where the chain leads to
//! no request, only the goroutine that serves one is believed.

use aya_ebpf::macros::map;
use aya_ebpf::maps::LruHashMap;
use tracewire_common::link::go::layout as at;
use tracewire_common::link::{StreamKey, Unit};

use crate::kernel::context;
use crate::kernel::memory::user;
use crate::kernel::probe::Pointer;

/// Contexts of a chain that are looked at.
const CHAIN: u32 = 32;

/// Served requests by what only they have in their context.
#[map]
static GO_HELD: LruHashMap<Pointer, StreamKey> = LruHashMap::with_max_entries(16384, 0);

/// Types, by process: that of `net/http`'s contexts (an itab), and that of grpc-go's streams; 0: not known yet.
#[map]
static GO_HELD_TYPES: LruHashMap<u32, [u64; 2]> = LruHashMap::with_max_entries(4096, 0);

/// `address` stands in the context of `request` alone.
#[inline(always)]
pub fn holds(pid: u32, address: u64, request: &StreamKey) {
    let _ = GO_HELD.insert(pointer(pid, address), request, 0);
}

/// The context of an `*http.Request`, an interface: its itab and what it points to.
#[inline(always)]
pub fn of(layout: &[u32], request: u64) -> Option<[u64; 2]> {
    let offset = layout[at::REQUEST_CONTEXT];
    if offset == 0 {
        return None;
    }
    user::<[u64; 2]>(request.wrapping_add(u64::from(offset)))
}

/// An `*http.Request` is about to be served: its context is its own.
#[inline(always)]
pub fn begins(pid: u32, layout: &[u32], request: u64, served: &StreamKey) {
    let Some([itab, context]) = of(layout, request) else {
        return;
    };
    holds(pid, context, served);
    let [known, stream] = types(pid);
    if known != itab {
        let _ = GO_HELD_TYPES.insert(pid, [itab, stream], 0);
    }
}

/// On whose behalf a goroutine makes a request with this context. `generations` of goroutines
/// are the client's own. [`StreamKey::DOUBT`]: it is not certain.
#[inline(always)]
pub fn parent(unit: &Unit, called: Option<[u64; 2]>, generations: u64) -> Option<StreamKey> {
    if let Some([itab, context]) = called
        && let Some(request) = find(unit.pid, itab, context)
    {
        return Some(request);
    }
    let active = context::standing(unit)?;
    Some(if active.generation <= generations {
        active.request
    } else {
        StreamKey::DOUBT
    })
}

/// The served request that the chain of a context leads to.
#[inline(always)]
fn find(pid: u32, itab: u64, context: u64) -> Option<StreamKey> {
    // runtime.itab begins with the interface's type: that of all contexts.
    let interface = user::<u64>(itab)?;
    let [of_http, mut of_stream] = types(pid);
    let (mut itab, mut context) = (itab, context);
    let mut i = 0;
    while i < CHAIN {
        if itab == of_http
            && let Some(request) = held(pid, context)
        {
            return Some(request);
        }
        // Each kind of context begins with the one that it was made from; a valueCtx has key and value behind it.
        let [above, next, _, _, kind, value] = user::<[u64; 6]>(context)
            .or_else(|| user::<[u64; 2]>(context).map(|[above, next]| [above, next, 0, 0, 0, 0]))?;
        if value != 0
            && (of_stream == 0 || kind == of_stream)
            && let Some(request) = held(pid, value)
        {
            if of_stream == 0 {
                of_stream = kind;
                let _ = GO_HELD_TYPES.insert(pid, [of_http, of_stream], 0);
            }
            return Some(request);
        }
        if above != itab && user::<u64>(above) != Some(interface) {
            return None;
        }
        (itab, context) = (above, next);
        i += 1;
    }
    None
}

#[inline(always)]
fn held(pid: u32, address: u64) -> Option<StreamKey> {
    // SAFETY: plain, and written whole.
    unsafe { GO_HELD.get(pointer(pid, address)) }.copied()
}

#[inline(always)]
fn types(pid: u32) -> [u64; 2] {
    // SAFETY: two integers; a torn pair names no type that the other has.
    unsafe { GO_HELD_TYPES.get(pid) }.copied().unwrap_or([0; 2])
}

#[inline(always)]
fn pointer(pid: u32, address: u64) -> Pointer {
    Pointer { address, pid, more: 0 }
}
