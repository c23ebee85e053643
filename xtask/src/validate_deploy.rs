//! `cargo xtask validate-deploy`: holds the manifests in deploy/ against the
//! published schemas of Kubernetes, the unit against systemd's own check, and the
//! alert rules against Prometheus's.
//! Needs no cluster. Bias: strict, so that a misspelt field is an error.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::command::{command, output, quiet, shown};
use crate::place;
use crate::progress::Step;
use crate::tally::Tally;

/// The checker, and with it the newest Kubernetes that it knows.
const CHECKER: &str = "kubernetes-validate==1.37.0";
/// Oldest Kubernetes that the manifests are for.
const OLDEST: &str = "1.29";

/// Checks everything.
///
/// # Errors
/// When something is wrong, or the checker can't be installed.
pub fn run() -> Result<()> {
    check(&mut Tally::default())
}

/// The same, as a part of the tests.
///
/// # Errors
/// When something is wrong, or the checker can't be installed.
pub fn check(tally: &mut Tally) -> Result<()> {
    let kubernetes = kubernetes();
    let systemd = systemd(tally);
    let alerts = alerts(tally);
    kubernetes.and(systemd).and(alerts)
}

/// Files in deploy/ that end so.
fn files(end: &str) -> Result<Vec<PathBuf>> {
    let folder = place::root().join("deploy");
    let entries = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|found| found == end));
    files.sort();
    ensure!(!files.is_empty(), "there is no .{end} file in deploy/");
    Ok(files)
}

fn kubernetes() -> Result<()> {
    let folder = place::root().join("target/venv");
    let (pip, checker) = (folder.join("bin/pip"), folder.join("bin/kubernetes-validate"));
    let stamp = folder.join("checker");
    if fs::read_to_string(&stamp).is_ok_and(|text| text == CHECKER) && checker.is_file() {
        // Installed by an earlier run.
    } else {
        let step = Step::begin("checker of Kubernetes manifests");
        let remedy = "Debian: `apt-get install python3-venv`; and see that this machine reaches PyPI";
        quiet(
            &step,
            command("python3").args(["-m", "venv", "--clear"]).arg(&folder),
            remedy,
        )?;
        quiet(
            &step,
            command(pip).args(["install", "--disable-pip-version-check", CHECKER]),
            remedy,
        )?;
        fs::write(&stamp, CHECKER).context("stamp of the checker")?;
        step.done();
    }
    let manifests = files("yaml")?;
    let newest = shown(command(&checker).arg("--strict").args(&manifests));
    newest.and(shown(
        command(&checker).args(["--strict", "-k", OLDEST]).args(&manifests),
    ))
}

fn systemd(tally: &mut Tally) -> Result<()> {
    if place::program("systemd-analyze").is_none() {
        eprintln!("left out: there is no systemd-analyze to check the unit with");
        tally.skipped += 1;
        return Ok(());
    }
    let folder = place::root().join("target/units");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    for file in files("service")? {
        let unit = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        // The check asks for the program, which is not installed here.
        let unit = unit.replace("/usr/local/bin/tracewire", "/bin/true");
        let copy = folder.join(file.file_name().unwrap_or_default());
        fs::write(&copy, unit).with_context(|| copy.display().to_string())?;
        // It warns and succeeds; a warning is as good as an error here.
        let mut verify = command("systemd-analyze");
        verify.args(["verify", "--man=no", "--recursive-errors=one"]).arg(&copy);
        let found = verify.output().context("systemd-analyze")?;
        let text = String::from_utf8_lossy(&found.stderr);
        ensure!(
            found.status.success() && text.trim().is_empty(),
            "{}:\n{text}",
            file.display()
        );
        eprintln!("{}: valid, by {}", file.display(), version());
    }
    Ok(())
}

/// Alert rules by Prometheus's own check and unit tests (Debian: `prometheus`).
fn alerts(tally: &mut Tally) -> Result<()> {
    let unpacked = place::unpacked("prometheus").join("usr/bin/promtool");
    let Some(promtool) = place::program("promtool").or(Some(unpacked).filter(|file| file.is_file())) else {
        eprintln!("left out: there is no promtool to test the alert rules with");
        tally.skipped += 1;
        return Ok(());
    };
    let folder = place::root().join("deploy/config");
    shown(
        command(&promtool)
            .args(["check", "rules"])
            .arg(folder.join("alerts.yaml")),
    )?;
    shown(
        command(&promtool)
            .args(["test", "rules"])
            .arg(folder.join("alerts_test.yaml")),
    )
}

fn version() -> String {
    let version = output(command("systemd-analyze").arg("--version")).unwrap_or_default();
    version.lines().next().unwrap_or_default().to_owned()
}
