//! Programs that a test started and that must not outlive it: whichever way
//! the test ends, a panic included, they are ended by their process id. Bias:
//! ask first, since a service that ends in order closes its connections.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// How long a program may take to end when it is asked to.
const PATIENCE: Duration = Duration::from_secs(20);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(5);

/// A program that ends with its owner.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
}

/// Has the kernel end this process when the test that started it ends.
fn die_with_parent() -> std::io::Result<()> {
    // SAFETY: one system call with integers as arguments.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    Ok(())
}

impl Running {
    /// Starts it.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start(name: impl Into<String>, command: &mut Command) -> Result<Self> {
        let name = name.into();
        // SAFETY: between fork and exec `die_with_parent` makes one system call, which is
        // async-signal-safe, and allocates nothing.
        unsafe { command.pre_exec(die_with_parent) };
        let child = command
            .spawn()
            .with_context(|| format!("{name}: {command:?} could not be started"))?;
        Ok(Running { name, child })
    }

    /// Starts it with its output in two files.
    ///
    /// # Errors
    /// When it can't be started, or a file not be made.
    pub fn start_into(name: &str, command: &mut Command, stdout: &Path, stderr: &Path) -> Result<Self> {
        let file = |path: &Path| fs::File::create(path).with_context(|| path.display().to_string());
        Self::start(
            name,
            command.stdin(Stdio::null()).stdout(file(stdout)?).stderr(file(stderr)?),
        )
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its standard input, once, if it was started with a pipe.
    pub fn take_stdin(&mut self) -> Option<std::process::ChildStdin> {
        self.child.stdin.take()
    }

    /// Whether it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// When it does not within `patience`.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.ended() {
                return Ok(status);
            }
            ensure!(
                Instant::now() < deadline,
                "{} did not end within {patience:?}",
                self.name
            );
            std::thread::sleep(PAUSE);
        }
    }

    /// Sends it a signal.
    pub fn signal(&mut self, signal: i32) {
        // Not waited for yet, so the number still names this process and no other.
        if self.ended().is_none() {
            // SAFETY: kill takes numbers and has no preconditions.
            unsafe { libc::kill(self.child.id().cast_signed(), signal) };
        }
    }

    /// Asks it to end, and kills it if it does not.
    ///
    /// # Errors
    /// When it had to be killed.
    pub fn end(&mut self) -> Result<ExitStatus> {
        self.signal(libc::SIGTERM);
        if let Ok(status) = self.wait(PATIENCE) {
            return Ok(status);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        bail!("{} did not end when asked", self.name)
    }

    /// Waits for a line of `log`, one of the files it writes, that begins with `mark`.
    ///
    /// # Errors
    /// When it ends before, or `patience` runs out.
    pub fn wait_for_line(&mut self, log: &Path, mark: &str, patience: Duration) -> Result<String> {
        let deadline = Instant::now() + patience;
        loop {
            let status = self.ended();
            let text = fs::read_to_string(log).unwrap_or_default();
            let mut whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            if let Some(line) = whole.find(|line| line.starts_with(mark)) {
                return Ok(line.trim_end().to_owned());
            }
            if let Some(status) = status {
                bail!("{} ended ({status}) before it said `{mark}`:\n{text}", self.name);
            }
            ensure!(
                Instant::now() < deadline,
                "{} did not say `{mark}` within {patience:?}:\n{text}",
                self.name
            );
            std::thread::sleep(PAUSE);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("{error}");
        }
    }
}
