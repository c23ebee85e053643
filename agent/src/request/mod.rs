//! Two messages make one exchange: what a process asked or was asked, and how
//! it ended. Prefers *unknown* to a guess.

use std::net::IpAddr;
use std::sync::Arc;

use crate::connection::Peer;

pub mod assemble;
pub mod sort;
#[cfg(test)]
mod tests;

/// Which side of the exchange the observed process was on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// It made the request.
    Client,
    /// It answered the request.
    Server,
}

/// Protocol of the exchange, as far as names and rules differ by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// gRPC over HTTP/2 (`content-type: application/grpc…`).
    Grpc,
    /// gRPC-Web over HTTP/1.1 or HTTP/2.
    GrpcWeb,
    /// ConnectRPC (`application/connect+…`, or `connect-protocol-version`).
    Connect,
    /// Any other HTTP.
    Http,
}

/// What is known of a value on the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Seen<T> {
    /// It was there and could be read.
    Value(T),
    /// It was not there.
    #[default]
    Absent,
    /// It may have been there, in a form that could not be read (an HPACK index from
    /// before the attach, a gap, a truncated block).
    Unknown,
}

impl<T> Seen<T> {
    /// The value, if it was read.
    pub fn value(&self) -> Option<&T> {
        match self {
            Seen::Value(v) => Some(v),
            _ => None,
        }
    }

    /// Whether it may have been there, unread.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Seen::Unknown)
    }
}

/// How the exchange ended on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The response ended in the ordinary way (END_STREAM, end of body).
    Complete,
    /// RST_STREAM.
    Reset {
        /// Whether the observed process sent it (else it received it).
        local: bool,
        /// Error code, RFC 9113 §7.
        code: u32,
    },
    /// GOAWAY said that the server did not process it (RFC 9113 §6.8).
    Refused {
        /// Error code of the GOAWAY.
        code: u32,
    },
    /// The connection ended first.
    ConnectionLost {
        /// errno of the socket, 0 for an orderly end.
        error: u32,
    },
    /// The agent stopped observing first: duration and outcome are not known.
    Unfinished,
}

/// gRPC messages of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Messages {
    /// Number of messages whose prefix was seen.
    pub count: u32,
    /// Sum of their lengths on the wire, prefixes not counted, bytes.
    pub bytes: u64,
    /// There may be more: the kernel stopped counting, since this looked like no gRPC.
    pub uncounted: bool,
}

/// Header fields that matter to spans; all others are dropped where they are read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestHead {
    /// `:method` or the HTTP/1 method.
    pub method: Seen<Arc<str>>,
    /// `:path` or the HTTP/1 request target, query included.
    pub path: Seen<Arc<str>>,
    /// `:authority` or `host`.
    pub authority: Seen<Arc<str>>,
    /// `:scheme`.
    pub scheme: Seen<Arc<str>>,
    /// `content-type`.
    pub content_type: Seen<Arc<str>>,
    /// `user-agent`.
    pub user_agent: Seen<Arc<str>>,
    /// `traceparent` as sent.
    pub traceparent: Seen<Arc<str>>,
    /// `tracestate` as sent (several fields joined by commas).
    pub tracestate: Seen<Arc<str>>,
    /// `sentry-trace` as sent: what Sentry's SDKs say where they send no `traceparent`.
    pub sentry_trace: Seen<Arc<str>>,
    /// What `baggage` has of Sentry's, see [`crate::protocol::baggage`].
    pub sentry_baggage: Option<Arc<str>>,
    /// `grpc-timeout` as sent.
    pub grpc_timeout: Seen<Arc<str>>,
    /// `content-length`.
    pub content_length: Option<u64>,
    /// First hop of `forwarded`/`x-forwarded-for`, if it is an address.
    pub forwarded_for: Option<IpAddr>,
    /// Host of `forwarded`/`x-forwarded-host`.
    pub forwarded_host: Option<Arc<str>>,
    /// Allow-listed fields, lower-case names, in wire order.
    pub captured: Vec<(Arc<str>, Arc<str>)>,
}

/// The same for the response, its trailers joined in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResponseHead {
    /// `:status` or the HTTP/1 status code.
    pub status: Seen<u16>,
    /// `content-type`.
    pub content_type: Seen<Arc<str>>,
    /// `content-length`.
    pub content_length: Option<u64>,
    /// `grpc-status`: a number that may lie outside 0..=16.
    pub grpc_status: Seen<u32>,
    /// `grpc-message`, still percent-encoded.
    pub grpc_message: Seen<Arc<str>>,
    /// Allow-listed fields, lower-case names, in wire order.
    pub captured: Vec<(Arc<str>, Arc<str>)>,
}

/// HTTP version of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
    /// HTTP/2
    Http2,
}

/// One finished exchange, seen from one process.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// Process that was observed.
    pub pid: u32,
    /// Its side.
    pub role: Role,
    /// The connection's ends.
    pub peer: Arc<Peer>,
    /// HTTP/2 stream identifier, or the number of the exchange on an HTTP/1 connection, from 1.
    pub stream: u32,
    /// HTTP version.
    pub version: Version,
    /// Protocol by its headers.
    pub protocol: Protocol,
    /// First byte of the request seen, CLOCK_BOOTTIME ns.
    pub start_ns: u64,
    /// End of the exchange, CLOCK_BOOTTIME ns.
    pub end_ns: u64,
    /// What the request said.
    pub request: RequestHead,
    /// What the response said.
    pub response: ResponseHead,
    /// gRPC messages of the request.
    pub request_messages: Messages,
    /// gRPC messages of the response.
    pub response_messages: Messages,
    /// How it ended.
    pub outcome: Outcome,
}
