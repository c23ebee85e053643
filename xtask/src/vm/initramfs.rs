//! The files that the kernel starts with: a shell, the modules that reach the
//! host's files, the command. In the format `newc`
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::archive::Kernel;
use crate::place;

/// What reaches the host's files and speaks to it.
const MODULES: [&str; 4] = ["virtio_pci", "virtio_console", "virtiofs", "overlay"];
const FOLDERS: [&str; 11] = [
    "bin", "sbin", "dev", "proc", "sys", "host", "layer", "root", "modules", "job", "tmp",
];
/// Modules that the kernel asks for later are looked for in the host's root.
const MODPROBE: &str = "#!/bin/sh\nexec /bin/chroot /root /sbin/modprobe \"$@\"\n";
const INIT: &str = include_str!("init.sh");

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// An archive under way.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let (size, name_size) = (content.len() as u32, name.len() as u32 + 1);
        // Magic; inode, mode, owner, group, links, time, size, 4 device numbers, size of the name, checksum.
        self.bytes.extend_from_slice(b"070701");
        for field in [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0] {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// Builds it: `settings` and `command` are read by the guest's first process.
///
/// # Errors
/// When a file can't be read or unpacked.
pub fn build(kernel: &Kernel, settings: &str, command: &str) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in FOLDERS {
        archive.add(folder, FOLDER, b"");
    }
    let busybox = place::program("busybox").context("there is no busybox")?;
    archive.add("bin/busybox", PROGRAM, &fs::read(busybox)?);
    archive.add("sbin/modprobe", PROGRAM, MODPROBE.as_bytes());
    archive.add("init", PROGRAM, INIT.as_bytes());
    let mut files: Vec<PathBuf> = Vec::new();
    for file in MODULES.iter().flat_map(|module| kernel.files_of(module)) {
        if !files.contains(&file) {
            files.push(file);
        }
    }
    let mut order = String::new();
    for file in &files {
        let name = file.file_stem().unwrap_or_default().to_string_lossy();
        let name = name.trim_end_matches(".ko");
        archive.add(&format!("modules/{name}"), PROGRAM, &module(file)?);
        order.push_str(name);
        order.push('\n');
    }
    archive.add("modules/order", PROGRAM, order.as_bytes());
    archive.add("job/settings", PROGRAM, settings.as_bytes());
    archive.add("job/command", PROGRAM, command.as_bytes());
    archive.add("TRAILER!!!", 0, b"");
    Ok(archive.bytes)
}

/// A module, unpacked.
fn module(file: &Path) -> Result<Vec<u8>> {
    let unpack = match file.extension().and_then(|e| e.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return fs::read(file).with_context(|| format!("read {}", file.display())),
    };
    let output = Command::new(unpack)
        .args(["--decompress", "--stdout"])
        .arg(file)
        .output()?;
    anyhow::ensure!(output.status.success(), "{unpack} can't unpack {}", file.display());
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_begins_at_a_multiple_of_four() {
        let mut archive = Archive::default();
        archive.add("init", PROGRAM, b"12345");
        // 110 bytes of header, 5 of the name, 1 of padding; 5 of content, 3 of padding.
        assert_eq!(archive.bytes.len(), 116 + 8);
        assert!(archive.bytes.starts_with(b"07070100000001000081ed"));
        assert_eq!(archive.bytes.get(116..121), Some(b"12345".as_slice()));
    }
}
