//! Which request is made on behalf of which: the words that the kernel's
//! probes, the injectors and the agent share. Bias: a wrong parent is worse
//! than none, so whoever is not certain says so ([`Link::parent`] zero).

use crate::plain::Plain;

/// A request as one process sees it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct StreamKey {
    /// Cookie of the socket; 0: no request.
    pub connection: u64,
    /// HTTP/2 stream identifier; of HTTP/1 the ordinal of the request on its connection, from 1.
    pub stream: u32,
    /// [`crate::event::direction`]: RECEIVE, the process serves it; SEND, the process makes it.
    pub direction: u32,
}

impl StreamKey {
    /// No request.
    pub const NONE: StreamKey = StreamKey {
        connection: 0,
        stream: 0,
        direction: 0,
    };

    /// Several requests could be meant, none is certain.
    pub const DOUBT: StreamKey = StreamKey {
        connection: 0,
        stream: u32::MAX,
        direction: 0,
    };

    /// A request that the process serves.
    #[inline(always)]
    pub const fn served(connection: u64, stream: u32) -> Self {
        StreamKey {
            connection,
            stream,
            direction: crate::event::direction::RECEIVE as u32,
        }
    }

    /// A request that the process makes.
    #[inline(always)]
    pub const fn made(connection: u64, stream: u32) -> Self {
        StreamKey {
            connection,
            stream,
            direction: crate::event::direction::SEND as u32,
        }
    }

    /// Whether it names a request.
    #[inline(always)]
    pub const fn is_some(&self) -> bool {
        self.connection != 0
    }
}

/// What executes on behalf of a request.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Unit {
    /// By [`Unit::kind`].
    pub id: u64,
    /// Process (tgid in the initial PID namespace).
    pub pid: u32,
    /// One of [`mod@unit`].
    pub kind: u32,
}

/// Values of [`Unit::kind`], and what [`Unit::id`] then is.
pub mod unit {
    /// A thread: its tid.
    pub const THREAD: u32 = 1;
    /// A goroutine: its `goid`, which never comes again (the `g` does).
    pub const GOROUTINE: u32 = 2;
    /// grpc-core's call: `grpc_call*`.
    pub const GRPC_CALL: u32 = 3;
    /// Python's context: `PyContext*`.
    pub const PY_CONTEXT: u32 = 4;
    /// Node's asynchronous resource: its async id.
    pub const NODE_ASYNC: u32 = 5;
    /// A tokio task: its `Header*`.
    pub const TOKIO_TASK: u32 = 6;
}

/// What the agent tells Go's probes.
pub mod go {
    /// Where each number stands in the layout; offsets in bytes.
    pub mod layout {
        /// `runtime.g.goid`
        pub const GOID: usize = 0;
        /// `runtime.g.m`
        pub const G_M: usize = 1;
        /// `runtime.m.curg`
        pub const M_CURG: usize = 2;
        /// 1: `Server.handleStream` is probed, and the next two hold.
        pub const HANDLE_STREAM: usize = 3;
        /// Of grpc-go's `Stream.id` (u32).
        pub const STREAM_ID: usize = 4;
        /// 1: the handler's stream begins with a pointer to that `Stream`.
        pub const STREAM_POINTER: usize = 5;
        /// `runtime.g.parentGoid` (Go 1.21 and later), else 0
        pub const PARENT_GOID: usize = 6;
        /// 1: `createHeaderFields` leaves its context in its caller's frame.
        pub const FIELDS_CONTEXT: usize = 7;
        /// Of `http.Request.ctx`.
        pub const REQUEST_CONTEXT: usize = 8;
        /// Of grpc-go's `Stream.method` (a string), the path of the request.
        pub const STREAM_METHOD: usize = 9;
        /// 1: what a goroutine was begun by is asked when it matters; 0: `runtime.newproc` is probed.
        pub const ASKS_MAKER: usize = 10;
    }
}

/// What the agent tells tokio's probes.
pub mod tokio {
    /// Where each number stands in the layout; offsets in bytes.
    pub mod layout {
        /// Of `http::request::Parts::extensions` in a request.
        pub const EXTENSIONS: usize = 0;
    }
}

/// Runtimes whose probes may be in a process.
pub mod runtime {
    /// Go.
    pub const GO: u32 = 1;
    /// tokio.
    pub const TOKIO: u32 = 2;
    /// grpc-core (C++, Python).
    pub const GRPC_CORE: u32 = 3;
    /// Node.
    pub const NODE: u32 = 4;
    /// Threads that serve one request at a time.
    pub const THREAD: u32 = 5;
    /// CPython.
    pub const CPYTHON: u32 = 6;
    /// A TLS library.
    pub const TLS: u32 = 7;
    /// A library that switches stacks under Python (greenlet, gevent).
    pub const GREENLET: u32 = 9;
    /// Code that asks a socket how many bytes it holds (FIONREAD).
    pub const COUNTS: u32 = 10;
    /// Numbers that a runtime's module of the agent may give its probes for each process.
    pub const LAYOUT: usize = 16;

    /// The bit of a runtime in a process's [`crate::settings::watch`] value.
    #[inline(always)]
    pub const fn bit(runtime: u32) -> u32 {
        1 << (7 + runtime)
    }
}

/// What the agent's module for grpc-core tells its programs.
pub mod grpc_core {
    /// Cookie of the probe at the making of a stream: the transport is the first argument, the stream the second. The
    /// upper half is the address of the probe in the file.
    pub const FROM_TRANSPORT: u64 = 1;
    /// Flag: calls may be served by call-backs, so a thread's work begins at a completion queue or is in doubt.
    pub const MANY_THREADS: u32 = 1;

    /// Members of a process's layout; addresses are those of the file.
    pub mod layout {
        /// Address of the probe at the giving of a client stream's identifier.
        pub const IDENTIFIER: usize = 0;
        /// Flags.
        pub const FLAGS: usize = 1;
        /// Endpoint types, three members each: address of the table of functions; offset in the endpoint of the
        /// pointer to what holds the descriptor, 0 if it is the endpoint itself; offset of the descriptor in that.
        pub const TABLE: usize = 2;
        /// How many there may be.
        pub const TABLES: usize = 4;
    }
}

/// Values of [`Link::mechanism`]: how it is known.
pub mod mechanism {
    /// grpc-go: `createHeaderFields` on the goroutine, `writeHeader` on the connection's writer.
    pub const GO_GRPC: u32 = 1;
    /// Go `net/http`: `persistConn.roundTrip` on the goroutine, the connection's `writeLoop`.
    pub const GO_HTTP1: u32 = 2;
    /// Go HTTP/2 of `net/http` and `golang.org/x/net`: the goroutine that writes the header fields.
    pub const GO_HTTP2: u32 = 3;
    /// tokio: the task that was polled while the request was made.
    pub const TOKIO: u32 = 4;
    /// grpc-core: the thread between two calls' batches.
    pub const GRPC_CORE: u32 = 5;
    /// grpc-core under asyncio: the context that runs.
    pub const GRPC_AIO: u32 = 6;
    /// Node: the asynchronous resource.
    pub const NODE: u32 = 7;
    /// A thread that serves one request at a time and makes its calls itself.
    pub const THREAD: u32 = 8;
    /// Number of them, 0 included.
    pub const COUNT: u32 = 9;
    /// Names for attributes and metrics, by number.
    pub const NAMES: [&str; COUNT as usize] = [
        "none",
        "go_grpc",
        "go_http1",
        "go_http2",
        "tokio",
        "grpc_core",
        "grpc_aio",
        "node",
        "thread",
    ];
}

/// Payload of [`crate::event::kind::LINK`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// The request that is made; direction SEND.
    pub child: StreamKey,
    /// The request on whose behalf; direction RECEIVE. [`StreamKey::NONE`]: several could be it, none is certain.
    pub parent: StreamKey,
    /// One of [`mechanism`].
    pub mechanism: u32,
    /// 0.
    pub reserved: u32,
}

/// Bytes of a method's name that a [`Name`] holds at most.
pub const NAME_LIMIT: usize = 256;

/// Payload of [`crate::event::kind::NAME`]: what the process itself calls a
/// request, for connections whose header table began before the agent.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name {
    /// The request.
    pub request: StreamKey,
    /// Bytes of [`Name::path`] that hold.
    pub length: u32,
    /// 0.
    pub reserved: u32,
    /// `:path`, UTF-8.
    pub path: [u8; NAME_LIMIT],
}

const _: () = {
    assert!(size_of::<StreamKey>() == 16);
    assert!(size_of::<Unit>() == 16);
    assert!(size_of::<Link>() == 40);
    assert!(size_of::<Name>() == 24 + NAME_LIMIT);
};

// SAFETY: integers only; 16 bytes without padding (asserted above).
unsafe impl Plain for StreamKey {}
// SAFETY: integers only; 16 bytes without padding (asserted above).
unsafe impl Plain for Unit {}
// SAFETY: integers only; 40 bytes without padding (asserted above).
unsafe impl Plain for Link {}
// SAFETY: integers and a byte array; no padding (asserted above).
unsafe impl Plain for Name {}
