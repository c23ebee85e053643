//! Processes that come and go.

use aya_ebpf::helpers::generated::bpf_get_current_pid_tgid;
use tracewire_common::event::{Close, Fork, Header, kind};
use tracewire_common::link::runtime;
use tracewire_common::settings::watch;

use crate::kernel::emit;
use crate::kernel::maps::{self, offset, setting};
use crate::kernel::memory::kernel;
use crate::kernel::{threads, tls};

#[inline(always)]
fn header(kind: u8, pid: u32) -> Header {
    Header {
        kind,
        time_ns: emit::now(),
        pid,
        tid: pid,
        ..Header::EMPTY
    }
}

/// `parent` made `child`; a thread is no process of its own.
#[inline(always)]
pub fn forked(parent: u64, child: u64) {
    if setting!(follow_children) == 0 {
        return;
    }
    let Some(pid) = kernel::<u32>(parent.wrapping_add(offset!(task_tgid) as u64)) else {
        return;
    };
    let Some(known) = maps::process(pid) else { return };
    let how = known & watch::MASK;
    let Some(child_pid) = kernel::<u32>(child.wrapping_add(offset!(task_tgid) as u64)) else {
        return;
    };
    if child_pid == pid || how == watch::IGNORED {
        return;
    }
    // It runs the same files, until it execs.
    maps::watch(child_pid, how | known & (watch::LOOKED | runtime::bit(runtime::COUNTS)));
    emit::small(header(kind::FORK, pid), Fork { child: child_pid });
}

/// The current process runs a new program.
#[inline(always)]
pub fn executed() {
    // SAFETY: a helper without arguments.
    let pid = (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32;
    match maps::watched(pid) {
        // What ran before is gone, and its probes' knowledge with it.
        Some(how) => maps::watch(pid, how),
        None if setting!(choose_new) != 0 => maps::watch(pid, watch::PENDING),
        None => return,
    }
    emit::bare(header(kind::EXEC, pid));
}

/// A thread ends; the last one takes the process with it.
#[inline(always)]
pub fn ended(task: u64) {
    // SAFETY: a helper without arguments.
    let id = unsafe { bpf_get_current_pid_tgid() };
    let pid = (id >> 32) as u32;
    if maps::watched(pid).is_none() {
        return;
    }
    tls::state::forget_thread(&tls::state::thread_unit(id));
    threads::ended(id);
    let signal = kernel::<u64>(task.wrapping_add(offset!(task_signal) as u64)).unwrap_or(0);
    // `do_exit` has already taken this thread off `signal->live`.
    if kernel::<u32>(signal.wrapping_add(offset!(signal_live) as u64)) != Some(0) {
        return;
    }
    maps::unwatch(pid);
    let code = kernel::<u32>(task.wrapping_add(offset!(task_exit_code) as u64)).unwrap_or(0);
    emit::small(header(kind::EXIT, pid), Close { error: code });
}
