//! First sight of a connection: who its ends are, and whether anything was
//! moved before.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use tracewire_common::event::{Header, Open, direction, flags, kind, layer};
use tracewire_ebpf::order::{self, Birth};

use crate::kernel::maps::{self, Scratch, offset};
use crate::kernel::memory::kernel;
use crate::kernel::{emit, inject};

const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const SOCK_STREAM: u16 = 1;
const IPPROTO_TCP: u16 = 6;
const TCP_CLOSE: u8 = 7;

/// Where both directions of a TCP socket stand now.
#[inline(always)]
pub fn positions(sk: u64) -> Option<Birth> {
    let word = |offset: usize| kernel::<u32>(sk.wrapping_add(offset as u64));
    Some(Birth {
        received: word(offset!(tcp_copied_seq))?,
        sent: word(offset!(tcp_write_seq))?,
    })
}

/// Where both begin, of a socket that becomes established: what is next to come is the first
/// byte, whether or not the kernel has set `copied_seq` to it by now.
#[inline(always)]
pub fn origins(sk: u64) -> Option<Birth> {
    let word = |offset: usize| kernel::<u32>(sk.wrapping_add(offset as u64));
    Some(Birth {
        received: word(offset!(tcp_rcv_nxt))?,
        sent: word(offset!(tcp_write_seq))?,
    })
}

/// Remembers the scratch's connection and says who its ends are. 0: not a stream socket of a known family.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn first_sight(slot: u32) -> u32 {
    let Some(scratch) = maps::scratch(slot) else { return 0 };
    // SAFETY: a live element of a per-CPU map that only this program uses on this CPU.
    let parts = unsafe { &mut *scratch };
    u32::from(open(parts).is_some())
}

/// Writes who the ends of the scratch's socket are to where a record's payload goes; whether it is TCP.
/// None: not a stream socket of a known family.
#[inline(always)]
pub fn describe(parts: &mut Scratch, layer: u32) -> Option<bool> {
    let sk = parts.cursor.sk;
    let at = |offset: usize| sk.wrapping_add(offset as u64);
    let family = kernel::<u16>(at(offset!(sk_family)))?;
    if family != AF_INET && family != AF_INET6 && family != AF_UNIX
        || kernel::<u16>(at(offset!(sk_type)))? != SOCK_STREAM
    {
        return None;
    }
    let tcp = family != AF_UNIX && kernel::<u16>(at(offset!(sk_protocol)))? == IPPROTO_TCP;
    if family != AF_UNIX && !tcp {
        return None;
    }
    // What is left to read of a connection that was reported closed opens no new one.
    if tcp && kernel::<u8>(at(offset!(sk_state))) == Some(TCP_CLOSE) {
        return None;
    }
    let data = &raw mut parts.data;
    // SAFETY: the data is larger than an `Open` and aligned to 8 bytes behind the header.
    let open = unsafe { &mut *data.cast::<Open>() };
    open.family = family;
    open.role = 0;
    open.netns = 0;
    open.layer = layer;
    open.socket = sk;
    open.peer_socket = 0;
    open.local_port = 0;
    open.peer_port = 0;
    open.local_address = [0; 16];
    open.peer_address = [0; 16];
    if let Some(net) = kernel::<u64>(at(offset!(sk_net))) {
        open.netns = kernel::<u32>(net.wrapping_add(offset!(net_inum) as u64)).unwrap_or(0);
    }
    if family == AF_UNIX {
        open.peer_socket = kernel::<u64>(at(offset!(unix_peer))).unwrap_or(0);
    } else {
        open.local_port = kernel::<u16>(at(offset!(sk_num)))?;
        open.peer_port = u16::from_be(kernel::<u16>(at(offset!(sk_dport)))?);
        if family == AF_INET {
            read_into(&raw mut open.local_address, at(offset!(sk_rcv_saddr)), 4);
            read_into(&raw mut open.peer_address, at(offset!(sk_daddr)), 4);
        } else {
            read_into(&raw mut open.local_address, at(offset!(sk_v6_rcv_saddr)), 16);
            read_into(&raw mut open.peer_address, at(offset!(sk_v6_daddr)), 16);
        }
    }
    Some(tcp)
}

#[inline(always)]
fn open(parts: &mut Scratch) -> Option<()> {
    let tcp = describe(parts, layer::SOCKET)?;
    let (sk, cookie) = (parts.cursor.sk, parts.header.connection);
    let birth = if tcp { maps::birth(cookie) } else { None };
    let mut began = if tcp { positions(sk)? } else { Birth::default() };
    if parts.header.direction == direction::SEND {
        began.sent = began.sent.wrapping_sub(parts.cursor.moved);
    } else {
        began.received = began.received.wrapping_sub(parts.cursor.moved);
    }
    began.sent = began.sent.wrapping_sub(inject::injected(cookie));
    let connection = maps::add_connection(cookie)?;
    // SAFETY: a live element of a map, just made.
    let connection = unsafe { &mut *connection };
    let origin = order::first(connection, birth, began);
    connection.shared.tcp = u8::from(tcp);
    connection.shared.origin = u8::from(origin);
    let header = &mut parts.header;
    header.kind = kind::OPEN;
    header.flags = if origin { flags::ORIGIN } else { 0 };
    let sent = announce(parts);
    parts.header.kind = kind::FRAMES;
    if !sent {
        maps::forget_connection(cookie);
        return None;
    }
    Some(())
}

/// Sends what [`describe`] wrote, now; the header's other members are filled in.
#[inline(always)]
pub fn announce(parts: &mut Scratch) -> bool {
    parts.header.length = size_of::<Open>() as u32;
    parts.header.time_ns = emit::now();
    // SAFETY: the scratch begins with the header and the `Open`, filled in before.
    unsafe {
        maps::output(
            (&raw const *parts).cast(),
            (size_of::<Header>() + size_of::<Open>()) as u64,
        )
    }
}

/// Reads `n` ≤ 16 bytes of kernel memory.
#[inline(always)]
fn read_into(to: *mut [u8; 16], from: u64, n: u32) {
    // SAFETY: `to` has 16 bytes; a bad address is an error, not a fault.
    unsafe { bpf_probe_read_kernel(to.cast(), n, from as *const _) };
}
