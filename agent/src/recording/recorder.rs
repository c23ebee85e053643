//! Writes a recording while the pipeline runs. A disk that is full ends the
//! recording, never the observed process.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use rustc_hash::FxHashMap;
use tracewire_common::event::Header;

use super::file::Writer;
use super::redact::Redactor;
use super::{kind, resource};
use crate::discover::Resource;
use crate::protocol::fields::Allow;

/// What became of a recording, shared with who waits for its end.
#[derive(Clone, Default)]
pub struct Progress(Arc<State>);

#[derive(Default)]
struct State {
    error: OnceLock<io::Error>,
    bytes: std::sync::atomic::AtomicU64,
}

impl Progress {
    /// Why it ended early.
    pub fn error(&self) -> Option<&io::Error> {
        self.0.error.get()
    }

    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.0.bytes.load(Ordering::Relaxed)
    }
}

/// Records what the core is given.
pub struct Recorder {
    writer: Writer<Box<dyn Write + Send>>,
    redactor: Redactor,
    /// Identity of the resource that was written for each process.
    named: FxHashMap<u32, u64>,
    clock: Option<i64>,
    /// The latest time that was told and not yet written.
    idle: Option<u64>,
    progress: Progress,
    /// Set when the output fails.
    stop: Arc<AtomicBool>,
}

impl Recorder {
    /// Records to `out`, which need not be buffered. `allow`: header fields
    /// whose values are kept beside those that spans need. `stop` is set when
    /// the output fails, for there is no use in going on.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn new(
        out: Box<dyn Write + Send>,
        allow: Allow,
        stop: Arc<AtomicBool>,
        progress: Progress,
    ) -> io::Result<Self> {
        Ok(Recorder {
            writer: Writer::new(out)?,
            redactor: Redactor::new(allow),
            named: FxHashMap::default(),
            clock: None,
            idle: None,
            progress,
            stop,
        })
    }

    /// Unix time is CLOCK_BOOTTIME plus this many ns from here on.
    pub fn clock(&mut self, boot_to_unix_ns: i64) {
        if self.clock.replace(boot_to_unix_ns) != Some(boot_to_unix_ns) {
            self.own(
                Header {
                    kind: kind::CLOCK,
                    ..Header::EMPTY
                },
                &boot_to_unix_ns.to_le_bytes(),
            );
        }
        // Whoever kills the agent loses no more than what came since.
        let result = self.writer.flush();
        self.check(result.map(|()| 0));
    }

    /// What the process of the records that follow is called.
    pub fn process(&mut self, pid: u32, resource: &Resource) {
        if self.named.insert(pid, resource.id) != Some(resource.id) {
            self.own(
                Header {
                    kind: kind::RESOURCE,
                    pid,
                    ..Header::EMPTY
                },
                &resource::encode(resource),
            );
        }
    }

    /// A record about a connection.
    pub fn record(&mut self, record: &[u8]) {
        self.catch_up();
        let Recorder { writer, redactor, .. } = self;
        let mut result = Ok(0);
        redactor.record(record, |header, payload| {
            if let Ok(before) = &result {
                result = writer.write(&header, payload).map(|more| before + more);
            }
        });
        self.check(result);
    }

    /// The core was told the time, after some records or after none.
    pub fn tick(&mut self, now_ns: u64, records: usize) {
        self.idle = Some(now_ns);
        if records > 0 {
            self.catch_up();
        }
    }

    /// The core was told that a process ended.
    pub fn exited(&mut self, pid: u32, time_ns: u64) {
        self.own(
            Header {
                kind: kind::EXITED,
                pid,
                time_ns,
                ..Header::EMPTY
            },
            &[],
        );
        self.redactor.exited(pid);
        self.named.remove(&pid);
    }

    /// The end.
    pub fn stop(&mut self, now_ns: u64) {
        self.own(
            Header {
                kind: kind::STOP,
                time_ns: now_ns,
                ..Header::EMPTY
            },
            &[],
        );
        let result = self.writer.flush();
        self.check(result.map(|()| 0));
    }

    /// Writes the last time that was told: those before it changed nothing, since nothing came between.
    fn catch_up(&mut self) {
        if let Some(time_ns) = self.idle.take() {
            let result = self.writer.write(
                &Header {
                    kind: kind::TICK,
                    time_ns,
                    ..Header::EMPTY
                },
                &[],
            );
            self.check(result);
        }
    }

    fn own(&mut self, header: Header, payload: &[u8]) {
        self.catch_up();
        let result = self.writer.write(&header, payload);
        self.check(result);
    }

    fn check(&mut self, result: io::Result<u64>) {
        match result {
            Ok(bytes) => {
                self.progress.0.bytes.fetch_add(bytes, Ordering::Relaxed);
            }
            Err(error) => {
                let _ = self.progress.0.error.set(error);
                self.stop.store(true, Ordering::Relaxed);
            }
        }
    }
}
