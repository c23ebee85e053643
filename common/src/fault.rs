//! What can go wrong in the kernel, counted per CPU and shown by cause.

/// Index into the `FAULTS` map.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The ring buffer was full: a record was dropped, its connection has a gap.
    RingFull = 0,
    /// User memory could not be read: that connection has a gap.
    UserMemory = 1,
    /// Bytes went past the tracepoint or in an unknown order (TCP sequence
    /// does not continue): that connection has a gap.
    Sequence = 2,
    /// Not valid HTTP/2 or HTTP/1 after it had been: the parse of that
    /// direction ended.
    Malformed = 3,
    /// A call with more pieces than the framer does in one go: gap.
    TooManySteps = 4,
    /// A system call whose buffer can't be found (io_uring, splice, sendfile,
    /// 32-bit): its bytes were skipped, or are a gap.
    OpaqueCall = 5,
    /// The table of connections was full.
    ConnectionsFull = 6,
    /// A header block longer than the limit.
    BlockTooLong = 7,
    /// More probes of user space were interrupted on one processor than there
    /// are places to work in: that TLS connection has a gap.
    Nested = 8,
}

/// Number of faults.
pub const COUNT: u32 = 9;

/// Names for metrics and messages, by index.
pub const NAMES: [&str; COUNT as usize] = [
    "ring_full",
    "user_memory",
    "sequence",
    "malformed",
    "too_many_steps",
    "opaque_call",
    "connections_full",
    "block_too_long",
    "nested",
];
