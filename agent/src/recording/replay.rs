//! A recording → spans, by the core that made them live.

use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;

use super::Entry;
use super::file::{Bad, Reader};
use crate::connection::record::Event;
use crate::core::{Core, Processes};
use crate::discover::Resource;
use crate::span::Span;

/// Seed of all ids of a replay, so that two replays of one recording say the same.
pub const KEY: [u64; 2] = [0x7468_6520_7361_6d65, 0x6964_7320_616c_6c73];

/// Processes as the recording names them.
#[derive(Default)]
pub struct Named {
    known: HashMap<u32, Arc<Resource>>,
    count: u64,
    unnamed: Arc<Resource>,
}

impl Named {
    fn name(&mut self, pid: u32, mut resource: Arc<Resource>) {
        self.count += 1;
        Arc::make_mut(&mut resource).id = self.count;
        self.known.insert(pid, resource);
    }
}

impl Processes for Named {
    fn resource(&mut self, pid: u32) -> Arc<Resource> {
        self.known.get(&pid).unwrap_or(&self.unnamed).clone()
    }
}

/// Feeds a core from a recording.
pub struct Replay {
    core: Core,
    named: Named,
    last_ns: u64,
    stopped: bool,
}

impl Replay {
    /// `core` should be new, with [`KEY`].
    pub fn new(core: Core) -> Self {
        Replay {
            core,
            named: Named::default(),
            last_ns: 0,
            stopped: false,
        }
    }

    /// Takes one entry.
    pub fn entry(&mut self, entry: Entry<'_>, spans: &mut Vec<Span>) {
        let Replay { core, named, .. } = self;
        match entry {
            Entry::Event(event) => {
                if let Event::Open { header, .. } | Event::Frames { header, .. } | Event::Close { header, .. } = &event
                {
                    self.last_ns = self.last_ns.max(header.time_ns);
                }
                core.event(event, named, spans);
            }
            Entry::Clock(ns) => core.boot_to_unix_ns = ns,
            Entry::Resource { pid, resource } => named.name(pid, resource),
            Entry::Tick(now_ns) => {
                self.last_ns = self.last_ns.max(now_ns);
                core.tick(now_ns, named, spans);
            }
            Entry::Exited { pid, time_ns } => core.exited(pid, time_ns, named, spans),
            Entry::Stop(now_ns) => {
                self.stopped = true;
                core.stop(now_ns, named, spans);
            }
        }
    }

    /// The end of the recording, if it did not say so itself.
    pub fn end(&mut self, spans: &mut Vec<Span>) {
        if !std::mem::replace(&mut self.stopped, true) {
            self.core.stop(self.last_ns, &mut self.named, spans);
        }
    }

    /// Takes a whole recording, and gives its spans to `each` as they come, with the time of
    /// the recording, ns.
    ///
    /// # Errors
    /// Where the recording can't be read on; the spans of what came before were given.
    pub fn all<R: Read>(
        &mut self,
        reader: &mut Reader<R>,
        mut each: impl FnMut(&mut Vec<Span>, u64),
    ) -> Result<(), Bad> {
        let mut spans = Vec::new();
        let result = loop {
            match reader.entry() {
                Ok(Some(entry)) => self.entry(entry, &mut spans),
                Ok(None) => break Ok(()),
                Err(bad) => break Err(bad),
            }
            if !spans.is_empty() {
                each(&mut spans, self.last_ns);
                spans.clear();
            }
        };
        self.end(&mut spans);
        each(&mut spans, self.last_ns);
        result
    }
}
