//! An HTTP/1.1 server and client right on tokio-rustls, by one of the versions
//! of rustls that are in use. The client prints a JSON line for each request.
//! EXERCISE_TLS names a folder with ca.pem, cert.pem and key.pem.

use std::io::BufReader;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

fn pem(name: &str) -> BufReader<std::fs::File> {
    let folder = std::path::PathBuf::from(std::env::var_os("EXERCISE_TLS").unwrap());
    BufReader::new(std::fs::File::open(folder.join(name)).unwrap())
}

macro_rules! version {
    ($module:ident, $rustls:ident, $add:expr, $certificate:expr, $key:expr, $name:expr, $server:expr, $client:expr) => {
        mod $module {
            use super::*;
            use $rustls::rustls;

            pub async fn accept(socket: TcpStream) -> impl Stream {
                let own: Vec<_> = rustls_pemfile::certs(&mut pem("cert.pem")).map(|c| $certificate(c.unwrap())).collect();
                let key = $key(rustls_pemfile::private_key(&mut pem("key.pem")).unwrap().unwrap());
                let config = $server.with_single_cert(own, key).unwrap();
                $rustls::TlsAcceptor::from(Arc::new(config)).accept(socket).await.unwrap()
            }

            pub async fn connect(socket: TcpStream) -> impl Stream {
                let mut roots = rustls::RootCertStore::empty();
                for ca in rustls_pemfile::certs(&mut pem("ca.pem")) {
                    $add(&mut roots, $certificate(ca.unwrap()));
                }
                let config = $client(roots);
                let connector = $rustls::TlsConnector::from(Arc::new(config));
                connector.connect($name, socket).await.unwrap()
            }
        }
    };
}

version!(
    v21,
    rustls21,
    |roots: &mut rustls21::rustls::RootCertStore, ca| roots.add(&ca).unwrap(),
    |c: rustls23::rustls::pki_types::CertificateDer<'_>| rustls21::rustls::Certificate(c.to_vec()),
    |k: rustls23::rustls::pki_types::PrivateKeyDer<'_>| rustls21::rustls::PrivateKey(k.secret_der().to_vec()),
    rustls21::rustls::ServerName::try_from("localhost").unwrap(),
    rustls21::rustls::ServerConfig::builder().with_safe_defaults().with_no_client_auth(),
    |roots| rustls21::rustls::ClientConfig::builder()
        .with_safe_defaults()
        .with_root_certificates(roots)
        .with_no_client_auth()
);
version!(
    v23,
    rustls23,
    |roots: &mut rustls23::rustls::RootCertStore, ca| roots.add(ca).unwrap(),
    std::convert::identity,
    std::convert::identity,
    rustls23::rustls::pki_types::ServerName::try_from("localhost").unwrap(),
    rustls23::rustls::ServerConfig::builder().with_no_client_auth(),
    |roots| rustls23::rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()
);

/// A message: its first line, and its fields in lower case.
async fn message(stream: &mut dyn Stream, buffered: &mut Vec<u8>) -> Option<String> {
    let end = loop {
        if let Some(at) = buffered.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(buffered).await.unwrap_or(0) == 0 {
            return None;
        }
    };
    let head = String::from_utf8(buffered.drain(..end).collect()).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    let length: usize = length.map_or(0, |n| n.parse().unwrap());
    while buffered.len() < length {
        if stream.read_buf(buffered).await.unwrap_or(0) == 0 {
            return None;
        }
    }
    buffered.drain(..length);
    Some(head)
}

async fn serve(version: &'static str, port: u16) {
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    println!("listening");
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            let mut stream: Box<dyn Stream> = match version {
                "0.21" => Box::new(v21::accept(socket).await),
                _ => Box::new(v23::accept(socket).await),
            };
            let mut buffered = Vec::new();
            while message(&mut stream, &mut buffered).await.is_some() {
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                stream.write_all(answer).await.unwrap();
                stream.flush().await.unwrap();
            }
        });
    }
}

/// Requests by one connection. It moves: a boxed stream lies elsewhere than the one it was made of.
async fn ask(version: &'static str, port: u16, number: u32) {
    let socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let mut stream: Box<dyn Stream> = match version {
        "0.21" => Box::new(v21::connect(socket).await),
        _ => Box::new(v23::connect(socket).await),
    };
    let mut buffered = Vec::new();
    for (n, length) in [0, 10, 100_000, 3 << 20, 0].into_iter().enumerate() {
        let id = format!("{version}-{number}-{n}");
        let head = format!("POST /rustls HTTP/1.1\r\nHost: localhost\r\nx-call-id: {id}\r\nContent-Length: {length}\r\n\r\n");
        if n % 2 == 0 {
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.write_all(&vec![0; length]).await.unwrap();
        } else {
            let whole = [head.into_bytes(), vec![0; length]].concat();
            stream.write_all(&whole).await.unwrap();
        }
        stream.flush().await.unwrap();
        message(&mut stream, &mut buffered).await.unwrap();
        println!("{{\"id\": \"{id}\", \"path\": \"/rustls\", \"status\": 200}}");
    }
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [version, side, port] = &arguments[..] else {
        panic!("usage: run VERSION serve|client PORT");
    };
    let version: &'static str = version.clone().leak();
    let port = port.parse().unwrap();
    if side == "serve" {
        return serve(version, port).await;
    }
    // The agent is there first.
    std::io::stdin().read_line(&mut String::new()).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let tasks: Vec<_> = (0..4).map(|number| tokio::spawn(ask(version, port, number))).collect();
    for task in tasks {
        task.await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
}
