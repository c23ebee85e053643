//! `cargo xtask backends`: the OTLP exporter against collectors that are not ours: rotel, the
//! OpenTelemetry Collector and Jaeger. The long form, which builds the latter two with Go (some
//! ten minutes, once). Bias: a program that a variable names (ROTEL, OTELCOL, JAEGER) is taken as it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::{cargo, command, output, quiet, shown};
use crate::place;
use crate::progress::Step;

const ROTEL: &str = "rotel";
const BUILDER: &str = "go.opentelemetry.io/collector/cmd/builder@v0.150.0";
const JAEGER: &str = "github.com/jaegertracing/jaeger";
/// The newest that is a module; it holds the code of v2.
const JAEGER_VERSION: &str = "v1.76.0";
const REMEDY: &str =
    "Debian: `apt-get install golang python3-venv`; Go must be 1.25 or newer, and reach its module proxy";

/// Makes a program in a folder.
type Make = fn(&Path) -> Result<PathBuf>;

/// Makes what is missing and runs the tests against it.
///
/// # Errors
/// When a program can't be had, or a test fails.
pub fn run() -> Result<()> {
    let folder = place::target().join("backends");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let mut test = cargo(&[
        "test",
        "--package",
        "tracewire",
        "--test",
        "backends",
        "--",
        "--ignored",
    ]);
    let programs: [(&str, Make); 3] = [("ROTEL", rotel), ("OTELCOL", collector), ("JAEGER", jaeger)];
    for (variable, make) in programs {
        if std::env::var_os(variable).is_none() {
            test.env(variable, make(&folder)?);
        }
    }
    shown(&mut test)
}

fn step(name: &str, commands: &mut [Command]) -> Result<()> {
    let step = Step::begin(name);
    for command in commands {
        quiet(&step, command, REMEDY)?;
    }
    step.done();
    Ok(())
}

fn rotel(folder: &Path) -> Result<PathBuf> {
    let venv = folder.join("venv");
    let place = "import rotel, os; print(os.path.join(os.path.dirname(rotel.__file__), 'rotel-agent'))";
    let find = || output(command(venv.join("bin/python")).args(["-c", place]));
    if find().is_none() {
        let mut make = command("python3");
        make.args(["-m", "venv"]).arg(&venv);
        let mut install = command(venv.join("bin/pip"));
        install.args(["install", "--quiet", ROTEL]);
        step("rotel", &mut [make, install])?;
    }
    Ok(find().context("rotel has no rotel-agent")?.trim().into())
}

fn collector(folder: &Path) -> Result<PathBuf> {
    let program = folder.join("otelcol/otelcol");
    if !program.is_file() {
        let mut install = command("go");
        install.args(["install", BUILDER]).env("GOBIN", folder);
        let mut build = command(folder.join("builder"));
        build
            .arg("--config")
            .arg(place::root().join("agent/tests/backends/collector.yaml"))
            .current_dir(folder);
        step("the OpenTelemetry Collector, from source", &mut [install, build])?;
    }
    Ok(program)
}

/// A module of its own, since Jaeger's replaces some of its dependencies and so can't be installed.
fn jaeger(folder: &Path) -> Result<PathBuf> {
    let module = folder.join("jaeger-build");
    let program = module.join("jaeger");
    if program.is_file() {
        return Ok(program);
    }
    fs::create_dir_all(&module).with_context(|| module.display().to_string())?;
    let name = format!("{JAEGER}@{JAEGER_VERSION}");
    let go = |arguments: &[&str]| {
        let mut go = command("go");
        go.args(arguments).current_dir(&module);
        go
    };
    let said = output(&mut go(&["mod", "download", "-json", &name])).context("`go mod download` failed")?;
    let said: serde_json::Value = serde_json::from_str(&said).context("`go mod download -json`")?;
    let source = Path::new(said["Dir"].as_str().context("no Dir")?);
    let text = fs::read_to_string(source.join("go.mod")).context("Jaeger's go.mod")?;
    let own = text.replacen(&format!("module {JAEGER}"), "module jaeger-build", 1);
    fs::write(module.join("go.mod"), own).context("go.mod")?;
    let sums = fs::read(source.join("go.sum")).context("Jaeger's go.sum")?;
    fs::write(module.join("go.sum"), sums).context("go.sum")?;
    let mut commands = [
        go(&["mod", "edit", "-require", &name]),
        go(&["build", "-mod=mod", &format!("{JAEGER}/cmd/jaeger")]),
    ];
    step("Jaeger, from source", &mut commands)?;
    Ok(program)
}
