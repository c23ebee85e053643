//! The real parts that the exporter is tested against, from package registries
//! into `target/peers/`. Where a registry can't be reached the test says so on a line
//! that begins with `skipped:`, and ends; anything else that goes wrong fails it.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// Folder of what was installed.
pub fn folder() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
        PathBuf::from,
    );
    target.join("peers")
}

/// A Python environment with those packages: its folder of programs.
pub fn python(name: &str, packages: &[&str]) -> Option<PathBuf> {
    install(name, packages, |home| {
        let made = run(Command::new("python3").args(["-m", "venv"]).arg(home));
        made && run(Command::new(home.join("bin/pip"))
            .args(["install", "--quiet", "--disable-pip-version-check", "--retries", "1"])
            .args(packages))
    })
    .map(|home| home.join("bin"))
}

/// A Node package folder with those packages.
pub fn node(name: &str, packages: &[&str]) -> Option<PathBuf> {
    install(name, packages, |home| {
        fs::create_dir_all(home).is_ok()
            && fs::write(home.join("package.json"), r#"{"private":true,"type":"module"}"#).is_ok()
            && run(Command::new("npm")
                .args(["install", "--no-audit", "--no-fund", "--loglevel", "error"])
                .args(packages)
                .current_dir(home))
    })
}

fn install(name: &str, packages: &[&str], how: impl FnOnce(&Path) -> bool) -> Option<PathBuf> {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let home = folder().join(name);
    let stamp = home.join("installed");
    let wanted = packages.join("\n");
    if fs::read_to_string(&stamp).is_ok_and(|have| have == wanted) {
        return Some(home);
    }
    let _ = fs::remove_dir_all(&home);
    fs::create_dir_all(folder()).unwrap();
    if !how(&home) {
        // Past the capture of the test's output, on a line of its own: `cargo xtask test` counts these.
        let _ = writeln!(
            std::io::stdout(),
            "\nskipped: {} can't be installed",
            packages.join(", ")
        );
        return None;
    }
    fs::write(stamp, wanted).unwrap();
    Some(home)
}

fn run(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
