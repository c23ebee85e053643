//! What requests add to the table, and that both ways out of it say the same.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::sync::Arc;

use super::*;
use crate::export::example;
use crate::span::Status;
use crate::telemetry::Counters;

fn http(path: &str, ms: u64) -> Span {
    let mut span = example::server(1, 2, None);
    span.attributes = vec![
        (key::HTTP_REQUEST_METHOD.into(), Value::Shared("GET".into())),
        (key::HTTP_RESPONSE_STATUS_CODE.into(), Value::Int(200)),
        (key::URL_PATH.into(), Value::Shared(path.into())),
        (key::HTTP_ROUTE.into(), Value::Shared("/users/{id}".into())),
        (key::URL_SCHEME.into(), Value::Str("http".into())),
    ];
    span.end_unix_ns = span.start_unix_ns + ms * 1_000_000;
    span
}

fn text(metrics: &Arc<Metrics>) -> String {
    prometheus::text(metrics, &Arc::new(Counters::default()))
}

#[test]
fn requests_of_one_kind_are_one_series_whatever_their_values() {
    let metrics = Arc::new(Metrics::new(true));
    let mut sampled = http("/users/3", 30);
    sampled.context.flags = 1;
    metrics.record(&[http("/users/1", 3), http("/users/2", 30), sampled.clone()]);
    let mut unfinished = http("/users/4", 1);
    unfinished.attributes.push((key::UNFINISHED.into(), Value::Bool(true)));
    metrics.record(&[unfinished]);
    let snapshot = metrics.snapshot();
    let [series] = snapshot.series.as_slice() else {
        panic!("{} series", snapshot.series.len())
    };
    assert_eq!((series.metric, series.histogram.count()), (Metric::HttpServer, 3));
    assert_eq!(series.histogram.counts[0], 1);
    assert_eq!(series.histogram.counts[3], 2);
    let exemplar = series.histogram.exemplars[3].unwrap();
    assert_eq!(exemplar.span_id, sampled.context.span_id);
    assert!(
        series.histogram.exemplars[0].is_none(),
        "only sampled traces can be looked up"
    );
    assert!(series.attributes.iter().all(|(name, _)| name != key::URL_PATH));
    let text = text(&metrics);
    for line in [
        "http_server_request_duration_seconds_bucket{",
        "http_route=\"/users/{id}\"",
        "http_server_request_duration_seconds_sum{",
    ] {
        assert!(text.contains(line), "{text}");
    }
}

#[test]
fn nobody_reads_nothing_is_kept() {
    let metrics = Metrics::new(false);
    metrics.record(&[http("/", 1)]);
    metrics.started(&example::resource(1, "a"));
    let snapshot = metrics.snapshot();
    assert!(snapshot.series.is_empty() && snapshot.lives.is_empty());
}

#[test]
fn too_many_series_go_to_one_that_says_so() {
    let metrics = Metrics::new(true);
    for i in 0..SERIES + 500 {
        let mut span = http("/", 1);
        span.attributes[3].1 = Value::Shared(format!("/r{i}").into());
        metrics.record(&[span]);
    }
    let snapshot = metrics.snapshot();
    assert_eq!(snapshot.series.len(), SERIES + 1);
    let over = snapshot
        .series
        .iter()
        .find(|s| s.attributes[0].0 == "otel.metric.overflow")
        .unwrap();
    assert_eq!(over.histogram.count(), 500);
    let total: u64 = snapshot.series.iter().map(|s| s.histogram.count()).sum();
    assert_eq!(total, SERIES as u64 + 500, "none is counted twice, none is lost");
}

#[test]
fn processes_begin_and_end_by_code_or_signal() {
    let metrics = Arc::new(Metrics::new(true));
    let resource = example::resource(1, "shop");
    for status in [0, 0, 3 << 8, 9] {
        metrics.started(&resource);
        metrics.ended(&resource, status);
    }
    metrics.active([(resource.clone(), Role::Server, 2), (resource.clone(), Role::Client, 1)].into_iter());
    let text_then = text(&metrics);
    metrics.active(std::iter::empty());
    let text_now = text(&metrics);
    for part in [
        "tracewire_processes_started_total{service_name=\"shop\"} 4",
        "tracewire_processes_exited_total{service_name=\"shop\",end=\"code 0\"} 2",
        "end=\"code 3\"} 1",
        "end=\"signal 9\"} 1",
        "tracewire_requests_active{service_name=\"shop\",role=\"server\"} 2",
        "tracewire_requests_active{service_name=\"shop\",role=\"client\"} 1",
    ] {
        assert!(text_then.contains(part), "{part}: {text_then}");
    }
    assert!(text_now.contains("tracewire_requests_active{service_name=\"shop\",role=\"server\"} 0"));
}

#[test]
fn a_call_between_two_services_is_one_call_of_an_edge() {
    let metrics = Arc::new(Metrics::new(true));
    let call = |id: u64| {
        let mut client = example::server(1, id, None);
        client.kind = Kind::Client;
        client.resource = example::resource(2, "shop");
        let mut server = example::server(1, 100 + id, Some(id));
        server.status = Status::Error(None);
        (client, server)
    };
    let (client, server) = call(1);
    metrics.record(&[client, server]);
    let (client, server) = call(2);
    metrics.record(&[server]);
    metrics.record(&[client]);
    metrics.record(&[example::server(1, 50, None)]);
    let edges = metrics.snapshot().edges;
    let calls: Vec<_> = edges
        .iter()
        .map(|e| (&*e.client, &*e.server, e.duration.count(), e.failed))
        .collect();
    assert_eq!(calls, [("shop", "greeter", 2, 2), ("unknown", "greeter", 1, 0)]);
    let text = text(&metrics);
    assert!(
        text.contains("traces_service_graph_request_total{client=\"shop\",server=\"greeter\"} 2"),
        "{text}"
    );
}

#[test]
fn alerts_and_dashboard_ask_for_what_there_is() {
    let counters = Arc::new(Counters::default());
    let component = counters.components.register("otlp_http_span_exporter", "x", 1);
    component.failed("timeout".into());
    component.operation(std::time::Duration::from_millis(1), "".into());
    *counters.probe_points.lock().unwrap() = crate::telemetry::ProbePoints {
        attached: vec![("a", 1)],
        failed: vec![(("b", "c".to_owned()), 1)],
    };
    let metrics = Arc::new(Metrics::new(true));
    let mut sampled = http("/", 1);
    sampled.context.flags = 1;
    metrics.record(&[sampled, example::server(1, 7, None)]);
    metrics.started(&example::resource(1, "shop"));
    metrics.ended(&example::resource(1, "shop"), 0);
    let text = prometheus::text(&metrics, &counters);
    let known = |name: &str| {
        text.lines()
            .any(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])))
    };
    let asked = [
        include_str!("../../../deploy/config/alerts.yaml"),
        include_str!("../../../deploy/config/dashboard.json"),
    ];
    let mut names = 0;
    for file in asked {
        let words = file.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let prefixes = ["tracewire_", "otel_sdk_", "process_", "rpc_", "http_", "traces_"];
        for name in words.filter(|word| prefixes.iter().any(|prefix| word.starts_with(prefix))) {
            assert!(known(name), "{name}:\n{text}");
            names += 1;
        }
    }
    assert!(names > 30, "{names}");
}
