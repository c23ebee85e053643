//! `cargo xtask build-ebpf`: compiles the kernel programs into one object file
//! for the agent to carry.

use std::fs;

use anyhow::{Context, Result};
use object::build::elf::{Builder, SectionData};
use object::elf::SHT_STRTAB;

use crate::command::quiet;
use crate::progress::Step;
use crate::toolchain::{REMEDY, TARGET, Toolchain, has_linker};
use crate::{place, setup, stack};

/// Builds `target/bpf/tracewire.bpf.o`; installs a toolchain first if there is
/// none and this is root.
///
/// # Errors
/// When there is no toolchain, or the programs do not compile.
pub fn run() -> Result<()> {
    if Toolchain::all().next().is_none() || !has_linker() {
        setup::toolchain()?;
    }
    let toolchain = Toolchain::all()
        .next()
        .with_context(|| format!("there is no Rust for the kernel programs: {REMEDY}"))?;
    let step = Step::begin("kernel programs");
    let mut build = toolchain.command("cargo");
    build.args(["build", "--package", "tracewire-ebpf", "--bin", "tracewire-ebpf"]);
    build.args(["--release", "-Z", "build-std=core", "--target", TARGET]);
    let remedy = format!(
        "mend what the compiler names; if it is bpf-linker that complains, its LLVM may be older than that of {}",
        toolchain.name
    );
    quiet(&step, &mut build, &remedy)?;
    let built = place::bpf_target().join(TARGET).join("release/tracewire-ebpf");
    let bytes = fs::read(&built).with_context(|| format!("{} is not there after the build", built.display()))?;
    let bytes = without_debug_sections(&bytes).with_context(|| built.display().to_string())?;
    let (deepest, chain) = stack::check(&bytes).context("the oldest kernels would refuse these programs")?;
    step.line(&format!("stack: {deepest} bytes at most, {chain}"));
    // Only if it is another: a new time stamp would have the agent built again.
    if fs::read(place::bpf_object()).ok().as_ref() != Some(&bytes) {
        let new = place::bpf_target().join("tracewire.bpf.o.new");
        fs::write(&new, &bytes)
            .and_then(|()| fs::rename(&new, place::bpf_object()))
            .context("copy of the object")?;
    }
    step.done();
    Ok(())
}

/// The object without its DWARF, which nobody reads once BTF is made of it:
/// the agent carries the rest in its memory.
fn without_debug_sections(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut object = Builder::read(bytes).context("not an object file")?;
    for section in object.sections.iter_mut() {
        let name = section.name.to_string();
        section.delete = name.starts_with(".debug_") || name.starts_with(".rel.debug_");
    }
    // LLVM keeps the sections' names with the symbols'; the writer wants them apart.
    let names = object.sections.add();
    names.name = b".shstrtab".as_slice().into();
    names.sh_type = SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
    let mut stripped = Vec::new();
    object.write(&mut stripped).context("strip the object")?;
    Ok(stripped)
}
