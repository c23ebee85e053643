//! The OTLP exporter against receivers that are not ours: by gRPC and by HTTP,
//! compressed. Each needs a program that a variable names (ROTEL, OTELCOL, JAEGER), and is
//! therefore not run by default; `cargo xtask backends` makes the programs and runs all.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

mod collector;
mod jaeger;
mod receiver;
mod rotel;
