//! Reads what `/proc` says of processes: plain values, one file a call.
//! A process may be gone between two reads; then there is nothing, never half
//! of something. The root of procfs is a parameter, so that a container's
//! view (`/host/proc`) and tests can be read too.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustc_hash::{FxHashMap, FxHashSet};

/// Where procfs is.
pub const PROC: &str = "/proc";

/// PF_KTHREAD of `task_struct.flags` (include/linux/sched.h).
const KERNEL_THREAD: u64 = 0x0020_0000;

/// Socket state TCP_LISTEN in `/proc/net/tcp` (include/net/tcp_states.h).
const LISTEN: &str = "0A";

/// Fields of `/proc/PID/stat` (proc_pid_stat(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Name, at most 15 bytes (`comm`).
    pub comm: String,
    /// State, `Z` for a zombie.
    pub state: char,
    /// Parent.
    pub parent: u32,
    /// Whether it is a kernel thread.
    pub kernel: bool,
    /// Start, in clock ticks since boot.
    pub start: u64,
}

impl Stat {
    /// Reads a process's.
    pub fn read(proc: &Path, pid: u32) -> io::Result<Stat> {
        let text = read_lossy(&proc.join(pid.to_string()).join("stat"))?;
        Stat::parse(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "stat"))
    }

    fn parse(text: &str) -> Option<Stat> {
        // The name may hold spaces and parentheses: it ends at the last one.
        let (head, rest) = text.rsplit_once(')')?;
        let (_, comm) = head.split_once('(')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3).copied();
        Some(Stat {
            comm: comm.to_owned(),
            state: field(3)?.chars().next()?,
            parent: field(4)?.parse().ok()?,
            kernel: field(9)?.parse::<u64>().ok()? & KERNEL_THREAD != 0,
            start: field(22)?.parse().ok()?,
        })
    }
}

/// All processes, kernel threads left out, in ascending order.
pub fn processes(proc: &Path) -> io::Result<Vec<u32>> {
    let mut pids: Vec<u32> = fs::read_dir(proc)?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| Stat::read(proc, *pid).is_ok_and(|stat| !stat.kernel && stat.state != 'Z'))
        .collect();
    pids.sort_unstable();
    Ok(pids)
}

/// A process's executable, without the ` (deleted)` that an upgrade leaves.
pub fn executable(proc: &Path, pid: u32) -> io::Result<PathBuf> {
    let path = fs::read_link(proc.join(pid.to_string()).join("exe"))?;
    Ok(match path.to_str().and_then(|text| text.strip_suffix(" (deleted)")) {
        Some(path) => PathBuf::from(path),
        None => path,
    })
}

/// A file's text, bytes that are none replaced.
pub fn read_lossy(path: &Path) -> io::Result<String> {
    Ok(match String::from_utf8(fs::read(path)?) {
        Ok(text) => text,
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    })
}

/// Listening TCP ports, by process; the socket tables are read once for each
/// network namespace, so one of these is good for one scan.
#[derive(Debug, Default)]
pub struct Listeners {
    /// By namespace, then by the socket's inode.
    namespaces: FxHashMap<PathBuf, FxHashMap<u64, u16>>,
}

impl Listeners {
    /// Ports that the process listens on, in ascending order; none if it can't be read.
    pub fn ports(&mut self, proc: &Path, pid: u32) -> Vec<u16> {
        let home = proc.join(pid.to_string());
        let Ok(namespace) = fs::read_link(home.join("ns/net")) else {
            return Vec::new();
        };
        let sockets = self.namespaces.entry(namespace).or_insert_with(|| {
            ["tcp", "tcp6"]
                .iter()
                .filter_map(|table| fs::read_to_string(home.join("net").join(table)).ok())
                .flat_map(|table| table.lines().skip(1).filter_map(listener).collect::<Vec<_>>())
                .collect()
        });
        if sockets.is_empty() {
            return Vec::new();
        }
        let Ok(descriptors) = fs::read_dir(home.join("fd")) else {
            return Vec::new();
        };
        let ports: FxHashSet<u16> = descriptors
            .filter_map(|entry| {
                let target = fs::read_link(entry.ok()?.path()).ok()?;
                let inode = target
                    .to_str()?
                    .strip_prefix("socket:[")?
                    .strip_suffix(']')?
                    .parse()
                    .ok()?;
                sockets.get(&inode).copied()
            })
            .collect();
        let mut ports: Vec<u16> = ports.into_iter().collect();
        ports.sort_unstable();
        ports
    }
}

/// Inode and port of a line of `/proc/net/tcp`, if it listens (proc_pid_net(5)).
fn listener(line: &str) -> Option<(u64, u16)> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    if *fields.get(3)? != LISTEN {
        return None;
    }
    let (_, port) = fields.get(1)?.rsplit_once(':')?;
    Some((fields.get(9)?.parse().ok()?, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let stat = Stat::parse("42 (a) b (c) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 7777 1 2").unwrap();
        assert_eq!(
            (&*stat.comm, stat.state, stat.parent, stat.kernel, stat.start),
            ("a) b (c", 'S', 1, false, 7777)
        );
        assert!(
            Stat::parse("2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 9")
                .unwrap()
                .kernel
        );
        assert_eq!(Stat::parse("42 (x"), None);
    }

    #[test]
    fn listening_sockets_only() {
        let line =
            "   0: 0100007F:C383 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 31337 1 0";
        assert_eq!(listener(line), Some((31337, 50051)));
        assert_eq!(listener(&line.replace(" 0A ", " 01 ")), None);
        assert_eq!(listener("sl local_address"), None);
    }

    #[test]
    fn sees_its_own_port() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let proc = Path::new("/proc");
        assert!(Listeners::default().ports(proc, std::process::id()).contains(&port));
        assert!(processes(proc).unwrap().contains(&std::process::id()));
    }
}
