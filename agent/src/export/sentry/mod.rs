//! Spans to Sentry: a transaction for each served request with the calls that
//! it made, and an event for each that failed, which becomes an Issue. Bias:
//! an error reaches Sentry even where its trace was not sampled, and nothing
//! personal goes with it.
//!
//! The `sentry` crate gives the client, the DSN, the queue and its thread, and
//! the payloads of events. What it lacks stands beside it: transactions that say
//! where their name is from (`transaction`), limits that only grow (`limits`),
//! reports of what was discarded (`losses`). Its global hub is not used: there
//! is one client a project.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use sentry::protocol::Uuid;
use sentry::types::Dsn;
use sentry::{Client, ClientOptions, Envelope};

use super::Exporter;
use crate::config::Given;
use crate::span::{Kind, Span, Status};
use crate::telemetry::Counters;

pub mod config;
mod dsc;
mod envelope;
mod family;
mod issue;
mod limits;
mod losses;
pub mod otlp;
mod subject;
mod transaction;
mod transport;
mod words;

pub use config::Config;

use family::{Families, Family};
use issue::Caps;
use limits::Category;
use losses::Reason;
use subject::Subject;
use transaction::{SPANS, Transaction};
use transport::{Factory, Shared};

/// How often losses are told.
const REPORT: Duration = Duration::from_secs(30);
/// Processes whose description is remembered at a time.
const SUBJECTS: usize = 4096;

/// Whom it trusts: the authority in that file, or else the host's and Mozilla's.
///
/// # Errors
/// If the file can't be read or obeyed, or TLS can't be set up.
pub fn tls(certificate: Option<&Given<PathBuf>>) -> Result<rustls::ClientConfig, crate::config::Error> {
    let trust = crate::config::Otlp {
        certificate: certificate.cloned(),
        ..crate::config::Otlp::default()
    };
    super::otlp::tls::Tls::read(&trust)?.client_config()
}

/// One project of Sentry.
struct Project {
    client: Client,
    dsn: Dsn,
    shared: Arc<Shared>,
}

/// Sends transactions and issues.
pub struct SentryExporter {
    config: Config,
    projects: Vec<Project>,
    /// By resource: index of the project, and description.
    known: FxHashMap<u64, Option<(usize, Arc<Subject>)>>,
    families: Families,
    caps: Caps,
    start: Instant,
    reported: Instant,
    closed: bool,
}

impl SentryExporter {
    /// An exporter by `config`. `tls`: whom it trusts. Connects when there is something to send.
    ///
    /// # Errors
    /// If no HTTP client can be made.
    pub fn new(config: Config, tls: rustls::ClientConfig, counters: &Arc<Counters>) -> Result<Self, String> {
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(10))
            .build()
            .map_err(|e| super::otlp::chain(&e.without_url()))?;
        let mut projects: Vec<Project> = Vec::new();
        let secrets = config.projects.iter().map(|p| &p.dsn).chain(&config.default);
        for secret in secrets {
            let dsn = secret.dsn();
            if projects.iter().any(|p| p.dsn == *dsn) {
                continue;
            }
            let shared = Arc::new(Shared::new(counters.clone()));
            let factory = Factory {
                http: http.clone(),
                shared: shared.clone(),
            };
            let mut options = ClientOptions::default();
            options.dsn = Some(dsn.clone());
            options.transport = Some(Arc::new(factory));
            options.default_integrations = false;
            options.user_agent = concat!("tracewire/", env!("CARGO_PKG_VERSION")).into();
            projects.push(Project {
                client: Client::with_options(options),
                dsn: dsn.clone(),
                shared,
            });
        }
        let now = Instant::now();
        Ok(SentryExporter {
            caps: Caps::new(config.issues_per_minute),
            config,
            projects,
            known: FxHashMap::default(),
            families: Families::default(),
            start: now,
            reported: now,
            closed: false,
        })
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn send(&mut self, families: &mut Vec<Family>) {
        for family in families.drain(..) {
            self.family(family);
        }
    }

    /// Project and description of the process of a span.
    fn subject(&mut self, span: &Span) -> Option<(usize, Arc<Subject>)> {
        let resource = &span.resource;
        if let Some(known) = self.known.get(&resource.id) {
            return known.clone();
        }
        let index = self
            .config
            .project(resource)
            .and_then(|secret| self.projects.iter().position(|p| p.dsn == *secret.dsn()));
        let found = index.map(|index| {
            let config = &self.config;
            let subject = Subject::new(
                resource,
                config.environment.as_deref(),
                config.release.as_deref(),
                config.instance.as_deref(),
            );
            (index, Arc::new(subject))
        });
        if self.known.len() >= SUBJECTS {
            self.known.clear();
        }
        self.known.insert(resource.id, found.clone());
        found
    }

    fn family(&mut self, family: Family) {
        let Some((index, subject)) = self.subject(&family.root) else {
            return;
        };
        let failed = family.root.kind == Kind::Server && matches!(family.root.status, Status::Error(_));
        if failed {
            self.issue(index, &subject, &family);
        }
        if self.config.transactions {
            self.transaction(index, &subject, family);
        }
    }

    fn issue(&mut self, index: usize, subject: &Subject, family: &Family) {
        let Some(project) = self.projects.get(index) else {
            return;
        };
        let group = issue::group(&family.root, &subject.service);
        let Some(suppressed) = self.caps.admit(group, family.root.end_unix_ns) else {
            project.shared.lost(Reason::SampleRate, Category::Error, 0);
            return;
        };
        if !project.shared.allows(Category::Error) {
            project.shared.lost(Reason::RateLimit, Category::Error, 0);
            return;
        }
        let id = Uuid::from_bytes(rand::random());
        let event = issue::event(family, subject, id, suppressed);
        let trace = dsc::context(&family.root, subject, &project.dsn, self.config.share);
        let sealed = envelope::seal(Some(&id.simple().to_string()), Some(&trace), "event", None, &event);
        if let Ok(sealed) = sealed {
            project.hand_over(sealed.bytes, Category::Error, 0);
        }
    }

    fn transaction(&mut self, index: usize, subject: &Subject, mut family: Family) {
        let Some(project) = self.projects.get(index) else {
            return;
        };
        let spans = family.calls.len() as u64 + 1;
        let shared = &project.shared;
        if !dsc::kept_for_itself(&family.root) && !self.config.share.keeps_randomness(dsc::random(&family.root)) {
            shared.lost(Reason::SampleRate, Category::Transaction, spans);
            return;
        }
        if !shared.allows(Category::Transaction) {
            shared.lost(Reason::RateLimit, Category::Transaction, spans);
            return;
        }
        let id = Uuid::from_bytes(rand::random()).simple().to_string();
        let trace = dsc::context(&family.root, subject, &project.dsn, self.config.share);
        // What is too large is cut: the request itself matters more than its thousandth call.
        let mut most = family.calls.len().min(SPANS);
        loop {
            let surplus = family.calls.len() - most;
            if surplus > 0 {
                family.calls.truncate(most);
                shared.lost(Reason::TooLarge, Category::Span, surplus as u64);
            }
            let payload = Transaction::new(&family, subject, &id);
            let Ok(sealed) = envelope::seal(Some(&id), Some(&trace), "transaction", Some(most), &payload) else {
                return;
            };
            if sealed.item <= envelope::LARGEST {
                project.hand_over(sealed.bytes, Category::Transaction, most as u64 + 1);
                return;
            }
            if most == 0 {
                shared.lost(Reason::TooLarge, Category::Transaction, 1);
                return;
            }
            most /= 2;
        }
    }

    fn report(&mut self) {
        self.reported = Instant::now();
        for project in &self.projects {
            if let Some(report) = project.shared.losses.report(envelope::now())
                && let Ok(sealed) = envelope::seal(None, None, "client_report", None, &report)
            {
                project.hand_over(sealed.bytes, Category::Report, 0);
            }
        }
    }
}

impl Project {
    fn hand_over(&self, bytes: Vec<u8>, category: Category, spans: u64) {
        if !self.shared.enter() {
            self.shared.lost(Reason::QueueOverflow, category, spans);
            return;
        }
        if let Ok(envelope) = Envelope::from_bytes_raw(bytes) {
            self.client.send_envelope(envelope);
        }
    }
}

impl Exporter for SentryExporter {
    fn export(&mut self, spans: &[Span]) {
        if self.closed {
            return;
        }
        let now_ns = self.now_ns();
        let mut out = Vec::new();
        for span in spans {
            self.families.take(span, now_ns, &mut out);
        }
        self.families.due(now_ns, &mut out);
        self.send(&mut out);
    }

    fn tick(&mut self) {
        let mut out = Vec::new();
        self.families.due(self.now_ns(), &mut out);
        self.send(&mut out);
        if self.reported.elapsed() >= REPORT {
            self.report();
        }
    }

    fn shutdown(&mut self, deadline: Duration) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        let end = Instant::now() + deadline;
        let mut out = Vec::new();
        self.families.finish(&mut out);
        self.send(&mut out);
        self.report();
        for project in &self.projects {
            let left = end.saturating_duration_since(Instant::now());
            if !project.client.flush(Some(left)) {
                project.shared.give_up();
                let waiting = project.shared.waiting();
                tracing::warn!("{waiting} envelopes for Sentry were not sent in time");
            }
        }
        for project in self.projects.drain(..) {
            project.client.close(Some(Duration::ZERO));
            project.shared.abandon();
        }
    }
}

impl Drop for SentryExporter {
    fn drop(&mut self) {
        self.shutdown(Duration::ZERO);
    }
}
