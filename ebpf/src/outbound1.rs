//! The HTTP/1.1 injector (RFC 9112): follows the requests that a client sends and puts a
//! `traceparent` line at the end of the head of each, before its empty line.
//!
//! Bias: a head gets a line only if all of it is read strictly ([`crate::head`]), begins where
//! the last request certainly ended, and lies whole in one write. What is not a strict request
//! ends the injector's interest in the connection for good. Nothing is put anywhere else, and
//! bodies are passed over by their length.
//!
//! ```text
//!   HTTP1 (head) --Content-Length--> BODY1 --> HTTP1
//!                --chunked--> HTTP1 (size) <--> BODY1 (data)
//!   Upgrade, two lengths, CONNECT, HTTP/1.0, anything malformed --> DEAD
//! ```

use tracewire_common::inject::Fate;
use tracewire_common::trace::{Context, LENGTH, NAME};

use crate::block::state as found;
use crate::head::{GO, Strict, Turn, bit, state};
use crate::outbound::{Bytes, Inserted, Message, Outbound, PIECE, fetch, parent, phase, readable};

/// Bytes of the line: name, colon, space, value, CRLF.
pub const LINE: usize = NAME.len() + 2 + LENGTH + 2;
/// Heads that would be longer get none: some servers take 8,190 bytes of a head, all take less than that.
const HEAD_LIMIT: u32 = 8000;
/// Heads with more lines get none: some servers take a hundred fields.
const LINES_LIMIT: u16 = 90;

/// Writes the line as it goes into a head.
#[inline(always)]
pub fn write(context: &Context, bytes: &mut [u8; LINE]) {
    let mut i = 0;
    while i < NAME.len() {
        bytes[i] = NAME[i];
        i += 1;
    }
    bytes[NAME.len()] = b':';
    bytes[NAME.len() + 1] = b' ';
    bytes[LINE - 2] = b'\r';
    bytes[LINE - 1] = b'\n';
    // SAFETY: 55 of the line's bytes, which have no alignment.
    let value = unsafe { bytes.as_mut_ptr().add(NAME.len() + 2) };
    // SAFETY: as above.
    parent(context).write(unsafe { &mut *value.cast::<[u8; LENGTH]>() });
}

impl Outbound {
    /// Reads some bytes of the piece as a head. False: it is over, or the head is.
    #[inline(always)]
    pub fn walk_head(&mut self) -> bool {
        let mut turn = Turn::Next;
        let mut i = 0;
        while i < GO {
            if self.unwalked == 0 {
                break;
            }
            let c = Bytes(&self.piece).at(self.walked);
            self.walked = self.walked.wrapping_add(1);
            self.unwalked = self.unwalked.wrapping_sub(1);
            turn = self.strict.byte(&mut self.block, c);
            if turn != Turn::Next {
                break;
            }
            i += 1;
        }
        if turn == Turn::Value {
            self.block.value_ends();
            turn = Turn::Next;
        }
        self.turn = turn as u8;
        self.turn == Turn::Next as u8 && self.unwalked != 0
    }

    #[inline(always)]
    fn pass(&mut self, n: u64) {
        self.body = n;
        self.phase = phase::BODY1;
    }
}

/// One step of a run in a head, or between chunks. False: it is over.
#[inline(always)]
pub fn lines<M: Message>(out: &mut Outbound, message: &mut M, left: u32) -> bool {
    let n = if left < PIECE as u32 { left } else { PIECE as u32 };
    if out.strict.state == state::START {
        if out.at != 0 {
            // It begins a run of its own.
            out.apply = out.at;
            return false;
        }
        out.whole = 1;
        out.strict = Strict::START;
        out.block.begin();
    }
    let there = if out.whole != 0 {
        fetch(out, message, n)
    } else {
        readable(out, message, n)
    };
    if !there {
        return false;
    }
    message.walk(out, n);
    out.at += out.walked;
    match out.turn {
        0 => true,
        t if t == Turn::End as u8 => over(out, message),
        t if t == Turn::Data as u8 => {
            out.whole = 0;
            if out.strict.left == 0 {
                out.strict.state = state::LINE;
                out.strict.bits |= bit::TRAILER;
            } else {
                let n = out.strict.left;
                out.strict.left = 0;
                out.pass(n);
            }
            true
        }
        _ => {
            out.phase = phase::DEAD;
            false
        }
    }
}

/// One step of a run in a body. False: it is over.
#[inline(always)]
pub fn body<M: Message>(out: &mut Outbound, message: &mut M, left: u32) -> bool {
    if out.expects != 0 {
        out.expects = 0;
        if !readable(out, message, 1) {
            out.expects = 1;
            return false;
        }
        // Whoever expects 100 (Continue) may leave the body out (RFC 9110 §10.1.1): then a method stands here.
        if out.piece[0].is_ascii_alphabetic() {
            out.phase = phase::DEAD;
            return false;
        }
    }
    let n = if out.body < u64::from(left) {
        out.body as u32
    } else {
        left
    };
    out.at += n;
    out.body -= u64::from(n);
    if out.body == 0 {
        passed(out);
    }
    true
}

/// What was passed over is over.
#[inline(always)]
pub fn passed(out: &mut Outbound) {
    out.phase = phase::HTTP1;
    out.strict.state = if out.strict.bits & bit::CHUNKED != 0 {
        state::DATA_END
    } else {
        state::START
    };
}

/// A head, or the last chunk's trailer section, is over at `out.at`.
#[inline(always)]
fn over<M: Message>(out: &mut Outbound, message: &mut M) -> bool {
    let bits = out.strict.bits;
    if bits & bit::TRAILER != 0 {
        out.strict.state = state::START;
        return true;
    }
    if bits & bit::OLD != 0 || bits & (bit::LENGTH | bit::CHUNKED) == bit::LENGTH | bit::CHUNKED {
        out.phase = phase::DEAD;
        return false;
    }
    request(out, message);
    out.requests = out.requests.wrapping_add(1);
    out.whole = 0;
    out.expects = u8::from(bits & bit::EXPECT != 0);
    if bits & bit::UPGRADE != 0 {
        // What follows may be anything.
        out.phase = phase::DEAD;
        return false;
    }
    if bits & bit::CHUNKED != 0 {
        out.strict.left = 0;
        out.strict.state = state::CHUNK;
    } else if out.strict.left != 0 {
        let n = out.strict.left;
        out.pass(n);
    } else {
        out.strict.state = state::START;
    }
    true
}

#[inline(always)]
fn request<M: Message>(out: &mut Outbound, message: &mut M) {
    out.stream = out.requests.wrapping_add(1);
    let length = out.strict.bytes + LINE as u32;
    let fate = if out.block.found[0].state != found::ABSENT {
        Fate::Own
    } else if out.whole == 0 {
        Fate::Split
    } else if length > HEAD_LIMIT || out.strict.lines > LINES_LIMIT {
        Fate::TooLong
    } else if !message.room(length) {
        Fate::NoRoom
    } else {
        insert(out, message)
    };
    message.fate(fate);
}

#[inline(always)]
fn insert<M: Message>(out: &mut Outbound, message: &mut M) -> Fate {
    if let Err(fate) = message.context(out) {
        return fate;
    }
    // Before the empty line.
    let at = out.at - 2;
    match message.insert_line(out, at) {
        Inserted::Done => {
            out.injected = out.injected.wrapping_add(LINE as u32);
            out.size += LINE as u32;
            out.at += LINE as u32;
            Fate::Injected
        }
        Inserted::Refused => Fate::Refused,
        Inserted::RolledBack => Fate::RolledBack,
    }
}

#[cfg(test)]
mod tests;
