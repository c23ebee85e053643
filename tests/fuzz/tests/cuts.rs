//! However the bytes of a connection are cut into calls: the same exchanges.
#![allow(missing_docs, reason = "tests")]

use tracewire_fuzz::wire::Connection;
use tracewire_tests::peer::Flights;

/// Exchanges when each direction comes in the pieces that `cut` makes of it.
fn exchanges<'a>(client: &'a [u8], server: &'a [u8], cut: impl Fn(&'a [u8]) -> Vec<&'a [u8]>) -> Vec<String> {
    let mut connection = Connection::default();
    for piece in cut(client) {
        connection.receive(piece);
    }
    for piece in cut(server) {
        connection.send(piece);
    }
    connection.exchanges()
}

/// Whole; byte by byte; in even pieces; in two at every byte (of a long one, at every `stride`th).
fn same_at_every_cut(client: &[u8], server: &[u8], wanted: usize) {
    let whole = exchanges(client, server, |bytes| vec![bytes]);
    assert_eq!(whole.len(), wanted, "{whole:#?}");
    for length in [1, 2, 3, 7, 9, 10, 64, 1000] {
        let pieces = exchanges(client, server, |bytes| bytes.chunks(length).collect());
        assert_eq!(pieces, whole, "pieces of {length}");
    }
    let longest = client.len().max(server.len());
    let stride = longest.div_ceil(1500);
    for at in (1..longest).step_by(stride) {
        let halves = exchanges(client, server, |bytes| {
            let (first, rest) = bytes.split_at(at.min(bytes.len()));
            vec![first, rest]
        });
        assert_eq!(halves, whole, "cut at {at}");
    }
}

#[test]
fn grpc_calls_are_the_same_at_every_cut() {
    let flights = Flights::new("cut");
    same_at_every_cut(&flights.client, &flights.server, flights.expected.len() / 2);
}

#[test]
fn http1_exchanges_are_the_same_at_every_cut() {
    let client = b"POST /a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello\
        HEAD /b HTTP/1.1\r\nHost: x\r\nX-Call-Id: a,\r\n b\r\n\r\n\
        PUT /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nT: v\r\n\r\n\
        GET /d HTTP/1.1\r\nHost: x\r\n\r\n\
        GET /e HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n\x81\x05GET /";
    let server = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok\
        HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n\
        HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n\
        HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n\
        HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x81\x0fHTTP/1.1 200 OK";
    same_at_every_cut(client, server, 5);
}
