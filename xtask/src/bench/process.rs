//! What the kernel says of a process: CPU time, memory, BPF programs it holds.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

/// Times that BPF programs ran, and for how long; counted only while [`Statistics`] live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Programs {
    /// Runs.
    pub runs: u64,
    /// Nanoseconds.
    pub ns: u64,
}

fn file(pid: u32, name: &str) -> PathBuf {
    Path::new("/proc").join(pid.to_string()).join(name)
}

/// Whether a child has ended with all its threads; it stays to be waited for.
///
/// # Errors
/// When it is no child of this process.
pub fn has_ended(pid: u32) -> Result<bool> {
    let id = Pid::from_raw(pid.cast_signed()).context("process 0")?;
    let how = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    Ok(waitid(WaitId::Pid(id), how)
        .with_context(|| format!("process {pid}"))?
        .is_some())
}

/// CPU time of all threads, also of a process that ended and was not waited for.
///
/// # Errors
/// When there is no such process.
pub fn cpu(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(file(pid, "stat")).with_context(|| format!("process {pid}"))?;
    parse(&stat).with_context(|| format!("stat of process {pid}"))
}

/// proc(5), /proc/pid/stat: the name may hold anything, so fields count from its last parenthesis.
fn parse(stat: &str) -> Option<Duration> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let user: u64 = fields.nth(11)?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    let tick = 1_000_000_000 / rustix::param::clock_ticks_per_second();
    Some(Duration::from_nanos((user + system) * tick))
}

/// A size of /proc/pid/status, bytes; 0 if it is not there.
pub fn memory(pid: u32, name: &str) -> u64 {
    let status = fs::read_to_string(file(pid, "status")).unwrap_or_default();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let size = line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok());
    size.unwrap_or(0) * 1024
}

/// Lets the highest memory count anew from now on (proc(5), `clear_refs`).
pub fn forget_peak(pid: u32) {
    // Without it the peak is that of the whole life: more than asked, not less.
    let _ = fs::write(file(pid, "clear_refs"), "5");
}

/// The BPF programs that a process holds by file descriptors.
pub fn programs(pid: u32) -> Programs {
    let mut sum = Programs::default();
    for entry in fs::read_dir(file(pid, "fdinfo")).into_iter().flatten().flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        // A link names its program too, but has no times.
        sum.runs += field(&text, "run_cnt:").unwrap_or(0);
        sum.ns += field(&text, "run_time_ns:").unwrap_or(0);
    }
    sum
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

/// Has the kernel time BPF programs, as long as it lives.
pub struct Statistics {
    before: String,
}

const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";

impl Statistics {
    /// Turns them on.
    ///
    /// # Errors
    /// Without privileges.
    pub fn on() -> Result<Self> {
        let before = fs::read_to_string(SWITCH).context(SWITCH)?;
        fs::write(SWITCH, "1").context(SWITCH)?;
        Ok(Statistics { before })
    }
}

impl Drop for Statistics {
    fn drop(&mut self) {
        let _ = fs::write(SWITCH, &self.before);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 1 0 100";
        let tick = 1_000_000_000 / rustix::param::clock_ticks_per_second();
        assert_eq!(parse(stat).unwrap(), Duration::from_nanos(200 * tick));
    }

    #[test]
    fn this_process_has_memory() {
        assert!(memory(std::process::id(), "VmHWM") > 0);
        assert_eq!(memory(std::process::id(), "VmNothing"), 0);
    }
}
