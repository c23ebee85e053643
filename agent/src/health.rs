//! What the agent says of itself over HTTP, for those who keep it running:
//! `/metrics` (OpenMetrics), `/healthz` (it lives), `/readyz` (probes are in
//! place). Nothing listens unless an address was given (`--health-listen`);
//! loopback is the one to give. Answers nothing about single requests.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::runtime::Handle;

use crate::clock;
use crate::metrics::{Metrics, prometheus};
use crate::telemetry::Counters;

/// Time without a turn of the reader after which the agent is said to hang, ns.
const HANG: u64 = 15_000_000_000;

/// What `/healthz` and `/readyz` go by.
#[derive(Debug, Default)]
pub struct Pulse {
    ready: AtomicBool,
    /// CLOCK_BOOTTIME of the reader's last turn, ns; 0 before the first.
    turn: AtomicU64,
}

impl Pulse {
    /// Probes are in place, or no longer.
    pub fn ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }

    /// The reader took a turn.
    pub fn beat(&self, now_ns: u64) {
        self.turn.store(now_ns, Ordering::Relaxed);
    }

    fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    fn is_alive(&self, now_ns: u64) -> bool {
        let turn = self.turn.load(Ordering::Relaxed);
        turn == 0 || now_ns.saturating_sub(turn) < HANG
    }
}

/// Whether an address can be listened at: to be asked before anything is attached.
///
/// # Errors
/// In words: an address that is none, or that can't be had.
pub fn check(address: &str) -> Result<(), String> {
    listen(address).map(drop)
}

fn listen(address: &str) -> Result<std::net::TcpListener, String> {
    let wrong = |e: &dyn std::fmt::Display| format!("`{address}`: {e}; an address like 127.0.0.1:9464 is expected");
    let resolved = address.to_socket_addrs().map_err(|e| wrong(&e))?.next();
    let resolved = resolved.ok_or_else(|| wrong(&"names no address"))?;
    std::net::TcpListener::bind(resolved).map_err(|e| wrong(&e))
}

/// Listens from now on: the address that it got.
///
/// # Errors
/// In words: an address that is none, or that can't be had.
pub fn serve(
    address: &str,
    runtime: &Handle,
    metrics: Arc<Metrics>,
    counters: Arc<Counters>,
    pulse: Arc<Pulse>,
) -> Result<SocketAddr, String> {
    let listener = listen(address)?;
    let wrong = |e: &dyn std::fmt::Display| format!("`{address}`: {e}");
    listener.set_nonblocking(true).map_err(|e| wrong(&e))?;
    let got = listener.local_addr().map_err(|e| wrong(&e))?;
    let _guard = runtime.enter();
    let listener = tokio::net::TcpListener::from_std(listener).map_err(|e| wrong(&e))?;
    let live = Arc::clone(&pulse);
    let router = Router::new()
        .route(
            "/metrics",
            get(move || async move {
                let text = prometheus::text(&metrics, &counters);
                ([(header::CONTENT_TYPE, prometheus::CONTENT_TYPE)], text)
            }),
        )
        .route(
            "/healthz",
            get(move || async move { answer(live.is_alive(clock::boot_ns()), "the reader hangs") }),
        )
        .route(
            "/readyz",
            get(move || async move { answer(pulse.is_ready(), "probes are not in place") }),
        );
    runtime.spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!("health page: {error}");
        }
    });
    Ok(got)
}

fn answer(well: bool, problem: &'static str) -> impl IntoResponse {
    if well {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("{problem}\n"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;
    use crate::export::example;

    fn ask(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn it_tells_life_readiness_and_numbers() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (metrics, counters, pulse) = (
            Arc::new(Metrics::new(true)),
            Arc::new(Counters::default()),
            Arc::default(),
        );
        let address = serve(
            "127.0.0.1:0",
            runtime.handle(),
            metrics.clone(),
            counters.clone(),
            Arc::clone(&pulse),
        )
        .unwrap();
        assert!(ask(address, "/healthz").starts_with("HTTP/1.1 200"));
        assert!(ask(address, "/readyz").starts_with("HTTP/1.1 503"));
        pulse.ready(true);
        assert!(ask(address, "/readyz").starts_with("HTTP/1.1 200"));
        pulse.beat(1);
        assert!(ask(address, "/healthz").contains("the reader hangs"));
        counters.spans.add(3);
        metrics.record(&[example::server(1, 2, None)]);
        let text = ask(address, "/metrics");
        for part in [
            "application/openmetrics-text",
            "tracewire_spans_total 3",
            "tracewire_spans_dropped_total{cause=\"pipeline\"} 0",
            "rpc_server_call_duration_seconds_count{",
            "service_name=\"greeter\"",
            "# EOF",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let wrong = serve("nowhere", runtime.handle(), metrics, counters, pulse).unwrap_err();
        assert!(wrong.contains("127.0.0.1:9464"), "{wrong}");
    }
}
