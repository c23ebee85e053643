//! The exporter against receivers in this process: what arrives, what is
//! tried again, and that every span is accounted for.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use tokio::runtime::Runtime;
use tonic::Status as GrpcStatus;

use super::*;
use crate::config::{Compression, Config, ExportFlags, LogFlags, Otlp};
use crate::export::example;
use crate::span::{Kind, Status};

mod answers;
mod receiver;
mod same_as_sdk;

use receiver::{GrpcReceiver, HttpReceiver, partial};

const PATIENCE: Duration = Duration::from_secs(20);

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

/// Settings as from the environment.
fn settings(env: &[(&str, &str)]) -> Config {
    let read = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into());
    Config::of(&ExportFlags::default(), &LogFlags::default(), read).unwrap()
}

fn grpc(endpoint: &str) -> Otlp {
    let env = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
    ];
    settings(&env).otlp.unwrap()
}

fn http(endpoint: &str) -> Otlp {
    settings(&[("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)]).otlp.unwrap()
}

fn exporter(runtime: &Runtime, otlp: &Otlp, batch: &Batch) -> (OtlpExporter, Arc<Counters>) {
    let counters = Arc::new(Counters::default());
    let backoff = Backoff {
        first: Duration::from_millis(5),
        most: Duration::from_millis(20),
    };
    let exporter = OtlpExporter::with_backoff(otlp, batch, runtime.handle(), counters.clone(), backoff).unwrap();
    (exporter, counters)
}

fn spans(n: u64) -> Vec<Span> {
    (1..=n).map(|id| example::server(1, id, None)).collect()
}

/// A port where nobody listens.
fn nobody() -> String {
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    format!("http://{free}")
}

fn two_processes() -> Vec<Span> {
    let mut client = example::server(7, 1, None);
    client.kind = Kind::Client;
    client.resource = example::resource(2, "shop");
    client.status = Status::Error(Some("no".into()));
    let mut server = example::server(7, 2, Some(1));
    server.context.parent_is_remote = true;
    server.context.flags = 1;
    vec![client, server.clone(), server]
}

#[test]
fn grpc_carries_all_processes_in_one_compressed_request_with_the_headers() {
    let runtime = runtime();
    let receiver = GrpcReceiver::start(&runtime, vec![], None);
    let mut otlp = grpc(&receiver.url);
    otlp.compression = Compression::Gzip;
    otlp.headers = settings(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20t0ken"),
    ])
    .otlp
    .unwrap()
    .headers;
    let (mut exporter, counters) = exporter(&runtime, &otlp, &Batch::default());
    exporter.export(&two_processes());
    exporter.shutdown(PATIENCE);

    let requests = receiver.requests();
    let [(headers, request)] = requests.as_slice() else {
        panic!("{} requests", requests.len())
    };
    assert_eq!(headers.get("authorization").unwrap(), "Bearer t0ken");
    assert_eq!(headers.get("grpc-encoding").unwrap(), "gzip");
    assert!(
        headers
            .get("user-agent")
            .unwrap()
            .to_str()
            .unwrap()
            .starts_with("tracewire/")
    );
    let spans: Vec<_> = request
        .resource_spans
        .iter()
        .flat_map(|r| r.scope_spans.iter().flat_map(|s| s.spans.iter()))
        .collect();
    assert_eq!((request.resource_spans.len(), spans.len()), (2, 3));
    assert_eq!(spans[1].parent_span_id, spans[0].span_id);
    assert_eq!((spans[0].flags, spans[1].flags), (0x100, 0x301));
    assert_eq!(counters.spans_exported.get(), 3);
    assert_eq!(counters.dropped(), 0);
}

#[test]
fn http_carries_the_same_compressed_or_not() {
    let runtime = runtime();
    for compression in [Compression::None, Compression::Gzip] {
        let receiver = HttpReceiver::start(vec![], None);
        let mut otlp = http(&receiver.url);
        otlp.compression = compression;
        let (mut exporter, counters) = exporter(&runtime, &otlp, &Batch::default());
        exporter.export(&two_processes());
        exporter.shutdown(PATIENCE);
        let posts = receiver.posts();
        assert_eq!(posts.len(), 1);
        assert_eq!(posts[0].line, "POST /v1/traces HTTP/1.1");
        assert_eq!(posts[0].request, request(&two_processes()));
        assert_eq!(counters.spans_exported.get(), 3);
    }
}

#[test]
fn json_carries_the_same_and_each_of_several_receivers_gets_all() {
    let runtime = runtime();
    let (first, second) = (HttpReceiver::start(vec![], None), HttpReceiver::start(vec![], None));
    let all = settings(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("{}, {}", first.url, second.url)),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
    ])
    .otlp
    .unwrap();
    for otlp in all.each() {
        let (mut exporter, counters) = exporter(&runtime, &otlp, &Batch::default());
        exporter.export(&two_processes());
        exporter.shutdown(PATIENCE);
        assert_eq!((counters.spans_exported.get(), counters.dropped()), (3, 0));
    }
    for receiver in [first, second] {
        let posts = receiver.posts();
        assert_eq!(posts.len(), 1);
        assert_eq!(posts[0].line, "POST /v1/traces HTTP/1.1");
        assert_eq!(posts[0].request, request(&two_processes()));
    }
}

#[test]
fn a_full_queue_drops_and_counts_and_does_not_wait() {
    let runtime = runtime();
    let batch = Batch {
        max_queue_size: 10,
        schedule_delay: Duration::from_secs(60),
        ..Batch::default()
    };
    let (mut exporter, counters) = exporter(&runtime, &http(&nobody()), &batch);
    exporter.export(&spans(25));
    assert_eq!(counters.dropped_queue_full.get(), 15);
    exporter.shutdown(Duration::from_millis(200));
    assert_eq!((counters.dropped_shutdown.get(), counters.dropped()), (10, 25));
    exporter.export(&spans(1));
    assert_eq!(counters.dropped(), 26, "late spans are counted too");
}

#[test]
fn full_batches_are_sent_before_the_delay_is_over() {
    let runtime = runtime();
    let receiver = HttpReceiver::start(vec![], None);
    let batch = Batch {
        max_export_batch_size: 4,
        schedule_delay: Duration::from_secs(600),
        ..Batch::default()
    };
    let (mut exporter, _) = exporter(&runtime, &http(&receiver.url), &batch);
    exporter.export(&spans(10));
    receiver.wait_for(2);
    exporter.shutdown(PATIENCE);
    let sizes: Vec<_> = receiver
        .posts()
        .iter()
        .map(|p| p.request.resource_spans[0].scope_spans[0].spans.len())
        .collect();
    assert_eq!(sizes, [4, 4, 2]);
}

#[test]
fn a_receiver_that_comes_back_gets_everything() {
    let runtime = runtime();
    let unavailable = || Err(GrpcStatus::unavailable("restarting"));
    let receiver = GrpcReceiver::start(&runtime, vec![unavailable(), unavailable()], None);
    let (mut exporter, counters) = exporter(&runtime, &grpc(&receiver.url), &Batch::default());
    exporter.export(&spans(5));
    exporter.shutdown(PATIENCE);
    assert_eq!(receiver.requests().len(), 3);
    assert_eq!((counters.spans_exported.get(), counters.dropped()), (5, 0));
    assert_eq!((counters.export_failures.get(), counters.export_retries.get()), (2, 2));

    let receiver = HttpReceiver::start(vec!["503 Service Unavailable\r\nretry-after: 0", "429 Slow Down"], None);
    let (mut exporter, counters) = self::exporter(&runtime, &http(&receiver.url), &Batch::default());
    exporter.export(&spans(5));
    exporter.shutdown(PATIENCE);
    assert_eq!((counters.spans_exported.get(), counters.export_retries.get()), (5, 2));
}

#[test]
fn what_the_receiver_refuses_is_not_sent_again() {
    let runtime = runtime();
    let receiver = GrpcReceiver::start(&runtime, vec![Err(GrpcStatus::unauthenticated("who?"))], None);
    let (mut exporter, counters) = exporter(&runtime, &grpc(&receiver.url), &Batch::default());
    exporter.export(&spans(5));
    exporter.shutdown(PATIENCE);
    assert_eq!((receiver.requests().len(), counters.dropped_refused.get()), (1, 5));

    for answer in [
        "400 Bad Request",
        "413 Content Too Large",
        "307 Moved\r\nlocation: /elsewhere",
    ] {
        let receiver = HttpReceiver::start(vec![answer], None);
        let (mut exporter, counters) = self::exporter(&runtime, &http(&receiver.url), &Batch::default());
        exporter.export(&spans(5));
        exporter.shutdown(PATIENCE);
        assert_eq!(
            (receiver.posts().len(), counters.dropped_refused.get()),
            (1, 5),
            "{answer}"
        );
    }
}

#[test]
fn a_partial_success_is_counted_and_not_sent_again() {
    let runtime = runtime();
    let receiver = GrpcReceiver::start(
        &runtime,
        vec![Ok(partial(2)), Ok(ExportTraceServiceResponse::default())],
        None,
    );
    let (mut exporter, counters) = exporter(&runtime, &grpc(&receiver.url), &Batch::default());
    exporter.export(&spans(5));
    exporter.shutdown(PATIENCE);
    assert_eq!(receiver.requests().len(), 1);
    assert_eq!((counters.spans_exported.get(), counters.dropped_rejected.get()), (3, 2));
}

#[test]
fn nobody_there_costs_no_more_than_the_time_for_a_batch() {
    let runtime = runtime();
    for otlp in [grpc(&nobody()), http(&nobody())] {
        let batch = Batch {
            export_timeout: Duration::from_millis(100),
            schedule_delay: Duration::from_millis(1),
            ..Batch::default()
        };
        let (mut exporter, counters) = exporter(&runtime, &otlp, &batch);
        exporter.export(&spans(5));
        let start = Instant::now();
        while counters.dropped_timeout.get() == 0 && start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(counters.dropped_timeout.get(), 5);
        assert!(counters.export_retries.get() > 0);
        exporter.shutdown(PATIENCE);
        assert_eq!(counters.dropped(), 5);
    }
}

#[test]
fn tls_trusts_the_given_authority_and_no_other() {
    let runtime = runtime();
    let server = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let (certificate, key) = (server.cert.pem(), server.signing_key.serialize_pem());
    let file = std::env::temp_dir().join(format!("tracewire-test-ca-{}.pem", std::process::id()));
    std::fs::write(&file, &certificate).unwrap();
    let given = config::Given {
        value: file.clone(),
        source: "--otlp-certificate",
    };

    let grpc_receiver = GrpcReceiver::start(&runtime, vec![], Some((&certificate, &key)));
    let http_receiver = HttpReceiver::start(vec![], Some((&certificate, &key)));
    for otlp in [grpc(&grpc_receiver.url), http(&http_receiver.url)] {
        let impatient = Batch {
            export_timeout: Duration::from_millis(300),
            ..Batch::default()
        };
        let strange = exporter(&runtime, &otlp, &impatient);
        let trusted = exporter(
            &runtime,
            &Otlp {
                certificate: Some(given.clone()),
                ..otlp
            },
            &Batch::default(),
        );
        for ((mut exporter, counters), exported) in [(trusted, 1), (strange, 0)] {
            exporter.export(&spans(1));
            exporter.shutdown(PATIENCE);
            assert_eq!(
                (counters.spans_exported.get(), counters.dropped()),
                (exported, 1 - exported)
            );
            assert_eq!(counters.export_failures.get() > 0, exported == 0);
        }
    }
    std::fs::remove_file(file).unwrap();
}

#[test]
fn settings_that_cannot_work_are_refused_by_name() {
    let runtime = runtime();
    let refused = |env: &[(&str, &str)]| {
        let mut all = vec![("OTEL_EXPORTER_OTLP_ENDPOINT", "https://localhost:1")];
        all.extend(env);
        let otlp = settings(&all).otlp.unwrap();
        OtlpExporter::new(&otlp, &Batch::default(), runtime.handle(), Arc::default())
            .err()
            .unwrap()
            .to_string()
    };
    for protocol in ["grpc", "http/protobuf"] {
        let protocol = ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol);
        let missing = refused(&[protocol, ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/ca.pem")]);
        assert!(
            missing.starts_with("OTEL_EXPORTER_OTLP_CERTIFICATE: /nowhere/ca.pem: "),
            "{missing}"
        );
        let no_pem = refused(&[protocol, ("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "/proc/self/comm")]);
        assert!(
            no_pem.starts_with("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE: /proc/self/comm: "),
            "{no_pem}"
        );
        let alone = refused(&[protocol, ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/proc/self/comm")]);
        assert!(alone.starts_with("OTEL_EXPORTER_OTLP_CLIENT_KEY: "), "{alone}");
    }
}

#[test]
fn the_receivers_words_are_logged_without_the_headers() {
    let headers = settings(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20t0ken"),
    ]);
    assert_eq!(
        headers.otlp.unwrap().headers.redact("unknown Bearer t0ken, t0ken"),
        "unknown …, …"
    );
}
