//! Spans to Sentry: a transaction for each served request with the calls that
//! it made, and an event for each that failed, which becomes an Issue. Bias:
//! an error reaches Sentry even where its trace was not sampled, and nothing
//! personal goes with it.
//!
//! The `sentry` crate gives the client, the DSN, the transport's place in it, and
//! the payloads of events. What it lacks stands beside it: transactions that say
//! where their name is from (`transaction`), a way with several requests at once
//! (`transport`) and a queue that counts (`queue`), limits that only grow (`limits`),
//! reports of what was discarded (`losses`). Its global hub is not used: there
//! is one client a project.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use sentry::protocol::Uuid;
use sentry::types::Dsn;
use sentry::{Client, ClientOptions, Envelope};
use tokio::runtime::Handle;

use super::Exporter;
use crate::config::Given;
use crate::span::{Kind, Span, SpanId, Status};
use crate::telemetry::Counters;

pub mod config;
mod dsc;
mod envelope;
mod family;
mod issue;
mod limits;
mod losses;
pub mod otlp;
mod queue;
mod subject;
mod transaction;
mod transport;
mod words;

pub use config::Config;

use envelope::{Sealer, Unsealed};
use family::{Families, Family};
use issue::Caps;
use limits::Category;
use losses::Reason;
use queue::Shared;
use subject::Subject;
use transaction::{SPANS, Transaction};
use transport::Factory;

/// How often losses are told.
const REPORT: Duration = Duration::from_secs(30);
/// How long what is given up may take to be counted.
const SETTLE: Duration = Duration::from_millis(100);
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

/// A report is of no trace.
const NO_TRACE: Option<&()> = None;

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
    sealer: Sealer,
    caps: Caps,
    start: Instant,
    reported: Instant,
    /// At the end there is time to wait for a place in the queue.
    until: Option<Instant>,
    closed: bool,
}

impl SentryExporter {
    /// An exporter by `config`, sending from tasks on `runtime`. `tls`: whom it trusts. Connects
    /// when there is something to send.
    ///
    /// # Errors
    /// If no HTTP client can be made.
    pub fn new(
        config: Config,
        tls: rustls::ClientConfig,
        runtime: &Handle,
        counters: &Arc<Counters>,
    ) -> Result<Self, String> {
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
            // Never the key: it is a secret of a kind.
            let to = format!("{}://{}/{}", dsn.scheme(), dsn.host(), dsn.project_id());
            let component = counters
                .components
                .register("sentry_span_exporter", &to, family::WAITING);
            let shared = Arc::new(Shared::new(counters.clone(), component));
            let factory = Factory {
                http: http.clone(),
                runtime: runtime.clone(),
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
            sealer: Sealer::default(),
            start: now,
            reported: now,
            until: None,
            closed: false,
        })
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Spans that wait for the rest of their transaction: of all projects, told by the first.
    fn tell(&self) {
        if let Some(project) = self.projects.first() {
            project.shared.component.waiting.set(self.families.waiting() as u64);
        }
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
        if let Some(project) = self.projects.get(index) {
            let spans = family.calls.len() as u64 + 1;
            project.shared.component.processed.add(spans);
        }
        let failed = family.root.kind == Kind::Server && matches!(family.root.status, Status::Error(_));
        if failed {
            self.issue(index, &subject, &family);
        }
        if self.config.transactions {
            self.transaction(index, &subject, &family);
        }
    }

    fn issue(&mut self, index: usize, subject: &Subject, family: &Family) {
        let Some(project) = self.projects.get(index) else {
            return;
        };
        // What may not be sent is no reason to keep silent later.
        if !project.shared.allows(Category::Error) {
            project.shared.lost(Reason::RateLimit, Category::Error, 0);
            return;
        }
        let group = issue::group(&family.root, &subject.service);
        let Some(suppressed) = self.caps.admit(group, family.root.end_unix_ns) else {
            project.shared.lost(Reason::SampleRate, Category::Error, 0);
            return;
        };
        if !project.has_room(Category::Error, 0, self.until) {
            return;
        }
        let id: [u8; 16] = rand::random();
        let mut event = issue::event(family, subject, Uuid::from_bytes(id), suppressed);
        let trace = dsc::context(&family.root, subject, &project.dsn, self.config.share);
        let sealer = &mut self.sealer;
        let mut seal = |event: &_| sealer.seal(Some(&id), Some(&trace), "event", None, event);
        let mut sealed = seal(&event);
        if sealed == Err(Unsealed::TooLarge) {
            // The failure itself matters more than what was called before.
            event.breadcrumbs.values.clear();
            sealed = seal(&event);
        }
        match sealed {
            Ok(bytes) => project.hand_over(bytes),
            Err(_) => project.none(Reason::TooLarge, Category::Error, 0),
        }
    }

    /// A transaction, and more of them where its calls are too many or too large for one.
    fn transaction(&mut self, index: usize, subject: &Subject, family: &Family) {
        let Some(project) = self.projects.get(index) else {
            return;
        };
        let (root, mut calls) = (&family.root, family.calls.as_slice());
        let all = calls.len() as u64 + 1;
        let shared = &project.shared;
        if !dsc::kept_for_itself(root) && !self.config.share.keeps_randomness(dsc::random(root)) {
            shared.lost(Reason::SampleRate, Category::Transaction, all);
            return;
        }
        let trace = dsc::context(root, subject, &project.dsn, self.config.share);
        let mut most = SPANS;
        let mut first = true;
        while first || !calls.is_empty() {
            let (part, rest) = calls.split_at(calls.len().min(most));
            // The request may stand alone; what follows it has a call at least.
            let least = usize::from(!first);
            if !project.has_room(Category::Transaction, part.len() as u64 + 1, self.until) {
                calls = rest;
                first = false;
                continue;
            }
            let (id, below): ([u8; 16], SpanId) = rand::random();
            let payload = match first {
                true => Transaction::new(root, part, subject, &id),
                false => Transaction::more(root, part, subject, &id, &below),
            };
            let sealed = self
                .sealer
                .seal(Some(&id), Some(&trace), "transaction", Some(part.len()), &payload);
            match sealed {
                Ok(bytes) => project.hand_over(bytes),
                // Half as many, in as many more.
                Err(Unsealed::TooLarge) if part.len() > least => {
                    shared.leave();
                    most = (part.len() / 2).max(least);
                    continue;
                }
                Err(_) if first => project.none(Reason::TooLarge, Category::Transaction, 1),
                Err(_) => project.none(Reason::TooLarge, Category::Span, part.len() as u64),
            }
            most = most.max(1);
            calls = rest;
            first = false;
        }
    }

    fn report(&mut self) {
        self.reported = Instant::now();
        for project in &self.projects {
            if !project.has_room(Category::Report, 0, self.until) {
                continue;
            }
            let report = project.shared.losses.report(envelope::now());
            let sealed = report.map(|r| self.sealer.seal(None, NO_TRACE, "client_report", None, &r));
            match sealed {
                Some(Ok(bytes)) => project.hand_over(bytes),
                _ => project.shared.leave(),
            }
        }
    }
}

impl Project {
    /// Whether one more may be made: before it costs anything. What may not is counted; what
    /// may has its place in the queue. `until`: how long may be waited for one.
    fn has_room(&self, category: Category, spans: u64, until: Option<Instant>) -> bool {
        let reason = if !self.shared.allows(category) {
            Reason::RateLimit
        } else if !self.shared.enter(until) {
            Reason::QueueOverflow
        } else {
            return true;
        };
        self.shared.lost(reason, category, spans);
        match reason {
            Reason::QueueOverflow => self.shared.component.unprocessed(spans, "queue_full"),
            _ => self.shared.component.exported(spans, reason.word().into()),
        }
        false
    }

    /// It was not made after all: gives its place back.
    fn none(&self, reason: Reason, category: Category, spans: u64) {
        self.shared.leave();
        self.shared.lost(reason, category, spans);
        self.shared.component.exported(spans, reason.word().into());
    }

    fn hand_over(&self, bytes: Vec<u8>) {
        match Envelope::from_bytes_raw(bytes) {
            Ok(envelope) => self.client.send_envelope(envelope),
            Err(_) => self.shared.leave(),
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
        self.tell();
    }

    fn tick(&mut self) {
        let mut out = Vec::new();
        self.families.due(self.now_ns(), &mut out);
        self.send(&mut out);
        self.tell();
        if self.reported.elapsed() >= REPORT {
            self.report();
        }
    }

    fn shutdown(&mut self, deadline: Duration) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        let end = Instant::now() + deadline;
        self.until = Some(end);
        let mut out = Vec::new();
        self.families.finish(&mut out);
        self.send(&mut out);
        self.report();
        self.tell();
        for project in &self.projects {
            let left = end.saturating_duration_since(Instant::now());
            if !project.client.flush(Some(left)) {
                let waiting = project.shared.waiting();
                tracing::warn!("{waiting} envelopes for Sentry were not sent in time");
                project.shared.give_up();
                project.shared.drained(SETTLE);
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
