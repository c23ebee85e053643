//! Probes on their way into a file and out of it, beside the ring buffer's
//! reader: to place one takes the kernel a good part of a millisecond, to
//! take one away a grace period, and what the reader has not yet read may be
//! of a process that is gone by then.

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};

use aya::Ebpf;
use aya::programs::uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeLinkId, UProbeScope};

use super::{FileId, Found, Mapped, Point, Runtime, program_of};

/// Probes in place: the program and its link.
pub(super) type Links = Vec<(&'static str, UProbeLinkId)>;

/// What became of an ability.
pub(super) enum Outcome {
    /// A probe was placed, or another is to come.
    Going,
    /// All its probes are in place.
    InPlace(&'static str),
    /// One can't be.
    Lacking(&'static str, String),
    /// There is nothing left to do.
    Done,
}

/// The probes of one file, placed one at a time.
pub(super) struct Placing {
    pub(super) file: Mapped,
    pub(super) found: Vec<(u32, Found)>,
    pub(super) links: Links,
    /// Held open, for the process whose file it is may end.
    path: PathBuf,
    _held: File,
    /// Abilities, each with the probes that it still waits for.
    todo: VecDeque<(&'static str, Result<VecDeque<Point>, String>)>,
    /// Points that abilities share are attached once.
    placed: HashSet<(&'static str, u64)>,
}

impl Placing {
    /// None: the file is gone with its process.
    pub(super) fn new(
        ebpf: &mut Ebpf,
        runtimes: &[Box<dyn Runtime>],
        file: Mapped,
        found: Vec<(u32, Found)>,
    ) -> Option<Self> {
        let held = File::open(&file.path).ok()?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()));
        let mut todo = VecDeque::new();
        for (number, found) in &found {
            let runtime = runtimes.iter().find(|r| r.number() == *number);
            let prepared = runtime.map_or(Ok(()), |r| r.prepare(ebpf));
            todo.extend(found.abilities.iter().map(|ability| {
                let points = prepared.clone().and_then(|()| ability.points.clone());
                (ability.name, points.map(VecDeque::from))
            }));
        }
        Some(Placing {
            file,
            found,
            links: Links::new(),
            path,
            _held: held,
            todo,
            placed: HashSet::new(),
        })
    }

    /// Places the next probe.
    pub(super) fn step(&mut self, ebpf: &mut Ebpf) -> Outcome {
        let Some((ability, points)) = self.todo.front_mut() else {
            return Outcome::Done;
        };
        let ability = *ability;
        let failed = match points {
            Ok(points) => match points.pop_front() {
                Some(point) if !self.placed.insert((point.program, point.offset)) => return Outcome::Going,
                Some(point) => match place(ebpf, &self.path, point) {
                    Ok(link) => {
                        self.links.push((point.program, link));
                        return Outcome::Going;
                    }
                    Err(reason) => {
                        self.placed.remove(&(point.program, point.offset));
                        reason
                    }
                },
                None => {
                    self.todo.pop_front();
                    return Outcome::InPlace(ability);
                }
            },
            Err(reason) => std::mem::take(reason),
        };
        self.todo.pop_front();
        Outcome::Lacking(ability, failed)
    }
}

fn place(ebpf: &mut Ebpf, path: &std::path::Path, point: Point) -> Result<UProbeLinkId, String> {
    let name = point.program;
    let program = program_of(ebpf, name).ok_or_else(|| format!("no program {name}"))?;
    if program.fd().is_err() {
        program
            .load()
            .map_err(|e| format!("the kernel refused {name}: {}", crate::bpf::load::reason(&e)))?;
    }
    let at = UProbeAttachPoint {
        location: UProbeAttachLocation::AbsoluteOffset(point.offset),
        cookie: Some(point.cookie),
    };
    program
        .attach(at, path, UProbeScope::AllProcesses)
        .map_err(|e| format!("{name} at {:#x}: {}", point.offset, crate::bpf::load::chain(&e)))
}

/// A file and its probes.
type Old = (FileId, Vec<UProbeLink>);

/// Takes probes away in a thread of its own.
#[derive(Default)]
pub(super) struct Leaving {
    ways: Option<(Sender<Old>, Receiver<FileId>)>,
    /// Files whose old probes may still be there: new ones would be hit beside them.
    files: HashSet<FileId>,
}

impl Leaving {
    /// Takes a file's probes away, soon.
    pub(super) fn add(&mut self, id: FileId, links: Vec<UProbeLink>) {
        if self.ways.is_none() {
            let (send, asked) = channel::<Old>();
            let (answer, receive) = channel();
            let thread = std::thread::Builder::new()
                .name("tracewire-leave".into())
                .spawn(move || {
                    for (id, links) in asked {
                        drop(links);
                        if answer.send(id).is_err() {
                            return;
                        }
                    }
                });
            self.ways = thread.is_ok().then_some((send, receive));
        }
        // Where there is no thread, they are gone here and now.
        if let Some((send, _)) = &self.ways
            && send.send((id, links)).is_ok()
        {
            self.files.insert(id);
        }
    }

    /// Whether a file's old probes may still be there.
    pub(super) fn has(&mut self, id: FileId) -> bool {
        if let Some((_, gone)) = &self.ways {
            for id in gone.try_iter() {
                self.files.remove(&id);
            }
        }
        self.files.contains(&id)
    }
}
