//! The least of HTTP/2 that an OTLP client over gRPC can be served with: every
//! request gets the same answer at its end. Header blocks are not decoded.

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};

use super::count;

const PREFACE: usize = 24;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// SETTINGS_INITIAL_WINDOW_SIZE (4), 2³¹ − 1.
const WINDOW: [u8; 6] = [0, 4, 0x7f, 0xff, 0xff, 0xff];
/// `:status: 200` (8 of the static table), `content-type: application/grpc`.
const HEAD: &[u8] = b"\x88\x0f\x10\x10application/grpc";
/// `grpc-status: 0`, a literal.
const TRAILER: &[u8] = b"\x00\x0bgrpc-status\x010";

/// Answers requests until the connection ends; `None` is its end or nonsense.
pub fn serve(stream: &TcpStream, spans: &AtomicU64) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut reader = BufReader::with_capacity(1 << 16, stream);
    let mut preface = [0; PREFACE];
    reader.read_exact(&mut preface).ok()?;
    send(stream, SETTINGS, 0, 0, &WINDOW)?;
    send(stream, WINDOW_UPDATE, 0, 0, &(0x7fff_ffff - 65_535_u32).to_be_bytes())?;
    let mut body = Vec::new();
    // One request at a time is what an exporter sends; of several the bodies would mix.
    let mut taken: u32 = 0;
    loop {
        let mut head = [0; 9];
        reader.read_exact(&mut head).ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let stream_id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
        let mut payload = vec![0; length as usize];
        reader.read_exact(&mut payload).ok()?;
        match head[3] {
            SETTINGS if head[4] & ACK == 0 => send(stream, SETTINGS, ACK, 0, &[])?,
            PING if head[4] & ACK == 0 => send(stream, PING, ACK, 0, &payload)?,
            DATA => {
                body.extend_from_slice(&payload);
                taken += length;
                if taken > 1 << 20 {
                    send(stream, WINDOW_UPDATE, 0, 0, &taken.to_be_bytes())?;
                    taken = 0;
                }
            }
            _ => {}
        }
        if matches!(head[3], DATA | HEADERS) && head[4] & END_STREAM != 0 {
            // Behind the prefix of the one message (compression flag and length).
            spans.fetch_add(count(body.get(5..).unwrap_or_default()), Ordering::Relaxed);
            body.clear();
            send(stream, HEADERS, END_HEADERS, stream_id, HEAD)?;
            send(stream, DATA, 0, stream_id, &[0; 5])?;
            send(stream, HEADERS, END_HEADERS | END_STREAM, stream_id, TRAILER)?;
        }
    }
}

fn send(mut to: &TcpStream, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Option<()> {
    let length = u32::try_from(payload.len()).ok()?.to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    to.write_all(&frame).ok()
}
