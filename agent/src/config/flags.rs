//! Flags about export and the log. They win over the environment. There is
//! none for headers: command lines are public (`/proc/PID/cmdline`), and
//! headers hold tokens.

use std::path::PathBuf;

use super::{Compression, LogLevel, Protocol};

/// What standard output shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// Traces as trees, for people
    Tree,
    /// One JSON object a span, for programs
    Json,
    /// Nothing
    None,
}

impl Output {
    pub(super) fn of_word(word: &str) -> Option<Self> {
        match word.to_ascii_lowercase().as_str() {
            "tree" => Some(Output::Tree),
            "json" => Some(Output::Json),
            "none" => Some(Output::None),
            _ => None,
        }
    }
}

/// Whether calls are joined with the requests that they are made for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Links {
    /// By probes in the observed programs
    #[default]
    On,
    /// No: nothing but sockets (and TLS libraries) is probed
    Off,
}

impl Links {
    pub(crate) fn of_word(word: &str) -> Option<Self> {
        match word.trim().to_ascii_lowercase().as_str() {
            "on" => Some(Links::On),
            "off" => Some(Links::Off),
            _ => None,
        }
    }
}

/// Where spans and numbers go.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Export")]
pub struct ExportFlags {
    /// What standard output shows
    #[arg(long, value_enum, value_name = "FORM")]
    pub output: Option<Output>,
    /// Send spans to this OTLP receiver: http://HOST:4318 (HTTP) or http://HOST:4317 (gRPC).
    /// Also OTEL_EXPORTER_OTLP_ENDPOINT; headers only by OTEL_EXPORTER_OTLP_HEADERS
    #[arg(long, value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    /// Also OTEL_EXPORTER_OTLP_PROTOCOL; default http/protobuf
    #[arg(long, value_enum, value_name = "PROTOCOL")]
    pub otlp_protocol: Option<Protocol>,
    /// Also OTEL_EXPORTER_OTLP_COMPRESSION; default none
    #[arg(long, value_enum, value_name = "ALGORITHM")]
    pub otlp_compression: Option<Compression>,
    /// Trust this certificate authority (PEM) instead of the well-known ones.
    /// Also OTEL_EXPORTER_OTLP_CERTIFICATE
    #[arg(long, value_name = "FILE")]
    pub otlp_certificate: Option<PathBuf>,
    /// Also append spans to this file as OTLP JSON, a request a line
    #[arg(long, value_name = "FILE")]
    pub otlp_file: Option<PathBuf>,
    /// Answer /metrics, /healthz and /readyz at this address, like 127.0.0.1:9464; nothing listens
    /// unless it is given
    #[arg(long, value_name = "ADDRESS")]
    pub health_listen: Option<String>,
}

/// The agent's own log.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct LogFlags {
    /// Least severe message shown on standard error; also OTEL_LOG_LEVEL
    #[arg(long, value_enum, value_name = "LEVEL", global = true)]
    pub log_level: Option<LogLevel>,
    /// Read settings from this file (YAML), too; flags and variables win. See `tracewire config`
    #[arg(long, value_name = "FILE", env = "TRACEWIRE_CONFIG", global = true)]
    pub config: Option<PathBuf>,
}
