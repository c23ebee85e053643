//! The fuzz targets without libFuzzer: seeds that are whole, changed at random
//! for a while. `TRACEWIRE_FUZZ_SECONDS` is the time for each target (1), and
//! what made one fail is left in a file that the message names.
#![allow(missing_docs, reason = "tests")]

use std::panic::catch_unwind;
use std::time::{Duration, Instant};

use tracewire_common::event::{Header, Open, Plain as _, direction, flags, kind};
use tracewire_fuzz::wire::Direction;
use tracewire_tests::peer::Flights;

/// xorshift64*: enough to choose changes.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// Bytes that parsers look at more closely than at others.
const TELLING: [&[u8]; 14] = [
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\x3f",
    b"\x1f",
    b"\r\n",
    b"\n ",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"HTTP/1.1 200",
    b"Content-Length: 5",
    b"Transfer-Encoding: chunked",
    b"\0\0\x08\x01\x04\0\0\0\x01",
    b"\0\0\0\0\0",
];

fn change(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    for _ in 0..=random.below(6) {
        let at = random.below(bytes.len() + 1);
        let to = at + random.below(bytes.len() + 1 - at);
        match random.below(7) {
            0 => bytes.truncate(at),
            1 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            2 if at < bytes.len() => bytes[at] = random.next() as u8,
            3 => drop(bytes.splice(at..at, TELLING[random.below(TELLING.len())].iter().copied())),
            4 if to - at < 200 => drop(bytes.drain(at..to)),
            5 if to - at < 2000 => {
                let copy = bytes[at..to].to_vec();
                bytes.splice(at..at, copy);
            }
            _ => {
                let from = random.below(other.len());
                bytes.splice(at..at, other[from..].iter().take(random.below(64)).copied());
            }
        }
    }
    bytes.truncate(8192);
}

fn fuzz(name: &str, target: fn(&[u8]), seeds: &[Vec<u8>]) {
    let seconds = std::env::var("TRACEWIRE_FUZZ_SECONDS")
        .ok()
        .and_then(|s| s.parse().ok());
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(1));
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let mut random = Random(since.as_nanos() as u64 | 1);
    let mut runs = 0_u64;
    for seed in seeds {
        target(seed);
    }
    while Instant::now() < end {
        let mut bytes = seeds[random.below(seeds.len())].clone();
        let other = &seeds[random.below(seeds.len())];
        change(&mut bytes, other, &mut random);
        runs += 1;
        if catch_unwind(|| target(&bytes)).is_err() {
            let file = std::env::temp_dir().join(format!("tracewire-fuzz-{name}-{}", std::process::id()));
            let _ = std::fs::write(&file, &bytes);
            unreachable!("{name} failed after {runs} runs; its input is in {}", file.display());
        }
    }
    println!("{name}: {runs} runs");
}

fn wires() -> Vec<Vec<u8>> {
    let flights = Flights::new("fuzz");
    vec![
        flights.client,
        flights.server,
        b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\n\r\n".to_vec(),
        b"PUT /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nT: v\r\n\r\n".to_vec(),
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec(),
    ]
}

fn elided() -> Vec<Vec<u8>> {
    let elide = |bytes: Vec<u8>| {
        let mut direction = Direction::default();
        direction.feed(&bytes);
        direction.elided
    };
    wires().into_iter().map(elide).collect()
}

fn record(kind: u8, way: u8, payload: &[u8]) -> Vec<u8> {
    let header = Header {
        kind,
        direction: way,
        flags: flags::ORIGIN,
        length: payload.len() as u32,
        connection: 1,
        pid: 1,
        ..Header::EMPTY
    };
    [header.bytes(), payload].concat()
}

/// A connection's records, each with its length before it in `width` bytes.
fn connection(width: usize) -> Vec<Vec<u8>> {
    let pairs = elided();
    let record_of = |requests: &[u8], responses: &[u8]| {
        let records = [
            record(kind::OPEN, 0, Open::EMPTY.bytes()),
            record(kind::FRAMES, direction::RECEIVE, requests),
            record(kind::FRAMES, direction::SEND, responses),
            record(kind::CLOSE, 0, &0_u32.to_ne_bytes()),
        ];
        let mut bytes = Vec::new();
        for record in records {
            bytes.extend(record.len().to_le_bytes().iter().take(width));
            bytes.extend(record);
        }
        bytes
    };
    vec![record_of(&pairs[0], &pairs[1]), record_of(&pairs[2], &pairs[4])]
}

#[test]
fn framer() {
    let with_cuts = |bytes: Vec<u8>| [&[1, 9, 3, 200, 64, 2, 5, 17][..], &bytes].concat();
    let seeds: Vec<_> = wires().into_iter().map(with_cuts).collect();
    fuzz("framer", tracewire_fuzz::framer, &seeds);
}

#[test]
fn hpack() {
    let mut encoder = loona_hpack::Encoder::new();
    let mut stream = Vec::new();
    for n in 0..20 {
        let id = format!("{n}");
        let block = encoder.encode([
            (&b":method"[..], &b"POST"[..]),
            (b":path", b"/a.B/C"),
            (b"content-type", b"application/grpc"),
            (b"x-call-id", id.as_bytes()),
        ]);
        stream.push(block.len() as u8);
        stream.extend(block);
    }
    // RFC 7541 C.4.1, C.6.1: Huffman codes; C.5.1: evictions.
    let huffman = b"\x11\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff";
    let update = b"\x05\x3f\xe1\x01\x82\x84\x04\x20\x3f\x61\x82";
    fuzz(
        "hpack",
        tracewire_fuzz::hpack,
        &[stream, huffman.to_vec(), update.to_vec()],
    );
}

#[test]
fn http1() {
    fuzz("http1", tracewire_fuzz::http1, &wires().split_off(2));
}

#[test]
fn records() {
    fuzz("records", tracewire_fuzz::records, &connection(2));
}

#[test]
fn recording() {
    fuzz("recording", tracewire_fuzz::recording, &connection(4));
}
