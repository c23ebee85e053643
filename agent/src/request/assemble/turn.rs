//! One piece of a direction: its frames put to their streams.

use tracewire_common::elided::{Head, frame};
use tracewire_common::event::direction;

use super::connection::{Connection, Stream};
use super::{Counts, Output, STREAMS};
use crate::protocol::fields::{self, Allow, Interner};
use crate::protocol::http2::{Direction, Opening, Signal};
use crate::request::sort::{HeadSink, Kind};
use crate::request::{Messages, Outcome, RequestHead, Role, Seen, Version};

/// One piece being taken.
pub(super) struct Turn<'a> {
    pub(super) connection: &'a mut Connection,
    pub(super) interner: &'a mut Interner,
    pub(super) allow: &'a Allow,
    pub(super) counts: &'a mut Counts,
    pub(super) out: &'a mut Vec<Output>,
    pub(super) way: usize,
    pub(super) origin: bool,
    pub(super) http2_limit: Option<u32>,
    pub(super) sink: HeadSink,
}

impl Turn<'_> {
    pub(super) fn frame(&mut self, http2: &mut Direction, head: Head, payload: &[u8], time_ns: u64) {
        match head.kind {
            frame::HEAD => self.http1_head(head, payload, time_ns),
            frame::BODY_END => self.http1_body_end(time_ns),
            frame::TUNNEL => self.http1_tunnel(time_ns),
            _ => {
                if let Some((_, mut stream, _)) = self.connection.upgraded.take() {
                    // RFC 7540 §3.2: the response to the upgraded request comes on stream 1. Its head was
                    // read in the clear and named no scheme.
                    if stream.request.scheme == Seen::Absent {
                        stream.request.scheme = Seen::Value(self.interner.get(b"http"));
                    }
                    self.connection.streams.insert(1, Box::new(stream));
                }
                let before = http2.malformed;
                http2.frame(head, payload, time_ns, self.origin, self);
                self.counts.malformed += http2.malformed - before;
            }
        }
    }

    /// Whether this direction carries requests, once it is known.
    pub(super) fn requests(&self) -> Option<bool> {
        self.connection
            .role
            .map(|role| (role == Role::Client) == (self.way == usize::from(direction::SEND)))
    }

    pub(super) fn role_from(&mut self, requests: bool) {
        if self.connection.role.is_none() {
            let sends = self.way == usize::from(direction::SEND);
            self.connection.role = Some(if requests == sends { Role::Client } else { Role::Server });
        }
    }

    fn headers(&mut self, stream: u32, end: bool, damaged: bool, time_ns: u64) {
        let sink = std::mem::take(&mut self.sink).settled(self.allow, self.interner);
        let kind = match (sink.kind(), self.requests()) {
            (Kind::Request, _) => Kind::Request,
            (Kind::Response, _) => Kind::Response,
            (Kind::Unclear, Some(true)) => Kind::Request,
            (Kind::Unclear, Some(false)) => Kind::Response,
            (Kind::Unclear, None) => return,
        };
        match (sink.kind(), self.requests()) {
            (Kind::Request, None) => self.role_from(true),
            (Kind::Response, None) => self.role_from(false),
            // Against what this connection did before: a capture that went wrong.
            (Kind::Request, Some(false)) | (Kind::Response, Some(true)) => {
                self.counts.malformed += 1;
                return;
            }
            _ => {}
        }
        if kind == Kind::Request {
            if !self.connection.streams.contains_key(&stream) {
                if self.connection.streams.len() >= STREAMS {
                    self.counts.evicted += 1;
                    return;
                }
                let mut request = sink.into_request(damaged);
                let name = self.connection.names.remove(&stream);
                if request.path.is_unknown()
                    && let Some(name) = name
                {
                    request.path = Seen::Value(name);
                }
                self.begin(stream, Version::Http2, time_ns, &request);
                self.connection.newest = self.connection.newest.max(stream);
                let open = Box::new(Stream {
                    start_ns: time_ns,
                    request,
                    ..Stream::default()
                });
                self.connection.streams.insert(stream, open);
            }
            // A second block on the same stream is the request's trailers: nothing of interest.
            return;
        }
        let Some(open) = self.connection.streams.get_mut(&stream) else {
            // A stream that was reset may still be answered.
            if end && self.connection.newest < stream {
                self.counts.requests_unseen += 1;
            }
            return;
        };
        sink.into_response(damaged, &mut open.response);
        if end {
            self.end(stream, time_ns, Outcome::Complete);
        }
    }

    pub(super) fn begin(&mut self, stream: u32, version: Version, start_ns: u64, request: &RequestHead) {
        let Some(role) = self.connection.role else { return };
        self.out.push(Output::Begun {
            connection: self.connection.peer.connection,
            stream,
            pid: self.connection.pid,
            role,
            version,
            start_ns,
            traceparent: request.traceparent.clone(),
            tracestate: request.tracestate.clone(),
            sentry_trace: request.sentry_trace.clone(),
            sentry_baggage: request.sentry_baggage.clone(),
            method: request.method.clone(),
            path: request.path.clone(),
        });
    }

    fn end(&mut self, stream: u32, time_ns: u64, outcome: Outcome) {
        if let Some(open) = self.connection.streams.remove(&stream) {
            self.connection.finish(stream, open, time_ns, outcome, self.out);
        }
    }

    /// What is counted of an open stream's messages in this direction.
    fn messages(&mut self, stream: u32) -> Option<&mut Messages> {
        let requests = self.requests()?;
        let open = self.connection.streams.get_mut(&stream)?;
        Some(if requests {
            &mut open.request_messages
        } else {
            &mut open.response_messages
        })
    }
}

impl crate::protocol::http2::Sink for Turn<'_> {
    fn block(&mut self, _stream: u32, opening: Opening) {
        self.sink = HeadSink::new(opening, self.requests());
    }

    fn field(&mut self, name: Option<&[u8]>, value: Option<&[u8]>) {
        self.sink.field(name, value, self.allow, self.interner);
    }

    fn signal(&mut self, signal: Signal, time_ns: u64) {
        match signal {
            Signal::Headers { stream, end, damaged } => self.headers(stream, end, damaged, time_ns),
            Signal::Uncounted { stream } => {
                if let Some(side) = self.messages(stream) {
                    side.uncounted = true;
                }
            }
            Signal::Message { stream, length } => {
                if let Some(side) = self.messages(stream) {
                    side.count = side.count.saturating_add(1);
                    side.bytes = side.bytes.saturating_add(u64::from(length));
                }
            }
            Signal::End { stream } => {
                if self.requests() == Some(false) {
                    self.end(stream, time_ns, Outcome::Complete);
                }
            }
            Signal::Reset { stream, code } => {
                let local = self.way == usize::from(direction::SEND);
                self.end(stream, time_ns, Outcome::Reset { local, code });
            }
            Signal::GoAway { last, code } => {
                // Only the server's GOAWAY says anything about the client's requests.
                if self.requests() == Some(false) {
                    let refused: Vec<u32> = self.connection.streams.keys().copied().filter(|s| *s > last).collect();
                    for stream in refused {
                        self.end(stream, time_ns, Outcome::Refused { code });
                    }
                }
            }
        }
    }

    fn web_trailer(&mut self, stream: u32, bytes: &[u8]) {
        if let Some(open) = self.connection.streams.get_mut(&stream) {
            let mut sorted = fields::Response::default();
            for line in bytes.split(|b| *b == b'\n') {
                if let Some(colon) = memchr::memchr(b':', line) {
                    let (name, value) = line.split_at(colon);
                    let value = value.get(1..).unwrap_or_default().trim_ascii();
                    sorted.field(Some(name.trim_ascii()), Some(value), self.allow, self.interner);
                }
            }
            sorted.finish(false, &mut open.response);
        }
    }

    fn header_table_size(&mut self, bytes: u32) {
        self.http2_limit = Some(bytes);
    }
}
