//! Which Unix sockets observed processes hold, told when the agent asks: no hook tells of the
//! close of one. An iterator over all files of all tasks (5.8 and up), run by the agent's read.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_seq_write;

use crate::kernel::maps::{self, offset};
use crate::kernel::memory::kernel;
use crate::kernel::socket;

const AF_UNIX: u16 = 1;

/// Members of `struct bpf_iter__task_file`, each in eight bytes.
const META: usize = 0;
const TASK: usize = 1;
const FILE: usize = 3;

/// A pointer that a context, or what it points to, holds.
#[inline(always)]
pub fn member(of: *const c_void, number: usize) -> *const c_void {
    let at = of.cast::<*const c_void>().wrapping_add(number);
    // SAFETY: all callers name members of the program's own context and of its meta.
    unsafe { at.read_volatile() }
}

/// One file of one task; behind the last, none.
#[inline(always)]
pub fn visited(context: *const c_void) {
    let task = member(context, TASK) as u64;
    let file = member(context, FILE) as u64;
    if task == 0 || file == 0 {
        return;
    }
    let Some(pid) = kernel::<u32>(task.wrapping_add(offset!(task_tgid) as u64)) else {
        return;
    };
    if maps::watched(pid).is_none() {
        return;
    }
    let Some(name) = unix_socket(file) else { return };
    // `struct bpf_iter_meta` begins with its `struct seq_file`.
    let seq = member(member(context, META), 0).cast_mut();
    // What does not fit is given again: the kernel comes back to this file.
    // SAFETY: `name` is that many initialised bytes.
    unsafe { bpf_seq_write(seq.cast(), (&raw const name).cast(), size_of::<u64>() as u32) };
}

/// The name of the Unix socket behind a file.
#[inline(always)]
fn unix_socket(file: u64) -> Option<u64> {
    let socket = kernel::<u64>(file.wrapping_add(offset!(file_private_data) as u64))?;
    // Only a `struct socket` points back to its own file.
    if socket == 0 || kernel::<u64>(socket.wrapping_add(offset!(socket_file) as u64))? != file {
        return None;
    }
    let sk = kernel::<u64>(socket.wrapping_add(offset!(socket_sk) as u64)).filter(|sk| *sk != 0)?;
    let family = kernel::<u16>(sk.wrapping_add(offset!(sk_family) as u64))?;
    (family == AF_UNIX).then(|| socket::name_at(sk))
}
