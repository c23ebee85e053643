//! Into a Node process: opens its inspector by SIGUSR1, finds where that listens, has
//! a script run there. The script closes the inspector again.
//!
//! Bias: an inspector that was open before is somebody else's and left alone.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Mutex;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::inspector;

/// What the helper says of itself.
pub const IN_PLACE: &str = "in place";
/// Puts it there; a function of `require`.
pub const INSTALL: &str = include_str!("helper.js");
/// Takes it out.
pub const REMOVE: &str =
    "(() => { const it = globalThis[Symbol.for('tracewire.helper')]; return it ? it.remove() : 'absent'; })";

/// How long the inspector may take to open.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(10);

/// All processes of a host begin with the same port.
static TURN: Mutex<()> = Mutex::new(());

/// Runs a script, a function of `require`, in a Node process whose handler of SIGUSR1 is Node's own; what it
/// returns, as a text.
///
/// # Errors
/// When the inspector does not open, or not for us.
pub fn evaluate(pid: u32, script: &str) -> io::Result<String> {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let before: HashSet<u16> = listening(pid)?.into_iter().collect();
    let id = i32::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: a system call without pointers.
    if unsafe { libc::kill(id, libc::SIGUSR1) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let end = Instant::now() + PATIENCE;
    let port = loop {
        if let Some(port) = listening(pid)?.into_iter().find(|port| !before.contains(port)) {
            break port;
        }
        if Instant::now() > end {
            return Err(io::Error::other(
                "the inspector does not open: its port is taken, or it is open already",
            ));
        }
        sleep(PAUSE);
    };
    let stream = within_network_of(pid, || {
        TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), PATIENCE)
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let said = inspector::evaluate(&stream, port, &format!("({script})(require)"));
    drop(stream);
    // The next process wants the same port.
    while listening(pid)?.contains(&port) {
        if Instant::now() > end + PATIENCE {
            return Err(io::Error::other("the inspector does not close again"));
        }
        sleep(PAUSE);
    }
    said
}

/// Does something in the network namespace of a process, and comes back.
fn within_network_of<T>(pid: u32, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let theirs = fs::File::open(format!("/proc/{pid}/ns/net"))?;
    let ours = fs::File::open("/proc/thread-self/ns/net")?;
    use std::os::unix::fs::MetadataExt;
    if theirs.metadata()?.ino() == ours.metadata()?.ino() {
        return work();
    }
    enter(&theirs)?;
    let result = work();
    enter(&ours)?;
    result
}

fn enter(namespace: &fs::File) -> io::Result<()> {
    // SAFETY: a system call without pointers, on a descriptor that is open.
    match unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ports on which a process listens at the loopback address of IPv4.
fn listening(pid: u32) -> io::Result<Vec<u16>> {
    let sockets = fs::read_to_string(format!("/proc/{pid}/net/tcp"))?;
    let mut held = HashSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
        if let Ok(target) = fs::read_link(entry.path())
            && let Some(inode) = target.to_str().and_then(|t| t.strip_prefix("socket:["))
        {
            held.insert(inode.trim_end_matches(']').to_owned());
        }
    }
    Ok(sockets
        .lines()
        .filter_map(|line| loopback_listener(line, &held))
        .collect())
}

/// The port of a line of /proc/net/tcp, if it is such a listener.
fn loopback_listener(line: &str, held: &HashSet<String>) -> Option<u16> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
    let port = local.strip_prefix("0100007F:")?;
    (*state == "0A" && held.contains(*inode))
        .then(|| u16::from_str_radix(port, 16).ok())
        .flatten()
}

/// Where in a process's program an address stands, as an offset in its file.
pub fn offset_in_program(pid: u32, address: u64) -> Option<u64> {
    let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    for line in maps.lines() {
        let mut fields = line.splitn(6, ' ');
        let (Some(range), Some(offset), Some(name)) = (fields.next(), fields.nth(1), fields.nth(2)) else {
            continue;
        };
        let (begin, end) = range.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        if (number(begin)?..number(end)?).contains(&address) {
            let same = name.trim_start() == program.to_str()?;
            return same.then_some(address - number(begin)? + number(offset)?);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_listener_of_the_process_at_loopback_counts() {
        let held = HashSet::from(["77".to_owned()]);
        let line = |local: &str, state: &str, inode: &str| {
            format!(
                "   0: {local} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000     0        0 {inode} 1"
            )
        };
        assert_eq!(loopback_listener(&line("0100007F:240D", "0A", "77"), &held), Some(9229));
        assert_eq!(loopback_listener(&line("0100007F:240D", "0A", "78"), &held), None);
        assert_eq!(loopback_listener(&line("0100007F:240D", "01", "77"), &held), None);
        assert_eq!(loopback_listener(&line("00000000:240D", "0A", "77"), &held), None);
        assert_eq!(loopback_listener("  sl  local_address rem_address   st", &held), None);
    }

    #[test]
    fn an_address_of_code_is_found_in_the_program() {
        let address = offset_in_program as *const () as u64;
        assert!(offset_in_program(std::process::id(), address).is_some());
        assert_eq!(offset_in_program(std::process::id(), 1), None);
    }
}
