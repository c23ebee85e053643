//! `cargo xtask fuzz`: feeds the parsers made-up input for a while. The
//! targets are in tests/fuzz, one a parser: libFuzzer runs them where cargo-fuzz
//! is installed, a small generator of our own elsewhere.

use anyhow::{Context, Result, ensure};

use crate::command::{cargo, output, shown};
use crate::place;

/// Targets; the stand-in runs as many at a time as there are processors.
const TARGETS: u64 = 5;

/// Fuzzes every target for an even part of `seconds`.
///
/// # Errors
/// When a target found a fault.
pub fn run(seconds: u64) -> Result<()> {
    let each = (seconds / TARGETS).max(1);
    if place::program("cargo-fuzz").is_none() {
        eprintln!(
            "cargo-fuzz is not installed (`cargo install cargo-fuzz`): the stand-in runs, which does not see coverage"
        );
        return stand_in(each);
    }
    let mut faults = Vec::new();
    let targets = targets()?;
    for target in &targets {
        eprintln!("fuzz {target}, {each} s");
        // No sanitizer: the parsers are safe Rust, a fault is a panic, and a
        // released compiler can build this.
        let mut fuzz = fuzz("run");
        fuzz.args(["--sanitizer", "none", "--features", "libfuzzer"]);
        fuzz.arg("--target-dir").arg(place::target().join("fuzz"));
        fuzz.arg(target)
            .args(["--", "-print_final_stats=1", "-close_fd_mask=1"]);
        fuzz.arg(format!("-max_total_time={each}"));
        if shown(&mut fuzz).is_err() {
            faults.push(target.as_str());
        }
    }
    ensure!(faults.is_empty(), "faults were found in: {}", faults.join(", "));
    Ok(())
}

/// The same without libFuzzer, each target for so many seconds.
///
/// # Errors
/// When a target found a fault.
pub fn stand_in(each: u64) -> Result<()> {
    let arguments = [
        "test",
        "--quiet",
        "--package",
        "tracewire-fuzz",
        "--test",
        "stand_in",
        "--",
        "--nocapture",
    ];
    shown(cargo(&arguments).env("TRACEWIRE_FUZZ_SECONDS", each.to_string()))
}

/// `cargo fuzz WHAT`. It asks for unstable options of the compiler.
fn fuzz(what: &str) -> std::process::Command {
    let mut command = cargo(&["fuzz", what]);
    command
        .args(["--fuzz-dir", "tests/fuzz"])
        .current_dir(place::root())
        .env("RUSTC_BOOTSTRAP", "1");
    command
}

fn targets() -> Result<Vec<String>> {
    let list = output(&mut fuzz("list")).context("`cargo fuzz list` failed in tests/fuzz")?;
    let targets: Vec<_> = list.lines().map(str::to_owned).collect();
    ensure!(!targets.is_empty(), "there are no fuzz targets in tests/fuzz");
    Ok(targets)
}
