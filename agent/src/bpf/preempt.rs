//! Whether this kernel may skip a program. A tracing program that is preempted
//! is skipped for whoever runs on that CPU meanwhile. TCP's byte counters show
//! that, and a second program does what the first was skipped for; a Unix socket
//! has none, so there a skipped call could make wrong spans. Bias: no spans of
//! Unix sockets rather than wrong ones.

use super::load::{Rung, version};

/// From this version on tracepoints call their programs preemptibly (seen on 7.3, not on 6.18).
const PREEMPTIBLE_TRACEPOINTS: (u32, u32) = (6, 19);

/// Whether a second program has to stand behind each of a rung's, for the calls for which the first is skipped.
pub fn twice(rung: Rung) -> bool {
    rung == Rung::SocketTracepoints && version() >= PREEMPTIBLE_TRACEPOINTS
}

/// Why Unix sockets are not followed here. None: they are.
pub fn unix_sockets_are_unsure(rung: Rung) -> Option<String> {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let unsure = unsure(
        rung,
        version(),
        &text("/proc/sys/kernel/version"),
        &text("/sys/kernel/debug/sched/preempt"),
    );
    unsure.then(|| "this kernel may skip a program that is preempted, which a Unix socket does not show".to_owned())
}

/// `built` is the kernel's build line, `mode` its choice of preemption (`none (voluntary) full`), if it can be read.
fn unsure(rung: Rung, version: (u32, u32), built: &str, mode: &str) -> bool {
    let preempts = match mode.split(['(', ')']).nth(1) {
        Some(chosen) => matches!(chosen, "full" | "lazy"),
        // Without debugfs: what the kernel was built for, unless it chooses when it starts.
        None => built.split([' ', '_']).any(|word| word == "PREEMPT") && !built.contains("PREEMPT_DYNAMIC"),
    };
    match rung {
        Rung::SocketTracepoints => version >= PREEMPTIBLE_TRACEPOINTS,
        Rung::Trampolines => preempts,
        // Raw tracepoints share the tracepoints' way.
        Rung::SystemCalls => version >= PREEMPTIBLE_TRACEPOINTS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unix_sockets_are_left_out_where_a_skipped_call_could_make_them_wrong() {
        let debian = "#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2";
        let modes = ["none (voluntary) full", "none voluntary (full)", "full (lazy)", ""];
        let unsure_at = |rung, version| modes.map(|mode| unsure(rung, version, debian, mode));
        assert_eq!(unsure_at(Rung::Trampolines, (6, 1)), [false, true, true, false]);
        assert_eq!(unsure_at(Rung::SocketTracepoints, (6, 18)), [false; 4]);
        assert_eq!(unsure_at(Rung::SocketTracepoints, (7, 3)), [true; 4]);
        assert_eq!(unsure_at(Rung::SystemCalls, (7, 3)), [true; 4]);
        assert!(unsure(Rung::Trampolines, (6, 1), "#1 SMP PREEMPT Wed", ""));
        assert!(unsure(Rung::Trampolines, (6, 1), "#1 SMP PREEMPT_RT Wed", ""));
        assert!(!unsure(Rung::Trampolines, (6, 1), "#1 SMP Wed", ""));
    }
}
