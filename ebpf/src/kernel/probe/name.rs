//! What the process itself calls a request: for connections that are older
//! than the agent, whose header tables can't be known.
//!
//! Probes in programs may be preempted, so a name is written where it is sent, in the
//! ring buffer: nothing here belongs to a CPU.

use aya_ebpf::helpers::generated::{bpf_get_current_pid_tgid, bpf_probe_read_user};
use tracewire_common::event::{Header, kind};
use tracewire_common::link::{NAME_LIMIT, Name, StreamKey};

use crate::kernel::memory::opaque;
use crate::kernel::{emit, maps};

#[repr(C)]
struct Record {
    header: Header,
    name: Name,
}

/// Bytes of a record, and words.
const SIZE: u64 = size_of::<Record>() as u64;
const WORDS: usize = size_of::<Record>() / 8;
const _: () = assert!(size_of::<Record>().is_multiple_of(8));

/// Tells the path of a request: `length` bytes at a user address. One that is too long is not told.
#[inline(always)]
pub fn tell(request: &StreamKey, address: u64, length: u64) {
    if length == 0 || length > NAME_LIMIT as u64 {
        return;
    }
    let Some(reserved) = maps::reserve(SIZE) else { return };
    let words: *mut u64 = reserved.as_ptr().cast();
    let mut n = 0;
    // What an earlier record left there is nobody's business.
    while n < WORDS {
        // SAFETY: the record is that many words, aligned to eight bytes, and this program's own until it is sent.
        let word = unsafe { words.add(n) };
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(word, 0) };
        n += 1;
    }
    // SAFETY: as above; all of it is initialised, and its members are integers.
    let record = unsafe { &mut *words.cast::<Record>() };
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
    let to = (&raw mut record.name.path).cast();
    // SAFETY: `size` is at most the array's; a bad user address is an error, not a fault.
    if size > NAME_LIMIT as u64 || unsafe { bpf_probe_read_user(to, size as u32, address as *const _) } != 0 {
        maps::discard(reserved);
        return;
    }
    maps::submit(reserved, SIZE);
}
