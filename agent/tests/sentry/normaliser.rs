//! Sentry's own normaliser (`sentry-relay`, Relay's code): what it would take
//! offence at it notes in `_meta`.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value as Json;
use tracewire::attribute::Value;
use tracewire::export::Exporter as _;
use tracewire::span::{Kind, Status};

use crate::sink::Sink;
use crate::{exporter, peers, spans};

fn normalise(payloads: &[Json]) -> Option<Vec<Json>> {
    let bin = peers::python("relay", &["sentry-relay==0.10.1"])?;
    let mut child = Command::new(bin.join("python"))
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sentry/normalise.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    for payload in payloads {
        writeln!(input, "{payload}").unwrap();
    }
    drop(input);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let lines = String::from_utf8(output.stdout).unwrap();
    Some(lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

#[test]
fn sentry_itself_finds_nothing_to_mend() {
    let sink = Sink::start();
    let (mut exporter, _) = exporter(&sink.dsn("key", 7), |_| {});
    let web = spans::resource(1, "web");
    let mut all = spans::trace(1, "OK");
    all.extend(spans::trace(2, "INTERNAL"));
    all.extend(spans::trace(3, "UNAVAILABLE"));
    let server = |id, name| spans::span(9, id, None, Kind::Server, name, &web);
    all.push(spans::http(
        server(10, "GET /users/{id}"),
        "GET",
        "/users/7",
        Some("/users/{id}"),
        200,
    ));
    all.push(spans::http(server(11, "GET"), "GET", "/users/7/secret", None, 404));
    all.push(spans::http(server(12, "POST /pay"), "POST", "/pay", Some("/pay"), 503));
    let mut unfinished = spans::grpc(server(13, "bank.v1.Ledger/Watch"), "OK", None);
    unfinished.attributes.retain(|(k, _)| k != "rpc.status_code");
    unfinished
        .attributes
        .push(("tracewire.unfinished".into(), Value::Bool(true)));
    all.push(unfinished);
    let mut reset = spans::grpc(server(14, "bank.v1.Ledger/Watch"), "OK", None);
    reset.attributes.retain(|(k, _)| k != "rpc.status_code");
    reset
        .attributes
        .push(("error.type".into(), Value::Shared("connection_reset".into())));
    reset.status = Status::Error(None);
    all.push(reset);
    exporter.export(&all);
    exporter.shutdown(Duration::from_secs(10));
    let came = sink.came();
    let payloads: Vec<Json> = came
        .iter()
        .filter(|e| ["event", "transaction"].contains(&e.kind()))
        .map(|e| e.payload.clone())
        .collect();
    // Three servers and a client a trace, less the calls that became children.
    let count = |kind| came.iter().filter(|e| e.kind() == kind).count();
    assert_eq!((count("transaction"), count("event")), (3 * 3 + 5, 2 * 2 + 2));
    let Some(normalised) = normalise(&payloads) else { return };
    assert_eq!(normalised.len(), payloads.len());
    for (sent, made) in payloads.iter().zip(&normalised) {
        assert!(made["_meta"].is_null(), "{}\nof {sent}", made["_meta"]);
        assert_eq!(made["transaction"], sent["transaction"]);
        for key in ["release", "environment", "platform"] {
            assert_eq!(made[key], sent[key], "{key}");
        }
        let (a, b) = (&made["contexts"]["trace"], &sent["contexts"]["trace"]);
        for key in ["trace_id", "span_id", "parent_span_id", "op", "origin"] {
            assert_eq!(a[key], b[key], "{key} of {sent}");
        }
        if !b["status"].is_null() {
            assert_eq!(a["status"], b["status"]);
        }
        if sent["type"] == "transaction" {
            assert_eq!(made["transaction_info"]["source"], sent["transaction_info"]["source"]);
            let lengths = [made, sent].map(|p| p["spans"].as_array().map_or(0, Vec::len));
            assert_eq!(lengths[0], lengths[1]);
        } else {
            assert_eq!(made["fingerprint"], sent["fingerprint"]);
            assert_eq!(
                made["exception"]["values"][0]["mechanism"]["handled"],
                Json::Bool(false)
            );
            assert_eq!(made["level"], "error");
        }
        assert!(
            made["user"].is_null() || made["user"]["ip_address"].is_null(),
            "{}",
            made["user"]
        );
    }
}
