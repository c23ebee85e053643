//! Spotlight: Sentry's own page for a developer's machine. It takes envelopes,
//! and streams what it understood of them.

use std::io::{BufRead, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value as Json;

use crate::peers;

const PATIENCE: Duration = Duration::from_secs(30);

/// A running Spotlight.
pub struct Spotlight {
    child: Child,
    /// Of 127.0.0.1; its page is at `/`.
    pub port: u16,
}

impl Drop for Spotlight {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Spotlight {
    /// Installs it if need be, and starts it. `None`: it can't be had, which was said.
    pub fn start() -> Option<Self> {
        // A newer hono answers everything with 500.
        let home = peers::node("spotlight", &["@spotlightjs/spotlight@4.11.8", "hono@4.12.25"])?;
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let script = std::path::Path::new(file!()).with_extension("mjs");
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let child = Command::new("node")
            .arg(root.join(script))
            .arg(home)
            .arg(port.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let spotlight = Spotlight { child, port };
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(start.elapsed() < PATIENCE, "Spotlight does not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(spotlight)
    }

    /// DSN of any project.
    pub fn dsn(&self) -> String {
        format!("http://spotlight@127.0.0.1:{}/1", self.port)
    }

    /// Items of that kind as it understood them, once there are so many.
    pub fn wait_for(&self, kind: &str, count: usize) -> Vec<Json> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(
            stream,
            "GET /stream HTTP/1.0\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
        )
        .unwrap();
        let mut found = Vec::new();
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let Some(data) = line.strip_prefix("data: ") else {
                continue;
            };
            let Ok(envelope) = serde_json::from_str::<Json>(data) else {
                continue;
            };
            let items = envelope[1].as_array().cloned().unwrap_or_default();
            found.extend(items.into_iter().filter(|i| i[0]["type"] == kind).map(|i| i[1].clone()));
            if found.len() >= count {
                return found;
            }
        }
        panic!("{} of {count} came: {found:?}", found.len());
    }
}
