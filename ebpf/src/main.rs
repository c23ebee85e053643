//! The kernel programs. Each attribute function reads its context and hands
//! over to its room in `kernel/`; on any fault the traffic passes unchanged
//! and a counter goes up.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]
#![cfg_attr(
    target_arch = "bpf",
    allow(missing_docs, reason = "map statics are documented in place")
)]

#[cfg(target_arch = "bpf")]
mod kernel;

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::macros::{btf_tracepoint, fexit, raw_tracepoint, sk_msg, sock_ops, uprobe, uretprobe};
    use aya_ebpf::programs::{
        BtfTracePointContext, FExitContext, ProbeContext, RawTracePointContext, RetProbeContext, SkMsgContext,
        SockOpsContext,
    };
    use tracewire_common::event::direction;

    use crate::kernel::maps::slot;
    use crate::kernel::tls::{self, state::call};
    use crate::kernel::{files, handlers, inject, process, socket, syscall};

    /// Rung 1 (6.3 and up): the end of every socket send.
    #[btf_tracepoint(function = "sock_send_length")]
    pub fn sock_send_length(ctx: BtfTracePointContext) -> i32 {
        socket::transferred(ctx.arg(0), ctx.arg::<i32>(1), direction::SEND, slot::SEND);
        0
    }

    /// Rung 1 (6.3 and up): the end of every socket receive.
    #[btf_tracepoint(function = "sock_recv_length")]
    pub fn sock_recv_length(ctx: BtfTracePointContext) -> i32 {
        socket::transferred(ctx.arg(0), ctx.arg::<i32>(1), direction::RECEIVE, slot::RECEIVE);
        0
    }

    /// Rung 1 where programs may be preempted, behind the one above: for the sends for which it was skipped.
    #[btf_tracepoint(function = "sock_send_length")]
    pub fn sock_send_again(ctx: BtfTracePointContext) -> i32 {
        socket::transferred_again(ctx.arg(0), ctx.arg::<i32>(1), direction::SEND, slot::SEND_AGAIN);
        0
    }

    /// The same for receives.
    #[btf_tracepoint(function = "sock_recv_length")]
    pub fn sock_recv_again(ctx: BtfTracePointContext) -> i32 {
        socket::transferred_again(ctx.arg(0), ctx.arg::<i32>(1), direction::RECEIVE, slot::RECEIVE_AGAIN);
        0
    }

    /// Rung 2 (trampolines): the end of `tcp_sendmsg(sk, msg, size)`.
    #[fexit(function = "tcp_sendmsg")]
    pub fn tcp_sendmsg(ctx: FExitContext) -> i32 {
        socket::transferred(ctx.arg(0), ctx.arg::<i32>(3), direction::SEND, slot::SEND);
        0
    }

    /// Rung 2: the end of `tcp_recvmsg(sk, msg, len, flags, addr_len)` (5.19 and up).
    #[fexit(function = "tcp_recvmsg")]
    pub fn tcp_recvmsg(ctx: FExitContext) -> i32 {
        socket::transferred(ctx.arg(0), ctx.arg::<i32>(5), direction::RECEIVE, slot::RECEIVE);
        0
    }

    /// Rung 2: the end of `tcp_recvmsg(sk, msg, len, nonblock, flags, addr_len)` (before 5.19).
    #[fexit(function = "tcp_recvmsg")]
    pub fn tcp_recvmsg_nonblock(ctx: FExitContext) -> i32 {
        socket::transferred(ctx.arg(0), ctx.arg::<i32>(6), direction::RECEIVE, slot::RECEIVE);
        0
    }

    /// Rung 2: the end of `tcp_recvmsg(sk, msg, len, flags)` (7.3 and up).
    #[fexit(function = "tcp_recvmsg")]
    pub fn tcp_recvmsg_flags(ctx: FExitContext) -> i32 {
        socket::transferred(ctx.arg(0), ctx.arg::<i32>(4), direction::RECEIVE, slot::RECEIVE);
        0
    }

    /// Rung 2: the end of `unix_stream_sendmsg(sock, msg, len)`.
    #[fexit(function = "unix_stream_sendmsg")]
    pub fn unix_stream_sendmsg(ctx: FExitContext) -> i32 {
        socket::transferred_unix(ctx.arg(0), ctx.arg::<i32>(3), direction::SEND, slot::UNIX_SEND);
        0
    }

    /// Rung 2: the end of `unix_stream_recvmsg(sock, msg, size, flags)`.
    #[fexit(function = "unix_stream_recvmsg")]
    pub fn unix_stream_recvmsg(ctx: FExitContext) -> i32 {
        socket::transferred_unix(ctx.arg(0), ctx.arg::<i32>(4), direction::RECEIVE, slot::UNIX_RECEIVE);
        0
    }

    /// Rung 3: the end of every system call.
    #[raw_tracepoint(tracepoint = "sys_exit")]
    pub fn sys_exit(ctx: RawTracePointContext) -> i32 {
        syscall::ended(ctx.arg::<u64>(0), ctx.arg::<i64>(1));
        0
    }

    /// Injection: a message leaves a followed socket.
    #[sk_msg]
    pub fn message_passes(ctx: SkMsgContext) -> u32 {
        inject::message::passes(ctx.msg)
    }

    /// Injection: a socket connects, or is connected.
    #[sock_ops]
    pub fn socket_event(ctx: SockOpsContext) -> u32 {
        inject::enrol::event(ctx.ops);
        1
    }

    /// State changes of TCP sockets: listeners and ends.
    #[btf_tracepoint(function = "inet_sock_set_state")]
    pub fn inet_sock_set_state(ctx: BtfTracePointContext) -> i32 {
        socket::state(ctx.arg(0), ctx.arg::<i32>(2));
        0
    }

    /// A process or thread was made.
    #[btf_tracepoint(function = "sched_process_fork")]
    pub fn sched_process_fork(ctx: BtfTracePointContext) -> i32 {
        process::forked(ctx.arg(0), ctx.arg(1));
        0
    }

    /// A process replaced its program.
    #[btf_tracepoint(function = "sched_process_exec")]
    pub fn sched_process_exec(_ctx: BtfTracePointContext) -> i32 {
        process::executed();
        0
    }

    /// A thread ends.
    #[btf_tracepoint(function = "sched_process_exit")]
    pub fn sched_process_exit(ctx: BtfTracePointContext) -> i32 {
        process::ended(ctx.arg(0));
        0
    }

    /// Asked by the agent: a file of a task (aya-ebpf has no macro for iterators).
    #[unsafe(no_mangle)]
    #[unsafe(link_section = "iter/task_file")]
    pub extern "C" fn socket_files(ctx: *const core::ffi::c_void) -> i32 {
        files::visited(ctx);
        0
    }

    /// Asked by the agent: a task.
    #[unsafe(no_mangle)]
    #[unsafe(link_section = "iter/task")]
    pub extern "C" fn signal_handlers(ctx: *const core::ffi::c_void) -> i32 {
        handlers::visited(ctx);
        0
    }

    /// A C function `(connection, buffer, length)` that returns how much came out.
    #[uprobe]
    pub fn tls_read(ctx: ProbeContext) -> u32 {
        tls::call::entered(ctx.regs, call::READ, false);
        0
    }

    /// The same where the fourth argument is the address of how much it was.
    #[uprobe]
    pub fn tls_read_counted(ctx: ProbeContext) -> u32 {
        tls::call::entered(ctx.regs, call::READ, true);
        0
    }

    /// A C function `(connection, buffer, length)` that returns how much went in.
    #[uprobe]
    pub fn tls_write(ctx: ProbeContext) -> u32 {
        tls::call::entered(ctx.regs, call::WRITE, false);
        0
    }

    /// The same where the fourth argument is the address of how much it was.
    #[uprobe]
    pub fn tls_write_counted(ctx: ProbeContext) -> u32 {
        tls::call::entered(ctx.regs, call::WRITE, true);
        0
    }

    /// A C function `(connection)` that makes the handshake.
    #[uprobe]
    pub fn tls_handshake(ctx: ProbeContext) -> u32 {
        tls::call::entered(ctx.regs, call::HANDSHAKE, false);
        0
    }

    /// The return of any of these.
    #[uretprobe]
    pub fn tls_returned(ctx: RetProbeContext) -> u32 {
        tls::call::returned(&ctx, ctx.regs);
        0
    }

    /// A C function `(connection)` that frees it.
    #[uprobe]
    pub fn tls_free(ctx: ProbeContext) -> u32 {
        tls::call::freed(ctx.regs);
        0
    }

    /// Go: `crypto/tls.(*Conn).Read`.
    #[uprobe]
    pub fn tls_go_read(ctx: ProbeContext) -> u32 {
        tls::go::read(ctx.regs);
        0
    }

    /// Go: the same, where it copies by `runtime.memmove`.
    #[uprobe]
    pub fn tls_go_copying(ctx: ProbeContext) -> u32 {
        tls::go::copying(&ctx, ctx.regs);
        0
    }

    /// Go: the same, behind its copying.
    #[uprobe]
    pub fn tls_go_copied(ctx: ProbeContext) -> u32 {
        tls::go::taken(&ctx, ctx.regs);
        0
    }

    /// Go: the same, where it returns.
    #[uprobe]
    pub fn tls_go_returns(ctx: ProbeContext) -> u32 {
        tls::go::returns(&ctx, ctx.regs);
        0
    }

    /// Go: `crypto/tls.(*Conn).Write`.
    #[uprobe]
    pub fn tls_go_write(ctx: ProbeContext) -> u32 {
        tls::go::write(&ctx, ctx.regs);
        0
    }

    /// Go: `crypto/tls.(*Conn).clientHandshake` and `serverHandshake`.
    #[uprobe]
    pub fn tls_go_handshake(ctx: ProbeContext) -> u32 {
        tls::go::handshake(ctx.regs);
        0
    }

    /// rustls: `CommonState::take_received_plaintext`.
    #[uprobe]
    pub fn tls_rust_decrypted(ctx: ProbeContext) -> u32 {
        tls::rustls::decrypted(&ctx, ctx.regs);
        0
    }

    /// rustls: `poll_write` of a stream.
    #[uprobe]
    pub fn tls_rust_writes(ctx: ProbeContext) -> u32 {
        tls::rustls::writes(ctx.regs, false, false);
        0
    }

    /// rustls: `poll_write` of a borrowed stream.
    #[uprobe]
    pub fn tls_rust_writes_borrowed(ctx: ProbeContext) -> u32 {
        tls::rustls::writes(ctx.regs, false, true);
        0
    }

    /// rustls: `poll_write_vectored` of a stream.
    #[uprobe]
    pub fn tls_rust_writes_vectored(ctx: ProbeContext) -> u32 {
        tls::rustls::writes(ctx.regs, true, false);
        0
    }

    /// rustls: `poll_write_vectored` of a borrowed stream.
    #[uprobe]
    pub fn tls_rust_writes_borrowed_vectored(ctx: ProbeContext) -> u32 {
        tls::rustls::writes(ctx.regs, true, true);
        0
    }

    /// rustls: the same, behind their call of its writer.
    #[uprobe]
    pub fn tls_rust_accepted(ctx: ProbeContext) -> u32 {
        tls::rustls::accepted(ctx.regs, false);
        0
    }

    /// rustls: the same, behind a call that returns how much was accepted.
    #[uprobe]
    pub fn tls_rust_counted(ctx: ProbeContext) -> u32 {
        tls::rustls::accepted(ctx.regs, true);
        0
    }

    /// rustls: the same, behind their call of `write_tls`.
    #[uprobe]
    pub fn tls_rust_sent(ctx: ProbeContext) -> u32 {
        tls::rustls::sent(&ctx, ctx.regs);
        0
    }

    /// What the probes hand over to: frames the plaintext.
    #[uprobe]
    pub fn tls_plaintext(_ctx: ProbeContext) -> u32 {
        tls::feed::plaintext();
        0
    }
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: no program keeps a path to a panic: the verifier refuses the endless loop that this would be.
    unsafe { core::hint::unreachable_unchecked() }
}

/// The kernel asks for a GPL-compatible licence for most helpers.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {}
