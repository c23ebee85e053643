//! The fields of one header block, sorted as a request's or a response's.

use super::{RequestHead, ResponseHead};
use crate::protocol::fields::{Allow, Interner, Request, Response};
use crate::protocol::http2::Opening;

/// What a block turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It has a request's pseudo-headers.
    Request,
    /// It has `:status`.
    Response,
    /// It has neither, as trailers have.
    Unclear,
}

/// A field that waits until it is known what its block is; None is unknown.
pub type Held = (Option<Vec<u8>>, Option<Vec<u8>>);

/// Octets of one block that are held; what comes after is unknown. A block of
/// a few bytes can name a table's entry thousands of times.
const HELD: usize = 64 * 1024;

/// Takes the fields of a block.
#[expect(
    clippy::large_enum_variant,
    reason = "one a block, taken apart at its end: a box would be an allocation a request"
)]
pub enum HeadSink {
    /// As a request's.
    Request(Request, Opening),
    /// As a response's.
    Response(Response, Opening),
    /// As they come: neither the block's first byte nor the connection's past tells what it is.
    Held(Vec<Held>, usize),
}

impl Default for HeadSink {
    fn default() -> Self {
        HeadSink::Response(Response::default(), Opening::Unclear)
    }
}

impl HeadSink {
    /// A block that opens so, in a direction that carries requests or not.
    pub fn new(opening: Opening, requests: Option<bool>) -> Self {
        match (opening, requests) {
            (Opening::Request, _) | (Opening::Unclear, Some(true)) => HeadSink::Request(Request::default(), opening),
            (Opening::Unclear, None) => HeadSink::Held(Vec::new(), 0),
            _ => HeadSink::Response(Response::default(), opening),
        }
    }

    /// What the block is by its pseudo-headers.
    pub fn kind(&self) -> Kind {
        match self {
            HeadSink::Request(_, Opening::Request) => Kind::Request,
            HeadSink::Response(_, Opening::Response) => Kind::Response,
            _ => Kind::Unclear,
        }
    }

    /// One field; None is unknown.
    pub fn field(&mut self, name: Option<&[u8]>, value: Option<&[u8]>, allow: &Allow, interner: &mut Interner) {
        match self {
            HeadSink::Request(r, _) => r.field(name, value, allow, interner),
            HeadSink::Response(r, _) => r.field(name, value, allow, interner),
            HeadSink::Held(fields, octets) => {
                let length = |text: Option<&[u8]>| text.map_or(0, <[u8]>::len);
                let before = std::mem::replace(octets, octets.saturating_add(length(name) + length(value) + 32));
                if *octets <= HELD {
                    fields.push((name.map(<[u8]>::to_vec), value.map(<[u8]>::to_vec)));
                } else if before <= HELD {
                    fields.push((None, None));
                }
            }
        }
    }

    /// The same, sorted, if it was held: by the pseudo-headers among its fields (RFC 9113 §8.3).
    pub fn settled(self, allow: &Allow, interner: &mut Interner) -> Self {
        let HeadSink::Held(fields, _) = self else { return self };
        let has = |names: &[&[u8]]| {
            fields
                .iter()
                .any(|(n, _)| n.as_deref().is_some_and(|n| names.contains(&n)))
        };
        let opening = if has(&[b":method", b":path", b":scheme", b":authority"]) {
            Opening::Request
        } else if has(&[b":status"]) {
            Opening::Response
        } else {
            Opening::Unclear
        };
        let mut sorted = match opening {
            Opening::Request => HeadSink::Request(Request::default(), opening),
            _ => HeadSink::Response(Response::default(), opening),
        };
        for (name, value) in &fields {
            sorted.field(name.as_deref(), value.as_deref(), allow, interner);
        }
        sorted
    }

    /// The request's head; `damaged`: fields may be missing.
    pub fn into_request(self, damaged: bool) -> RequestHead {
        match self {
            HeadSink::Request(r, _) => r.finish(damaged),
            _ => Request::default().finish(true),
        }
    }

    /// Joins the response's head, or its trailers, to what was known.
    pub fn into_response(self, damaged: bool, into: &mut ResponseHead) {
        match self {
            HeadSink::Response(r, _) => r.finish(damaged, into),
            _ => Response::default().finish(true, into),
        }
    }
}
