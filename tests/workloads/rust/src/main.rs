//! An ordinary gRPC service and its client. Both sides write one JSON line per
//! call to --log.

use std::collections::HashMap;
use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_stream::{Stream, StreamExt};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Server, ServerTlsConfig};
use tonic::{Code, Request, Response, Status, Streaming};

mod pb {
    tonic::include_proto!("tracewire.test");
}
use pb::exercise_client::ExerciseClient;
use pb::exercise_server::{Exercise, ExerciseServer};
use pb::{Answer, Ask};

const LANG: &str = "rust";
const MIB: usize = 1 << 20;
const MAX_MESSAGE: usize = 64 * MIB;
const MAX_METADATA: u32 = 64 << 10;
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

// --- log ------------------------------------------------------------------

#[derive(Clone)]
struct Log(Arc<File>);

impl Log {
    fn open(path: &str) -> std::io::Result<Log> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Log(Arc::new(file)))
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64
}

/// What one side knows of one call. It is written once: by `finish`, or as
/// cancelled when it is dropped before, as a handler is whose client gave up.
struct Record {
    log: Log,
    side: &'static str,
    id: String,
    method: &'static str,
    start: u64,
    sent: usize,
    received: usize,
    traceparent: String,
    done: bool,
}

impl Record {
    fn new(log: &Log, side: &'static str, id: &str, method: &'static str) -> Record {
        Record {
            log: log.clone(),
            side,
            id: id.to_owned(),
            method,
            start: now(),
            sent: 0,
            received: 0,
            traceparent: String::new(),
            done: false,
        }
    }

    fn served<T>(log: &Log, method: &'static str, request: &Request<T>) -> Record {
        let id = request.metadata().get("x-call-id");
        let id = id.and_then(|id| id.to_str().ok()).unwrap_or_default();
        let mut record = Record::new(log, "server", id, method);
        let parents = request.metadata().get_all("traceparent").iter();
        let parents: Vec<_> = parents.filter_map(|p| p.to_str().ok()).collect();
        record.traceparent = parents.join(",");
        record
    }

    fn finish(&mut self, code: Code, message: &str) {
        if std::mem::replace(&mut self.done, true) {
            return;
        }
        let mut line = serde_json::json!({
            "side": self.side,
            "id": self.id,
            "method": format!("tracewire.test.Exercise/{}", self.method),
            "code": CODES[code as usize],
            "message": message,
            "start_ns": self.start,
            "end_ns": now(),
            "sent": self.sent,
            "received": self.received,
            "traceparent": self.traceparent,
        })
        .to_string();
        line.push('\n');
        // The whole line with one write to a file opened for appending.
        (&*self.log.0).write_all(line.as_bytes()).unwrap();
    }

    /// Ends the call as its ask wishes.
    fn end(&mut self, ask: &Ask) -> Result<(), Status> {
        let code = Code::from_i32(ask.code);
        if code == Code::Ok {
            self.finish(code, "");
            return Ok(());
        }
        self.finish(code, &ask.message);
        Err(Status::new(code, ask.message.clone()))
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.finish(Code::Cancelled, "");
    }
}

// --- server ---------------------------------------------------------------

fn answer(ask: &Ask, n: usize) -> Answer {
    Answer {
        id: ask.id.clone(),
        n: n as i32,
        payload: vec![b'a'; ask.reply_bytes as usize],
    }
}

async fn pause(ms: i32) {
    if ms > 0 {
        sleep(Duration::from_millis(ms as u64)).await;
    }
}

struct Service {
    log: Log,
}

type Answers = Pin<Box<dyn Stream<Item = Result<Answer, Status>> + Send>>;

#[tonic::async_trait]
impl Exercise for Service {
    async fn unary(&self, request: Request<Ask>) -> Result<Response<Answer>, Status> {
        let mut record = Record::served(&self.log, "Unary", &request);
        let ask = request.into_inner();
        record.received = 1;
        pause(ask.delay_ms).await;
        record.sent = usize::from(ask.code == 0);
        record.end(&ask)?;
        Ok(Response::new(answer(&ask, 0)))
    }

    type ServerStreamStream = Answers;

    async fn server_stream(&self, request: Request<Ask>) -> Result<Response<Answers>, Status> {
        let mut record = Record::served(&self.log, "ServerStream", &request);
        let ask = request.into_inner();
        record.received = 1;
        let answers = async_stream::try_stream! {
            pause(ask.delay_ms).await;
            for n in 0..ask.replies as usize {
                if n > 0 {
                    pause(ask.gap_ms).await;
                }
                record.sent += 1;
                yield answer(&ask, n);
            }
            record.end(&ask)?;
        };
        Ok(Response::new(Box::pin(answers)))
    }

    async fn client_stream(&self, request: Request<Streaming<Ask>>) -> Result<Response<Answer>, Status> {
        let mut record = Record::served(&self.log, "ClientStream", &request);
        let mut asks = request.into_inner();
        let mut last = Ask::default();
        while let Some(ask) = asks.message().await? {
            record.received += 1;
            last = ask;
        }
        pause(last.delay_ms).await;
        record.sent = usize::from(last.code == 0);
        record.end(&last)?;
        Ok(Response::new(answer(&last, record.received)))
    }

    type BidiStream = Answers;

    async fn bidi(&self, request: Request<Streaming<Ask>>) -> Result<Response<Answers>, Status> {
        let mut record = Record::served(&self.log, "Bidi", &request);
        let mut asks = request.into_inner();
        let answers = async_stream::try_stream! {
            let mut last = Ask::default();
            while let Some(ask) = asks.message().await? {
                record.received += 1;
                pause(ask.delay_ms).await;
                record.sent += 1;
                yield answer(&ask, record.sent - 1);
                last = ask;
            }
            record.end(&last)?;
        };
        Ok(Response::new(Box::pin(answers)))
    }
}

/// TLS, if EXERCISE_TLS names a folder with ca.pem, cert.pem and key.pem; EXERCISE_MUTUAL_TLS
/// has the client show its certificate too.
struct Tls {
    folder: std::path::PathBuf,
    mutual: bool,
}

impl Tls {
    fn asked() -> Option<Self> {
        Some(Tls {
            folder: std::env::var_os("EXERCISE_TLS")?.into(),
            mutual: std::env::var_os("EXERCISE_MUTUAL_TLS").is_some(),
        })
    }

    fn pem(&self, name: &str) -> std::io::Result<Vec<u8>> {
        std::fs::read(self.folder.join(name))
    }

    fn own(&self) -> std::io::Result<Identity> {
        Ok(Identity::from_pem(self.pem("cert.pem")?, self.pem("key.pem")?))
    }

    fn ca(&self) -> std::io::Result<Certificate> {
        Ok(Certificate::from_pem(self.pem("ca.pem")?))
    }

    fn server(&self) -> std::io::Result<ServerTlsConfig> {
        let config = ServerTlsConfig::new().identity(self.own()?);
        Ok(if self.mutual { config.client_ca_root(self.ca()?) } else { config })
    }

    fn channel(&self) -> std::io::Result<ClientTlsConfig> {
        let config = ClientTlsConfig::new().ca_certificate(self.ca()?);
        Ok(if self.mutual { config.identity(self.own()?) } else { config })
    }
}

async fn serve(listen: &str, log: Log) -> Result<(), Box<dyn Error>> {
    let service = ExerciseServer::new(Service { log })
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let mut builder = Server::builder();
    if let Some(tls) = Tls::asked() {
        builder = builder.tls_config(tls.server()?)?;
    }
    let router = builder
        .http2_max_header_list_size(MAX_METADATA)
        .add_service(service);

    let mut terminate = signal(SignalKind::terminate())?;
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async {
        let _ = stopped.await;
    };
    let serving = if let Some(path) = listen.strip_prefix("unix:") {
        let _ = std::fs::remove_file(path);
        let incoming = UnixListenerStream::new(UnixListener::bind(path)?);
        tokio::spawn(router.serve_with_incoming_shutdown(incoming, stopped))
    } else {
        let incoming = TcpIncoming::bind(listen.parse()?)?.with_nodelay(Some(true));
        tokio::spawn(router.serve_with_incoming_shutdown(incoming, stopped))
    };
    println!("listening");
    terminate.recv().await;
    let _ = stop.send(());
    match timeout(Duration::from_secs(1), serving).await {
        Ok(served) => Ok(served??),
        Err(_) => Ok(()),
    }
}

// --- client ---------------------------------------------------------------

const MIXED: [&str; 5] = ["unary", "errors", "server-stream", "client-stream", "bidi"];

/// What one call of a scenario is.
struct Plan {
    ask: Ask,
    method: &'static str,
    filler: Option<String>,
    deadline: Option<Duration>,
    cancel: bool,
}

/// Text that looks like base32, another one for each seed.
fn filler(mut seed: u64) -> String {
    let mut letter = || {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        char::from(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"[(seed >> 59) as usize])
    };
    (0..16_000).map(|_| letter()).collect()
}

impl Plan {
    fn new(scenario: &str, n: usize) -> Result<Plan, String> {
        let failure = format!("expected failure {n}: naïve % text");
        let mut ask = Ask {
            id: format!("{LANG}-{scenario}-{n}-{}", std::process::id()),
            reply_bytes: 64,
            payload: vec![b'q'; 64],
            ..Ask::default()
        };
        let mut plan = Plan {
            ask: Ask::default(),
            method: "Unary",
            filler: None,
            deadline: None,
            cancel: false,
        };
        let kind = if scenario == "mixed" {
            MIXED[n % MIXED.len()]
        } else {
            scenario
        };
        match kind {
            "unary" | "churn" => {}
            "errors" => {
                ask.code = (n % 17) as i32;
                ask.message = failure;
            }
            "server-stream" => {
                plan.method = "ServerStream";
                (ask.replies, ask.gap_ms) = (3, 5);
                if n % 4 == 3 {
                    ask.code = Code::Aborted as i32;
                    ask.message = failure;
                }
            }
            "client-stream" => plan.method = "ClientStream",
            "bidi" => plan.method = "Bidi",
            "cancel" => {
                plan.method = "ServerStream";
                plan.cancel = true;
                (ask.replies, ask.gap_ms) = (1000, 5);
            }
            "deadline" => {
                ask.delay_ms = 400;
                plan.deadline = Some(Duration::from_millis(60));
            }
            "large" => {
                ask.reply_bytes = 4 * MIB as i32;
                ask.payload = vec![b'q'; 4 * MIB];
            }
            "metadata" => plan.filler = Some(filler(now() ^ n as u64)),
            _ => return Err(format!("unknown scenario {scenario:?}")),
        }
        plan.ask = ask;
        Ok(plan)
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert("x-call-id", self.ask.id.parse().unwrap());
        if let Some(filler) = &self.filler {
            metadata.insert("x-filler", filler.parse().unwrap());
        }
        if let Some(deadline) = self.deadline {
            request.set_timeout(deadline);
        }
        request
    }

    async fn call(&self, channel: Channel, log: &Log) {
        let mut client = ExerciseClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let mut record = Record::new(log, "client", &self.ask.id, self.method);
        let result = match self.method {
            "Unary" => self.unary(&mut client, &mut record).await,
            "ServerStream" => self.server_stream(&mut client, &mut record).await,
            "ClientStream" => self.client_stream(&mut client, &mut record).await,
            _ => self.bidi(&mut client, &mut record).await,
        };
        match result {
            Ok(()) => record.finish(Code::Ok, ""),
            Err(status) => record.finish(status.code(), status.message()),
        }
    }

    async fn unary(&self, client: &mut ExerciseClient<Channel>, record: &mut Record) -> Result<(), Status> {
        record.sent = 1;
        client.unary(self.request(self.ask.clone())).await?;
        record.received = 1;
        Ok(())
    }

    async fn server_stream(&self, client: &mut ExerciseClient<Channel>, record: &mut Record) -> Result<(), Status> {
        record.sent = 1;
        let request = self.request(self.ask.clone());
        let mut answers = client.server_stream(request).await?.into_inner();
        while answers.message().await?.is_some() {
            record.received += 1;
            if self.cancel {
                // Dropping the answers is how a client cancels.
                return Err(Status::cancelled(""));
            }
        }
        Ok(())
    }

    async fn client_stream(&self, client: &mut ExerciseClient<Channel>, record: &mut Record) -> Result<(), Status> {
        let sent = Arc::new(AtomicUsize::new(0));
        let (ask, count) = (self.ask.clone(), sent.clone());
        let asks = async_stream::stream! {
            for n in 0..4 {
                if n > 0 {
                    pause(2).await;
                }
                count.fetch_add(1, Ordering::Relaxed);
                yield ask.clone();
            }
        };
        let result = client.client_stream(self.request(asks)).await;
        record.sent = sent.load(Ordering::Relaxed);
        result?;
        record.received = 1;
        Ok(())
    }

    async fn bidi(&self, client: &mut ExerciseClient<Channel>, record: &mut Record) -> Result<(), Status> {
        let (asker, asks) = mpsc::channel(1);
        // The first ask goes along with the call: a server need not answer
        // with anything, not even headers, before it has one.
        let _ = asker.send(self.ask.clone()).await;
        record.sent = 1;
        let asks = ReceiverStream::new(asks);
        let mut answers = client.bidi(self.request(asks)).await?.into_inner();
        while answers.next().await.transpose()?.is_some() {
            record.received += 1;
            if record.sent == 3 {
                break;
            }
            if asker.send(self.ask.clone()).await.is_ok() {
                record.sent += 1;
            }
        }
        drop(asker);
        while answers.message().await?.is_some() {
            record.received += 1;
        }
        Ok(())
    }
}

/// A channel of its own, which connects with its first call.
fn connect(target: &str) -> Result<Channel, Box<dyn Error + Send + Sync>> {
    let tls = Tls::asked();
    let uri = match target.strip_prefix("unix:") {
        Some(path) => format!("unix://{path}"),
        None if tls.is_some() => format!("https://{target}"),
        None => format!("http://{target}"),
    };
    let mut endpoint = Endpoint::from_shared(uri)?.http2_max_header_list_size(MAX_METADATA);
    if let Some(tls) = tls {
        endpoint = endpoint.tls_config(tls.channel()?)?;
    }
    Ok(endpoint.connect_lazy())
}

/// Gives a permit when a call is due, `rate` times a second. A thread of its
/// own, because the runtime's timers count milliseconds.
fn pace(rate: u64) -> Arc<Semaphore> {
    let due = Arc::new(Semaphore::new(0));
    let permits = due.clone();
    std::thread::spawn(move || {
        let start = Instant::now();
        for n in 0.. {
            let at = start + Duration::from_nanos(n * 1_000_000_000 / rate);
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            permits.add_permits(1);
        }
    });
    due
}

async fn drive(
    target: String,
    scenario: String,
    [total, concurrency, connections]: [usize; 3],
    rate: u64,
    log: Log,
) -> Result<(), Box<dyn Error>> {
    let due = (rate > 0).then(|| pace(rate));
    let mut channels = Vec::new();
    if scenario != "churn" {
        for _ in 0..connections.max(1) {
            channels.push(connect(&target).map_err(|error| -> Box<dyn Error> { error })?);
        }
    }
    let shared = Arc::new((target, scenario, channels, AtomicUsize::new(0), log));
    let workers: Vec<_> = (0..concurrency.max(1))
        .map(|_| {
            let shared = shared.clone();
            let due = due.clone();
            tokio::spawn(async move {
                let (target, scenario, channels, next, log) = &*shared;
                loop {
                    if let Some(due) = &due {
                        due.acquire().await.unwrap().forget();
                    }
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= total {
                        return;
                    }
                    let plan = Plan::new(scenario, n).unwrap();
                    let channel = match channels.len() {
                        0 => connect(target).unwrap(),
                        k => channels[n % k].clone(),
                    };
                    plan.call(channel, log).await;
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await?;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let side = words.next().unwrap_or_default();
    let mut options = HashMap::new();
    while let Some(name) = words.next() {
        let value = words.next().ok_or(format!("{name} needs a value"))?;
        options.insert(name, value);
    }
    let text = |name: &str| options.get(name).cloned().ok_or(format!("{name} is missing"));
    let number = |name: &str, default: usize| match options.get(name) {
        Some(value) => value.parse(),
        None => Ok(default),
    };
    let log = Log::open(&text("--log")?)?;
    match side.as_str() {
        "server" => serve(&text("--listen")?, log).await,
        "client" => {
            let scenario = text("--scenario")?;
            Plan::new(&scenario, 0)?;
            let counts = [
                number("--calls", 1)?,
                number("--concurrency", 1)?,
                number("--connections", 1)?,
            ];
            let delay = number("--start-delay-ms", 0)? as u64;
            sleep(Duration::from_millis(delay)).await;
            let rate = number("--rate", 0)? as u64;
            drive(text("--target")?, scenario, counts, rate, log).await
        }
        _ => Err("usage: run server|client --log FILE ...".into()),
    }
}
