//! `peer FAMILY WAY…`: one connection to itself for each way, over which the
//! exchange of `tracewire_tests::peer` goes. Waits for a line on standard
//! input first, so that an agent can attach. With the family `left` the client of
//! a Unix socket closes it without waiting for the answers, and the process lives on
//! until another line.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use anyhow::{Context, Result, bail, ensure};
use tracewire_tests::peer::{Flights, Way};

/// Both ends of a new connection: client, server.
fn connection(family: &str) -> Result<(OwnedFd, OwnedFd)> {
    let (listen, reach): (IpAddr, IpAddr) = match family {
        "v4" => (Ipv4Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()),
        "v6" => (Ipv6Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()),
        // A listener for both families, as most servers have, and a client of IPv4.
        "mapped" => (
            Ipv6Addr::UNSPECIFIED.into(),
            Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(),
        ),
        "unix" => {
            let path = std::env::temp_dir().join(format!("tracewire-peer-{}", std::process::id()));
            let _ = std::fs::remove_file(&path);
            let listener = UnixListener::bind(&path)?;
            let client = UnixStream::connect(&path)?;
            let _ = std::fs::remove_file(&path);
            return Ok((client.into(), listener.accept()?.0.into()));
        }
        "pair" => {
            let (client, server) = UnixStream::pair()?;
            return Ok((client.into(), server.into()));
        }
        other => bail!("no family {other}"),
    };
    let listener = TcpListener::bind(SocketAddr::new(listen, 0))?;
    let client = TcpStream::connect(SocketAddr::new(reach, listener.local_addr()?.port()))?;
    client.set_nodelay(true)?;
    let server = listener.accept()?.0;
    server.set_nodelay(true)?;
    Ok((client.into(), server.into()))
}

fn exchange(family: &str, way: Way) -> Result<()> {
    let flights = Flights::new(&way.name());
    let (client, server) = connection(family)?;
    let (sent, answered) = (flights.client.clone(), flights.server.clone());
    let caller = std::thread::spawn(move || -> Result<()> {
        way.send(client.as_raw_fd(), &sent)?;
        ensure!(
            way.receive(client.as_raw_fd(), answered.len())? == answered,
            "the response arrived otherwise"
        );
        Ok(())
    });
    ensure!(
        way.receive(server.as_raw_fd(), flights.client.len())? == flights.client,
        "the request arrived otherwise"
    );
    way.send(server.as_raw_fd(), &flights.server)?;
    caller.join().map_err(|_| anyhow::anyhow!("the client panicked"))?
}

/// The server's end, which has read all requests and answers none; the client's is closed.
fn left(way: Way) -> Result<OwnedFd> {
    let flights = Flights::new(&way.name());
    let (client, server) = connection("pair")?;
    let sent = flights.client.clone();
    let caller = std::thread::spawn(move || way.send(client.as_raw_fd(), &sent));
    way.receive(server.as_raw_fd(), flights.client.len())?;
    caller.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
    Ok(server)
}

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let family = words.next().context("peer FAMILY WAY…")?;
    std::io::stdin().read_line(&mut String::new())?;
    for word in words {
        let way = Way::named(&word).with_context(|| format!("no way {word}"))?;
        if family == "left" {
            let server = left(way)?;
            std::io::stdin().read_line(&mut String::new())?;
            drop(server);
            continue;
        }
        exchange(&family, way).with_context(|| format!("{family} {word}"))?;
    }
    Ok(())
}
