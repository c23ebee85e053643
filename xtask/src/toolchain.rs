//! The compilers that can build for the kernel: any Rust with its library's
//! source (rustup's or the distribution's), and bpf-linker. Bias: the
//! distribution's comes first, because its LLVM is the one that the
//! distribution's bpf-linker is built with, and a newer linker reads it too.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::{command, output};
use crate::place;

/// Oldest Rust that builds the kernel programs: the workspace's `rust-version`.
const OLDEST: (u32, u32) = (1, 94);

/// Target of the kernel programs: little-endian BPF.
pub const TARGET: &str = "bpfel-unknown-none";

/// A Rust with its library's source.
#[derive(Debug)]
pub struct Toolchain {
    /// What it is called.
    pub name: String,
    /// Folder of `cargo`, `rustc` and the rest.
    pub programs: PathBuf,
}

impl Toolchain {
    /// The toolchain under this prefix, if it is whole and new enough.
    fn at(prefix: &Path, name: &str) -> Option<Self> {
        let programs = prefix.join("bin");
        let whole = prefix.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file()
            && programs.join("cargo").is_file()
            && programs.join("rustc").is_file();
        let version = whole
            .then(|| output(Command::new(programs.join("rustc")).arg("--version")))
            .flatten()?;
        (number(&version)? >= OLDEST).then(|| Toolchain {
            name: format!("{name} ({})", version.trim()),
            programs,
        })
    }

    /// All that are here, best first.
    pub fn all() -> impl Iterator<Item = Self> {
        let distribution = std::iter::once((PathBuf::from("/usr"), "the distribution's".to_owned()));
        let rustup = rustup_toolchains().into_iter().map(|prefix| {
            let name = prefix.file_name().unwrap_or_default().to_string_lossy().into_owned();
            (prefix, name)
        });
        distribution
            .chain(rustup)
            .filter_map(|(prefix, name)| Toolchain::at(&prefix, &name))
    }

    /// A command of this toolchain, set up to compile for the kernel.
    pub fn command(&self, program: &str) -> Command {
        let mut command = command(self.programs.join(program));
        for inherited in [
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_BUILD_TARGET",
            "RUSTUP_TOOLCHAIN",
            "CARGO_MANIFEST_DIR",
        ] {
            command.env_remove(inherited);
        }
        command
            // `-Z build-std` on a released compiler: there is no compiled core for BPF.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO", self.programs.join("cargo"))
            .env("RUSTC", self.programs.join("rustc"))
            // BTF is made of the debug information; one unit, so that the linker sees it whole.
            // Memory of known size is copied and cleared by words: otherwise by a loop over its bytes.
            .env(
                "RUSTFLAGS",
                "-C debuginfo=2 -C link-arg=--btf -C link-arg=--disable-expand-memcpy-in-order",
            )
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
            .env("CARGO_PROFILE_RELEASE_LTO", "off")
            .env("CARGO_TARGET_DIR", place::bpf_target());
        command
    }

    /// Its clippy, if it has one. By its path: `cargo clippy` would take
    /// rustup's, which does not fit the distribution's compiler.
    pub fn clippy(&self) -> Option<Command> {
        let whole = self.programs.join("cargo-clippy").is_file() && self.programs.join("clippy-driver").is_file();
        whole.then(|| {
            let mut clippy = self.command("cargo-clippy");
            clippy.arg("clippy");
            clippy
        })
    }
}

/// Folders of rustup's toolchains, nightly ones first.
fn rustup_toolchains() -> Vec<PathBuf> {
    let home = std::env::var_os("RUSTUP_HOME").map(PathBuf::from);
    let home = home.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".rustup"));
    let folders = std::fs::read_dir(home.join("toolchains"));
    let mut folders: Vec<_> = folders
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    folders.sort();
    folders.sort_by_key(|folder| {
        !folder
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("nightly"))
    });
    folders
}

/// Major and minor of `rustc 1.96.0 (…)`.
fn number(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.strip_prefix("rustc ")?.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Whether bpf-linker is here and starts (it needs its LLVM's library).
pub fn has_linker() -> bool {
    place::program("bpf-linker").is_some_and(|file| output(Command::new(file).arg("--version")).is_some())
}

/// What to do when there is no toolchain for the kernel programs.
pub const REMEDY: &str = "on Debian, as root: `cargo xtask setup`. Elsewhere: `rustup toolchain install nightly \
    --component rust-src` and `cargo install bpf-linker`";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_rustc_prints_them() {
        assert_eq!(
            number("rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)"),
            Some((1, 96))
        );
        assert_eq!(number("rustc 1.97.0-nightly (e50aa6fba 2026-05-19)"), Some((1, 97)));
        assert_eq!(number("something else"), None);
    }
}
