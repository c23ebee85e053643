//! Exchanges of HTTP/1 heads: what two readers may read differently is not followed.
#![allow(clippy::unwrap_used, reason = "tests")]

use tracewire_common::elided::{HEAD_END, Head, frame};
use tracewire_common::event::{Header, Open, Plain as _, direction, flags, kind};

use super::assemble::{Assembler, Output};
use super::{Exchange, Outcome};
use crate::connection::record::Event;
use crate::protocol::fields::Allow;

/// One observed connection of a server.
struct Server {
    assembler: Assembler,
    out: Vec<Output>,
    time_ns: u64,
}

impl Server {
    fn new() -> Self {
        let mut server = Server {
            assembler: Assembler::new(Allow {
                request: vec!["x-note".into()],
                response: vec!["x-note".into()],
            }),
            out: Vec::new(),
            time_ns: 0,
        };
        let open = Open {
            family: 2,
            ..Open::EMPTY
        };
        server.record(kind::OPEN, 0, open.bytes());
        server
    }

    fn record(&mut self, kind: u8, direction: u8, payload: &[u8]) {
        self.time_ns += 10;
        let header = Header {
            kind,
            direction,
            flags: flags::ORIGIN,
            length: payload.len() as u32,
            time_ns: self.time_ns,
            connection: 5,
            pid: 7,
            tid: 7,
        };
        let record = [header.bytes(), payload].concat();
        self.assembler.event(Event::parse(&record).unwrap(), &mut self.out);
    }

    /// A message with its head and the end of its body.
    fn message(&mut self, direction: u8, head: &str) {
        let mut bytes = Vec::new();
        for (kind, payload) in [(frame::HEAD, head.as_bytes()), (frame::BODY_END, &[0; 8])] {
            let head = Head {
                length: payload.len() as u32,
                kind,
                flags: if kind == frame::HEAD { HEAD_END } else { 0 },
                stream: 0,
            };
            bytes.extend(head.bytes());
            bytes.extend(payload);
        }
        self.record(kind::FRAMES, direction, &bytes);
    }

    fn request(&mut self, head: &str) {
        self.message(direction::RECEIVE, head);
    }

    fn response(&mut self, head: &str) {
        self.message(direction::SEND, head);
    }

    /// All exchanges, once the connection is closed.
    fn closed(mut self) -> Vec<Exchange> {
        self.record(kind::CLOSE, 0, &0_u32.to_ne_bytes());
        let ended = self.out.into_iter().filter_map(|output| match output {
            Output::Ended(exchange) => Some(*exchange),
            _ => None,
        });
        ended.collect()
    }
}

fn path(exchange: &Exchange) -> &str {
    exchange.request.path.value().map_or("", |path| path)
}

#[test]
fn a_folded_field_is_whole() {
    let mut server = Server::new();
    server.request("GET /a HTTP/1.1\r\nX-Note: one\r\n two\r\n\r\n");
    server.response("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Note: three,\r\n\tfour\r\n\r\n");
    let exchanges = server.closed();
    assert_eq!(&*exchanges[0].request.captured[0].1, "one two");
    assert_eq!(&*exchanges[0].response.captured[0].1, "three, four");
}

#[test]
fn after_a_request_of_doubtful_length_no_request_is_believed() {
    let mut server = Server::new();
    server.request("POST /a HTTP/1.1\r\nContent-Length: 4\r\nContent-Length: 40\r\n\r\n");
    // Perhaps a request, perhaps in the body of the one before.
    server.request("GET /smuggled HTTP/1.1\r\n\r\n");
    server.response("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    let exchanges = server.closed();
    assert_eq!(exchanges.iter().map(path).collect::<Vec<_>>(), ["/a"]);
    assert_eq!(exchanges[0].outcome, Outcome::Complete);
    assert_eq!(exchanges[0].response.status.value(), Some(&400));
    assert_eq!(exchanges[0].request.content_length, None);
}

#[test]
fn a_response_of_doubtful_length_has_no_certain_end() {
    let mut server = Server::new();
    server.request("GET /a HTTP/1.1\r\n\r\n");
    server.request("GET /b HTTP/1.1\r\n\r\n");
    server.response("HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\n");
    server.response("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    let exchanges = server.closed();
    assert_eq!(exchanges.iter().map(path).collect::<Vec<_>>(), ["/a", "/b"]);
    assert_eq!(exchanges[0].response.status.value(), Some(&200));
    assert_eq!(exchanges[1].response.status.value(), None);
    assert!(exchanges.iter().all(|e| e.outcome == Outcome::Unfinished));
}
