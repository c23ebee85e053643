//! The note of what `demo --keep` left running. Bias: a process id alone is
//! never trusted; only a process that also started at the noted time is ended.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::{Value, json};

use crate::place;

/// How long a process may take to end when it is asked to.
const PATIENCE: Duration = Duration::from_secs(5);

/// One process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// What it is called.
    pub name: String,
    /// Process id.
    pub pid: u32,
    /// When it started, clock ticks after boot.
    pub start: u64,
}

impl Process {
    /// The process of this id.
    ///
    /// # Errors
    /// When there is none.
    pub fn new(name: &str, pid: u32) -> Result<Self> {
        let start = start(pid).with_context(|| format!("{name} is gone"))?;
        Ok(Process {
            name: name.to_owned(),
            pid,
            start,
        })
    }

    /// Ends it; `false` if it was gone already.
    pub fn end(&self) -> bool {
        let Some(pid) = Pid::from_raw(self.pid.cast_signed()) else {
            return false;
        };
        let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else {
            return false;
        };
        // The handle stays with the process that has the number now; the start
        // time says whether that is the one meant.
        if start(self.pid) != Some(self.start) {
            return false;
        }
        for signal in [Signal::TERM, Signal::KILL] {
            if pidfd_send_signal(&handle, signal).is_err() {
                break;
            }
            let deadline = Instant::now() + PATIENCE;
            while Instant::now() < deadline {
                let pause = Timespec {
                    tv_sec: 0,
                    tv_nsec: 100_000_000,
                };
                if matches!(poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&pause)), Ok(1..)) {
                    return true;
                }
            }
        }
        true
    }
}

/// When a process started: field 22 of `/proc/PID/stat` (proc(5)).
fn start(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, field 2, may hold anything; it ends at the last parenthesis.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Folder of the demo's logs and of the note.
pub fn folder() -> PathBuf {
    place::root().join("target/demo")
}

fn file() -> PathBuf {
    folder().join("kept.json")
}

/// Writes the note.
///
/// # Errors
/// When the file can't be written.
pub fn write(processes: &[Process]) -> Result<()> {
    let note: Vec<_> = processes
        .iter()
        .map(|p| json!({"name": p.name, "pid": p.pid, "start": p.start}))
        .collect();
    fs::write(file(), Value::from(note).to_string()).with_context(|| format!("write {}", file().display()))
}

/// Reads the note, and does away with it.
pub fn take() -> Vec<Process> {
    let Ok(text) = fs::read_to_string(file()) else {
        return Vec::new();
    };
    let _ = fs::remove_file(file());
    parse(&text)
}

fn parse(text: &str) -> Vec<Process> {
    let note: Vec<Value> = serde_json::from_str(text).unwrap_or_default();
    let process = |value: &Value| {
        Some(Process {
            name: value.get("name")?.as_str()?.to_owned(),
            pid: value.get("pid")?.as_u64()?.try_into().ok()?,
            start: value.get("start")?.as_u64()?,
        })
    };
    note.iter().filter_map(process).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::process::Command;

    #[test]
    fn the_noted_process_is_ended() {
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        assert!(Process::new("sleep", child.id()).unwrap().end());
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn another_process_of_the_same_number_is_left_alone() {
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let noted = Process::new("sleep", child.id()).unwrap();
        assert!(
            !Process {
                start: noted.start + 1,
                ..noted
            }
            .end()
        );
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_broken_note_names_nobody() {
        assert_eq!(parse("[{\"pid\": 1}, {\"pid\": \"x\"}, 3]"), []);
        assert_eq!(parse("{"), []);
    }
}
