//! Connections: which bytes belong together, in which order, between which
//! ends, and where something is missing.

use std::net::IpAddr;

pub mod closes;
pub mod record;
pub mod waiting;

/// The ends of one connection as the observed process sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Socket cookie: the connection's name on this node.
    pub connection: u64,
    /// What carries it.
    pub transport: Transport,
    /// This end, for IP transports.
    pub local: Option<(IpAddr, u16)>,
    /// The other end, for IP transports.
    pub remote: Option<(IpAddr, u16)>,
}

/// What carries a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP over IPv4 (v4-mapped IPv6 sockets included).
    TcpIpv4,
    /// TCP over IPv6.
    TcpIpv6,
    /// A Unix stream socket.
    Unix,
}
