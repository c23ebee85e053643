//! What a program reads from the lines.
#![allow(clippy::unwrap_used, reason = "tests")]

use serde_json::json;

use super::*;
use crate::attribute::Value;
use crate::export::example;

#[derive(Default)]
struct Disk {
    bytes: Vec<u8>,
    room: Option<usize>,
    full: Option<io::ErrorKind>,
}

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.room.map_or(bytes.len(), |room| bytes.len().min(room));
        if n == 0
            && let Some(kind) = self.full
        {
            return Err(kind.into());
        }
        self.room = self.room.map(|room| room - n);
        self.bytes.extend_from_slice(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn exporter(disk: Disk) -> JsonExporter<Disk> {
    JsonExporter::new(disk, Arc::default())
}

#[test]
fn a_span_is_one_flat_line() {
    let mut span = example::server(1, 2, Some(3));
    span.status = Status::Error(Some("no \"such\" greeter\n".into()));
    span.attributes
        .push(("net.list".into(), Value::Strings(vec!["a".into(), "b".into()])));
    span.attributes.push(("ok".into(), Value::Bool(true)));
    span.context.trace_state = Some("vendor=1".into());
    span.context.flags = 3;
    let mut json = exporter(Disk::default());
    json.export(&[span.clone(), span]);
    let text = String::from_utf8(json.out.bytes).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(lines[0]).unwrap(),
        json!({
            "traceId": "00000000000000000000000000000001",
            "spanId": "0000000000000002",
            "parentSpanId": "0000000000000003",
            "traceState": "vendor=1",
            "flags": 3,
            "name": "helloworld.Greeter/SayHello",
            "kind": "SERVER",
            "startTimeUnixNano": 1_790_000_000_000_000_000_u64,
            "endTimeUnixNano": 1_790_000_000_012_000_000_u64,
            "status": {"code": "ERROR", "message": "no \"such\" greeter\n"},
            "attributes": {
                "rpc.system.name": "grpc",
                "rpc.method": "helloworld.Greeter/SayHello",
                "server.port": 50051,
                "net.list": ["a", "b"],
                "ok": true,
            },
            "resource": {"service.name": "greeter", "process.pid": 4711},
        })
    );
}

#[test]
fn a_root_has_an_empty_parent() {
    let mut json = exporter(Disk::default());
    json.export(&[example::server(1, 2, None)]);
    let line: serde_json::Value = serde_json::from_slice(&json.out.bytes).unwrap();
    assert_eq!(
        (&line["parentSpanId"], &line["status"]),
        (&json!(""), &json!({"code": "UNSET"}))
    );
    assert!(line.get("traceState").is_none());
}

#[test]
fn a_reader_that_went_away_is_reported_once_and_ends_the_output() {
    let mut json = exporter(Disk {
        room: Some(0),
        full: Some(io::ErrorKind::BrokenPipe),
        ..Disk::default()
    });
    json.export(&[example::server(1, 2, None)]);
    assert_eq!(json.take_error().unwrap().kind(), io::ErrorKind::BrokenPipe);
    json.export(&[example::server(1, 3, None), example::server(1, 4, None)]);
    assert!(json.take_error().is_none());
    assert_eq!(json.counters.dropped_output.get(), 3);
}

#[test]
fn after_a_full_disk_lines_are_whole_again() {
    let mut first = exporter(Disk::default());
    first.export(&[example::server(1, 2, None)]);
    let line = first.out.bytes.len();

    let mut json = exporter(Disk {
        room: Some(line + 10),
        full: Some(io::ErrorKind::StorageFull),
        ..Disk::default()
    });
    json.export(&[example::server(1, 2, None), example::server(1, 3, None)]);
    assert_eq!(json.take_error().unwrap().kind(), io::ErrorKind::StorageFull);
    json.export(&[example::server(1, 4, None)]);
    json.out.room = None;
    json.export(&[example::server(1, 5, None)]);

    let text = String::from_utf8(json.out.bytes).unwrap();
    let whole: Vec<_> = text
        .lines()
        .filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok())
        .map(|l| l["spanId"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(whole, ["0000000000000002", "0000000000000005"]);
    assert_eq!(json.counters.dropped_output.get(), 2);
    assert_eq!(text.lines().count(), 3, "the torn line stands alone");
}
