//! The OTLP exporter against a collector that is not ours: rotel, by gRPC and
//! by HTTP, compressed. Needs its binary and is therefore not run by default:
//!
//! ```text
//! python3 -m venv venv && venv/bin/pip install rotel
//! ROTEL=venv/lib/python3*/site-packages/rotel/rotel-agent \
//!     cargo test -p tracewire --test rotel -- --ignored
//! ```
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tracewire::attribute::Value;
use tracewire::config::{Config, ExportFlags, LogFlags};
use tracewire::discover::Resource;
use tracewire::export::Exporter as _;
use tracewire::export::otlp::OtlpExporter;
use tracewire::span::{Kind, Span, SpanContext, Status};
use tracewire::telemetry::Counters;

const PATIENCE: Duration = Duration::from_secs(20);

struct Rotel {
    child: Child,
    said: Arc<Mutex<String>>,
}

impl Drop for Rotel {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Rotel {
    fn start(grpc: u16, http: u16) -> Self {
        let binary = std::env::var("ROTEL").expect("ROTEL names rotel's binary");
        let mut child = Command::new(binary)
            .args(["start", "--exporter", "blackhole"])
            .args(["--debug-log", "traces", "--debug-log-verbosity", "detailed"])
            .args(["--otlp-grpc-endpoint", &format!("127.0.0.1:{grpc}")])
            .args(["--otlp-http-endpoint", &format!("127.0.0.1:{http}")])
            .env("NO_COLOR", "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said: Arc<Mutex<String>> = Arc::default();
        let (out, heard) = (child.stdout.take().unwrap(), said.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                heard.lock().unwrap().push_str(&(line + "\n"));
            }
        });
        let rotel = Rotel { child, said };
        wait_until("rotel listens", || {
            [grpc, http]
                .iter()
                .all(|port| TcpStream::connect(("127.0.0.1", *port)).is_ok())
        });
        rotel
    }

    fn has_said(&self, text: &str) -> bool {
        self.said.lock().unwrap().contains(text)
    }
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn span(service: &str, id: u64, name: &str) -> Span {
    let id_bytes = id.to_be_bytes();
    Span {
        context: SpanContext {
            trace_id: [id as u8; 16],
            span_id: id_bytes,
            flags: 1,
            ..SpanContext::default()
        },
        name: name.into(),
        kind: Kind::Server,
        start_unix_ns: 1_790_000_000_000_000_000,
        end_unix_ns: 1_790_000_000_005_000_000,
        status: Status::Error(Some("no greeter".into())),
        attributes: vec![("rpc.method".into(), Value::Shared(name.into()))],
        dropped_attributes: 0,
        resource: Arc::new(Resource {
            id,
            service_name: service.into(),
            attributes: vec![("service.name".into(), Value::Shared(service.into()))],
        }),
    }
}

#[test]
#[ignore = "needs rotel's binary in ROTEL"]
fn rotel_receives_what_was_sent_by_both_protocols() {
    let (grpc, http) = (free_port(), free_port());
    let rotel = Rotel::start(grpc, http);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    for (protocol, port) in [("grpc", grpc), ("http/protobuf", http)] {
        let endpoint = format!("http://127.0.0.1:{port}");
        let environment = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20t0ken"),
        ];
        let read = |name: &str| environment.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into());
        let config = Config::of(&ExportFlags::default(), &LogFlags::default(), read).unwrap();
        let counters = Arc::new(Counters::default());
        let mut exporter =
            OtlpExporter::new(&config.otlp.unwrap(), &config.batch, runtime.handle(), counters.clone()).unwrap();
        let word = if protocol == "grpc" { "Grpc" } else { "Http" };
        let (shop, cart) = (format!("shop{word}"), format!("cart{word}"));
        let name = format!("greet.{word}/Hello");
        exporter.export(&[span(&shop, 1, &name), span(&cart, 2, &name), span(&cart, 3, &name)]);
        exporter.shutdown(PATIENCE);
        assert_eq!(
            (counters.spans_exported.get(), counters.summary()),
            (3, "spans 0, dropped 0, lost events 0".into())
        );
        for text in [
            &shop,
            &cart,
            &name,
            "https://opentelemetry.io/schemas/1.45.0",
            "no greeter",
        ] {
            wait_until(text, || rotel.has_said(text));
        }
    }
}
