//! The Sentry exporter against Sentry's own code and servers that speak its
//! protocol. See `peers` for what is installed.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

mod behaviour;
mod bugsink;
mod issues;
mod normaliser;
mod peers;
mod sdk;
mod sink;
mod spans;
mod spotlight;
mod tree;
mod trust;

use std::sync::{Arc, OnceLock};

use tracewire::export::sentry::config::Secret;
use tracewire::export::sentry::{self, Config, SentryExporter};
use tracewire::telemetry::Counters;

/// Where exporters send from.
fn runtime() -> tokio::runtime::Handle {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    let make = || {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(1).enable_all().build().unwrap()
    };
    RUNTIME.get_or_init(make).handle().clone()
}

/// An exporter to that DSN.
fn exporter(dsn: &str, change: impl FnOnce(&mut Config)) -> (SentryExporter, Arc<Counters>) {
    let mut config = Config {
        default: Some(Secret::parse(dsn).unwrap()),
        instance: Some("0123456789abcdef0123456789abcdef".into()),
        ..Config::default()
    };
    change(&mut config);
    let counters = Arc::new(Counters::default());
    let exporter = SentryExporter::new(config, sentry::tls(None).unwrap(), &runtime(), &counters).unwrap();
    (exporter, counters)
}
