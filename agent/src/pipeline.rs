//! The one wiring file: kernel → core → exporters.
//!
//! One thread reads the ring buffer and makes spans; another hands them to the
//! exporters, so that a slow terminal or pipe never makes the kernel drop
//! records. Between them stands a bounded queue; what does not fit is counted.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracewire_common::event::{Close, Header, Plain, kind};

use crate::bpf::load::Kernel;
use crate::bpf::ring::Reader;
use crate::clock;
use crate::connection::Transport;
use crate::connection::closes::Closes;
use crate::connection::record::Event;
use crate::core::{Core, Processes};
use crate::discover::Resource;
use crate::discover::resource::Resources;
use crate::export::Exporter;
use crate::health::Pulse;
use crate::metrics::Metrics;
use crate::propagation::head::Head;
use crate::recording::recorder::Recorder;
use crate::sampler::{self, Sampler};
use crate::span::Span;
use crate::span::build::Builder;
use crate::telemetry::Counters;

/// Batches between the reader and the exporters.
const QUEUE: usize = 256;
/// Longest rest of the reader.
const REST: Duration = Duration::from_millis(50);
/// How long a process that ended is waited for, so that its connections can tell their end.
const AFTERLIFE: u64 = 300_000_000;
/// How often clocks are compared and faults read.
const UPKEEP: Duration = Duration::from_secs(2);
/// How much longer than the deadline an exporter may take before it is left behind.
const HANG: Duration = Duration::from_millis(500);
/// How often open requests are counted.
const MEASURE: Duration = Duration::from_millis(500);

/// Decides over processes that come by themselves.
pub trait Chooser: Send {
    /// Whether a process that just started its program is observed.
    fn chooses(&mut self, pid: u32, resource: &Resource) -> bool;
}

/// Chooses whatever the kernel side chose: children of observed processes.
pub struct Children;

impl Chooser for Children {
    fn chooses(&mut self, _pid: u32, _resource: &Resource) -> bool {
        true
    }
}

/// When the pipeline ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// When it is told to.
    Stopped,
    /// When all observed processes ended, too.
    AllEnded,
}

/// What a running agent may be told anew.
pub struct Change {
    /// Which traces are kept.
    pub sampling: sampler::Config,
    /// Whether contexts are written, and to whom.
    pub injection: (bool, Vec<crate::bpf::inject::Destination>),
    /// What spans say; what was learned stays.
    pub builder: Builder,
    /// Where spans go.
    pub exporters: Vec<Box<dyn Exporter>>,
    /// Who is observed; those that are observed already stay so until they end.
    pub chooser: Box<dyn Chooser>,
    /// Processes that are there and chosen.
    pub pids: Vec<u32>,
    /// Ports whose listeners are chosen.
    pub ports: Vec<u16>,
}

/// Exporters that wait to take the place of others.
type Replacement = Arc<Mutex<Option<Vec<Box<dyn Exporter>>>>>;

/// The running agent, less its exporters.
pub struct Pipeline {
    changes: (Sender<Change>, Receiver<Change>),
    kernel: Kernel,
    reader: Reader,
    core: Core,
    named: Named,
    chooser: Box<dyn Chooser>,
    recorder: Option<Recorder>,
    sampler: Sampler,
    counters: Arc<Counters>,
    metrics: Arc<Metrics>,
    pulse: Arc<Pulse>,
    spans: Vec<Span>,
    ended: VecDeque<(u64, u32)>,
    closes: Closes,
    /// Observed processes that were not there at the last look.
    gone: HashSet<u32>,
    upkeep: Instant,
    measured: Instant,
}

struct Named {
    resources: Resources,
    watched: HashSet<u32>,
    /// Resources of observed processes; kept a while after their end.
    known: HashMap<u32, Arc<Resource>>,
}

impl Processes for Named {
    fn resource(&mut self, pid: u32) -> Arc<Resource> {
        if let Some(known) = self.known.get(&pid) {
            return known.clone();
        }
        let resource = self.resources.of(pid);
        self.known.insert(pid, resource.clone());
        resource
    }
}

/// How the kernel decides over traces that begin in a process.
fn tell_rule(kernel: &mut Kernel, core: &mut Core, pid: u32, resource: &Resource) {
    if kernel.injects() {
        kernel.decide_by(pid, core.head().rule(&resource.service_name));
    }
}

impl Pipeline {
    /// Wires a loaded kernel side. None: its maps are not there.
    pub fn new(
        mut kernel: Kernel,
        core: Core,
        resources: Resources,
        chooser: Box<dyn Chooser>,
        counters: Arc<Counters>,
    ) -> Option<Self> {
        let reader = Reader::new(kernel.events()?, kernel.sleeping()?);
        let named = Named {
            resources,
            watched: HashSet::new(),
            known: HashMap::new(),
        };
        Some(Pipeline {
            changes: channel(),
            kernel,
            reader,
            core,
            named,
            chooser,
            recorder: None,
            sampler: Sampler::new(sampler::Config::default()),
            counters,
            metrics: Arc::new(Metrics::new(false)),
            pulse: Arc::default(),
            spans: Vec::new(),
            ended: VecDeque::new(),
            closes: Closes::default(),
            gone: HashSet::new(),
            upkeep: Instant::now(),
            measured: Instant::now(),
        })
    }

    /// Also writes down what the core is given.
    pub fn record(&mut self, mut recorder: Recorder) {
        recorder.clock(self.core.boot_to_unix_ns);
        self.recorder = Some(recorder);
    }

    /// Lets `sampler` choose among the spans; without it all are kept.
    pub fn sample(&mut self, sampler: Sampler) {
        self.sampler = sampler;
        if self.kernel.injects() {
            self.core.decide_early();
        }
        self.tell_rules();
    }

    /// Where the kernel writes contexts it decides by what the head says of each process.
    fn tell_rules(&mut self) {
        if !self.kernel.injects() {
            return;
        }
        let head = self.core.head();
        self.kernel.decide_by(0, head.rule_of_strangers());
        for pid in &self.named.watched {
            let Some(resource) = self.named.known.get(pid) else {
                continue;
            };
            self.kernel.decide_by(*pid, head.rule(&resource.service_name));
        }
    }

    /// Where changes are sent to.
    pub fn changes(&self) -> Sender<Change> {
        self.changes.0.clone()
    }

    fn change(&mut self, change: Change, replacement: &Replacement) {
        self.sampler.stop();
        self.core
            .change(Head::new(change.sampling.head.clone()), change.builder);
        self.sampler = Sampler::new(change.sampling);
        self.tell_rules();
        if let Err(reason) = self.kernel.follow(change.injection.0, &change.injection.1) {
            tracing::error!("no context is written any more: {reason}");
        }
        self.chooser = change.chooser;
        for port in change.ports {
            if !self.kernel.choose_port(port) {
                tracing::warn!("the kernel refused port {port}");
            }
        }
        for pid in change.pids {
            if !self.named.watched.contains(&pid) && self.watch(pid) {
                tracing::info!("attached {pid} ({})", self.name(pid));
            }
        }
        *replacement.lock().unwrap_or_else(PoisonError::into_inner) = Some(change.exporters);
        self.counters.reloads.increment();
        tracing::info!("configuration read again");
    }

    /// Also counts every request in `metrics`, and tells `pulse` that it lives.
    pub fn measure(&mut self, metrics: Arc<Metrics>, pulse: Arc<Pulse>) {
        self.metrics = metrics;
        self.pulse = pulse;
    }

    /// Observes a process from now on; false: the kernel refused.
    pub fn watch(&mut self, pid: u32) -> bool {
        // Its names are read first: it may end at any moment.
        let resource = self.named.resource(pid);
        if self.named.watched.insert(pid) {
            self.metrics.started(&resource);
        }
        tell_rule(&mut self.kernel, &mut self.core, pid, &resource);
        // The probes first, so that they are there when the first request is seen.
        self.kernel.probe(pid);
        self.kernel.watch(pid)
    }

    /// What an observed process is called.
    pub fn name(&mut self, pid: u32) -> Arc<str> {
        self.named.resource(pid).service_name.clone()
    }

    /// Runs until `stop` is set, or as `until` says; then drains and ends what is open.
    pub fn run(mut self, until: Until, stop: &AtomicBool, exporters: Vec<Box<dyn Exporter>>, deadline: Duration) {
        let (send, receive) = sync_channel::<Vec<Span>>(QUEUE);
        let replacement = Replacement::default();
        let exporting = std::thread::Builder::new().name("tracewire-export".into()).spawn({
            let (replacement, counters) = (replacement.clone(), self.counters.clone());
            move || export(&receive, exporters, &replacement, deadline, &counters)
        });
        let Ok(exporting) = exporting else {
            tracing::error!("no thread could be made for the exporters");
            return;
        };
        if until != Until::AllEnded {
            // Who is to be observed is read from processes that may end at once.
            crate::priority::keep_up();
        }
        self.pulse.ready(true);
        while !stop.load(Ordering::Relaxed) {
            let more = self.turn();
            self.hand_over(&send);
            while let Ok(change) = self.changes.1.try_recv() {
                self.change(change, &replacement);
            }
            if until == Until::AllEnded && self.named.watched.is_empty() && self.ended.is_empty() {
                break;
            }
            if !more {
                self.reader.wait(REST);
            }
        }
        self.pulse.ready(false);
        self.kernel.leave();
        // Nothing new: the processes are let go, then what is in the buffer is read.
        let watched: Vec<u32> = self.named.watched.drain().collect();
        for pid in watched {
            self.kernel.unwatch(pid);
        }
        self.turn();
        let now = clock::boot_ns();
        if let Some(recorder) = &mut self.recorder {
            recorder.stop(now);
        }
        self.core.stop(now, &mut self.named, &mut self.spans);
        self.metrics.record(&self.spans);
        self.measure_now();
        self.sampler.sift(&mut self.spans, now);
        self.sampler.stop();
        self.count();
        if !self.spans.is_empty() {
            self.counters.spans.add(self.spans.len() as u64);
            // The exporters still drain their queue, so there is room soon, unless one hangs.
            let end = Instant::now() + deadline;
            let mut batch = std::mem::take(&mut self.spans);
            self.counters.handed.add(batch.len() as u64);
            while let Err(error) = send.try_send(batch) {
                let (TrySendError::Full(back) | TrySendError::Disconnected(back)) = error;
                // Counted below, with all else that an exporter that hangs was to take.
                if Instant::now() > end {
                    break;
                }
                batch = back;
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        drop(send);
        // Standard output may be a pipe that nobody reads: that does not hold up the end.
        let end = Instant::now() + deadline + HANG;
        while !exporting.is_finished() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        if !exporting.is_finished() {
            let stuck = self.counters.handed.get().saturating_sub(self.counters.taken.get());
            self.counters.dropped_pipeline.add(stuck);
            tracing::error!(spans = stuck, "an exporter hangs: what it was given is lost");
        } else if exporting.join().is_err() {
            tracing::error!("the exporters' thread failed");
        }
    }

    /// Reads what is there; true: there is more to do.
    fn turn(&mut self) -> bool {
        let more = self.kernel.settle_probes();
        self.kernel.flush_log();
        let Pipeline {
            reader,
            core,
            named,
            chooser,
            recorder,
            kernel,
            spans,
            ended,
            metrics,
            ..
        } = self;
        let count = reader.drain(|record| {
            let Some(event) = Event::parse(record) else {
                core.unknown_record();
                return;
            };
            match event {
                Event::Exec { pid } => {
                    named.known.remove(&pid);
                    named.resources.exec(pid);
                    kernel.unprobe(pid);
                    let resource = named.resource(pid);
                    if chooser.chooses(pid, &resource) {
                        if named.watched.insert(pid) {
                            metrics.started(&resource);
                        }
                        tell_rule(kernel, core, pid, &resource);
                        kernel.watch(pid);
                        kernel.probe_soon(pid);
                    } else {
                        named.watched.remove(&pid);
                        named.known.remove(&pid);
                        kernel.unwatch(pid);
                    }
                }
                // Of a program that nobody chose, and that the kernel watched until that was known.
                Event::Fork { pid, child } if !named.watched.contains(&pid) => kernel.unwatch(child),
                Event::Fork { child, .. } => {
                    let resource = named.resource(child);
                    tell_rule(kernel, core, child, &resource);
                    if named.watched.insert(child) {
                        metrics.started(&resource);
                    }
                    kernel.probe_soon(child);
                }
                Event::Listen { pid, port } => {
                    tracing::debug!(pid, port, "chosen by its port");
                    let resource = named.resource(pid);
                    tell_rule(kernel, core, pid, &resource);
                    if named.watched.insert(pid) {
                        metrics.started(&resource);
                    }
                    kernel.probe_soon(pid);
                }
                Event::Tls { pid } => kernel.encrypted(pid),
                Event::Blocks { connection } => kernel.let_go(connection),
                Event::Exit { pid, time_ns, status } => {
                    kernel.unprobe(pid);
                    kernel.undecide(pid);
                    if named.watched.remove(&pid) {
                        metrics.ended(&named.resource(pid), status);
                        ended.push_back((time_ns, pid));
                    }
                }
                // Unannounced, its pieces are not used either.
                Event::Open { ref open, .. } if !kernel.unix && open.peer.transport == Transport::Unix => {}
                Event::Open { ref header, .. }
                | Event::Frames { ref header, .. }
                | Event::Injected { ref header, .. } => {
                    if header.kind == kind::OPEN && named.watched.contains(&header.pid) {
                        kernel.connected(header.pid);
                    }
                    if named.watched.contains(&header.pid) || named.known.contains_key(&header.pid) {
                        if let Some(recorder) = recorder {
                            recorder.process(header.pid, &named.resource(header.pid));
                            recorder.record(record);
                        }
                        core.event(event, named, spans);
                        for (request, context) in core.decided() {
                            kernel.decided(&request, &context);
                        }
                    }
                }
                Event::Close { .. } | Event::Link { .. } | Event::Name { .. } => {
                    if let Some(recorder) = recorder {
                        recorder.record(record);
                    }
                    core.event(event, named, spans);
                }
            }
        });
        self.counters.events.add(count as u64);
        let now = clock::boot_ns();
        if let Some(recorder) = &mut self.recorder {
            recorder.tick(now, count);
        }
        self.core.tick(now, &mut self.named, &mut self.spans);
        for (request, context) in self.core.decided() {
            self.kernel.decided(&request, &context);
        }
        if self.core.head().moved() {
            self.tell_rules();
        }
        while let Some((time_ns, pid)) = self.ended.front().copied()
            && time_ns + AFTERLIFE < now
        {
            self.ended.pop_front();
            if let Some(recorder) = &mut self.recorder {
                recorder.exited(pid, time_ns);
            }
            self.core.exited(pid, time_ns, &mut self.named, &mut self.spans);
            self.named.known.remove(&pid);
            self.named.resources.forget(pid);
        }
        self.look_for_closes(now);
        // Every request counts, whatever sampling chooses.
        self.metrics.record(&self.spans);
        self.pulse.beat(now);
        self.sampler.sift(&mut self.spans, now);
        if self.measured.elapsed() > MEASURE {
            self.measured = Instant::now();
            self.measure_now();
        }
        if self.upkeep.elapsed() > UPKEEP {
            self.upkeep = Instant::now();
            self.count();
            self.core.boot_to_unix_ns = clock::boot_to_unix_ns();
            if let Some(recorder) = &mut self.recorder {
                recorder.clock(self.core.boot_to_unix_ns);
            }
            self.missed_ends(now);
        }
        more
    }

    /// Unix sockets are closed without a word: looks which are still held.
    fn look_for_closes(&mut self, now: u64) {
        if !self.closes.may_be_due(now) {
            return;
        }
        let followed = self.core.unix_connections();
        if !self.closes.is_due(&followed, now) {
            return;
        }
        let Some(held) = self.kernel.held_sockets() else {
            return;
        };
        for (connection, time_ns) in self.closes.look(&followed, &held, now) {
            let header = Header {
                kind: kind::CLOSE,
                length: size_of::<Close>() as u32,
                time_ns,
                connection,
                ..Header::EMPTY
            };
            if let Some(recorder) = &mut self.recorder {
                recorder.record(&[header.bytes(), Close::default().bytes()].concat());
            }
            let event = Event::Close { header, error: 0 };
            self.core.event(event, &mut self.named, &mut self.spans);
        }
    }

    /// Ends that the kernel could not report, because the ring buffer was full. Who is gone for
    /// the second time is taken for such a one: the report of the others is on its way.
    fn missed_ends(&mut self, now: u64) {
        let gone: HashSet<u32> = self
            .named
            .watched
            .iter()
            .copied()
            .filter(|pid| !std::path::Path::new("/proc").join(pid.to_string()).exists())
            .collect();
        for pid in gone.intersection(&self.gone) {
            self.named.watched.remove(pid);
            self.metrics.missed(&self.named.resource(*pid));
            self.kernel.unwatch(*pid);
            self.ended.push_back((now, *pid));
        }
        self.gone = gone;
    }

    /// What is so at this moment.
    fn measure_now(&mut self) {
        let named = &mut self.named;
        let open = self.core.open_requests();
        let open: Vec<_> = open
            .map(|(pid, role, count)| (named.resource(pid), role, count))
            .collect();
        self.metrics.active(open.into_iter());
        self.counters.processes.set(self.named.watched.len() as u64);
        self.counters.own_requests.set(self.core.own_requests());
    }

    fn count(&self) {
        for (counter, total) in self.counters.lost_events.iter().zip(self.kernel.faults()) {
            counter.set(total);
        }
        for (counter, total) in self.counters.injections.iter().zip(self.kernel.fates()) {
            counter.set(total);
        }
        self.counters.kernel_bytes.set(self.kernel.bytes());
        let counts = self.core.counts();
        self.counters.hpack_unknown.set(counts.hpack_unknown);
        self.counters.malformed.set(counts.malformed);
        self.counters.gaps.set(counts.gaps);
        self.counters.requests_unseen.set(counts.requests_unseen);
        let parents = self.core.propagation();
        self.counters.spans_joined.set(parents.joined);
        self.counters.spans_linked.set(parents.linked);
        self.counters.parents_ambiguous.set(parents.ambiguous);
        self.counters.parents_unseen.set(parents.parents_unseen);
        let probes = self.kernel.probes();
        self.counters.probes.set(probes.attached);
        self.counters.probes_lacking.set(probes.lacking);
        let counts = self.sampler.counts();
        self.counters.unsampled.set(counts.unsampled);
        self.counters.released.set(counts.released);
        self.counters.evicted.set(counts.evicted);
        self.counters.tls_unjoined.set(self.core.unjoined());
        self.counters.hold_bytes.set(self.sampler.held_bytes() as u64);
        self.counters.connections.set(self.core.connections() as u64);
        self.counters.asked.set(self.sampler.asked());
        let all = counts.sampled + counts.released + counts.unsampled + counts.evicted;
        if all > 0 {
            self.counters.actual.set(counts.sampled as f64 / all as f64);
        }
        let mut points = self
            .counters
            .probe_points
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *points = self.kernel.probe_points();
    }

    fn hand_over(&mut self, send: &SyncSender<Vec<Span>>) {
        if self.spans.is_empty() {
            return;
        }
        let batch = std::mem::take(&mut self.spans);
        let count = batch.len() as u64;
        self.counters.spans.add(count);
        match send.try_send(batch) {
            Ok(()) => self.counters.handed.add(count),
            Err(_) => self.counters.dropped_pipeline.add(count),
        }
    }
}

fn export(
    receive: &Receiver<Vec<Span>>,
    mut exporters: Vec<Box<dyn Exporter>>,
    replacement: &Replacement,
    deadline: Duration,
    counters: &Counters,
) {
    loop {
        let received = receive.recv_timeout(Duration::from_millis(100));
        // What came after a change goes where the change says.
        let new = replacement.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(new) = new {
            for mut old in std::mem::replace(&mut exporters, new) {
                old.shutdown(deadline);
            }
        }
        match received {
            Ok(batch) => {
                let now = clock::unix_ns();
                for span in &batch {
                    let time = Duration::from_nanos(now.saturating_sub(span.end_unix_ns));
                    counters.processing.record(time);
                }
                for exporter in &mut exporters {
                    exporter.export(&batch);
                }
                counters.taken.add(batch.len() as u64);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        for exporter in &mut exporters {
            exporter.tick();
        }
    }
    // In their order, Sentry last, and all of them within the one deadline: each has an equal
    // share of what is left, so that one whose server is gone does not take it all.
    let end = Instant::now() + deadline;
    let mut left = u32::try_from(exporters.len()).unwrap_or(u32::MAX);
    for exporter in &mut exporters {
        exporter.shutdown(end.saturating_duration_since(Instant::now()) / left.max(1));
        left -= 1;
    }
}
