//! Who executes on behalf of which request, and which request is made on
//! behalf of which. The runtimes' probes write it, injectors read it.
//!
//! Bias: what is not certain is not stored. A mechanism that is not certain
//! calls [`ambiguous`]. What inherits may live on beside the request and work for
//! others, so it is remembered how far a unit is from the one that serves it.
#![allow(dead_code, reason = "each runtime uses a part of it")]

use aya_ebpf::helpers::generated::bpf_get_current_pid_tgid;
use aya_ebpf::macros::map;
use aya_ebpf::maps::LruHashMap;
use tracewire_common::event::{Header, direction, kind};
use tracewire_common::link::{Link, StreamKey, Unit};

use crate::kernel::emit;

/// On whose behalf a unit executes.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Active {
    /// The served request.
    pub request: StreamKey,
    /// 0: the unit serves it itself; 1: it was begun by one that does; and so on.
    pub generation: u64,
}

/// The served request on whose behalf a unit executes.
#[map]
static ACTIVE: LruHashMap<Unit, Active> = LruHashMap::with_max_entries(32768, 0);

/// The served request on whose behalf a request is made, by the latter.
#[map]
static LINKS: LruHashMap<StreamKey, StreamKey> = LruHashMap::with_max_entries(32768, 0);

/// From here on `unit` serves `request`.
#[inline(always)]
pub fn serve(unit: &Unit, request: &StreamKey) {
    let active = Active {
        request: *request,
        generation: 0,
    };
    // A full table forgets what was not used for the longest time.
    let _ = ACTIVE.insert(unit, active, 0);
}

/// `child` begins, on behalf of what `parent` executes for: maybe of nothing.
#[inline(always)]
pub fn inherit(child: &Unit, parent: &Unit) {
    match standing(parent) {
        Some(active) => descend(child, &active),
        None => leave(child),
    }
}

/// `child` is begun by a unit that executes on behalf of this.
#[inline(always)]
pub fn descend(child: &Unit, parent: &Active) {
    let active = Active {
        request: parent.request,
        generation: parent.generation + 1,
    };
    let _ = ACTIVE.insert(child, active, 0);
}

/// `unit` executes on nobody's behalf from here on.
#[inline(always)]
pub fn leave(unit: &Unit) {
    // Absent is as good as removed.
    let _ = ACTIVE.remove(unit);
}

/// On whose behalf `unit` executes, and how that is known.
#[inline(always)]
pub fn standing(unit: &Unit) -> Option<Active> {
    // SAFETY: the value is plain; a torn read would need the unit to change hands during this call, which it makes itself.
    unsafe { ACTIVE.get(unit) }.copied()
}

/// The served request on whose behalf `unit` executes.
#[inline(always)]
pub fn of(unit: &Unit) -> Option<StreamKey> {
    standing(unit).map(|active| active.request)
}

/// `connection/stream` is made on behalf of `parent`, which may be [`StreamKey::DOUBT`].
#[inline(always)]
pub fn join(connection: u64, stream: u32, parent: &StreamKey, mechanism: u32) {
    if parent.is_some() {
        calls(connection, stream, parent, mechanism);
    } else if *parent == StreamKey::DOUBT {
        ambiguous(connection, stream, mechanism);
    }
}

/// The request that is made as `connection/stream` is made on behalf of the served `request`.
#[inline(always)]
pub fn calls(connection: u64, stream: u32, request: &StreamKey, mechanism: u32) {
    let child = StreamKey::made(connection, stream);
    let _ = LINKS.insert(child, request, 0);
    tell(child, *request, mechanism);
}

/// Several served requests could be the one on whose behalf `connection/stream` is made.
#[inline(always)]
pub fn ambiguous(connection: u64, stream: u32, mechanism: u32) {
    tell(StreamKey::made(connection, stream), StreamKey::NONE, mechanism);
}

/// The served request on whose behalf `connection/stream` is made, if it is known by now.
#[inline(always)]
pub fn parent(connection: u64, stream: u32) -> Option<StreamKey> {
    // SAFETY: the value is plain and written once.
    unsafe { LINKS.get(StreamKey::made(connection, stream)) }.copied()
}

#[inline(always)]
fn tell(child: StreamKey, parent: StreamKey, mechanism: u32) {
    // SAFETY: a helper without arguments.
    let id = unsafe { bpf_get_current_pid_tgid() };
    let header = Header {
        kind: kind::LINK,
        direction: direction::SEND,
        time_ns: emit::now(),
        connection: child.connection,
        pid: (id >> 32) as u32,
        tid: id as u32,
        ..Header::EMPTY
    };
    emit::small(
        header,
        Link {
            child,
            parent,
            mechanism,
            reserved: 0,
        },
    );
}
