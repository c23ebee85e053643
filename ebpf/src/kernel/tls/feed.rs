//! Plaintext into the framers.

use aya_ebpf::helpers::generated::bpf_get_current_pid_tgid;
use tracewire_common::link::runtime;
use tracewire_ebpf::connection::{Flow, phase};
use tracewire_ebpf::order;

use super::state;
use crate::kernel::call::plaintext_moved;
use crate::kernel::maps;
use crate::kernel::probe::{go, tokio};

/// Makes sure that a TLS connection is in the map, its state as it must be before the next piece.
///
/// `origin`: nothing moved before. `gap`: something moved unseen in this direction.
#[inline(always)]
pub fn ready(name: u64, origin: bool, gap: bool, read: bool) -> bool {
    if let Some(connection) = maps::connection(name) {
        if gap {
            // SAFETY: a live element of a map.
            let flows: *mut Flow = unsafe { &raw mut (*connection).flows }.cast();
            let flow = flows.wrapping_add(usize::from(!read));
            // SAFETY: as above; there are two flows.
            order::lose(unsafe { &mut *flow });
        }
        return true;
    }
    let Some(connection) = maps::add_connection(name) else {
        return false;
    };
    // SAFETY: a live element of a map, just made.
    let connection = unsafe { &mut *connection };
    connection.shared.origin = u8::from(origin);
    let first = if origin { phase::START } else { phase::LOST };
    connection.flows[0].phase = first;
    connection.flows[1].phase = first;
    true
}

/// What the probes hand over to: frames the plaintext that this thread's place names.
#[inline(always)]
pub fn plaintext() {
    // SAFETY: a helper without arguments.
    let id = unsafe { bpf_get_current_pid_tgid() };
    if let Some(place) = state::own_place(id) {
        plaintext_moved(place);
        if maps::runs((id >> 32) as u32, runtime::GO) {
            go::moved(place);
        } else if maps::runs((id >> 32) as u32, runtime::TOKIO) {
            tokio::moved(place);
        }
        state::release(place);
    }
}
