//! The relay of proto/relay.proto, with tonic: an ordinary service without tracing code.

use std::collections::HashMap;
use std::fs::File;
use std::future::Future;
use std::io::Write;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

pub mod pb {
    tonic::include_proto!("tracewire.relay");
}
use pb::Hop;
use pb::relay_client::RelayClient;
use pb::relay_server::{Relay, RelayServer};

#[derive(Clone)]
struct Service {
    connections: usize,
    next: Arc<AtomicUsize>,
    channels: Arc<Mutex<HashMap<String, Vec<Channel>>>>,
    log: Option<Arc<Mutex<File>>>,
    worker: Option<Arc<Mutex<Worker>>>,
}

type Job = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Makes calls for whoever asks. The first who does starts its task, which ends after some jobs.
#[derive(Default)]
struct Worker {
    jobs: Option<tokio::sync::mpsc::UnboundedSender<Job>>,
    left: usize,
}

impl Worker {
    fn ask(&mut self, job: Job) {
        if self.left == 0 {
            self.left = 24;
            let (send, mut receive) = tokio::sync::mpsc::unbounded_channel::<Job>();
            self.jobs = Some(send);
            tokio::spawn(async move {
                while let Some(job) = receive.recv().await {
                    tokio::spawn(job);
                }
            });
        }
        self.left -= 1;
        if let Some(jobs) = &self.jobs {
            let _ = jobs.send(job);
        }
        if self.left == 0 {
            self.jobs = None;
        }
    }
}

impl Service {
    fn client(&self, address: &str) -> Result<RelayClient<Channel>, Status> {
        let mut channels = self.channels.lock().unwrap();
        let known = channels.entry(address.to_owned()).or_default();
        while known.len() < self.connections {
            // Addresses that begin so are reached by TLS.
            let internal = |e: tonic::transport::Error| Status::internal(e.to_string());
            let endpoint = match address.strip_prefix("tls:") {
                None => Endpoint::from_shared(format!("http://{address}")).map_err(internal)?,
                Some(address) => Endpoint::from_shared(format!("https://{address}"))
                    .and_then(|e| e.tls_config(client_tls()))
                    .map_err(internal)?,
            };
            known.push(endpoint.connect_lazy());
        }
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        Ok(RelayClient::new(known[n % known.len()].clone()))
    }

    async fn one(self, hop: Arc<Hop>, k: u32) -> Result<u32, Status> {
        let mut client = self.client(&hop.route[0])?;
        if hop.delay_ms > 0 {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let wait = u64::from(now.subsec_nanos()) % (u64::from(hop.delay_ms) * 1000);
            tokio::time::sleep(Duration::from_micros(wait)).await;
        }
        let id = format!("{}/{k}", hop.id);
        let mut ask = Request::new(Hop {
            id: id.clone(),
            route: hop.route[1..].to_vec(),
            fan: hop.fan,
            delay_ms: hop.delay_ms,
            depth: hop.depth,
            count: 0,
        });
        ask.metadata_mut().insert("x-call-id", id.parse().map_err(|_| Status::internal("id"))?);
        let Some(worker) = &self.worker else {
            return Ok(client.pass(ask).await?.into_inner().count);
        };
        let (send, answered) = tokio::sync::oneshot::channel();
        worker.lock().unwrap().ask(Box::pin(async move {
            let _ = send.send(client.pass(ask).await);
        }));
        let answer = answered.await.map_err(|e| Status::internal(e.to_string()))?;
        Ok(answer?.into_inner().count)
    }

    fn deep(self, hop: Arc<Hop>, depth: u32, k: u32) -> Pin<Box<dyn Future<Output = Result<u32, Status>> + Send>> {
        Box::pin(async move {
            if depth == 0 {
                return self.one(hop, k).await;
            }
            let task = tokio::spawn(self.deep(hop, depth - 1, k));
            task.await.map_err(|e| Status::internal(e.to_string()))?
        })
    }

    async fn onwards(&self, hop: Hop) -> Result<u32, Status> {
        if hop.route.is_empty() {
            return Ok(0);
        }
        let hop = Arc::new(hop);
        let fan = hop.fan.max(1);
        let mut tasks = tokio::task::JoinSet::new();
        if fan == 1 {
            return self.clone().deep(hop.clone(), hop.depth, 0).await;
        }
        for k in 0..fan {
            let depth = hop.depth.max(1);
            tasks.spawn(self.clone().deep(hop.clone(), depth - 1, k));
        }
        let mut count = 0;
        while let Some(done) = tasks.join_next().await {
            count += done.map_err(|e| Status::internal(e.to_string()))??;
        }
        Ok(count)
    }

    fn note<T>(&self, request: &Request<T>, id: &str) {
        if let Some(log) = &self.log {
            let contexts: Vec<&str> = request
                .metadata()
                .get_all("traceparent")
                .iter()
                .filter_map(|v| v.to_str().ok())
                .collect();
            let line = serde_json::json!({"id": id, "traceparent": contexts});
            log.lock().unwrap().write_all(format!("{line}\n").as_bytes()).unwrap();
        }
    }
}

#[tonic::async_trait]
impl Relay for Service {
    async fn pass(&self, request: Request<Hop>) -> Result<Response<Hop>, Status> {
        self.note(&request, &request.get_ref().id.clone());
        let hop = request.into_inner();
        let id = hop.id.clone();
        let count = self.onwards(hop).await?;
        Ok(Response::new(Hop {
            id,
            count: count + 1,
            ..Hop::default()
        }))
    }

    type FlowStream = ReceiverStream<Result<Hop, Status>>;

    async fn flow(&self, request: Request<Streaming<Hop>>) -> Result<Response<Self::FlowStream>, Status> {
        let mut asks = request.into_inner();
        let (send, receive) = tokio::sync::mpsc::channel(4);
        let service = self.clone();
        tokio::spawn(async move {
            while let Ok(Some(hop)) = asks.message().await {
                let id = hop.id.clone();
                let answer = service.onwards(hop).await.map(|count| Hop {
                    id,
                    count,
                    ..Hop::default()
                });
                if send.send(answer).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receive)))
    }
}

/// The files of EXERCISE_TLS: what both sides of a mutual TLS connection show and believe.
fn secrets() -> (Identity, Certificate) {
    let folder = std::path::PathBuf::from(std::env::var_os("EXERCISE_TLS").unwrap());
    let pem = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let own = Identity::from_pem(pem("cert.pem"), pem("key.pem"));
    (own, Certificate::from_pem(pem("ca.pem")))
}

fn client_tls() -> ClientTlsConfig {
    let (own, ca) = secrets();
    ClientTlsConfig::new().ca_certificate(ca).identity(own)
}

fn server_tls() -> ServerTlsConfig {
    let (own, ca) = secrets();
    let config = ServerTlsConfig::new().identity(own);
    match std::env::var_os("EXERCISE_MUTUAL_TLS") {
        Some(_) => config.client_ca_root(ca),
        None => config,
    }
}

fn flag(name: &str) -> Option<String> {
    let mut arguments = std::env::args().skip_while(|a| a != name);
    arguments.next()?;
    arguments.next()
}

#[tokio::main]
async fn main() {
    if std::env::args().nth(1).as_deref() != Some("serve") {
        eprintln!("usage: run serve --listen ADDRESS ...");
        std::process::exit(2);
    }
    let log = flag("--log").map(|path| {
        let file = File::options().create(true).append(true).open(path).unwrap();
        Arc::new(Mutex::new(file))
    });
    let service = Service {
        connections: flag("--connections").and_then(|n| n.parse().ok()).unwrap_or(1),
        next: Arc::default(),
        channels: Arc::default(),
        log,
        worker: std::env::args().any(|a| a == "--worker").then(Arc::default),
    };
    let listen = flag("--listen").unwrap_or_else(|| "127.0.0.1:0".into());
    let listener = tokio::net::TcpListener::bind(&listen).await.unwrap();
    println!("listening {}", listener.local_addr().unwrap());
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
    let mut server = Server::builder();
    if std::env::args().any(|a| a == "--tls") {
        server = server.tls_config(server_tls()).unwrap();
    }
    server
        .add_service(RelayServer::new(service))
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), async move {
            term.recv().await;
            // What is still open is not waited for.
            std::process::exit(0);
        })
        .await
        .unwrap();
}
