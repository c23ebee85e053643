//! `cargo xtask fuzz`: feeds the parsers made-up input for a while. The
//! targets are in tests/fuzz, one a parser.

use anyhow::{Context, Result, ensure};

use crate::command::{Failure, cargo, output, shown};
use crate::place;
use crate::tally::Tally;

/// Fuzzes every target for an even part of `seconds`.
///
/// # Errors
/// When cargo-fuzz or the targets are missing, or a target found a fault.
pub fn run(seconds: u64) -> Result<()> {
    ensure!(
        is_here(),
        Failure {
            what: "fuzz: cargo-fuzz is not installed".to_owned(),
            lines: Vec::new(),
            remedy: "cargo install cargo-fuzz".to_owned(),
        }
    );
    let targets = targets()?;
    let each = (seconds / targets.len() as u64).max(1);
    let mut faults = Vec::new();
    for target in &targets {
        eprintln!("fuzz {target}, {each} s");
        // No sanitizer: the parsers are safe Rust, a fault is a panic, and a
        // released compiler can build this.
        let mut fuzz = fuzz(&["run", "--sanitizer", "none"]);
        fuzz.arg(target).args([
            "--",
            "-print_final_stats=1",
            "-close_fd_mask=1",
            &format!("-max_total_time={each}"),
        ]);
        if shown(&mut fuzz).is_err() {
            faults.push(target.as_str());
        }
    }
    ensure!(faults.is_empty(), "faults were found in: {}", faults.join(", "));
    Ok(())
}

/// The same, as a part of the tests: left out where cargo-fuzz or the targets are not here.
///
/// # Errors
/// When a target found a fault.
pub fn check(tally: &mut Tally, seconds: u64) -> Result<()> {
    if is_here() && place::root().join("tests/fuzz/Cargo.toml").is_file() {
        return run(seconds);
    }
    eprintln!("left out: cargo-fuzz is not installed, or there are no targets");
    tally.skipped += 1;
    Ok(())
}

fn is_here() -> bool {
    place::program("cargo-fuzz").is_some()
}

/// `cargo fuzz ARGUMENTS`. It asks for unstable options of the compiler.
fn fuzz(arguments: &[&str]) -> std::process::Command {
    let mut command = cargo(&["fuzz"]);
    command
        .args(arguments)
        .current_dir(place::root().join("tests"))
        .env("RUSTC_BOOTSTRAP", "1");
    command
}

fn targets() -> Result<Vec<String>> {
    let list = output(&mut fuzz(&["list"])).context("`cargo fuzz list` failed in tests/fuzz")?;
    let targets: Vec<_> = list.lines().map(str::to_owned).collect();
    ensure!(!targets.is_empty(), "there are no fuzz targets in tests/fuzz");
    Ok(targets)
}
