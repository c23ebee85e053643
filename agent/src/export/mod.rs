//! Where spans go: console, JSON lines, OTLP, Sentry. One file or folder an exporter.

use crate::span::Span;

pub mod console;
pub mod json;
pub mod otlp;
mod plain;
pub mod sentry;
pub mod summary;

#[cfg(test)]
pub(crate) mod example;

/// Takes finished spans. Never blocks for long and never panics: what can't be
/// taken is counted and dropped.
pub trait Exporter: Send {
    /// Takes a batch; `spans` share no order but that of their end.
    fn export(&mut self, spans: &[Span]);

    /// Called between batches, at least every 100 ms: time to redraw or to flush.
    fn tick(&mut self) {}

    /// Writes out what is held, within `deadline`.
    fn shutdown(&mut self, deadline: std::time::Duration);
}
