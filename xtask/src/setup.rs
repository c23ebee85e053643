//! `cargo xtask setup`: what the project needs of a machine. Bias: looks
//! before it acts, so that it is quick when nothing is missing and asks for
//! root only when something is.

use std::collections::HashSet;
use std::ffi::CStr;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};
use rustix::mount::{MountFlags, mount};

use crate::command::{Failure, cargo, command, output, quiet};
use crate::place;
use crate::progress::Step;
use crate::toolchain::{self, Toolchain};

/// To compile and link anything at all.
const FOR_ALL: [&str; 3] = ["build-essential", "pkg-config", "ca-certificates"];
/// Rust 1.96 with its library's source, and LLVM 22: Debian 12 has them in its
/// updates, as later releases do under the same or newer numbers.
const FOR_KERNEL: [&str; 4] = ["rustc-web", "rust-web-src", "cargo-web", "llvm-22-dev"];
/// What only the tests use: clippy for the kernel programs, Python for the
/// check of the manifests.
const FOR_TESTS: [&str; 2] = ["rust-web-clippy", "python3-venv"];

/// Servers that tests talk with, by package and program.
const PEERS: [(&str, &str); 3] = [
    ("prometheus", "promtool"),
    ("nginx", "nginx"),
    ("tinyproxy-bin", "tinyproxy"),
];

/// Where Debian's LLVM 22 is.
const LLVM: &str = "/usr/lib/llvm-22";

/// File systems of the kernel's that tracing needs.
const MOUNTS: [(&CStr, &str); 3] = [
    (c"tracefs", "/sys/kernel/tracing"),
    (c"bpf", "/sys/fs/bpf"),
    (c"securityfs", "/sys/kernel/security"),
];

/// Everything that a demo needs.
///
/// # Errors
/// A [`Failure`] for the step that can't be taken.
pub fn run() -> Result<()> {
    toolchain()?;
    mounts()
}

/// Everything that the tests need.
///
/// # Errors
/// A [`Failure`] for the step that can't be taken.
pub fn for_tests() -> Result<()> {
    run()?;
    // Without apt the tests look for what is there and say what they left out.
    if !has_apt() {
        return Ok(());
    }
    let clippy = Toolchain::all()
        .next()
        .is_some_and(|toolchain| toolchain.clippy().is_some());
    let python = output(command("python3").args(["-c", "import ensurepip, venv"])).is_some();
    let here = |package: &str| if package == "python3-venv" { python } else { clippy };
    let wanted: Vec<_> = FOR_TESTS.into_iter().filter(|package| !here(package)).collect();
    packages("system packages for the tests", &wanted)?;
    PEERS
        .into_iter()
        .for_each(|(package, program)| unpack(package, program));
    Ok(())
}

/// A package's programs, unpacked and not installed: it would start a server for good.
/// Without them the tests say what they left out.
fn unpack(package: &str, program: &str) {
    let folder = place::unpacked(package);
    let here = ["usr/bin", "usr/sbin"].map(|part| folder.join(part).join(program));
    if place::program(program).is_some() || here.iter().any(|file| file.is_file()) {
        return;
    }
    let step = Step::begin(format!("{package}, unpacked"));
    let remedy = "the tests that need it are left out";
    let archives = folder.join("archives");
    let downloaded = std::fs::create_dir_all(&archives).is_ok_and(|()| {
        let mut download = command("apt-get");
        download.args(["download", package]).current_dir(&archives);
        quiet(&step, &mut download, remedy).is_ok()
    });
    let archive = std::fs::read_dir(&archives)
        .ok()
        .and_then(|files| files.flatten().map(|file| file.path()).next());
    if let Some(archive) = archive.filter(|_| downloaded)
        && quiet(&step, command("dpkg").arg("-x").arg(archive).arg(&folder), remedy).is_ok()
    {
        let _ = std::fs::remove_dir_all(&archives);
        step.done();
    }
}

/// A toolchain for the kernel programs, and a linker.
///
/// # Errors
/// A [`Failure`] for the step that can't be taken.
pub fn toolchain() -> Result<()> {
    if has_apt() {
        packages("system packages", &FOR_ALL)?;
    } else if place::program("cc").is_none() {
        bail!(no_apt(
            "there is no C compiler to link with",
            "install a C compiler with this system's package manager"
        ));
    }
    if Toolchain::all().next().is_none() {
        if !has_apt() {
            bail!(no_apt("there is no Rust with its library's source", toolchain::REMEDY));
        }
        packages("Rust and LLVM for the kernel programs", &FOR_KERNEL)?;
        if Toolchain::all().next().is_none() {
            let what = "the distribution's Rust is installed, but not whole or too old".to_owned();
            bail!(Failure {
                what,
                lines: Vec::new(),
                remedy: toolchain::REMEDY.to_owned()
            });
        }
    }
    if !toolchain::has_linker() {
        linker()?;
    }
    Ok(())
}

fn no_apt(what: &str, remedy: &str) -> Failure {
    Failure {
        what: format!("{what}, and there is no apt-get to get it by"),
        lines: Vec::new(),
        remedy: remedy.to_owned(),
    }
}

fn has_apt() -> bool {
    place::program("apt-get").is_some() && place::program("dpkg-query").is_some()
}

/// Whether this is root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Refuses to go on without root.
///
/// # Errors
/// When this is not root; says how to become it.
pub fn need_root(what: &str) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    let task = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    bail!(Failure {
        what: format!("{what}: only root may"),
        lines: Vec::new(),
        remedy: format!("sudo --preserve-env=HOME env \"PATH=$PATH\" cargo xtask {task}"),
    })
}

/// Installs those that are missing.
///
/// # Errors
/// When they can't be installed.
pub fn packages(what: &str, wanted: &[&str]) -> Result<()> {
    let mut query = Command::new("dpkg-query");
    query
        .args(["--show", "--showformat", "${db:Status-Status} ${Package}\n"])
        .args(wanted)
        .env("LC_ALL", "C");
    // It fails when one is unknown, and lists the others all the same.
    let listed = query
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    let installed: HashSet<_> = listed
        .lines()
        .filter_map(|line| line.strip_prefix("installed "))
        .collect();
    let missing: Vec<_> = wanted.iter().filter(|package| !installed.contains(*package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing
        .iter()
        .map(|name| name.to_string())
        .collect::<Vec<_>>()
        .join(" ");
    need_root(&format!("{what}: install {names}"))?;
    let step = Step::begin(format!("{what}: {names}"));
    let remedy = "see that this machine reaches its package archive, with the updates and security suites in its \
        sources; then try again";
    let apt = |arguments: &[&str]| {
        let mut apt = command("apt-get");
        apt.args(["--yes", "-o", "DPkg::Lock::Timeout=120"])
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive");
        apt
    };
    quiet(&step, &mut apt(&["update"]), remedy)?;
    quiet(
        &step,
        apt(&["install", "--no-install-recommends"]).args(missing),
        remedy,
    )?;
    step.done();
    Ok(())
}

/// Installs bpf-linker, with the distribution's LLVM if that is here.
fn linker() -> Result<()> {
    let at_distribution = Toolchain::all()
        .next()
        .is_some_and(|toolchain| toolchain.programs.starts_with("/usr"));
    let mut install = cargo(&["install", "bpf-linker", "--version", "0.13.0", "--locked"]);
    let remedy = if at_distribution {
        packages("LLVM for bpf-linker", &FOR_KERNEL)?;
        install.args(["--no-default-features", "--features", "llvm-22"]);
        install
            .env("LLVM_PREFIX", LLVM)
            .env("LIBRARY_PATH", Path::new(LLVM).join("lib"));
        "see that this machine reaches crates.io (or the registry that Cargo is configured for); then try again"
    } else {
        "`cargo install bpf-linker` by hand; its own documents name the LLVM that it needs"
    };
    let step = Step::begin("bpf-linker, from source");
    quiet(&step, &mut install, remedy)?;
    step.done();
    Ok(())
}

/// Mounts the kernel's file systems that nobody has mounted yet.
fn mounts() -> Result<()> {
    let mounted = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let is_mounted = |path: &str| mounted.lines().any(|line| line.split(' ').nth(1) == Some(path));
    for (kind, path) in MOUNTS {
        if is_mounted(path) || !Path::new(path).is_dir() {
            continue;
        }
        let what = format!("mount {path}");
        need_root(&what)?;
        match mount(
            kind,
            path,
            kind,
            MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
            None,
        ) {
            Ok(()) => eprintln!("{what}: done"),
            // Only tells of the kernel's lockdown: nice to have.
            Err(error) if kind == c"securityfs" => eprintln!("{what}: left out ({error})"),
            Err(error) => bail!(Failure {
                what: format!("{what}: {error}"),
                lines: Vec::new(),
                remedy: "in a container: run it with --privileged, or with these mounts of the host".to_owned(),
            }),
        }
    }
    Ok(())
}

/// Kernel and toolchains, for the record of a test run.
pub fn describe() -> String {
    let kernel = output(Command::new("uname").arg("-srm")).unwrap_or_default();
    let rust = output(cargo(&["--version"]).env_remove("RUSTUP_TOOLCHAIN")).unwrap_or_default();
    let bpf = Toolchain::all()
        .next()
        .map_or_else(|| "none".to_owned(), |toolchain| toolchain.name);
    format!("{}; {}; for the kernel programs: {bpf}", kernel.trim(), rust.trim())
}
