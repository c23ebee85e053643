//! HTTP by real servers and clients: HTTP/1 in all the ways in which it frames
//! its messages, upgrades, plain HTTP/2, gRPC-Web and ConnectRPC.

use anyhow::Result;
use tracewire_tests::alone;
use tracewire_tests::web::Web;

#[test]
fn requests_to_a_go_service_are_told_as_they_were() -> Result<()> {
    let _turn = alone()?;
    let clients = [
        ("python", "websocket,h2c"),
        ("node", "http1,websocket"),
        ("node", "h2c"),
        ("go", "http1,h2c"),
    ];
    Web::run("go", &[], &clients)?.assert_true();
    Ok(())
}

#[test]
fn requests_to_a_node_service_are_told_as_they_were() -> Result<()> {
    let _turn = alone()?;
    let clients = [("python", "websocket"), ("node", "http1,websocket"), ("go", "http1")];
    Web::run("node", &[], &clients)?.assert_true();
    Ok(())
}

#[test]
fn requests_to_a_node_service_of_http2_are_told_as_they_were() -> Result<()> {
    let _turn = alone()?;
    Web::run("node", &["--http2"], &[("node", "h2c"), ("go", "h2c")])?.assert_true();
    Ok(())
}

#[test]
fn requests_to_a_python_service_are_told_as_they_were() -> Result<()> {
    let _turn = alone()?;
    let clients = [("python", ""), ("node", "http1"), ("go", "http1")];
    Web::run("python", &[], &clients)?.assert_true();
    Ok(())
}

/// The process that accepts a connection is not the one that serves it.
#[test]
fn a_service_that_forks_for_each_connection_is_followed() -> Result<()> {
    let _turn = alone()?;
    Web::run("python", &["--fork"], &[("python", ""), ("go", "http1")])?.assert_true();
    Ok(())
}

#[test]
fn calls_of_connect_and_grpc_web_are_told_as_far_as_they_can_be_read() -> Result<()> {
    let _turn = alone()?;
    Web::run("go", &[], &[("go", "connect")])?.assert_true();
    Ok(())
}
