//! What arrives, told by a sink that answers as it is told.

use std::time::{Duration, Instant};

use tracewire::export::Exporter as _;
use tracewire::export::sentry::config::{Project, Secret};
use tracewire::span::Kind;
use tracewire_common::sampling::Threshold;

use crate::sink::Sink;
use crate::{exporter, spans};

const DEADLINE: Duration = Duration::from_secs(10);

#[test]
fn a_trace_through_services_is_one_tree() {
    let sink = Sink::start();
    let (mut exporter, counters) = exporter(&sink.dsn("abc", 7), |_| {});
    exporter.export(&spans::trace(1, "OK"));
    exporter.shutdown(DEADLINE);
    let came = sink.came();
    assert_eq!(came.len(), 3, "{came:?}");
    assert_eq!(counters.sentry_transactions.get(), 3);
    for envelope in &came {
        assert_eq!(envelope.path, "/api/7/envelope/");
        assert!(envelope.auth.contains("sentry_key=abc") && envelope.auth.contains("sentry_version=7"));
        let dsc = &envelope.header["trace"];
        assert_eq!(dsc["trace_id"], envelope.payload["contexts"]["trace"]["trace_id"]);
        assert_eq!((&dsc["public_key"], &dsc["sampled"]), (&"abc".into(), &"true".into()));
        assert_eq!(dsc["environment"], "staging");
        assert_eq!(envelope.header["event_id"], envelope.payload["event_id"]);
    }
    let find = |service: &str| {
        came.iter()
            .map(|e| &e.payload)
            .find(|p| p["tags"]["service.name"] == service)
            .unwrap()
            .clone()
    };
    let (web, ledger, treasury) = (find("web"), find("ledger"), find("treasury"));
    assert_eq!(ledger["transaction"], "bank.v1.Ledger/Transfer");
    assert_eq!(ledger["transaction_info"]["source"], "route");
    assert_eq!(ledger["release"], "ledger@1.2.3");
    assert_eq!(ledger["platform"], "go");
    assert_eq!(ledger["tags"]["custom.instance_id"], "0123456789abcdef0123456789abcdef");
    let trace = |p: &serde_json::Value| p["contexts"]["trace"].clone();
    assert_eq!(trace(&web)["op"], "grpc.client");
    assert_eq!(trace(&ledger)["op"], "grpc.server");
    assert_eq!(trace(&ledger)["status"], "ok");
    assert_eq!(trace(&ledger)["parent_span_id"], trace(&web)["span_id"]);
    let calls = ledger["spans"].as_array().unwrap();
    assert_eq!(calls.len(), 2);
    assert!(calls.iter().all(|c| c["parent_span_id"] == trace(&ledger)["span_id"]));
    let call = calls
        .iter()
        .find(|c| c["description"] == "bank.v1.Treasury/Reserve")
        .unwrap();
    assert_eq!(trace(&treasury)["parent_span_id"], call["span_id"]);
    assert_eq!(call["op"], "grpc.client");
}

#[test]
fn nothing_personal_is_sent() {
    let sink = Sink::start();
    let (mut exporter, _) = exporter(&sink.dsn("abc", 7), |_| {});
    let web = spans::resource(1, "web");
    let span = spans::span(1, 1, None, Kind::Server, "GET /x", &web);
    exporter.export(&[spans::http(span, "GET", "/x", Some("/x"), 500)]);
    let span = spans::span(2, 1, None, Kind::Server, "bank.v1.Ledger/Transfer", &web);
    exporter.export(&[spans::grpc(span, "INTERNAL", None)]);
    exporter.shutdown(DEADLINE);
    let came = sink.came();
    assert_eq!(came.len(), 4);
    let all = format!("{came:?}");
    for personal in ["203.0.113.7", "curl/8.5", "10.1.2.3", "41234"] {
        assert!(!all.contains(personal), "{personal}");
    }
}

#[test]
fn a_failed_request_is_an_issue_with_its_trace_and_calls() {
    let sink = Sink::start();
    let (mut exporter, counters) = exporter(&sink.dsn("abc", 7), |_| {});
    exporter.export(&spans::trace(1, "INTERNAL"));
    exporter.shutdown(DEADLINE);
    let events = sink.payloads("event");
    assert_eq!((events.len(), counters.sentry_issues.get()), (2, 2));
    let event = events.iter().find(|e| e["tags"]["service.name"] == "ledger").unwrap();
    // The protocol's default, which the crate leaves out.
    assert!(event["level"].is_null() || event["level"] == "error");
    let exception = &event["exception"]["values"][0];
    assert_eq!(exception["type"], "gRPC INTERNAL");
    assert_eq!(exception["value"], "no vault is open");
    assert_eq!(exception["mechanism"]["type"], "ebpf.grpc");
    assert_eq!(
        event["fingerprint"],
        serde_json::json!(["tracewire", "ledger", "{{ transaction }}", "INTERNAL"])
    );
    assert_eq!(event["transaction"], "bank.v1.Ledger/Transfer");
    let crumbs = event["breadcrumbs"]["values"].as_array().unwrap();
    assert_eq!(crumbs.len(), 2);
    assert!(
        crumbs
            .iter()
            .any(|c| c["message"] == "bank.v1.Treasury/Reserve: INTERNAL" && c["level"] == "error")
    );
    let transactions = sink.payloads("transaction");
    let ledger = transactions
        .iter()
        .find(|t| t["tags"]["service.name"] == "ledger")
        .unwrap();
    for key in ["trace_id", "span_id"] {
        assert_eq!(event["contexts"]["trace"][key], ledger["contexts"]["trace"][key]);
    }
}

#[test]
fn an_issue_speaks_a_few_times_a_minute_and_then_says_how_often_it_was_silent() {
    let sink = Sink::start();
    let (mut exporter, _) = exporter(&sink.dsn("abc", 7), |config| {
        config.issues_per_minute = 3;
        config.transactions = false;
    });
    let web = spans::resource(1, "web");
    let mut failed = |n: u64, later_ns: u64| {
        for i in 0..n {
            let mut span = spans::grpc(
                spans::span(
                    u128::from(i + 1),
                    1,
                    None,
                    Kind::Server,
                    "bank.v1.Ledger/Transfer",
                    &web,
                ),
                "INTERNAL",
                Some(&format!("order {i} is lost")),
            );
            span.end_unix_ns += later_ns;
            exporter.export(&[span]);
        }
    };
    failed(50, 0);
    failed(1, 120_000_000_000);
    exporter.shutdown(DEADLINE);
    let events = sink.payloads("event");
    assert_eq!(events.len(), 4);
    let suppressed: Vec<_> = events
        .iter()
        .filter_map(|e| e["extra"]["tracewire.suppressed"].as_u64())
        .collect();
    assert_eq!(suppressed, [47]);
    let report = &sink.payloads("client_report")[0];
    assert_eq!(
        report["discarded_events"],
        serde_json::json!([{"reason": "sample_rate", "category": "error", "quantity": 47}])
    );
}

#[test]
fn a_limit_on_transactions_stops_them_and_nothing_else() {
    let sink = Sink::start();
    sink.answer("HTTP/1.1 200 OK\r\nX-Sentry-Rate-Limits: 86400:transaction;span:organization");
    let (mut exporter, counters) = exporter(&sink.dsn("abc", 7), |_| {});
    exporter.export(&[spans::trace(1, "OK").remove(4)]);
    sink.wait_for("transaction", 1);
    std::thread::sleep(Duration::from_millis(200));
    // A shorter one later does not lift it.
    sink.answer("HTTP/1.1 200 OK\r\nX-Sentry-Rate-Limits: 1:transaction:organization");
    exporter.export(&spans::trace(2, "INTERNAL"));
    exporter.shutdown(DEADLINE);
    assert_eq!(sink.payloads("transaction").len(), 1);
    assert_eq!(sink.payloads("event").len(), 2);
    assert_eq!(
        (counters.sentry_issues.get(), counters.sentry_transactions.get()),
        (2, 1)
    );
    let report = &sink.payloads("client_report")[0]["discarded_events"];
    let lost = |category: &str| {
        let all = report.as_array().unwrap().iter();
        all.filter(|e| e["category"] == category && e["reason"] == "ratelimit_backoff")
            .map(|e| e["quantity"].as_u64().unwrap())
            .sum::<u64>()
    };
    assert_eq!((lost("transaction"), lost("span")), (3, 5));
}

#[test]
fn after_a_429_nothing_is_sent_until_its_time() {
    let sink = Sink::start();
    sink.answer("HTTP/1.1 429 Too Many Requests\r\nRetry-After: 3600");
    let (mut exporter, counters) = exporter(&sink.dsn("abc", 7), |_| {});
    exporter.export(&[spans::trace(1, "OK").remove(4)]);
    sink.wait_for("transaction", 1);
    std::thread::sleep(Duration::from_millis(200));
    exporter.export(&spans::trace(2, "INTERNAL"));
    exporter.shutdown(DEADLINE);
    assert_eq!(sink.came().len(), 1);
    assert_eq!(counters.sentry_rate_limited.get(), 1 + 3 + 2);
}

#[test]
fn an_outage_of_the_server_is_tried_again() {
    let sink = Sink::start();
    sink.answer("HTTP/1.1 503 Service Unavailable");
    let (mut exporter, counters) = exporter(&sink.dsn("abc", 7), |_| {});
    exporter.export(&[spans::trace(1, "OK").remove(4)]);
    exporter.shutdown(DEADLINE);
    assert_eq!(sink.came().len(), 2);
    assert_eq!(
        (counters.sentry_transactions.get(), counters.sentry_refused.get()),
        (1, 0)
    );
}

#[test]
fn a_server_that_does_not_answer_does_not_hold_up_the_end() {
    let sink = Sink::start();
    sink.delay(Duration::from_secs(60));
    let (mut exporter, counters) = exporter(&sink.dsn("abc", 7), |_| {});
    for i in 0..10 {
        exporter.export(&[spans::trace(i, "OK").remove(4)]);
    }
    let start = Instant::now();
    exporter.shutdown(Duration::from_millis(500));
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(counters.sentry_shutdown.get(), 10);
}

#[test]
fn what_finds_no_room_is_counted() {
    let sink = Sink::start();
    sink.delay(Duration::from_secs(60));
    let (mut exporter, counters) = exporter(&sink.dsn("abc", 7), |_| {});
    for i in 0..3000 {
        exporter.export(&[spans::trace(i, "OK").remove(4)]);
    }
    assert_eq!(counters.sentry_queue_full.get(), 3000 - 2048);
    exporter.shutdown(Duration::ZERO);
}

/// A request with so many calls.
fn busy(calls: u64) -> Vec<tracewire::span::Span> {
    let ledger = spans::resource(2, "ledger");
    let call = |id| spans::span(1, id, Some(2), Kind::Client, "bank.v1.Audit/Write", &ledger);
    let mut all: Vec<_> = (10..10 + calls).map(|id| spans::grpc(call(id), "OK", None)).collect();
    let request = spans::span(1, 2, None, Kind::Server, "bank.v1.Ledger/Transfer", &ledger);
    all.push(spans::grpc(request, "OK", None));
    all
}

/// Transactions of it: the request's own first, and all calls that are in any.
fn parts(sink: &Sink) -> (Vec<serde_json::Value>, std::collections::BTreeSet<String>) {
    let mut transactions = sink.payloads("transaction");
    transactions.sort_by_key(|t| t["contexts"]["trace"]["op"] != "grpc.server");
    let calls = transactions.iter().flat_map(|t| t["spans"].as_array().unwrap());
    let ids: Vec<_> = calls.map(|c| c["span_id"].as_str().unwrap().to_owned()).collect();
    let unique: std::collections::BTreeSet<_> = ids.iter().cloned().collect();
    assert_eq!(ids.len(), unique.len(), "a call is sent once");
    (transactions, unique)
}

#[test]
fn what_is_more_than_a_transaction_has_goes_in_others_of_the_same_trace() {
    let sink = Sink::start();
    let (mut exporter, counters) = exporter(&sink.dsn("abc", 7), |_| {});
    exporter.export(&busy(2500));
    exporter.shutdown(DEADLINE);
    let (transactions, ids) = parts(&sink);
    let lengths: Vec<_> = transactions
        .iter()
        .map(|t| t["spans"].as_array().unwrap().len())
        .collect();
    assert_eq!((lengths.len(), lengths[0], ids.len()), (3, 1000, 2500));
    let request = &transactions[0];
    for more in &transactions[1..] {
        assert_eq!(more["transaction"], "bank.v1.Ledger/Transfer (continued)");
        let (trace, own) = (&more["contexts"]["trace"], &request["contexts"]["trace"]);
        assert_eq!(trace["trace_id"], own["trace_id"]);
        assert_eq!(
            (&trace["parent_span_id"], &trace["op"]),
            (&own["span_id"], &"default".into())
        );
        for call in more["spans"].as_array().unwrap() {
            assert_eq!(call["parent_span_id"], own["span_id"]);
        }
    }
    assert_eq!(counters.sentry_too_large.get(), 0);
}

#[test]
fn what_is_larger_than_an_item_may_be_goes_in_several() {
    let sink = Sink::start();
    let (mut exporter, counters) = exporter(&sink.dsn("abc", 7), |_| {});
    let mut all = busy(40);
    // Each call has 100 KiB: ten fit.
    for span in all.iter_mut().filter(|s| s.kind == Kind::Client) {
        let long = tracewire::attribute::Value::Shared("x".repeat(100 << 10).into());
        span.attributes.push(("rpc.request.metadata.x".into(), long));
    }
    exporter.export(&all);
    exporter.shutdown(DEADLINE);
    let (transactions, ids) = parts(&sink);
    assert_eq!(ids.len(), 40, "{} transactions", transactions.len());
    assert!(transactions.iter().all(|t| t.to_string().len() <= 1 << 20));
    assert_eq!(counters.sentry_too_large.get(), 0);
    // One that no transaction has room for is counted, and costs nothing else.
    let sink = Sink::start();
    let (mut exporter, counters) = self::exporter(&sink.dsn("abc", 7), |_| {});
    let mut all = busy(3);
    let long = tracewire::attribute::Value::Shared("x".repeat(2 << 20).into());
    all[1].attributes.push(("rpc.request.metadata.x".into(), long));
    exporter.export(&all);
    exporter.shutdown(DEADLINE);
    assert_eq!(parts(&sink).1.len(), 2);
    assert_eq!(counters.sentry_too_large.get(), 1);
}

#[test]
fn services_may_have_projects_of_their_own() {
    let sink = Sink::start();
    let (mut exporter, _) = exporter(&sink.dsn("rest", 1), |config| {
        config.projects.push(Project {
            services: globset::Glob::new("led*").unwrap().compile_matcher(),
            dsn: Secret::parse(&sink.dsn("ledger", 2)).unwrap(),
        });
    });
    exporter.export(&spans::trace(1, "OK"));
    exporter.shutdown(DEADLINE);
    let came = sink.came();
    let projects: Vec<_> = came
        .iter()
        .map(|e| (e.payload["tags"]["service.name"].as_str().unwrap(), e.path.as_str()))
        .collect();
    assert!(projects.contains(&("ledger", "/api/2/envelope/")), "{projects:?}");
    assert!(projects.contains(&("web", "/api/1/envelope/")), "{projects:?}");
    let ledger = came.iter().find(|e| e.path == "/api/2/envelope/").unwrap();
    assert_eq!(ledger.header["trace"]["public_key"], "ledger");
}

#[test]
fn sentry_s_own_share_leaves_issues_and_what_was_kept_for_an_error() {
    let sink = Sink::start();
    let (mut exporter, _) = exporter(&sink.dsn("abc", 7), |config| config.share = Threshold::NEVER);
    let mut all = spans::trace(1, "INTERNAL");
    for span in spans::trace(2, "OK").iter_mut().chain(&mut all) {
        if span.context.trace_id == 1u128.to_be_bytes() && span.resource.service_name.as_ref() == "ledger" {
            span.attributes.push((
                "tracewire.sampling.reason".into(),
                tracewire::attribute::Value::Str("error".into()),
            ));
        }
    }
    exporter.export(&all);
    exporter.export(&spans::trace(2, "OK"));
    exporter.shutdown(DEADLINE);
    assert_eq!(sink.payloads("event").len(), 2);
    let transactions = sink.payloads("transaction");
    assert_eq!(transactions.len(), 1);
    let envelope = sink.came().into_iter().find(|e| e.kind() == "transaction").unwrap();
    assert_eq!(envelope.header["trace"]["sample_rate"], "1");
}
