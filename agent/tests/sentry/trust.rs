//! Whom the exporter trusts: a Sentry of one's own mostly has a certificate of
//! one's own authority.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tracewire::config::Given;
use tracewire::export::Exporter as _;
use tracewire::export::sentry::config::Secret;
use tracewire::export::sentry::{self, Config, SentryExporter};
use tracewire::telemetry::Counters;

use crate::spans;

/// Answers one request a connection, encrypted, with 200.
fn listen(certificate: &str, key: &str) -> u16 {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let connection = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut stream = rustls::StreamOwned::new(connection, stream);
            let mut piece = [0; 64 * 1024];
            // Envelopes of this test are small: they come with their head, or right after it.
            if stream.read(&mut piece).is_ok_and(|n| n > 0) {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}");
                let _ = stream.flush();
                let _ = stream.read(&mut piece);
            }
        }
    });
    port
}

#[test]
fn an_authority_of_one_s_own_is_trusted_if_it_is_named_and_not_else() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let certificate = made.cert.pem();
    let port = listen(&certificate, &made.signing_key.serialize_pem());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ca.pem");
    std::fs::write(&path, certificate).unwrap();
    let named = Given {
        value: path,
        source: "--sentry-certificate",
    };
    for (trusted, expected) in [(Some(&named), 3), (None, 0)] {
        let counters = Arc::new(Counters::default());
        let config = Config {
            default: Some(Secret::parse(&format!("https://key@localhost:{port}/7")).unwrap()),
            ..Config::default()
        };
        let mut exporter =
            SentryExporter::new(config, sentry::tls(trusted).unwrap(), &crate::runtime(), &counters).unwrap();
        exporter.export(&spans::trace(1, "OK"));
        exporter.shutdown(Duration::from_secs(4));
        assert_eq!(counters.sentry_transactions.get(), expected, "{trusted:?}");
    }
    let missing = Given {
        value: folder.path().join("none.pem"),
        source: "--sentry-certificate",
    };
    let error = sentry::tls(Some(&missing)).unwrap_err();
    assert_eq!(error.setting, "--sentry-certificate");
}
