//! What the two services and the load generator share: the generated code,
//! how a service listens and ends, and the schedule by which it is slow or
//! fails. Bias: everything goes by counting, nothing by chance, so that two
//! runs of the same length make the same calls.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tonic::transport::server::{Router, TcpIncoming};

/// Messages, clients and servers of package `bank.v1`.
pub mod bank {
    #![allow(missing_docs, clippy::all, reason = "generated")]
    tonic::include_proto!("bank.v1");
}

/// Serves until SIGINT or SIGTERM. Prints `listening on ADDRESS` once
/// connections are taken; port 0 lets the system choose.
///
/// # Errors
/// When the address can't be bound or the listener breaks.
pub async fn serve(name: &str, listen: SocketAddr, router: Router) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    println!("{name} listening on {}", listener.local_addr()?);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    };
    Ok(router.serve_with_incoming_shutdown(incoming, stop).await?)
}

/// Counts calls: the schedule of slowness and failure.
#[derive(Debug, Default)]
pub struct Turn(AtomicU64);

impl Turn {
    /// Number of this call, from 1.
    pub fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// One call in eight waits, 30 to 120 ms.
pub async fn now_and_then_slow(turn: u64) {
    if turn.is_multiple_of(8) {
        tokio::time::sleep(Duration::from_millis(30 + turn / 8 % 4 * 30)).await;
    }
}
