//! Where requests go, from what was configured. Whatever can be known to be
//! wrong is refused before the agent starts to observe.

use std::path::Path;

use reqwest::Url;

use crate::config::{Endpoint, Error, Given, Otlp, Protocol};

/// A receiver's address, checked.
#[derive(Clone, Debug)]
pub struct Target {
    /// Absolute URL; for HTTP with its path, for gRPC the authority is what counts.
    pub url: Url,
    /// Who gave it.
    pub source: &'static str,
    /// A path of a Unix socket (gRPC, `unix:///path`).
    pub socket: Option<String>,
}

/// Where the convention puts receivers (OTLP specification, "Default Port").
const DEFAULT_GRPC: &str = "http://localhost:4317";
const DEFAULT_HTTP: &str = "http://localhost:4318";
/// Path for traces below a base endpoint.
const TRACES_PATH: &str = "v1/traces";
/// The same for metrics.
const METRICS_PATH: &str = "v1/metrics";

impl Target {
    /// Of the settings.
    ///
    /// # Errors
    /// Names the flag or variable that gave an unusable address.
    pub fn of(otlp: &Otlp) -> Result<Self, Error> {
        Self::of_signal(otlp, TRACES_PATH)
    }

    /// The same for metrics.
    ///
    /// # Errors
    /// As there.
    pub fn of_metrics(otlp: &Otlp) -> Result<Self, Error> {
        Self::of_signal(otlp, METRICS_PATH)
    }

    fn of_signal(otlp: &Otlp, signal: &str) -> Result<Self, Error> {
        let protocol = otlp.protocol.value;
        let default = Given::by_default(Endpoint {
            url: if protocol == Protocol::Grpc {
                DEFAULT_GRPC
            } else {
                DEFAULT_HTTP
            }
            .to_owned(),
            is_base: true,
        });
        let Given {
            value: endpoint,
            source,
        } = otlp.endpoint.as_ref().unwrap_or(&default);
        let source = *source;
        let text = endpoint.url.trim();

        let socket = text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:"));
        if let Some(socket) = socket {
            if protocol != Protocol::Grpc {
                return Err(Error::new(source, "a Unix socket is reached only by protocol grpc"));
            }
            if !Path::new(socket).is_absolute() {
                return Err(Error::new(source, "needs an absolute path: unix:///run/otlp.sock"));
            }
        }
        let url = match (socket, text.contains("://"), protocol) {
            (Some(_), ..) => "http://localhost".to_owned(),
            (None, true, _) => text.to_owned(),
            (None, false, Protocol::Grpc) if otlp.insecure => format!("http://{text}"),
            (None, false, Protocol::Grpc) => format!("https://{text}"),
            (None, false, Protocol::HttpProtobuf | Protocol::HttpJson) => {
                return Err(Error::new(source, "must start with http:// or https://"));
            }
        };
        // Errors don't repeat the text: it may hold credentials.
        let mut url = Url::parse(&url).map_err(|problem| Error::new(source, format_args!("is no URL: {problem}")))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Error::new(
                source,
                format_args!("scheme {} is not http or https", url.scheme()),
            ));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Error::new(
                source,
                "credentials in the URL are not supported; give them in OTEL_EXPORTER_OTLP_HEADERS",
            ));
        }
        if protocol != Protocol::Grpc && endpoint.is_base {
            let base = url.path().trim_end_matches('/').to_owned();
            // One given for spans and used for metrics as well.
            let base = base
                .strip_suffix("/v1/traces")
                .filter(|_| signal != TRACES_PATH)
                .unwrap_or(&base);
            // Forgiving on the command line only: a variable means what the specification says.
            if !(source.starts_with("--") && base.ends_with(signal)) {
                let path = format!("{base}/{signal}");
                url.set_path(&path);
            }
        }
        let odd_port = match protocol {
            Protocol::Grpc => 4318,
            Protocol::HttpProtobuf | Protocol::HttpJson => 4317,
        };
        if url.port() == Some(odd_port) && !otlp.protocol.is_explicit() {
            tracing::warn!(
                "{source}: port {odd_port} is by convention the other protocol's; say --otlp-protocol grpc if it is"
            );
        }
        Ok(Target {
            url,
            source,
            socket: socket.map(str::to_owned),
        })
    }

    /// Whether TLS is spoken.
    pub fn is_tls(&self) -> bool {
        self.url.scheme() == "https"
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn target(url: &str, source: &'static str, protocol: Protocol) -> Result<String, String> {
        let is_base = source != "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
        let otlp = Otlp {
            endpoint: Some(Given {
                value: Endpoint {
                    url: url.into(),
                    is_base,
                },
                source,
            }),
            protocol: Given {
                value: protocol,
                source: "--otlp-protocol",
            },
            ..Otlp::default()
        };
        Target::of(&otlp).map(|t| t.url.to_string()).map_err(|e| e.to_string())
    }

    #[test]
    fn http_addresses_follow_the_specification() {
        const BASE: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
        const TRACES: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
        for (source, given, used) in [
            (BASE, "http://collector:4318", "http://collector:4318/v1/traces"),
            (BASE, "http://collector:4318/", "http://collector:4318/v1/traces"),
            (BASE, "https://host/otlp/", "https://host/otlp/v1/traces"),
            (TRACES, "http://collector:4318", "http://collector:4318/"),
            (
                TRACES,
                "http://collector:4318/v1/traces",
                "http://collector:4318/v1/traces",
            ),
            (
                "--otlp-endpoint",
                "http://collector:4318",
                "http://collector:4318/v1/traces",
            ),
            (
                "--otlp-endpoint",
                "http://collector:4318/v1/traces",
                "http://collector:4318/v1/traces",
            ),
        ] {
            assert_eq!(
                target(given, source, Protocol::HttpProtobuf).as_deref(),
                Ok(used),
                "{source}={given}"
            );
        }
    }

    #[test]
    fn a_grpc_address_needs_no_scheme() {
        let otlp = |insecure| Otlp {
            endpoint: Some(Given {
                value: Endpoint {
                    url: "collector:4317".into(),
                    is_base: true,
                },
                source: "OTEL_EXPORTER_OTLP_ENDPOINT",
            }),
            protocol: Given {
                value: Protocol::Grpc,
                source: "OTEL_EXPORTER_OTLP_PROTOCOL",
            },
            insecure,
            ..Otlp::default()
        };
        assert!(Target::of(&otlp(false)).unwrap().is_tls());
        assert!(!Target::of(&otlp(true)).unwrap().is_tls());
    }

    #[test]
    fn without_an_endpoint_the_protocols_port_on_this_host_is_used() {
        assert_eq!(
            Target::of(&Otlp::default()).unwrap().url.as_str(),
            "http://localhost:4318/v1/traces"
        );
        let grpc = Otlp {
            protocol: Given {
                value: Protocol::Grpc,
                source: "--otlp-protocol",
            },
            ..Otlp::default()
        };
        assert_eq!(Target::of(&grpc).unwrap().url.port(), Some(4317));
    }

    #[test]
    fn what_cannot_work_is_refused_by_its_name_and_without_its_secrets() {
        const NAME: &str = "--otlp-endpoint";
        for (given, protocol, part) in [
            ("localhost:4318", Protocol::HttpProtobuf, "must start with http"),
            ("http://", Protocol::HttpProtobuf, "is no URL"),
            ("ftp://host", Protocol::HttpProtobuf, "scheme ftp"),
            ("http://host:99999", Protocol::Grpc, "is no URL"),
            ("unix:///run/otlp.sock", Protocol::HttpProtobuf, "only by protocol grpc"),
            (
                "https://me:hunter2@host",
                Protocol::HttpProtobuf,
                "OTEL_EXPORTER_OTLP_HEADERS",
            ),
        ] {
            let error = target(given, NAME, protocol).unwrap_err();
            assert!(error.starts_with(NAME) && error.contains(part), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
