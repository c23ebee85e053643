//! Where the agent's memory is, as the system counts it.

use std::fs;

/// `BPF_MAP_TYPE_RINGBUF` (`linux/bpf.h`).
const RING_BUFFER: &str = "27";

/// Resident memory, bytes.
pub(super) fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Memory of the kernel's maps that this process holds, bytes: ring buffers, and all others.
pub(super) fn kernel() -> (u64, u64) {
    let (mut rings, mut others) = (0, 0);
    let Ok(files) = fs::read_dir("/proc/self/fdinfo") else {
        return (0, 0);
    };
    let mut seen = Vec::new();
    for file in files.flatten() {
        let Ok(text) = fs::read_to_string(file.path()) else {
            continue;
        };
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let (Some(kind), Some(bytes)) = (
            field("map_type:"),
            field("memlock:").and_then(|b| b.parse::<u64>().ok()),
        ) else {
            continue;
        };
        // Several descriptors may hold one map.
        let id = field("map_id:").unwrap_or_default().to_owned();
        if seen.contains(&id) {
            continue;
        }
        seen.push(id);
        if kind == RING_BUFFER {
            rings += bytes;
        } else {
            others += bytes;
        }
    }
    (rings, others)
}
