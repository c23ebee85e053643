//! How the agent runs in a round: what it is told beside whom to observe.

use std::ffi::OsString;
use std::path::Path;

use clap::ValueEnum;

use super::sink::Sink;

/// One way to run the agent; each is measured against the same rounds without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Variant {
    /// As it comes, spans sent as OTLP over HTTP
    On,
    /// Without the probes that find parents: sockets only
    LinksOff,
    /// Contexts are written to requests, too, whatever the trial of the kernel says
    Inject,
    /// Spans are made and thrown away
    NoExport,
    /// OTLP over gRPC
    Grpc,
    /// OTLP over HTTP, compressed
    Gzip,
    /// Sentry: a transaction a trace
    Sentry,
    /// OTLP JSON in a file, in memory
    File,
    /// A JSON line a span on standard output, thrown away
    Json,
}

impl Variant {
    /// Those that differ in where spans go; the first is the measure of the others.
    pub const EXPORTERS: [Variant; 7] = [
        Variant::NoExport,
        Variant::On,
        Variant::Grpc,
        Variant::Gzip,
        Variant::File,
        Variant::Json,
        Variant::Sentry,
    ];

    /// Its name, as on the command line.
    pub fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// The agent's arguments.
    pub fn arguments(self, sink: &Sink, folder: &Path) -> Vec<OsString> {
        let output = if self == Variant::Json { "json" } else { "none" };
        let mut all: Vec<OsString> = ["--output", output].map(OsString::from).into();
        let mut add = |words: &[&str]| all.extend(words.iter().map(OsString::from));
        let http = format!("http://{}", sink.http);
        match self {
            Variant::NoExport | Variant::Json | Variant::Sentry => {}
            Variant::Grpc => add(&[
                "--otlp-endpoint",
                &format!("http://{}", sink.grpc),
                "--otlp-protocol",
                "grpc",
            ]),
            Variant::File => {
                add(&["--otlp-file"]);
                all.push(folder.join("spans").into());
            }
            Variant::On => add(&["--otlp-endpoint", &http]),
            Variant::LinksOff => add(&["--otlp-endpoint", &http, "--links", "off"]),
            Variant::Inject => add(&["--otlp-endpoint", &http, "--inject", "--inject-despite-trial"]),
            Variant::Gzip => add(&["--otlp-endpoint", &http, "--otlp-compression", "gzip"]),
        }
        all
    }

    /// Its variables.
    pub fn variables(self, sink: &Sink) -> Vec<(&'static str, String)> {
        if self == Variant::Sentry {
            return vec![("SENTRY_DSN", format!("http://key@{}/1", sink.http))];
        }
        Vec::new()
    }

    /// Whether the sink can count its spans.
    pub fn is_counted(self) -> bool {
        !matches!(
            self,
            Variant::NoExport | Variant::Gzip | Variant::Sentry | Variant::File | Variant::Json
        )
    }
}
