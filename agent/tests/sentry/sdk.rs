//! Sentry's SDK of another language: its envelopes are what ours are held
//! against, and it stands before and behind our spans in one trace.

use std::process::Command;
use std::time::Duration;

use serde_json::Value as Json;
use tracewire::export::Exporter as _;
use tracewire::propagation::w3c;
use tracewire::protocol::baggage;
use tracewire::span::Kind;

use crate::sink::{Envelope, Sink};
use crate::{exporter, peers, spans};

/// Runs the SDK: the `sentry-trace` and `baggage` that it sends on.
fn sdk(arguments: &[&str]) -> Option<(String, String)> {
    let bin = peers::python("sdk", &["sentry-sdk==2.75.0"])?;
    let output = Command::new(bin.join("python"))
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sentry/sdk.py"))
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    let mut lines = said.lines().map(str::to_owned);
    Some((lines.next().unwrap(), lines.next().unwrap()))
}

fn kind(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "bool",
        // Times are text or seconds.
        Json::Number(_) => "number",
        Json::String(_) => "text",
        Json::Array(_) => "list",
        Json::Object(_) => "object",
    }
}

/// Whatever both say, they say in the same form.
fn same_forms(ours: &Json, golden: &Json, path: &str) {
    match (ours, golden) {
        (Json::Object(ours), Json::Object(golden)) => {
            for (key, value) in ours {
                if let Some(other) = golden.get(key) {
                    // Free by the protocol.
                    if !matches!(
                        key.as_str(),
                        "timestamp" | "start_timestamp" | "data" | "tags" | "extra"
                    ) {
                        same_forms(value, other, &format!("{path}.{key}"));
                    }
                }
            }
        }
        (Json::Array(ours), Json::Array(golden)) => {
            if let (Some(ours), Some(golden)) = (ours.first(), golden.first()) {
                same_forms(ours, golden, &format!("{path}[0]"));
            }
        }
        (_, Json::Null) => {}
        _ => assert_eq!(kind(ours), kind(golden), "{path}: {ours} and {golden}"),
    }
}

fn find<'a>(came: &'a [Envelope], kind: &str, service: Option<&str>) -> &'a Envelope {
    let fits = |e: &&Envelope| {
        let name = e.payload["tags"]["service.name"].as_str();
        e.kind() == kind && (e.payload["sdk"]["name"] == "tracewire") == service.is_some() && name == service
    };
    came.iter()
        .find(fits)
        .unwrap_or_else(|| panic!("no {kind} of {service:?} in {came:#?}"))
}

#[test]
fn envelopes_have_the_form_of_the_sdk_s_and_both_continue_one_trace() {
    let sink = Sink::start();
    // The SDK calls our ledger …
    let Some((sentry_trace, baggage_field)) = sdk(&[&sink.dsn("abc", 7)]) else {
        return;
    };
    let (parent, undecided) = w3c::sentry_trace(&sentry_trace).unwrap();
    assert!(!undecided && parent.flags == 1);
    let (mut exporter, _) = exporter(&sink.dsn("abc", 7), |_| {});
    let mut all = spans::trace(1, "INTERNAL");
    for span in &mut all {
        span.context.trace_id = parent.trace_id;
        span.sentry_head = baggage::sentry(baggage_field.as_bytes(), None);
    }
    all.retain(|span| span.resource.service_name.as_ref() == "ledger");
    let request = all.iter_mut().find(|s| s.kind == Kind::Server).unwrap();
    request.context.parent = Some(parent.span_id);
    let call = all
        .iter()
        .find(|s| s.kind == Kind::Client && &*s.name == "bank.v1.Treasury/Reserve")
        .unwrap();
    // … which calls another with the SDK.
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let ours = hex(&call.context.span_id);
    let header = format!("{}-{ours}-1", hex(&call.context.trace_id));
    exporter.export(&all);
    exporter.shutdown(Duration::from_secs(10));
    let between = sink.came();
    sdk(&[&sink.dsn("abc", 7), &header]).unwrap();
    let came = sink.came();

    let before = find(&between, "transaction", None);
    let ledger = find(&came, "transaction", Some("ledger"));
    let after = came.iter().rev().find(|e| e.kind() == "transaction").unwrap();
    let trace = |e: &Envelope| e.payload["contexts"]["trace"].clone();
    assert_eq!(trace(before)["trace_id"], trace(ledger)["trace_id"]);
    assert_eq!(trace(before)["trace_id"], trace(after)["trace_id"]);
    assert_eq!(trace(ledger)["parent_span_id"], before.payload["spans"][0]["span_id"]);
    assert_eq!(trace(after)["parent_span_id"], Json::from(ours));

    // What the SDK said of the trace at its head goes with everything in it.
    assert_eq!(ledger.header["trace"], before.header["trace"]);

    // The forms.
    for kind in ["transaction", "event"] {
        let (ours, golden) = (find(&came, kind, Some("ledger")), find(&came, kind, None));
        same_forms(&ours.payload, &golden.payload, kind);
        same_forms(&ours.header, &golden.header, "header");
        for key in golden.header["trace"].as_object().unwrap().keys() {
            assert!(
                !ours.header["trace"][key].is_null(),
                "{key} is missing in {}",
                ours.header["trace"]
            );
        }
    }
    let (ours, golden) = (&ledger.payload, &before.payload);
    for key in ["op", "origin", "span_id", "trace_id", "status", "data"] {
        assert!(!ours["contexts"]["trace"][key].is_null(), "{key}");
    }
    for key in ["transaction", "transaction_info", "release", "environment"] {
        assert_eq!(ours[key], golden[key], "{key}");
    }
    assert_eq!(ours["contexts"]["trace"]["op"], golden["contexts"]["trace"]["op"]);
}
