//! What became of requests that the injectors looked at, counted per CPU.

/// Values of the first element of the `FOLLOWED` map: whose sockets are followed. The second is 1
/// if only what goes to `DESTINATIONS` is.
pub mod followed {
    /// Nobody's.
    pub const NONE: u32 = 0;
    /// Those of processes whose files were all looked at and do not count what a socket holds
    /// ([`crate::link::runtime::COUNTS`]).
    pub const UNCOUNTED: u32 = 1;
    /// Those of all observed processes.
    pub const ALL: u32 = 2;
}

/// Bytes of a key of the `DESTINATIONS` map: a port in network order, 0 for all, and an address, an
/// IPv4 one as ::ffff:a.b.c.d (RFC 4291 §2.5.5.2).
pub const DESTINATION: usize = 18;

/// Index into the `INJECTIONS` map.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Its context was written.
    Injected = 0,
    /// The application sends a `traceparent` of its own.
    Own = 1,
    /// It has header fields that can't be named, one of which may be `traceparent`.
    Unnamed = 2,
    /// Its header block is cut over several writes.
    Split = 3,
    /// With a context it could be too long for its peer.
    TooLong = 4,
    /// The send buffer is so full that the write may end in the middle of it.
    NoRoom = 5,
    /// The kernel refused, and nothing was changed.
    Refused = 6,
    /// The kernel refused after bytes had been put in, which were taken out again.
    RolledBack = 7,
    /// What it is made on behalf of is known, but not that request's context.
    NoContext = 8,
    /// The framing of the connection is not proven.
    Unproven = 9,
    /// Whether its trace is sampled depends on what the kernel does not know, and the agent has
    /// not said it yet.
    Undecided = 10,
    /// No request but a connection: its socket blocks, and one that blocks can't be followed.
    Blocking = 11,
}

/// Number of fates.
pub const COUNT: u32 = 12;

/// Names for metrics and messages, by index.
pub const NAMES: [&str; COUNT as usize] = [
    "injected",
    "own",
    "unnamed",
    "split",
    "too_long",
    "no_room",
    "refused",
    "rolled_back",
    "no_context",
    "unproven",
    "undecided",
    "blocking",
];
