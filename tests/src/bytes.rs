//! Streams of bytes that a client sends, made alike on both ends, so that a
//! receiver can say whether each byte arrived as it left.

use anyhow::{Result, ensure};

use crate::full;

/// HTTP/2's connection preface (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How the field begins that an injector puts in: a literal without indexing, its name, the value's length.
const FIELD: &[u8] = b"\x00\x0btraceparent\x37";
/// All of it.
const FIELD_BYTES: usize = 69;
/// How the line begins that an injector puts in a head of HTTP/1.1.
const LINE: &[u8] = b"traceparent: 00-";
/// All of it.
const LINE_BYTES: usize = 70;
/// Bodies of the requests of [`Kind::Http2`] and [`Kind::Http1`].
const BODIES: [usize; 12] = [1, 2, 9, 68, 69, 70, 1000, 16_384, 16_385, 175_000, 1 << 20, 16 << 20];
/// The longest body, where time does not matter.
const LONGEST: usize = 64 << 20;
/// Bytes that come back.
pub const ANSWER: usize = 4 << 20;

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Requests with bodies from 1 byte to 16 MiB.
    Http2,
    /// Requests of HTTP/1.1 with such bodies, counted and in chunks, full of what looks like requests.
    Http1,
    /// What only looks like HTTP/1.1: heads that some would read otherwise, then requests.
    Odd1,
    /// What only looks like HTTP/2: the preface, then frames that no client sends.
    Tunnel,
    /// What a server sends.
    Response,
    /// TLS records.
    Tls,
    /// Frames of yamux.
    Yamux,
}

impl Kind {
    /// All.
    pub const ALL: [Kind; 7] = [
        Kind::Http2,
        Kind::Http1,
        Kind::Odd1,
        Kind::Tunnel,
        Kind::Response,
        Kind::Tls,
        Kind::Yamux,
    ];

    /// Its bytes, the same at each call.
    pub fn bytes(self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Kind::Http2 => {
                out.extend(PREFACE);
                frame(&mut out, 4, 0, 0, &[]);
                for (i, size) in bodies().into_iter().enumerate() {
                    let stream = 2 * i as u32 + 1;
                    frame(&mut out, 1, 4, stream, &block(i));
                    let body = noise(stream, size);
                    let last = size.div_ceil(16_384) - 1;
                    for (n, part) in body.chunks(16_384).enumerate() {
                        frame(&mut out, 0, u8::from(n == last), stream, part);
                    }
                }
            }
            Kind::Http1 => {
                for (i, size) in bodies().into_iter().enumerate() {
                    let body: Vec<u8> = INNER.iter().copied().cycle().take(size).collect();
                    if i % 2 == 0 {
                        out.extend(
                            format!("POST /{i} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n").as_bytes(),
                        );
                        out.extend(&body);
                        continue;
                    }
                    out.extend(
                        format!("PUT /{i} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n").as_bytes(),
                    );
                    for part in body.chunks(5000 + 3000 * i) {
                        out.extend(format!("{:x}\r\n", part.len()).as_bytes());
                        out.extend(part);
                        out.extend(b"\r\n");
                    }
                    out.extend(b"0\r\n\r\n");
                }
            }
            Kind::Odd1 => {
                out.extend(b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n");
                for _ in 0..1000 {
                    out.extend(INNER);
                }
            }
            Kind::Tunnel => {
                out.extend(PREFACE);
                frame(&mut out, 1, 4, 1, &block(0));
                out.extend(noise(7, 300_000));
            }
            Kind::Response => {
                frame(&mut out, 4, 0, 0, &[]);
                frame(&mut out, 1, 4, 1, &[0x88]);
                frame(&mut out, 0, 1, 1, &noise(1, 5000));
                frame(&mut out, 5, 4, 3, &[0, 0, 0, 2, 0x82, 0x86]);
            }
            Kind::Tls => {
                for n in 0..20 {
                    out.extend([22 + u8::from(n > 3), 3, 3, 0x20, 0]);
                    out.extend(noise(n, 0x2000));
                }
            }
            Kind::Yamux => {
                for n in 0..50u32 {
                    out.extend([0, 0, 0, u8::from(n == 0)]);
                    out.extend((2 * n + 1).to_be_bytes());
                    out.extend(1000u32.to_be_bytes());
                    out.extend(noise(n, 1000));
                }
            }
        }
        out
    }

    /// Compares what arrived; how many fields were put in.
    ///
    /// # Errors
    /// The first byte that is another.
    pub fn compare(self, arrived: &[u8]) -> Result<usize> {
        let sent = self.bytes();
        if self == Kind::Http1 {
            return lines(&sent, arrived);
        }
        if self != Kind::Http2 {
            ensure!(arrived == sent, "{self:?}: changed");
            return Ok(0);
        }
        let (mut at, mut of, mut fields) = (PREFACE.len(), PREFACE.len(), 0);
        ensure!(arrived.get(..at) == sent.get(..of), "the preface changed");
        while of < sent.len() {
            let length = |bytes: &[u8], at: usize| {
                let head = bytes.get(at..at + 9)?;
                Some((
                    usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]),
                    head[3..].to_vec(),
                ))
            };
            let (Some((is, rest)), Some((was, other))) = (length(arrived, at), length(&sent, of)) else {
                anyhow::bail!("at byte {at}: the end");
            };
            ensure!(rest == other, "at byte {at}: another frame");
            let body = arrived.get(at + 9..at + 9 + was);
            ensure!(
                body == sent.get(of + 9..of + 9 + was),
                "at byte {at}: the frame's bytes changed"
            );
            if is != was {
                let field = arrived.get(at + 9 + was..at + 9 + is).unwrap_or_default();
                ensure!(
                    rest.first() == Some(&1) && field.len() == FIELD_BYTES && field.starts_with(FIELD),
                    "at byte {at}: something was put in that is no context"
                );
                fields += 1;
            }
            at += 9 + is;
            of += 9 + was;
        }
        ensure!(at == arrived.len(), "{} bytes too many", arrived.len() - at);
        Ok(fields)
    }

    /// Requests in it.
    pub fn requests(self) -> usize {
        match self {
            Kind::Http2 | Kind::Http1 => bodies().len(),
            _ => 0,
        }
    }
}

/// What no injector may take for a request of its own.
const INNER: &[u8] = b"GET / HTTP/1.1\r\nHost: inner\r\n\r\n";

fn bodies() -> Vec<usize> {
    let mut bodies = BODIES.to_vec();
    if full() {
        bodies.push(LONGEST);
    }
    bodies
}

/// Compares what arrived of HTTP/1.1; how many lines were put in: at the end of a head, and nowhere else.
fn lines(sent: &[u8], arrived: &[u8]) -> Result<usize> {
    let (mut at, mut of, mut lines) = (0, 0, 0);
    while of < sent.len() {
        let same = sent[of..]
            .iter()
            .zip(&arrived[at..])
            .take_while(|(a, b)| a == b)
            .count();
        (at, of) = (at + same, of + same);
        if of == sent.len() {
            break;
        }
        let line = arrived.get(at..at + LINE_BYTES).unwrap_or_default();
        ensure!(
            line.starts_with(LINE) && line.ends_with(b"\r\n") && sent[..of].ends_with(b"\r\n"),
            "at byte {at} of {}: changed",
            arrived.len()
        );
        ensure!(
            sent[of..].starts_with(b"\r\n"),
            "at byte {at}: not at the end of a head"
        );
        let head = sent[..of].rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        ensure!(!head.windows(5).any(|w| w == b"inner"), "at byte {at}: in a body");
        at += LINE_BYTES;
        lines += 1;
    }
    ensure!(at == arrived.len(), "{} bytes too many", arrived.len() - at);
    Ok(lines)
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
}

/// `:method POST`, `:scheme http`, `:path`, and a field that goes to the table and comes from it.
fn block(n: usize) -> Vec<u8> {
    let mut out = vec![0x83, 0x86, 0x04, 2, b'/', b'a'];
    if n == 0 {
        out.extend(b"\x40\x01k\x05value");
    } else {
        out.push(0xbe);
    }
    out
}

/// Bytes that repeat nowhere near.
pub fn noise(seed: u32, count: usize) -> Vec<u8> {
    let mut state = u64::from(seed) << 1 | 1;
    (0..count)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect()
}
