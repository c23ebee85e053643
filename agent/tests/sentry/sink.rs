//! Takes envelopes and answers as it is told: for what no real server can be
//! made to do at will.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use flate2::read::GzDecoder;
use serde_json::Value as Json;

/// One envelope that came.
#[derive(Clone, Debug)]
pub struct Envelope {
    /// `X-Sentry-Auth`.
    pub auth: String,
    /// Path of the request.
    pub path: String,
    /// First line.
    pub header: Json,
    /// Header of its item.
    pub item: Json,
    /// Its item.
    pub payload: Json,
}

impl Envelope {
    /// `type` of the item.
    pub fn kind(&self) -> &str {
        self.item["type"].as_str().unwrap_or_default()
    }
}

/// The listening sink.
#[derive(Clone)]
pub struct Sink {
    /// Of 127.0.0.1.
    pub port: u16,
    came: Arc<Mutex<Vec<Envelope>>>,
    answers: Arc<Mutex<VecDeque<String>>>,
    delay: Arc<Mutex<Duration>>,
}

impl Sink {
    /// Listens from now on.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let sink = Sink {
            port: listener.local_addr().unwrap().port(),
            came: Arc::default(),
            answers: Arc::default(),
            delay: Arc::default(),
        };
        let serving = sink.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let sink = serving.clone();
                std::thread::spawn(move || sink.serve(stream));
            }
        });
        sink
    }

    /// DSN of a project of its.
    pub fn dsn(&self, key: &str, project: u32) -> String {
        format!("http://{key}@127.0.0.1:{}/{project}", self.port)
    }

    /// The next answers: status line and header lines, without the end of the last line.
    pub fn answer(&self, answer: &str) {
        self.answers.lock().unwrap().push_back(answer.to_owned());
    }

    /// Waits so long before each answer.
    pub fn delay(&self, delay: Duration) {
        *self.delay.lock().unwrap() = delay;
    }

    /// What came so far.
    pub fn came(&self) -> Vec<Envelope> {
        self.came.lock().unwrap().clone()
    }

    /// Payloads of that kind so far.
    pub fn payloads(&self, kind: &str) -> Vec<Json> {
        let came = self.came();
        came.into_iter()
            .filter(|e| e.kind() == kind)
            .map(|e| e.payload)
            .collect()
    }

    /// Waits until so many of that kind came.
    pub fn wait_for(&self, kind: &str, count: usize) -> Vec<Json> {
        let start = Instant::now();
        loop {
            let payloads = self.payloads(kind);
            if payloads.len() >= count {
                return payloads;
            }
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "waited for {count} of {kind}"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn serve(&self, stream: TcpStream) {
        let mut write = stream.try_clone().unwrap();
        let mut read = BufReader::new(stream);
        loop {
            let mut lines = Vec::new();
            loop {
                let mut line = String::new();
                if read.read_line(&mut line).unwrap_or(0) == 0 {
                    return;
                }
                if line.trim().is_empty() {
                    break;
                }
                lines.push(line.trim().to_owned());
            }
            let field = |name: &str| {
                lines
                    .iter()
                    .filter_map(|line| line.split_once(':'))
                    .find(|(n, _)| n.eq_ignore_ascii_case(name))
                    .map(|(_, v)| v.trim().to_owned())
                    .unwrap_or_default()
            };
            let mut body = vec![0; field("content-length").parse().unwrap_or(0)];
            if read.read_exact(&mut body).is_err() {
                return;
            }
            let mut bytes = Vec::new();
            if field("content-encoding") == "gzip" {
                GzDecoder::new(body.as_slice()).read_to_end(&mut bytes).unwrap();
            } else {
                bytes = body;
            }
            let mut parts = bytes.splitn(3, |b| *b == b'\n');
            let mut json = || serde_json::from_slice(parts.next().unwrap()).unwrap();
            let envelope = Envelope {
                auth: field("x-sentry-auth"),
                path: lines[0].split(' ').nth(1).unwrap().to_owned(),
                header: json(),
                item: json(),
                payload: json(),
            };
            let length = envelope.item["length"].as_u64().unwrap();
            assert!(bytes.len() as u64 > length);
            std::thread::sleep(*self.delay.lock().unwrap());
            self.came.lock().unwrap().push(envelope);
            let answer = self.answers.lock().unwrap().pop_front();
            let answer = answer.unwrap_or_else(|| "HTTP/1.1 200 OK".to_owned());
            if write!(write, "{answer}\r\ncontent-length: 2\r\n\r\n{{}}").is_err() {
                return;
            }
        }
    }
}
