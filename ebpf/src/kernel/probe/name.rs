//! What the process itself calls a request: for connections that are older
//! than the agent, whose header tables can't be known.

use aya_ebpf::helpers::generated::{bpf_get_current_pid_tgid, bpf_probe_read_user};
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use tracewire_common::event::{Header, kind};
use tracewire_common::link::{NAME_LIMIT, Name, StreamKey};

use crate::kernel::memory::opaque;
use crate::kernel::{emit, maps};

#[repr(C)]
struct Record {
    header: Header,
    name: Name,
}

/// Where a record is built; uprobes of one CPU do not nest.
#[map]
static NAMES: PerCpuArray<Record> = PerCpuArray::with_max_entries(1, 0);

/// Tells the path of a request: `length` bytes at a user address. One that is too long is not told.
#[inline(always)]
pub fn tell(request: &StreamKey, address: u64, length: u64) {
    if length == 0 || length > NAME_LIMIT as u64 {
        return;
    }
    let Some(record) = NAMES.get_ptr_mut(0) else { return };
    // SAFETY: a live element of a per-CPU map that only uprobes use.
    let record = unsafe { &mut *record };
    // SAFETY: a helper without arguments.
    let id = unsafe { bpf_get_current_pid_tgid() };
    record.header = Header {
        kind: kind::NAME,
        direction: request.direction as u8,
        flags: 0,
        length: size_of::<Name>() as u32,
        time_ns: emit::now(),
        connection: request.connection,
        pid: (id >> 32) as u32,
        tid: id as u32,
    };
    record.name.request = *request;
    record.name.length = length as u32;
    record.name.reserved = 0;
    let size = opaque(length);
    if size > NAME_LIMIT as u64 {
        return;
    }
    let to = (&raw mut record.name.path).cast();
    // SAFETY: `size` is at most the array's; a bad user address is an error, not a fault.
    if unsafe { bpf_probe_read_user(to, size as u32, address as *const _) } != 0 {
        return;
    }
    // SAFETY: the record is that many initialised bytes: per-CPU maps begin as zeros.
    unsafe { maps::output((&raw const *record).cast(), size_of::<Record>() as u64) };
}
