//! One request to the receiver and its answer, by gRPC or HTTP. Header values
//! are marked sensitive, redirects are not followed (they would carry the
//! headers elsewhere), and answers are read up to a limit.

use std::io::Write as _;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use flate2::Compression as Level;
use flate2::write::GzEncoder;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use prost::Message as _;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use tonic::client::Grpc;
use tonic::codec::CompressionEncoding;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};

use super::MAX_REQUEST_BYTES;
use super::codec::{EXPORT, EXPORT_METRICS, Encoded};
use super::endpoint::Target;
use super::proxy;
use super::retry::{Attempt, chain, of_grpc, of_http, word};
use super::tls::Tls;
use crate::config::{Compression, Error, Headers, Otlp, Protocol};

const USER_AGENT: &str = concat!("tracewire/", env!("CARGO_PKG_VERSION"));
/// Largest response that is read, bytes (OTLP specification).
const MAX_RESPONSE_BYTES: usize = 4 << 20;

/// The way to the receiver.
pub enum Transport {
    /// gRPC; connects at need and again after a loss.
    Grpc {
        /// The channel, with compression and limits.
        client: Grpc<Channel>,
        /// Header fields of each request.
        metadata: MetadataMap,
        /// The method that is called.
        method: &'static str,
    },
    /// HTTP POST of protobuf.
    Http {
        /// Pools connections.
        client: reqwest::Client,
        /// Where to.
        url: reqwest::Url,
        /// Header fields of each request.
        headers: HeaderMap,
        /// Whether bodies are compressed.
        gzip: bool,
        /// Makes JSON of a request, if JSON is spoken.
        json: Option<fn(&Bytes) -> Option<Bytes>>,
    },
}

impl Transport {
    /// A transport to `target`; nothing is sent yet. To be called within a tokio runtime.
    ///
    /// # Errors
    /// Settings that can't work, by name.
    pub fn new(otlp: &Otlp, target: &Target) -> Result<Self, Error> {
        match otlp.protocol.value {
            Protocol::Grpc => grpc(otlp, target, EXPORT),
            Protocol::HttpProtobuf => http(otlp, target, None),
            Protocol::HttpJson => http(otlp, target, Some(json::<ExportTraceServiceRequest>)),
        }
    }

    /// The same for metrics.
    ///
    /// # Errors
    /// As there.
    pub fn for_metrics(otlp: &Otlp, target: &Target) -> Result<Self, Error> {
        match otlp.protocol.value {
            Protocol::Grpc => grpc(otlp, target, EXPORT_METRICS),
            Protocol::HttpProtobuf => http(otlp, target, None),
            Protocol::HttpJson => http(otlp, target, Some(json::<ExportMetricsServiceRequest>)),
        }
    }

    /// Sends one request and judges the answer. Takes no longer than `timeout`.
    /// `request` is an encoded `ExportTraceServiceRequest`.
    pub async fn send(&mut self, request: Bytes, timeout: Duration) -> Attempt {
        let attempt = async {
            match self {
                Transport::Grpc {
                    client,
                    metadata,
                    method,
                } => {
                    let mut request = tonic::Request::new(request);
                    *request.metadata_mut() = metadata.clone();
                    request.set_timeout(timeout);
                    if let Err(e) = client.ready().await {
                        return Attempt::later(word(&e), chain(&e));
                    }
                    match client.unary(request, PathAndQuery::from_static(method), Encoded).await {
                        Ok(response) => taken(response.into_inner()),
                        Err(status) => of_grpc(&status),
                    }
                }
                Transport::Http {
                    client,
                    url,
                    headers,
                    gzip,
                    json,
                } => {
                    let request = match json {
                        None => request,
                        Some(json) => match json(&request) {
                            Some(text) => text,
                            None => {
                                return Attempt::never("encoding", "no JSON could be made of it".into());
                            }
                        },
                    };
                    let mut post = client.post(url.clone()).headers(headers.clone());
                    post = match gzip {
                        true => match compress(&request) {
                            Ok(small) => post.header(CONTENT_ENCODING, "gzip").body(small),
                            Err(e) => {
                                return Attempt::never("encoding", format!("gzip: {e}"));
                            }
                        },
                        false => post.body(request),
                    };
                    match post.send().await {
                        Ok(response) => answer(response).await,
                        Err(e) => Attempt::later(word(&e), chain(&e.without_url())),
                    }
                }
            }
        };
        tokio::time::timeout(timeout, attempt)
            .await
            .unwrap_or_else(|_| Attempt::later("timeout", format!("no answer within {} ms", timeout.as_millis())))
    }
}

fn grpc(otlp: &Otlp, target: &Target, method: &'static str) -> Result<Transport, Error> {
    let invalid = |e: tonic::transport::Error| Error::new(target.source, chain(&e));
    let address = match &target.socket {
        Some(path) => format!("unix://{path}"),
        None => target.url.to_string(),
    };
    let mut endpoint = Endpoint::from_shared(address)
        .and_then(|e| e.user_agent(USER_AGENT))
        .map_err(invalid)?
        .connect_timeout(otlp.timeout);
    if target.is_tls() {
        let tls = Tls::read(otlp)?;
        // Says what is wrong with a certificate and its key better than tonic does.
        tls.client_config()?;
        let mut config = ClientTlsConfig::new().trust_anchors(tls.roots.roots);
        if let Some(identity) = tls.identity {
            config = config.identity(tonic::transport::Identity::from_pem(identity.certificate, identity.key));
        }
        endpoint = endpoint.tls_config(config).map_err(invalid)?;
    }
    let channel = match proxy::of(&target.url).filter(|_| target.socket.is_none()) {
        Some(proxy) => endpoint.connect_with_connector_lazy(proxy.map_err(|e| Error::new(target.source, e))?),
        None => endpoint.connect_lazy(),
    };
    let mut client = Grpc::new(channel)
        .max_decoding_message_size(MAX_RESPONSE_BYTES)
        .max_encoding_message_size(MAX_REQUEST_BYTES);
    if otlp.compression == Compression::Gzip {
        client = client
            .send_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Gzip);
    }
    Ok(Transport::Grpc {
        client,
        metadata: MetadataMap::from_headers(fields(&otlp.headers)),
        method,
    })
}

fn http(otlp: &Otlp, target: &Target, json: Option<fn(&Bytes) -> Option<Bytes>>) -> Result<Transport, Error> {
    let tls = if target.is_tls() {
        Tls::read(otlp)?.client_config()?
    } else {
        // The client wants some configuration even if it never uses one.
        Tls {
            roots: rustls::RootCertStore::empty(),
            identity: None,
        }
        .client_config()?
    };
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .user_agent(USER_AGENT)
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(otlp.timeout)
        .build()
        .map_err(|e| Error::new(target.source, chain(&e.without_url())))?;
    let mut headers = fields(&otlp.headers);
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static(match json {
            Some(_) => "application/json",
            None => "application/x-protobuf",
        }),
    );
    let gzip = otlp.compression == Compression::Gzip;
    Ok(Transport::Http {
        client,
        url: target.url.clone(),
        headers,
        gzip,
        json,
    })
}

/// Header fields to send, hidden from any debug output and from HPACK tables.
fn fields(headers: &Headers) -> HeaderMap {
    headers
        .iter()
        .filter_map(|(name, value)| {
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            let mut value = HeaderValue::from_str(value)
                .or_else(|_| HeaderValue::from_bytes(value.as_bytes()))
                .ok()?;
            value.set_sensitive(true);
            Some((name, value))
        })
        .collect()
}

fn compress(body: &[u8]) -> std::io::Result<Vec<u8>> {
    // Spans are so alike that the fastest level gains nearly all there is.
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), Level::fast());
    encoder.write_all(body)?;
    encoder.finish()
}

/// The request as OTLP JSON.
fn json<M: prost::Message + Default + serde::Serialize>(request: &Bytes) -> Option<Bytes> {
    let message = M::decode(request.clone()).ok()?;
    Some(serde_json::to_vec(&message).ok()?.into())
}

async fn answer(mut response: reqwest::Response) -> Attempt {
    let status = response.status();
    if !status.is_success() {
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok());
        return of_http(status.as_u16(), retry_after, SystemTime::now());
    }
    let json = response
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/json"));
    let mut body = Vec::new();
    // A body that can't be read can't take back the 2xx: retrying would duplicate spans.
    while let Ok(Some(chunk)) = response.chunk().await {
        if body.len() + chunk.len() > MAX_RESPONSE_BYTES {
            break;
        }
        body.extend_from_slice(&chunk);
    }
    taken(match json {
        true => of_json(&body),
        false => ExportTraceServiceResponse::decode(body.as_slice()).unwrap_or_default(),
    })
}

/// An answer in JSON, for traces or for metrics: 64-bit numbers are texts there.
fn of_json(body: &[u8]) -> ExportTraceServiceResponse {
    let said: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let partial = &said["partialSuccess"];
    let number = |value: &serde_json::Value| value.as_i64().or_else(|| value.as_str()?.parse().ok());
    let rejected = ["rejectedSpans", "rejectedDataPoints"].map(|name| number(&partial[name]));
    ExportTraceServiceResponse {
        partial_success: Some(ExportTracePartialSuccess {
            rejected_spans: rejected.into_iter().flatten().next().unwrap_or(0),
            error_message: partial["errorMessage"].as_str().unwrap_or_default().to_owned(),
        }),
    }
}

fn taken(response: ExportTraceServiceResponse) -> Attempt {
    let partial = response.partial_success.unwrap_or_default();
    Attempt::Taken {
        rejected: u64::try_from(partial.rejected_spans).unwrap_or_default(),
        message: partial.error_message,
    }
}
