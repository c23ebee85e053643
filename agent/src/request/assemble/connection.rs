//! What is remembered of a connection while its exchanges are under way, and
//! how they end. Bias: what was open when bytes were lost can't end well.

use std::collections::VecDeque;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::Output;
use crate::connection::Peer;
use crate::protocol::elided::Frames;
use crate::protocol::fields;
use crate::protocol::http2::Direction;
use crate::request::{Exchange, Messages, Outcome, Protocol, RequestHead, ResponseHead, Role, Seen, Version};

/// An exchange under way.
#[derive(Debug, Default)]
pub(super) struct Stream {
    pub(super) start_ns: u64,
    pub(super) request: RequestHead,
    pub(super) response: ResponseHead,
    pub(super) request_messages: Messages,
    pub(super) response_messages: Messages,
    /// HTTP/1: the response names no length and is not chunked.
    pub(super) until_close: bool,
    /// Bytes were lost while it was open: its end may have been among them.
    pub(super) gap: bool,
}

/// One direction of a connection.
#[derive(Default)]
pub(super) struct Half {
    pub(super) frames: Frames,
    pub(super) http2: Direction,
    /// HTTP/1: the head so far, and when it began.
    pub(super) head: Vec<u8>,
    pub(super) head_ns: u64,
    pub(super) head_truncated: bool,
}

pub(super) struct Connection {
    pub(super) peer: Arc<Peer>,
    pub(super) pid: u32,
    pub(super) role: Option<Role>,
    pub(super) halves: [Half; 2],
    /// HTTP/2.
    pub(super) streams: FxHashMap<u32, Box<Stream>>,
    /// HTTP/1, oldest first, with their numbers.
    pub(super) queue: VecDeque<(u32, Stream)>,
    /// Highest stream whose request was seen.
    pub(super) newest: u32,
    pub(super) http1_version: Version,
    /// Requests seen on HTTP/1.
    pub(super) requests: u32,
    /// HTTP/1: a head after which the peer may see the next message begin elsewhere than we do,
    /// by direction: what seems to follow is not believed.
    pub(super) doubtful: [bool; 2],
    /// Paths by stream that the process itself told, before the wire did.
    pub(super) names: FxHashMap<u32, Arc<str>>,
    /// HTTP/1: the exchange that a 101 response ended or turned into HTTP/2's stream 1.
    pub(super) upgraded: Option<(u32, Stream, u64)>,
}

impl Connection {
    /// Bytes of one direction were lost.
    pub(super) fn lose(&mut self, way: usize) {
        if let Some(half) = self.halves.get_mut(way) {
            half.frames.lose();
            half.http2.lose();
            half.head = Vec::new();
            half.head_truncated = false;
        }
        for stream in self.streams.values_mut() {
            stream.gap = true;
        }
        // Which response belongs to which request can't be told any more.
        self.queue.clear();
    }

    /// No more bytes will come.
    pub(super) fn ended(&mut self, time_ns: u64, lost: Outcome, out: &mut Vec<Output>) {
        let streams: Vec<u32> = self.streams.keys().copied().collect();
        for key in streams {
            if let Some(open) = self.streams.remove(&key) {
                let outcome = if open.gap { Outcome::Unfinished } else { lost };
                self.finish(key, open, time_ns, outcome, out);
            }
        }
        let answers = usize::from(self.role == Some(Role::Server));
        let lost = if self.doubtful[answers] {
            Outcome::Unfinished
        } else {
            lost
        };
        while let Some((number, open)) = self.queue.pop_front() {
            let orderly = !matches!(lost, Outcome::ConnectionLost { error } if error != 0);
            let whole = orderly && open.until_close && open.response.status.value().is_some();
            self.finish_http1(number, open, time_ns, if whole { Outcome::Complete } else { lost }, out);
        }
        self.settle(out);
    }

    /// A 101 response that did not lead to HTTP/2 ended its exchange when it came.
    pub(super) fn settle(&mut self, out: &mut Vec<Output>) {
        if let Some((number, open, at)) = self.upgraded.take() {
            self.finish_http1(number, open, at, Outcome::Complete, out);
        }
    }

    /// The agent stops: nothing is known of the ends.
    pub(super) fn abandon(&mut self, time_ns: u64, out: &mut Vec<Output>) {
        self.settle(out);
        let streams: Vec<(u32, Box<Stream>)> = self.streams.drain().collect();
        for (key, open) in streams {
            self.finish(key, open, time_ns, Outcome::Unfinished, out);
        }
        while let Some((number, open)) = self.queue.pop_front() {
            self.finish_http1(number, open, time_ns, Outcome::Unfinished, out);
        }
    }

    pub(super) fn finish(&self, stream: u32, open: Box<Stream>, end_ns: u64, outcome: Outcome, out: &mut Vec<Output>) {
        self.exchange(stream, *open, end_ns, outcome, Version::Http2, out);
    }

    pub(super) fn finish_http1(&self, stream: u32, open: Stream, end_ns: u64, outcome: Outcome, out: &mut Vec<Output>) {
        self.exchange(stream, open, end_ns, outcome, self.http1_version, out);
    }

    fn exchange(
        &self,
        stream: u32,
        open: Stream,
        end_ns: u64,
        outcome: Outcome,
        version: Version,
        out: &mut Vec<Output>,
    ) {
        let Some(role) = self.role else { return };
        let mut open = open;
        let protocol = protocol(&open);
        open.request
            .captured
            .retain(|(name, _)| name.as_bytes() != fields::CONNECT);
        out.push(Output::Ended(Box::new(Exchange {
            pid: self.pid,
            role,
            peer: self.peer.clone(),
            stream,
            version,
            protocol,
            start_ns: open.start_ns,
            end_ns: end_ns.max(open.start_ns),
            request: open.request,
            response: open.response,
            request_messages: open.request_messages,
            response_messages: open.response_messages,
            outcome,
        })));
    }
}

/// The protocol by content types; where they could not be read, by what only gRPC does.
fn protocol(open: &Stream) -> Protocol {
    let kind = |value: &Seen<Arc<str>>| {
        let text = value.value()?;
        Some(if text.starts_with("application/grpc-web") {
            Protocol::GrpcWeb
        } else if text.starts_with("application/grpc") {
            Protocol::Grpc
        } else if text.starts_with("application/connect+") {
            Protocol::Connect
        } else {
            Protocol::Http
        })
    };
    if open
        .request
        .captured
        .iter()
        .any(|(name, _)| name.as_bytes() == fields::CONNECT)
    {
        return Protocol::Connect;
    }
    if let Some(protocol) = kind(&open.request.content_type) {
        return protocol;
    }
    if open.request.content_type.is_unknown() {
        if let Some(protocol) = kind(&open.response.content_type) {
            return protocol;
        }
        let post = open.request.method.value().is_none_or(|m| &**m == "POST");
        let counted = |m: Messages| m.count > 0 && !m.uncounted;
        let messages = counted(open.request_messages) || counted(open.response_messages);
        if post && (messages || open.response.grpc_status.value().is_some()) {
            return Protocol::Grpc;
        }
    }
    Protocol::Http
}
