//! One finished span a line, as JSON, for programs (`jq`, a log shipper).
//! Names are OTLP's, values flat: ids in hex, times as integers, attributes by
//! name. A reader that goes away ends the output, not the agent.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::Exporter;
use super::plain::{Flat, Hex};
use crate::span::{Kind, Span, Status};
use crate::telemetry::{Component, Counters};

/// Writes spans to `W` as JSON lines, each batch with one write.
pub struct JsonExporter<W> {
    out: W,
    counters: Arc<Counters>,
    component: Arc<Component>,
    buffer: Vec<u8>,
    /// The last write ended in a line: the next starts with a line break.
    torn: bool,
    closed: bool,
    error: Option<io::Error>,
    reported: bool,
}

impl<W: Write + Send> JsonExporter<W> {
    /// An exporter to `out`, which should not be buffered: each batch is one write.
    pub fn new(out: W, counters: Arc<Counters>) -> Self {
        JsonExporter {
            out,
            component: counters.components.register("json_span_exporter", "standard output", 0),
            counters,
            buffer: Vec::new(),
            torn: false,
            closed: false,
            error: None,
            reported: false,
        }
    }

    /// The first error of the output, once. After a broken pipe nothing more is written;
    /// after others (disk full) each later batch is tried.
    pub fn take_error(&mut self) -> Option<io::Error> {
        self.error.take()
    }

    fn lost(&self, spans: u64, error: &'static str) {
        self.counters.dropped_output.add(spans);
        self.component.exported(spans, error.into());
    }

    /// Number of leading bytes of `self.buffer` that were written, and why not all.
    fn write(&mut self) -> (usize, io::Result<()>) {
        let mut written = 0;
        while let Some(rest) = self.buffer.get(written..).filter(|rest| !rest.is_empty()) {
            match self.out.write(rest) {
                Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
                Ok(n) => written += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (written, Err(error)),
            }
        }
        (written, self.out.flush())
    }
}

impl<W: Write + Send> Exporter for JsonExporter<W> {
    fn export(&mut self, spans: &[Span]) {
        if spans.is_empty() {
            return;
        }
        if self.closed {
            self.lost(spans.len() as u64, "broken_pipe");
            return;
        }
        self.buffer.clear();
        if self.torn {
            self.buffer.push(b'\n');
        }
        let mut unwritten = 0;
        for span in spans {
            let start = self.buffer.len();
            if serde_json::to_writer(&mut self.buffer, &Line(span)).is_ok() {
                self.buffer.push(b'\n');
            } else {
                self.buffer.truncate(start);
                self.lost(1, "_OTHER");
                unwritten += 1;
            }
        }
        let (written, result) = self.write();
        let Err(error) = result else {
            self.torn = false;
            self.component.exported(spans.len() as u64 - unwritten, "".into());
            return;
        };
        let done = self.buffer.get(..written).unwrap_or_default();
        let lines = done.iter().filter(|b| **b == b'\n').count() - usize::from(self.torn && !done.is_empty());
        let lost = (spans.len().saturating_sub(lines) as u64).saturating_sub(unwritten);
        self.component.exported(lines as u64, "".into());
        self.lost(lost, crate::telemetry::cause(&error));
        self.torn = match done.last() {
            Some(last) => *last != b'\n',
            None => self.torn,
        };
        self.closed = error.kind() == io::ErrorKind::BrokenPipe;
        if !std::mem::replace(&mut self.reported, true) {
            self.error = Some(error);
        }
    }

    fn shutdown(&mut self, _deadline: Duration) {
        if !self.closed
            && let Err(error) = self.out.flush()
            && !std::mem::replace(&mut self.reported, true)
        {
            self.error = Some(error);
        }
    }
}

struct Line<'a>(&'a Span);

impl Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let span = self.0;
        let context = &span.context;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("traceId", &Hex(&context.trace_id))?;
        map.serialize_entry("spanId", &Hex(&context.span_id))?;
        map.serialize_entry(
            "parentSpanId",
            &Hex(context.parent.as_ref().map_or(&[], |p| p.as_slice())),
        )?;
        if let Some(state) = &context.trace_state {
            map.serialize_entry("traceState", &**state)?;
        }
        if context.flags != 0 {
            map.serialize_entry("flags", &context.flags)?;
        }
        map.serialize_entry("name", &*span.name)?;
        map.serialize_entry(
            "kind",
            match span.kind {
                Kind::Client => "CLIENT",
                Kind::Server => "SERVER",
            },
        )?;
        map.serialize_entry("startTimeUnixNano", &span.start_unix_ns)?;
        map.serialize_entry("endTimeUnixNano", &span.end_unix_ns)?;
        map.serialize_entry("status", &JsonStatus(&span.status))?;
        map.serialize_entry("attributes", &Flat(&span.attributes))?;
        map.serialize_entry("resource", &Flat(&span.resource.attributes))?;
        map.end()
    }
}

struct JsonStatus<'a>(&'a Status);

impl Serialize for JsonStatus<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match self.0 {
            Status::Unset => map.serialize_entry("code", "UNSET")?,
            Status::Error(message) => {
                map.serialize_entry("code", "ERROR")?;
                if let Some(message) = message {
                    map.serialize_entry("message", &**message)?;
                }
            }
        }
        map.end()
    }
}

#[cfg(test)]
mod tests;
