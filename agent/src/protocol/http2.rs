//! HTTP/2 (RFC 9113) from the elided stream: header blocks put together and
//! decoded, ends and errors of streams.
//!
//! Bias: what a gap or a truncated block hid is said to be unknown; the
//! decoder's tables are not trusted past it.

use tracewire_common::elided::{Head, UNCOUNTED, flag, frame};

use super::hpack::Decoder;

/// What one direction says of its streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// A header block; its fields went to the field sink before.
    Headers {
        /// Stream identifier.
        stream: u32,
        /// The block carried END_STREAM.
        end: bool,
        /// The block could not be decoded (whole): fields may be missing.
        damaged: bool,
    },
    /// A gRPC message starts.
    Message {
        /// Stream identifier.
        stream: u32,
        /// Its length, bytes.
        length: u32,
    },
    /// Messages of this direction are not told any more: it is likely no gRPC.
    Uncounted {
        /// Stream identifier.
        stream: u32,
    },
    /// END_STREAM on DATA.
    End {
        /// Stream identifier.
        stream: u32,
    },
    /// RST_STREAM.
    Reset {
        /// Stream identifier.
        stream: u32,
        /// RFC 9113 §7.
        code: u32,
    },
    /// GOAWAY.
    GoAway {
        /// Streams above were not processed.
        last: u32,
        /// RFC 9113 §7.
        code: u32,
    },
}

/// First pseudo-header of a block, as far as its first byte tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// `:authority`, `:method`, `:path` or `:scheme`.
    Request,
    /// `:status`.
    Response,
    /// None of them, or an index into the dynamic table.
    Unclear,
}

/// A header block under way.
#[derive(Clone, Debug, Default)]
struct Block {
    stream: u32,
    end: bool,
    truncated: bool,
    promise: bool,
    bytes: Vec<u8>,
    time_ns: u64,
}

/// One direction of an HTTP/2 connection.
#[derive(Default)]
pub struct Direction {
    decoder: Option<Decoder>,
    block: Option<Block>,
    /// Blocks that were not valid HPACK.
    pub malformed: u64,
}

/// Where decoded fields and signals go.
pub trait Sink {
    /// A block begins; its fields follow.
    fn block(&mut self, stream: u32, opening: Opening);
    /// One field of the block; None is unknown.
    fn field(&mut self, name: Option<&[u8]>, value: Option<&[u8]>);
    /// A signal; `time_ns` is that of its first frame.
    fn signal(&mut self, signal: Signal, time_ns: u64);
    /// A field of a gRPC-Web trailer.
    fn web_trailer(&mut self, stream: u32, bytes: &[u8]);
    /// Setting of the peer's: SETTINGS_HEADER_TABLE_SIZE, for the other direction.
    fn header_table_size(&mut self, bytes: u32);
}

const SETTINGS_HEADER_TABLE_SIZE: u16 = 1;

impl Direction {
    /// Bytes were lost before what comes now.
    pub fn lose(&mut self) {
        self.block = None;
        match &mut self.decoder {
            Some(decoder) => decoder.lose(),
            // Whatever comes first now is not the first block.
            None => self.decoder = Some(Decoder::new(false)),
        }
    }

    /// The other side limits this direction's table.
    pub fn set_limit(&mut self, bytes: u32) {
        if let Some(decoder) = &mut self.decoder {
            decoder.set_limit(bytes);
        }
    }

    /// HPACK indexes that could not be resolved.
    pub fn unknown_indexes(&self) -> u64 {
        self.decoder.as_ref().map_or(0, Decoder::unknown_indexes)
    }

    /// Takes one frame. `origin`: no block of this direction was missed before the first one seen.
    pub fn frame(&mut self, head: Head, payload: &[u8], time_ns: u64, origin: bool, sink: &mut impl Sink) {
        let stream = head.stream;
        match head.kind {
            frame::HEADERS | frame::PUSH_PROMISE => {
                let promise = head.kind == frame::PUSH_PROMISE;
                let end = !promise && head.flags & flag::END_STREAM != 0;
                let fragment = fragment(head, payload);
                let truncated = fragment.is_none();
                let bytes = fragment.unwrap_or_default();
                if head.flags & flag::END_HEADERS != 0 && !truncated {
                    self.decode(stream, end, promise, bytes, time_ns, origin, sink);
                } else {
                    let block = Block {
                        stream,
                        end,
                        truncated,
                        promise,
                        bytes: bytes.to_vec(),
                        time_ns,
                    };
                    self.continue_with(block, head.flags, origin, sink);
                }
            }
            frame::CONTINUATION => {
                if let Some(mut block) = self.block.take() {
                    block.bytes.extend_from_slice(payload);
                    self.continue_with(block, head.flags, origin, sink);
                } else {
                    // Its HEADERS was not seen.
                    self.malformed += 1;
                    self.lose();
                }
            }
            frame::TRUNCATED => {
                let mut block = self.block.take().unwrap_or_else(|| Block {
                    stream,
                    end: head.flags & flag::END_STREAM != 0,
                    time_ns,
                    ..Block::default()
                });
                block.truncated = true;
                self.continue_with(block, head.flags, origin, sink);
            }
            frame::DATA => sink.signal(Signal::End { stream }, time_ns),
            frame::MESSAGE if head.flags & UNCOUNTED != 0 => sink.signal(Signal::Uncounted { stream }, time_ns),
            frame::MESSAGE => {
                if let Some(&[_, a, b, c, d]) = payload.first_chunk::<5>() {
                    sink.signal(
                        Signal::Message {
                            stream,
                            length: u32::from_be_bytes([a, b, c, d]),
                        },
                        time_ns,
                    );
                }
            }
            frame::WEB_TRAILER => sink.web_trailer(stream, payload),
            frame::RST_STREAM => {
                if let Some(code) = payload.first_chunk::<4>() {
                    sink.signal(
                        Signal::Reset {
                            stream,
                            code: u32::from_be_bytes(*code),
                        },
                        time_ns,
                    );
                }
            }
            frame::GOAWAY => {
                if let Some(&[a, b, c, d, e, f, g, h]) = payload.first_chunk::<8>() {
                    let last = u32::from_be_bytes([a & 0x7f, b, c, d]);
                    sink.signal(
                        Signal::GoAway {
                            last,
                            code: u32::from_be_bytes([e, f, g, h]),
                        },
                        time_ns,
                    );
                }
            }
            frame::SETTINGS => {
                for setting in payload.chunks_exact(6) {
                    if let &[a, b, c, d, e, f] = setting
                        && u16::from_be_bytes([a, b]) == SETTINGS_HEADER_TABLE_SIZE
                    {
                        sink.header_table_size(u32::from_be_bytes([c, d, e, f]));
                    }
                }
            }
            _ => {}
        }
    }

    fn continue_with(&mut self, block: Block, flags: u8, origin: bool, sink: &mut impl Sink) {
        if flags & flag::END_HEADERS == 0 {
            self.block = Some(block);
        } else if block.truncated {
            // What it put into the table is not known.
            self.lose();
            if !block.promise {
                sink.block(block.stream, Opening::Unclear);
                let signal = Signal::Headers {
                    stream: block.stream,
                    end: block.end,
                    damaged: true,
                };
                sink.signal(signal, block.time_ns);
            }
        } else {
            self.decode(
                block.stream,
                block.end,
                block.promise,
                &block.bytes,
                block.time_ns,
                origin,
                sink,
            );
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one block")]
    fn decode(
        &mut self,
        stream: u32,
        end: bool,
        promise: bool,
        bytes: &[u8],
        time_ns: u64,
        origin: bool,
        sink: &mut impl Sink,
    ) {
        let decoder = self.decoder.get_or_insert_with(|| Decoder::new(origin));
        if promise {
            // Server push: nothing is made of it, but the table must follow.
            if decoder.decode(bytes, |_| ()).is_err() {
                self.malformed += 1;
                decoder.lose();
            }
            return;
        }
        sink.block(stream, opening(bytes));
        let damaged = decoder.decode(bytes, |f| sink.field(f.name, f.value)).is_err();
        if damaged {
            self.malformed += 1;
            decoder.lose();
        }
        sink.signal(Signal::Headers { stream, end, damaged }, time_ns);
    }
}

/// The header block fragment of HEADERS or PUSH_PROMISE: padding, priority and
/// promised stream taken off (RFC 9113 §6.2, §6.6).
fn fragment(head: Head, payload: &[u8]) -> Option<&[u8]> {
    let mut bytes = payload;
    if head.flags & flag::PADDED != 0 {
        let (pad, rest) = bytes.split_first()?;
        bytes = rest.get(..rest.len().checked_sub(usize::from(*pad))?)?;
    }
    if head.kind == frame::PUSH_PROMISE {
        return bytes.get(4..);
    }
    if head.flags & flag::PRIORITY != 0 {
        bytes = bytes.get(5..)?;
    }
    Some(bytes)
}

/// What a block opens, from its first field's static index (RFC 7541 Appendix
/// A): a late joiner can read that much of any block.
fn opening(bytes: &[u8]) -> Opening {
    let mut rest = bytes;
    // Dynamic table size updates come first (RFC 7541 §4.2).
    while let Some((&first, more)) = rest.split_first() {
        if first & 0xe0 != 0x20 {
            break;
        }
        rest = more;
        if first & 0x1f == 0x1f {
            while let Some((&next, more)) = rest.split_first() {
                rest = more;
                if next & 0x80 == 0 {
                    break;
                }
            }
        }
    }
    let index = match rest.first() {
        Some(b) if b & 0x80 != 0 => b & 0x7f,
        Some(b) if b & 0x40 != 0 => b & 0x3f,
        Some(b) => b & 0x0f,
        None => 0,
    };
    match index {
        1..=7 => Opening::Request,
        8..=14 => Opening::Response,
        _ => Opening::Unclear,
    }
}
