//! The two ends of one connection on this node are one edge: what the client's
//! end knows of a stream tells the server's end who called, with no header.

use std::collections::VecDeque;
use std::net::IpAddr;

use rustc_hash::FxHashMap;

use crate::connection::Transport;
use crate::connection::record::Opened;
use crate::span::SpanContext;

/// Streams whose client's end is remembered.
const CONTEXTS: usize = 32 * 1024;
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
    /// The other end, once both were seen. It stays, since ports and addresses of sockets come again.
    partner: Option<u64>,
}

/// What the client's end of a stream knows.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Identity of the client span.
    pub context: SpanContext,
    /// When the client's end saw the request, CLOCK_BOOTTIME ns.
    pub start_ns: u64,
    /// When the server's end saw it, if that was earlier: a send is seen at its end.
    pub earlier_ns: Option<u64>,
    /// No server sees the request for the first time after this, CLOCK_BOOTTIME ns.
    over_ns: Option<u64>,
}

/// All connections of this node that are observed, by their ends.
#[derive(Default)]
pub struct Edges {
    ends: FxHashMap<u64, End>,
    by_name: FxHashMap<Name, u64>,
    closed: VecDeque<u64>,
    callers: FxHashMap<(u64, u32), Caller>,
    order: VecDeque<(u64, u32)>,
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
        self.ends.insert(
            key,
            End {
                name,
                origin,
                seen_ns,
                partner,
            },
        );
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

    /// Whether streams of both ends can be told by number: HTTP/2's are on the
    /// wire, HTTP/1's are counted and so must have been counted from the start.
    pub fn comparable(&self, connection: u64, other: u64, numbered: bool) -> bool {
        let origin = |key| self.ends.get(&key).is_some_and(|e: &End| e.origin);
        numbered || origin(connection) && origin(other)
    }

    /// The client's end saw a request.
    pub fn called(&mut self, connection: u64, stream: u32, context: SpanContext, start_ns: u64) {
        self.callers.insert(
            (connection, stream),
            Caller {
                context,
                start_ns,
                earlier_ns: None,
                over_ns: None,
            },
        );
        self.order.push_back((connection, stream));
        if self.order.len() > CONTEXTS
            && let Some(old) = self.order.pop_front()
        {
            self.callers.remove(&old);
        }
    }

    /// The client's end of a stream saw the end: the whole response, or that nobody waits for it.
    pub fn answered(&mut self, connection: u64, stream: u32, end_ns: u64, complete: bool) {
        if let Some(caller) = self.callers.get_mut(&(connection, stream)) {
            let slack = if complete { 0 } else { GIVEN_UP };
            caller.over_ns = Some(end_ns.saturating_add(slack));
        }
    }

    /// Whether a request that a server first saw at `start_ns` can be the one that this client's end made.
    /// On a Unix socket it may be of another connection with the same addresses.
    pub fn fits(&self, client: u64, stream: u32, start_ns: u64) -> bool {
        let unix = self
            .ends
            .get(&client)
            .is_some_and(|end| matches!(end.name, Name::Unix { .. }));
        let caller = self.callers.get(&(client, stream));
        caller.is_some_and(|caller| {
            !unix
                || caller.start_ns.abs_diff(start_ns) <= UNIX_APART
                    && caller.over_ns.is_none_or(|over| start_ns <= over)
        })
    }

    /// Whether the client's end of a stream was seen.
    pub fn knows(&self, connection: u64, stream: u32) -> bool {
        self.callers.contains_key(&(connection, stream))
    }

    /// What the client's end of a stream knows.
    pub fn caller(&mut self, connection: u64, stream: u32) -> Option<&mut Caller> {
        self.callers.get_mut(&(connection, stream))
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
        edges.called(1, 1, SpanContext::default(), 100);
        assert!(edges.fits(1, 1, 90) && edges.fits(1, 1, 5_000));
        edges.answered(1, 1, 500, true);
        assert!(edges.fits(1, 1, 400));
        assert!(!edges.fits(1, 1, 1000));
        edges.called(1, 3, SpanContext::default(), 100);
        edges.answered(1, 3, 500, false);
        assert!(edges.fits(1, 3, 1000));
        assert!(!edges.fits(1, 5, 100), "never made");
    }
}
