//! Where things are: the repository, build results, Cargo's programs.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Root of the repository.
pub fn root() -> PathBuf {
    // Cargo names the package's folder at run time too; what was compiled in is
    // right as long as the repository has not moved.
    let package = env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    package.parent().map_or_else(|| package.clone(), Path::to_owned)
}

/// Folder of the host's build results.
pub fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => env::current_dir().unwrap_or_default().join(folder),
        None => root().join("target"),
    }
}

/// Folder of the kernel programs' build results. Not the host's, whose
/// fingerprints another compiler would make stale.
pub fn bpf_target() -> PathBuf {
    root().join("target/bpf")
}

/// The kernel programs, where the agent's build looks for them.
pub fn bpf_object() -> PathBuf {
    bpf_target().join("tracewire.bpf.o")
}

/// The agent.
pub fn agent() -> PathBuf {
    target().join("release/tracewire")
}

/// Folder of the programs that `cargo install` makes.
pub fn cargo_programs() -> PathBuf {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    home.unwrap_or_else(|| PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cargo"))
        .join("bin")
}

/// `PATH`, with [`cargo_programs`] first, as rustup has it: a distribution's
/// Cargo, which `setup` may have installed, must not come before the user's.
pub fn path() -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(cargo_programs()).chain(env::split_paths(&path));
    env::join_paths(folders).unwrap_or(path)
}

/// Folder of a system package that was unpacked and not installed.
pub fn unpacked(package: &str) -> PathBuf {
    root().join("target/peers").join(package)
}

/// The program of this name on [`path`].
pub fn program(name: &str) -> Option<PathBuf> {
    env::split_paths(&path())
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}
