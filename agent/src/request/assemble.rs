//! Events → exchanges. The pure heart of the agent: no clock, no socket; the
//! same records give the same exchanges, from the ring buffer or from a file.
//!
//! Bias: an exchange whose request was not seen is not made up; an end that
//! was not seen is *unfinished*, not a success or a failure.

use std::collections::VecDeque;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use tracewire_common::elided::{HEAD_TRUNCATED, Head, frame};
use tracewire_common::event::{Header, direction, flags};
use tracewire_common::tls;

use super::sort::{HeadSink, Kind};
use super::{Exchange, Messages, Outcome, Protocol, RequestHead, ResponseHead, Role, Seen, Version};
use crate::connection::closes::Followed;
use crate::connection::record::{Event, Opened};
use crate::connection::{Peer, Transport};
use crate::protocol::elided::Frames;
use crate::protocol::fields::{Allow, Interner};
use crate::protocol::http2::{Direction, Opening, Signal};
use crate::protocol::{fields, framing, http1};

/// Streams open at a time on one connection: far more than any peer allows.
const STREAMS: usize = 8192;
/// Requests of an HTTP/1 connection that wait for their response.
const PIPELINE: usize = 1024;
/// Names of streams that have not begun, of one connection.
const NAMES: usize = 4096;
/// Connections remembered at a time; the kernel remembers fewer.
const CONNECTIONS: usize = 65536;

/// What the assembler could not use, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Records that are no events.
    pub records_unknown: u64,
    /// Pieces of connections that were not announced.
    pub connections_unknown: u64,
    /// Pieces after which bytes are missing.
    pub gaps: u64,
    /// Directions whose bytes could not be parsed.
    pub malformed: u64,
    /// Responses whose request was not seen.
    pub requests_unseen: u64,
    /// HPACK indexes that could not be resolved.
    pub hpack_unknown: u64,
    /// Streams or connections dropped because there were too many.
    pub evicted: u64,
}

/// An exchange under way.
#[derive(Debug, Default)]
struct Stream {
    start_ns: u64,
    request: RequestHead,
    response: ResponseHead,
    request_messages: Messages,
    response_messages: Messages,
    /// HTTP/1: the response names no length and is not chunked.
    until_close: bool,
    /// Bytes were lost while it was open: its end may have been among them.
    gap: bool,
}

/// One direction of a connection.
#[derive(Default)]
struct Half {
    frames: Frames,
    http2: Direction,
    /// HTTP/1: the head so far, and when it began.
    head: Vec<u8>,
    head_ns: u64,
    head_truncated: bool,
}

struct Connection {
    peer: Arc<Peer>,
    pid: u32,
    role: Option<Role>,
    halves: [Half; 2],
    /// HTTP/2.
    streams: FxHashMap<u32, Box<Stream>>,
    /// HTTP/1, oldest first, with their numbers.
    queue: VecDeque<(u32, Stream)>,
    /// Highest stream whose request was seen.
    newest: u32,
    http1_version: Version,
    /// Requests seen on HTTP/1.
    requests: u32,
    /// HTTP/1: a head after which the peer may see the next message begin elsewhere than we do,
    /// by direction: what seems to follow is not believed.
    doubtful: [bool; 2],
    /// Paths by stream that the process itself told, before the wire did.
    names: FxHashMap<u32, Arc<str>>,
    /// HTTP/1: the exchange that a 101 response ended or turned into HTTP/2's stream 1.
    upgraded: Option<(u32, Stream, u64)>,
}

/// Something the assembler found out.
#[derive(Debug)]
pub enum Output {
    /// A request began: its identity is to be chosen now.
    Begun {
        /// Connection.
        connection: u64,
        /// As [`Exchange::stream`].
        stream: u32,
        /// The observed process.
        pid: u32,
        /// The observed process's side.
        role: Role,
        /// HTTP version.
        version: Version,
        /// Time, CLOCK_BOOTTIME ns.
        start_ns: u64,
        /// `traceparent` that the application sent or got.
        traceparent: Seen<Arc<str>>,
        /// `tracestate` likewise.
        tracestate: Seen<Arc<str>>,
        /// `sentry-trace` likewise.
        sentry_trace: Seen<Arc<str>>,
        /// As [`RequestHead::sentry_baggage`].
        sentry_baggage: Option<Arc<str>>,
        /// As [`RequestHead::method`].
        method: Seen<Arc<str>>,
        /// As [`RequestHead::path`].
        path: Seen<Arc<str>>,
    },
    /// An exchange ended.
    Ended(Box<Exchange>),
    /// A connection was opened (or first seen).
    Opened {
        /// Its ends.
        opened: Box<Opened>,
        /// Seen from its first byte.
        origin: bool,
        /// When, CLOCK_BOOTTIME ns.
        time_ns: u64,
    },
    /// A connection is gone.
    Closed {
        /// Which.
        connection: u64,
    },
}

/// Turns events into exchanges.
pub struct Assembler {
    connections: FxHashMap<u64, Connection>,
    interner: Interner,
    allow: Allow,
    counts: Counts,
}

impl Assembler {
    /// `allow`: header fields that are kept beside those that spans need.
    pub fn new(allow: Allow) -> Self {
        Assembler {
            connections: FxHashMap::default(),
            interner: Interner::default(),
            allow,
            counts: Counts::default(),
        }
    }

    /// What could not be used so far.
    pub fn counts(&self) -> Counts {
        let open: u64 = self
            .connections
            .values()
            .flat_map(|c| &c.halves)
            .map(|h| h.http2.unknown_indexes())
            .sum();
        Counts {
            hpack_unknown: self.counts.hpack_unknown + open,
            ..self.counts
        }
    }

    /// Requests that are open now, by process and side.
    pub fn open_requests(&self) -> FxHashMap<(u32, Role), u64> {
        let mut open = FxHashMap::default();
        for connection in self.connections.values() {
            let count = connection.streams.len() + connection.queue.len();
            if let Some(role) = connection.role
                && count > 0
            {
                *open.entry((connection.pid, role)).or_default() += count as u64;
            }
        }
        open
    }

    /// Unix connections that are open, as far as is known. Of TLS on a Unix socket only the socket.
    pub fn unix_connections(&self) -> Vec<Followed> {
        let followed = |(name, c): (&u64, &Connection)| Followed {
            connection: *name,
            busy: !c.streams.is_empty() || !c.queue.is_empty(),
        };
        let mut connections = self.connections.iter();
        let unix = connections.by_ref();
        unix.filter(|(name, c)| c.peer.transport == Transport::Unix && !tls::named(**name))
            .map(followed)
            .collect()
    }

    /// Number of connections at present.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Whether a connection was announced and is not closed.
    pub fn knows(&self, connection: u64) -> bool {
        self.connections.contains_key(&connection)
    }

    /// Takes an event about a connection; others change nothing here.
    pub fn event(&mut self, event: Event<'_>, out: &mut Vec<Output>) {
        match event {
            Event::Open { header, open } => self.open(header, open, out),
            Event::Frames { header, bytes } => self.frames(header, bytes, out),
            Event::Name { header, path, stream } => self.name(header.connection, stream, path),
            Event::Close { header, error } => self.close(header.connection, header.time_ns, error, out),
            _ => {}
        }
    }

    /// A record that is no event.
    pub fn unknown_record(&mut self) {
        self.counts.records_unknown += 1;
    }

    fn open(&mut self, header: Header, open: Opened, out: &mut Vec<Output>) {
        if self.connections.len() >= CONNECTIONS {
            // One of them is gone without a word; which one can't be told.
            self.counts.evicted += 1;
            if let Some(key) = self.connections.keys().next().copied() {
                self.connections.remove(&key);
            }
        }
        let connection = Connection {
            peer: Arc::new(open.peer.clone()),
            pid: header.pid,
            role: None,
            halves: [Half::default(), Half::default()],
            streams: FxHashMap::default(),
            queue: VecDeque::new(),
            newest: 0,
            http1_version: Version::Http11,
            requests: 0,
            doubtful: [false; 2],
            names: FxHashMap::default(),
            upgraded: None,
        };
        self.connections.insert(header.connection, connection);
        let origin = header.flags & flags::ORIGIN != 0;
        out.push(Output::Opened {
            opened: Box::new(open),
            origin,
            time_ns: header.time_ns,
        });
    }

    fn frames(&mut self, header: Header, bytes: &[u8], out: &mut Vec<Output>) {
        let Some(connection) = self.connections.get_mut(&header.connection) else {
            self.counts.connections_unknown += 1;
            return;
        };
        let way = usize::from(header.direction & 1);
        let origin = header.flags & flags::ORIGIN != 0;
        connection.pid = header.pid;
        if header.flags & flags::GAP != 0 {
            self.counts.gaps += 1;
            connection.lose(way);
        }
        // Taken out once a record, as the turn borrows the connection.
        let mut frames = std::mem::take(&mut connection.halves[way].frames);
        let mut http2 = std::mem::take(&mut connection.halves[way].http2);
        let mut turn = Turn {
            connection,
            interner: &mut self.interner,
            allow: &self.allow,
            counts: &mut self.counts,
            out,
            way,
            origin,
            http2_limit: None,
            sink: HeadSink::default(),
        };
        let result = frames.feed(bytes, |head, payload| {
            turn.frame(&mut http2, head, payload, header.time_ns);
        });
        let limit = turn.http2_limit;
        connection.halves[way].frames = frames;
        connection.halves[way].http2 = http2;
        if let Some(limit) = limit {
            connection.halves[1 - way].http2.set_limit(limit);
        }
        if result.is_err() {
            self.counts.malformed += 1;
            connection.lose(way);
        }
        // A server may still answer a client that sends no more (RFC 9112 §9.6): the close ends that.
        if header.flags & flags::END != 0 && (connection.role != Some(Role::Server) || connection.queue.is_empty()) {
            connection.ended(header.time_ns, Outcome::ConnectionLost { error: 0 }, out);
        }
    }

    /// What the process itself calls a request, if the wire has it as an index from before the agent.
    fn name(&mut self, key: u64, stream: u32, path: &[u8]) {
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        let path = self.interner.get(path);
        match connection.streams.get_mut(&stream) {
            Some(open) if open.request.path.is_unknown() => open.request.path = Seen::Value(path),
            Some(_) => {}
            None if connection.names.len() < NAMES => {
                connection.names.insert(stream, path);
            }
            None => {}
        }
    }

    fn close(&mut self, key: u64, time_ns: u64, error: u32, out: &mut Vec<Output>) {
        if let Some(mut connection) = self.connections.remove(&key) {
            // Closed by the observed process itself, with no word of what it thought of the calls
            // that were open: cancelled, too late, or not waited for.
            let lost = if error == 0 {
                Outcome::Unfinished
            } else {
                Outcome::ConnectionLost { error }
            };
            connection.ended(time_ns, lost, out);
            for half in &connection.halves {
                self.counts.hpack_unknown += half.http2.unknown_indexes();
            }
        }
        out.push(Output::Closed { connection: key });
    }

    /// Ends the exchanges of a process whose connections said nothing of their end.
    pub fn exited(&mut self, pid: u32, time_ns: u64, out: &mut Vec<Output>) {
        let keys: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, c)| c.pid == pid)
            .map(|(k, _)| *k)
            .collect();
        for key in keys {
            self.close(key, time_ns, 0, out);
        }
    }

    /// Ends all open exchanges as unfinished: the agent stops.
    pub fn stop(&mut self, time_ns: u64, out: &mut Vec<Output>) {
        for connection in self.connections.values_mut() {
            connection.abandon(time_ns, out);
        }
        self.connections.clear();
    }
}

/// One piece being taken.
struct Turn<'a> {
    connection: &'a mut Connection,
    interner: &'a mut Interner,
    allow: &'a Allow,
    counts: &'a mut Counts,
    out: &'a mut Vec<Output>,
    way: usize,
    origin: bool,
    http2_limit: Option<u32>,
    sink: HeadSink,
}

impl Turn<'_> {
    fn frame(&mut self, http2: &mut Direction, head: Head, payload: &[u8], time_ns: u64) {
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
    fn requests(&self) -> Option<bool> {
        self.connection
            .role
            .map(|role| (role == Role::Client) == (self.way == usize::from(direction::SEND)))
    }

    fn role_from(&mut self, requests: bool) {
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

    fn begin(&mut self, stream: u32, version: Version, start_ns: u64, request: &RequestHead) {
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

    fn http1_head(&mut self, head: Head, payload: &[u8], time_ns: u64) {
        let half = &mut self.connection.halves[self.way];
        if half.head.is_empty() {
            half.head_ns = time_ns;
        }
        half.head.extend_from_slice(payload);
        half.head_truncated |= head.flags & HEAD_TRUNCATED != 0;
        if head.flags == 0 {
            return;
        }
        let bytes = std::mem::take(&mut half.head);
        let damaged = std::mem::take(&mut half.head_truncated);
        let start_ns = half.head_ns;
        if self.connection.doubtful[self.way] {
            self.counts.malformed += 1;
            return;
        }
        let plain = framing::unfold(&bytes);
        if plain.trim_ascii_start().starts_with(b"HTTP/") {
            self.http1_response(&plain, damaged);
        } else {
            self.http1_request(head.stream, &plain, damaged, start_ns);
        }
        if framing::is_doubtful(&bytes) {
            self.counts.malformed += 1;
            self.connection.doubtful[self.way] = true;
        }
    }

    fn http1_request(&mut self, number: u32, bytes: &[u8], damaged: bool, start_ns: u64) {
        let Ok(head) = http1::parse_request(bytes) else {
            self.counts.malformed += 1;
            return;
        };
        self.role_from(true);
        if self.requests() != Some(true) || self.connection.queue.len() >= PIPELINE {
            self.counts.malformed += 1;
            return;
        }
        self.connection.http1_version = if head.minor_version == 0 {
            Version::Http10
        } else {
            Version::Http11
        };
        let mut sorted = fields::Request::default();
        sorted.line(head.method, head.target, self.interner);
        for (name, value) in head.headers() {
            sorted.field(Some(name), Some(value), self.allow, self.interner);
        }
        let request = sorted.finish(damaged || head.truncated);
        // As the kernel counted, where it says so: it has seen the heads that were lost on the way here.
        self.connection.requests = if number == 0 {
            self.connection.requests + 1
        } else {
            number
        };
        let number = self.connection.requests;
        self.begin(number, self.connection.http1_version, start_ns, &request);
        let open = Stream {
            start_ns,
            request,
            ..Stream::default()
        };
        self.connection.queue.push_back((number, open));
    }

    fn http1_response(&mut self, bytes: &[u8], damaged: bool) {
        let Ok(head) = http1::parse_response(bytes) else {
            self.counts.malformed += 1;
            return;
        };
        self.role_from(false);
        if self.requests() != Some(false) {
            self.counts.malformed += 1;
            return;
        }
        let Some((_, open)) = self.connection.queue.front_mut() else {
            self.counts.requests_unseen += 1;
            return;
        };
        if head.status >= 100 && head.status < 200 && head.status != 101 {
            return;
        }
        let mut sorted = fields::Response::default();
        sorted.status(head.status);
        let mut framed = false;
        for (name, value) in head.headers() {
            framed |= name.eq_ignore_ascii_case(b"transfer-encoding") || name.eq_ignore_ascii_case(b"content-length");
            sorted.field(Some(name), Some(value), self.allow, self.interner);
        }
        sorted.finish(damaged || head.truncated, &mut open.response);
        open.until_close = !framed;
    }

    fn http1_body_end(&mut self, time_ns: u64) {
        // Where a doubtful body ends is as doubtful: the close of the connection ends it.
        if self.requests() == Some(false) && !self.connection.doubtful[self.way] {
            // Only a final response ends the exchange, not 100 Continue.
            if self
                .connection
                .queue
                .front()
                .is_some_and(|(_, open)| open.response.status.value().is_some())
                && let Some((number, open)) = self.connection.queue.pop_front()
            {
                self.connection
                    .finish_http1(number, open, time_ns, Outcome::Complete, self.out);
            }
        }
    }

    fn http1_tunnel(&mut self, time_ns: u64) {
        if let Some((number, open)) = self.connection.queue.pop_front() {
            if open.response.status.value() == Some(&101) && self.connection.queue.is_empty() {
                self.connection.upgraded = Some((number, open, time_ns));
            } else {
                self.connection
                    .finish_http1(number, open, time_ns, Outcome::Complete, self.out);
            }
        }
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

impl Connection {
    /// Bytes of one direction were lost.
    fn lose(&mut self, way: usize) {
        if let Some(half) = self.halves.get_mut(way) {
            half.frames.lose();
            half.http2.lose();
            half.head = Vec::new();
            half.head_truncated = false;
        }
        for stream in self.streams.values_mut() {
            stream.gap = true;
        }
        // Which response belongs to which request can't be told any more.
        self.queue.clear();
    }

    /// No more bytes will come.
    fn ended(&mut self, time_ns: u64, lost: Outcome, out: &mut Vec<Output>) {
        let streams: Vec<u32> = self.streams.keys().copied().collect();
        for key in streams {
            if let Some(open) = self.streams.remove(&key) {
                let outcome = if open.gap { Outcome::Unfinished } else { lost };
                self.finish(key, open, time_ns, outcome, out);
            }
        }
        let answers = usize::from(self.role == Some(Role::Server));
        let lost = if self.doubtful[answers] {
            Outcome::Unfinished
        } else {
            lost
        };
        while let Some((number, open)) = self.queue.pop_front() {
            let orderly = !matches!(lost, Outcome::ConnectionLost { error } if error != 0);
            let whole = orderly && open.until_close && open.response.status.value().is_some();
            self.finish_http1(number, open, time_ns, if whole { Outcome::Complete } else { lost }, out);
        }
        self.settle(out);
    }

    /// A 101 response that did not lead to HTTP/2 ended its exchange when it came.
    fn settle(&mut self, out: &mut Vec<Output>) {
        if let Some((number, open, at)) = self.upgraded.take() {
            self.finish_http1(number, open, at, Outcome::Complete, out);
        }
    }

    /// The agent stops: nothing is known of the ends.
    fn abandon(&mut self, time_ns: u64, out: &mut Vec<Output>) {
        self.settle(out);
        let streams: Vec<(u32, Box<Stream>)> = self.streams.drain().collect();
        for (key, open) in streams {
            self.finish(key, open, time_ns, Outcome::Unfinished, out);
        }
        while let Some((number, open)) = self.queue.pop_front() {
            self.finish_http1(number, open, time_ns, Outcome::Unfinished, out);
        }
    }

    fn finish(&self, stream: u32, open: Box<Stream>, end_ns: u64, outcome: Outcome, out: &mut Vec<Output>) {
        self.exchange(stream, *open, end_ns, outcome, Version::Http2, out);
    }

    fn finish_http1(&self, stream: u32, open: Stream, end_ns: u64, outcome: Outcome, out: &mut Vec<Output>) {
        self.exchange(stream, open, end_ns, outcome, self.http1_version, out);
    }

    fn exchange(
        &self,
        stream: u32,
        open: Stream,
        end_ns: u64,
        outcome: Outcome,
        version: Version,
        out: &mut Vec<Output>,
    ) {
        let Some(role) = self.role else { return };
        let mut open = open;
        let protocol = protocol(&open);
        open.request
            .captured
            .retain(|(name, _)| name.as_bytes() != fields::CONNECT);
        out.push(Output::Ended(Box::new(Exchange {
            pid: self.pid,
            role,
            peer: self.peer.clone(),
            stream,
            version,
            protocol,
            start_ns: open.start_ns,
            end_ns: end_ns.max(open.start_ns),
            request: open.request,
            response: open.response,
            request_messages: open.request_messages,
            response_messages: open.response_messages,
            outcome,
        })));
    }
}

/// The protocol by content types; where they could not be read, by what only gRPC does.
fn protocol(open: &Stream) -> Protocol {
    let kind = |value: &Seen<Arc<str>>| {
        let text = value.value()?;
        Some(if text.starts_with("application/grpc-web") {
            Protocol::GrpcWeb
        } else if text.starts_with("application/grpc") {
            Protocol::Grpc
        } else if text.starts_with("application/connect+") {
            Protocol::Connect
        } else {
            Protocol::Http
        })
    };
    if open
        .request
        .captured
        .iter()
        .any(|(name, _)| name.as_bytes() == fields::CONNECT)
    {
        return Protocol::Connect;
    }
    if let Some(protocol) = kind(&open.request.content_type) {
        return protocol;
    }
    if open.request.content_type.is_unknown() {
        if let Some(protocol) = kind(&open.response.content_type) {
            return protocol;
        }
        let post = open.request.method.value().is_none_or(|m| &**m == "POST");
        let counted = |m: Messages| m.count > 0 && !m.uncounted;
        let messages = counted(open.request_messages) || counted(open.response_messages);
        if post && (messages || open.response.grpc_status.value().is_some()) {
            return Protocol::Grpc;
        }
    }
    Protocol::Http
}
