//! Events → exchanges. The pure heart of the agent: no clock, no socket; the
//! same records give the same exchanges, from the ring buffer or from a file.
//!
//! Bias: an exchange whose request was not seen is not made up; an end that
//! was not seen is *unfinished*, not a success or a failure.

use std::collections::VecDeque;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use tracewire_common::event::{Header, flags};
use tracewire_common::tls;

use super::sort::HeadSink;
use super::{Exchange, Outcome, Role, Seen, Version};
use crate::connection::Transport;
use crate::connection::closes::Followed;
use crate::connection::record::{Event, Opened};
use crate::protocol::fields::{Allow, Interner};

mod connection;
mod http1;
mod turn;

use connection::{Connection, Half};
use turn::Turn;

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
        /// As [`super::RequestHead::sentry_baggage`].
        sentry_baggage: Option<Arc<str>>,
        /// As [`super::RequestHead::method`].
        method: Seen<Arc<str>>,
        /// As [`super::RequestHead::path`].
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
