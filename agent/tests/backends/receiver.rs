//! What the tests against real OTLP receivers share: spans, and sending them
//! by both protocols, compressed.
#![allow(dead_code, reason = "each test uses its part")]

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

/// For a receiver on a machine at work.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A running receiver and what it says.
pub struct Receiver {
    child: Child,
    said: Arc<Mutex<String>>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Receiver {
    /// Starts the program that `variable` names, and waits until it listens.
    pub fn start(variable: &str, arguments: impl FnOnce(&mut Command), ports: &[u16]) -> Self {
        let binary = std::env::var(variable).unwrap_or_else(|_| panic!("{variable} names no program"));
        let mut command = Command::new(binary);
        arguments(&mut command);
        let mut child = command
            .env("NO_COLOR", "1")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said: Arc<Mutex<String>> = Arc::default();
        let outputs: [Box<dyn std::io::Read + Send>; 2] = [
            Box::new(child.stdout.take().unwrap()),
            Box::new(child.stderr.take().unwrap()),
        ];
        for out in outputs {
            let heard = said.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(out).lines().map_while(Result::ok) {
                    heard.lock().unwrap().push_str(&(line + "\n"));
                }
            });
        }
        let receiver = Receiver { child, said };
        wait_until(&format!("{variable} listens on {ports:?}"), || {
            ports
                .iter()
                .all(|port| TcpStream::connect(("127.0.0.1", *port)).is_ok())
        });
        receiver
    }

    /// Waits until it has said all of these.
    pub fn says(&self, texts: &[&str]) {
        for text in texts {
            wait_until(text, || self.said.lock().unwrap().contains(text));
        }
    }
}

pub fn wait_until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn span(service: &str, id: u64, name: &str) -> Span {
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
        sentry_head: None,
        resource: Arc::new(Resource {
            id,
            service_name: service.into(),
            attributes: vec![("service.name".into(), Value::Shared(service.into()))],
        }),
    }
}

/// Sends three spans of two services by this protocol, compressed; their names: services, method.
pub fn send(protocol: &str, port: u16, runtime: &tokio::runtime::Runtime) -> [String; 3] {
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
    let first = u64::from(protocol == "grpc") * 16;
    exporter.export(&[
        span(&shop, first + 1, &name),
        span(&cart, first + 2, &name),
        span(&cart, first + 3, &name),
    ]);
    exporter.shutdown(PATIENCE);
    assert_eq!(
        (counters.spans_exported.get(), counters.summary()),
        (3, "spans 0, dropped 0, lost events 0".into())
    );
    [shop, cart, name]
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}
