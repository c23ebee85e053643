//! The contexts that come in: walks the elided stream of what a process
//! receives and finds the context of each request, at the moment at
//! which the process reads it.
//!
//! Bias: a context that may be there and can't be read is *unknown*, so that
//! nothing is hung below a guess.
//!
//! ```text
//!   HEAD --HEADERS--> PREFIX > FRAGMENT --> SKIP (padding) --> HEAD
//!        --CONTINUATION--------^
//!        --HTTP/1 head-----> HTTP1 -----> HEAD
//!        --anything else----------------> SKIP
//!   (a response) --> IDLE: the process is a client here
//! ```

use tracewire_common::elided::{FRAME_HEADER, HEAD_END, HEAD_TRUNCATED, Head, flag, frame};

use crate::block::{Block, Piece, Table, sign, state as found};
use crate::head::{GO, Strict, Turn as HeadTurn, state};

mod phase {
    pub const HEAD: u8 = 0;
    pub const SKIP: u8 = 1;
    pub const PREFIX: u8 = 2;
    pub const FRAGMENT: u8 = 3;
    pub const IDLE: u8 = 4;
    pub const HTTP1: u8 = 5;
}

/// One direction of a connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inbound {
    /// Where the walk stands in the piece.
    pub at: u32,
    /// Bytes of the piece.
    pub size: u32,
    /// Bytes left of what the phase is in.
    need: u32,
    /// Padding after the fragment.
    pad: u32,
    /// Payload after the prefix.
    rest: u32,
    /// Stream of the block under way.
    pub stream: u32,
    /// Highest stream that a request came on.
    newest: u32,
    phase: u8,
    have: u8,
    flags: u8,
    /// 1: the next byte is the length of the padding.
    padded: u8,
    header: [u8; 32],
    /// HTTP/1: the head under way.
    strict: Strict,
    /// The block under way.
    pub block: Block,
    table: Table,
}

/// What a step led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The next one, please.
    More,
    /// The piece is over.
    Done,
    /// The block of a request is over: [`Inbound::stream`], [`Inbound::block`].
    Request,
}

impl Inbound {
    /// Before the first byte.
    pub const EMPTY: Inbound = Inbound {
        at: 0,
        size: 0,
        need: 0,
        pad: 0,
        rest: 0,
        stream: 0,
        newest: 0,
        phase: phase::HEAD,
        have: 0,
        flags: 0,
        padded: 0,
        header: [0; 32],
        strict: Strict::START,
        block: Block::EMPTY,
        table: Table::EMPTY,
    };

    /// Bytes are missing before the next piece, which begins with a frame.
    #[inline(always)]
    pub fn lose(&mut self) {
        if self.phase != phase::IDLE {
            self.phase = phase::HEAD;
        }
        self.have = 0;
        // Of a head that is under way the beginning may be missing.
        self.strict.state = state::BAD;
        self.block.begin();
        self.table.lose();
    }

    /// A piece of `size` bytes begins.
    #[inline(always)]
    pub fn begin(&mut self, size: u32) {
        self.at = 0;
        self.size = size;
    }

    /// One step over the piece.
    #[inline(always)]
    pub fn step<P: Piece>(&mut self, piece: &P) -> Turn {
        if self.at >= self.size || self.phase == phase::IDLE {
            return Turn::Done;
        }
        let left = self.size - self.at;
        match self.phase {
            phase::HEAD => return self.head(piece, left),
            phase::PREFIX => {
                let c = piece.byte(self.at);
                self.at += 1;
                if self.padded != 0 {
                    self.padded = 0;
                    self.pad = u32::from(c);
                }
                self.need = self.need.wrapping_sub(1);
                if self.need == 0 {
                    if self.pad > self.rest {
                        self.lose();
                        self.skip(self.rest);
                    } else {
                        return self.fragment(self.rest - self.pad);
                    }
                }
            }
            phase::FRAGMENT => {
                let n = if self.need < left { self.need } else { left };
                let n = self.block.step(&mut self.table, piece, self.at, n);
                self.at += n;
                self.need = self.need.wrapping_sub(n);
                if self.need == 0 {
                    return self.block_end();
                }
            }
            phase::HTTP1 => return self.lines(piece, left),
            _ => {
                let n = if self.need < left { self.need } else { left };
                self.at += n;
                self.skip(self.need - n);
            }
        }
        Turn::More
    }

    /// In a piece of an HTTP/1 head.
    #[inline(always)]
    fn lines<P: Piece>(&mut self, piece: &P, left: u32) -> Turn {
        let n = if self.need < left { self.need } else { left };
        let mut turn = HeadTurn::Next;
        let mut i = 0;
        while i < GO {
            if i >= n {
                break;
            }
            turn = self.strict.byte(&mut self.block, piece.byte(self.at.wrapping_add(i)));
            i += 1;
            if turn != HeadTurn::Next {
                break;
            }
        }
        self.at = self.at.wrapping_add(i);
        self.need = self.need.wrapping_sub(i);
        if turn == HeadTurn::Value {
            self.block.value_ends();
        }
        if self.need == 0 { self.piece_end() } else { Turn::More }
    }

    /// A piece of an HTTP/1 head is over, and maybe the head.
    #[inline(always)]
    fn piece_end(&mut self) -> Turn {
        self.phase = phase::HEAD;
        if self.flags & HEAD_END == 0 {
            return Turn::More;
        }
        if self.strict.state == state::BAD || self.flags & HEAD_TRUNCATED != 0 {
            // Another one may be in what was not understood.
            self.block.found[0].state = found::UNKNOWN;
        }
        self.strict = Strict::START;
        if self.stream == 0 {
            self.phase = phase::IDLE;
            return Turn::More;
        }
        Turn::Request
    }

    #[inline(always)]
    fn skip(&mut self, n: u32) {
        self.need = n;
        self.phase = if n == 0 { phase::HEAD } else { phase::SKIP };
    }

    #[inline(always)]
    fn head<P: Piece>(&mut self, piece: &P, left: u32) -> Turn {
        let have = u32::from(self.have);
        let missing = (FRAME_HEADER as u32).wrapping_sub(have);
        let n = if missing < left { missing } else { left };
        let mut i = 0;
        while i < FRAME_HEADER as u32 {
            // Beyond `n` it writes what is overwritten later, or not looked at.
            self.header[((have + i) & 31) as usize] = piece.byte(self.at + i);
            i += 1;
        }
        self.at += n;
        if n < missing {
            self.have = (have + n) as u8;
            return Turn::More;
        }
        self.have = 0;
        let b = &self.header;
        let head = Head::parse(&[b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8]]);
        self.flags = head.flags;
        self.pad = 0;
        match head.kind {
            frame::HEADERS => {
                self.stream = head.stream;
                self.block.begin();
                self.padded = u8::from(head.flags & flag::PADDED != 0);
                let before = u32::from(self.padded) + if head.flags & flag::PRIORITY != 0 { 5 } else { 0 };
                if before == 0 {
                    return self.fragment(head.length);
                }
                if before > head.length {
                    self.table.lose();
                    self.skip(head.length);
                } else {
                    self.need = before;
                    self.rest = head.length - before;
                    self.phase = phase::PREFIX;
                }
            }
            frame::CONTINUATION => return self.fragment(head.length),
            frame::HEAD => {
                if self.strict.state == state::START {
                    self.block.begin();
                }
                self.stream = head.stream;
                self.need = head.length;
                self.phase = phase::HTTP1;
                if head.length == 0 {
                    return self.piece_end();
                }
            }
            frame::TRUNCATED | frame::PUSH_PROMISE => {
                self.table.lose();
                self.skip(head.length);
            }
            _ => self.skip(head.length),
        }
        Turn::More
    }

    #[inline(always)]
    fn fragment(&mut self, n: u32) -> Turn {
        self.need = n;
        self.phase = phase::FRAGMENT;
        if n == 0 { self.block_end() } else { Turn::More }
    }

    #[inline(always)]
    fn block_end(&mut self) -> Turn {
        self.skip(self.pad);
        self.pad = 0;
        if self.flags & flag::END_HEADERS == 0 {
            return Turn::More;
        }
        let signs = self.block.signs;
        if signs & sign::RESPONSE != 0 {
            self.phase = phase::IDLE;
        } else if signs & sign::REQUEST != 0 && self.stream > self.newest {
            self.newest = self.stream;
            return Turn::Request;
        }
        Turn::More
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;
    use crate::block::state;
    use crate::io::SIGHT;

    struct Bytes<'a>(&'a [u8]);

    impl Piece for Bytes<'_> {
        fn byte(&self, at: u32) -> u8 {
            self.0.get(at as usize).copied().unwrap_or(0xee)
        }
    }

    fn put(to: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = payload.len() as u32;
        to.extend(
            Head {
                length,
                kind,
                flags,
                stream,
            }
            .bytes(),
        );
        to.extend(payload);
    }

    fn feed(inbound: &mut Inbound, bytes: &[u8], found: &mut Vec<(u32, u8, u8)>) {
        inbound.begin(bytes.len() as u32);
        loop {
            match inbound.step(&Bytes(bytes)) {
                Turn::More => {}
                Turn::Done => break,
                Turn::Request => found.push((inbound.stream, inbound.block.found[0].state, inbound.block.signs)),
            }
        }
    }

    fn requests() -> Vec<u8> {
        let mut bytes = Vec::new();
        put(&mut bytes, frame::SETTINGS, 0, 0, &[0; 6]);
        let mut block = std::vec![0x83, 0x86, 0x04, 2, b'/', b'a', 0x40, 11];
        block.extend(b"traceparent\x3700-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        put(&mut bytes, frame::HEADERS, flag::END_HEADERS, 1, &block);
        put(&mut bytes, frame::MESSAGE, 0, 1, &[0; 5]);
        put(&mut bytes, frame::HEADERS, 0, 3, &[0x83, 0x86]);
        put(&mut bytes, frame::CONTINUATION, 4, 3, &[0x84, 0xbe]);
        put(
            &mut bytes,
            frame::HEADERS,
            0x2c,
            5,
            &[2, 0, 0, 0, 0, 9, 0x83, 0x86, 0x84, 0, 0],
        );
        // Trailers.
        put(&mut bytes, frame::HEADERS, 5, 5, &[0, 1, b'a', 1, b'b']);
        put(&mut bytes, frame::DATA, 1, 5, &[]);
        bytes
    }

    #[test]
    fn each_request_s_context_is_found_at_every_cut() {
        let bytes = requests();
        for cut in 0..=bytes.len() {
            let mut inbound = Inbound::EMPTY;
            let mut found = Vec::new();
            feed(&mut inbound, &bytes[..cut], &mut found);
            feed(&mut inbound, &bytes[cut..], &mut found);
            let expected = [
                (1, state::VALUE, sign::REQUEST),
                (3, state::VALUE, sign::REQUEST),
                (5, state::ABSENT, sign::REQUEST),
            ];
            assert_eq!(found, expected, "cut at {cut}");
        }
    }

    #[test]
    fn after_a_gap_what_may_be_there_is_unknown() {
        let bytes = requests();
        let mut inbound = Inbound::EMPTY;
        let mut found = Vec::new();
        feed(&mut inbound, &bytes, &mut found);
        inbound.lose();
        let mut more = Vec::new();
        put(&mut more, frame::HEADERS, 5, 7, &[0x83, 0x86, 0x84, 0xbe]);
        found.clear();
        feed(&mut inbound, &more, &mut found);
        assert_eq!(found, [(7, state::ABSENT, sign::REQUEST | sign::UNNAMED)]);
    }

    fn head(to: &mut Vec<u8>, number: u32, text: &str) {
        let mut pieces = text.as_bytes().chunks(SIGHT as usize).peekable();
        while let Some(piece) = pieces.next() {
            let last = pieces.peek().is_none();
            put(to, frame::HEAD, u8::from(last), number, piece);
        }
        put(to, frame::BODY_END, 0, 0, &[0; 8]);
    }

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn http1_is_read_in_any_case_at_every_cut() {
        let mut bytes = Vec::new();
        let own = std::format!("GET /a HTTP/1.1\r\nHost: x\r\nTraceParent: \t{PARENT} \r\nAccept: */*\r\n\r\n");
        head(&mut bytes, 1, &own);
        head(&mut bytes, 2, "POST /b?q HTTP/1.0\r\nContent-Length: 3\r\n\r\n");
        let twice = std::format!("GET / HTTP/1.1\r\ntraceparent:{PARENT}\r\nTRACEPARENT:{PARENT}\r\n\r\n");
        head(&mut bytes, 3, &twice);
        let folded = std::format!("GET / HTTP/1.1\r\ntraceparent: {PARENT}\r\n x: y\r\n\r\n");
        head(&mut bytes, 4, &folded);
        let odd = std::format!("GET / HTTP/1.1\r\ntraceparent: {PARENT} x\r\n\r\n");
        head(&mut bytes, 5, &odd);
        let sentry = "GET / HTTP/1.1\r\nsentry-trace: 0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331\r\n\r\n";
        head(&mut bytes, 6, sentry);
        for cut in 0..=bytes.len() {
            let mut inbound = Inbound::EMPTY;
            let mut found = Vec::new();
            let mut parts = Vec::new();
            for part in [&bytes[..cut], &bytes[cut..]] {
                inbound.begin(part.len() as u32);
                loop {
                    match inbound.step(&Bytes(part)) {
                        Turn::More => {}
                        Turn::Done => break,
                        Turn::Request => {
                            found.push((inbound.stream, inbound.block.found[0].state));
                            parts.push(inbound.block.found[1]);
                        }
                    }
                }
            }
            let expected = [
                (1, state::VALUE),
                (2, state::ABSENT),
                (3, state::MALFORMED),
                (4, state::UNKNOWN),
                (5, state::MALFORMED),
                (6, state::ABSENT),
            ];
            assert_eq!(found, expected, "cut at {cut}");
            assert_eq!(parts[5].state, state::VALUE);
            assert_eq!(parts[4].state, state::ABSENT);
        }
    }

    #[test]
    fn after_a_gap_no_head_is_believed_until_one_began() {
        let mut inbound = Inbound::EMPTY;
        let mut bytes = Vec::new();
        head(
            &mut bytes,
            1,
            &std::format!("GET / HTTP/1.1\r\ntraceparent: {PARENT}\r\n\r\n"),
        );
        let mut found = Vec::new();
        feed(&mut inbound, &bytes, &mut found);
        inbound.lose();
        let mut more = Vec::new();
        head(&mut more, 3, "x: y\r\n\r\n");
        head(&mut more, 4, "GET / HTTP/1.1\r\n\r\n");
        feed(&mut inbound, &more, &mut found);
        let states: Vec<_> = found.iter().map(|(number, state, _)| (*number, *state)).collect();
        assert_eq!(states, [(1, state::VALUE), (3, state::UNKNOWN), (4, state::ABSENT)]);
    }

    #[test]
    fn responses_of_http1_are_left_alone() {
        let mut bytes = Vec::new();
        head(&mut bytes, 0, "HTTP/1.1 200 OK\r\n\r\n");
        head(&mut bytes, 1, "GET / HTTP/1.1\r\n\r\n");
        let mut found = Vec::new();
        feed(&mut Inbound::EMPTY.clone(), &bytes, &mut found);
        assert_eq!(found, []);
    }

    #[test]
    fn a_client_s_side_is_left_alone() {
        let mut bytes = Vec::new();
        put(&mut bytes, frame::HEADERS, 4, 1, &[0x88]);
        bytes.extend(requests());
        let mut found = Vec::new();
        feed(&mut Inbound::EMPTY.clone(), &bytes, &mut found);
        assert_eq!(found, []);
    }
}
