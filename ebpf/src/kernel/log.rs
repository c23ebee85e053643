//! What the framers decide, told to the agent's log when it asks for details (`--log-level debug`).
//! Bias: never a byte of the wire, only which connection and what became of it. While nobody asks the
//! branch to it is no part of the loaded programs: the setting is constant to the verifier.

use aya_log_ebpf::debug;

use crate::kernel::maps::{self, setting};

/// What is told.
pub mod told {
    /// Bytes went by unseen.
    pub const GAP: u32 = 1;
    /// The buffer of a system call can't be found.
    pub const OPAQUE: u32 = 2;
    /// A stream in the middle of which one came in proved its framing.
    pub const PROVEN: u32 = 3;
    /// The walk over a call gave up.
    pub const GAVE_UP: u32 = 4;
    /// Not a protocol that is followed.
    pub const OTHER: u32 = 5;
}

/// Tells one of [`told`] of the scratch's connection.
#[inline(always)]
pub fn tell(slot: u32, what: u32) {
    if setting!(log) != 0 {
        log_decision(slot, what);
    }
}

/// A function of its own, so that the verifier walks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn log_decision(slot: u32, what: u32) -> u32 {
    let Some(scratch) = maps::scratch(slot) else { return 0 };
    // SAFETY: a live element of a per-CPU map that only this program uses on this CPU.
    let parts = unsafe { &*scratch };
    let header = &parts.header;
    let (name, pid, way) = (header.connection, header.pid, header.direction);
    match what {
        told::GAP => debug!(
            &(),
            "connection {} of {}, direction {}: bytes went by unseen", name, pid, way
        ),
        told::OPAQUE => debug!(
            &(),
            "connection {} of {}, direction {}: no buffer is known", name, pid, way
        ),
        told::PROVEN => debug!(&(), "connection {} of {}, direction {}: framing proven", name, pid, way),
        told::GAVE_UP => {
            let why = parts.cursor.stop;
            let left = parts.cursor.left;
            debug!(
                &(),
                "connection {} of {}, direction {}: given up by cause {}, {} bytes left", name, pid, way, why, left
            );
        }
        _ => debug!(&(), "connection {} of {}: no protocol that is followed", name, pid),
    }
    0
}
