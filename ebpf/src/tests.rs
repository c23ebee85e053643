//! The framers over slices, cut at every byte.
#![allow(clippy::unwrap_used, reason = "tests")]

extern crate std;
use std::collections::HashMap;
use std::vec;
use std::vec::Vec;

use tracewire_common::elided::{FRAME_HEADER, Head, UNCOUNTED, flag, frame};
use tracewire_common::fault::Fault;

use crate::connection::{Flow, Http1, Message, Shared, phase, protocol};
use crate::http1::{Bytes, Turn};
use crate::io::Io;
use crate::step::{Step, step};

/// [`Io`] over one slice.
#[derive(Default)]
pub struct Slice {
    input: Vec<u8>,
    pub out: Vec<u8>,
    streams: HashMap<u32, Message>,
    pub faults: Vec<Fault>,
}

impl Io for Slice {
    fn available(&mut self) -> u32 {
        self.input.len() as u32
    }
    fn look(&mut self, n: u32) -> u32 {
        assert!(n <= crate::io::SIGHT);
        self.input.len().min(n.max(9) as usize) as u32
    }
    fn byte(&self, at: u32) -> u8 {
        self.input.get(at as usize).copied().unwrap_or(0xa5)
    }
    fn word(&self, at: u32) -> u64 {
        u64::from_be_bytes(core::array::from_fn(|i| self.byte(at + i as u32)))
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
        self.input.drain(..n as usize);
    }
    fn copy(&mut self, n: u32) -> u32 {
        let n = n.min(4095);
        self.out.extend(self.input.drain(..n as usize));
        n
    }
    fn put(&mut self, head: Head) {
        self.out.extend(head.bytes());
    }
    fn put_u64(&mut self, value: u64) {
        self.out.extend(value.to_be_bytes());
    }
    fn put_prefix(&mut self, prefix: &[u8; 8]) {
        self.out.extend(&prefix[..5]);
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
    fn fault(&mut self, fault: Fault) {
        self.faults.push(fault);
    }
}

/// One direction of a connection, fed piece by piece.
#[derive(Default)]
struct Run {
    connection: Shared,
    flow: Flow,
    io: Slice,
}

impl Run {
    fn feed(&mut self, piece: &[u8]) -> Step {
        self.io.input.extend_from_slice(piece);
        while !self.io.input.is_empty() {
            let result = step(&mut self.connection, &mut self.flow, &mut self.io);
            if result != Step::More {
                return result;
            }
        }
        Step::More
    }
}

/// Head pieces of the elided stream joined, so that cuts don't show.
fn joined(out: &[u8]) -> Vec<(u8, u8, u32, Vec<u8>)> {
    let mut frames: Vec<(u8, u8, u32, Vec<u8>)> = vec![];
    let mut at = 0;
    let mut open = false;
    while at < out.len() {
        let head = Head::parse(out[at..at + FRAME_HEADER].try_into().unwrap());
        at += FRAME_HEADER;
        let payload = out[at..at + head.length as usize].to_vec();
        at += head.length as usize;
        if head.kind == frame::HEAD && open {
            let last = frames.last_mut().unwrap();
            last.3.extend(payload);
            (last.1, last.2) = (head.flags, head.stream);
        } else {
            frames.push((head.kind, head.flags, head.stream, payload));
        }
        open = head.kind == frame::HEAD && head.flags == 0;
    }
    frames
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Head {
        length: payload.len() as u32,
        kind,
        flags,
        stream,
    }
    .bytes()
    .to_vec();
    out.extend_from_slice(payload);
    out
}

fn message(length: u32) -> Vec<u8> {
    let mut out = vec![0];
    out.extend(length.to_be_bytes());
    out.extend(vec![7u8; length as usize]);
    out
}

/// Feeds it whole, then cut in two at every byte, then byte by byte: always the same frames.
fn same_at_every_cut(bytes: &[u8]) -> Vec<(u8, u8, u32, Vec<u8>)> {
    let mut whole = Run::default();
    assert_eq!(whole.feed(bytes), Step::More);
    let expected = joined(&whole.io.out);
    for cut in 1..bytes.len() {
        let mut run = Run::default();
        run.feed(&bytes[..cut]);
        run.feed(&bytes[cut..]);
        assert_eq!(joined(&run.io.out), expected, "cut at {cut}");
    }
    let mut run = Run::default();
    for b in bytes {
        run.feed(&[*b]);
    }
    assert_eq!(joined(&run.io.out), expected, "byte by byte");
    assert_eq!(run.flow.phase, whole.flow.phase);
    expected
}

fn client_stream() -> Vec<u8> {
    let mut s = crate::http2::PREFACE.to_vec();
    s.extend(frame(frame::SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255]));
    s.extend(frame(frame::WINDOW_UPDATE, 0, 0, &[0, 0, 1, 0]));
    s.extend(frame(frame::SETTINGS, flag::ACK, 0, &[]));
    s.extend(frame(frame::HEADERS, flag::END_HEADERS, 1, b"block one"));
    s.extend(frame(frame::DATA, flag::END_STREAM, 1, &message(20)));
    s.extend(frame(frame::HEADERS, 0, 3, b"block "));
    s.extend(frame(frame::CONTINUATION, flag::END_HEADERS, 3, b"two"));
    // Two messages, the second over two frames, its prefix cut.
    let mut two = message(3);
    two.extend(message(30));
    s.extend(frame(frame::DATA, 0, 3, &two[..10]));
    s.extend(frame(frame::PING, 0, 0, &[1; 8]));
    s.extend(frame(
        frame::HEADERS,
        flag::END_HEADERS | flag::END_STREAM,
        5,
        b"block three",
    ));
    let mut padded = vec![4];
    padded.extend(&two[10..]);
    padded.extend([0; 4]);
    s.extend(frame(frame::DATA, flag::PADDED, 3, &padded));
    s.extend(frame(frame::DATA, flag::END_STREAM, 3, &[]));
    s.extend(frame(frame::RST_STREAM, 0, 5, &[0, 0, 0, 8]));
    s.extend(frame(frame::GOAWAY, 0, 0, b"\0\0\0\x05\0\0\0\0private words"));
    s.extend(frame(frame::HEADERS, flag::END_HEADERS, 7, b"last"));
    s
}

#[test]
fn http2_is_elided_alike_at_every_cut() {
    let frames = same_at_every_cut(&client_stream());
    let kinds: Vec<(u8, u32)> = frames.iter().map(|f| (f.0, f.2)).collect();
    assert_eq!(
        kinds,
        [
            (frame::SETTINGS, 0),
            (frame::HEADERS, 1),
            (frame::MESSAGE, 1),
            (frame::DATA, 1),
            (frame::HEADERS, 3),
            (frame::CONTINUATION, 3),
            (frame::MESSAGE, 3),
            (frame::HEADERS, 5),
            (frame::MESSAGE, 3),
            (frame::DATA, 3),
            (frame::RST_STREAM, 5),
            (frame::GOAWAY, 0),
            (frame::HEADERS, 7),
        ]
    );
    assert_eq!(frames[8].3, [0, 0, 0, 0, 30]);
    assert_eq!(frames[11].3, [0, 0, 0, 5, 0, 0, 0, 0], "debug data stays");
    assert!(!frames.iter().any(|f| f.3.contains(&7)), "no message bytes");
}

#[test]
fn what_leaves_does_not_grow_with_the_message() {
    let size = |length: u32| {
        let mut run = Run::default();
        run.feed(&crate::http2::PREFACE);
        run.feed(&frame(frame::HEADERS, flag::END_HEADERS, 1, b"block"));
        let message = message(length);
        for (i, piece) in message.chunks(16384).enumerate() {
            let last = (i + 1) * 16384 >= message.len();
            run.feed(&frame(frame::DATA, u8::from(last), 1, piece));
        }
        run.io.out.len()
    };
    assert_eq!(size(10), size(4 << 20));
}

#[test]
fn a_block_over_the_limit_is_said_not_sent() {
    let mut run = Run::default();
    run.feed(&crate::http2::PREFACE);
    run.feed(&frame(frame::HEADERS, 0, 1, &[1; 16000]));
    run.feed(&frame(frame::CONTINUATION, flag::END_HEADERS, 1, &[1; 1000]));
    run.feed(&frame(frame::HEADERS, flag::END_HEADERS, 3, b"next"));
    let frames = joined(&run.io.out);
    assert_eq!(frames[1].0, frame::TRUNCATED);
    assert_eq!(frames[1].1, flag::END_HEADERS);
    assert_eq!(frames[2].3, b"next");
    assert_eq!(run.io.faults, [Fault::BlockTooLong]);
}

#[test]
fn bodies_that_are_not_grpc_are_left_alone() {
    let mut run = Run::default();
    run.feed(&crate::http2::PREFACE);
    run.feed(&frame(frame::DATA, 0, 1, b"{\"json\": 1}"));
    run.feed(&frame(frame::DATA, flag::END_STREAM, 1, b"\0\0\0\0\x01x"));
    let frames = joined(&run.io.out);
    assert_eq!(frames.len(), 1, "{frames:?}");
    assert_eq!(frames[0].0, frame::DATA);
}

#[test]
fn a_body_of_zeros_is_not_forty_thousand_messages() {
    let mut run = Run::default();
    run.feed(&crate::http2::PREFACE);
    for last in 0..10 {
        run.feed(&frame(frame::DATA, u8::from(last == 9), 1, &[0; 16384]));
    }
    let frames = joined(&run.io.out);
    assert_eq!(frames.len(), 18, "16 messages, one that says so, and the end");
    assert_eq!((frames[16].0, frames[16].1), (frame::MESSAGE, UNCOUNTED));
    // Messages of gRPC may be empty, too.
    let mut run = Run::default();
    run.feed(&crate::http2::PREFACE);
    for _ in 0..10 {
        let mut data = [0; 45].to_vec();
        data.extend(message(3));
        run.feed(&frame(frame::DATA, 0, 1, &data));
    }
    let frames = joined(&run.io.out);
    assert_eq!(frames.iter().filter(|f| f.0 == frame::MESSAGE && f.1 == 0).count(), 100);
}

#[test]
fn grpc_web_trailers_come_out_whole() {
    let mut body = message(4);
    body.extend(b"\x80\0\0\0\x10grpc-status: 5\r\n");
    let mut s = crate::http2::PREFACE.to_vec();
    s.extend(frame(frame::DATA, flag::END_STREAM, 1, &body));
    let frames = same_at_every_cut(&s);
    assert_eq!(frames[1].0, frame::WEB_TRAILER);
    assert_eq!(frames[1].3, b"grpc-status: 5\r\n");
}

#[test]
fn an_empty_grpc_web_trailer_ends_the_message_and_not_the_framing() {
    let mut body = b"\x80\0\0\0\0".to_vec();
    body.extend(message(2));
    let mut s = crate::http2::PREFACE.to_vec();
    s.extend(frame(frame::DATA, flag::END_STREAM, 1, &body));
    s.extend(frame(frame::RST_STREAM, 0, 3, &[0, 0, 0, 8]));
    let frames = same_at_every_cut(&s);
    assert_eq!(frames.last().map(|f| (f.0, f.2)), Some((frame::RST_STREAM, 3)));
}

#[test]
fn http1_requests_at_every_cut() {
    let mut s = b"POST /a HTTP/1.1\r\nHost: x\r\ncontent-LENGTH: 5\r\n\r\nhello".to_vec();
    s.extend(b"PATCH /b HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n5;x=y\r\nhello\r\n10\r\n0123456789abcdef\r\n0\r\nT: v\r\n\r\n");
    s.extend(b"HEAD /c HTTP/1.1\nHost: x\n\n");
    s.extend(b"PUT /d HTTP/1.1\r\nContent-Length: 0\r\n\r\nGET / HTTP/1.1\r\n\r\n");
    let frames = same_at_every_cut(&s);
    let heads: Vec<&[u8]> = frames
        .iter()
        .filter(|f| f.0 == frame::HEAD)
        .map(|f| f.3.as_slice())
        .collect();
    assert_eq!(heads.len(), 5);
    let numbers: Vec<u32> = frames.iter().filter(|f| f.0 == frame::HEAD).map(|f| f.2).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5]);
    assert!(heads[1].starts_with(b"PATCH /b"));
    assert!(heads[4].ends_with(b"GET / HTTP/1.1\r\n\r\n"));
    let bodies: Vec<u64> = frames
        .iter()
        .filter(|f| f.0 == frame::BODY_END)
        .map(|f| u64::from_be_bytes(f.3.as_slice().try_into().unwrap()))
        .collect();
    assert_eq!(bodies, [5, 47, 0, 0, 0]);
    assert!(!s.is_empty());
}

#[test]
fn http1_responses_follow_their_requests() {
    let mut connection = Shared::default();
    let mut request = Flow::default();
    let mut response = Flow::default();
    let mut io = Slice {
        input: Vec::new(),
        ..Slice::default()
    };
    io.input = b"HEAD / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\nGET /u HTTP/1.1\r\nUpgrade: websocket\r\n\r\n".to_vec();
    while !io.input.is_empty() {
        assert_eq!(step(&mut connection, &mut request, &mut io), Step::More);
    }
    io.out.clear();
    io.input = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nHTTP/1.1 404 Not Found\r\ncontent-length:2\r\n\r\nnoHTTP/1.1 101 Switching Protocols\r\n\r\n\x81\x05hello".to_vec();
    while !io.input.is_empty() {
        assert_eq!(step(&mut connection, &mut response, &mut io), Step::More);
    }
    let frames = joined(&io.out);
    let kinds: Vec<u8> = frames.iter().map(|f| f.0).collect();
    assert_eq!(
        kinds,
        [
            frame::HEAD,
            frame::BODY_END,
            frame::HEAD,
            frame::BODY_END,
            frame::HEAD,
            frame::BODY_END,
            frame::HEAD,
            frame::TUNNEL
        ]
    );
    assert_eq!(connection.protocol, protocol::OTHER);
    assert_eq!(response.phase, phase::DEAD);
}

#[test]
fn other_protocols_are_left_alone() {
    for bytes in [
        &b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03"[..],
        b"*1\r\n$4\r\nPING\r\n",
        b"HELO there\r\n",
        b"PRIVATE words",
    ] {
        let mut run = Run::default();
        run.feed(bytes);
        run.feed(b"GET / HTTP/1.1\r\n\r\n");
        assert!(
            run.io.out.is_empty() || run.connection.protocol == protocol::HTTP1,
            "{bytes:?}"
        );
    }
}

proptest::proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..600), from in 0u8..15) {
        let mut run = Run::default();
        run.flow.phase = from;
        run.feed(&bytes);
    }

    #[test]
    fn random_cuts_change_nothing(cuts in proptest::collection::vec(1usize..40, 1..60)) {
        let stream = client_stream();
        let mut whole = Run::default();
        whole.feed(&stream);
        let mut run = Run::default();
        let mut rest = stream.as_slice();
        for cut in cuts.iter().cycle() {
            let n = (*cut).min(rest.len());
            run.feed(&rest[..n]);
            rest = &rest[n..];
            if rest.is_empty() { break; }
        }
        proptest::prop_assert_eq!(joined(&run.io.out), joined(&whole.io.out));
    }
}
