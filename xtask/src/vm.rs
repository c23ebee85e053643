//! `cargo xtask vm`: a command under another kernel, in software emulation,
//! with this machine's files. Bias: the machine outside stays as it is; what
//! the command writes is gone with the virtual machine, except in folders that
//! are named.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::command::{Failure, command};
use crate::place;
use crate::running::{Running, Stop};
use crate::setup;

mod archive;
mod initramfs;

/// What it takes, beyond what every task takes.
const PACKAGES: [&str; 5] = ["qemu-system-x86", "busybox-static", "kmod", "xz-utils", "zstd"];
/// The daemon that serves the host's files, where Debian 12 has it.
const DAEMON: &str = "/usr/lib/qemu/virtiofsd";
/// Exit code when the time is over, as of timeout(1).
const TIME_OVER: u8 = 124;
/// Lines of the console that are shown when the machine fails.
const CONSOLE_LINES: usize = 30;
/// One that panics ends; nothing waits for clocks that emulation makes slow.
const KERNEL_LINE: &str = "console=ttyS0 panic=-1 oops=panic reboot=t quiet loglevel=4 audit=0 mitigations=off \
    tsc=reliable no_timer_check random.trust_cpu=on rdinit=/init";

/// What to run, and under which kernels.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Series of Debian kernels: 5.10, 6.1, 6.12, 6.18, latest
    #[arg(required = true, value_name = "KERNEL")]
    kernels: Vec<String>,
    /// The command; it runs as root in this folder
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
    /// Let the command write in this folder of the host's
    #[arg(long, value_name = "FOLDER")]
    write: Vec<PathBuf>,
    /// Longest time for each kernel, s
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    timeout: u64,
    /// Virtual CPUs; more than one lets the emulator lose uprobes' traps
    #[arg(long, default_value_t = 1, value_name = "N")]
    cpus: u32,
    /// Memory, MiB
    #[arg(long, default_value_t = 2048, value_name = "MIB")]
    memory: u32,
    /// More for the kernel's command line, like lockdown=integrity
    #[arg(long, default_value = "", value_name = "TEXT")]
    append: String,
    /// Hand on this environment variable
    #[arg(long, value_name = "NAME")]
    env: Vec<String>,
}

impl Arguments {
    /// One kernel and a command, with this much more on the kernel's command line.
    pub fn of(series: &str, command: Vec<String>, append: &str, timeout_s: u64) -> Self {
        Arguments {
            kernels: vec![series.to_owned()],
            command,
            write: Vec::new(),
            timeout: timeout_s,
            cpus: 1,
            memory: 2048,
            append: append.to_owned(),
            env: Vec::new(),
        }
    }
}

/// Runs the command under each kernel; the exit code is that of the first that
/// fails.
///
/// # Errors
/// When a virtual machine can't be made or dies.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::need_root("serve this machine's files to a virtual one")?;
    setup::packages("programs for virtual machines", &PACKAGES)?;
    if !Path::new(DAEMON).is_file() {
        bail!(Failure {
            what: format!("there is no {DAEMON}"),
            lines: Vec::new(),
            remedy: "run this on Debian 12".to_owned(),
        });
    }
    let stop = Stop::on_signals()?;
    let mut code = 0;
    for series in &arguments.kernels {
        let kernel = archive::Kernel::of(series)?;
        let since = Instant::now();
        eprintln!("vm: {}", kernel.release);
        let ended = boot(&kernel, arguments, &stop).with_context(|| format!("vm: {}", kernel.release))?;
        let seconds = since.elapsed().as_secs_f32();
        eprintln!("vm: {}: exit code {ended} after {seconds:.1} s", kernel.release);
        if code == 0 {
            code = ended;
        }
    }
    Ok(ExitCode::from(code))
}

/// A word for the shell, whatever is in it.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// What the guest's shell runs.
fn script(arguments: &Arguments, folder: &Path) -> String {
    let mut script = String::new();
    for name in ["PATH", "HOME", "LANG"]
        .into_iter()
        .chain(arguments.env.iter().map(String::as_str))
    {
        if let Some(value) = std::env::var_os(name) {
            script.push_str(&format!("export {name}={}\n", quoted(&value.to_string_lossy())));
        }
    }
    script.push_str(&format!("cd {}\n", quoted(&folder.to_string_lossy())));
    let words: Vec<_> = arguments.command.iter().map(|word| quoted(word)).collect();
    script.push_str(&words.join(" "));
    script.push('\n');
    script
}

/// A folder that is gone with its owner.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // Files and one empty folder: nothing is mounted here outside the daemon's own namespace.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn boot(kernel: &archive::Kernel, arguments: &Arguments, stop: &Stop) -> Result<u8> {
    let scratch = Scratch(std::env::temp_dir().join(format!("tracewire-vm-{}", std::process::id())));
    let at = |name: &str| scratch.0.join(name);
    fs::create_dir_all(at("root"))?;
    let writable: Vec<PathBuf> = arguments
        .write
        .iter()
        .map(|folder| fs::canonicalize(folder).with_context(|| format!("--write {}", folder.display())))
        .collect::<Result<_>>()?;
    let listed: Vec<_> = writable.iter().map(|f| f.to_string_lossy()).collect();
    let settings = format!(
        "KERNEL={}\nWRITABLE={}\n",
        quoted(&kernel.folder.to_string_lossy()),
        quoted(&listed.join(" "))
    );
    let script = script(arguments, &std::env::current_dir().context("this folder")?);
    fs::write(at("initramfs"), initramfs::build(kernel, &settings, &script)?)?;

    let socket = at("files");
    let mut serve = command("unshare");
    serve.args(["--mount", "--propagation", "private", "sh", "-ec", SERVE, DAEMON]);
    serve.arg(&socket).arg(at("root")).args(&writable);
    serve.stderr(fs::File::create(at("daemon.log"))?);
    let mut daemon = Running::start("virtiofsd", &mut serve, Signal::TERM, false)?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while !socket.exists() {
        if daemon.ended().is_some() || Instant::now() > deadline {
            bail!(
                "the host's files are not served: {}",
                fs::read_to_string(at("daemon.log")).unwrap_or_default()
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }

    let (output, output_end) = std::io::pipe()?;
    let (errors, errors_end) = std::io::pipe()?;
    let mut emulator = emulator(kernel, arguments, &scratch.0)?;
    emulator.stdout(output_end).stderr(errors_end);
    let mut machine = Running::start("qemu", &mut emulator, Signal::TERM, false)?;
    // The command holds the writing ends; the copies end only when they are closed.
    emulator.stdout(Stdio::null()).stderr(Stdio::null());
    let copies = [copy(output, std::io::stdout()), copy(errors, std::io::stderr())];
    let ended = machine.wait(Instant::now() + Duration::from_secs(arguments.timeout), stop);
    machine.end();
    for copy in copies {
        let _ = copy.join();
    }
    anyhow::ensure!(!stop.is_wanted(), "interrupted");
    if let Ok(code) = fs::read_to_string(at("code"))
        && let Ok(code) = code.trim().parse()
    {
        return Ok(code);
    }
    let console = fs::read_to_string(at("console")).unwrap_or_default();
    let lines: Vec<_> = console
        .lines()
        .rev()
        .take(CONSOLE_LINES)
        .map(ToOwned::to_owned)
        .collect();
    let lines: Vec<_> = lines.into_iter().rev().collect();
    if ended.is_none() {
        eprintln!("vm: {} s are over; the console's last lines:", arguments.timeout);
        lines.iter().for_each(|line| eprintln!("  | {line}"));
        return Ok(TIME_OVER);
    }
    bail!(Failure {
        what: "the virtual machine ended without an exit code".to_owned(),
        lines,
        remedy: "see the console's lines above; more memory may help: --memory".to_owned(),
    })
}

/// Serves `/` read-only and some folders of it writable, in a mount namespace
/// of its own: what is read-only is so for whatever the guest does.
const SERVE: &str = r#"
socket=$1; root=$2; shift 2
mount --bind / "$root"
mount -o remount,bind,ro "$root"
for folder; do mount --bind "$folder" "$root$folder"; done
ulimit -n "$(ulimit -Hn)"
exec "$0" --rlimit-nofile=0 --socket-path="$socket" -f -o "source=$root,cache=always,no_readdirplus,log_level=err"
"#;

fn emulator(kernel: &archive::Kernel, arguments: &Arguments, folder: &Path) -> Result<Command> {
    let at = |name: &str| folder.join(name).display().to_string();
    let memory = format!("{}M", arguments.memory);
    let mut qemu = command("qemu-system-x86_64");
    // It stands where the command's own output goes; its folder does not matter to the guest.
    qemu.current_dir(place::root());
    qemu.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    qemu.args(["-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max"]);
    qemu.args(["-smp", &arguments.cpus.to_string(), "-m", &memory]);
    // virtiofsd works in the guest's memory, so it is shared.
    qemu.args(["-machine", "q35,memory-backend=memory", "-object"]);
    qemu.arg(format!("memory-backend-memfd,id=memory,size={memory},share=on"));
    qemu.arg("-kernel")
        .arg(kernel.image()?)
        .arg("-initrd")
        .arg(at("initramfs"));
    qemu.arg("-append").arg(format!("{KERNEL_LINE} {}", arguments.append));
    qemu.arg("-serial").arg(format!("file:{}", at("console")));
    qemu.arg("-chardev")
        .arg(format!("socket,id=files,path={}", at("files")));
    qemu.args(["-device", "vhost-user-fs-pci,queue-size=1024,chardev=files,tag=host"]);
    qemu.args(["-device", "virtio-serial-pci"]);
    for (name, path) in [
        ("output", "/dev/stdout".to_owned()),
        ("errors", "/dev/stderr".to_owned()),
        ("code", at("code")),
    ] {
        qemu.arg("-chardev").arg(format!("file,id={name},path={path}"));
        qemu.arg("-device")
            .arg(format!("virtserialport,chardev={name},name={name}"));
    }
    Ok(qemu)
}

/// Copies as it comes, until the end.
fn copy(mut from: impl Read + Send + 'static, mut to: impl Write + Send + 'static) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut buffer = [0; 16 * 1024];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            // Whoever reads may be gone; the machine goes on.
            let _ = to.write_all(&buffer[..n]).and_then(|()| to.flush());
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_guest_as_they_are() {
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's $HOME"), r"'it'\''s $HOME'");
    }
}
