//! What can't be done is said in one message, with what, where and what to do:
//! exit code 2 for usage and configuration, 1 for the rest. Nothing is attached.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tracewire_tests::agent;
use tracewire_tests::alone;
use tracewire_tests::folder::Folder;
use tracewire_tests::running::Running;

/// Nobody's user and group.
const NOBODY: u32 = 65534;
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs it to its end.
fn run(command: &mut Command) -> Result<Output> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
            let output = child.wait_with_output()?;
            anyhow::bail!("it did not end: {}", String::from_utf8_lossy(&output.stderr));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(child.wait_with_output()?)
}

/// That it ends with `code`, says all of `words` on standard error and nothing else anywhere.
fn refused(command: &mut Command, code: i32, words: &[&str]) -> Result<()> {
    let output = run(command)?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{command:?}:\n{said}");
    assert!(output.stdout.is_empty(), "{command:?} wrote to standard output");
    for word in words {
        assert!(said.contains(word), "{command:?}: `{word}` is not in\n{said}");
    }
    assert!(!said.contains("attached "), "{command:?} attached:\n{said}");
    assert!(!said.contains("panicked"), "{command:?} panicked:\n{said}");
    let messages = said
        .lines()
        .filter(|line| line.starts_with("tracewire: ") || line.starts_with("error: "));
    assert_eq!(messages.count(), 1, "{command:?}: not one message:\n{said}");
    Ok(())
}

/// A process that does nothing.
fn sleeper() -> Result<Running> {
    Running::start("sleep", Command::new("sleep").arg("300"))
}

fn attach(arguments: &[&str]) -> Result<Command> {
    agent::command(&[&["attach"], arguments].concat())
}

#[test]
fn processes_that_can_not_be_traced_are_named_with_the_reason() -> Result<()> {
    let _turn = alone()?;
    let most = fs::read_to_string("/proc/sys/kernel/pid_max")?;
    refused(
        &mut attach(&["--pid", most.trim()])?,
        2,
        &["--pid", "no process", most.trim()],
    )?;
    refused(&mut attach(&["--pid", "2"])?, 2, &["--pid 2", "kernel thread"])?;
    // Ended, and its parent, this test, has not noticed.
    let mut ended = Command::new("true").spawn()?;
    let pid = ended.id().to_string();
    let zombie = || fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| s.contains(") Z"));
    let deadline = Instant::now() + PATIENCE;
    while !zombie() {
        ensure!(Instant::now() < deadline, "`true` does not end");
    }
    refused(&mut attach(&["--pid", &pid])?, 2, &["--pid", "ended"])?;
    ended.wait()?;
    // A thread that is not its process's first.
    let mut thread = 0;
    let folder = format!("/proc/{}/task", std::process::id());
    for entry in fs::read_dir(folder)? {
        let tid: u32 = entry?.file_name().to_string_lossy().parse()?;
        if tid != std::process::id() {
            thread = tid;
        }
    }
    refused(
        &mut attach(&["--pid", &thread.to_string()])?,
        2,
        &["is a thread of process"],
    )
}

#[test]
fn wrong_flags_are_usage_errors() -> Result<()> {
    let _turn = alone()?;
    let sleeper = sleeper()?;
    let pid = sleeper.pid().to_string();
    refused(&mut attach(&[])?, 2, &["--pid"])?;
    refused(&mut attach(&["--pid", "many"])?, 2, &["--pid", "many"])?;
    refused(
        &mut attach(&["--pid", &pid, "--output", "xml"])?,
        2,
        &["--output", "xml"],
    )?;
    refused(
        &mut attach(&["--pid", &pid, "--hook", "guess"])?,
        2,
        &["--hook", "guess"],
    )?;
    refused(
        &mut attach(&["--pid", &pid, "--ring-buffer", "1000"])?,
        2,
        &["--ring-buffer", "power of two"],
    )?;
    refused(
        attach(&["--pid", &pid])?.env("TRACEWIRE_LINKS", "some"),
        2,
        &["TRACEWIRE_LINKS", "`some`", "on or off"],
    )?;
    refused(
        &mut attach(&["--pid", &pid, "--route", "users"])?,
        2,
        &["--route users"],
    )?;
    refused(
        &mut agent::command(&["run"])?,
        2,
        &["--executable", "--port", "--service"],
    )?;
    refused(&mut agent::command(&["run", "--executable", "a["])?, 2, &["run:", "a["])?;
    refused(
        &mut agent::command(&["run", "--port", "70000"])?,
        2,
        &["--port", "70000"],
    )?;
    refused(&mut agent::command(&["follow"])?, 2, &["follow"])
}

/// Variables and their values.
type Environment = &'static [(&'static str, &'static str)];

#[test]
fn a_wrong_configuration_is_told_before_anything_is_attached() -> Result<()> {
    let _turn = alone()?;
    let sleeper = sleeper()?;
    let pid = sleeper.pid().to_string();
    let cases: [(Environment, &[&str]); 4] = [
        (
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "not an address")],
            &["OTEL_EXPORTER_OTLP_ENDPOINT", "http://"],
        ),
        (
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://127.0.0.1:1")],
            &["OTEL_EXPORTER_OTLP_ENDPOINT", "ftp"],
        ),
        (
            &[
                ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://127.0.0.1:1"),
                ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nonexistent/ca.pem"),
            ],
            &["/nonexistent/ca.pem"],
        ),
        (
            &[
                ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1"),
                ("OTEL_EXPORTER_OTLP_HEADERS", "no-value"),
            ],
            &["OTEL_EXPORTER_OTLP_HEADERS"],
        ),
    ];
    for (environment, words) in cases {
        let mut command = attach(&["--pid", &pid])?;
        command.envs(environment.iter().copied());
        refused(&mut command, 2, words)?;
    }
    Ok(())
}

#[test]
fn files_that_can_not_be_used_are_named() -> Result<()> {
    let _turn = alone()?;
    let sleeper = sleeper()?;
    let pid = sleeper.pid().to_string();
    let folder = Folder::new()?;
    let record = |out: &str| agent::command(&["record", "--pid", &pid, "--out", out]);
    refused(
        &mut record("/nonexistent/a.rec")?,
        2,
        &["--out /nonexistent/a.rec", "No such file"],
    )?;
    refused(
        &mut record(&folder.path().to_string_lossy())?,
        2,
        &["--out", "directory"],
    )?;
    refused(
        &mut agent::command(&["replay", "/nonexistent/a.rec"])?,
        2,
        &["/nonexistent/a.rec", "No such file"],
    )?;
    let file = folder.file("not.rec");
    fs::write(&file, "something else\n")?;
    let name = file.to_string_lossy();
    refused(&mut agent::command(&["replay", &name])?, 2, &[&name, "not a recording"])
}

/// A copy of the agent that everybody may run, wherever the real one is.
fn public_copy(folder: &Folder) -> Result<std::path::PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let copy = folder.file("tracewire");
    fs::copy(tracewire_tests::place::agent()?, &copy)?;
    for path in [folder.path(), &copy] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(copy)
}

/// The agent as user `NOBODY` with no capability, or with those that are kept by `keep`.
fn as_nobody(agent: &Path, arguments: &[&str], keep: &'static [u32]) -> Command {
    let mut command = Command::new(agent);
    command.args(arguments).env_clear().env("PATH", "/usr/bin:/bin");
    let drop = move || {
        let failed = |result: libc::c_int| {
            if result == 0 {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        };
        // SAFETY: takes numbers only.
        failed(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, 1) })?;
        // SAFETY: takes numbers only.
        failed(unsafe { libc::setgid(NOBODY) })?;
        // SAFETY: takes numbers only.
        failed(unsafe { libc::setuid(NOBODY) })?;
        let mut sets = [CapabilityData::default(); 2];
        for capability in keep {
            let bit = 1 << (capability % 32);
            if let Some(set) = sets.get_mut(*capability as usize / 32) {
                *set = CapabilityData {
                    effective: set.effective | bit,
                    permitted: set.permitted | bit,
                    inheritable: set.inheritable | bit,
                };
            }
        }
        // _LINUX_CAPABILITY_VERSION_3, this process.
        let header: [u32; 2] = [0x2008_0522, 0];
        // SAFETY: both point to live values of the layout that this version of the call has.
        let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) };
        failed(libc::c_int::from(result != 0))?;
        for capability in keep {
            const RAISE: libc::c_ulong = libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong;
            let capability = libc::c_ulong::from(*capability);
            // SAFETY: takes numbers only.
            failed(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, RAISE, capability, 0, 0) })?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec it makes system calls only and allocates nothing.
    unsafe { command.pre_exec(drop) };
    command
}

/// `struct __user_cap_data_struct` (capget(2)).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

#[test]
fn without_privileges_it_says_which_are_missing() -> Result<()> {
    let _turn = alone()?;
    let folder = Folder::new()?;
    let agent = public_copy(&folder)?;
    let sleeper = sleeper()?;
    let pid = sleeper.pid().to_string();
    let arguments = ["attach", "--pid", &pid];
    refused(
        &mut as_nobody(&agent, &arguments, &[]),
        1,
        &["CAP_BPF", "CAP_PERFMON", "sudo"],
    )?;
    refused(&mut as_nobody(&agent, &arguments, &[CAP_BPF]), 1, &["CAP_PERFMON"])?;
    refused(&mut as_nobody(&agent, &arguments, &[CAP_PERFMON]), 1, &["CAP_BPF"])
}

#[test]
fn a_process_of_another_user_that_may_not_be_looked_at_is_named() -> Result<()> {
    let _turn = alone()?;
    let folder = Folder::new()?;
    let agent = public_copy(&folder)?;
    let sleeper = sleeper()?;
    let pid = sleeper.pid().to_string();
    // Enough to load programs, not to look at root's processes.
    let arguments = ["attach", "--pid", &pid];
    let mut command = as_nobody(&agent, &arguments, &[CAP_BPF, CAP_PERFMON]);
    refused(&mut command, 2, &["--pid", &pid, "CAP_SYS_PTRACE"])
}

#[test]
fn an_output_that_fails_ends_nothing_but_itself() -> Result<()> {
    let _turn = alone()?;
    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .context("/dev/full")?;
    let mut sleeper = sleeper()?;
    let folder = Folder::new()?;
    let mut command = agent::command(&["record", "--pid", &sleeper.pid().to_string(), "--out", "/dev/full"])?;
    let output = run(&mut command)?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("--out /dev/full") && said.contains("No space"), "{said}");
    drop((full, folder));
    ensure!(sleeper.ended().is_none(), "the observed process ended");
    Ok(())
}
