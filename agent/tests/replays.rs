//! Recordings of real services in every language, replayed: the spans that they
//! gave when they were made, value by value. `tests/behaviours/recordings.rs`
//! makes them; `TRACEWIRE_UPDATE=1` writes what they give now, to be read as a
//! change of this repository.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Map, Value};
use tracewire::core::Core;
use tracewire::export::Exporter as _;
use tracewire::export::json::JsonExporter;
use tracewire::protocol::fields::Allow;
use tracewire::recording::file::Reader;
use tracewire::recording::replay::{KEY, Replay};
use tracewire::span::build::Builder;
use tracewire::span::conventions::Conventions;
use tracewire::span::route;
use tracewire::telemetry::Counters;

const CALL: &str = "rpc.request.metadata.x-call-id";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/replays")
}

/// Where an exporter leaves its lines.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The spans of a recording as they are exported.
fn spans(recording: &[u8]) -> Vec<Map<String, Value>> {
    let allow = Allow {
        request: vec!["x-call-id".into()],
        response: Vec::new(),
    };
    let builder = Builder::new(Conventions::default(), route::Config::default());
    let mut replay = Replay::new(Core::new(allow, builder, KEY, 0));
    let lines = Lines::default();
    let mut exporter = JsonExporter::new(lines.clone(), Arc::new(Counters::default()));
    let mut reader = Reader::new(recording).unwrap();
    replay.all(&mut reader, |spans, _| exporter.export(spans)).unwrap();
    exporter.shutdown(Duration::ZERO);
    let bytes = lines.0.lock().unwrap().clone();
    let text = String::from_utf8(bytes).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Spans as lines: ids, which say nothing, as the call that they name; sorted, since what is
/// finished at one time is in no order.
fn golden(mut spans: Vec<Map<String, Value>>) -> String {
    let call = |span: &Map<String, Value>| {
        let id = span["attributes"][CALL][0].as_str().unwrap_or("none");
        format!("{} {id}", span["kind"].as_str().unwrap())
    };
    let named: HashMap<String, String> = spans
        .iter()
        .map(|span| (span["spanId"].as_str().unwrap().to_owned(), call(span)))
        .collect();
    let mut lines = Vec::new();
    for span in &mut spans {
        let of = call(span);
        span.remove("resource");
        span.remove("spanId");
        span.remove("traceId");
        let parent = span["parentSpanId"].as_str().unwrap_or_default();
        let parent = named.get(parent).cloned().unwrap_or_default();
        span["parentSpanId"] = Value::from(parent);
        lines.push(format!("{of}\n  {}\n", Value::Object(span.clone())));
    }
    lines.sort();
    lines.concat()
}

#[test]
fn recordings_give_the_spans_that_they_gave() {
    let mut count = 0;
    for entry in std::fs::read_dir(folder()).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_none_or(|extension| extension != "rec") {
            continue;
        }
        count += 1;
        let is = golden(spans(&std::fs::read(&file).unwrap()));
        let known = file.with_extension("spans");
        if std::env::var_os("TRACEWIRE_UPDATE").is_some() {
            std::fs::write(&known, &is).unwrap();
        }
        let wanted = std::fs::read_to_string(&known).unwrap_or_default();
        for (is, wanted) in is.lines().zip(wanted.lines()) {
            assert_eq!(is, wanted, "{}", file.display());
        }
        assert_eq!(is.lines().count(), wanted.lines().count(), "{}", file.display());
        assert!(
            !is.contains("tracewire.unfinished"),
            "{}: a call was cut short",
            file.display()
        );
    }
    assert!(count >= 6, "recordings are missing");
}
