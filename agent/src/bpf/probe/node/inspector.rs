//! One question to Node's inspector: a list of targets by HTTP, then `Runtime.evaluate` by WebSocket
//! (RFC 6455, the part that one text each way takes).
//!
//! Bias: what is not as it should be is an error; nothing is tried twice.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

/// Requests by this name make no spans.
const USER_AGENT: &str = concat!("tracewire/", env!("CARGO_PKG_VERSION"));
/// A head, or a message, is never so long.
const LIMIT: usize = 1 << 20;

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// Evaluates an expression; its value as a text.
pub fn evaluate(mut stream: &TcpStream, port: u16, expression: &str) -> io::Result<String> {
    let host = format!("127.0.0.1:{port}");
    write!(
        stream,
        "GET /json/list HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {USER_AGENT}\r\n\r\n"
    )?;
    let head = head(stream)?;
    let length = head
        .lines()
        .find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.trim().parse::<usize>().ok())?
        })
        .filter(|length| *length <= LIMIT)
        .ok_or_else(|| wrong("the inspector's list of targets has no length"))?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    let targets: Value = serde_json::from_slice(&body)?;
    let url = targets
        .pointer("/0/webSocketDebuggerUrl")
        .and_then(Value::as_str)
        .ok_or_else(|| wrong("the inspector names no target"))?;
    let path = url
        .strip_prefix("ws://")
        .and_then(|rest| rest.split_once('/'))
        .map(|(_, path)| path)
        .ok_or_else(|| wrong("the inspector's target has no path"))?;
    // The key is there to tell servers from others; this one was told by what it answered.
    write!(
        stream,
        "GET /{path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {USER_AGENT}\r\nConnection: Upgrade\r\nUpgrade: \
         websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dHJhY2V3aXJlIGhlbHBlcg==\r\n\r\n"
    )?;
    if !self::head(stream)?.starts_with("HTTP/1.1 101 ") {
        return Err(wrong("the inspector accepts no WebSocket"));
    }
    let ask = json!({
        "id": 1,
        "method": "Runtime.evaluate",
        "params": { "expression": expression, "includeCommandLineAPI": true, "returnByValue": true },
    });
    stream.write_all(&frame(0x81, ask.to_string().as_bytes()))?;
    let answer = loop {
        let message: Value = serde_json::from_slice(&message(stream)?)?;
        if message.get("id").and_then(Value::as_u64) == Some(1) {
            break message;
        }
    };
    // A close; what comes after it is nobody's business.
    stream.write_all(&frame(0x88, &[]))?;
    if let Some(value) = answer.pointer("/result/result/value").and_then(Value::as_str) {
        return Ok(value.to_owned());
    }
    let thrown = answer.pointer("/result/exceptionDetails/exception/description");
    Err(wrong(
        thrown.and_then(Value::as_str).unwrap_or("the script returned no text"),
    ))
}

/// A head of HTTP/1, to its empty line.
fn head(mut stream: &TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
        if head.len() > LIMIT {
            return Err(wrong("the inspector's answer has no end"));
        }
    }
    String::from_utf8(head).map_err(|_| wrong("the inspector's answer is no text"))
}

/// A frame of a client: masked, with a mask of zeros, which leaves the bytes as they are.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(length), _) if length < 126 => frame.push(0x80 | length),
        (_, Ok(length)) => {
            frame.push(0x80 | 126);
            frame.extend(length.to_be_bytes());
        }
        _ => {
            frame.push(0x80 | 127);
            frame.extend((payload.len() as u64).to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

/// The next message of a server, put together of its frames.
fn message(mut stream: &TcpStream) -> io::Result<Vec<u8>> {
    let mut message = Vec::new();
    loop {
        let mut head = [0; 2];
        stream.read_exact(&mut head)?;
        let length = match head[1] & 0x7f {
            126 => {
                let mut length = [0; 2];
                stream.read_exact(&mut length)?;
                usize::from(u16::from_be_bytes(length))
            }
            127 => {
                let mut length = [0; 8];
                stream.read_exact(&mut length)?;
                usize::try_from(u64::from_be_bytes(length)).unwrap_or(usize::MAX)
            }
            length => usize::from(length),
        };
        if message.len().saturating_add(length) > LIMIT {
            return Err(wrong("the inspector's message is too long"));
        }
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload)?;
        match head[0] & 0x0f {
            // Text, and what continues it.
            0 | 1 => message.extend(payload),
            8 => return Err(wrong("the inspector closed the connection")),
            _ => continue,
        }
        if head[0] & 0x80 != 0 && head[0] & 0x0f <= 1 {
            return Ok(message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_have_three_forms() {
        assert_eq!(frame(0x81, b"ab"), [0x81, 0x82, 0, 0, 0, 0, b'a', b'b']);
        assert_eq!(frame(0x81, &[7; 300])[..8], [0x81, 0xfe, 1, 44, 0, 0, 0, 0]);
        assert_eq!(frame(0x81, &[7; 70_000])[..6], [0x81, 0xff, 0, 0, 0, 0]);
    }
}
