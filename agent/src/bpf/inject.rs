//! The injectors' door: loads them, tries on a loopback connection that a
//! followed socket still behaves, and only then lets them follow others.
//! Bias: off with a reason rather than on with a doubt.
//!
//! No program takes what a socket receives: bytes that it has taken and nobody
//! has read yet are lost when the agent ends, and `splice` never sees them.

use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, MapData, PerCpuArray, SockHash};
use aya::programs::{CgroupAttachMode, SkMsg, SockOps, loaded_programs};
use tracewire_common::inject::{self, DESTINATION, followed};

use super::load::{Rung, chain, reason};

mod trial;

/// How long a program of an agent that was just killed may be around.
const PATIENCE: Duration = Duration::from_secs(2);
/// BPF_PROG_TYPE_SK_MSG.
const SK_MSG: u32 = 16;

/// How it is done here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Injection {
    /// Followed sockets say how many bytes they hold. If not (Linux 929e30f93125, mended by
    /// 04af4efde58a), processes that ask for it are left alone.
    pub counts: bool,
}

/// Addresses and ports that share their first bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Port in network order, 0: all; then the address, an IPv4 one as ::ffff:a.b.c.d (RFC 4291 §2.5.5.2).
    pub key: [u8; DESTINATION],
    /// How many bits of it count.
    pub bits: u32,
}

/// Attaches the injectors; nothing is followed before all of it works. `despite`: processes that
/// count what a socket holds are followed even where it says so wrongly.
///
/// # Errors
/// Why they can't work here; then none of them is attached.
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
    let map = ebpf.map("SOCKETS").ok_or("no map SOCKETS")?;
    let sockets: SockHash<&MapData, u64> = SockHash::try_from(map).map_err(|e| chain(&e))?;
    let fd = sockets.fd().try_clone().map_err(|e| chain(&e))?;

    let program: &mut SkMsg = ebpf
        .program_mut("message_passes")
        .and_then(|p| p.try_into().ok())
        .ok_or("no program message_passes")?;
    program.load().map_err(|e| reason(&e))?;
    program.attach(&fd).map_err(|e| reason(&e))?;
    let map = ebpf.map_mut("SOCKETS").ok_or("no map SOCKETS")?;
    let mut sockets: SockHash<&mut MapData, u64> = SockHash::try_from(map).map_err(|e| chain(&e))?;
    let counts = trial::run(&mut sockets).map_err(|wrong| format!("followed sockets do not behave here: {wrong}"))?;
    let program: &mut SockOps = ebpf
        .program_mut("socket_event")
        .and_then(|p| p.try_into().ok())
        .ok_or("no program socket_event")?;
    program.load().map_err(|e| reason(&e))?;
    // By a link, which always stands beside others.
    program.attach(root, CgroupAttachMode::Single).map_err(|e| reason(&e))?;
    Ok(Injection {
        counts: counts || despite,
    })
}

/// Says whose sockets are followed from now on, and to where; nobody's: nothing is written any more.
pub(super) fn follow(ebpf: &mut Ebpf, injection: Injection, on: bool, to: &[Destination]) -> Result<(), String> {
    let tell = |ebpf: &mut Ebpf, index: u32, value: u32| {
        let map = ebpf.map_mut("FOLLOWED").ok_or("no map FOLLOWED")?;
        let mut followed = Array::<_, u32>::try_from(map).map_err(|e| chain(&e))?;
        followed.set(index, value, 0).map_err(|e| chain(&e))
    };
    tell(ebpf, 0, followed::NONE)?;
    if !on {
        return Ok(());
    }
    let map = ebpf.map_mut("DESTINATIONS").ok_or("no map DESTINATIONS")?;
    let mut destinations = LpmTrie::<_, [u8; DESTINATION], u32>::try_from(map).map_err(|e| chain(&e))?;
    let before: Vec<_> = destinations.keys().flatten().collect();
    for key in before {
        destinations.remove(&key).map_err(|e| chain(&e))?;
    }
    for to in to {
        let key = Key::new(to.bits, to.key);
        destinations.insert(&key, 1, 0).map_err(|e| chain(&e))?;
    }
    tell(ebpf, 1, u32::from(!to.is_empty()))?;
    let whose = if injection.counts {
        followed::ALL
    } else {
        followed::UNCOUNTED
    };
    tell(ebpf, 0, whose)
}

/// Follows a socket no more, if it is.
pub(super) fn let_go(ebpf: &mut Ebpf, connection: u64) {
    if let Some(map) = ebpf.map_mut("SOCKETS")
        && let Ok(mut sockets) = SockHash::<_, u64>::try_from(map)
    {
        // Absent is as good as removed.
        let _ = sockets.remove(&connection);
    }
}

fn detach(ebpf: &mut Ebpf) {
    if let Some(Ok(program)) = ebpf.program_mut("socket_event").map(<&mut SockOps>::try_from) {
        // Not loaded is as good as unloaded.
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
