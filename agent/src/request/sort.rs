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

/// Takes the fields of a block.
pub enum HeadSink {
    /// As a request's.
    Request(Request, Opening),
    /// As a response's.
    Response(Response, Opening),
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
        }
    }

    /// The request's head; `damaged`: fields may be missing.
    pub fn into_request(self, damaged: bool) -> RequestHead {
        match self {
            HeadSink::Request(r, _) => r.finish(damaged),
            HeadSink::Response(..) => Request::default().finish(true),
        }
    }

    /// Joins the response's head, or its trailers, to what was known.
    pub fn into_response(self, damaged: bool, into: &mut ResponseHead) {
        match self {
            HeadSink::Response(r, _) => r.finish(damaged, into),
            HeadSink::Request(..) => Response::default().finish(true, into),
        }
    }
}
