//! Records of the ring buffer: a [`Header`] and, by its kind, a payload.
//!
//! Every record speaks of one connection or one process. For `FRAMES` the
//! payload is a piece of that direction's elided stream (see
//! [`crate::elided`]); pieces of one direction arrive in stream order, and a
//! piece that does not continue the one before carries [`flags::GAP`].

pub use crate::plain::Plain;

/// First bytes of every record.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// One of [`kind`].
    pub kind: u8,
    /// One of [`direction`]; 0 where it means nothing.
    pub direction: u8,
    /// Bits of [`flags`].
    pub flags: u16,
    /// Bytes of payload that follow.
    pub length: u32,
    /// CLOCK_BOOTTIME, ns.
    pub time_ns: u64,
    /// Cookie of the socket (`sock_gen_cookie`), 0 for process records.
    pub connection: u64,
    /// Process (tgid in the initial PID namespace) that made the call.
    pub pid: u32,
    /// Thread (pid in kernel words) that made the call.
    pub tid: u32,
}

/// Values of [`Header::kind`].
pub mod kind {
    /// First sight of a connection; payload: [`super::Open`].
    pub const OPEN: u8 = 1;
    /// A piece of an elided stream.
    pub const FRAMES: u8 = 2;
    /// The connection is gone; payload: [`super::Close`].
    pub const CLOSE: u8 = 3;
    /// A watched process made a child process; payload: [`super::Fork`].
    pub const FORK: u8 = 4;
    /// A process replaced its program; no payload.
    pub const EXEC: u8 = 5;
    /// The last thread of a process ended; payload: u32 `exit_code` as in `task_struct`.
    pub const EXIT: u8 = 6;
    /// A process listens on a selected port; payload: u32 port.
    pub const LISTEN: u8 = 7;
    /// A request is made on behalf of another; payload: [`crate::link::Link`].
    pub const LINK: u8 = 8;
    /// What the process itself calls a request; payload: the used part of [`crate::link::Name`].
    pub const NAME: u8 = 9;
    /// A request was given its context on the wire; payload: the injector's.
    pub const INJECTED: u8 = 10;
    /// A followed socket blocks by now: it is to be let go; no payload.
    pub const BLOCKS: u8 = 12;
    /// A socket whose bytes are TLS was met, `pid` its process; no payload.
    pub const TLS: u8 = 11;
}

/// Values of [`Header::direction`].
pub mod direction {
    /// The process received these bytes.
    pub const RECEIVE: u8 = 0;
    /// The process sent these bytes.
    pub const SEND: u8 = 1;
}

/// Bits of [`Header::flags`].
pub mod flags {
    /// Bytes of this direction were lost before this record.
    pub const GAP: u16 = 1;
    /// This direction is seen from its first byte (`OPEN`: both are).
    pub const ORIGIN: u16 = 2;
    /// The direction ended: the peer's end of file or an error.
    pub const END: u16 = 4;
    /// The bytes are HTTP/1 (else HTTP/2).
    pub const HTTP1: u16 = 8;
}

/// Payload of [`kind::OPEN`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Open {
    /// AF_INET (2), AF_INET6 (10) or AF_UNIX (1).
    pub family: u16,
    /// Host byte order; 0 for Unix sockets.
    pub local_port: u16,
    /// Host byte order; 0 for Unix sockets.
    pub peer_port: u16,
    /// 0 unknown, else one of [`role`].
    pub role: u16,
    /// Network order; IPv4 in the first four bytes.
    pub local_address: [u8; 16],
    /// Network order; IPv4 in the first four bytes.
    pub peer_address: [u8; 16],
    /// Inode number of the network namespace.
    pub netns: u32,
    /// One of [`layer`].
    pub layer: u32,
    /// Kernel address of the socket, an opaque name that is never shown:
    /// the two ends of a Unix connection name each other by it.
    pub socket: u64,
    /// The same of the peer of a Unix connection, else 0.
    pub peer_socket: u64,
}

/// Values of [`Open::role`].
pub mod role {
    /// The process connected.
    pub const CLIENT: u16 = 1;
    /// The process accepted.
    pub const SERVER: u16 = 2;
}

/// Values of [`Open::layer`].
pub mod layer {
    /// What the socket itself moves.
    pub const SOCKET: u32 = 0;
    /// Plaintext of the TLS on it ([`crate::tls`]): it takes the socket's place.
    pub const TLS: u32 = 1;
}

/// Payload of [`kind::CLOSE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Close {
    /// `sk_err`: errno that ended the connection, 0 for an orderly end.
    pub error: u32,
}

/// Payload of [`kind::FORK`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fork {
    /// The new process.
    pub child: u32,
}

impl Header {
    /// All zero.
    pub const EMPTY: Header = Header {
        kind: 0,
        direction: 0,
        flags: 0,
        length: 0,
        time_ns: 0,
        connection: 0,
        pid: 0,
        tid: 0,
    };
}

impl Open {
    /// All zero.
    pub const EMPTY: Open = Open {
        family: 0,
        local_port: 0,
        peer_port: 0,
        role: 0,
        local_address: [0; 16],
        peer_address: [0; 16],
        netns: 0,
        layer: 0,
        socket: 0,
        peer_socket: 0,
    };
}

const _: () = {
    assert!(size_of::<Header>() == 32);
    assert!(size_of::<Open>() == 64);
    assert!(size_of::<Close>() == 4);
    assert!(size_of::<Fork>() == 4);
};

// SAFETY: integers only; 32 bytes without padding (asserted above).
unsafe impl Plain for Header {}
// SAFETY: integers and byte arrays only; 64 bytes without padding (asserted above).
unsafe impl Plain for Open {}
// SAFETY: one integer.
unsafe impl Plain for Close {}
// SAFETY: one integer.
unsafe impl Plain for Fork {}
