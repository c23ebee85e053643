//! Records → records that may be kept: the same events at the same times, but
//! of header fields only the values that spans need.
//!
//! Bias: what can't be read is not written.
//!
//! Header blocks are decoded as the core decodes them, connection by
//! connection and direction by direction, and written so that they need no
//! table: what was unknown is unknown again, what was damaged is damaged
//! again. That is why a replay makes the same spans.

use std::hash::{BuildHasher, RandomState};

use rustc_hash::FxHashMap;
use tracewire_common::elided::{Head, frame};
use tracewire_common::event::Plain;
use tracewire_common::event::{Close, Header, Open, direction, flags, kind};
use tracewire_common::link::Name;

use self::http2::{Rewriter, put};
use crate::protocol::elided::Frames;
use crate::protocol::fields::Allow;
use crate::protocol::http2::Direction;

mod http1;
mod http2;
mod policy;

/// Connections remembered at a time, as many as the core remembers.
const CONNECTIONS: usize = 65536;
/// Bytes of redacted frames after which a record is ended and another begun.
const PIECE: usize = 256 * 1024;

/// One direction of a connection.
#[derive(Default)]
struct Half {
    frames: Frames,
    http2: Direction,
    /// HTTP/1: the head so far.
    head: Vec<u8>,
}

#[derive(Default)]
struct Connection {
    pid: u32,
    halves: [Half; 2],
    /// The direction that carries requests, once it is known.
    requests: Option<usize>,
}

/// Redacts the records of many connections.
pub struct Redactor {
    allow: Allow,
    connections: FxHashMap<u64, Connection>,
    /// Gives sockets names that are not their addresses in the kernel.
    names: RandomState,
    out: Vec<u8>,
}

impl Redactor {
    /// `allow`: fields whose values are kept beside those that spans need.
    pub fn new(allow: Allow) -> Self {
        Redactor {
            allow,
            connections: FxHashMap::default(),
            names: RandomState::new(),
            out: Vec::new(),
        }
    }

    /// Gives to `each` what may be kept of a record: nothing if it is not
    /// about a connection, else one record or, if it grew long, several.
    pub fn record(&mut self, record: &[u8], mut each: impl FnMut(Header, &[u8])) {
        let Some(header) = Header::read(record) else { return };
        let payload = record
            .get(size_of::<Header>()..)
            .and_then(|p| p.get(..header.length as usize));
        let Some(payload) = payload else { return };
        match header.kind {
            kind::OPEN => {
                if let Some(open) = Open::read(payload) {
                    self.open(header);
                    let open = Open {
                        socket: self.name(open.socket),
                        peer_socket: self.name(open.peer_socket),
                        ..open
                    };
                    each(header, open.bytes());
                }
            }
            kind::FRAMES => self.frames(header, payload, each),
            kind::CLOSE => {
                self.connections.remove(&header.connection);
                if let Some(close) = Close::read(payload) {
                    each(header, close.bytes());
                }
            }
            // Numbers only.
            kind::LINK => each(header, payload),
            kind::NAME => {
                if let Some(mut name) = Name::read(payload) {
                    let used = name.path.get(..name.length as usize).unwrap_or_default();
                    let kept = policy::target(used).len();
                    name.length = kept as u32;
                    name.path.iter_mut().skip(kept).for_each(|b| *b = 0);
                    each(header, name.bytes());
                }
            }
            _ => {}
        }
    }

    /// Forgets the connections of a process that ended.
    pub fn exited(&mut self, pid: u32) {
        self.connections.retain(|_, connection| connection.pid != pid);
    }

    fn open(&mut self, header: Header) {
        if self.connections.len() >= CONNECTIONS
            && let Some(key) = self.connections.keys().next().copied()
        {
            self.connections.remove(&key);
        }
        self.connections.insert(
            header.connection,
            Connection {
                pid: header.pid,
                ..Connection::default()
            },
        );
    }

    /// The name of a socket that stands for its address; 0 is none.
    fn name(&self, socket: u64) -> u64 {
        if socket == 0 {
            0
        } else {
            self.names.hash_one(socket).max(1)
        }
    }

    fn frames(&mut self, header: Header, bytes: &[u8], mut each: impl FnMut(Header, &[u8])) {
        let mut head = header;
        if header.flags & flags::HTTP1 == 0 {
            // A block that needs no table needs no reader that knows the table. One that does
            // know it would take what is marked unknown for a mistake.
            head.flags &= !flags::ORIGIN;
        }
        let Some(connection) = self.connections.get_mut(&header.connection) else {
            each(head, &[]);
            return;
        };
        connection.pid = header.pid;
        let way = usize::from(header.direction & 1);
        if header.flags & flags::GAP != 0 {
            connection.lose(way);
        }
        let origin = header.flags & flags::ORIGIN != 0;
        let out = &mut self.out;
        out.clear();
        let mut frames = std::mem::take(&mut connection.halves[way].frames);
        let mut limit = None;
        let last = flags::END;
        let result = frames.feed(bytes, |frame, payload| {
            if out.len() > PIECE {
                each(
                    Header {
                        flags: head.flags & !last,
                        length: out.len() as u32,
                        ..head
                    },
                    out,
                );
                out.clear();
                head.flags &= last | flags::HTTP1;
            }
            connection.frame(way, frame, payload, origin, &self.allow, &mut limit, out);
        });
        connection.halves[way].frames = frames;
        if let Some(limit) = limit {
            connection.halves[1 - way].http2.set_limit(limit);
        }
        if result.is_err() {
            connection.lose(way);
            // Nine bytes that are no frame.
            out.extend_from_slice(&[0xff; 9]);
        }
        each(
            Header {
                length: out.len() as u32,
                ..head
            },
            out,
        );
    }
}

impl Connection {
    #[expect(clippy::too_many_arguments, reason = "one frame and where it goes")]
    fn frame(
        &mut self,
        way: usize,
        head: Head,
        payload: &[u8],
        origin: bool,
        allow: &Allow,
        limit: &mut Option<u32>,
        out: &mut Vec<u8>,
    ) {
        match head.kind {
            frame::HEAD => self.http1_head(way, head, payload, allow, out),
            frame::BODY_END => put(out, head, payload.get(..8).unwrap_or(payload)),
            frame::TUNNEL => put(out, head, &[]),
            _ => {
                let requests = self.requests.map(|requests| requests == way);
                let mut rewriter = Rewriter::new(allow, requests);
                rewriter.frame(&mut self.halves[way].http2, head, payload, origin, out);
                *limit = rewriter.limit.or(*limit);
                if let Some(requests) = rewriter.shown {
                    self.requests.get_or_insert(if requests { way } else { 1 - way });
                }
            }
        }
    }

    fn http1_head(&mut self, way: usize, head: Head, payload: &[u8], allow: &Allow, out: &mut Vec<u8>) {
        let so_far = &mut self.halves[way].head;
        if so_far.is_empty() && head.flags == 0 && !payload.is_empty() {
            // The head began in this record: an empty line before it says so (RFC 9112 §2.2).
            put(out, head, b"\r\n");
        }
        so_far.extend_from_slice(payload);
        if head.flags == 0 {
            return;
        }
        let (whole, request) = http1::head(&std::mem::take(so_far), allow);
        if let Some(request) = request {
            self.requests.get_or_insert(if request { way } else { 1 - way });
        }
        let mut rest = &whole[..];
        while let Some((piece, more)) = rest.split_at_checked(http1::PIECE) {
            put(out, Head { flags: 0, ..head }, piece);
            rest = more;
        }
        put(out, head, rest);
    }

    /// Bytes of one direction were lost.
    fn lose(&mut self, way: usize) {
        let half = &mut self.halves[way];
        half.frames.lose();
        half.http2.lose();
        half.head = Vec::new();
    }
}

const _: () = assert!(direction::SEND == 1 && direction::RECEIVE == 0);
