//! Hands the compiled kernel programs to the agent, which carries them: the
//! environment variable `TRACEWIRE_BPF_OBJECT` names the file to include. It is
//! the file that the same variable names for this script, else what
//! `cargo xtask build-ebpf` made. Bias: without either the agent builds all the
//! same, with an empty object, and says at run time that it was built without.

use std::env;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// What to include, for this script and for the agent's source.
const VARIABLE: &str = "TRACEWIRE_BPF_OBJECT";

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed={VARIABLE}");
    let object = match env::var_os(VARIABLE) {
        Some(path) => PathBuf::from(path),
        None => {
            let built = Path::new(&env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join("../target/bpf");
            let built = built.join("tracewire.bpf.o");
            make_place(&built);
            built
        }
    };
    println!("cargo:rerun-if-changed={}", object.display());
    let bytes = match fs::read(&object) {
        Ok(bytes) => bytes,
        // A file that was asked for by name must be there.
        Err(error) if env::var_os(VARIABLE).is_some() => {
            return Err(io::Error::new(
                error.kind(),
                format!("{VARIABLE}={}: {error}", object.display()),
            ));
        }
        Err(_) => Vec::new(),
    };
    let carried = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("tracewire.bpf.o");
    fs::write(&carried, bytes)?;
    println!("cargo:rustc-env={VARIABLE}={}", carried.display());
    Ok(())
}

/// Makes an empty object where there is none: Cargo takes a file that is not
/// there for one that has changed, and would build the agent anew every time.
/// It is dated long ago, so that it does not count as changed either.
fn make_place(object: &Path) {
    let file = object
        .parent()
        .map(fs::create_dir_all)
        .and_then(|_| File::create_new(object).ok());
    if let Some(file) = file {
        let _ = file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1));
    }
}
