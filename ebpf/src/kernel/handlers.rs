//! What handles SIGUSR1 in the Node processes that are observed, told when the agent asks: Node opens its
//! inspector at that signal, but a program may have made it its own. An iterator over all tasks (5.8 and up).

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_seq_write;
use tracewire_common::link::runtime;
use tracewire_common::settings::ABSENT;

use crate::kernel::files::member;
use crate::kernel::maps::{self, offset};
use crate::kernel::memory::kernel;

/// Members of `struct bpf_iter__task`, each in eight bytes.
const META: usize = 0;
const TASK: usize = 1;
/// SIGUSR1, counted from 0, and the size of `struct k_sigaction` of x86-64, which begins with its handler.
const SIGNAL: u64 = 9;
const ACTION: u64 = 32;

/// One task; behind the last, none.
#[inline(always)]
pub fn visited(context: *const c_void) {
    let task = member(context, TASK) as u64;
    if task == 0 || offset!(task_sighand) == ABSENT as usize || offset!(sighand_action) == ABSENT as usize {
        return;
    }
    let number = |offset: usize| kernel::<u32>(task.wrapping_add(offset as u64));
    let (Some(pid), Some(thread)) = (number(offset!(task_tgid)), number(offset!(task_pid))) else {
        return;
    };
    if pid != thread || !maps::runs(pid, runtime::NODE) {
        return;
    }
    let Some(handlers) = kernel::<u64>(task.wrapping_add(offset!(task_sighand) as u64)) else {
        return;
    };
    let at = handlers.wrapping_add(offset!(sighand_action) as u64 + SIGNAL * ACTION);
    let told = [u64::from(pid), kernel::<u64>(at).unwrap_or(0)];
    // `struct bpf_iter_meta` begins with its `struct seq_file`.
    let seq = member(member(context, META), 0).cast_mut();
    // SAFETY: `told` is that many initialised bytes.
    unsafe { bpf_seq_write(seq.cast(), (&raw const told).cast(), size_of::<[u64; 2]>() as u32) };
}
