//! The HTTP/2 framer (RFC 9113 §4): follows frames over calls cut at any byte
//! and passes on what the user side needs.

use tracewire_common::elided::{BLOCK_LIMIT, FRAME_HEADER, Head, UNCOUNTED, flag, frame};
use tracewire_common::fault::Fault;

use crate::connection::{Flow, Http1, Message, flow_flag, phase};
use crate::http1::{Bytes, Machine, Turn};
use crate::io::Io;
use crate::step::Step;

/// The client's connection preface, RFC 9113 §3.4.
pub const PREFACE: [u8; 24] = *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The same, so long that an index of 5 bits can't miss it.
pub const PREFACE_TABLE: [u8; 32] = *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\0\0\0\0\0";

/// The bytes of the preface; counts them in [`Http1::column`].
pub struct PrefaceBytes;

impl Bytes for PrefaceBytes {
    const MACHINE: Machine = Machine::Preface;

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

/// Empty messages in a row in one frame, after which it is taken for another kind of body.
const EMPTY: u8 = 16;
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

/// The first frame of a server: SETTINGS without ACK (RFC 9113 §3.4).
#[inline(always)]
pub fn server_preface(head: &Head) -> bool {
    head.kind == frame::SETTINGS && head.flags == 0 && head.length <= SETTINGS_LIMIT && plausible(head, true)
}

/// One step: to the end of the frame where its bytes are at hand.
#[inline(always)]
pub fn step<I: Io>(flow: &mut Flow, io: &mut I) -> Step {
    if flow.phase == phase::HEAD {
        let step = head(flow, io);
        if step != Step::More || io.available() == 0 {
            return step;
        }
    }
    match flow.phase {
        phase::COPY => copy(flow, io),
        phase::SKIP => skip(flow, io),
        phase::DATA => data(flow, io),
        phase::PAD => pad(flow, io),
        _ => Step::More,
    }
}

/// In a frame header: gathers it and chooses what its payload is.
#[inline(always)]
fn head<I: Io>(flow: &mut Flow, io: &mut I) -> Step {
    const HEADER: u32 = FRAME_HEADER as u32;
    let have = u32::from(flow.have);
    if have >= HEADER {
        return Step::Malformed;
    }
    let at_hand = io.look(HEADER - have);
    if at_hand == 0 {
        return Step::Unreadable;
    }
    let head = if have == 0 && at_hand >= HEADER {
        let head = Head::of(io.word(0), io.byte(8));
        io.skip(HEADER);
        head
    } else {
        // Rare, so a byte a step will do; a loop here would multiply what the verifier walks.
        flow.buffer[(have & 31) as usize] = io.byte(0);
        io.skip(1);
        flow.have = (have + 1) as u8;
        if have + 1 < HEADER {
            return Step::More;
        }
        flow.have = 0;
        let b = &flow.buffer;
        Head::parse(&[b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8]])
    };
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
            flow.blocks = flow.blocks.wrapping_add(1);
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
fn copy<I: Io>(flow: &mut Flow, io: &mut I) -> Step {
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
fn skip<I: Io>(flow: &mut Flow, io: &mut I) -> Step {
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
fn pad<I: Io>(flow: &mut Flow, io: &mut I) -> Step {
    if io.look(1) == 0 {
        return Step::Unreadable;
    }
    let pad = u32::from(io.byte(0));
    io.skip(1);
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
fn data<I: Io>(flow: &mut Flow, io: &mut I) -> Step {
    let mut n = flow.need.min(io.available());
    let mut m = flow.message;
    if n != 0 && m.state == 0 && m.left == 0 {
        let used = match gather(flow.stream, flow.need, n, (&mut m, &mut flow.message.prefix), io) {
            Ok(used) => used,
            Err(step) => return step,
        };
        n -= used;
        flow.need -= used;
    }
    let mut used = n;
    if m.state == 1 {
        io.skip(n);
    } else if m.left != 0 && n != 0 {
        used = n.min(m.left);
        if m.state == 2 {
            used = io.copy(used);
            if used == 0 {
                return Step::Unreadable;
            }
        } else {
            io.skip(used);
        }
        m.left = m.left.saturating_sub(used);
        if m.left == 0 {
            m.state = 0;
        }
    } else {
        used = 0;
    }
    flow.message = m;
    flow.need = flow.need.saturating_sub(used);
    if flow.need == 0 {
        data_end(flow, io);
    }
    Step::More
}

/// At a message prefix, `n` ≥ 1 bytes of the frame at hand: how many of them it took.
#[inline(always)]
fn gather<I: Io>(
    stream: u32,
    need: u32,
    n: u32,
    (m, kept): (&mut Message, &mut [u8; 8]),
    io: &mut I,
) -> Result<u32, Step> {
    let have = u32::from(m.have);
    if have >= PREFIX {
        return Err(Step::Malformed);
    }
    if io.look(PREFIX) == 0 {
        return Err(Step::Unreadable);
    }
    let used = if have == 0 && n >= PREFIX {
        m.prefix = io.word(0).to_be_bytes();
        PREFIX
    } else {
        // As in `head`; where it is kept, for a verifier (Linux 6.18.15) that saw a byte of the stack
        // written at a place it does not know refuses to read the word.
        kept[(have & 7) as usize] = io.byte(0);
        m.prefix = *kept;
        1
    };
    io.skip(used);
    m.have = (have + used) as u8;
    if have + used == PREFIX {
        m.have = 0;
        prefix(stream, m, need - used, io);
    }
    Ok(used)
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
            m.empty = if length == 0 { m.empty.saturating_add(1) } else { 0 };
            // A body of zeros reads like that; each byte of it must not become three.
            let flags = if m.empty > EMPTY { UNCOUNTED } else { 0 };
            m.state = flags & 1;
            io.put(Head {
                length: PREFIX,
                kind: frame::MESSAGE,
                flags,
                stream,
            });
            io.put_prefix(&p);
        }
        // Only where it lies whole in this frame: frames of other streams may follow it.
        0x80 if length <= WEB_TRAILER_LIMIT && length <= left_in_frame => {
            m.left = length;
            // An empty one is over at once.
            m.state = if length == 0 { 0 } else { 2 };
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
