//! Kernels of chosen series, from Debian's archive, unpacked and not
//! installed. Bias: apt does the work (signatures, mirrors, proxies), in a
//! state of its own, so that the host's sources and packages stay untouched.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::{Failure, command, output, quiet};
use crate::place;
use crate::progress::Step;

/// Where the kernels of several series are, by the label of the archive.
const SUITES: [(&str, &str); 5] = [
    ("Debian-Security", "bullseye-security"),
    ("Debian-Security", "bookworm-security"),
    ("Debian-Security", "trixie-security"),
    ("Debian", "bookworm-backports"),
    ("Debian", "trixie-backports"),
];
/// Debian's signatures.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// The flavour: small, with BTF, fentry, kprobes and virtiofs.
const FLAVOUR: &str = "-cloud-amd64";
/// Packages smaller than this hold no kernel, bytes.
const SMALLEST: u64 = 1_000_000;

/// A kernel and its modules.
pub struct Kernel {
    /// Where it is unpacked.
    pub folder: PathBuf,
    /// Its release, as `uname -r` says it.
    pub release: String,
}

impl Kernel {
    /// The kernel of a series, like `6.12`, or `latest`; fetched if it is not here.
    ///
    /// # Errors
    /// When the archive has none, or can't be reached.
    pub fn of(series: &str) -> Result<Self> {
        let folder = place::root().join("target/vm/kernels").join(series);
        let note = folder.join("release");
        if !note.is_file() {
            fetch(series, &folder).with_context(|| format!("kernel {series}"))?;
        }
        let release = fs::read_to_string(&note).with_context(|| format!("read {}", note.display()))?;
        Ok(Kernel {
            folder,
            release: release.trim().to_owned(),
        })
    }

    /// The kernel's image.
    ///
    /// # Errors
    /// When the package is not laid out as any known one.
    pub fn image(&self) -> Result<PathBuf> {
        let modules = self.modules();
        [
            self.folder.join("boot").join(format!("vmlinuz-{}", self.release)),
            modules.join("vmlinuz"),
            modules.join("vmlinuz.unsigned"),
        ]
        .into_iter()
        .find(|file| file.is_file())
        .with_context(|| format!("no kernel image in {}", self.folder.display()))
    }

    fn modules(&self) -> PathBuf {
        self.folder.join("lib/modules").join(&self.release)
    }

    /// The files of a module and of those it needs, in the order in which they
    /// are loaded; none where it is built in.
    pub fn files_of(&self, module: &str) -> Vec<PathBuf> {
        let mut modprobe = command("modprobe");
        modprobe.arg("--dirname").arg(&self.folder);
        modprobe.args(["--set-version", &self.release, "--show-depends", module]);
        let listed = output(&mut modprobe).unwrap_or_default();
        let file = |line: &str| Some(PathBuf::from(line.strip_prefix("insmod ")?.trim()));
        listed.lines().filter_map(file).collect()
    }
}

/// One package of the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Package {
    name: String,
    version: String,
    size: u64,
}

/// The paragraphs of `apt-cache dumpavail`.
fn packages(listed: &str) -> Vec<Package> {
    let field = |paragraph: &str, name: &str| {
        let mut lines = paragraph.lines();
        lines.find_map(|line| line.strip_prefix(name).map(|rest| rest.trim().to_owned()))
    };
    let package = |paragraph: &str| {
        Some(Package {
            name: field(paragraph, "Package:")?,
            version: field(paragraph, "Version:")?,
            size: field(paragraph, "Size:")?.parse().ok()?,
        })
    };
    listed.split("\n\n").filter_map(package).collect()
}

/// The numbers of a version, to compare by.
fn numbers(version: &str) -> Vec<u64> {
    version
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|n| n.parse().ok())
        .collect()
}

/// The packages to unpack for a series, and the release of its kernel.
/// Until 6.18 one package holds all; later the image and the modules are apart.
fn choose(all: &[Package], series: &str) -> Option<(String, Vec<Package>)> {
    let names: HashSet<_> = all.iter().map(|p| p.name.as_str()).collect();
    let wanted = (series != "latest").then(|| numbers(series));
    let release = |p: &Package| {
        let prefixes = ["linux-image-", "linux-binary-unsigned-", "linux-binary-"];
        let rest = prefixes.iter().find_map(|prefix| p.name.strip_prefix(prefix))?;
        (rest.starts_with(|c: char| c.is_ascii_digit()) && rest.ends_with(FLAVOUR)).then(|| rest.to_owned())
    };
    let whole = |p: &Package, release: &str| {
        p.name.starts_with("linux-image-") || names.contains(format!("linux-modules-{release}").as_str())
    };
    let in_series = |p: &Package| {
        wanted
            .as_ref()
            .is_none_or(|wanted| numbers(&p.version).starts_with(wanted))
    };
    let (release, best) = all
        .iter()
        .filter(|p| p.size > SMALLEST && in_series(p))
        .filter_map(|p| Some((release(p)?, p)))
        .filter(|(release, p)| whole(p, release))
        .max_by_key(|(_, p)| numbers(&p.version))?;
    let modules = format!("linux-modules-{release}");
    let beside = all.iter().filter(|p| p.name == modules && p.version == best.version);
    let chosen = std::iter::once(best).chain(beside).cloned().collect();
    Some((release, chosen))
}

/// apt with a state of its own.
fn apt(program: &str, state: &Path) -> Command {
    let mut apt = command(program);
    let at = |key: &str, path: &str| format!("{key}={}", state.join(path).display());
    for option in [
        at("Dir::Etc::sourcelist", "sources.list"),
        "Dir::Etc::sourceparts=-".to_owned(),
        at("Dir::State", "state"),
        at("Dir::State::status", "status"),
        at("Dir::Cache", "cache"),
        "APT::Sandbox::User=root".to_owned(),
        "Acquire::Languages=none".to_owned(),
        // Suites that are no longer served fresh are still good for a test.
        "Acquire::Check-Valid-Until=false".to_owned(),
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
    ] {
        apt.args(["-o", &option]);
    }
    apt
}

/// The archive's address, from the host's own sources.
fn address(label: &str) -> Option<String> {
    let listed = output(command("apt-get").args(["indextargets", "--format", "$(LABEL) $(REPO_URI)"]))?;
    let found = listed
        .lines()
        .find_map(|line| line.strip_prefix(label)?.strip_prefix(' '));
    found.map(ToOwned::to_owned)
}

fn fetch(series: &str, folder: &Path) -> Result<()> {
    let step = Step::begin(format!("kernel {series}, from Debian's archive"));
    let state = place::root().join("target/vm/apt");
    for empty in ["state/lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(state.join(empty))?;
    }
    fs::write(state.join("status"), "")?;
    let mut sources = String::new();
    for (label, suite) in SUITES {
        if let Some(address) = address(label) {
            sources.push_str(&format!("deb [arch=amd64 signed-by={KEYS}] {address} {suite} main\n"));
        }
    }
    fs::write(state.join("sources.list"), sources)?;
    let remedy = "run this on Debian with the archive and its security suite in apt's sources";
    quiet(&step, apt("apt-get", &state).arg("update"), remedy)?;
    let listed = output(apt("apt-cache", &state).arg("dumpavail")).context("apt-cache dumpavail")?;
    let Some((release, chosen)) = choose(&packages(&listed), series) else {
        bail!(Failure {
            what: format!("the archive has no kernel {series} with its modules"),
            lines: Vec::new(),
            remedy: "name a series it has, like 6.1 or 6.12, or `latest`".to_owned(),
        });
    };
    let fresh = folder.with_extension("new");
    let _ = fs::remove_dir_all(&fresh);
    fs::create_dir_all(fresh.join("lib"))?;
    let mut download = apt("apt-get", &state);
    download.arg("download").current_dir(&fresh);
    download.args(chosen.iter().map(|p| format!("{}={}", p.name, p.version)));
    quiet(&step, &mut download, remedy)?;
    for entry in fs::read_dir(&fresh)? {
        let file = entry?.path();
        if file.extension().is_some_and(|e| e == "deb") {
            quiet(
                &step,
                command("dpkg-deb").arg("--extract").arg(&file).arg(&fresh),
                remedy,
            )?;
            fs::remove_file(file)?;
        }
    }
    // Later packages have their modules under usr.
    if !fresh.join("lib/modules").is_dir() {
        fs::rename(fresh.join("usr/lib/modules"), fresh.join("lib/modules")).context("the package has no modules")?;
    }
    quiet(
        &step,
        command("depmod").arg("--basedir").arg(&fresh).arg(&release),
        "install the package kmod",
    )?;
    fs::write(fresh.join("release"), release)?;
    let _ = fs::remove_dir_all(folder);
    fs::rename(&fresh, folder).with_context(|| format!("rename to {}", folder.display()))?;
    step.done();
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const LISTED: &str = "\
Package: linux-image-6.1.0-48-cloud-amd64\nVersion: 6.1.172-1\nSize: 26424228\n
Package: linux-image-6.1.0-56-cloud-amd64\nVersion: 6.1.192-2\nSize: 26724228\n
Package: linux-image-6.1.0-99-amd64\nVersion: 6.1.200-1\nSize: 70724228\n
Package: linux-image-6.12.9+deb12-cloud-amd64\nVersion: 6.12.9-1\nSize: 34324228\n
Package: linux-image-7.3.4+deb13-cloud-amd64\nVersion: 7.3.4-1~bpo13+1\nSize: 1200\n
Package: linux-binary-7.3.4+deb13-cloud-amd64\nVersion: 7.3.4-1~bpo13+1\nSize: 13000000\n
Package: linux-modules-7.3.4+deb13-cloud-amd64\nVersion: 7.3.4-1~bpo13+1\nSize: 20000000\n
Package: linux-binary-7.4.1+deb13-cloud-amd64\nVersion: 7.4.1-1~bpo13+1\nSize: 13000000\n";

    fn chosen(series: &str) -> Option<(String, Vec<String>)> {
        let (release, packages) = choose(&packages(LISTED), series)?;
        Some((release, packages.into_iter().map(|p| p.name).collect()))
    }

    #[test]
    fn the_newest_of_the_series_is_taken_and_no_other_series() {
        let (release, names) = chosen("6.1").unwrap();
        assert_eq!(release, "6.1.0-56-cloud-amd64");
        assert_eq!(names, ["linux-image-6.1.0-56-cloud-amd64"]);
        assert_eq!(chosen("6.12").unwrap().0, "6.12.9+deb12-cloud-amd64");
        assert!(chosen("5.4").is_none());
    }

    #[test]
    fn a_kernel_in_two_packages_is_taken_only_with_its_modules() {
        let (_, names) = chosen("latest").unwrap();
        assert_eq!(
            names,
            [
                "linux-binary-7.3.4+deb13-cloud-amd64",
                "linux-modules-7.3.4+deb13-cloud-amd64"
            ]
        );
    }
}
