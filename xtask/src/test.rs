//! `cargo xtask test`: everything that must hold, in one command. Bias: a
//! stage that fails does not hide the next one; what could not be checked is
//! said and counted as skipped; the last line is the tally.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::command::{cargo, for_each_line, shown, text};
use crate::tally::Tally;
use crate::toolchain::{TARGET, Toolchain};
use crate::{budget, build, build_ebpf, demo, fuzz, place, setup, validate_deploy};

/// Time for each fuzz target, seconds.
const FUZZ: u64 = 5;

/// The checks, and what they came to.
#[derive(Default)]
struct Checks {
    tally: Tally,
    times: Vec<(&'static str, Duration)>,
}

impl Checks {
    /// Runs one; its failure is noted and the next one runs.
    fn stage(&mut self, name: &'static str, check: impl FnOnce(&mut Tally) -> Result<()>) {
        eprintln!("\n── {name} ──");
        let since = Instant::now();
        let failed = self.tally.failed;
        if let Err(error) = check(&mut self.tally) {
            eprintln!("{name}: {error:#}");
            // Tests that failed have been counted by their names.
            if self.tally.failed == failed {
                self.tally
                    .fail(format!("{name}: {}", first_line(&format!("{error:#}"))));
            }
        }
        self.times.push((name, since.elapsed()));
    }

    /// Prints what the checks came to.
    fn close(self) -> Result<()> {
        eprintln!();
        for (name, time) in &self.times {
            eprintln!("{name:<20} {:>7.1} s", time.as_secs_f32());
        }
        for failure in &self.tally.failures {
            eprintln!("FAILED {failure}");
        }
        let good = self.tally.failed == 0 && self.tally.passed > 0;
        println!("\n{}", self.tally.closing());
        // The tally is the last line, so no message follows it.
        if good { Ok(()) } else { std::process::exit(1) }
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// Runs all checks; with `fast` those that need neither root nor a kernel.
///
/// # Errors
/// When the machine can't be set up; failed checks end the process with 1.
pub fn run(fast: bool) -> Result<()> {
    let mut checks = Checks::default();
    if !fast {
        setup::for_tests()?;
        setup::need_root("test: load programs into the kernel (`test --fast` does without)")?;
        eprintln!("{}", setup::describe());
    }
    checks.stage("format", |_| {
        shown(&mut cargo(&["fmt", "--all", "--check"]))?;
        shown(&mut services(&["fmt", "--check"]))
    });
    checks.stage("clippy", |_| {
        let clippy = [
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--",
            "--deny",
            "warnings",
        ];
        let host = shown(&mut cargo(&clippy));
        let clippy = [
            "clippy",
            "--quiet",
            "--locked",
            "--all-targets",
            "--",
            "--deny",
            "warnings",
        ];
        host.and(shown(&mut services(&clippy)))
    });
    if !fast {
        checks.stage("clippy for BPF", clippy_for_bpf);
    }
    checks.stage("documents", |_| {
        let doc = ["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items"];
        shown(cargo(&doc).env("RUSTDOCFLAGS", "--deny warnings"))
    });
    if !fast {
        checks.stage("kernel programs", |_| build_ebpf::run());
        checks.stage("agent", |_| build::run());
        checks.stage("verifier", budget::check);
        checks.stage("services", |_| demo::services());
    }
    checks.stage("unit tests", |tally| {
        tests(
            tally,
            &mut cargo(&["test", "--workspace", "--exclude", "tracewire-tests", "--no-fail-fast"]),
        )
    });
    if !fast {
        checks.stage("end-to-end tests", |tally| {
            // One at a time: each has the kernel's programs to itself.
            let arguments = [
                "test",
                "--release",
                "--package",
                "tracewire-tests",
                "--no-fail-fast",
                "--",
                "--test-threads=1",
            ];
            tests(tally, cargo(&arguments).env("TRACEWIRE_BIN", place::agent()))
        });
        checks.stage("manifests", validate_deploy::check);
        checks.stage("fuzz", |_| fuzz::stand_in(FUZZ));
    }
    checks.close()
}

/// The long form of the tests against ground truth: every language, all pairs, five times the calls.
///
/// # Errors
/// When the machine can't be set up; failed tests end the process with 1.
pub fn long() -> Result<()> {
    let mut checks = Checks::default();
    setup::for_tests()?;
    setup::need_root("test --long: load programs into the kernel")?;
    checks.stage("kernel programs", |_| build_ebpf::run());
    checks.stage("agent", |_| build::run());
    checks.stage("long end-to-end tests", |tally| {
        let arguments = [
            "test",
            "--release",
            "--package",
            "tracewire-tests",
            "--test",
            "ground_truth",
            "--test",
            "lifecycle",
            "--test",
            "late_attach",
            "--no-fail-fast",
            "--",
            "--include-ignored",
            "--show-output",
            "--test-threads=1",
        ];
        let mut command = cargo(&arguments);
        tests(
            tally,
            command
                .env("TRACEWIRE_BIN", place::agent())
                .env("TRACEWIRE_TESTS", "full"),
        )
    });
    checks.close()
}

/// Cargo, in the package of the demo's services.
fn services(arguments: &[&str]) -> Command {
    let mut command = cargo(arguments);
    command
        .current_dir(place::root().join("tests/services"))
        .env("CARGO_TARGET_DIR", place::target());
    command
}

/// The kernel programs' lints, as the kernel's target sees them; the host's
/// clippy has seen only what also compiles there.
fn clippy_for_bpf(tally: &mut Tally) -> Result<()> {
    let Some(mut clippy) = Toolchain::all().find_map(|toolchain| toolchain.clippy()) else {
        eprintln!("left out: no clippy belongs to a Rust that compiles for the kernel (Debian: rust-web-clippy)");
        tally.skipped += 1;
        return Ok(());
    };
    clippy.args([
        "--quiet",
        "--package",
        "tracewire-ebpf",
        "--release",
        "-Z",
        "build-std=core",
        "--target",
        TARGET,
    ]);
    shown(clippy.args(["--", "--deny", "warnings"]))
}

/// Runs tests in sight and counts them.
fn tests(tally: &mut Tally, command: &mut Command) -> Result<()> {
    let name = text(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| name.clone())?;
    let before = tally.failed;
    if let Some(output) = child.stdout.take() {
        for_each_line(output, |line| {
            println!("{line}");
            tally.line(line);
        });
    }
    let status = child.wait().context("wait")?;
    ensure!(
        status.success(),
        "`{name}` failed ({status}), {} of its tests did",
        tally.failed - before
    );
    Ok(())
}
