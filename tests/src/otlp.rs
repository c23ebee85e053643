//! An OTLP/HTTP receiver inside the test: it takes what the agent, or a collector behind
//! it, sends, and can be told to fail in the ways that real receivers can't be made to.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Number;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;

/// How a receiver answers.
#[derive(Clone, Debug, Default)]
pub enum Manner {
    /// It takes everything.
    #[default]
    Good,
    /// With this status line and these header fields.
    Says(&'static str),
    /// It takes everything, late.
    Slow(Duration),
    /// It accepts and reads, and never answers.
    Mute,
    /// It closes the connection in the middle of its answer.
    Torn,
}

/// A request's path and header fields, as text.
pub type Head = String;

/// What came.
#[derive(Clone, Debug, Default)]
pub struct Received {
    /// Spans with their `service.name`.
    pub spans: Vec<(String, Span)>,
    /// Requests with metrics, in their order.
    pub metrics: Vec<ExportMetricsServiceRequest>,
    /// Heads of all requests that were answered well.
    pub heads: Vec<Head>,
}

#[derive(Debug, Default)]
struct State {
    manner: Mutex<Manner>,
    received: Mutex<Received>,
    requests: AtomicU64,
    stop: AtomicBool,
}

/// A receiver that listens until it is dropped.
#[derive(Debug)]
pub struct Receiver {
    /// Where.
    pub address: SocketAddr,
    state: Arc<State>,
}

impl Receiver {
    /// Listens on a free port of this host.
    ///
    /// # Errors
    /// When there is none.
    pub fn start() -> Result<Self> {
        Self::start_on("127.0.0.1:0".parse()?)
    }

    /// Listens there.
    ///
    /// # Errors
    /// When somebody else does.
    pub fn start_on(address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let state = Arc::new(State::default());
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if shared.stop.load(Ordering::Relaxed) {
                    return;
                }
                let state = shared.clone();
                std::thread::spawn(move || while serve(&stream, &state).is_some() {});
            }
        });
        Ok(Receiver { address, state })
    }

    /// Its base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Changes how it answers from now on.
    pub fn be(&self, manner: Manner) {
        *self.state.manner.lock().unwrap_or_else(PoisonError::into_inner) = manner;
    }

    /// Requests that came so far, however they were answered.
    pub fn requests(&self) -> u64 {
        self.state.requests.load(Ordering::Relaxed)
    }

    /// What it took so far.
    pub fn received(&self) -> Received {
        self.state
            .received
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits until what it took is enough.
    ///
    /// # Errors
    /// When it never is.
    pub fn wait(&self, patience: Duration, what: &str, enough: impl Fn(&Received) -> bool) -> Result<Received> {
        let deadline = Instant::now() + patience;
        loop {
            let received = self.received();
            if enough(&received) {
                return Ok(received);
            }
            ensure!(
                Instant::now() < deadline,
                "{what}: {} spans, {} requests with metrics came",
                received.spans.len(),
                received.metrics.len()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Relaxed);
        // So that it looks at the flag.
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(stream: &TcpStream, state: &State) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        (reader.read_line(&mut head).ok()? > 0).then_some(())?;
    }
    let field = |name: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        lines
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.to_owned())
    };
    let mut body = vec![0; field("content-length")?.parse().ok()?];
    reader.read_exact(&mut body).ok()?;
    if field("content-encoding").as_deref() == Some("gzip") {
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(body.as_slice())
            .read_to_end(&mut plain)
            .ok()?;
        body = plain;
    }
    state.requests.fetch_add(1, Ordering::Relaxed);
    let manner = state.manner.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mut writer = stream;
    match manner {
        Manner::Good => {}
        Manner::Slow(time) => std::thread::sleep(time),
        Manner::Says(text) => {
            let answer = format!("HTTP/1.1 {text}\r\ncontent-length: 0\r\n\r\n");
            return writer.write_all(answer.as_bytes()).ok();
        }
        Manner::Mute => {
            // Until the other side gives up.
            let _ = reader.read(&mut [0; 1]);
            return None;
        }
        Manner::Torn => {
            let _ = writer.write_all(b"HTTP/1.1 200 O");
            return None;
        }
    }
    let mut received = state.received.lock().unwrap_or_else(PoisonError::into_inner);
    if head.contains("/v1/metrics") {
        received
            .metrics
            .push(ExportMetricsServiceRequest::decode(body.as_slice()).ok()?);
    } else {
        let request = ExportTraceServiceRequest::decode(body.as_slice()).ok()?;
        for group in request.resource_spans {
            let service = group
                .resource
                .map(|r| text(&r.attributes, "service.name"))
                .unwrap_or_default();
            let spans = group.scope_spans.into_iter().flat_map(|scope| scope.spans);
            received.spans.extend(spans.map(|span| (service.clone(), span)));
        }
    }
    received.heads.push(head);
    drop(received);
    writer
        .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n")
        .ok()
}

/// A string attribute; empty if there is none.
pub fn text(attributes: &[KeyValue], name: &str) -> String {
    let found = attributes.iter().find(|a| a.key == name).and_then(|a| a.value.clone());
    match found {
        Some(AnyValue {
            value: Some(Any::StringValue(text)),
        }) => text,
        _ => String::new(),
    }
}

/// A series of one name: `service.name` of its resource, attributes, value. Of a histogram the count.
pub type Point = (String, Vec<KeyValue>, f64);

/// All series of one name.
pub fn points(request: &ExportMetricsServiceRequest, name: &str) -> Vec<Point> {
    let mut points = Vec::new();
    for group in &request.resource_metrics {
        let service = group.resource.as_ref().map(|r| text(&r.attributes, "service.name"));
        let service = service.unwrap_or_default();
        let metrics = group.scope_metrics.iter().flat_map(|scope| &scope.metrics);
        for metric in metrics.filter(|metric| metric.name == name) {
            let numbers = match &metric.data {
                Some(Data::Sum(sum)) => &sum.data_points,
                Some(Data::Gauge(gauge)) => &gauge.data_points,
                Some(Data::Histogram(histogram)) => {
                    for point in &histogram.data_points {
                        points.push((service.clone(), point.attributes.clone(), point.count as f64));
                    }
                    continue;
                }
                _ => continue,
            };
            for point in numbers {
                let value = match point.value {
                    Some(Number::AsInt(n)) => n as f64,
                    Some(Number::AsDouble(n)) => n,
                    None => continue,
                };
                points.push((service.clone(), point.attributes.clone(), value));
            }
        }
    }
    points
}

/// The sum of all series of one name.
pub fn total(request: &ExportMetricsServiceRequest, name: &str) -> f64 {
    points(request, name).iter().map(|(.., value)| value).sum()
}

/// The body of a GET, and its status.
///
/// # Errors
/// When nobody answers.
pub fn get(address: &str, path: &str) -> Result<(u16, String)> {
    ask(address, "GET", path)
}

/// The same by another method, without a body.
///
/// # Errors
/// When nobody answers.
pub fn ask(address: &str, method: &str, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).with_context(|| address.to_owned())?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nAccept: application/openmetrics-text\r\n\r\n"
    )?;
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        ensure!(reader.read_line(&mut head)? > 0, "{address} ended within its answer");
    }
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|s| s.parse().ok())
        .context("no status")?;
    let mut lines = head.lines().filter_map(|line| line.split_once(": "));
    let length = lines.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let mut body = String::new();
    match length.and_then(|(_, value)| value.parse().ok()) {
        Some(length) => reader.take(length).read_to_string(&mut body)?,
        None => reader.read_to_string(&mut body)?,
    };
    Ok((status, body))
}
