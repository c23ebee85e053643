//! What this kernel, these privileges and this lockdown allow. Bias: what can
//! be tried is tried, and what is concluded from a version says so.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use aya::maps::MapType;
use aya::sys::is_map_supported;
use serde::Serialize;

use super::OBJECT;
use super::btf::{self, Btf};
use super::inject::Injection;
use super::load::{Error, Kernel, Request, Rung, chain, version};
use super::privileges::{Privileges, memlock, memlock_counts};

/// Oldest kernel on which it was seen to work.
const OLDEST: (u32, u32) = (5, 10);
/// Where the kernel says how far it is locked down (kernel_lockdown(7)).
const LOCKDOWN: &str = "/sys/kernel/security/lockdown";

/// How an item stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is there.
    Ok,
    /// It is missing, and nothing can be traced.
    Fatal,
    /// It is missing, and something is lost.
    Reduced,
    /// It is missing, and nothing here asks for it.
    Unneeded,
    /// It can't be told.
    Unknown,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Item {
    /// What it is.
    pub name: &'static str,
    /// How it stands.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What its lack costs; empty if it is there.
    pub without: String,
    /// What to do about it; empty if there is nothing to do.
    pub remedy: String,
}

impl Item {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Item::lacking(name, State::Ok, found, "", "")
    }

    fn lacking(name: &'static str, state: State, found: impl Into<String>, without: &str, remedy: &str) -> Self {
        Item {
            name,
            state,
            found: found.into(),
            without: without.to_owned(),
            remedy: remedy.to_owned(),
        }
    }
}

/// All that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Of the agent.
    pub version: &'static str,
    /// Release of the kernel.
    pub kernel: String,
    /// Whether anything can be traced.
    pub works: bool,
    /// The way of seeing socket data that `attach` and `run` would choose.
    pub rung: Option<&'static str>,
    /// In the order in which one asks for them.
    pub items: Vec<Item>,
}

/// Looks at everything; loads and attaches every hook for a moment, without observing any process.
pub fn report() -> Report {
    let privileges = Privileges::read();
    let mut items = vec![
        programs(),
        kernel(),
        types(),
        lockdown(&fs::read_to_string(LOCKDOWN).ok()),
    ];
    items.extend(capabilities(&privileges, version()));
    items.push(locked_memory(&privileges));
    items.push(process_ids(&privileges));
    items.push(procfs(Path::new("/proc")));
    let stopped = items.iter().any(|item| item.state == State::Fatal);
    let chosen = if stopped {
        None
    } else {
        items.push(ring_buffer());
        let (hooks, chosen) = hooks();
        items.extend(hooks);
        items.extend(chosen.map(injection));
        chosen
    };
    let works = chosen.is_some() && items.iter().all(|item| item.state != State::Fatal);
    Report {
        version: env!("CARGO_PKG_VERSION"),
        kernel: release(),
        works,
        rung: chosen.filter(|_| works).map(Rung::name),
        items,
    }
}

/// Finds before anything is loaded what would stop it.
///
/// # Errors
/// One message: what is wrong and what to do, one line each.
pub fn preflight() -> Result<(), String> {
    let mut wrong: Vec<String> = Privileges::read()
        .wanting()
        .iter()
        .map(|(what, remedy)| format!("{what}: {remedy}"))
        .collect();
    for item in [
        programs(),
        kernel(),
        types(),
        lockdown(&fs::read_to_string(LOCKDOWN).ok()),
    ] {
        if item.state == State::Fatal {
            wrong.push(format!("{}: {}; {}", item.name, item.found, item.remedy));
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    wrong.push("`tracewire check` lists all".to_owned());
    Err(wrong.join("\n  "))
}

fn release() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    text.trim().to_owned()
}

fn programs() -> Item {
    if OBJECT.is_empty() {
        let remedy = "build it with `cargo xtask build`";
        let found = "this tracewire was built without its kernel programs";
        return Item::lacking("programs", State::Fatal, found, "nothing can be traced", remedy);
    }
    Item::ok("programs", format!("inside, {} KiB", OBJECT.len() / 1024))
}

fn kernel() -> Item {
    let found = format!("{} {}", release(), std::env::consts::ARCH);
    if version() < OLDEST {
        let remedy = "needs Linux 5.10 or newer";
        return Item::lacking("kernel", State::Fatal, found, "nothing can be traced", remedy);
    }
    Item::ok("kernel", found)
}

fn types() -> Item {
    let lacking = |error: btf::Error| {
        let remedy = "needs a kernel built with CONFIG_DEBUG_INFO_BTF=y, and /sys mounted";
        Item::lacking("BTF", State::Fatal, error.to_string(), "nothing can be traced", remedy)
    };
    match Btf::kernel().and_then(|types| types.offsets()) {
        Ok(_) => Item::ok("BTF", format!("{}, with every member that is asked for", btf::VMLINUX)),
        Err(error) => lacking(error),
    }
}

/// `content`: what the kernel's file says, if it is there.
fn lockdown(content: &Option<String>) -> Item {
    let name = "lockdown";
    let Some(content) = content else {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        if mounts.lines().any(|line| line.split(' ').nth(2) == Some("securityfs")) {
            return Item::ok(name, "none: not part of this kernel");
        }
        let remedy = "to see it: mount -t securityfs none /sys/kernel/security";
        return Item::lacking(name, State::Unknown, "not known: securityfs is not mounted", "", remedy);
    };
    let mode = content.split(['[', ']']).nth(1).unwrap_or("none");
    if mode == "confidentiality" {
        let without = "the kernel lets no program read memory: nothing can be traced";
        let remedy = "boot with lockdown=integrity or without lockdown";
        return Item::lacking(name, State::Fatal, mode, without, remedy);
    }
    Item::ok(
        name,
        if mode == "integrity" {
            "integrity: costs nothing here, since nothing is written to processes"
        } else {
            mode
        },
    )
}

fn capabilities(has: &Privileges, version: (u32, u32)) -> Vec<Item> {
    let item = |name, here: bool, state, without: &str, remedy: &str| {
        if here {
            Item::ok(name, "here")
        } else {
            Item::lacking(name, state, "missing", without, remedy)
        }
    };
    let resource = if memlock_counts(version) {
        State::Reduced
    } else {
        State::Unneeded
    };
    let mut items = vec![
        item(
            "CAP_BPF",
            has.bpf,
            State::Fatal,
            "no program is loaded: nothing can be traced",
            "run it with sudo, or add the capability",
        ),
        item(
            "CAP_PERFMON",
            has.perfmon,
            State::Fatal,
            "no program may read memory: nothing can be traced",
            "run it with sudo, or add the capability",
        ),
        item(
            "CAP_SYS_PTRACE",
            has.sys_ptrace,
            State::Reduced,
            "other users' processes can't be looked at: see /proc below",
            "add the capability",
        ),
        item(
            "CAP_SYS_ADMIN",
            has.sys_admin,
            State::Unneeded,
            "no uprobes on kernels since July 2025 (CVE-2025-38466); no hook here is one",
            "",
        ),
        item(
            "CAP_NET_ADMIN",
            has.net_admin,
            State::Unneeded,
            "no hooks that change packets; no hook here is one",
            "",
        ),
        item(
            "CAP_SYS_RESOURCE",
            has.sys_resource,
            resource,
            "the limit of locked memory can't be lifted; asked for only before 5.11",
            if resource == State::Reduced {
                "add the capability, or LimitMEMLOCK=infinity"
            } else {
                ""
            },
        ),
    ];
    if has.user_namespace {
        let remedy = "run it as the host's root: outside of rootless containers, hostUsers: true in Kubernetes";
        let found = "not the first: these capabilities mean nothing to BPF";
        items.push(Item::lacking(
            "user namespace",
            State::Fatal,
            found,
            "nothing can be traced",
            remedy,
        ));
    }
    items
}

fn locked_memory(has: &Privileges) -> Item {
    let name = "memlock";
    if !memlock_counts(version()) {
        return Item::ok(name, "not limited for BPF since 5.11");
    }
    match memlock() {
        Some(limit) if !has.sys_resource => Item::lacking(
            name,
            State::Reduced,
            format!("{} KiB", limit / 1024),
            "maps may not fit: see the hooks below",
            "ulimit -l unlimited, LimitMEMLOCK=infinity, or a smaller --ring-buffer",
        ),
        Some(_) => Item::ok(name, "limited, and lifted at the start"),
        None => Item::ok(name, "unlimited"),
    }
}

fn process_ids(has: &Privileges) -> Item {
    let name = "PID namespace";
    if has.pid_namespace {
        let without = "the kernel's process ids are others: nothing is found";
        let remedy = "docker run --pid=host, hostPID: true in Kubernetes";
        return Item::lacking(name, State::Fatal, "a container's own", without, remedy);
    }
    Item::ok(name, "the host's")
}

fn ring_buffer() -> Item {
    let name = "ring buffer";
    let without = "no records reach the agent: nothing can be traced";
    match is_map_supported(MapType::RingBuf) {
        Ok(true) => Item::ok(name, "made for a moment"),
        Ok(false) => Item::lacking(name, State::Fatal, "refused", without, "needs Linux 5.8 or newer"),
        Err(error) => Item::lacking(name, State::Unknown, chain(&error), "", ""),
    }
}

/// What a hook costs and gives, for people who choose.
fn remarks(rung: Rung) -> (&'static str, &'static str) {
    match rung {
        Rung::SocketTracepoints => (
            "the cheapest hook is not used",
            "needs Linux 6.3 or newer, and CAP_BPF and CAP_PERFMON",
        ),
        Rung::Trampolines => (
            "no cheap hook where the kernel has no socket tracepoints",
            "needs CONFIG_FUNCTION_TRACER and CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS",
        ),
        Rung::SystemCalls => (
            "no last resort where neither of the others works",
            "needs CONFIG_FTRACE_SYSCALLS, and CAP_BPF and CAP_PERFMON",
        ),
    }
}

/// Loads and attaches each hook for a moment.
fn hooks() -> (Vec<Item>, Option<Rung>) {
    let mut items = Vec::new();
    let mut chosen = None;
    let mut process: Result<(), String> = Err("no hook could be tried".to_owned());
    for rung in Rung::ALL {
        let request = Request {
            rung: Some(rung),
            ring_bytes: 64 * 1024,
            connections: 64,
            ..Request::default()
        };
        let refused = match Kernel::load(request) {
            Ok(kernel) => {
                process = Ok(());
                chosen = chosen.or(Some(rung));
                let mut found = "loaded and attached for a moment".to_owned();
                let unix = kernel.missing.iter().find(|(what, _)| *what == "Unix sockets");
                match unix {
                    None => found.push_str("; TCP and Unix sockets"),
                    Some((_, reason)) => found.push_str(&format!("; TCP, no Unix sockets ({reason})")),
                }
                for (what, reason) in kernel.missing.iter().filter(|(what, _)| *what != "Unix sockets") {
                    found.push_str(&format!("; not: {what} ({reason})"));
                }
                if rung == Rung::SystemCalls {
                    found.push_str("; every system call of every process pays for it");
                }
                items.push(Item::ok(rung.name(), found));
                continue;
            }
            Err(Error::NoRung(reason)) => {
                // What comes before the hook worked.
                process = Ok(());
                let prefix = format!("{}: ", rung.name());
                reason.strip_prefix(&prefix).unwrap_or(&reason).to_owned()
            }
            Err(error) => {
                process = Err(error.to_string());
                error.to_string()
            }
        };
        let (without, remedy) = remarks(rung);
        items.push(Item::lacking(rung.name(), State::Reduced, refused, without, remedy));
    }
    for item in &mut items {
        let better = chosen.is_some_and(|chosen| item.name != chosen.name());
        let worse = chosen.is_some_and(|c| Rung::ALL.iter().any(|r| r.name() == item.name && *r < c));
        if item.state == State::Reduced && better && !worse {
            item.state = State::Unneeded;
            item.without = "a better hook works".to_owned();
            item.remedy.clear();
        } else if item.state == State::Reduced && chosen.is_none() {
            item.state = State::Fatal;
        }
    }
    let name = "process events";
    let events = match process {
        Ok(()) => Item::ok(name, "fork, exec, exit and listen attached for a moment"),
        Err(reason) => Item::lacking(
            name,
            State::Fatal,
            reason,
            "nothing can be traced",
            "needs BTF, CAP_BPF and CAP_PERFMON; see above",
        ),
    };
    items.insert(0, events);
    (items, chosen)
}

/// Attaches the injectors for a moment, without anybody whose sockets they could follow.
fn injection(rung: Rung) -> Item {
    let name = "--inject";
    let request = Request {
        rung: Some(rung),
        ring_bytes: 64 * 1024,
        connections: 64,
        inject: true,
        ..Request::default()
    };
    let reason = match Kernel::load(request).map(|kernel| kernel.injection) {
        Ok(Some(Ok(Injection { counts: true }))) => {
            return Item::ok(name, "tried on loopback; sockets that do not block");
        }
        Ok(Some(Ok(Injection { counts: false }))) => {
            return Item::lacking(
                name,
                State::Reduced,
                "tried on loopback; sockets that do not block",
                "programs that may ask how many bytes a socket holds, like Java, get no context: \
                 this kernel answers that wrongly for sockets that are followed (Linux 929e30f93125)",
                "a kernel with Linux 04af4efde58a",
            );
        }
        Ok(Some(Err(reason))) => reason,
        Ok(None) => "not tried".to_owned(),
        Err(error) => error.to_string(),
    };
    let without = "no context is written to requests";
    let remedy = "leave it if services on other machines need not continue the trace";
    Item::lacking(name, State::Reduced, reason, without, remedy)
}

/// `proc`: root of procfs.
fn procfs(proc: &Path) -> Item {
    let name = "/proc";
    if !proc.join("1").is_dir() {
        let without = "processes of other users are not found, so `run` can't choose them";
        let remedy = "mount it without hidepid, or run it as root";
        return Item::lacking(name, State::Reduced, "process 1 is hidden", without, remedy);
    }
    let (mut seen, mut closed) = (0, 0);
    let processes = fs::read_dir(proc)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    for process in processes {
        // Kernel threads have no executable.
        match fs::read_link(process.join("exe")) {
            Ok(_) => seen += 1,
            Err(error) if error.kind() == ErrorKind::PermissionDenied => closed += 1,
            Err(_) => {}
        }
    }
    if closed == 0 {
        return Item::ok(name, format!("all {seen} processes can be read"));
    }
    Item::lacking(
        name,
        State::Reduced,
        format!("{closed} of {} processes can't be read", seen + closed),
        "their service.name is poorer, and `run` can't choose them by executable or service",
        "run it as root, or with CAP_SYS_PTRACE; leave it if they are not to be traced",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_confidentiality_stops_everything() {
        let state = |text: &str| lockdown(&Some(text.to_owned())).state;
        assert_eq!(state("[none] integrity confidentiality\n"), State::Ok);
        assert_eq!(state("none [integrity] confidentiality\n"), State::Ok);
        assert_eq!(state("none integrity [confidentiality]\n"), State::Fatal);
    }

    #[test]
    fn a_missing_capability_says_what_it_costs() {
        let nobody = Privileges::default();
        for item in capabilities(&nobody, (6, 1)) {
            assert!(!item.without.is_empty(), "{}", item.name);
        }
        let state = |version| {
            capabilities(&nobody, version)
                .into_iter()
                .find(|item| item.name == "CAP_SYS_RESOURCE")
                .map(|item| item.state)
        };
        assert_eq!(state((5, 10)), Some(State::Reduced));
        assert_eq!(state((5, 11)), Some(State::Unneeded));
    }
}
