//! Contexts that come in: a pass over each record of what a process receives,
//! before it leaves the kernel. It costs nothing where nothing is injected.

use aya_ebpf::macros::map;
use aya_ebpf::maps::LruHashMap;
use tracewire_common::link::StreamKey;
use tracewire_common::trace::{Context, SAMPLED, mint};
use tracewire_ebpf::block::{Piece, sign, state};
use tracewire_ebpf::inbound::{Inbound, Turn};

use super::{SERVED, head};
use crate::kernel::maps::{self, RECORD, Scratch, setting};
use crate::kernel::memory::opaque;

/// Directions that requests come in on, by connection.
#[map]
static INBOUND: LruHashMap<u64, Inbound> = LruHashMap::with_max_entries(8192, 0);

static EMPTY: Inbound = Inbound::EMPTY;

/// Steps of one function, and calls of it: as many steps as a record may take.
const TURNS: u32 = 128;

struct Record(*const Scratch);

impl Piece for Record {
    #[inline(always)]
    fn byte(&self, at: u32) -> u8 {
        let at = opaque(u64::from(at)) & (RECORD as u64 - 1);
        // SAFETY: a live element of a per-CPU map.
        let data = unsafe { &raw const (*self.0).data };
        // SAFETY: `at` is below RECORD, the data is larger.
        let byte = unsafe { data.cast::<u8>().add(at as usize) };
        // SAFETY: as above.
        unsafe { *byte }
    }
}

/// The call that a scratch is for was observed: reads what requests its record has. A call of
/// several records is read no further: only the latest one is still here.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn contexts(slot: u32) -> u32 {
    let Some(scratch) = maps::scratch(slot) else { return 0 };
    // SAFETY: a live element of a per-CPU map that only this program uses on this CPU.
    let parts = unsafe { &mut *scratch };
    if parts.cursor.records == 0 {
        return 0;
    }
    let connection = parts.header.connection;
    let known = INBOUND.get_ptr(connection).unwrap_or(&raw const EMPTY);
    // SAFETY: a live element of a map, which only this direction's calls write, or the static.
    unsafe { core::ptr::copy_nonoverlapping(known, &raw mut parts.inbound, 1) };
    if parts.cursor.gap != 0 || parts.cursor.records != 1 || parts.cursor.told == 0 {
        parts.inbound.lose();
    }
    if parts.cursor.records == 1 {
        parts.inbound.begin(parts.cursor.told);
        let mut i = 0;
        while i < TURNS {
            if read_many(slot) == 0 {
                break;
            }
            i += 1;
        }
    }
    // By reference: a copy of it would not fit the stack.
    let inbound: &Inbound = &parts.inbound;
    let _ = INBOUND.insert(connection, inbound, 0);
    1
}

/// Many steps. 0: the record is over.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn read_many(slot: u32) -> u32 {
    let mut i = 0;
    while i < TURNS {
        match read_step(slot) {
            0 => return 0,
            2 => {
                store(slot);
            }
            _ => {}
        }
        i += 1;
    }
    1
}

/// One step. 0: the record is over; 2: a request was read.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn read_step(slot: u32) -> u32 {
    let Some(scratch) = maps::scratch(slot) else { return 0 };
    // SAFETY: a live element of a per-CPU map that only this program uses on this CPU.
    let inbound = unsafe { &mut (*scratch).inbound };
    match inbound.step(&Record(scratch)) {
        Turn::Done => 0,
        Turn::More => 1,
        Turn::Request => 2,
    }
}

/// Remembers the request that was read.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn store(slot: u32) -> u32 {
    let Some(scratch) = maps::scratch(slot) else { return 0 };
    // SAFETY: a live element of a per-CPU map that only this program uses on this CPU.
    let parts = unsafe { &mut *scratch };
    let inbound = &parts.inbound;
    let request = StreamKey::served(parts.header.connection, inbound.stream);
    let key = [maps::key(0), maps::key(1)];
    let minted = mint(key, request.connection, request.stream, request.direction);
    let rule = head::rule(parts.header.pid);
    let mut context = Context {
        trace_id: minted.trace_id,
        span_id: minted.span_id,
        parent: [0; 8],
        flags: u8::from(rule.keeps(&minted.trace_id)) * SAMPLED,
        unknown: 0,
        undecided: u8::from(rule.is_undecided()),
        reserved: [0; 5],
    };
    let mut found = &inbound.block.found[0];
    let unnamed = inbound.block.signs & sign::UNNAMED != 0;
    if found.state == state::ABSENT && !unnamed {
        found = &inbound.block.found[1];
    }
    if found.state == state::VALUE {
        context.trace_id = found.trace_id;
        context.parent = found.span_id;
        context.flags = found.flags;
        context.undecided = u8::from(rule.is_untrusted()) | found.open;
    } else if found.state == state::UNKNOWN || found.state == state::ABSENT && unnamed {
        context.unknown = 1;
    }
    let _ = SERVED.insert(request, context, 0);
    1
}

/// Whether contexts are read at all.
#[inline(always)]
pub fn wanted() -> bool {
    setting!(inject) != 0
}
