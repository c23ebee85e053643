//! Settings of the OTLP exporter: `OTEL_EXPORTER_OTLP_*`, whose
//! `OTEL_EXPORTER_OTLP_TRACES_*` forms win (SPEC `protocol/exporter.md`).
//! Header values are secrets: they can be sent, but not shown.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;

use super::{Environment, Error, ExportFlags, Given};

/// How OTLP is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Protocol {
    /// gRPC
    #[value(name = "grpc")]
    Grpc,
    /// Protobuf by HTTP POST
    #[value(name = "http/protobuf")]
    HttpProtobuf,
    /// JSON by HTTP POST
    #[value(name = "http/json")]
    HttpJson,
}

impl Protocol {
    fn of_word(word: &str) -> Option<Self> {
        match word.to_ascii_lowercase().as_str() {
            "grpc" => Some(Protocol::Grpc),
            "http/protobuf" => Some(Protocol::HttpProtobuf),
            "http/json" => Some(Protocol::HttpJson),
            _ => None,
        }
    }
}

/// How requests are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Compression {
    /// Not at all
    #[default]
    None,
    /// gzip (RFC 1952)
    Gzip,
}

impl Compression {
    fn of_word(word: &str) -> Option<Self> {
        match word.to_ascii_lowercase().as_str() {
            "none" => Some(Compression::None),
            "gzip" => Some(Compression::Gzip),
            _ => None,
        }
    }
}

/// A receiver's address as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The URL.
    pub url: String,
    /// Whether `v1/traces` is still to be added for HTTP (`…_TRACES_ENDPOINT` is used as it is).
    pub is_base: bool,
}

/// Header fields that go with each request, secret.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// Names, lower case, and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// One field.
    pub fn of(name: &str, value: &str) -> Self {
        Headers(vec![(name.to_owned(), value.to_owned())])
    }

    /// `text` with the values blotted out.
    pub fn redact(&self, text: &str) -> String {
        // `Bearer TOKEN` is also looked for as TOKEN; shorter words are no secrets.
        let words = self
            .0
            .iter()
            .flat_map(|(_, value)| std::iter::once(value.as_str()).chain(value.split_whitespace()));
        words
            .filter(|w| w.len() >= 4)
            .fold(text.to_owned(), |text, word| text.replace(word, "…"))
    }

    /// `k1=v1,k2=v2`, values percent-encoded (W3C Baggage §3.2 without properties).
    fn parse(text: &str, setting: &'static str) -> Result<Self, Error> {
        let mut fields: Vec<(String, String)> = Vec::new();
        for (place, item) in text.split(',').map(str::trim).filter(|i| !i.is_empty()).enumerate() {
            let malformed = |problem: &str| Error::new(setting, format_args!("entry {} {problem}", place + 1));
            let (name, value) = item.split_once('=').ok_or_else(|| malformed("has no `=`"))?;
            let name = name.trim().to_ascii_lowercase();
            if name.is_empty() || !name.bytes().all(is_token) {
                return Err(malformed("has no valid header name before its `=`"));
            }
            let value = percent_decode_str(value.trim())
                .decode_utf8()
                .map_err(|_| malformed("has a value that is not percent-encoded UTF-8"))?
                .into_owned();
            if value.bytes().any(|b| (b < 0x20 && b != b'\t') || b == 0x7f) {
                return Err(malformed("has a control character in its value"));
            }
            fields.retain(|(n, _)| *n != name);
            fields.push((name, value));
        }
        Ok(Headers(fields))
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.0.iter().map(|(name, _)| (name, "…")))
            .finish()
    }
}

/// RFC 9110 §5.6.2 `tchar`.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// All settings of the OTLP exporter.
#[derive(Clone, Debug)]
pub struct Otlp {
    /// Where to; `None`: the protocol's default on this host.
    pub endpoint: Option<Given<Endpoint>>,
    /// Where else to; they get the same.
    pub more: Vec<Given<Endpoint>>,
    /// How.
    pub protocol: Given<Protocol>,
    /// With which header fields.
    pub headers: Headers,
    /// Compressed?
    pub compression: Compression,
    /// Longest wait for one request's response, 10 s.
    pub timeout: Duration,
    /// PEM file of the certificate authority to trust instead of the well-known ones.
    pub certificate: Option<Given<PathBuf>>,
    /// PEM file of the private key for mutual TLS.
    pub client_key: Option<Given<PathBuf>>,
    /// PEM file of the certificate (chain) for mutual TLS.
    pub client_certificate: Option<Given<PathBuf>>,
    /// Whether an endpoint of no scheme means `http` (gRPC).
    pub insecure: bool,
}

impl Default for Otlp {
    fn default() -> Self {
        Otlp {
            endpoint: None,
            more: Vec::new(),
            protocol: Given::by_default(Protocol::HttpProtobuf),
            headers: Headers::default(),
            compression: Compression::None,
            timeout: Duration::from_secs(10),
            certificate: None,
            client_key: None,
            client_certificate: None,
            insecure: false,
        }
    }
}

/// Whose variables win over the general ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    Traces,
    Metrics,
}

/// The signal's variable and the general one.
macro_rules! names {
    ($signal:expr, $name:literal) => {
        match $signal {
            Signal::Traces => &[
                concat!("OTEL_EXPORTER_OTLP_TRACES_", $name),
                concat!("OTEL_EXPORTER_OTLP_", $name),
            ],
            Signal::Metrics => &[
                concat!("OTEL_EXPORTER_OTLP_METRICS_", $name),
                concat!("OTEL_EXPORTER_OTLP_", $name),
            ],
        }
    };
}

impl Otlp {
    /// The settings of each receiver.
    pub fn each(&self) -> impl Iterator<Item = Otlp> {
        let first = Otlp {
            more: Vec::new(),
            ..self.clone()
        };
        let others = self.more.iter().map(|endpoint| Otlp {
            endpoint: Some(endpoint.clone()),
            more: Vec::new(),
            ..self.clone()
        });
        std::iter::once(first).chain(others)
    }

    pub(super) fn read(flags: &ExportFlags, env: &mut Environment<'_>) -> Result<Self, Error> {
        Self::read_signal(flags, env, Signal::Traces)
    }

    pub(super) fn read_signal(flags: &ExportFlags, env: &mut Environment<'_>, signal: Signal) -> Result<Self, Error> {
        let default = Otlp::default();
        let endpoint = match &flags.otlp_endpoint {
            Some(url) => Some(Given {
                value: Endpoint {
                    url: url.clone(),
                    is_base: true,
                },
                source: "--otlp-endpoint",
            }),
            None => env
                .text(names!(signal, "ENDPOINT"))?
                .map(|Given { value: url, source }| Given {
                    value: Endpoint {
                        url,
                        is_base: !matches!(
                            source,
                            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" | "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"
                        ),
                    },
                    source,
                }),
        };
        // Several receivers: each gets all.
        let mut more = Vec::new();
        let endpoint = endpoint.map(|mut given| {
            let mut urls = given.value.url.split(',').map(str::trim).filter(|url| !url.is_empty());
            let first = urls.next().unwrap_or_default().to_owned();
            more = urls
                .map(|url| Given {
                    value: Endpoint {
                        url: url.to_owned(),
                        is_base: given.value.is_base,
                    },
                    source: given.source,
                })
                .collect();
            given.value.url = first;
            given
        });
        let protocol = match flags.otlp_protocol {
            Some(value) => Given {
                value,
                source: "--otlp-protocol",
            },
            None => env
                .word(names!(signal, "PROTOCOL"), Protocol::of_word)
                .unwrap_or(default.protocol),
        };
        let headers = match env.text(names!(signal, "HEADERS"))? {
            Some(given) => Headers::parse(&given.value, given.source)?,
            None => Headers::default(),
        };
        let compression = match flags.otlp_compression {
            Some(value) => value,
            None => env
                .word(names!(signal, "COMPRESSION"), Compression::of_word)
                .map_or(default.compression, |g| g.value),
        };
        let file = |names: &[&'static str]| -> Result<Option<Given<PathBuf>>, Error> {
            Ok(env.text(names)?.map(|g| Given {
                value: PathBuf::from(g.value),
                source: g.source,
            }))
        };
        let certificate = match &flags.otlp_certificate {
            Some(path) => Some(Given {
                value: path.clone(),
                source: "--otlp-certificate",
            }),
            None => file(names!(signal, "CERTIFICATE"))?,
        };
        let client_key = file(names!(signal, "CLIENT_KEY"))?;
        let client_certificate = file(names!(signal, "CLIENT_CERTIFICATE"))?;
        let timeout = env.milliseconds(names!(signal, "TIMEOUT"))?.unwrap_or(default.timeout);
        let insecure = env.boolean(names!(signal, "INSECURE")).is_some_and(|g| g.value);
        Ok(Otlp {
            endpoint,
            more,
            protocol,
            headers,
            compression,
            timeout,
            certificate,
            client_key,
            client_certificate,
            insecure,
        })
    }
}
