//! Live traces for a person at a terminal: a tree a trace, with a bar a span
//! on the trace's time line. A tree is shown once its trace looks complete, so
//! prefers a late tree to a torn one; what comes later still is shown by itself.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use super::Exporter;
use super::summary::Summary;
use crate::span::{Span, TraceId};
use crate::telemetry::{Component, Counters};

mod line;
mod tree;

#[cfg(test)]
mod tests;

pub(super) use line::{clean, duration, fit};

/// How long a trace must be silent before its tree is shown.
const QUIET: Duration = Duration::from_millis(300);
/// The same for a trace in which a parent is missing: a slow request whose end is still
/// to come, or a caller that is not observed.
const QUIET_ORPHAN: Duration = Duration::from_secs(2);
/// Most spans held in unfinished traces; beyond, the most silent trace is shown early.
const MAX_HELD: usize = 4096;
/// Most trees shown in a second on a terminal.
const MAX_TREES: u32 = 100;
/// Width where there is no terminal, columns.
const DEFAULT_WIDTH: usize = 80;
/// Narrowest layout, columns.
const MIN_WIDTH: usize = 40;
/// Below so many columns there is no room for bars, nor for a row of the table on one line.
pub(super) const NARROW: usize = 72;
/// Widest layout, columns: beyond, eyes lose the line.
const MAX_WIDTH: usize = 200;

/// How trees look.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// Columns.
    pub width: usize,
    /// ANSI colours.
    pub colours: bool,
    /// A person watches: no more trees than can be followed.
    pub live: bool,
}

impl Default for Look {
    fn default() -> Self {
        Look {
            width: DEFAULT_WIDTH,
            colours: false,
            live: false,
        }
    }
}

impl Look {
    /// As standard output wants it: its width; colours on a terminal without `NO_COLOR`.
    pub fn of_stdout() -> Self {
        use std::io::IsTerminal as _;
        let out = io::stdout();
        let width = terminal_size::terminal_size_of(&out).map_or(DEFAULT_WIDTH, |(width, _)| width.0.into());
        let colours = anstream::AutoStream::choice(&out) != anstream::ColorChoice::Never;
        Look {
            width: width.clamp(MIN_WIDTH, MAX_WIDTH),
            colours,
            live: out.is_terminal(),
        }
    }
}

/// Shows trees on `W`.
pub struct ConsoleExporter<W> {
    out: W,
    look: Look,
    counters: Arc<Counters>,
    component: Arc<Component>,
    traces: FxHashMap<TraceId, Trace>,
    held: usize,
    summary: Summary,
    text: String,
    /// Start of the current second and trees shown in it.
    pace: (Instant, u32),
    hidden: u64,
    closed: bool,
    error: Option<io::Error>,
}

/// The spans of one trace so far.
struct Trace {
    spans: Vec<Span>,
    latest: Instant,
}

impl Trace {
    /// Whether each span's parent is here or is known not to exist.
    fn is_whole(&self) -> bool {
        self.spans.iter().all(|span| match span.context.parent {
            None => true,
            Some(parent) => self.spans.iter().any(|other| other.context.span_id == parent),
        })
    }

    fn is_due(&self, now: Instant) -> bool {
        let silent = now.saturating_duration_since(self.latest);
        silent >= QUIET_ORPHAN || (silent >= QUIET && self.is_whole())
    }
}

impl<W: Write + Send> ConsoleExporter<W> {
    /// Trees on `out`.
    pub fn new(out: W, look: Look, counters: Arc<Counters>) -> Self {
        ConsoleExporter {
            out,
            look,
            component: counters
                .components
                .register("console_span_exporter", "standard output", MAX_HELD),
            counters,
            traces: FxHashMap::default(),
            held: 0,
            summary: Summary::default(),
            text: String::new(),
            pace: (Instant::now(), 0),
            hidden: 0,
            closed: false,
            error: None,
        }
    }

    /// Calls by service, kind and method, for the end of a run; `None` if there were none.
    pub fn summary(&self) -> Option<String> {
        self.summary.render(self.look.width)
    }

    /// The error that ended the output, once.
    pub fn take_error(&mut self) -> Option<io::Error> {
        self.error.take()
    }

    fn take(&mut self, spans: &[Span], now: Instant) {
        self.summary.record(spans);
        if self.closed {
            self.lost(spans.len() as u64, "broken_pipe");
            return;
        }
        for span in spans {
            let trace = self.traces.entry(span.context.trace_id).or_insert_with(|| Trace {
                spans: Vec::new(),
                latest: now,
            });
            trace.spans.push(span.clone());
            trace.latest = now;
            self.held += 1;
        }
        self.component.waiting.set(self.held as u64);
        while self.held > MAX_HELD {
            let most_silent = self
                .traces
                .iter()
                .min_by_key(|(_, trace)| trace.latest)
                .map(|(id, _)| *id);
            let Some(id) = most_silent else { break };
            self.show(&[id], now);
        }
    }

    fn lost(&self, spans: u64, error: &'static str) {
        self.counters.dropped_output.add(spans);
        self.component.exported(spans, error.into());
    }

    fn show_due(&mut self, now: Instant) {
        let mut due: Vec<_> = self.traces.iter().filter(|(_, t)| t.is_due(now)).collect();
        due.sort_unstable_by_key(|(id, t)| (t.spans.iter().map(|s| s.start_unix_ns).min(), **id));
        let due: Vec<TraceId> = due.into_iter().map(|(id, _)| *id).collect();
        self.show(&due, now);
    }

    fn show(&mut self, ids: &[TraceId], now: Instant) {
        self.text.clear();
        let mut shown = 0;
        for id in ids {
            let Some(trace) = self.traces.remove(id) else { continue };
            self.held -= trace.spans.len();
            self.component.processed.add(trace.spans.len() as u64);
            if self.has_pace(now) {
                if self.hidden > 0 {
                    let hidden = std::mem::take(&mut self.hidden);
                    self.text.push_str(&format!("… {hidden} more traces\n\n"));
                }
                tree::draw(&mut self.text, &trace.spans, &self.look);
                shown += trace.spans.len();
            } else {
                self.hidden += 1;
                self.counters.console_hidden.increment();
            }
        }
        self.write(shown);
        self.component.waiting.set(self.held as u64);
    }

    /// Whether one more tree can be shown in this second.
    fn has_pace(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.pace.0) >= Duration::from_secs(1) {
            self.pace = (now, 0);
        }
        self.pace.1 += 1;
        !self.look.live || self.pace.1 <= MAX_TREES
    }

    fn write(&mut self, spans: usize) {
        if self.text.is_empty() {
            return;
        }
        if let Err(error) = self.out.write_all(self.text.as_bytes()).and_then(|()| self.out.flush()) {
            self.closed = true;
            self.lost((spans + self.held) as u64, crate::telemetry::cause(&error));
            self.error = Some(error);
            self.traces.clear();
            self.held = 0;
        } else {
            self.component.exported(spans as u64, "".into());
        }
    }
}

impl<W: Write + Send> Exporter for ConsoleExporter<W> {
    fn export(&mut self, spans: &[Span]) {
        self.take(spans, Instant::now());
    }

    fn tick(&mut self) {
        self.show_due(Instant::now());
    }

    fn shutdown(&mut self, _deadline: Duration) {
        let now = Instant::now();
        for trace in self.traces.values_mut() {
            trace.latest = now.checked_sub(QUIET_ORPHAN).unwrap_or(now);
        }
        self.show_due(now);
        if self.hidden > 0 {
            self.text = format!("… {} more traces\n\n", std::mem::take(&mut self.hidden));
            self.write(0);
        }
        if let Some(table) = self.summary().filter(|_| !self.closed) {
            self.text = table;
            self.write(0);
        }
    }
}
