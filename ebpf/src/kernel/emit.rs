//! Records that are not pieces of a stream: opens, ends, processes.

use tracewire_common::event::{Header, Plain};

use crate::kernel::maps;

/// A record with a small payload, built on the stack.
#[repr(C)]
struct Small<T: Plain> {
    header: Header,
    payload: T,
}

/// The time of a record: CLOCK_BOOTTIME, ns.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { aya_ebpf::helpers::generated::bpf_ktime_get_boot_ns() }
}

/// Sends a record with a payload.
#[inline(always)]
pub fn small<T: Plain>(mut header: Header, payload: T) -> bool {
    header.length = size_of::<T>() as u32;
    let record = Small { header, payload };
    // SAFETY: `record` is that many initialised bytes: both parts are `Plain` and the header's size is a multiple of 8.
    unsafe { maps::output((&raw const record).cast(), size_of::<Small<T>>() as u64) }
}

/// Sends a record without a payload.
#[inline(always)]
pub fn bare(mut header: Header) -> bool {
    header.length = 0;
    // SAFETY: `header` is that many initialised bytes.
    unsafe { maps::output((&raw const header).cast(), size_of::<Header>() as u64) }
}
