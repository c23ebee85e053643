//! The chain from a connection's bytes to exchanges, on slices: the kernel's
//! framers, its records, and the agent's assembler.

use std::collections::HashMap;

use tracewire::connection::record::Event;
use tracewire::protocol::fields::Allow;
use tracewire::request::assemble::{Assembler, Output};
use tracewire_common::elided::{FRAME_HEADER, Head, frame};
use tracewire_common::event::{Header, Open, Plain as _, direction, flags, kind};
use tracewire_common::fault::Fault;
use tracewire_ebpf::connection::{Flow, Http1, Message, Shared, phase, protocol};
use tracewire_ebpf::http1::{Bytes, Turn};
use tracewire_ebpf::io::Io;
use tracewire_ebpf::step::{Step, step};

/// The surroundings of a framer: a piece of bytes, and what came out.
#[derive(Default)]
struct Piece<'a> {
    input: &'a [u8],
    out: Vec<u8>,
    streams: HashMap<u32, Message>,
}

impl Piece<'_> {
    fn advance(&mut self, n: u32) -> &[u8] {
        let (taken, rest) = self.input.split_at((n as usize).min(self.input.len()));
        self.input = rest;
        taken
    }
}

impl Io for Piece<'_> {
    fn available(&mut self) -> u32 {
        self.input.len() as u32
    }
    fn look(&mut self, n: u32) -> u32 {
        self.input.len().min(n as usize) as u32
    }
    fn byte(&self, at: u32) -> u8 {
        self.input.get(at as usize).copied().unwrap_or(0xa5)
    }
    fn word(&self, at: u32) -> u64 {
        u64::from_be_bytes(std::array::from_fn(|i| self.byte(at + i as u32)))
    }
    fn scan<B: Bytes>(&mut self, n: u32, http1: &mut Http1) -> (u32, Turn) {
        for i in 0..n {
            let turn = B::byte(http1, self.byte(i));
            if turn != Turn::Next {
                return (i + 1, turn);
            }
        }
        (n, Turn::Next)
    }
    fn skip(&mut self, n: u32) {
        self.advance(n);
    }
    fn copy(&mut self, n: u32) -> u32 {
        let taken = self.advance(n).to_vec();
        self.out.extend(&taken);
        taken.len() as u32
    }
    fn put(&mut self, head: Head) {
        self.out.extend(head.bytes());
    }
    fn put_u64(&mut self, value: u64) {
        self.out.extend(value.to_be_bytes());
    }
    fn put_prefix(&mut self, prefix: &[u8; 8]) {
        self.out.extend(prefix.iter().take(5));
    }
    fn put_byte(&mut self, byte: u8) {
        self.out.push(byte);
    }
    fn load(&mut self, stream: u32) -> Option<Message> {
        self.streams.get(&stream).copied()
    }
    fn store(&mut self, stream: u32, message: &Message) -> bool {
        self.streams.insert(stream, *message);
        true
    }
    fn forget(&mut self, stream: u32) {
        self.streams.remove(&stream);
    }
    fn fault(&mut self, _: Fault) {}
}

/// First bytes of a connection by which its protocol is told: a frame header.
pub const BEGINNING: usize = FRAME_HEADER;

/// One direction alone.
#[derive(Default)]
pub struct Direction {
    shared: Shared,
    half: Half,
    /// What came out so far.
    pub elided: Vec<u8>,
}

#[derive(Default)]
struct Half {
    flow: Flow,
    streams: HashMap<u32, Message>,
    dead: bool,
}

impl Half {
    /// Frames a piece; false: no further.
    fn feed(&mut self, shared: &mut Shared, piece: &[u8], elided: &mut Vec<u8>) -> bool {
        if self.dead {
            return false;
        }
        if shared.upgraded != 0 && self.flow.phase == phase::HTTP1_HEAD && self.flow.http1.state == 0 {
            self.flow.phase = phase::START;
        }
        let mut io = Piece {
            input: piece,
            streams: std::mem::take(&mut self.streams),
            ..Piece::default()
        };
        let mut steps = 0;
        while !io.input.is_empty() && !self.dead {
            self.dead = self.flow.phase == phase::DEAD || step(shared, &mut self.flow, &mut io) != Step::More;
            steps += 1;
            assert!(
                steps <= 4 * piece.len() + 64,
                "the framer does not come to an end: phase {}, need {}, left {}",
                self.flow.phase,
                self.flow.need,
                io.input.len()
            );
        }
        elided.append(&mut io.out);
        self.streams = io.streams;
        !self.dead
    }
}

impl Direction {
    /// Frames a piece; false: no further.
    pub fn feed(&mut self, piece: &[u8]) -> bool {
        self.half.feed(&mut self.shared, piece, &mut self.elided)
    }
}

/// Frames of an elided stream: kind, flags, stream, payload; pieces of a head are put together.
pub type Frames = Vec<(u8, u8, u32, Vec<u8>)>;

/// See [`Frames`]; what is no whole frame at the end is left out.
pub fn joined(elided: &[u8]) -> Frames {
    let mut frames: Frames = Vec::new();
    let mut rest = elided;
    let mut open = false;
    while let Some((head, more)) = rest.split_first_chunk::<FRAME_HEADER>() {
        let head = Head::parse(head);
        let Some((payload, more)) = more.split_at_checked(head.length as usize) else {
            break;
        };
        rest = more;
        match frames.last_mut() {
            Some(last) if open && head.kind == frame::HEAD => {
                last.3.extend(payload);
                last.1 = head.flags;
                // The number that counts is the last piece's: only then it is known what the head is.
                last.2 = head.stream;
            }
            _ => frames.push((head.kind, head.flags, head.stream, payload.to_vec())),
        }
        open = head.kind == frame::HEAD && head.flags == 0;
    }
    if open {
        frames.pop();
    }
    frames
}

/// A connection as its server's process has it: what it receives are requests.
pub struct Connection {
    shared: Shared,
    halves: [Half; 2],
    assembler: Assembler,
    out: Vec<Output>,
}

impl Default for Connection {
    fn default() -> Self {
        let allow = Allow {
            request: vec!["x-call-id".into()],
            response: Vec::new(),
        };
        let mut connection = Connection {
            shared: Shared::default(),
            halves: <[Half; 2]>::default(),
            assembler: Assembler::new(allow),
            out: Vec::new(),
        };
        let open = Open {
            family: 2,
            ..Open::EMPTY
        };
        connection.record(kind::OPEN, 0, flags::ORIGIN, open.bytes());
        connection
    }
}

impl Connection {
    fn record(&mut self, kind: u8, direction: u8, flags: u16, payload: &[u8]) {
        let header = Header {
            kind,
            direction,
            flags,
            length: payload.len() as u32,
            connection: 1,
            pid: 1,
            tid: 1,
            ..Header::EMPTY
        };
        let record = [header.bytes(), payload].concat();
        if let Some(event) = Event::parse(&record) {
            self.assembler.event(event, &mut self.out);
        }
    }

    fn feed(&mut self, way: u8, piece: &[u8]) {
        let mut elided = Vec::new();
        if let Some(half) = self.halves.get_mut(usize::from(way)) {
            half.feed(&mut self.shared, piece, &mut elided);
        }
        let http1 = if self.shared.protocol == protocol::HTTP1 {
            flags::HTTP1
        } else {
            0
        };
        self.record(kind::FRAMES, way, flags::ORIGIN | http1, &elided);
    }

    /// Bytes from the client.
    pub fn receive(&mut self, piece: &[u8]) {
        self.feed(direction::RECEIVE, piece);
    }

    /// Bytes to the client.
    pub fn send(&mut self, piece: &[u8]) {
        self.feed(direction::SEND, piece);
    }

    /// All exchanges, as text, once the connection is closed.
    pub fn exchanges(mut self) -> Vec<String> {
        self.record(kind::CLOSE, 0, 0, &0_u32.to_ne_bytes());
        let ended = self.out.iter().filter_map(|output| match output {
            Output::Ended(exchange) => Some(format!("{exchange:?}")),
            _ => None,
        });
        ended.collect()
    }
}
