//! Probes in the observed programs: which binaries a process runs, what each
//! runtime can do in them, and the attaching of it.
//!
//! A probe is attached once to a file, however many processes run it, and
//! filtered in the kernel by process. Each ability of a runtime fails alone:
//! it is named with its reason, and costs only itself.
//!
//! A new runtime is a file here that implements [`Runtime`], a line in
//! `runtimes`, and its programs in the kernel side's `probe/`.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant, UNIX_EPOCH};

use aya::Ebpf;
use aya::maps::MapData;
use aya::programs::uprobe::UProbeLink;
use aya::programs::{Program, UProbe};
use tracewire_common::link::runtime::{self, LAYOUT};
use tracewire_common::settings::watch;

mod counts;
mod cpython;
pub mod go;
mod grpc_core;
mod node;
mod placing;
pub mod tls;
pub mod tokio;

use crate::binary::Binary;
use crate::telemetry::ProbePoints;
use placing::{Leaving, Links, Outcome, Placing};

/// Numbers that a runtime's module gives its programs for a process.
pub type Layout = [u32; LAYOUT];

/// A place in a binary at which a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// Name of the program in the kernel side.
    pub program: &'static str,
    /// Where: bytes from the start of the file.
    pub offset: u64,
    /// What the program gets from `bpf_get_attach_cookie`.
    pub cookie: u64,
}

/// Something a runtime's module can do in a binary, or why it can't.
#[derive(Clone, Debug)]
pub struct Ability {
    /// What it is, like `grpc-go server`.
    pub name: &'static str,
    /// The probes it takes, all of them; or what is missing.
    pub points: Result<Vec<Point>, String>,
}

/// What a runtime's module found in a binary.
#[derive(Clone, Debug)]
pub struct Found {
    /// What it is, with its version if that is known, like `go1.26.8, grpc-go v1.85.0`.
    pub what: String,
    /// For the programs.
    pub layout: Layout,
    /// What can be done.
    pub abilities: Vec<Ability>,
}

/// One runtime.
pub trait Runtime: Send {
    /// One of [`tracewire_common::link::runtime`].
    fn number(&self) -> u32;
    /// Whether a file may be of this runtime, by its name; `main` is the program itself, others are libraries.
    fn may_be_in(&self, path: &Path, main: bool) -> bool;
    /// Looks at a binary. None: it is not of this runtime.
    fn look(&self, binary: &Binary) -> Option<Found>;
    /// Loads what its programs need beside themselves; called before they are attached.
    ///
    /// # Errors
    /// When the kernel refuses it: then none is attached.
    fn prepare(&self, _ebpf: &mut Ebpf) -> Result<(), String> {
        Ok(())
    }
}

/// What is looked for beside what is needed to see TLS at all.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Which call is made on behalf of which request.
    pub links: bool,
    /// Code that asks sockets how many bytes they hold.
    pub counts: bool,
    /// The helper is put into Node processes.
    pub node: bool,
}

/// Those that are wanted of all that are known.
fn runtimes(wanted: Wanted) -> Vec<Box<dyn Runtime>> {
    let mut runtimes: Vec<Box<dyn Runtime>> = vec![Box::new(tls::Tls::default())];
    if wanted.links {
        runtimes.push(Box::new(go::Go));
        runtimes.push(Box::new(tokio::Tokio));
        runtimes.push(Box::new(cpython::CPython));
        runtimes.push(Box::new(cpython::Greenlet));
        runtimes.push(Box::new(grpc_core::GrpcCore));
        if wanted.node {
            runtimes.push(Box::new(node::Node));
        }
    }
    if wanted.counts {
        runtimes.push(Box::new(counts::Counts));
    }
    runtimes
}

/// A file by device and inode, and when it was made, ns (0: the file system does not say): the
/// number of an inode is given again, and libraries that a JVM unpacks are gone soon. Not by a
/// time that changes: one file under two names would be probed twice.
type FileId = (u64, u64, u128);

/// A file that a process runs code of.
#[derive(Clone, Debug)]
pub struct Mapped {
    id: FileId,
    /// What it is called in the process.
    pub name: PathBuf,
    /// By what the agent reaches it, also where it is deleted or in another mount namespace.
    pub path: PathBuf,
    /// Whether it is the program itself.
    pub main: bool,
}

/// Files of a process's executable mappings.
///
/// # Errors
/// When the process is gone or may not be looked at.
pub fn mapped(pid: u32) -> io::Result<Vec<Mapped>> {
    let process = Path::new("/proc").join(pid.to_string());
    let exe = process.join("exe");
    let exe_id = file_id(&exe)?;
    let mut files = vec![Mapped {
        id: exe_id,
        name: std::fs::read_link(&exe).unwrap_or_default(),
        path: exe,
        main: true,
    }];
    let maps = std::fs::read_to_string(process.join("maps"))?;
    for line in maps.lines() {
        // address perms offset device inode path
        let mut parts = line.splitn(6, ' ');
        let (Some(range), Some(permissions), Some(name)) = (parts.next(), parts.next(), parts.nth(3)) else {
            continue;
        };
        let name = Path::new(name.trim_start());
        if !permissions.contains('x') || !name.is_absolute() || files.iter().any(|f| f.name == name) {
            continue;
        }
        let path = process.join("map_files").join(range);
        if let Ok(id) = file_id(&path)
            && files.iter().all(|f| f.id != id)
        {
            files.push(Mapped {
                id,
                name: name.to_owned(),
                path,
                main: false,
            });
        }
    }
    Ok(files)
}

fn file_id(path: &Path) -> io::Result<FileId> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(path)?;
    let made = meta.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    Ok((meta.dev(), meta.ino(), made.map_or(0, |since| since.as_nanos())))
}

/// What one runtime can do in one file of a process; for people.
#[derive(Clone, Debug)]
pub struct Report {
    /// The file, as the process calls it.
    pub file: PathBuf,
    /// What was found.
    pub found: Found,
}

/// What could be done in a process; nothing is attached.
///
/// # Errors
/// When the process is gone or may not be looked at.
pub fn look(pid: u32) -> io::Result<Vec<Report>> {
    let runtimes = runtimes(Wanted {
        links: true,
        counts: false,
        node: true,
    });
    let mut reports = Vec::new();
    for file in mapped(pid)? {
        for (_, found) in look_at(&runtimes, &file) {
            reports.push(Report {
                file: file.name.clone(),
                found,
            });
        }
    }
    Ok(reports)
}

fn look_at(runtimes: &[Box<dyn Runtime>], file: &Mapped) -> Vec<(u32, Found)> {
    let mut interested = runtimes
        .iter()
        .filter(|r| r.may_be_in(&file.name, file.main))
        .peekable();
    if interested.peek().is_none() {
        return Vec::new();
    }
    let binary = match Binary::open(&file.path) {
        Ok(binary) => binary,
        Err(error) => {
            tracing::warn!(file = %file.name.display(), %error, "can't be read, so nothing is probed in it");
            return Vec::new();
        }
    };
    interested
        .filter_map(|r| Some((r.number(), r.look(&binary)?)))
        .collect()
}

/// A file whose probes are in place.
struct Probed {
    found: Vec<(u32, Found)>,
    links: Links,
    processes: HashSet<u32>,
}

/// How many probes and abilities there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Probes in place.
    pub attached: u64,
    /// Abilities that files of observed processes lack, since the start.
    pub lacking: u64,
}

/// A thread that looks at files: a large one takes a good part of a second, in which the ring
/// buffer's reader would hear of processes that are gone by then.
struct Looker {
    wanted: Wanted,
    ways: Option<(Sender<Mapped>, Receiver<Looked>)>,
}

/// A file, and what was found in it.
type Looked = (Mapped, Vec<(u32, Found)>);

impl Looker {
    /// Asks for a file; false: it can't be looked at beside.
    fn ask(&mut self, file: Mapped) -> bool {
        if self.ways.is_none() {
            let (send, asked) = channel::<Mapped>();
            let (answer, receive) = channel();
            let wanted = self.wanted;
            let thread = std::thread::Builder::new()
                .name("tracewire-look".into())
                .spawn(move || {
                    let runtimes = runtimes(wanted);
                    for file in asked {
                        let found = look_at(&runtimes, &file);
                        if answer.send((file, found)).is_err() {
                            return;
                        }
                    }
                });
            if thread.is_err() {
                return false;
            }
            self.ways = Some((send, receive));
        }
        self.ways.as_ref().is_some_and(|(send, _)| send.send(file).is_ok())
    }

    fn answer(&self) -> Option<Looked> {
        self.ways.as_ref()?.1.try_recv().ok()
    }
}

/// All probes of the agent.
pub struct Probes {
    runtimes: Vec<Box<dyn Runtime>>,
    files: HashMap<FileId, Probed>,
    /// Files that no runtime wants, so that they are looked at once.
    plain: HashSet<FileId>,
    /// Files that are being looked at or probed, and who runs them.
    awaited: HashMap<FileId, HashSet<u32>>,
    looker: Looker,
    /// Files that were looked at, of which the first is being probed.
    placing: VecDeque<Placing>,
    leaving: Leaving,
    /// When to look again at a process that opens connections, and how long to wait after that.
    looked: HashMap<u32, (Instant, Duration)>,
    counts: Counts,
    failed: BTreeMap<(&'static str, String), u64>,
    helpers: node::Helpers,
}

/// How soon a process is looked at again, at first and at most.
const AGAIN: Duration = Duration::from_millis(250);
const SELDOM: Duration = Duration::from_secs(64);
/// How long placing probes may hold up the ring buffer's reader.
const TURN: Duration = Duration::from_millis(1);
/// Files remembered that no runtime wants.
const PLAIN: usize = 4096;
/// Reasons that are told apart, and how much of each.
const REASONS: usize = 64;
const REASON: usize = 120;

impl Probes {
    /// None yet.
    pub fn new(wanted: Wanted) -> Self {
        Probes {
            runtimes: runtimes(wanted),
            files: HashMap::new(),
            plain: HashSet::new(),
            awaited: HashMap::new(),
            looker: Looker { wanted, ways: None },
            placing: VecDeque::new(),
            leaving: Leaving::default(),
            looked: HashMap::new(),
            counts: Counts::default(),
            failed: BTreeMap::new(),
            helpers: node::Helpers::default(),
        }
    }

    /// Loads the programs of all runtimes now: the verifier would hold up the ring buffer's reader
    /// later. One that is refused is named when it is needed.
    pub fn ready(&self, ebpf: &mut Ebpf) {
        // They first: what is loaded counts as prepared.
        for runtime in &self.runtimes {
            let _ = runtime.prepare(ebpf);
        }
        let links = self.looker.wanted.links;
        for (name, program) in ebpf.programs_mut() {
            if let Program::UProbe(program) = program
                && (links || name.starts_with("tls_"))
                && program.fd().is_err()
            {
                let _ = program.load();
            }
        }
    }

    /// Puts probes in what a process runs now. May be called again, since libraries come later.
    pub fn process(&mut self, ebpf: &mut Ebpf, pid: u32) {
        for file in self.unknown(ebpf, pid) {
            if self.awaited.contains_key(&file.id) || self.leaving.has(file.id) {
                self.soon(file, pid);
                continue;
            }
            let found = look_at(&self.runtimes, &file);
            let id = file.id;
            if let Some(mut placing) = self.begin(ebpf, file, found) {
                self.awaited.insert(id, HashSet::from([pid]));
                while self.step(ebpf, &mut placing) {}
                self.finish(ebpf, placing);
            }
        }
        self.all_looked_at(ebpf, pid);
        self.help(ebpf, pid);
        self.helpers.settle();
    }

    /// Puts the helper into a process that runs Node, if it is wanted and not there.
    fn help(&mut self, ebpf: &mut Ebpf, pid: u32) {
        if self.looker.wanted.node {
            let node = self
                .files
                .values()
                .filter(|file| file.processes.contains(&pid))
                .flat_map(|file| &file.found)
                .find(|(number, found)| *number == runtime::NODE && found.abilities.iter().all(|a| a.points.is_ok()));
            if let Some((_, found)) = node {
                self.helpers.enter(ebpf, pid, &found.layout);
            }
        }
    }

    /// Takes the helpers out of the processes that have one; waits for that.
    pub fn leave(&mut self, ebpf: &mut Ebpf) {
        self.helpers.leave(ebpf);
    }

    /// The same without waiting for files that were never looked at: see [`Probes::settle`].
    pub fn process_soon(&mut self, ebpf: &mut Ebpf, pid: u32) {
        for file in self.unknown(ebpf, pid) {
            self.soon(file, pid);
        }
        self.all_looked_at(ebpf, pid);
    }

    fn soon(&mut self, file: Mapped, pid: u32) {
        if let Some(awaiting) = self.awaited.get_mut(&file.id) {
            awaiting.insert(pid);
            return;
        }
        let id = file.id;
        if self.looker.ask(file) {
            self.awaited.insert(id, HashSet::from([pid]));
        }
    }

    /// Tells the kernel side once no file of a process waits to be looked at.
    fn all_looked_at(&self, ebpf: &mut Ebpf, pid: u32) {
        if self.looker.wanted.counts
            && mapped(pid).is_ok()
            && !self.awaited.values().any(|awaiting| awaiting.contains(&pid))
            && let Some(mut processes) = processes(ebpf)
        {
            let how = processes.get(&pid, 0).unwrap_or(watch::WATCHED);
            if let Err(error) = processes.insert(pid, how | watch::LOOKED, 0) {
                tracing::warn!(pid, %error, "the kernel side has no room for the process");
            }
        }
    }

    /// Puts probes in files that have been looked at meanwhile, some of them in one call; true: there are more.
    pub fn settle(&mut self, ebpf: &mut Ebpf) -> bool {
        while let Some((file, found)) = self.looker.answer() {
            let (id, path) = (file.id, file.path.clone());
            match self.begin(ebpf, file, found) {
                Some(placing) => self.placing.push_back(placing),
                None if path.exists() => self.settled(ebpf, id),
                // It was reached by a process that is gone: others that run it are looked at by their own way.
                None => {
                    for pid in self.awaited.remove(&id).unwrap_or_default() {
                        self.process_soon(ebpf, pid);
                    }
                }
            }
        }
        let end = Instant::now() + TURN;
        // One whose old probes are still there waits, and holds up the others for a moment.
        while let Some(mut placing) = self.placing.pop_front_if(|placing| !self.leaving.has(placing.file.id)) {
            while self.step(ebpf, &mut placing) {
                if Instant::now() >= end {
                    self.placing.push_front(placing);
                    return true;
                }
            }
            self.finish(ebpf, placing);
        }
        false
    }

    /// The files of a process that were never looked at; in the others' probes it now takes part.
    fn unknown(&mut self, ebpf: &mut Ebpf, pid: u32) -> Vec<Mapped> {
        // A process that is gone needs none.
        let mut files = mapped(pid).unwrap_or_default();
        files.retain(|file| {
            if self.plain.contains(&file.id) {
                return false;
            }
            let Some(probed) = self.files.get_mut(&file.id) else {
                return true;
            };
            if probed.processes.insert(pid) {
                tell(ebpf, pid, &probed.found);
            }
            false
        });
        files
    }

    /// None: there is nothing to place.
    fn begin(&mut self, ebpf: &mut Ebpf, file: Mapped, found: Vec<(u32, Found)>) -> Option<Placing> {
        if found.is_empty() {
            // Where its process is gone, it may not even have been read.
            if file.path.exists() {
                if self.plain.len() >= PLAIN {
                    self.plain.clear();
                }
                self.plain.insert(file.id);
            }
            return None;
        }
        Placing::new(ebpf, &self.runtimes, file, found)
    }

    /// Places one probe; false: all are in place.
    fn step(&mut self, ebpf: &mut Ebpf, placing: &mut Placing) -> bool {
        let outcome = placing.step(ebpf);
        let file = placing.file.name.display();
        match outcome {
            Outcome::Going => {}
            Outcome::InPlace(ability) => tracing::info!(%file, ability, "probes in place"),
            Outcome::Lacking(ability, reason) => {
                self.counts.lacking += 1;
                self.note(ability, &reason);
                tracing::warn!(%file, ability, reason, "not possible here");
            }
            Outcome::Done => return false,
        }
        true
    }

    /// All probes of a file are in place.
    fn finish(&mut self, ebpf: &mut Ebpf, placing: Placing) {
        let Placing { file, found, links, .. } = placing;
        let processes = self.awaited.get(&file.id).cloned().unwrap_or_default();
        // Behind the probes, for what is told makes the process an observed one.
        for pid in &processes {
            tell(ebpf, *pid, &found);
        }
        if processes.is_empty() {
            self.leaving.add(file.id, taken(ebpf, links));
        } else {
            self.counts.attached += links.len() as u64;
            let probed = Probed {
                found,
                links,
                processes,
            };
            self.files.insert(file.id, probed);
        }
        self.settled(ebpf, file.id);
    }

    /// Nothing is to be done in a file any more.
    fn settled(&mut self, ebpf: &mut Ebpf, id: FileId) {
        for pid in self.awaited.remove(&id).unwrap_or_default() {
            self.all_looked_at(ebpf, pid);
            self.help(ebpf, pid);
        }
    }

    /// A process opened a connection: what it does that by may have been loaded since it was
    /// looked at. Looks rarely at one that opens many.
    pub fn connected(&mut self, ebpf: &mut Ebpf, pid: u32) {
        let now = Instant::now();
        let (next, pause) = self.looked.get(&pid).copied().unwrap_or((now, AGAIN));
        if next <= now {
            self.process_soon(ebpf, pid);
            self.help(ebpf, pid);
            self.looked.insert(pid, (now + pause, (pause * 2).min(SELDOM)));
        }
    }

    /// A process has a connection whose bytes are TLS: if nothing is known that makes them, it may be loaded by now.
    pub fn encrypted(&mut self, ebpf: &mut Ebpf, pid: u32) {
        let known = self
            .files
            .values()
            .any(|f| f.processes.contains(&pid) && f.found.iter().any(|(number, _)| *number == runtime::TLS));
        if !known {
            self.looked.remove(&pid);
        }
        self.connected(ebpf, pid);
    }

    /// A process is gone or runs something else; the probes go with the last process of a file.
    pub fn gone(&mut self, ebpf: &mut Ebpf, pid: u32) {
        let Probes {
            files,
            counts,
            looked,
            awaited,
            leaving,
            helpers,
            ..
        } = self;
        looked.remove(&pid);
        helpers.gone(pid);
        for awaiting in awaited.values_mut() {
            awaiting.remove(&pid);
        }
        files.retain(|id, probed| {
            if !probed.processes.remove(&pid) {
                return true;
            }
            for (number, _) in &probed.found {
                forget(ebpf, pid, *number);
            }
            if !probed.processes.is_empty() {
                return true;
            }
            counts.attached -= probed.links.len() as u64;
            leaving.add(*id, taken(ebpf, std::mem::take(&mut probed.links)));
            false
        });
    }

    /// How many there are.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The same by kind, and what is lacking by ability and reason.
    pub fn points(&self) -> ProbePoints {
        let mut attached: BTreeMap<&'static str, u64> = BTreeMap::new();
        for (program, _) in self.files.values().flat_map(|file| &file.links) {
            *attached.entry(program).or_default() += 1;
        }
        ProbePoints {
            attached: attached.into_iter().collect(),
            failed: self.failed.iter().map(|(why, n)| (why.clone(), *n)).collect(),
        }
    }

    /// Counts what is lacking. Numbers are left out of the reason: they tell one file from another.
    fn note(&mut self, ability: &'static str, reason: &str) {
        let mut words = String::new();
        for c in reason.chars().take(REASON) {
            let c = if c.is_ascii_digit() { '#' } else { c };
            if !(c == '#' && words.ends_with('#')) {
                words.push(c);
            }
        }
        let mut why = (ability, words);
        if self.failed.len() >= REASONS && !self.failed.contains_key(&why) {
            why = ("other", "other".to_owned());
        }
        *self.failed.entry(why).or_default() += 1;
    }
}

fn program_of<'a>(ebpf: &'a mut Ebpf, name: &str) -> Option<&'a mut UProbe> {
    ebpf.program_mut(name).and_then(|p| p.try_into().ok())
}

/// Probes out of their programs' hands.
fn taken(ebpf: &mut Ebpf, links: Links) -> Vec<UProbeLink> {
    let taken = links.into_iter().filter_map(|(program, link)| {
        program_of(ebpf, program)?
            .take_link(link)
            .inspect_err(|error| tracing::warn!(program, %error, "a probe could not be detached"))
            .ok()
    });
    taken.collect()
}

fn layouts(ebpf: &mut Ebpf) -> Option<aya::maps::HashMap<&mut MapData, u64, Layout>> {
    aya::maps::HashMap::try_from(ebpf.map_mut("LAYOUTS")?).ok()
}

fn processes(ebpf: &mut Ebpf) -> Option<aya::maps::HashMap<&mut MapData, u32, u32>> {
    aya::maps::HashMap::try_from(ebpf.map_mut("PROCESSES")?).ok()
}

fn key(pid: u32, number: u32) -> u64 {
    u64::from(number) << 32 | u64::from(pid)
}

/// Tells the kernel side what runs in a process.
fn tell(ebpf: &mut Ebpf, pid: u32, found: &[(u32, Found)]) {
    for (number, found) in found {
        let told = layouts(ebpf).is_some_and(|mut l| l.insert(key(pid, *number), found.layout, 0).is_ok());
        if !told {
            tracing::warn!(pid, "the kernel side has no room for what is known of the process");
            return;
        }
        if let Some(mut processes) = processes(ebpf) {
            let how = processes.get(&pid, 0).unwrap_or(watch::WATCHED);
            if let Err(error) = processes.insert(pid, how | runtime::bit(*number), 0) {
                tracing::warn!(pid, %error, "the kernel side has no room for the process");
            }
        }
    }
}

fn forget(ebpf: &mut Ebpf, pid: u32, number: u32) {
    if let Some(mut layouts) = layouts(ebpf) {
        // Absent is as good as removed.
        let _ = layouts.remove(&key(pid, number));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// A library that is unpacked where another was, with its number, is not taken for that one.
    #[test]
    fn a_file_with_the_number_of_one_that_is_gone_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("library");
        let mut known = HashSet::new();
        for _ in 0..20 {
            std::fs::write(&path, b"code").unwrap();
            assert_eq!(file_id(&path).unwrap(), file_id(&path).unwrap());
            // Where the file system says when it was made.
            if std::fs::metadata(&path).unwrap().created().is_ok() {
                assert!(known.insert(file_id(&path).unwrap()));
            }
            std::fs::remove_file(&path).unwrap();
            // Clocks of file systems tick a few milliseconds apart.
            std::thread::sleep(Duration::from_millis(12));
        }
    }
}
