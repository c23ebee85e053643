//! What the kernel remembers of a connection: a few hundred bytes, whatever
//! passes through it.

/// Values of [`Shared::protocol`].
pub mod protocol {
    /// Not decided yet.
    pub const UNKNOWN: u8 = 0;
    /// HTTP/2.
    pub const HTTP2: u8 = 1;
    /// HTTP/1.0 or HTTP/1.1.
    pub const HTTP1: u8 = 2;
    /// Something else: its bytes are not looked at any more.
    pub const OTHER: u8 = 3;
    /// TLS records: ciphertext, not looked at any more either.
    pub const TLS: u8 = 4;
}

/// Values of [`Flow::phase`]: what the next byte of a direction is.
pub mod phase {
    /// The first byte of the connection (or of a protocol after an upgrade).
    pub const START: u8 = 0;
    /// In a frame header.
    pub const HEAD: u8 = 1;
    /// In bytes nobody needs.
    pub const SKIP: u8 = 2;
    /// In bytes that go to the elided stream.
    pub const COPY: u8 = 3;
    /// The Pad Length byte of a DATA frame.
    pub const PAD: u8 = 4;
    /// In the payload of a DATA frame.
    pub const DATA: u8 = 5;
    /// In the client's connection preface, its first bytes gathered.
    pub const PREFACE: u8 = 6;
    /// In an HTTP/1 head.
    pub const HTTP1_HEAD: u8 = 7;
    /// In an HTTP/1 body of known length.
    pub const HTTP1_BODY: u8 = 8;
    /// In the size line of a chunk.
    pub const HTTP1_CHUNK: u8 = 9;
    /// In the data of a chunk and the line end after it.
    pub const HTTP1_CHUNK_DATA: u8 = 10;
    /// In the trailer section after the last chunk.
    pub const HTTP1_TRAILER: u8 = 11;
    /// In an HTTP/1 body that ends with the connection.
    pub const HTTP1_CLOSE: u8 = 12;
    /// Out of step: waits for a call whose bytes prove the framing again.
    pub const LOST: u8 = 13;
    /// Nothing more is read in this direction.
    pub const DEAD: u8 = 14;
}

/// Bits of [`Flow::flags`].
pub mod flow_flag {
    /// The next record says that bytes were lost.
    pub const GAP: u8 = 1;
    /// [`super::Flow::sequence`] holds.
    pub const SEQUENCE: u8 = 4;
    /// The dry run over a call whose framing is to be proven.
    pub const DRY: u8 = 8;
    /// A record of this direction was sent.
    pub const SPOKEN: u8 = 16;
}

/// Where a stream stands in its length-prefixed messages (gRPC over HTTP/2).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Bytes left of the current message.
    pub left: u32,
    /// Bytes of the prefix gathered, 0..=4.
    pub have: u8,
    /// 0: gRPC as far as seen; 1: not gRPC; 2: in a gRPC-Web trailer, which is copied.
    pub state: u8,
    /// Empty messages in a row.
    pub empty: u8,
    /// Must be 0.
    pub reserved: u8,
    /// The prefix as gathered.
    pub prefix: [u8; 8],
}

/// State of an HTTP/1 direction.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Http1 {
    /// Content-Length, or size of the current chunk; counts down in bodies.
    pub left: u64,
    /// Bytes of the body on the wire so far.
    pub body: u64,
    /// Bytes of the head so far.
    pub head: u32,
    /// Status code of a response.
    pub status: u16,
    /// State of the head's automaton.
    pub state: u8,
    /// Bytes of the preface matched, or: 1 if the line is not empty.
    pub column: u8,
    /// Bits: see `http1::bit`.
    pub bits: u8,
    /// Must be 0.
    pub reserved: [u8; 7],
}

/// One direction. Aligned, so that it is copied by words of eight bytes.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// TCP sequence number (or `copied_seq`) at which the next call must begin.
    pub sequence: u32,
    /// Bytes left in the phase, or of the DATA payload.
    pub need: u32,
    /// Bytes of padding after the DATA payload.
    pub pad: u32,
    /// Stream of the current frame.
    pub stream: u32,
    /// Bytes of the current header block so far.
    pub block: u32,
    /// Streams of this direction that are in the STREAMS map, at most.
    pub stored: u32,
    /// Whole frames seen since the framing was last proven.
    pub frames: u32,
    /// One of [`phase`].
    pub phase: u8,
    /// Bytes gathered in `buffer`.
    pub have: u8,
    /// Flags of the current frame.
    pub frame_flags: u8,
    /// Bits of [`flow_flag`].
    pub flags: u8,
    /// Messages of the stream of the current DATA frame.
    pub message: Message,
    /// HTTP/1.
    pub http1: Http1,
    /// Gathers what is needed whole: frame headers, the first bytes.
    pub buffer: [u8; 32],
    /// Frames of header blocks so far, modulo 2³².
    pub blocks: u32,
    /// Must be 0.
    pub reserved: u32,
}

/// What the two directions share.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shared {
    /// HTTP/1: bit n is set if the n-th unanswered request is HEAD.
    pub heads: u64,
    /// HTTP/1: the same for CONNECT.
    pub connects: u64,
    /// HTTP/1: number of unanswered requests.
    pub unanswered: u32,
    /// Calls that did not look like any protocol.
    pub attempts: u32,
    /// One of [`protocol`].
    pub protocol: u8,
    /// 1: a 101 response was seen; the protocol is decided anew.
    pub upgraded: u8,
    /// 1: no header block of either direction was missed at the start.
    pub origin: u8,
    /// 1: TCP, so that sequence numbers can be compared.
    pub tcp: u8,
    /// HTTP/1: requests whose head was seen to its end.
    pub requests: u32,
    /// Go: the `g` that read last and is known as this connection's reader, else 0.
    pub reader: u64,
    /// Go: the `g` that writes all of this connection as long as it lives, if that is known, else 0.
    pub writer: u64,
    /// 1: the process serves requests on it (grpc-go), so what it sends begins none.
    pub serves: u32,
    /// Must be 0.
    pub reserved: u32,
}

/// A connection: both directions.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connection {
    /// By [`tracewire_common::event::direction`].
    pub flows: [Flow; 2],
    /// Both.
    pub shared: Shared,
}

impl Message {
    /// No message under way.
    pub const EMPTY: Message = Message {
        left: 0,
        have: 0,
        state: 0,
        empty: 0,
        reserved: 0,
        prefix: [0; 8],
    };
}

impl Http1 {
    /// Before a head.
    pub const EMPTY: Http1 = Http1 {
        left: 0,
        body: 0,
        head: 0,
        status: 0,
        state: 0,
        column: 0,
        bits: 0,
        reserved: [0; 7],
    };
}

impl Flow {
    /// Before the first byte.
    pub const EMPTY: Flow = Flow {
        sequence: 0,
        need: 0,
        pad: 0,
        stream: 0,
        block: 0,
        stored: 0,
        frames: 0,
        phase: phase::START,
        have: 0,
        frame_flags: 0,
        flags: 0,
        message: Message::EMPTY,
        http1: Http1::EMPTY,
        buffer: [0; 32],
        blocks: 0,
        reserved: 0,
    };
}

impl Shared {
    /// Before the first byte.
    pub const EMPTY: Shared = Shared {
        heads: 0,
        connects: 0,
        unanswered: 0,
        attempts: 0,
        protocol: protocol::UNKNOWN,
        upgraded: 0,
        origin: 0,
        tcp: 0,
        requests: 0,
        reader: 0,
        writer: 0,
        serves: 0,
        reserved: 0,
    };
}

impl Connection {
    /// Before the first byte.
    pub const EMPTY: Connection = Connection {
        flows: [Flow::EMPTY; 2],
        shared: Shared::EMPTY,
    };
}
