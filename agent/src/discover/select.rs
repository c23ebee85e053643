//! Which processes are observed: by executable, listening port or service
//! name, or a process the user named. Says exactly why a named process can't
//! be observed; chooses nothing when nothing was asked for.

use std::fs;
use std::io;
use std::path::Path;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use super::scan::{Stat, executable, processes, read_lossy};

/// What is known of a process when it is up for choice.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Its executable's whole path.
    pub executable: &'a Path,
    /// Its `service.name`.
    pub service: &'a str,
    /// Ports it listens on.
    pub ports: &'a [u16],
}

/// What the user wants observed: a process that fits *any* of these.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    executables: GlobSet,
    ports: Vec<u16>,
    services: GlobSet,
}

impl Selector {
    /// Reads the patterns. A pattern for executables without a slash is held
    /// against the file name, else against the whole path; `*` stops at a
    /// slash, `**` does not.
    ///
    /// # Errors
    /// A pattern that is no glob, named in the message.
    pub fn new(executables: &[String], ports: &[u16], services: &[String]) -> Result<Self, globset::Error> {
        let mut programs = GlobSetBuilder::new();
        for pattern in executables {
            let pattern = if pattern.contains('/') {
                pattern.clone()
            } else {
                format!("**/{pattern}")
            };
            programs.add(GlobBuilder::new(&pattern).literal_separator(true).build()?);
        }
        let mut names = GlobSetBuilder::new();
        for pattern in services {
            names.add(GlobBuilder::new(pattern).build()?);
        }
        Ok(Selector {
            executables: programs.build()?,
            ports: ports.to_vec(),
            services: names.build()?,
        })
    }

    /// Whether it asks for nothing.
    pub fn is_empty(&self) -> bool {
        self.executables.is_empty() && self.ports.is_empty() && self.services.is_empty()
    }

    /// Whether programs matter.
    pub fn wants_executables(&self) -> bool {
        !self.executables.is_empty()
    }

    /// Whether listening ports matter, which cost most to find.
    pub fn wants_ports(&self) -> bool {
        !self.ports.is_empty()
    }

    /// Whether service names matter, for which a process's resource must be read.
    pub fn wants_services(&self) -> bool {
        !self.services.is_empty()
    }

    /// Ports asked for.
    pub fn ports(&self) -> &[u16] {
        &self.ports
    }

    /// Whether the process is one of those asked for.
    pub fn chooses(&self, facts: &Facts<'_>) -> bool {
        self.executables.is_match(facts.executable)
            || self.services.is_match(facts.service)
            || facts.ports.iter().any(|port| self.ports.contains(port))
    }
}

/// Why a process that the user named can't be observed.
#[derive(Debug, thiserror::Error)]
pub enum PidError {
    /// No such process.
    #[error("there is no process {0}")]
    Missing(u32),
    /// It has ended and waits for its parent to notice.
    #[error("process {pid} ({name}) has ended already")]
    Ended {
        /// As given.
        pid: u32,
        /// Its name.
        name: String,
    },
    /// A thread of the kernel's.
    #[error("{pid} ({name}) is a kernel thread: it makes no requests")]
    Kernel {
        /// As given.
        pid: u32,
        /// Its name.
        name: String,
    },
    /// A thread: its process was meant.
    #[error("{pid} is a thread of process {process} ({name}): name that one")]
    Thread {
        /// As given.
        pid: u32,
        /// The process.
        process: u32,
        /// The process's name.
        name: String,
    },
    /// The agent.
    #[error("{0} is tracewire itself")]
    Agent(u32),
    /// The agent may not look at it.
    #[error(
        "process {pid} ({name}) can't be looked at: {source} (CAP_SYS_PTRACE is needed for other users' processes)"
    )]
    Denied {
        /// As given.
        pid: u32,
        /// Its name.
        name: String,
        /// What the system said.
        source: io::Error,
    },
}

/// Whether a process can be observed, `proc` being the root of procfs.
///
/// # Errors
/// Why it can't.
pub fn check_pid(proc: &Path, pid: u32) -> Result<(), PidError> {
    if pid == std::process::id() {
        return Err(PidError::Agent(pid));
    }
    let home = proc.join(pid.to_string());
    let Ok(stat) = Stat::read(proc, pid) else {
        return Err(PidError::Missing(pid));
    };
    let name = stat.comm;
    let process = read_lossy(&home.join("status")).ok().as_deref().and_then(tgid);
    if let Some(process) = process
        && process != pid
    {
        let name = fs::read_to_string(proc.join(process.to_string()).join("comm"))
            .map_or(name, |name| name.trim_end().to_owned());
        return Err(PidError::Thread { pid, process, name });
    }
    if stat.kernel {
        return Err(PidError::Kernel { pid, name });
    }
    if stat.state == 'Z' || stat.state == 'X' {
        return Err(PidError::Ended { pid, name });
    }
    match executable(proc, pid) {
        Err(source) if source.kind() == io::ErrorKind::PermissionDenied => Err(PidError::Denied { pid, name, source }),
        Err(source) if source.kind() == io::ErrorKind::NotFound && !home.exists() => Err(PidError::Missing(pid)),
        _ => Ok(()),
    }
}

fn tgid(status: &str) -> Option<u32> {
    status
        .lines()
        .find_map(|line| line.strip_prefix("Tgid:"))?
        .trim()
        .parse()
        .ok()
}

/// The processes and their children at present; children to come are followed by the kernel side.
pub fn with_descendants(proc: &Path, pids: &[u32]) -> Vec<u32> {
    let all: Vec<(u32, u32)> = processes(proc)
        .unwrap_or_default()
        .into_iter()
        .filter_map(|pid| Some((pid, Stat::read(proc, pid).ok()?.parent)))
        .collect();
    let mut chosen = pids.to_vec();
    let mut at = 0;
    while let Some(parent) = chosen.get(at).copied() {
        for (pid, of) in &all {
            if *of == parent && !chosen.contains(pid) && *pid != std::process::id() {
                chosen.push(*pid);
            }
        }
        at += 1;
    }
    chosen
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn list(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn any_reason_is_enough() {
        let selector = Selector::new(
            &list(&["greeter*", "/opt/*/bin/app", "/srv/**"]),
            &[8080, 50051],
            &list(&["shop-*"]),
        )
        .unwrap();
        for (executable, service, ports, chosen) in [
            ("/usr/bin/greeter", "x", &[][..], true),
            ("/usr/bin/greeter-go", "x", &[], true),
            ("/usr/bin/my-greeter", "x", &[], false),
            ("/greeter/other", "x", &[], false),
            ("/opt/a/bin/app", "x", &[], true),
            ("/opt/a/b/bin/app", "x", &[], false),
            ("/srv/a/b/c", "x", &[], true),
            ("/usr/bin/x", "shop-cart", &[], true),
            ("/usr/bin/x", "workshop-cart", &[], false),
            ("/usr/bin/x", "x", &[9000, 50051], true),
            ("/usr/bin/x", "x", &[9000], false),
        ] {
            let facts = Facts {
                executable: Path::new(executable),
                service,
                ports,
            };
            assert_eq!(selector.chooses(&facts), chosen, "{executable} {service} {ports:?}");
        }
        let nothing = Selector::default();
        assert!(nothing.is_empty());
        assert!(!nothing.chooses(&Facts {
            executable: Path::new("/x"),
            service: "x",
            ports: &[1]
        }));
        assert!(
            Selector::new(&list(&["a[b"]), &[], &[])
                .unwrap_err()
                .to_string()
                .contains("a[b")
        );
    }

    fn stat(proc: &Path, pid: u32, comm: &str, state: char, flags: u64) {
        let home = proc.join(pid.to_string());
        fs::create_dir_all(&home).unwrap();
        fs::write(
            home.join("stat"),
            format!("{pid} ({comm}) {state} 1 1 1 0 -1 {flags} 0 0 0 0 0 0 0 0 20 0 1 0 5 0 0"),
        )
        .unwrap();
        fs::write(home.join("comm"), format!("{comm}\n")).unwrap();
        fs::write(home.join("status"), format!("Name:\t{comm}\nTgid:\t{pid}\n")).unwrap();
    }

    #[test]
    fn what_is_wrong_with_a_process_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let proc = directory.path();
        stat(proc, 10, "greeter", 'S', 0);
        stat(proc, 11, "kworker/0:1", 'I', 0x0020_8060);
        stat(proc, 12, "gone", 'Z', 0);
        stat(proc, 13, "worker", 'S', 0);
        fs::write(proc.join("13/status"), "Name:\tworker\nTgid:\t10\n").unwrap();
        for (pid, message) in [
            (9, "there is no process 9"),
            (10, ""),
            (11, "11 (kworker/0:1) is a kernel thread: it makes no requests"),
            (12, "process 12 (gone) has ended already"),
            (13, "13 is a thread of process 10 (greeter): name that one"),
        ] {
            let said = check_pid(proc, pid).map_or_else(|error| error.to_string(), |()| String::new());
            assert_eq!(said, message);
        }
        let own = std::process::id();
        assert_eq!(
            check_pid(proc, own).unwrap_err().to_string(),
            format!("{own} is tracewire itself")
        );
    }
}
