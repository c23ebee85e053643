//! Loads and attaches.

use aya::maps::{Array, HashMap, MapData, PerCpuArray, RingBuf};
use aya::programs::{BtfTracePoint, FExit, ProgramError, RawTracePoint};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use rustc_hash::FxHashSet;
use tracewire_common::fault;
use tracewire_common::link::StreamKey;
use tracewire_common::plain::Plain;
use tracewire_common::sampling::Rule;
use tracewire_common::settings::{Settings, watch};
use tracewire_common::trace::Context;

use super::btf::{self, Btf};
use super::files;
use super::head;
use super::inject::{self, Injection};
use super::log::{self, KernelLog};
use super::preempt;
use super::probe::{self, Probes};
use super::{OBJECT, privileges};

/// How socket data is seen, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Rung {
    /// `tp_btf` on `sock_send_length` and `sock_recv_length`: kernel 6.3 and up.
    SocketTracepoints,
    /// `fexit` on `tcp_sendmsg`, `tcp_recvmsg` and their Unix likes: 5.8 and up, where trampolines are allowed.
    Trampolines,
    /// The raw tracepoint `sys_exit`: everywhere, at a price for every system call.
    SystemCalls,
}

impl Rung {
    /// All, best first.
    pub const ALL: [Rung; 3] = [Rung::SocketTracepoints, Rung::Trampolines, Rung::SystemCalls];

    /// Its name in messages and flags.
    pub fn name(self) -> &'static str {
        match self {
            Rung::SocketTracepoints => "socket-tracepoints",
            Rung::Trampolines => "trampolines",
            Rung::SystemCalls => "system-calls",
        }
    }
}

/// Why the kernel side is not there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The binary has no BPF object inside.
    #[error("this tracewire was built without its kernel programs: build it with `cargo xtask build`")]
    NoObject,
    /// No type information.
    #[error(transparent)]
    Btf(#[from] btf::Error),
    /// The object could not be loaded.
    #[error(
        "the kernel refused the programs' maps: {0} (needs CAP_BPF and CAP_PERFMON, or root; `tracewire check` tells more)"
    )]
    Load(String),
    /// No way of seeing socket data works.
    #[error("no hook on socket data works here; tried {0}")]
    NoRung(String),
    /// A program that nothing works without.
    #[error("the kernel refused `{program}`: {reason}")]
    Program {
        /// Name of the program.
        program: &'static str,
        /// What the kernel said.
        reason: String,
    },
}

/// What to load.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request {
    /// New processes are pending until they are chosen.
    pub choose_new: bool,
    /// Listeners are matched with ports.
    pub match_ports: bool,
    /// Only this rung is tried.
    pub rung: Option<Rung>,
    /// Size of the ring buffer, bytes: a power of two.
    pub ring_bytes: u32,
    /// Connections remembered at a time.
    pub connections: u32,
    /// Key of all ids: [`tracewire_common::trace::mint`].
    pub key: [u64; 2],
    /// Observed programs are probed for which call is made on behalf of which request.
    pub links: bool,
    /// The helper is put into Node processes.
    pub node_helper: bool,
    /// The programs tell what they decide.
    pub log: bool,
    /// Contexts are written to outbound requests.
    pub inject: bool,
    /// Even for processes to which this kernel says wrongly how many bytes a followed socket holds.
    pub inject_despite: bool,
}

/// The loaded and attached kernel side.
pub struct Kernel {
    ebpf: Ebpf,
    probes: Probes,
    /// The rung that is in use.
    pub rung: Rung,
    /// Whether what Unix sockets say can be relied on.
    pub unix: bool,
    /// Whether it can be told when a Unix socket is closed.
    closes: bool,
    log: KernelLog,
    /// Abilities that are missing, with the reason.
    pub missing: Vec<(&'static str, String)>,
    /// How contexts are written, or why they are not; None: nobody asked.
    pub injection: Option<Result<Injection, String>>,
}

/// Kernel version as (major, minor).
pub fn version() -> (u32, u32) {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = text
        .split(|c: char| !c.is_ascii_digit())
        .map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// THREAD_SIZE of x86_64 (16 KiB) less `struct pt_regs`; used only before 5.15.
const STACK_TOP: u32 = 16 * 1024 - 168;

/// Makes the maps and tells the programs what they need to know of a kernel of this version; none is loaded yet.
pub(super) fn open(request: &Request, version: (u32, u32), types: &aya::Btf) -> Result<Ebpf, Error> {
    if OBJECT.is_empty() {
        return Err(Error::NoObject);
    }
    let offsets = Btf::kernel()?.offsets()?;
    let settings = Settings {
        choose_new: u32::from(request.choose_new),
        follow_children: 1,
        has_cookie: u32::from(version >= (5, 12)),
        stack_top: STACK_TOP,
        has_task_pt_regs: u32::from(version >= (5, 15)),
        match_ports: u32::from(request.match_ports),
        key: request.key,
        inject: u32::from(request.inject),
        log: u32::from(request.log),
        links: u32::from(request.links),
        reserved: 0,
    };
    // The trace of a large program takes the kernel minutes to write; the end of it is enough for a message.
    let verbose = std::env::var_os("TRACEWIRE_VERIFIER_LOG").is_some_and(|v| v == "trace");
    let log_level = if verbose {
        VerifierLogLevel::default()
    } else {
        VerifierLogLevel::STATS
    };
    EbpfLoader::new()
        .verifier_log_level(log_level)
        .btf(Some(types))
        .override_global("OFFSETS", offsets.bytes(), true)
        .override_global("SETTINGS", settings.bytes(), true)
        .override_global(log::LEVEL, if request.log { &log::ALL } else { &log::NOTHING }, true)
        .map_max_entries(log::MAP, if request.log { log::ROOMY } else { log::SMALLEST })
        .map_max_entries("EVENTS", request.ring_bytes.max(64 * 1024))
        .map_max_entries("CONNECTIONS", request.connections.max(64))
        .load(OBJECT)
        .map_err(|e| Error::Load(chain(&e)))
}

impl Kernel {
    /// Loads and attaches everything but processes: nothing is observed yet.
    pub fn load(request: Request) -> Result<Self, Error> {
        if OBJECT.is_empty() {
            return Err(Error::NoObject);
        }
        if privileges::memlock_counts(version()) {
            privileges::lift_memlock();
        }
        let kernel_types = aya::Btf::from_sys_fs().map_err(|e| Error::Load(chain(&e)))?;
        let recvmsg_parameters = Btf::kernel()?.parameters("tcp_recvmsg").unwrap_or(0);
        let mut ebpf = open(&request, version(), &kernel_types)?;
        // Without these two an address or a process id that comes again could be taken for the old one.
        for program in ["sched_process_exit", "inet_sock_set_state"] {
            trace(&mut ebpf, program, program, &kernel_types).map_err(|reason| Error::Program { program, reason })?;
        }
        let mut missing = Vec::new();
        for (program, ability) in [
            ("sched_process_fork", "children of observed processes"),
            ("sched_process_exec", "new programs of processes"),
        ] {
            if let Err(reason) = trace(&mut ebpf, program, program, &kernel_types) {
                missing.push((ability, reason));
            }
        }
        let mut tried = Vec::new();
        let rungs = Rung::ALL
            .into_iter()
            .filter(|r| request.rung.is_none_or(|only| only == *r));
        for rung in rungs {
            match climb(&mut ebpf, rung, &kernel_types, recvmsg_parameters, &mut missing) {
                Ok(()) => {
                    let unsure = preempt::unix_sockets_are_unsure(rung);
                    let unix = unsure.is_none();
                    missing.extend(unsure.map(|reason| ("Unix sockets", reason)));
                    let closes = files::load(&mut ebpf, &kernel_types);
                    let lacking = closes.as_ref().err().filter(|_| unix);
                    missing.extend(lacking.map(|reason| ("closes of Unix sockets", reason.clone())));
                    let injection = request
                        .inject
                        .then(|| inject::attach(&mut ebpf, rung, request.inject_despite));
                    let probes = Probes::new(probe::Wanted {
                        links: request.links,
                        counts: matches!(injection, Some(Ok(Injection { counts: false }))),
                        node: request.node_helper,
                    });
                    if request.choose_new {
                        probes.ready(&mut ebpf);
                    }
                    let log = KernelLog::of(&mut ebpf, request.log);
                    return Ok(Kernel {
                        log,
                        ebpf,
                        probes,
                        rung,
                        unix,
                        closes: closes.is_ok(),
                        missing,
                        injection,
                    });
                }
                Err(reason) => tried.push(format!("{}: {reason}", rung.name())),
            }
        }
        Err(Error::NoRung(tried.join("; ")))
    }

    /// The ring buffer; taken once.
    pub fn events(&mut self) -> Option<RingBuf<MapData>> {
        RingBuf::try_from(self.ebpf.take_map("EVENTS")?).ok()
    }

    /// The flag that asks for a wake-up; taken once.
    pub fn sleeping(&mut self) -> Option<Array<MapData, u32>> {
        Array::try_from(self.ebpf.take_map("SLEEPING")?).ok()
    }

    /// Observes a process from now on.
    pub fn watch(&mut self, pid: u32) -> bool {
        self.processes().is_some_and(|mut p| {
            let runtimes = p.get(&pid, 0).unwrap_or(0) & !watch::MASK;
            p.insert(pid, runtimes | watch::WATCHED, 0).is_ok()
        })
    }

    /// How the kernel decides over traces that begin in a process; 0: in those of which nothing was said.
    pub fn decide_by(&mut self, pid: u32, rule: Rule) -> bool {
        head::decide_by(&mut self.ebpf, pid, rule)
    }

    /// What was decided over the trace of a served request that the kernel left undecided.
    pub fn decided(&mut self, request: &StreamKey, context: &Context) {
        head::decided(&mut self.ebpf, request, context);
    }

    /// A process is gone.
    pub fn undecide(&mut self, pid: u32) {
        head::forget(&mut self.ebpf, pid);
    }

    /// Whether contexts are written.
    pub fn injects(&self) -> bool {
        matches!(self.injection, Some(Ok(_)))
    }

    /// Observes a process no more.
    pub fn unwatch(&mut self, pid: u32) {
        head::forget(&mut self.ebpf, pid);
        if let Some(mut processes) = self.processes() {
            // Absent is as good as removed.
            let _ = processes.remove(&pid);
        }
    }

    /// Puts probes in what an observed process runs now.
    pub fn probe(&mut self, pid: u32) {
        self.probes.process(&mut self.ebpf, pid);
    }

    /// The same, but files that were never looked at are looked at beside.
    pub fn probe_soon(&mut self, pid: u32) {
        self.probes.process_soon(&mut self.ebpf, pid);
    }

    /// Puts probes in the files that were looked at meanwhile; true: there are more to come.
    pub fn settle_probes(&mut self) -> bool {
        self.probes.settle(&mut self.ebpf)
    }

    /// An observed process opened a connection: it may have loaded a library since it was looked at.
    pub fn connected(&mut self, pid: u32) {
        self.probes.connected(&mut self.ebpf, pid);
    }

    /// An observed process has a connection whose bytes are TLS.
    pub fn encrypted(&mut self, pid: u32) {
        self.probes.encrypted(&mut self.ebpf, pid);
    }

    /// A process is gone, or runs another program.
    pub fn unprobe(&mut self, pid: u32) {
        self.probes.gone(&mut self.ebpf, pid);
    }

    /// Takes out again what was put into observed processes; waits for that.
    pub fn leave(&mut self) {
        self.probes.leave(&mut self.ebpf);
    }

    /// Names of the Unix sockets that observed processes hold; None: it can't be told.
    pub fn held_sockets(&mut self) -> Option<FxHashSet<u64>> {
        if !self.closes {
            return None;
        }
        files::held(&mut self.ebpf)
            .inspect_err(|reason| {
                tracing::warn!("closes of Unix sockets are not seen any more: {reason}");
                self.closes = false;
            })
            .ok()
    }

    /// Hands what the programs told over to the agent's log.
    pub fn flush_log(&mut self) {
        self.log.flush();
    }

    /// How many probes there are.
    pub fn probes(&self) -> probe::Counts {
        self.probes.counts()
    }

    /// The probes by kind, and what could not be probed by reason.
    pub fn probe_points(&self) -> crate::telemetry::ProbePoints {
        self.probes.points()
    }

    /// Chooses processes that begin to listen on a port.
    pub fn choose_port(&mut self, port: u16) -> bool {
        self.ebpf
            .map_mut("PORTS")
            .and_then(|m| HashMap::<_, u32, u32>::try_from(m).ok())
            .is_some_and(|mut ports| ports.insert(u32::from(port), 1, 0).is_ok())
    }

    fn processes(&mut self) -> Option<HashMap<&mut MapData, u32, u32>> {
        HashMap::try_from(self.ebpf.map_mut("PROCESSES")?).ok()
    }

    /// Faults since the start, by [`fault::NAMES`].
    pub fn faults(&self) -> [u64; fault::COUNT as usize] {
        let mut sums = [0; fault::COUNT as usize];
        if let Some(map) = self
            .ebpf
            .map("FAULTS")
            .and_then(|m| PerCpuArray::<_, u64>::try_from(m).ok())
        {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = map.get(&(i as u32), 0).map_or(0, |v| v.iter().sum());
            }
        }
        sums
    }

    /// Says whether contexts are written, and to whom; takes effect for connections that begin from
    /// then on, except that nothing is written once it is off.
    ///
    /// # Errors
    /// What the kernel refused; then nothing is written.
    pub fn follow(&mut self, on: bool, to: &[inject::Destination]) -> Result<(), String> {
        match self.injection {
            Some(Ok(injection)) => inject::follow(&mut self.ebpf, injection, on, to),
            _ => Ok(()),
        }
    }

    /// Follows a socket no more.
    pub fn let_go(&mut self, connection: u64) {
        inject::let_go(&mut self.ebpf, connection);
    }

    /// What became of requests that an injector looked at, by [`tracewire_common::inject::NAMES`].
    pub fn fates(&self) -> [u64; tracewire_common::inject::COUNT as usize] {
        inject::fates(&self.ebpf)
    }

    /// Bytes that left the kernel since the start.
    pub fn bytes(&self) -> u64 {
        self.ebpf
            .map("BYTES")
            .and_then(|m| PerCpuArray::<_, u64>::try_from(m).ok())
            .and_then(|m| m.get(&0, 0).ok())
            .map_or(0, |v| v.iter().sum())
    }
}

/// An error with its causes, on one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// What the kernel said: of the verifier's log only its end.
pub(super) fn reason(error: &ProgramError) -> String {
    if let ProgramError::LoadError { io_error, verifier_log } = error {
        let log = verifier_log.to_string();
        if std::env::var_os("TRACEWIRE_VERIFIER_LOG").is_some() {
            eprintln!("{log}");
        }
        let statistics = ["processed", "stack depth", "verification time"];
        let mut lines = log.lines().rev().map(str::trim);
        let last = lines.find(|l| !l.is_empty() && !statistics.iter().any(|s| l.starts_with(s)));
        let last = last.unwrap_or_default();
        return format!("{io_error} {last}").trim().to_owned();
    }
    chain(error)
}

fn trace(ebpf: &mut Ebpf, program: &'static str, tracepoint: &str, types: &aya::Btf) -> Result<(), String> {
    let p: &mut BtfTracePoint = ebpf
        .program_mut(program)
        .and_then(|p| p.try_into().ok())
        .ok_or_else(|| format!("no program {program}"))?;
    p.load(tracepoint, types).map_err(|e| reason(&e))?;
    p.attach().map_err(|e| reason(&e))?;
    Ok(())
}

fn exit(ebpf: &mut Ebpf, program: &'static str, function: &str, types: &aya::Btf) -> Result<(), String> {
    let p: &mut FExit = ebpf
        .program_mut(program)
        .and_then(|p| p.try_into().ok())
        .ok_or_else(|| format!("no program {program}"))?;
    p.load(function, types).map_err(|e| reason(&e))?;
    p.attach().map_err(|e| reason(&e))?;
    Ok(())
}

fn climb(
    ebpf: &mut Ebpf,
    rung: Rung,
    types: &aya::Btf,
    recvmsg_parameters: u32,
    missing: &mut Vec<(&'static str, String)>,
) -> Result<(), String> {
    match rung {
        Rung::SocketTracepoints => {
            trace(ebpf, "sock_send_length", "sock_send_length", types)?;
            trace(ebpf, "sock_recv_length", "sock_recv_length", types)?;
            if preempt::twice(rung) {
                // Behind the first ones: programs run in the order in which they came.
                let again = trace(ebpf, "sock_send_again", "sock_send_length", types)
                    .and_then(|()| trace(ebpf, "sock_recv_again", "sock_recv_length", types));
                if let Err(reason) = again {
                    missing.push(("calls for which the kernel skips a program", reason));
                }
            }
            Ok(())
        }
        Rung::Trampolines => {
            let receive = match recvmsg_parameters {
                4 => "tcp_recvmsg_flags",
                6 => "tcp_recvmsg_nonblock",
                _ => "tcp_recvmsg",
            };
            exit(ebpf, "tcp_sendmsg", "tcp_sendmsg", types)?;
            exit(ebpf, receive, "tcp_recvmsg", types)?;
            let unix = exit(ebpf, "unix_stream_sendmsg", "unix_stream_sendmsg", types)
                .and_then(|()| exit(ebpf, "unix_stream_recvmsg", "unix_stream_recvmsg", types));
            if let Err(reason) = unix {
                missing.push(("Unix sockets", reason));
            }
            Ok(())
        }
        Rung::SystemCalls => {
            let p: &mut RawTracePoint = ebpf
                .program_mut("sys_exit")
                .and_then(|p| p.try_into().ok())
                .ok_or("no program sys_exit")?;
            p.load().map_err(|e| reason(&e))?;
            p.attach("sys_exit").map_err(|e| reason(&e))?;
            Ok(())
        }
    }
}
