//! What this process may do: capabilities (capabilities(7)), namespaces,
//! limits. Bias: only what the kernel itself asks for is asked for here.

use std::fs;

use caps::{CapSet, Capability};

/// Inode of the first PID namespace: `PROC_PID_INIT_INO` of the kernel.
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Privileges of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Privileges {
    /// CAP_SYS_ADMIN.
    pub sys_admin: bool,
    /// CAP_BPF, which CAP_SYS_ADMIN implies.
    pub bpf: bool,
    /// CAP_PERFMON, which CAP_SYS_ADMIN implies.
    pub perfmon: bool,
    /// CAP_SYS_PTRACE.
    pub sys_ptrace: bool,
    /// CAP_NET_ADMIN.
    pub net_admin: bool,
    /// CAP_SYS_RESOURCE.
    pub sys_resource: bool,
    /// Capabilities count in the namespace of this container only, not in the kernel.
    pub user_namespace: bool,
    /// Process ids differ from those that the kernel programs see.
    pub pid_namespace: bool,
}

impl Privileges {
    /// Reads this process's.
    pub fn read() -> Self {
        // What can't be read is taken as missing.
        let has = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
        let sys_admin = has(Capability::CAP_SYS_ADMIN);
        Privileges {
            sys_admin,
            bpf: sys_admin || has(Capability::CAP_BPF),
            perfmon: sys_admin || has(Capability::CAP_PERFMON),
            sys_ptrace: has(Capability::CAP_SYS_PTRACE),
            net_admin: has(Capability::CAP_NET_ADMIN),
            sys_resource: has(Capability::CAP_SYS_RESOURCE),
            user_namespace: fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !is_identity(&map)),
            pid_namespace: fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link.as_os_str() != FIRST_PID_NAMESPACE),
        }
    }

    /// What must change before the kernel takes any program: what is missing, and the remedy.
    pub fn wanting(&self) -> Vec<(&'static str, &'static str)> {
        let mut wanting = Vec::new();
        match (self.bpf, self.perfmon) {
            (true, true) => {}
            (false, false) => wanting.push((
                "needs root, or CAP_BPF and CAP_PERFMON",
                "run it with sudo, or as a service with AmbientCapabilities=CAP_BPF CAP_PERFMON CAP_SYS_PTRACE",
            )),
            (true, false) => wanting.push(("needs CAP_PERFMON beside CAP_BPF", "add it, or run it with sudo")),
            (false, true) => wanting.push(("needs CAP_BPF beside CAP_PERFMON", "add it, or run it with sudo")),
        }
        if self.user_namespace {
            wanting.push((
                "runs in a user namespace, where capabilities mean nothing to BPF",
                "run it as the host's root: outside of rootless containers, with hostUsers: true in Kubernetes",
            ));
        }
        if self.pid_namespace {
            wanting.push((
                "runs in a PID namespace of its own, where process ids differ from the kernel's",
                "run it in the host's: docker run --pid=host, hostPID: true in Kubernetes",
            ));
        }
        wanting
    }
}

/// Whether `/proc/PID/uid_map` maps every id to itself (user_namespaces(7)).
fn is_identity(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Whether locked memory is limited for BPF maps: before 5.11, see bpf(2) and setrlimit(2).
pub fn memlock_counts((major, minor): (u32, u32)) -> bool {
    (major, minor) < (5, 11)
}

/// Soft limit of locked memory, bytes; None: unlimited or not known.
pub fn memlock() -> Option<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: one valid structure on the stack.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    (result == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

/// Lifts the limit of locked memory, as far as this process may.
pub fn lift_memlock() {
    let limit = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: one valid structure on the stack. If it is refused, loading says what it lacks.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Privileges = Privileges {
        sys_admin: false,
        bpf: true,
        perfmon: true,
        sys_ptrace: false,
        net_admin: false,
        sys_resource: false,
        user_namespace: false,
        pid_namespace: false,
    };

    #[test]
    fn two_capabilities_suffice() {
        assert_eq!(ALL.wanting(), []);
    }

    #[test]
    fn what_is_missing_is_named() {
        let nobody = Privileges::default().wanting();
        assert!(
            nobody
                .iter()
                .any(|(what, remedy)| what.contains("CAP_BPF and CAP_PERFMON") && remedy.contains("sudo"))
        );
        let contained = Privileges {
            pid_namespace: true,
            ..ALL
        };
        assert!(
            contained
                .wanting()
                .iter()
                .any(|(_, remedy)| remedy.contains("hostPID: true"))
        );
    }

    #[test]
    fn a_mapped_namespace_is_told_from_the_first() {
        assert!(is_identity("         0          0 4294967295\n"));
        assert!(!is_identity("         0       1000          1\n"));
    }
}
