//! Requests of HTTP/1.1 cut into writes at every byte: what goes out is the same but for one
//! line in each head that is whole in one write.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

extern crate std;

use std::string::String;
use std::vec::Vec;

use tracewire_common::inject::Fate;
use tracewire_common::trace::Context;

use super::{LINE, write};
use crate::outbound::tests::{send, send_all};
use crate::outbound::{Inserted, Outbound, phase};

fn line(number: u32) -> Vec<u8> {
    let context = Context {
        trace_id: [number as u8; 16],
        span_id: [number as u8; 8],
        flags: 3,
        ..Context::default()
    };
    let mut bytes = [0; LINE];
    write(&context, &mut bytes);
    bytes.to_vec()
}

/// Requests, and where each head ends.
fn connection() -> (Vec<u8>, Vec<usize>) {
    let mut bytes = Vec::new();
    let mut ends = Vec::new();
    let mut head = |bytes: &mut Vec<u8>, text: &str| {
        bytes.extend(text.as_bytes());
        ends.push(bytes.len());
    };
    head(&mut bytes, "GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\n");
    head(
        &mut bytes,
        "POST /b HTTP/1.1\r\nHost: x\r\nContent-length:  38 \r\n\r\n",
    );
    bytes.extend(b"GET / HTTP/1.1\r\nHost: in a body\r\n\r\n..\r");
    head(
        &mut bytes,
        "PUT /c HTTP/1.1\r\nHost: x\r\nTRANSFER-ENCODING: Chunked\r\n\r\n",
    );
    bytes.extend(b"21\r\nGET / HTTP/1.1\r\nHost: a chunk\r\n\r\n\r\n0001\r\nx\r\n0\r\nTrailer: x\r\n\r\n");
    head(&mut bytes, "DELETE /d HTTP/1.1\r\n\r\n");
    head(
        &mut bytes,
        "POST /e HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n",
    );
    bytes.extend(b"{1}");
    head(&mut bytes, "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n");
    (bytes, ends)
}

fn expected(bytes: &[u8], ends: &[usize], cuts: &[usize]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut from = 0;
    let mut begins = 0;
    for (n, end) in ends.iter().enumerate() {
        let whole = !cuts.iter().any(|cut| begins < *cut && cut < end);
        out.extend(&bytes[from..end - 2]);
        if whole {
            out.extend(line(n as u32 + 1));
        }
        from = end - 2;
        begins = ends.get(n + 1).map_or(bytes.len(), |next| {
            let text = &bytes[*end..*next];
            let methods: [&[u8]; 6] = [b"GET /a", b"POST /b", b"PUT ", b"DELETE ", b"POST /e", b"OPTIONS"];
            let at = text.windows(methods[n + 1].len()).position(|w| w == methods[n + 1]);
            end + at.unwrap()
        });
    }
    out.extend(&bytes[from..]);
    out
}

#[test]
fn each_request_is_given_its_line() {
    let (bytes, ends) = connection();
    for element in [1, 9, 40, 300, 10_000] {
        let mut out = Outbound::EMPTY;
        let sent = send(&mut out, &[&bytes], element, true, Inserted::Done);
        assert_eq!(
            String::from_utf8_lossy(&sent.bytes),
            String::from_utf8_lossy(&expected(&bytes, &ends, &[])),
            "{element}"
        );
        assert_eq!(sent.fates, [Fate::Injected; 6]);
        assert_eq!(out.injected as usize, 6 * LINE);
        assert_eq!(out.requests, 6);
    }
}

#[test]
fn no_cut_changes_more() {
    let (bytes, ends) = connection();
    for cut in 1..bytes.len() {
        let sent = send_all(&[&bytes[..cut], &bytes[cut..]], 10_000);
        assert_eq!(
            String::from_utf8_lossy(&sent),
            String::from_utf8_lossy(&expected(&bytes, &ends, &[cut])),
            "cut at {cut}"
        );
    }
    let single: Vec<&[u8]> = bytes.chunks(1).collect();
    assert_eq!(send_all(&single, 10_000), bytes);
}

#[test]
fn requests_with_a_context_are_left_alone_one_by_one() {
    let own = b"GET / HTTP/1.1\r\nTraceparent: x\r\n\r\n";
    let other = b"GET / HTTP/1.1\r\n\r\n";
    let mut out = Outbound::EMPTY;
    let sent = send(&mut out, &[own, other, own], 10_000, true, Inserted::Done);
    assert_eq!(sent.fates, [Fate::Own, Fate::Injected, Fate::Own]);
    assert_eq!(sent.bytes.len(), 2 * own.len() + other.len() + LINE);
}

#[test]
fn what_fails_changes_nothing() {
    let (bytes, _) = connection();
    for works in [Inserted::Refused, Inserted::RolledBack] {
        assert_eq!(
            send(&mut Outbound::EMPTY.clone(), &[&bytes], 50, true, works).bytes,
            bytes
        );
    }
    let sent = send(&mut Outbound::EMPTY.clone(), &[&bytes], 50, false, Inserted::Done);
    assert_eq!((sent.bytes, sent.fates), (bytes, std::vec![Fate::NoRoom; 6]));
}

/// What is read in two ways by some, or may be no HTTP/1.1 at all, ends it.
#[test]
fn what_is_not_strict_is_never_touched_again() {
    let after = b"GET / HTTP/1.1\r\n\r\n";
    for odd in [
        "GET / HTTP/1.0\r\n\r\n",
        "GET  / HTTP/1.1\r\n\r\n",
        "get / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\n\n",
        "GET / HTTP/2.0\r\n\r\n",
        "GET / RTSP/1.0\r\n\r\n",
        "GET /\r\n\r\n",
        "CONNECT x:1 HTTP/1.1\r\n\r\n",
        "GET http://x/ HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\n a: b\r\n\r\n",
        "GET / HTTP/1.1\r\na: b\r\n c\r\n\r\n",
        "GET / HTTP/1.1\r\na : b\r\n\r\n",
        "GET / HTTP/1.1\r\na\r\n\r\n",
        "GET / HTTP/1.1\r\na: b\nc: d\r\n\r\n",
        "GET / HTTP/1.1\r\na: b\rc: d\r\n\r\n",
        "GET / HTTP/1.1\r\na: \0\r\n\r\n",
        "GET / HTTP/1.1\r\n: b\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: \r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 0x1\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        "\r\nGET / HTTP/1.1\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\n",
        "SSH-2.0-OpenSSH_9.2p1\r\n",
    ] {
        let mut out = Outbound::EMPTY;
        let sent = send(&mut out, &[odd.as_bytes(), after], 10_000, true, Inserted::Done);
        let untouched = [odd.as_bytes(), after].concat();
        assert_eq!(
            String::from_utf8_lossy(&sent.bytes),
            String::from_utf8_lossy(&untouched),
            "{odd:?}"
        );
        assert_eq!(out.phase, phase::DEAD, "{odd:?}");
    }
    // A chunk's size, and what stands behind its data.
    for body in [
        "1;a=b\r\nx\r\n0\r\n\r\n",
        "1 \r\nx\r\n0\r\n\r\n",
        "1\nx\n0\n\n",
        "1\r\nxy\r\n0\r\n\r\n",
    ] {
        let head = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        let mut out = Outbound::EMPTY;
        let writes = [head.as_bytes(), body.as_bytes(), after];
        let sent = send(&mut out, &writes, 10_000, true, Inserted::Done);
        assert_eq!(sent.fates, [Fate::Injected], "{body:?}");
        assert_eq!(out.phase, phase::DEAD, "{body:?}");
        assert!(sent.bytes.ends_with(&[body.as_bytes(), after].concat()), "{body:?}");
    }
}

/// After an upgrade anything may come, and who expects 100 may leave the body out.
#[test]
fn what_may_end_http_ends_it() {
    let after = "GET / HTTP/1.1\r\n\r\n".as_bytes();
    for head in [
        "GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        "POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 18\r\n\r\n",
        "POST / HTTP/1.1\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n",
    ] {
        let mut out = Outbound::EMPTY;
        let sent = send(&mut out, &[head.as_bytes(), after, after], 10_000, true, Inserted::Done);
        assert_eq!(sent.fates, [Fate::Injected], "{head:?}");
        assert_eq!(out.phase, phase::DEAD, "{head:?}");
    }
}

#[test]
fn long_heads_are_left_alone() {
    let mut long = String::from("GET / HTTP/1.1\r\n");
    for _ in 0..100 {
        long.push_str("a: b\r\n");
    }
    long.push_str("\r\n");
    let wide = std::format!("GET / HTTP/1.1\r\ncookie: {}\r\n\r\n", "x".repeat(8000));
    let after = b"GET / HTTP/1.1\r\n\r\n";
    let writes = [long.as_bytes(), wide.as_bytes(), after];
    let sent = send(&mut Outbound::EMPTY.clone(), &writes, 1000, true, Inserted::Done);
    assert_eq!(sent.fates, [Fate::TooLong, Fate::TooLong, Fate::Injected]);
}

/// Bytes that went by unseen do no harm within a body, and end it elsewhere.
#[test]
fn unseen_bytes_are_counted_in_bodies_only() {
    let head = b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\n";
    let mut out = Outbound::EMPTY;
    send(&mut out, &[head], 100, true, Inserted::Done);
    assert_eq!(out.phase, phase::BODY1);
    let at = out.next;
    out.begin(4, at + 4);
    assert_eq!((out.phase, out.body), (phase::BODY1, 6));
    // Back, or beyond: where the observer stands.
    for (stands, left, requests) in [(2, 8, 1), (12, 0, 1), (12, 0, 2)] {
        let mut out = out;
        out.begin(4, at + stands);
        assert_eq!(out.astray, 1);
        out.resume(left, requests);
        let expected = match (left, requests) {
            (8, 1) => phase::BODY1,
            (0, 1) => phase::HTTP1,
            _ => phase::LOST,
        };
        assert_eq!(out.phase, expected);
    }
}
