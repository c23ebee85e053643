//! A plain HTTP/1 server inside the test, for callers that are what is tested.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};

use anyhow::Result;

/// Body of every answer.
const BODY: &str = "good\n";

/// Listens until the test program ends; gives the address. Every request is answered with 200, or
/// with the status that its path names, as `/404` does.
///
/// # Errors
/// When no port is free.
pub fn listen() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || serve(&stream));
        }
    });
    Ok(address)
}

fn serve(stream: &TcpStream) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut writer = stream.try_clone().ok()?;
    loop {
        let mut line = String::new();
        (reader.read_line(&mut line).ok()? > 0).then_some(())?;
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        while !line.trim().is_empty() {
            line.clear();
            (reader.read_line(&mut line).ok()? > 0).then_some(())?;
        }
        let status: u16 = path.trim_start_matches('/').parse().unwrap_or(200);
        let length = BODY.len();
        let answer = format!("HTTP/1.1 {status} Said\r\nContent-Length: {length}\r\n\r\n{BODY}");
        writer.write_all(answer.as_bytes()).ok()?;
    }
}
