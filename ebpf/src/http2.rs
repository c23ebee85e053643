//! The HTTP/2 framer (RFC 9113 §4): follows frames over calls cut at any byte
//! and passes on what the user side needs.

use tracewire_common::elided::{BLOCK_LIMIT, FRAME_HEADER, Head, flag, frame};
use tracewire_common::fault::Fault;

use crate::connection::{Flow, Http1, Message, flow_flag, phase};
use crate::http1::{Bytes, Turn};
use crate::io::Io;
use crate::step::Step;

/// The client's connection preface, RFC 9113 §3.4.
pub const PREFACE: [u8; 24] = *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The same, so long that an index of 5 bits can't miss it.
const PREFACE_TABLE: [u8; 32] = *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\0\0\0\0\0";

/// The bytes of the preface; counts them in [`Http1::column`].
pub struct PrefaceBytes;

impl Bytes for PrefaceBytes {
    #[inline(always)]
    fn byte(http1: &mut Http1, c: u8) -> Turn {
        let at = http1.column;
        if c != PREFACE_TABLE[(at & 31) as usize] {
            return Turn::Malformed;
        }
        http1.column = at.wrapping_add(1);
        if at == PREFACE.len() as u8 - 1 {
            Turn::End
        } else {
            Turn::Next
        }
    }
}

/// Bytes of a gRPC message prefix.
const PREFIX: u32 = 5;

/// Bytes of a SETTINGS frame that are passed on: 20 settings of 6 bytes.
const SETTINGS_LIMIT: u32 = 120;

/// Bytes of a GOAWAY frame that are passed on: the debug data stays.
const GOAWAY_LIMIT: u32 = 8;

/// Bytes of a gRPC-Web trailer that are passed on.
const WEB_TRAILER_LIMIT: u32 = 4096;

/// Whether a frame header can stand in a well-formed connection (RFC 9113
/// §6); `strict` refuses what is legal but unusual, for proofs in mid-stream.
#[inline(always)]
pub fn plausible(head: &Head, strict: bool) -> bool {
    let connection = head.stream == 0;
    let ok = match head.kind {
        frame::DATA => !connection && (!strict || head.flags & !(flag::END_STREAM | flag::PADDED) == 0),
        frame::HEADERS => !connection && (!strict || (head.flags & !0x2d == 0 && head.length != 0)),
        frame::PRIORITY => !connection && head.length == 5,
        frame::RST_STREAM => !connection && head.length == 4,
        frame::SETTINGS => {
            connection && head.length.is_multiple_of(6) && (head.flags & flag::ACK == 0 || head.length == 0)
        }
        frame::PUSH_PROMISE => !connection,
        frame::PING => connection && head.length == 8,
        frame::GOAWAY => connection && head.length >= 8,
        frame::WINDOW_UPDATE => head.length == 4,
        frame::CONTINUATION => !connection && (!strict || head.flags & !flag::END_HEADERS == 0),
        // Extension frames (RFC 9113 §5.5) are legal; beyond these few nobody sends any.
        0x0a | 0x0c | 0x10 => !strict,
        _ => false,
    };
    ok && (!strict || head.length <= BLOCK_LIMIT || head.kind == frame::DATA)
}

/// In a frame header: gathers it and chooses what its payload is.
#[inline(always)]
pub fn head<I: Io>(flow: &mut Flow, io: &mut I) -> Step {
    let have = u32::from(flow.have);
    if have >= FRAME_HEADER as u32 {
        return Step::Malformed;
    }
    let n = (FRAME_HEADER as u32 - have).min(io.available());
    if !io.take(&mut flow.buffer, have, n) {
        return Step::Unreadable;
    }
    flow.have = (have + n) as u8;
    if have + n < FRAME_HEADER as u32 {
        return Step::More;
    }
    flow.have = 0;
    let b = &flow.buffer;
    let head = Head::parse(&[b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8]]);
    let strict = flow.flags & flow_flag::DRY != 0;
    if !plausible(&head, strict) {
        return Step::Malformed;
    }
    flow.frames += 1;
    flow.stream = head.stream;
    flow.frame_flags = head.flags;
    flow.need = head.length;
    flow.pad = 0;
    flow.phase = phase::SKIP;
    match head.kind {
        frame::DATA => {
            flow.message = Message::default();
            if flow.stored != 0
                && let Some(message) = io.load(head.stream)
            {
                flow.message = message;
            }
            if head.flags & flag::PADDED != 0 {
                if head.length == 0 {
                    return Step::Malformed;
                }
                flow.phase = phase::PAD;
            } else {
                flow.phase = phase::DATA;
                if head.length == 0 {
                    data_end(flow, io);
                }
            }
        }
        frame::HEADERS | frame::CONTINUATION | frame::PUSH_PROMISE => {
            let before = if head.kind == frame::CONTINUATION {
                flow.block
            } else {
                0
            };
            flow.block = before.saturating_add(head.length);
            if flow.block > BLOCK_LIMIT {
                io.fault(Fault::BlockTooLong);
                io.put(Head {
                    length: 0,
                    kind: frame::TRUNCATED,
                    ..head
                });
            } else {
                io.put(head);
                flow.phase = phase::COPY;
            }
            if head.kind == frame::HEADERS && head.flags & flag::END_STREAM != 0 {
                end_stream(flow, io);
            }
        }
        frame::RST_STREAM => {
            io.put(head);
            flow.phase = phase::COPY;
            end_stream(flow, io);
        }
        frame::SETTINGS if head.flags & flag::ACK == 0 => limited(flow, io, head, SETTINGS_LIMIT),
        frame::GOAWAY => limited(flow, io, head, GOAWAY_LIMIT),
        _ => {}
    }
    if flow.need == 0 && flow.phase != phase::HEAD {
        flow.phase = phase::HEAD;
    }
    Step::More
}

/// Passes on the first `limit` bytes of a frame's payload as a whole frame.
#[inline(always)]
fn limited<I: Io>(flow: &mut Flow, io: &mut I, head: Head, limit: u32) {
    let length = head.length.min(limit);
    io.put(Head { length, ..head });
    flow.pad = head.length - length;
    flow.need = length;
    flow.phase = phase::COPY;
}

/// A stream's direction is over: its message state is not needed any more.
#[inline(always)]
fn end_stream<I: Io>(flow: &mut Flow, io: &mut I) {
    if flow.stored != 0 {
        io.forget(flow.stream);
    }
}

/// In a payload that goes to the elided stream.
#[inline(always)]
pub fn copy<I: Io>(flow: &mut Flow, io: &mut I) -> Step {
    let n = flow.need.min(io.available());
    let n = io.copy(n);
    if n == 0 {
        return Step::Unreadable;
    }
    flow.need = flow.need.saturating_sub(n);
    if flow.need == 0 {
        after(flow);
    }
    Step::More
}

/// In bytes nobody needs.
#[inline(always)]
pub fn skip<I: Io>(flow: &mut Flow, io: &mut I) -> Step {
    let n = flow.need.min(io.available());
    io.skip(n);
    flow.need -= n;
    if flow.need == 0 {
        after(flow);
    }
    Step::More
}

/// What follows a payload: the rest that is skipped, or the next frame.
#[inline(always)]
fn after(flow: &mut Flow) {
    flow.need = flow.pad;
    flow.pad = 0;
    flow.phase = if flow.need == 0 { phase::HEAD } else { phase::SKIP };
}

/// At the Pad Length byte of a DATA frame (RFC 9113 §6.1).
#[inline(always)]
pub fn pad<I: Io>(flow: &mut Flow, io: &mut I) -> Step {
    if !io.take(&mut flow.buffer, 0, 1) {
        return Step::Unreadable;
    }
    let pad = u32::from(flow.buffer[0]);
    let payload = flow.need.wrapping_sub(1);
    if pad > payload {
        return Step::Malformed;
    }
    flow.need = payload - pad;
    flow.pad = pad;
    flow.phase = phase::DATA;
    if flow.need == 0 {
        data_end(flow, io);
    }
    Step::More
}

/// In the payload of a DATA frame: follows the length-prefixed messages.
#[inline(always)]
pub fn data<I: Io>(flow: &mut Flow, io: &mut I) -> Step {
    let n = flow.need.min(io.available());
    let mut m = flow.message;
    let used;
    if m.state == 1 {
        used = n;
        io.skip(n);
    } else if m.left != 0 {
        let k = n.min(m.left);
        if m.state == 2 {
            used = io.copy(k);
            if used == 0 {
                return Step::Unreadable;
            }
        } else {
            io.skip(k);
            used = k;
        }
        m.left -= used;
        if m.left == 0 {
            m.state = 0;
        }
    } else {
        let have = u32::from(m.have);
        if have >= PREFIX {
            return Step::Malformed;
        }
        used = n.min(PREFIX - have);
        // Gathered behind the bytes of a frame header, then kept with the stream.
        if !io.take(&mut flow.buffer, 0, used) {
            return Step::Unreadable;
        }
        let mut i = 0;
        while i < PREFIX {
            if i < used {
                m.prefix[((have + i) & 7) as usize] = flow.buffer[(i & 7) as usize];
            }
            i += 1;
        }
        m.have = (have + used) as u8;
        if u32::from(m.have) == PREFIX {
            m.have = 0;
            prefix(flow.stream, &mut m, flow.need - used, io);
        }
    }
    flow.message = m;
    flow.need -= used;
    if flow.need == 0 {
        data_end(flow, io);
    }
    Step::More
}

/// A whole message prefix: flags and length (gRPC over HTTP/2, Length-Prefixed-Message).
#[inline(always)]
fn prefix<I: Io>(stream: u32, m: &mut Message, left_in_frame: u32, io: &mut I) {
    let p = m.prefix;
    let length = u32::from_be_bytes([p[1], p[2], p[3], p[4]]);
    match p[0] {
        // 2 and 3: the end of a Connect stream.
        0..=3 => {
            m.left = length;
            io.put(Head {
                length: PREFIX,
                kind: frame::MESSAGE,
                flags: 0,
                stream,
            });
            io.put_prefix(&p);
        }
        // Only where it lies whole in this frame: frames of other streams may follow it.
        0x80 if length <= WEB_TRAILER_LIMIT && length <= left_in_frame => {
            m.left = length;
            m.state = 2;
            io.put(Head {
                length,
                kind: frame::WEB_TRAILER,
                flags: 0,
                stream,
            });
        }
        _ => m.state = 1,
    }
}

/// The payload of a DATA frame is over: keeps or forgets the stream's state, says END_STREAM.
#[inline(always)]
fn data_end<I: Io>(flow: &mut Flow, io: &mut I) {
    let m = flow.message;
    if flow.frame_flags & flag::END_STREAM != 0 {
        end_stream(flow, io);
        io.put(Head {
            length: 0,
            kind: frame::DATA,
            flags: flag::END_STREAM,
            stream: flow.stream,
        });
    } else if m.left != 0 || m.have != 0 || m.state != 0 {
        if io.store(flow.stream, &m) {
            flow.stored = flow.stored.saturating_add(1);
        }
    } else if flow.stored != 0 {
        io.forget(flow.stream);
    }
    after(flow);
}
