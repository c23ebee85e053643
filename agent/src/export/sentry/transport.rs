//! The way to one project: a transport of the `sentry` crate's, with what its own lack.
//! Several requests at once, since Sentry takes one transaction a request and may be far
//! away; limits that only grow, spans among them; an end to each request; a count of all
//! that is lost.

use std::borrow::Cow;
use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use sentry::{Envelope, Transport, TransportFactory, TransportOptions};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use super::envelope;
use super::limits::Category;
use super::losses::Reason;
use super::queue::{QUEUE, Shared};
use crate::export::otlp::{chain, word};

/// Requests under way at a time.
const AT_ONCE: usize = 8;
/// Bodies from this size on are compressed, bytes: what is smaller fits few packets, and to
/// compress it takes longer than all the rest.
const PACKED: usize = 8 * 1024;
/// Longest wait for one answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Waits before another try after no answer, or one that says it is the server's fault.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(2)];

/// Makes the transport of a `sentry::Client`.
pub struct Factory {
    /// Trusts and proxies as the agent does.
    pub http: reqwest::Client,
    /// Where it sends.
    pub runtime: Handle,
    /// Of the same project.
    pub shared: Arc<Shared>,
}

impl TransportFactory for Factory {
    fn create_transport_with_options(&self, options: TransportOptions) -> Arc<dyn Transport> {
        let mut headers = HeaderMap::new();
        let auth = options.dsn.to_auth(Some(&options.user_agent)).to_string();
        if let Ok(mut value) = HeaderValue::from_str(&auth) {
            value.set_sensitive(true);
            headers.insert(HeaderName::from_static("x-sentry-auth"), value);
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-sentry-envelope"));
        let sender = Arc::new(Sender {
            http: self.http.clone(),
            url: options.dsn.envelope_api_url(),
            headers,
            shared: self.shared.clone(),
        });
        let workers = (0..AT_ONCE).map(|_| {
            let sender = sender.clone();
            let work = async move {
                loop {
                    let bytes = sender.shared.pop().await;
                    sender.send(bytes).await;
                }
            };
            self.runtime.spawn(work).abort_handle()
        });
        Arc::new(Post {
            shared: self.shared.clone(),
            workers: Mutex::new(workers.collect()),
        })
    }
}

struct Post {
    shared: Arc<Shared>,
    workers: Mutex<Vec<AbortHandle>>,
}

impl Transport for Post {
    fn send_envelope(&self, envelope: Envelope) {
        let mut bytes = Vec::new();
        match envelope.to_writer(&mut bytes) {
            Ok(()) => self.shared.push(bytes),
            Err(_) => self.shared.leave(),
        }
    }

    fn flush(&self, timeout: Duration) -> bool {
        self.shared.drained(timeout)
    }

    fn shutdown(&self, timeout: Duration) -> bool {
        let all = self.shared.drained(timeout);
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        for worker in workers.drain(..) {
            worker.abort();
        }
        all
    }
}

struct Sender {
    http: reqwest::Client,
    url: reqwest::Url,
    headers: HeaderMap,
    shared: Arc<Shared>,
}

impl Sender {
    async fn send(&self, bytes: Vec<u8>) {
        let size = bytes.len();
        let (category, spans) = envelope::content(&bytes);
        self.carry(bytes, category, spans).await;
        self.shared.settled(size, spans);
    }

    async fn carry(&self, bytes: Vec<u8>, category: Category, spans: u64) {
        let shared = &self.shared;
        if !shared.allows(category) {
            shared.lost(Reason::RateLimit, category, spans);
            shared.component.exported(spans, Reason::RateLimit.word().into());
            return;
        }
        let begin = Instant::now();
        let result = tokio::select! {
            // What it is given after that is not tried at all.
            biased;
            () = shared.given_up() => Err((Reason::Shutdown, Reason::Shutdown.word().into())),
            result = self.settle(bytes) => result,
        };
        let error = match result {
            Ok(()) => {
                match category {
                    Category::Error => shared.counters.sentry_issues.increment(),
                    Category::Transaction => shared.counters.sentry_transactions.increment(),
                    Category::Span | Category::Report => {}
                }
                Cow::Borrowed("")
            }
            // The server counts what it answers with 429 itself.
            Err((Reason::RateLimit, error)) => {
                shared.counters.sentry_rate_limited.increment();
                error
            }
            Err((reason, error)) => {
                shared.lost(reason, category, spans);
                error
            }
        };
        shared.component.operation(begin.elapsed(), error.clone());
        shared.component.exported(spans, error);
    }

    /// Sends until it is taken or refused; why not, for reports and as `error.type`.
    async fn settle(&self, bytes: Vec<u8>) -> Result<(), (Reason, Cow<'static, str>)> {
        let mut headers = self.headers.clone();
        let body = if bytes.len() < PACKED {
            Bytes::from(bytes)
        } else {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            compress(&bytes).map_err(|_| (Reason::SendError, Cow::Borrowed("_OTHER")))?
        };
        let component = &self.shared.component;
        let mut pauses = PAUSES.into_iter();
        loop {
            let request = self
                .http
                .post(self.url.clone())
                .headers(headers.clone())
                .timeout(TIMEOUT)
                .body(body.clone())
                .send()
                .await;
            let (reason, error) = match request {
                Ok(response) => {
                    let status = response.status().as_u16();
                    self.shared.answered(status, response.headers());
                    if (200..300).contains(&status) {
                        return Ok(());
                    }
                    let error: Cow<'static, str> = Cow::Owned(status.to_string());
                    component.failed(error.clone());
                    match status {
                        429 => return Err((Reason::RateLimit, error)),
                        502..=504 => (Reason::SendError, error),
                        _ => {
                            self.shared.warn(&format!("HTTP status {status}"));
                            return Err((Reason::SendError, error));
                        }
                    }
                }
                Err(error) => {
                    // Never the address: it holds the project's.
                    let error = error.without_url();
                    self.shared.warn(&chain(&error));
                    let word = Cow::Borrowed(word(&error));
                    component.failed(word.clone());
                    (Reason::Network, word)
                }
            };
            match pauses.next() {
                // Those that wait are worth more than another try.
                Some(pause) if self.shared.waiting() < QUEUE / 2 => tokio::time::sleep(pause).await,
                _ => return Err((reason, error)),
            }
            component.retries.increment();
        }
    }
}

fn compress(bytes: &[u8]) -> std::io::Result<Bytes> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 2), Compression::fast());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?.into())
}
