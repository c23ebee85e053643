//! Records of the ring buffer (or of a recording) → events with names.
//!
//! A record that is too short, or of a kind that is not known, is no event:
//! the caller counts it and goes on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tracewire_common::event::{Close, Fork, Header, Open, kind, layer};
use tracewire_common::link::{Link, NAME_LIMIT, Name};
use tracewire_common::plain::Plain;
use tracewire_common::trace::Injected;

use super::{Peer, Transport};

/// What the kernel says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// First sight of a connection.
    Open {
        /// The record's header.
        header: Header,
        /// Its ends.
        open: Opened,
    },
    /// A piece of a direction's elided stream; may be empty.
    Frames {
        /// The record's header.
        header: Header,
        /// The piece.
        bytes: &'a [u8],
    },
    /// The connection is gone.
    Close {
        /// The record's header.
        header: Header,
        /// errno, 0 for an orderly end.
        error: u32,
    },
    /// A request is made on behalf of another.
    Link {
        /// The record's header.
        header: Header,
        /// Which, of which.
        link: Link,
    },
    /// What the process itself calls a request.
    Name {
        /// The record's header.
        header: Header,
        /// Stream of the request.
        stream: u32,
        /// Its `:path`.
        path: &'a [u8],
    },
    /// A watched process made a child.
    Fork {
        /// The parent.
        pid: u32,
        /// The child.
        child: u32,
    },
    /// A process runs a new program.
    Exec {
        /// The process.
        pid: u32,
    },
    /// A process ended.
    Exit {
        /// The process.
        pid: u32,
        /// CLOCK_BOOTTIME, ns.
        time_ns: u64,
        /// How, as `wait` says it: exit code in bits 8 to 15, signal in bits 0 to 6.
        status: u32,
    },
    /// A followed socket blocks by now.
    Blocks {
        /// Its name.
        connection: u64,
    },
    /// A process has a socket whose bytes are TLS.
    Tls {
        /// The process.
        pid: u32,
    },
    /// A request was given its context on the wire.
    Injected {
        /// The record's header.
        header: Header,
        /// What was put in.
        injected: Injected,
    },
    /// A process listens on a chosen port.
    Listen {
        /// The process.
        pid: u32,
        /// The port.
        port: u16,
    },
}

/// An [`Open`] in user-side words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The ends.
    pub peer: Peer,
    /// Network namespace, inode number.
    pub netns: u32,
    /// Opaque name of this end of a Unix connection.
    pub socket: u64,
    /// Opaque name of the other end of a Unix connection.
    pub peer_socket: u64,
    /// It is the plaintext of the TLS on a socket that was told before, and takes its place.
    pub tls: bool,
}

impl<'a> Event<'a> {
    /// Reads one record.
    pub fn parse(record: &'a [u8]) -> Option<Self> {
        let header = Header::read(record)?;
        let payload = record.get(size_of::<Header>()..)?.get(..header.length as usize)?;
        let word = || Close::read(payload).map(|c| c.error);
        Some(match header.kind {
            kind::OPEN => Event::Open {
                header,
                open: opened(header.connection, &Open::read(payload)?),
            },
            kind::FRAMES => Event::Frames { header, bytes: payload },
            kind::CLOSE => Event::Close { header, error: word()? },
            kind::LINK => Event::Link {
                header,
                link: Link::read(payload)?,
            },
            kind::NAME => {
                let name = Name::read(payload)?;
                let path = payload.get(size_of::<Name>() - NAME_LIMIT..)?;
                Event::Name {
                    header,
                    stream: name.request.stream,
                    path: path.get(..name.length as usize)?,
                }
            }
            kind::FORK => Event::Fork {
                pid: header.pid,
                child: Fork::read(payload)?.child,
            },
            kind::EXEC => Event::Exec { pid: header.pid },
            kind::EXIT => Event::Exit {
                pid: header.pid,
                time_ns: header.time_ns,
                status: word().unwrap_or(0),
            },
            kind::BLOCKS => Event::Blocks {
                connection: header.connection,
            },
            kind::TLS => Event::Tls { pid: header.pid },
            kind::INJECTED => Event::Injected {
                header,
                injected: Injected::read(payload)?,
            },
            kind::LISTEN => Event::Listen {
                pid: header.pid,
                port: u16::try_from(word()?).ok()?,
            },
            _ => return None,
        })
    }
}

/// An address as users know it: IPv4 in IPv6 clothes is IPv4.
fn address(family: u16, bytes: &[u8; 16]) -> IpAddr {
    if family == libc::AF_INET as u16 {
        return IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]));
    }
    IpAddr::V6(Ipv6Addr::from(*bytes)).to_canonical()
}

fn opened(connection: u64, open: &Open) -> Opened {
    let unix = open.family == libc::AF_UNIX as u16;
    let local = address(open.family, &open.local_address);
    let remote = address(open.family, &open.peer_address);
    let transport = match (unix, remote) {
        (true, _) => Transport::Unix,
        (false, IpAddr::V4(_)) => Transport::TcpIpv4,
        (false, IpAddr::V6(_)) => Transport::TcpIpv6,
    };
    let end = |address, port| (!unix).then_some((address, port));
    Opened {
        peer: Peer {
            connection,
            transport,
            local: end(local, open.local_port),
            remote: end(remote, open.peer_port),
        },
        netns: open.netns,
        socket: open.socket,
        peer_socket: open.peer_socket,
        tls: open.layer == layer::TLS,
    }
}
