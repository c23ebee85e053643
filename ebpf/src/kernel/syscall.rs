//! Rung 3: the end of every system call, for kernels that offer nothing better.
//! Only calls that can move socket data cost more than a comparison.

use aya_ebpf::helpers::generated::bpf_get_current_task;
use tracewire_common::event::direction;

use crate::kernel::maps::{offset, slot};
use crate::kernel::memory::kernel;
use crate::kernel::socket;

const PT_REGS_DI: u64 = 112;
const PT_REGS_ORIG_AX: u64 = 120;

/// A system call ended with `ret`; its registers still hold its arguments.
#[inline(always)]
pub fn ended(regs: u64, ret: i64) {
    if ret < 0 || ret > i64::from(i32::MAX) {
        return;
    }
    let Some(caller) = socket::observed() else { return };
    let Some(number) = kernel::<u64>(regs.wrapping_add(PT_REGS_ORIG_AX)) else {
        return;
    };
    let way = match number {
        0 | 19 | 45 | 47 | 295 | 327 => direction::RECEIVE,
        1 | 20 | 44 | 46 | 296 | 328 => direction::SEND,
        _ => return,
    };
    let Some(fd) = kernel::<u64>(regs.wrapping_add(PT_REGS_DI)) else {
        return;
    };
    let Some(sk) = sock(fd as u32) else { return };
    socket::transferred_at(sk, ret as i32, way, slot::SYSTEM_CALL, caller, regs);
}

/// The `struct sock` behind a file descriptor of the current task, if it is a socket.
#[inline(always)]
pub fn sock(fd: u32) -> Option<u64> {
    // SAFETY: a helper without arguments.
    let task = unsafe { bpf_get_current_task() };
    let files = kernel::<u64>(task.wrapping_add(offset!(task_files) as u64))?;
    let table = kernel::<u64>(files.wrapping_add(offset!(files_fdt) as u64))?;
    if fd >= kernel::<u32>(table.wrapping_add(offset!(fdt_max_fds) as u64))? {
        return None;
    }
    let array = kernel::<u64>(table.wrapping_add(offset!(fdt_fd) as u64))?;
    let file = kernel::<u64>(array.wrapping_add(u64::from(fd) * 8))?;
    let socket = kernel::<u64>(file.wrapping_add(offset!(file_private_data) as u64))?;
    // Only a `struct socket` points back to its own file.
    if file == 0 || socket == 0 || kernel::<u64>(socket.wrapping_add(offset!(socket_file) as u64))? != file {
        return None;
    }
    kernel::<u64>(socket.wrapping_add(offset!(socket_sk) as u64)).filter(|sk| *sk != 0)
}
