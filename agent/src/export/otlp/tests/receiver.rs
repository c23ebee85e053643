//! OTLP receivers that answer as they are told and keep what they got.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use prost::Message as _;
use rustls::pki_types::pem::PemObject;
use tokio::runtime::Runtime;
use tonic::codec::CompressionEncoding;
use tonic::metadata::MetadataMap;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

/// Certificate and key, PEM.
pub type Pem<'a> = Option<(&'a str, &'a str)>;

pub fn partial(rejected_spans: i64) -> ExportTraceServiceResponse {
    let error_message = "too old".to_owned();
    ExportTraceServiceResponse {
        partial_success: Some(ExportTracePartialSuccess {
            rejected_spans,
            error_message,
        }),
    }
}

type Answer = Result<ExportTraceServiceResponse, Status>;

#[derive(Clone, Default)]
pub struct GrpcReceiver {
    pub url: String,
    answers: Arc<Mutex<VecDeque<Answer>>>,
    requests: Arc<Mutex<Vec<(MetadataMap, ExportTraceServiceRequest)>>>,
}

impl GrpcReceiver {
    /// Gives `answers`, then takes everything.
    pub fn start(runtime: &Runtime, answers: Vec<Answer>, tls: Pem<'_>) -> Self {
        let _guard = runtime.enter();
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let port = incoming.local_addr().unwrap().port();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let receiver = GrpcReceiver {
            url: format!("{scheme}://localhost:{port}"),
            answers: Arc::new(Mutex::new(answers.into())),
            requests: Arc::default(),
        };
        let mut server = Server::builder();
        if let Some((certificate, key)) = tls {
            server = server
                .tls_config(ServerTlsConfig::new().identity(Identity::from_pem(certificate, key)))
                .unwrap();
        }
        let service = TraceServiceServer::new(receiver.clone()).accept_compressed(CompressionEncoding::Gzip);
        runtime.spawn(server.add_service(service).serve_with_incoming(incoming));
        receiver
    }

    pub fn requests(&self) -> Vec<(MetadataMap, ExportTraceServiceRequest)> {
        self.requests.lock().unwrap().clone()
    }
}

#[tonic::async_trait]
impl TraceService for GrpcReceiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        self.requests.lock().unwrap().push((metadata, message));
        let answer = self.answers.lock().unwrap().pop_front();
        answer
            .unwrap_or_else(|| Ok(ExportTraceServiceResponse::default()))
            .map(Response::new)
    }
}

#[derive(Clone)]
pub struct Post {
    pub line: String,
    pub request: ExportTraceServiceRequest,
    /// Of its body, unpacked.
    pub bytes: usize,
}

pub struct HttpReceiver {
    pub url: String,
    posts: Arc<Mutex<Vec<Post>>>,
}

impl HttpReceiver {
    /// Gives `answers` (status line and fields), then takes everything.
    pub fn start(answers: Vec<&'static str>, tls: Pem<'_>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let port = listener.local_addr().unwrap().port();
        let posts: Arc<Mutex<Vec<Post>>> = Arc::default();
        let receiver = HttpReceiver {
            url: format!("{scheme}://localhost:{port}"),
            posts: posts.clone(),
        };
        let tls = tls.map(|(certificate, key)| Arc::new(server_config(certificate, key)));
        let mut answers: VecDeque<&'static str> = answers.into();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                // One request a connection; a failed handshake is the client's matter.
                let _ = match &tls {
                    None => serve(stream, &posts, &mut answers),
                    Some(config) => {
                        let connection = rustls::ServerConnection::new(config.clone()).unwrap();
                        serve(rustls::StreamOwned::new(connection, stream), &posts, &mut answers)
                    }
                };
            }
        });
        receiver
    }

    pub fn posts(&self) -> Vec<Post> {
        self.posts.lock().unwrap().clone()
    }

    pub fn wait_for(&self, n: usize) {
        let start = Instant::now();
        while self.posts().len() < n {
            assert!(start.elapsed() < super::PATIENCE, "{} of {n} posts", self.posts().len());
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn server_config(certificate: &str, key: &str) -> rustls::ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = rustls::pki_types::CertificateDer::pem_slice_iter(certificate.as_bytes())
        .map(Result::unwrap)
        .collect();
    let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap()
}

/// Reads one request and answers it.
fn serve<S: Read + Write>(
    stream: S,
    posts: &Mutex<Vec<Post>>,
    answers: &mut VecDeque<&'static str>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let (mut length, mut gzip, mut json) = (0, false, false);
    loop {
        let mut field = String::new();
        if reader.read_line(&mut field)? == 0 {
            return Ok(());
        }
        let field = field.trim().to_ascii_lowercase();
        if field.is_empty() {
            break;
        }
        if let Some(value) = field.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        json |= field == "content-type: application/json";
        gzip |= field == "content-encoding: gzip";
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    if gzip {
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(body.as_slice()).read_to_end(&mut plain)?;
        body = plain;
    }
    let request = match json {
        true => serde_json::from_slice(&body).unwrap(),
        false => ExportTraceServiceRequest::decode(body.as_slice()).unwrap(),
    };
    posts.lock().unwrap().push(Post {
        line: line.trim().to_owned(),
        request,
        bytes: body.len(),
    });
    let answer = answers.pop_front().unwrap_or("200 OK");
    let stream = reader.get_mut();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    write!(
        stream,
        "HTTP/1.1 {head}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    stream.flush()
}
