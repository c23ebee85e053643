//! The OTLP exporter against receivers that are not ours: by gRPC and by HTTP,
//! compressed. Each needs a program that a variable names, and is therefore not
//! run by default:
//!
//! ```text
//! python3 -m venv venv && venv/bin/pip install rotel
//! export ROTEL=$(echo venv/lib/python3*/site-packages/rotel/rotel-agent)
//!
//! go install go.opentelemetry.io/collector/cmd/builder@v0.150.0
//! builder --config agent/tests/backends/collector.yaml
//! export OTELCOL=$PWD/otelcol/otelcol
//!
//! # a module of its own, since Jaeger's replaces some of its dependencies
//! mkdir jaeger && cd jaeger && go mod init jaeger-build
//! cp "$(go mod download -json github.com/jaegertracing/jaeger@v1.76.0 | jq -r .Dir)"/go.{mod,sum} .
//! sed -i 's,^module .*,module jaeger-build,' go.mod
//! go mod edit -require github.com/jaegertracing/jaeger@v1.76.0
//! go build -mod=mod github.com/jaegertracing/jaeger/cmd/jaeger
//! export JAEGER=$PWD/jaeger
//!
//! cargo test -p tracewire --test backends -- --ignored
//! ```
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

mod collector;
mod jaeger;
mod receiver;
mod rotel;
