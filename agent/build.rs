//! Puts the kernel programs' object into the agent: one file to copy.

use std::path::PathBuf;
use std::{env, fs};

fn main() {
    println!("cargo:rerun-if-env-changed=TRACEWIRE_BPF_OBJECT");
    let root = env::var("CARGO_MANIFEST_DIR").map(PathBuf::from).unwrap_or_default();
    let object =
        env::var_os("TRACEWIRE_BPF_OBJECT").map_or_else(|| root.join("../target/bpf/tracewire.bpf.o"), PathBuf::from);
    println!("cargo:rerun-if-changed={}", object.display());
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("tracewire.bpf.o");
    // Without an object the agent still builds; it says so when it is asked to attach.
    let bytes = fs::read(&object).unwrap_or_default();
    if let Err(error) = fs::write(&out, bytes) {
        println!("cargo::error=can't write {}: {error}", out.display());
    }
}
