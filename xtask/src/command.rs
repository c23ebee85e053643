//! Running other programs. Bias: a failure is one message that says what was
//! tried, the last lines of the output, and what to do about it.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::place;
use crate::progress::Step;

/// Lines of a failed program's output that are shown.
const LAST_LINES: usize = 20;

/// What could not be done, why, and the remedy.
#[derive(Debug)]
pub struct Failure {
    /// What failed, as a sentence without a full stop.
    pub what: String,
    /// The last lines of its output.
    pub lines: Vec<String>,
    /// What the reader can do.
    pub remedy: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.what)?;
        for line in &self.lines {
            writeln!(f, "  | {line}")?;
        }
        write!(f, "  remedy: {}", self.remedy)
    }
}

impl std::error::Error for Failure {}

/// A command that finds what `cargo install` installed.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", place::path()).current_dir(place::root());
    command
}

/// Cargo, the one that runs this program.
pub fn cargo(arguments: &[&str]) -> Command {
    let mut command = command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // What `cargo run` told this program of itself is not meant for the next cargo.
    command
        .env_remove("CARGO_MANIFEST_DIR")
        .env_remove("CARGO_MANIFEST_PATH")
        .args(arguments);
    command
}

/// The command as one would type it.
pub fn text(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Runs it out of sight; `step` shows the newest line of its output.
///
/// # Errors
/// A [`Failure`] with the last lines when it can't be started or fails.
pub fn quiet(step: &Step, command: &mut Command, remedy: &str) -> Result<()> {
    let name = text(command);
    let failed = |why: String, lines| Failure {
        what: format!("{}: `{name}` {why}", step.what()),
        lines,
        remedy: remedy.to_owned(),
    };
    let (reader, writer) = std::io::pipe().context("pipe")?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().context("pipe")?)
        .stderr(writer);
    let child = command.spawn();
    // The command holds the writing ends; the pipe ends only when they are closed.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = child.map_err(|error| failed(format!("could not be started: {error}"), Vec::new()))?;
    let mut last = VecDeque::new();
    for_each_line(reader, |line| {
        step.line(line);
        if last.len() == LAST_LINES {
            last.pop_front();
        }
        last.push_back(line.to_owned());
    });
    let status = child.wait().context("wait")?;
    if status.success() {
        Ok(())
    } else {
        Err(failed(format!("failed ({status})"), last.into()).into())
    }
}

/// Runs it in sight.
///
/// # Errors
/// When it can't be started or fails.
pub fn shown(command: &mut Command) -> Result<()> {
    let name = text(command);
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("`{name}` could not be started"))?;
    anyhow::ensure!(status.success(), "`{name}` failed ({status})");
    Ok(())
}

/// The standard output of a short command; nothing if it fails.
pub fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Calls `each` with every line, until the end of the file or an error.
pub fn for_each_line(reader: impl Read, mut each: impl FnMut(&str)) {
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while matches!(reader.read_until(b'\n', &mut line), Ok(1..)) {
        each(String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_failure_says_what_why_and_the_remedy() {
        let step = Step::begin("listing");
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; echo two >&2; exit 3"]);
        let message = quiet(&step, &mut command, "do it by hand").unwrap_err().to_string();
        assert!(message.starts_with("listing: `sh -c"), "{message}");
        assert!(message.contains("exit status: 3"), "{message}");
        assert!(message.contains("| one\n  | two\n"), "{message}");
        assert!(message.ends_with("remedy: do it by hand"), "{message}");
    }

    #[test]
    fn only_the_last_lines_are_shown() {
        let step = Step::begin("counting");
        let mut command = Command::new("sh");
        command.args(["-c", "seq 1000; exit 1"]);
        let message = quiet(&step, &mut command, "").unwrap_err().to_string();
        assert!(
            message.contains("| 1000\n") && message.contains("| 981\n") && !message.contains("| 980\n"),
            "{message}"
        );
    }
}
