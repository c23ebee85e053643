//! Programs that run beside a task and must not outlive it: whichever way the
//! task ends, an error and Ctrl-C included, they are ended by process id, the
//! last one first. Bias: ask first (they close their connections), then kill.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// How long a program may take to end when it is asked to.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// Says whether somebody wants the task to end.
#[derive(Clone, Debug)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// From now on SIGINT, SIGTERM and SIGHUP end the task in order.
    ///
    /// # Errors
    /// When a signal can't be caught.
    pub fn on_signals() -> Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&flag)).context("signal handler")?;
        }
        Ok(Stop(flag))
    }

    /// Whether the task shall end.
    pub fn is_wanted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A program that ends with its owner.
#[derive(Debug)]
pub struct Running {
    name: &'static str,
    child: Child,
    kept: bool,
    signal: Signal,
}

impl Running {
    /// Starts it in a process group of its own, so that Ctrl-C reaches only
    /// the task, which ends its programs in order. Unless it is `kept` it also
    /// gets `signal` when the task is killed.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start(name: &'static str, command: &mut Command, signal: Signal, kept: bool) -> Result<Self> {
        command.stdin(Stdio::null()).process_group(0);
        if !kept {
            let with_parent = move || set_parent_process_death_signal(Some(signal)).map_err(Into::into);
            // SAFETY: between fork and exec the closure makes one system call, which is
            // async-signal-safe, and allocates nothing.
            unsafe { command.pre_exec(with_parent) };
        }
        let child = command
            .spawn()
            .with_context(|| format!("{name} could not be started"))?;
        Ok(Running {
            name,
            child,
            kept,
            signal,
        })
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The pipe of its standard error, once, if it was started with one.
    pub fn take_stderr(&mut self) -> Option<std::process::ChildStderr> {
        self.child.stderr.take()
    }

    /// Whether it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits until it ends by itself, `deadline` passes, or the task is to stop.
    pub fn wait(&mut self, deadline: Instant, stop: &Stop) -> Option<ExitStatus> {
        loop {
            let status = self.ended();
            if status.is_some() || stop.is_wanted() || Instant::now() >= deadline {
                return status;
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Asks it to end, if it has not, and does not wait.
    pub fn ask(&mut self) {
        // Not waited for yet, so the number still names this process and no other.
        if self.ended().is_none()
            && let Some(pid) = Pid::from_raw(self.child.id().cast_signed())
        {
            let _ = kill_process(pid, self.signal);
        }
    }

    /// Asks it to end, and kills it if it does not.
    pub fn end(&mut self) {
        if self.ended().is_none() {
            self.ask();
            let deadline = Instant::now() + PATIENCE;
            while self.ended().is_none() && Instant::now() < deadline {
                std::thread::sleep(PAUSE);
            }
            if self.ended().is_none() {
                eprintln!("{} did not end when asked: killed", self.name);
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
        }
    }

    /// Waits for a line of its standard output, which goes to the file `log`,
    /// that contains `mark`; returns the line's last word.
    ///
    /// # Errors
    /// When it ends before, or `patience` runs out.
    pub fn wait_for_line(&mut self, log: &Path, mark: &str, patience: Duration, stop: &Stop) -> Result<String> {
        let deadline = Instant::now() + patience;
        loop {
            let lines =
                File::open(log).map(|file| BufReader::new(file).lines().map_while(Result::ok).collect::<Vec<_>>());
            if let Some(line) = lines.unwrap_or_default().iter().find(|line| line.contains(mark)) {
                return Ok(line.split(' ').next_back().unwrap_or_default().to_owned());
            }
            if let Some(status) = self.ended() {
                bail!(
                    "{} ended ({status}) before it was ready; see {}",
                    self.name,
                    log.display()
                );
            }
            anyhow::ensure!(!stop.is_wanted(), "interrupted");
            anyhow::ensure!(
                Instant::now() < deadline,
                "{} was not ready in time; see {}",
                self.name,
                log.display()
            );
            std::thread::sleep(PAUSE);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.kept {
            self.end();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn is_there(pid: u32) -> bool {
        Path::new(&format!("/proc/{pid}")).exists()
    }

    #[test]
    fn a_program_ends_with_its_owner() {
        let running = Running::start("sleep", Command::new("sleep").arg("100"), Signal::TERM, false).unwrap();
        let pid = running.pid();
        assert!(is_there(pid));
        drop(running);
        assert!(!is_there(pid));
    }

    #[test]
    fn a_kept_program_goes_on_until_it_is_ended() {
        let mut running = Running::start("sleep", Command::new("sleep").arg("100"), Signal::TERM, true).unwrap();
        let pid = running.pid();
        assert!(running.ended().is_none());
        running.end();
        assert!(!is_there(pid));
    }
}
