//! The two ends of one connection on this node are one edge: what the client's
//! end knows of a stream tells the server's end who called, with no header.

use std::collections::VecDeque;
use std::net::IpAddr;

use rustc_hash::FxHashMap;

use crate::connection::Transport;
use crate::connection::record::Opened;

/// Connections remembered after they closed.
const CLOSED: usize = 4096;
/// The end of a Unix socket is not reported, and its address in the kernel soon names another:
/// two ends, or the two ends of a request, that were first seen so far apart are not taken for one, ns.
const UNIX_APART: u64 = 10_000_000_000;
/// How long after a client gave up a request its server may first see it, ns.
const GIVEN_UP: u64 = 1_000_000_000;

/// How an end of a connection is named from the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Name {
    /// Addresses and ports of this end and the other; loopback is one per network namespace.
    Ip {
        netns: u32,
        local: (IpAddr, u16),
        remote: (IpAddr, u16),
    },
    /// The two sockets of a Unix connection.
    Unix { local: u64, remote: u64 },
}

impl Name {
    /// The same connection as its other end names it.
    fn turned(self) -> Self {
        match self {
            Name::Ip { netns, local, remote } => Name::Ip {
                netns,
                local: remote,
                remote: local,
            },
            Name::Unix { local, remote } => Name::Unix {
                local: remote,
                remote: local,
            },
        }
    }
}

#[derive(Clone, Copy)]
struct End {
    name: Name,
    origin: bool,
    /// When it was first seen, CLOCK_BOOTTIME ns.
    seen_ns: u64,
    /// The other end may be on this node.
    local: bool,
    /// The other end, once both were seen. It stays, since ports and addresses of sockets come again.
    partner: Option<u64>,
}

/// All connections of this node that are observed, by their ends.
#[derive(Default)]
pub struct Edges {
    ends: FxHashMap<u64, End>,
    by_name: FxHashMap<Name, u64>,
    closed: VecDeque<u64>,
}

impl Edges {
    /// A connection was first seen.
    pub fn opened(&mut self, opened: &Opened, origin: bool, seen_ns: u64) {
        let name = match (opened.peer.transport, opened.peer.local, opened.peer.remote) {
            (Transport::Unix, ..) => {
                if opened.peer_socket == 0 {
                    return;
                }
                Name::Unix {
                    local: opened.socket,
                    remote: opened.peer_socket,
                }
            }
            (_, Some(local), Some(remote)) => {
                // A loopback address means another host in each network namespace.
                let netns = if local.0.is_loopback() { opened.netns } else { 0 };
                Name::Ip { netns, local, remote }
            }
            _ => return,
        };
        let key = opened.peer.connection;
        if opened.tls {
            self.displace(name, key);
        }
        if let Some(old) = self.by_name.insert(name, key)
            && old != key
        {
            // A name is taken anew only when its old bearer is gone.
            self.closed(old);
        }
        let near = |end: &End| match name {
            Name::Unix { .. } => end.seen_ns.abs_diff(seen_ns) <= UNIX_APART,
            Name::Ip { .. } => true,
        };
        let free = |end: &End| end.partner.is_none() && near(end);
        let partner = self.by_name.get(&name.turned()).copied();
        let partner = partner.filter(|p| *p != key && self.ends.get(p).is_some_and(free));
        if let Some(end) = partner.and_then(|p| self.ends.get_mut(&p)) {
            end.partner = Some(key);
        }
        let local = local(opened);
        self.ends.insert(
            key,
            End {
                name,
                origin,
                seen_ns,
                local,
                partner,
            },
        );
    }

    /// What a socket moves turned out to be TLS: the plaintext's end takes the place of the socket's.
    fn displace(&mut self, name: Name, key: u64) {
        if let Some(socket) = self.by_name.get(&name).copied().filter(|socket| *socket != key)
            && let Some(end) = self.ends.remove(&socket)
        {
            self.by_name.remove(&name);
            if let Some(partner) = end.partner.and_then(|p| self.ends.get_mut(&p)) {
                partner.partner = None;
            }
        }
    }

    /// A connection is gone; its end is remembered for a while, since the other end may report later.
    pub fn closed(&mut self, connection: u64) {
        if !self.ends.contains_key(&connection) {
            return;
        }
        self.closed.push_back(connection);
        if self.closed.len() > CLOSED
            && let Some(old) = self.closed.pop_front()
            && let Some(end) = self.ends.remove(&old)
            && self.by_name.get(&end.name) == Some(&old)
        {
            self.by_name.remove(&end.name);
        }
    }

    /// The other end of a connection, if it is observed too.
    pub fn other_end(&self, connection: u64) -> Option<u64> {
        self.ends.get(&connection)?.partner
    }

    /// Whether the other end of a connection may be on this node; one that is not known may.
    pub fn local(&self, connection: u64) -> bool {
        self.ends.get(&connection).is_none_or(|end| end.local)
    }

    /// Whether streams of both ends can be told by number: HTTP/2's are on the
    /// wire, HTTP/1's are counted and so must have been counted from the start.
    pub fn comparable(&self, connection: u64, other: u64, numbered: bool) -> bool {
        let origin = |key| self.ends.get(&key).is_some_and(|e: &End| e.origin);
        numbered || origin(connection) && origin(other)
    }

    /// Whether a request that a server first saw at `start_ns` can be the one that the client's end `client`
    /// made at `made_ns` and that was over at `over_ns`. On a Unix socket it may be of another connection
    /// with the same addresses.
    pub fn fits(&self, client: u64, made_ns: u64, over_ns: Option<u64>, start_ns: u64) -> bool {
        let unix = self
            .ends
            .get(&client)
            .is_some_and(|end| matches!(end.name, Name::Unix { .. }));
        !unix || made_ns.abs_diff(start_ns) <= UNIX_APART && over_ns.is_none_or(|over| start_ns <= over)
    }
}

/// After what time no server sees a request for the first time, whose client's end saw the end: the whole
/// response, or that nobody waits for it.
pub fn over_ns(end_ns: u64, complete: bool) -> u64 {
    end_ns.saturating_add(if complete { 0 } else { GIVEN_UP })
}

fn local(opened: &Opened) -> bool {
    match (opened.peer.local, opened.peer.remote) {
        // Other pods of this node have other addresses, so any private address may be.
        (Some(local), Some(remote)) => {
            remote.0.is_loopback()
                || remote.0 == local.0
                || matches!(remote.0, IpAddr::V4(a) if a.is_private())
                || matches!(remote.0, IpAddr::V6(a) if a.is_unique_local())
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::Peer;

    fn unix(connection: u64, socket: u64, peer_socket: u64) -> Opened {
        let peer = Peer {
            connection,
            transport: Transport::Unix,
            local: None,
            remote: None,
        };
        Opened {
            peer,
            netns: 1,
            socket,
            peer_socket,
            tls: false,
        }
    }

    #[test]
    fn a_socket_at_the_address_of_one_that_is_gone_is_not_its_heir() {
        let mut edges = Edges::default();
        edges.opened(&unix(1, 0xa, 0xb), true, 0);
        edges.opened(&unix(2, 0xb, 0xa), true, 0);
        // The same addresses again; the first pair's ends were never told.
        edges.opened(&unix(3, 0xa, 0xb), true, 0);
        assert_eq!(edges.other_end(3), None);
        edges.opened(&unix(4, 0xb, 0xa), true, 0);
        for (one, other) in [(1, 2), (3, 4)] {
            assert_eq!(edges.other_end(one), Some(other));
            assert_eq!(edges.other_end(other), Some(one));
        }
    }

    #[test]
    fn the_end_that_is_seen_late_finds_one_that_is_closed() {
        let mut edges = Edges::default();
        edges.opened(&unix(1, 0xa, 0xb), true, 0);
        edges.closed(1);
        edges.opened(&unix(2, 0xb, 0xa), true, 0);
        assert_eq!(edges.other_end(2), Some(1));
    }

    #[test]
    fn a_unix_socket_whose_other_end_was_never_seen_is_not_found_by_a_later_one() {
        let mut edges = Edges::default();
        edges.opened(&unix(1, 0xa, 0xb), true, 0);
        // The same addresses, another connection: its end was not told.
        edges.opened(&unix(2, 0xb, 0xa), true, UNIX_APART + 1);
        assert_eq!(edges.other_end(2), None);
    }

    #[test]
    fn a_request_that_was_over_is_not_seen_by_a_server_later() {
        let mut edges = Edges::default();
        edges.opened(&unix(1, 0xa, 0xb), true, 0);
        edges.opened(&unix(2, 0xb, 0xa), true, 1000);
        let fits = |over, start| edges.fits(1, 100, over, start);
        assert!(fits(None, 90) && fits(None, 5_000));
        let over = Some(over_ns(500, true));
        assert!(fits(over, 400) && !fits(over, 1000));
        assert!(fits(Some(over_ns(500, false)), 1000));
    }

    #[test]
    fn plaintext_takes_the_place_of_its_socket() {
        let tls = |connection, socket, peer_socket| Opened {
            tls: true,
            ..unix(connection, socket, peer_socket)
        };
        let mut edges = Edges::default();
        edges.opened(&unix(1, 0xa, 0xb), true, 0);
        edges.opened(&unix(2, 0xb, 0xa), true, 0);
        edges.opened(&tls(11, 0xa, 0xb), true, 0);
        edges.opened(&tls(12, 0xb, 0xa), true, 0);
        assert_eq!((edges.other_end(11), edges.other_end(12)), (Some(12), Some(11)));
        // The socket's own end is closed later, under its own name.
        edges.closed(1);
        assert_eq!(edges.other_end(12), Some(11));
    }
}
