//! Spans in a file as OTLP JSON, a request a line (SPEC
//! `protocol/file-exporter.md`). A disk that is full costs the spans of that
//! time, which are counted; when there is room again, the file goes on at a new line.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::json;
use super::rotation::{Rotated, Rotation};
use crate::config::{Error, Given};
use crate::export::Exporter;
use crate::span::Span;
use crate::telemetry::{Component, Counters};

/// Appends to a file.
pub struct FileExporter {
    file: Rotated,
    counters: Arc<Counters>,
    component: Arc<Component>,
    line: Vec<u8>,
    /// The last write ended within a line.
    torn: bool,
    failing: bool,
}

impl FileExporter {
    /// Opens the file, or makes it; only its owner may read it.
    ///
    /// # Errors
    /// Names the flag or variable and what the system said.
    pub fn new(path: &Given<impl AsRef<Path>>, rotation: Rotation, counters: Arc<Counters>) -> Result<Self, Error> {
        let shown = path.value.as_ref().display();
        let file = Rotated::open(path.value.as_ref(), rotation)
            .map_err(|e| Error::new(path.source, format_args!("{shown}: {e}")))?;
        let component = counters
            .components
            .register("otlp_file_span_exporter", &shown.to_string(), 0);
        Ok(FileExporter {
            file,
            counters,
            component,
            line: Vec::new(),
            torn: false,
            failing: false,
        })
    }

    fn write(&mut self, spans: &[Span]) -> std::io::Result<()> {
        self.line.clear();
        self.line.push(b'\n');
        serde_json::to_writer(&mut self.line, &json::Request(spans))?;
        self.line.push(b'\n');
        let moved = self.file.prepare(self.line.len())?;
        if moved.rotated || moved.reopened {
            self.torn = false;
            self.counters.files_rotated.increment();
            self.counters.files_discarded.add(u64::from(moved.discarded));
        }
        // A line break at its start only behind a torn line.
        let mut rest = self.line.get(usize::from(!self.torn)..).unwrap_or_default();
        while !rest.is_empty() {
            match self.file.write(rest) {
                Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    rest = rest.get(n..).unwrap_or_default();
                    self.torn = !rest.is_empty();
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

impl Exporter for FileExporter {
    fn export(&mut self, spans: &[Span]) {
        if spans.is_empty() {
            return;
        }
        let written = self.write(spans);
        match written {
            Ok(()) => {
                self.counters.file_exported.add(spans.len() as u64);
                self.component.exported(spans.len() as u64, "".into());
                if std::mem::take(&mut self.failing) {
                    tracing::info!("OTLP file: writing again");
                }
            }
            Err(error) => {
                self.counters.dropped_file.add(spans.len() as u64);
                self.component
                    .exported(spans.len() as u64, crate::telemetry::cause(&error).into());
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!("OTLP file: {error}; spans are dropped until there is room again");
                }
            }
        }
    }

    fn shutdown(&mut self, _deadline: Duration) {
        let _ = self.file.sync();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;

    use super::super::message;
    use super::*;
    use crate::export::example;

    #[test]
    fn each_line_is_a_request() {
        let folder = tempfile::tempdir().unwrap();
        let path = Given {
            value: folder.path().join("spans.jsonl"),
            source: "--otlp-file",
        };
        let counters = Arc::new(Counters::default());
        for id in [1, 2] {
            let mut exporter = FileExporter::new(&path, Rotation::default(), counters.clone()).unwrap();
            exporter.export(&[example::server(7, id, None)]);
            exporter.shutdown(Duration::ZERO);
        }
        let text = std::fs::read_to_string(&path.value).unwrap();
        let lines: Vec<ExportTraceServiceRequest> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines[1], message::request(&[example::server(7, 2, None)]));
        assert!(
            text.contains("\"traceId\":\"00000000000000000000000000000007\""),
            "{text}"
        );
        assert_eq!((counters.file_exported.get(), counters.dropped()), (2, 0));
    }

    #[test]
    fn a_full_disk_costs_what_did_not_fit_and_is_counted() {
        let counters = Arc::new(Counters::default());
        let path = Given {
            value: "/dev/full",
            source: "--otlp-file",
        };
        let mut exporter = FileExporter::new(&path, Rotation::default(), counters.clone()).unwrap();
        exporter.export(&[example::server(7, 1, None), example::server(7, 2, None)]);
        assert_eq!((counters.file_exported.get(), counters.dropped_file.get()), (0, 2));
    }
}
