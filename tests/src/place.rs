//! Where things are: the repository, the agent, the workloads.

use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Result, ensure};

/// Root of the repository.
pub fn root() -> PathBuf {
    let package = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    package.parent().map_or_else(|| package.clone(), Path::to_owned)
}

/// The agent: `TRACEWIRE_BIN`, else the release build of this workspace.
///
/// # Errors
/// When it is not there.
pub fn agent() -> Result<PathBuf> {
    let path = env::var_os("TRACEWIRE_BIN").map_or_else(
        || {
            let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
            target.join("release/tracewire")
        },
        PathBuf::from,
    );
    ensure!(
        fs::metadata(&path).is_ok_and(|file| file.is_file()),
        "there is no agent at {}: build it with `cargo xtask build`, or name one with TRACEWIRE_BIN",
        path.display()
    );
    Ok(path)
}

/// Sources of a workload.
pub fn workload_source(name: &str) -> PathBuf {
    root().join("tests/workloads").join(name)
}

/// Where a workload is built.
pub fn workload(name: &str) -> PathBuf {
    root().join("target/workloads").join(name)
}

/// A program on the path, or of a system package that `cargo xtask test` unpacked.
pub fn program(package: &str, name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let unpacked = root().join("target/peers").join(package);
    let found = env::split_paths(&path)
        .chain([unpacked.join("usr/bin"), unpacked.join("usr/sbin")])
        .map(|folder| folder.join(name))
        .find(|file| file.is_file());
    if found.is_none() {
        println!("\nskipped: there is no {name} (Debian: `apt-get install {package}`)");
    }
    found
}
