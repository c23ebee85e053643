//! A receiver of OTLP (HTTP and gRPC, protobuf) and of whatever else is posted
//! that takes everything, counts the spans and keeps nothing: lighter than a
//! collector, so that the load is measured and not the receiver.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};

mod grpc;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";

/// The receiver; it serves as long as the task runs.
pub struct Sink {
    /// Where it listens for HTTP/1.1.
    pub http: SocketAddr,
    /// Where it listens for gRPC.
    pub grpc: SocketAddr,
    spans: Arc<AtomicU64>,
}

impl Sink {
    /// Begins to listen.
    ///
    /// # Errors
    /// When there is no port.
    pub fn start() -> Result<Self> {
        let spans = Arc::new(AtomicU64::new(0));
        Ok(Sink {
            http: listen(&spans, serve)?,
            grpc: listen(&spans, grpc::serve)?,
            spans,
        })
    }

    /// Spans so far.
    pub fn spans(&self) -> u64 {
        self.spans.load(Ordering::Relaxed)
    }
}

/// Serves each connection by a thread of its own.
fn listen(spans: &Arc<AtomicU64>, serve: fn(&TcpStream, &AtomicU64) -> Option<()>) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("receiver")?;
    let address = listener.local_addr().context("receiver")?;
    let spans = spans.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let spans = spans.clone();
            std::thread::spawn(move || serve(&stream, &spans));
        }
    });
    Ok(address)
}

/// Answers requests until the connection ends; `None` is its end or nonsense.
fn serve(stream: &TcpStream, spans: &AtomicU64) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut body = Vec::new();
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if line == "\r\n" {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().ok()?;
            }
        }
        body.resize(length, 0);
        reader.read_exact(&mut body).ok()?;
        spans.fetch_add(count(&body), Ordering::Relaxed);
        let mut stream = stream;
        stream.write_all(ANSWER).ok()?;
    }
}

/// Spans of an ExportTraceServiceRequest: resource_spans (1), scope_spans (2), spans (2).
fn count(request: &[u8]) -> u64 {
    let mut spans = 0;
    each(request, 1, &mut |resource| {
        each(resource, 2, &mut |scope| {
            each(scope, 2, &mut |_| spans += 1);
        });
    });
    spans
}

/// Every length-delimited field of that number (protobuf encoding), to the end or to nonsense.
fn each(mut message: &[u8], number: u64, found: &mut dyn FnMut(&[u8])) -> Option<()> {
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        let length = match tag & 7 {
            0 => {
                varint(&mut message)?;
                0
            }
            1 => 8,
            2 => usize::try_from(varint(&mut message)?).ok()?,
            5 => 4,
            _ => return None,
        };
        let (field, rest) = message.split_at_checked(length)?;
        if tag == number << 3 | 2 {
            found(field);
        }
        message = rest;
    }
    Some(())
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A field of wire type 2.
    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![number << 3 | 2, content.len() as u8];
        bytes.extend_from_slice(content);
        bytes
    }

    #[test]
    fn spans_of_all_resources_count() {
        let scope = [
            field(1, b"scope"),
            field(2, b"a span"),
            field(2, b"another"),
            field(3, b"url"),
        ]
        .concat();
        let resource = [field(1, b"resource"), field(2, &scope)].concat();
        let request = [field(1, &resource), field(1, &resource)].concat();
        assert_eq!(count(&request), 4);
        assert_eq!(count(&request[..request.len() - 8]), 2);
        assert_eq!(count(b"\xff"), 0);
    }
}
