//! Traces to Sentry's OTLP endpoint: the spans as they are, with the attributes
//! that Sentry would otherwise have to guess. Relay tells an operation by the
//! older names only (`rpc.service`), so a gRPC span would be a `default` one.

use std::borrow::Cow;
use std::time::Duration;

use rustc_hash::FxHashMap;

use super::subject::{Subject, is_personal};
use super::{Config, words};
use crate::attribute::Value;
use crate::export::Exporter;
use crate::export::otlp::OtlpExporter;
use crate::span::{Kind, Span};

/// Path of Sentry's endpoint below its host.
const PATH: &str = "/integration/otlp";

/// Whether an OTLP endpoint is Sentry's.
pub fn is_sentry(url: &str) -> bool {
    url.contains(PATH)
}

/// Base endpoint of a DSN's project, without `v1/traces`, and the value of `x-sentry-auth`.
pub fn endpoint(dsn: &sentry::types::Dsn) -> (String, String) {
    let envelope = dsn.envelope_api_url().to_string();
    let base = envelope.trim_end_matches("envelope/").trim_end_matches('/');
    (
        format!("{base}{PATH}"),
        format!("sentry sentry_key={}", dsn.public_key()),
    )
}

/// OTLP with Sentry's attributes.
pub struct SentryOtlp {
    inner: OtlpExporter,
    config: Config,
    subjects: FxHashMap<u64, Subject>,
}

impl SentryOtlp {
    /// Around an exporter to that endpoint.
    pub fn new(inner: OtlpExporter, config: Config) -> Self {
        SentryOtlp {
            inner,
            config,
            subjects: FxHashMap::default(),
        }
    }

    fn dressed(&mut self, span: &Span) -> Span {
        if self.subjects.len() >= super::SUBJECTS {
            self.subjects.clear();
        }
        let config = &self.config;
        let subject = self.subjects.entry(span.resource.id).or_insert_with(|| {
            Subject::new(
                &span.resource,
                config.environment.as_deref(),
                config.release.as_deref(),
                config.instance.as_deref(),
            )
        });
        let mut span = span.clone();
        let server = span.kind == Kind::Server;
        span.attributes.retain(|(name, _)| !is_personal(name, server));
        let mut put = |key: &'static str, value: Value| span.attributes.push((Cow::Borrowed(key), value));
        put("sentry.environment", Value::Shared(subject.environment.as_str().into()));
        if let Some(release) = &subject.release {
            put("sentry.release", Value::Shared(release.as_str().into()));
        }
        put("sentry.platform", Value::Str(Cow::Borrowed(subject.platform)));
        let (op, origin, source) = (words::op(&span), words::origin(&span), words::source(&span));
        let name = span.name.clone();
        let mut put = |key: &'static str, value: Value| span.attributes.push((Cow::Borrowed(key), value));
        put("sentry.op", Value::Str(Cow::Borrowed(op)));
        put("sentry.origin", Value::Str(Cow::Borrowed(origin)));
        if server {
            put("sentry.segment.name", Value::Shared(name));
            put("sentry.span.source", Value::Str(Cow::Borrowed(source)));
        }
        span
    }
}

impl Exporter for SentryOtlp {
    fn export(&mut self, spans: &[Span]) {
        let share = self.config.share;
        let dressed: Vec<Span> = spans
            .iter()
            .filter(|span| super::dsc::kept_for_itself(span) || share.keeps_randomness(super::dsc::random(span)))
            .map(|span| self.dressed(span))
            .collect();
        self.inner.export(&dressed);
    }

    fn tick(&mut self) {
        self.inner.tick();
    }

    fn shutdown(&mut self, deadline: Duration) {
        self.inner.shutdown(deadline);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_endpoint_of_a_project() {
        let dsn = "https://abc@o1.ingest.sentry.io/42".parse().unwrap();
        let (url, auth) = endpoint(&dsn);
        assert_eq!(url, "https://o1.ingest.sentry.io/api/42/integration/otlp");
        assert_eq!(auth, "sentry sentry_key=abc");
        assert!(is_sentry(&url) && !is_sentry("http://collector:4318"));
    }
}
