//! Node, with the helper that the user asked for (`agent/src/bpf/probe/node/helper.js`): it tells on whose
//! behalf a request is made by asking for a file that nobody has. The name is read where it is asked for.
//!
//! Bias: what the helper names must be a socket of its own process, else nothing is known.

use aya_ebpf::macros::{map, uprobe};
use aya_ebpf::maps::LruHashMap;
use aya_ebpf::programs::ProbeContext;
use tracewire_common::event::direction;
use tracewire_common::link::{StreamKey, mechanism, runtime};
use tracewire_ebpf::connection::protocol;

use super::{Pointer, register, watched};
use crate::kernel::memory::user;
use crate::kernel::threads::heads;
use crate::kernel::{context, maps, socket, syscall};

/// How all names begin. Then a letter, and numbers of [`DIGITS`] hexadecimal digits.
const PREFIX: [u8; 20] = *b"/dev/null/tracewire/";
const DIGITS: usize = 8;
const NUMBERS: usize = 4;
/// The helper does not know.
const DOUBT: u32 = u32::MAX;

/// Prefix, letter and numbers.
#[repr(C)]
#[derive(Clone, Copy)]
struct Asked {
    prefix: [u8; PREFIX.len()],
    letter: u8,
    numbers: [[u8; DIGITS]; NUMBERS],
}

/// Served requests of HTTP/1 by the helper's number for them.
#[map]
static NODE_SERVED: LruHashMap<Pointer, StreamKey> = LruHashMap::with_max_entries(16384, 0);

/// On whose behalf the next request on an HTTP/1 connection will be.
#[map]
static NODE_NEXT: LruHashMap<u64, StreamKey> = LruHashMap::with_max_entries(8192, 0);

/// `uv_fs_access(loop, req, path, mode, cb)`
#[uprobe]
pub fn node_told(ctx: ProbeContext) -> u32 {
    if let Some(pid) = watched()
        && maps::runs(pid, runtime::NODE)
    {
        told(pid, register!(ctx, rdx));
    }
    0
}

#[inline(always)]
fn told(pid: u32, path: u64) -> Option<()> {
    let asked = user::<Asked>(path)?;
    if asked.prefix != PREFIX {
        return None;
    }
    let [first, second, third, fourth] = asked.numbers;
    match asked.letter {
        b's' => serves(pid, number(&first), connection(number(&second))?),
        b'c' => {
            let connection = connection(number(&first))?;
            let parent = parent(pid, number(&third), number(&fourth));
            match number(&second) {
                0 if parent == StreamKey::NONE => {
                    let _ = NODE_NEXT.remove(connection);
                }
                0 => {
                    let _ = NODE_NEXT.insert(connection, parent, 0);
                }
                stream => context::join(connection, stream, &parent, mechanism::NODE),
            }
            Some(())
        }
        _ => None,
    }
}

/// A request of HTTP/1 is about to be handled.
#[inline(always)]
fn serves(pid: u32, token: u32, connection: u64) -> Option<()> {
    let known = maps::connection(connection)?;
    // SAFETY: a live element of a map.
    let shared = unsafe { (*known).shared };
    let request = if shared.protocol == protocol::HTTP1 && shared.unanswered == 1 {
        StreamKey::served(connection, shared.requests)
    } else {
        // Several were read at once: which of them it is, is not known.
        StreamKey::DOUBT
    };
    let _ = NODE_SERVED.insert(pointer(pid, token), request, 0);
    Some(())
}

/// What two numbers name: a descriptor and a stream of HTTP/2, or a served request of HTTP/1 and 0.
#[inline(always)]
fn parent(pid: u32, first: u32, second: u32) -> StreamKey {
    if first == DOUBT {
        return StreamKey::DOUBT;
    }
    if second == 0 {
        // SAFETY: plain, and written once.
        return unsafe { NODE_SERVED.get(pointer(pid, first)) }
            .copied()
            .unwrap_or(StreamKey::NONE);
    }
    connection(first).map_or(StreamKey::NONE, |connection| StreamKey::served(connection, second))
}

/// The parent of the request that is being written to an HTTP/1 connection, for injectors.
#[inline(always)]
pub fn writing(connection: u64) -> Option<StreamKey> {
    // SAFETY: plain, and written whole.
    unsafe { NODE_NEXT.get(connection) }.copied().filter(StreamKey::is_some)
}

/// A call on an HTTP/1 connection has moved bytes, as the scratch says.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn node_moved(slot: u32) -> u32 {
    let _ = moved_by(slot);
    0
}

/// The same.
#[inline(always)]
pub fn moved(slot: u32) {
    node_moved(slot);
}

#[inline(always)]
fn moved_by(slot: u32) -> Option<()> {
    let scratch = maps::scratch(slot)?;
    // SAFETY: a live element of a per-CPU map that only this program uses on this CPU.
    let parts = unsafe { &*scratch };
    if parts.header.direction != direction::SEND || parts.cursor.heads < heads::ONE {
        return None;
    }
    let connection = parts.header.connection;
    // SAFETY: plain, and written whole.
    let parent = unsafe { NODE_NEXT.get(connection) }.copied()?;
    let _ = NODE_NEXT.remove(connection);
    if parts.cursor.heads == heads::ONE {
        let known = maps::connection(connection)?;
        // SAFETY: a live element of a map.
        let number = unsafe { (*known).shared.requests };
        context::join(connection, number, &parent, mechanism::NODE);
    }
    None
}

#[inline(always)]
fn connection(descriptor: u32) -> Option<u64> {
    syscall::sock(descriptor).map(socket::name_at)
}

#[inline(always)]
fn pointer(pid: u32, token: u32) -> Pointer {
    Pointer {
        address: u64::from(token),
        pid,
        more: 0,
    }
}

/// A number of hexadecimal digits in lower case; other bytes give some number.
#[inline(always)]
fn number(digits: &[u8; DIGITS]) -> u32 {
    let mut value = 0u32;
    let mut i = 0;
    while i < DIGITS {
        let c = digits[i];
        let digit = if c >= b'a' { c - b'a' + 10 } else { c.wrapping_sub(b'0') };
        value = value << 4 | u32::from(digit & 15);
        i += 1;
    }
    value
}
