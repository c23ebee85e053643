//! What the agent tells the kernel programs before they run.

use crate::plain::Plain;

/// How a process in the `PROCESSES` map is treated.
pub mod watch {
    /// Its sockets are observed.
    pub const WATCHED: u32 = 1;
    /// Just started; observed until the agent has chosen.
    pub const PENDING: u32 = 2;
    /// Known and not chosen.
    pub const IGNORED: u32 = 3;
    /// Bits that hold one of the above; those beyond say which runtimes' probes are in the
    /// process ([`crate::link::runtime::bit`]), until its next exec.
    pub const MASK: u32 = 0xff;
    /// All files that the process runs have been looked at.
    pub const LOOKED: u32 = 1 << 31;
}

/// Byte offsets of kernel structure members, from the running kernel's BTF.
/// A member that the kernel lacks has offset [`ABSENT`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    /// `sock.__sk_common.skc_family`
    pub sk_family: u32,
    /// `sock.__sk_common.skc_dport` (network order)
    pub sk_dport: u32,
    /// `sock.__sk_common.skc_num` (host order)
    pub sk_num: u32,
    /// `sock.__sk_common.skc_daddr`
    pub sk_daddr: u32,
    /// `sock.__sk_common.skc_rcv_saddr`
    pub sk_rcv_saddr: u32,
    /// `sock.__sk_common.skc_v6_daddr`
    pub sk_v6_daddr: u32,
    /// `sock.__sk_common.skc_v6_rcv_saddr`
    pub sk_v6_rcv_saddr: u32,
    /// `sock.__sk_common.skc_net.net`
    pub sk_net: u32,
    /// `sock.__sk_common.skc_cookie`
    pub sk_cookie: u32,
    /// `sock.__sk_common.skc_state`
    pub sk_state: u32,
    /// `net.ns.inum`
    pub net_inum: u32,
    /// `sock.sk_type`
    pub sk_type: u32,
    /// `sock.sk_protocol`
    pub sk_protocol: u32,
    /// `sock.sk_err`
    pub sk_err: u32,
    /// `sock.sk_shutdown` (the byte; a bit-field in old kernels: absent)
    pub sk_shutdown: u32,
    /// `tcp_sock.write_seq`
    pub tcp_write_seq: u32,
    /// `tcp_sock.copied_seq`
    pub tcp_copied_seq: u32,
    /// `tcp_sock.rcv_nxt`
    pub tcp_rcv_nxt: u32,
    /// `unix_sock.peer`
    pub unix_peer: u32,
    /// `task_struct.stack`
    pub task_stack: u32,
    /// `task_struct.files`
    pub task_files: u32,
    /// `files_struct.fdt`
    pub files_fdt: u32,
    /// `fdtable.fd`
    pub fdt_fd: u32,
    /// `fdtable.max_fds`
    pub fdt_max_fds: u32,
    /// `file.f_op`
    pub file_op: u32,
    /// `file.private_data`
    pub file_private_data: u32,
    /// `socket.sk`
    pub socket_sk: u32,
    /// `socket.file`
    pub socket_file: u32,
    /// `file.f_flags`
    pub file_flags: u32,
    /// `sock.sk_socket`
    pub sk_socket: u32,
    /// `file.f_inode`
    pub file_inode: u32,
    /// `inode.i_ino`
    pub inode_ino: u32,
    /// `task_struct.signal`
    pub task_signal: u32,
    /// `signal_struct.live`
    pub signal_live: u32,
    /// `task_struct.exit_code`
    pub task_exit_code: u32,
    /// `task_struct.tgid`
    pub task_tgid: u32,
    /// `task_struct.pid`
    pub task_pid: u32,
    /// `sock.sk_sndbuf`
    pub sk_sndbuf: u32,
    /// `sock.sk_wmem_queued`
    pub sk_wmem_queued: u32,
    /// `sock.__sk_common.skc_prot`
    pub sk_prot: u32,
    /// `sock.__sk_common.skc_flags`
    pub sk_flags: u32,
    /// `proto.memory_pressure`
    pub proto_memory_pressure: u32,
    /// `task_struct.sighand`
    pub task_sighand: u32,
    /// `sighand_struct.action`
    pub sighand_action: u32,
}

/// Offset of a member that this kernel does not have.
pub const ABSENT: u32 = u32::MAX;

/// What the agent wants of the programs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// 1: processes that exec become PENDING (`tracewire run` with selectors).
    pub choose_new: u32,
    /// 1: children of watched processes are watched.
    pub follow_children: u32,
    /// 1: tracing programs may ask for a socket's cookie (5.12 and up).
    pub has_cookie: u32,
    /// Kernel stack bytes below `struct pt_regs`: THREAD_SIZE less padding.
    pub stack_top: u32,
    /// 1: the helper `bpf_task_pt_regs` exists (5.15 and up).
    pub has_task_pt_regs: u32,
    /// 1: listening ports are matched with the `PORTS` map.
    pub match_ports: u32,
    /// Key of [`crate::trace::mint`], random for each start of the agent.
    pub key: [u64; 2],
    /// 1: contexts are written, so those that come in are read.
    pub inject: u32,
    /// 1: what the framers decide is logged.
    pub log: u32,
    /// 1: it is followed which call is made on behalf of which request.
    pub links: u32,
    /// Must be 0.
    pub reserved: u32,
}

// SAFETY: u32 members only.
unsafe impl Plain for Offsets {}
const _: () = assert!(size_of::<Settings>() == 56);

// SAFETY: integers only; 56 bytes without padding (asserted above).
unsafe impl Plain for Settings {}
