//! Encryption makes no difference: for each TLS library, what a service did is
//! what its spans say, their peers and parents included.

use anyhow::Result;
use tracewire_tests::session::{Session, Sides};
use tracewire_tests::workload::{Language, Load};
use tracewire_tests::{alone, exchange};

fn ordinary(concurrency: u32, connections: u32) -> Vec<Load> {
    let at = |scenario, calls| Load::new(scenario, calls).at_once(concurrency).over(connections);
    vec![
        at("unary", 40),
        at("errors", 34),
        at("server-stream", 12),
        at("client-stream", 12),
        at("bidi", 12),
        at("metadata", 10),
    ]
}

fn check(server: Language, client: Language, loads: &[Load], mutual: bool) -> Result<()> {
    let session = Session::run_tls(server, client, loads, mutual)?;
    session.assert_true(Sides::Both);
    Ok(())
}

fn calls(language: Language) -> Result<()> {
    let _turn = alone()?;
    check(language, language, &ordinary(1, 1), false)?;
    check(language, language, &ordinary(16, 3), true)?;
    let odd = [
        Load::new("large", 6).at_once(2),
        Load::new("churn", 20).at_once(4),
        Load::new("mixed", 60).at_once(16).over(4),
    ];
    check(language, language, &odd, false)
}

macro_rules! libraries {
    ($($(#[doc = $doc:literal])* $name:ident: $language:ident,)*) => {$(
        $(#[doc = $doc])*
        #[test]
        fn $name() -> Result<()> {
            calls(Language::$language)
        }
    )*};
}

libraries! {
    /// crypto/tls.
    encrypted_calls_in_go_are_told_as_they_were: Go,
    /// BoringSSL without symbols, inside grpcio.
    encrypted_calls_in_python_are_told_as_they_were: Python,
    /// The same under asyncio.
    encrypted_calls_in_asyncio_are_told_as_they_were: PythonAio,
    /// OpenSSL inside the program.
    encrypted_calls_in_node_are_told_as_they_were: Node,
    /// BoringSSL in a library that is deleted once it is loaded.
    encrypted_calls_in_java_are_told_as_they_were: Java,
    /// OpenSSL as a shared library.
    encrypted_calls_in_cpp_are_told_as_they_were: Cpp,
    /// rustls, of which the compiler puts parts into other functions.
    encrypted_calls_in_rust_are_told_as_they_were: Rust,
}

#[test]
fn encrypted_calls_between_libraries_are_told_as_they_were() -> Result<()> {
    let _turn = alone()?;
    for (server, client) in [
        (Language::Go, Language::Python),
        (Language::Python, Language::Cpp),
        (Language::Cpp, Language::Node),
        (Language::Node, Language::Rust),
        (Language::Rust, Language::Go),
    ] {
        let mixed = Load::new("mixed", 60).at_once(8).over(2);
        check(server, client, &[mixed, Load::new("churn", 10)], false)?;
    }
    Ok(())
}

/// Key updates, renegotiation, resumption, early data, partial writes, retries, connections on
/// memory, and one that ends in mid-record.
fn odd(version: &str) -> Result<()> {
    let _turn = alone()?;
    let (requests, report) = exchange::run("openssl", version)?;
    exchange::assert_told(&requests, &report);
    Ok(())
}

#[test]
fn whatever_openssl_3_does_is_told_as_it_was() -> Result<()> {
    odd("3")
}

#[test]
fn whatever_openssl_1_1_1_does_is_told_as_it_was() -> Result<()> {
    odd("1.1.1")
}

/// Key updates, renegotiation, resumption, writes of two megabytes that block or must be tried again,
/// corked records, connections on memory, and one that ends in mid-record.
#[test]
fn whatever_gnutls_does_is_told_as_it_was() -> Result<()> {
    let _turn = alone()?;
    let (requests, report) = exchange::run("gnutls", "3")?;
    exchange::assert_told(&requests, &report);
    Ok(())
}

/// Not by way of hyper or tonic, and in a program with two versions of rustls.
#[test]
fn what_rustls_encrypts_is_told_as_it_was() -> Result<()> {
    let _turn = alone()?;
    let (requests, report) = exchange::run("rustls", "0.23")?;
    exchange::assert_told(&requests, &report);
    let (_, report) = exchange::run("rustls", "0.21")?;
    assert!(report.spans.is_empty(), "it is not followed: {:?}", report.spans);
    let lacking = report.counters.get("probes_lacking");
    assert!(lacking.is_some_and(|n| *n > 0), "{:?}", report.counters);
    Ok(())
}
