//! Framing in mid-stream: whether a call's bytes prove where frames begin.

use tracewire_common::elided::Head;
use tracewire_ebpf::connection::{Flow, flow_flag, phase, protocol};
use tracewire_ebpf::io::Io;
use tracewire_ebpf::{http1, http2, step};

use crate::kernel::maps;
use crate::kernel::walk::{Walk, stop, walk};

/// Calls of a connection that may look like nothing before it is left alone.
const ATTEMPTS: u32 = 256;
/// Fewest bytes that prove a framing in mid-stream.
const PROOF: u32 = 13;
/// Whole frames that prove it even where the last one is cut.
const PROOF_FRAMES: u32 = 3;

/// Whether this call's bytes prove a framing from its first byte on; if so the
/// flow is set to it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn prove(slot: u32) -> u32 {
    let Some(mut at) = Walk::of(slot) else { return 0 };
    let Some(scratch) = maps::scratch(slot) else { return 0 };
    // SAFETY: a live element of a per-CPU map that only this program uses on this CPU; the walk is not used at the same time.
    let parts = unsafe { &mut *scratch };
    let Some(connection) = maps::connection(parts.header.connection) else {
        return 0;
    };
    // SAFETY: a live element of a map; a race on what both directions share costs at most one direction's framing.
    let shared = unsafe { &mut (*connection).shared };
    // The first bytes, wherever they lie.
    if at.at().segment == 0 && !at.next_vector() {
        return 0;
    }
    let n = at.look(9);
    if n >= 4 {
        let word = (at.word(0) >> 32) as u32;
        let preface = word == u32::from_be_bytes(*b"PRI ");
        let head = http1::begins(word);
        if shared.protocol != protocol::HTTP2 && head || shared.protocol != protocol::HTTP1 && preface {
            parts.flow.phase = phase::START;
            return 1;
        }
    }
    // The client's preface was seen, and this is the server's: its first frame.
    if n >= 9 && shared.origin != 0 && shared.protocol == protocol::HTTP2 && parts.flow.frames == 0 {
        let head = Head::of(at.word(0), at.byte(8));
        if http2::server_preface(&head) {
            parts.flow.phase = phase::HEAD;
            parts.flow.have = 0;
            return 1;
        }
    }
    if shared.protocol != protocol::HTTP1 && parts.cursor.moved >= PROOF {
        parts.kept = parts.flow;
        parts.flow = Flow::EMPTY;
        parts.flow.phase = phase::HEAD;
        parts.flow.flags = flow_flag::DRY;
        parts.cursor.dry = 1;
        walk(slot);
        parts.cursor.dry = 0;
        let ended = parts.cursor.stop == stop::NONE && parts.cursor.left == 0;
        let whole = parts.flow.phase == phase::HEAD && parts.flow.have == 0 && parts.flow.frames != 0;
        let proven = ended && (whole || parts.flow.frames > PROOF_FRAMES);
        parts.flow = parts.kept;
        if proven {
            shared.protocol = protocol::HTTP2;
            parts.flow.phase = phase::HEAD;
            parts.flow.have = 0;
            parts.flow.stored = 1;
            return 1;
        }
    }
    if shared.protocol == protocol::UNKNOWN {
        at.begin();
        if (at.at().segment != 0 || at.next_vector()) && at.look(5) >= 5 && step::tls(at.word(0)) {
            shared.protocol = protocol::TLS;
            parts.flow.phase = phase::DEAD;
            return 0;
        }
        shared.attempts += 1;
        if shared.attempts > ATTEMPTS {
            shared.protocol = protocol::OTHER;
        }
    }
    0
}
