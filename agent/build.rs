//! Puts the kernel programs' object into the agent: one file to copy. Bias:
//! without an object the agent builds all the same, and says so when it is
//! asked to attach.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use std::{env, io};

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=TRACEWIRE_BPF_OBJECT");
    let root = env::var("CARGO_MANIFEST_DIR").map(PathBuf::from).unwrap_or_default();
    let named = env::var_os("TRACEWIRE_BPF_OBJECT").map(PathBuf::from);
    let is_named = named.is_some();
    let object = named.unwrap_or_else(|| root.join("../target/bpf/tracewire.bpf.o"));
    if !is_named {
        make_place(&object);
    }
    println!("cargo:rerun-if-changed={}", object.display());
    let bytes = match fs::read(&object) {
        Ok(bytes) => bytes,
        // One that was asked for by name must be there.
        Err(error) if is_named => {
            println!("cargo::error=can't read {}: {error}", object.display());
            return Err(error);
        }
        Err(_) => Vec::new(),
    };
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("tracewire.bpf.o");
    fs::write(&out, bytes).inspect_err(|error| println!("cargo::error=can't write {}: {error}", out.display()))
}

/// Makes an empty object where there is none: Cargo takes a file that is not
/// there for one that has changed, and would build the agent anew every time.
/// It is dated long ago, so that it does not count as changed either.
fn make_place(object: &Path) {
    let made = object.parent().map(fs::create_dir_all);
    if let (Some(Ok(())), Ok(file)) = (made, File::create_new(object)) {
        let _ = file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1));
    }
}
