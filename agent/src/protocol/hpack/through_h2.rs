//! The decoder beside `h2` on a real connection: fields of all kinds go from client to server and back,
//! the bytes between them are read by the way, and all three agree.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use axum::http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use proptest::prelude::*;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

use super::Decoder;
use super::differential::Pair;
use super::tests::decode;

/// One end of a connection, which keeps what it sends.
struct Tapped {
    inner: DuplexStream,
    sent: Arc<Mutex<Vec<u8>>>,
}

impl AsyncRead for Tapped {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for Tapped {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, buf);
        if let Poll::Ready(Ok(n)) = result {
            self.sent.lock().unwrap().extend(&buf[..n]);
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

const NAMES: [&str; 8] = [
    "x-call-id",
    "user-agent",
    "grpc-timeout",
    "cookie",
    "traceparent",
    "authorization",
    "content-type",
    "a",
];

/// A field: which name, which value, and whether it must not be indexed.
type Made = (usize, usize, bool);

fn value(number: usize) -> Vec<u8> {
    match number {
        0 => Vec::new(),
        1 => b"application/grpc".to_vec(),
        2 => (0x20..0x7f).collect(),
        3 => (0x80..=0xff).collect(),
        4 => vec![b'v'; 3000],
        5 => vec![b'w'; 5000],
        n => format!("value-{n}").into_bytes(),
    }
}

fn map(made: &[Made]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, number, sensitive) in made {
        let mut field = HeaderValue::from_bytes(&value(*number)).unwrap();
        field.set_sensitive(*sensitive);
        map.append(HeaderName::from_static(NAMES[*name]), field);
    }
    map
}

fn pairs(map: &HeaderMap) -> Vec<Pair> {
    let mut pairs: Vec<Pair> = map
        .iter()
        .map(|(name, value)| (name.as_str().into(), value.as_bytes().to_vec()))
        .collect();
    pairs.sort();
    pairs
}

/// Header blocks of a direction: HEADERS with its CONTINUATIONs (RFC 9113 §6.2, §6.10), neither padded
/// nor with a priority, which `h2` does not send.
fn blocks(mut bytes: &[u8], preface: bool) -> Vec<Vec<u8>> {
    if preface {
        bytes = &bytes[24..];
    }
    let mut blocks: Vec<Vec<u8>> = Vec::new();
    while let Some((head, rest)) = bytes.split_at_checked(9) {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let (payload, rest) = rest.split_at(length);
        match head[3] {
            1 => {
                assert_eq!(head[4] & 0x28, 0, "padded or with a priority");
                blocks.push(payload.to_vec());
            }
            9 => blocks.last_mut().unwrap().extend(payload),
            _ => {}
        }
        bytes = rest;
    }
    blocks
}

/// What the decoder reads of a direction, pseudo-headers left out: `h2` gives those otherwise.
fn read(bytes: &[u8], preface: bool) -> Vec<Vec<Pair>> {
    let mut decoder = Decoder::new(true);
    // The peer of either direction lets tables be as large as RFC 9113 §6.5.2 has them.
    blocks(bytes, preface)
        .iter()
        .map(|block| {
            let seen = decode(&mut decoder, block).unwrap();
            let mut fields: Vec<Pair> = seen.into_iter().map(|(n, v)| (n.unwrap(), v.unwrap())).collect();
            fields.retain(|(name, _)| !name.starts_with(b":"));
            fields.sort();
            fields
        })
        .collect()
}

/// Makes the requests, each answered with a response and trailers of the same fields; what either side
/// says it received, and what was sent.
async fn exchange(requests: &[Vec<Made>]) -> ([Vec<Vec<Pair>>; 2], [Vec<u8>; 2]) {
    let (near, far) = tokio::io::duplex(1 << 20);
    let taps: [Arc<Mutex<Vec<u8>>>; 2] = Default::default();
    let near = Tapped {
        inner: near,
        sent: taps[0].clone(),
    };
    let far = Tapped {
        inner: far,
        sent: taps[1].clone(),
    };
    let server = tokio::spawn(async move {
        let mut connection = h2::server::handshake(far).await.unwrap();
        let mut heard = Vec::new();
        while let Some(request) = connection.accept().await {
            let (request, mut respond) = request.unwrap();
            heard.push(pairs(request.headers()));
            let mut response = Response::new(());
            *response.headers_mut() = request.headers().clone();
            let mut stream = respond.send_response(response, false).unwrap();
            stream.send_trailers(request.headers().clone()).unwrap();
        }
        heard
    });
    let (mut client, connection) = h2::client::handshake(near).await.unwrap();
    let driver = tokio::spawn(connection);
    let mut heard = Vec::new();
    for made in requests {
        let mut request = Request::post("http://127.0.0.1/a.B/C").body(()).unwrap();
        *request.headers_mut() = map(made);
        client = client.ready().await.unwrap();
        let (response, _) = client.send_request(request, true).unwrap();
        let response = response.await.unwrap();
        heard.push(pairs(response.headers()));
        let mut body = response.into_body();
        assert!(body.data().await.is_none());
        heard.push(pairs(&body.trailers().await.unwrap().unwrap_or_default()));
    }
    drop(client);
    driver.await.unwrap().unwrap();
    let heard = [server.await.unwrap(), heard];
    let sent = taps.map(|tap| tap.lock().unwrap().clone());
    (heard, sent)
}

fn requests() -> impl Strategy<Value = Vec<Vec<Made>>> {
    let field = (0..NAMES.len(), 0..12_usize, any::<bool>());
    prop::collection::vec(prop::collection::vec(field, 0..12), 1..24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_connection_of_h2_is_read_as_its_ends_read_it(requests in requests()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let ([served, answered], [requests_sent, responses_sent]) = runtime.block_on(exchange(&requests));
        prop_assert_eq!(served.len(), requests.len());
        prop_assert_eq!(read(&requests_sent, true), served);
        prop_assert_eq!(read(&responses_sent, false), answered);
    }
}
