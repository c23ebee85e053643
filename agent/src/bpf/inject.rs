//! The injectors' door: loads them, tries on a loopback connection that a
//! followed socket still behaves, and only then lets them follow others.
//! Bias: off with a reason rather than on with a doubt.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::maps::{MapData, PerCpuArray, SockHash};
use aya::programs::{CgroupAttachMode, SkMsg, SkSkb, SockOps, loaded_programs};
use tracewire_common::inject;

use super::load::{Rung, chain, reason};

/// Bytes that the trial sends.
const TRIAL: usize = 1000;
/// How long the trial waits for them.
const PATIENCE: Duration = Duration::from_secs(2);
/// BPF_PROG_TYPE_SK_MSG.
const SK_MSG: u32 = 16;
/// Bytes that no send buffer holds.
const LARGE: usize = 16 << 20;
/// How long its reader waits for the end.
const CLOSE: Duration = Duration::from_millis(60);
/// A key that is no socket's cookie: those count from 1.
const TRIAL_KEY: u64 = 0;

/// How it is done here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Injection {
    /// Received bytes pass a program too, because the kernel would else count them wrongly
    /// (Linux 929e30f93125, mended by 04af4efde58a).
    pub verdict: bool,
}

/// Attaches the injectors; nothing is followed before all of it works.
///
/// # Errors
/// Why they can't work here, unless it is a trial that failed and they are wanted `despite` it; then none of them is attached.
pub(super) fn attach(ebpf: &mut Ebpf, rung: Rung, despite: bool) -> Result<Injection, String> {
    let result = try_attach(ebpf, rung, despite);
    if result.is_err() {
        detach(ebpf);
    }
    result
}

fn try_attach(ebpf: &mut Ebpf, rung: Rung, despite: bool) -> Result<Injection, String> {
    if rung == Rung::Trampolines {
        return Err(
            "the hook `trampolines` does not see what a socket sends once it is followed: \
             it needs `--hook system-calls`, or Linux 6.3 or newer"
                .to_owned(),
        );
    }
    if let Some(name) = other_user() {
        return Err(format!(
            "the program `{name}` handles socket messages here already (Cilium and service meshes do): \
             two can't share a socket"
        ));
    }
    let cgroup = cgroup().ok_or("no cgroup v2 hierarchy is mounted")?;
    let root = File::open(&cgroup).map_err(|e| format!("{}: {e}", cgroup.display()))?;
    let sockets = || -> Result<SockHash<&MapData, u64>, String> {
        let map = ebpf.map("SOCKETS").ok_or("no map SOCKETS")?;
        SockHash::try_from(map).map_err(|e| chain(&e))
    };
    let fd = sockets()?.fd().try_clone().map_err(|e| chain(&e))?;

    let program: &mut SkMsg = ebpf
        .program_mut("message_passes")
        .and_then(|p| p.try_into().ok())
        .ok_or("no program message_passes")?;
    program.load().map_err(|e| reason(&e))?;
    program.attach(&fd).map_err(|e| reason(&e))?;
    let mut verdict = false;
    if let Err(wrong) = trial(ebpf) {
        verdict = true;
        let program: &mut SkSkb = ebpf
            .program_mut("bytes_arrive")
            .and_then(|p| p.try_into().ok())
            .ok_or("no program bytes_arrive")?;
        program.load().map_err(|e| reason(&e))?;
        program.attach(&fd).map_err(|e| reason(&e))?;
        if let Err(still) = trial(ebpf) {
            let reason = format!("followed sockets do not behave on this kernel: {wrong}; with a verdict: {still}");
            if !despite {
                return Err(reason);
            }
            tracing::warn!("contexts are written although {reason}");
        }
    }
    let program: &mut SockOps = ebpf
        .program_mut("socket_event")
        .and_then(|p| p.try_into().ok())
        .ok_or("no program socket_event")?;
    program.load().map_err(|e| reason(&e))?;
    // By a link, which always stands beside others.
    program.attach(root, CgroupAttachMode::Single).map_err(|e| reason(&e))?;
    Ok(Injection { verdict })
}

fn detach(ebpf: &mut Ebpf) {
    if let Some(Ok(program)) = ebpf.program_mut("socket_event").map(<&mut SockOps>::try_from) {
        // Not loaded is as good as unloaded.
        let _ = program.unload();
    }
    if let Some(Ok(program)) = ebpf.program_mut("bytes_arrive").map(<&mut SkSkb>::try_from) {
        let _ = program.unload();
    }
    if let Some(Ok(program)) = ebpf.program_mut("message_passes").map(<&mut SkMsg>::try_from) {
        let _ = program.unload();
    }
}

/// The name of a program of somebody else that handles socket messages.
fn other_user() -> Option<String> {
    let start = Instant::now();
    loop {
        let other = loaded_programs().flatten().find(|p| p.program_type() as u32 == SK_MSG);
        // An agent that was killed just now is still being taken down.
        match other {
            Some(program) if start.elapsed() > PATIENCE => {
                return Some(program.name_as_str().unwrap_or("?").to_owned());
            }
            Some(_) => std::thread::sleep(Duration::from_millis(50)),
            None => return None,
        }
    }
}

/// Where the root of the cgroup v2 hierarchy is mounted.
fn cgroup() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (at, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(at))
    })
}

/// Sends bytes to a followed socket and looks whether they are counted, arrive and end.
fn trial(ebpf: &mut Ebpf) -> Result<(), String> {
    let map = ebpf.map_mut("SOCKETS").ok_or("no map SOCKETS")?;
    let mut sockets: SockHash<&mut MapData, u64> = SockHash::try_from(map).map_err(|e| chain(&e))?;
    let io = |e: std::io::Error| format!("loopback: {e}");
    let listener = TcpListener::bind("127.0.0.1:0").map_err(io)?;
    let mut near = TcpStream::connect(listener.local_addr().map_err(io)?).map_err(io)?;
    let (mut far, _) = listener.accept().map_err(io)?;
    near.set_read_timeout(Some(PATIENCE)).map_err(io)?;
    far.set_read_timeout(Some(PATIENCE)).map_err(io)?;
    sockets.insert(TRIAL_KEY, near.as_raw_fd(), 0).map_err(|e| chain(&e))?;
    let result = (|| {
        let sent = [b'x'; TRIAL];
        let mut got = [0; TRIAL];
        // Out, where the injector looks at it and changes nothing.
        near.write_all(&sent).map_err(io)?;
        far.read_exact(&mut got)
            .map_err(|e| format!("bytes did not leave: {e}"))?;
        if got != sent {
            return Err("bytes changed on their way out".to_owned());
        }
        // In, in two pieces; the second is there before the first was taken.
        far.write_all(&sent).map_err(io)?;
        counted(&near, TRIAL)?;
        far.write_all(&sent).map_err(io)?;
        counted(&near, 2 * TRIAL)?;
        for _ in 0..2 {
            near.read_exact(&mut got)
                .map_err(|e| format!("bytes did not arrive: {e}"))?;
            if got != sent {
                return Err("bytes changed on their way in".to_owned());
            }
        }
        counted(&near, 0)?;
        // A blocking read that waits while what was written before drains: each of its wake-ups
        // may end it with EAGAIN, which no blocking reader expects.
        let mut drain = far.try_clone().map_err(io)?;
        let drained = std::thread::spawn(move || -> std::io::Result<()> {
            let mut sink = vec![0; LARGE / 64];
            for _ in 0..64 {
                drain.read_exact(&mut sink)?;
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(CLOSE);
            drain.write_all(&[b'x'; TRIAL])
        });
        near.write_all(&vec![b'x'; LARGE]).map_err(io)?;
        let read = near.read_exact(&mut got);
        let drained = drained.join();
        read.map_err(|e| format!("a blocking read fails while the send buffer drains: {e}"))?;
        if !matches!(drained, Ok(Ok(()))) {
            return Err("many bytes did not leave".to_owned());
        }
        far.write_all(&sent).map_err(io)?;
        // The same after a half-close: the acknowledgement of our FIN comes while the read waits.
        let closer = std::thread::spawn(move || {
            let mut sink = vec![0; LARGE / 64];
            for _ in 0..64 {
                if far.read_exact(&mut sink).is_err() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(CLOSE);
        });
        near.read_exact(&mut got)
            .map_err(|e| format!("bytes before the end did not arrive: {e}"))?;
        near.write_all(&vec![b'x'; LARGE]).map_err(io)?;
        near.shutdown(Shutdown::Write).map_err(io)?;
        let end = near.read(&mut got);
        let _ = closer.join();
        match end {
            Ok(0) => Ok(()),
            Ok(n) => Err(format!("{n} bytes after the end")),
            Err(e) => Err(format!("a blocking read that waits for the end of file fails: {e}")),
        }
    })();
    // It is closed in a moment, which removes it too.
    let _ = sockets.remove(&TRIAL_KEY);
    result
}

/// Waits until FIONREAD says `want`.
fn counted(socket: &TcpStream, want: usize) -> Result<(), String> {
    let start = Instant::now();
    loop {
        let mut n: libc::c_int = 0;
        // SAFETY: FIONREAD writes one int, and `socket` is open.
        if unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &raw mut n) } != 0 {
            return Err(format!("FIONREAD: {}", std::io::Error::last_os_error()));
        }
        if usize::try_from(n) == Ok(want) {
            return Ok(());
        }
        if start.elapsed() > PATIENCE / 8 {
            return Err(format!("FIONREAD says {n} where {want} bytes wait"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What became of requests since the start, by [`inject::NAMES`].
pub(super) fn fates(ebpf: &Ebpf) -> [u64; inject::COUNT as usize] {
    let mut sums = [0; inject::COUNT as usize];
    if let Some(map) = ebpf
        .map("INJECTIONS")
        .and_then(|m| PerCpuArray::<_, u64>::try_from(m).ok())
    {
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = map.get(&(i as u32), 0).map_or(0, |v| v.iter().sum());
        }
    }
    sums
}
