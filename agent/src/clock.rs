//! The two clocks: the kernel's records carry CLOCK_BOOTTIME, spans Unix time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// CLOCK_BOOTTIME, ns.
pub fn boot_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: one valid timespec on the stack.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// What must be added to CLOCK_BOOTTIME to get Unix time, ns.
pub fn boot_to_unix_ns() -> i64 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    unix.as_nanos() as i64 - boot_ns() as i64
}

/// Unix time, ns.
pub fn unix_ns() -> u64 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(unix.as_nanos()).unwrap_or(u64::MAX)
}
