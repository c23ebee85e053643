//! Offsets of kernel structure members, from the running kernel's BTF
//! (Documentation/bpf/btf.rst). The BPF libraries relocate C programs' own
//! accesses; programs in Rust have none of those records, so the offsets are
//! read here and passed to them.

use std::collections::HashMap;
use std::path::Path;

use tracewire_common::settings::{ABSENT, Offsets};

/// Where the kernel shows its BTF.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Why BTF can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can't be read.
    #[error("this kernel shows no type information ({VMLINUX}: {0}): it must be built with CONFIG_DEBUG_INFO_BTF=y")]
    Absent(std::io::Error),
    /// The file is not BTF.
    #[error("{VMLINUX} is not valid BTF: {0}")]
    Malformed(&'static str),
    /// A structure or member that nothing can do without.
    #[error("this kernel's BTF has no {0}")]
    Missing(&'static str),
}

#[derive(Clone)]
struct Member {
    name: u32,
    kind: u32,
    bits: u32,
}

/// The structures of a BTF blob, as far as offsets need them.
pub struct Btf {
    bytes: Vec<u8>,
    strings: (usize, usize),
    /// Offset of each type in `bytes`; type ids count from 1.
    types: Vec<usize>,
    structs: HashMap<String, u32>,
    functions: HashMap<String, u32>,
}

const WANTED: &[&str] = &[
    "sock",
    "net",
    "tcp_sock",
    "unix_sock",
    "task_struct",
    "files_struct",
    "fdtable",
    "file",
    "inode",
    "socket",
    "signal_struct",
    "sighand_struct",
    "proto",
];

impl Btf {
    /// Reads the running kernel's.
    pub fn kernel() -> Result<Self, Error> {
        Self::parse(std::fs::read(Path::new(VMLINUX)).map_err(Error::Absent)?)
    }

    /// Parses a blob.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, Error> {
        let word = |at: usize| {
            bytes
                .get(at..at + 4)
                .map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]))
        };
        let malformed = Error::Malformed("it ends early");
        let (Some(magic), Some(head), Some(type_at), Some(type_len), Some(string_at), Some(string_len)) =
            (word(0), word(4), word(8), word(12), word(16), word(20))
        else {
            return Err(malformed);
        };
        if magic & 0xffff != 0xeb9f {
            return Err(Error::Malformed("wrong magic number"));
        }
        let start = (head + type_at) as usize;
        let end = start + type_len as usize;
        let strings = ((head + string_at) as usize, string_len as usize);
        let mut types = vec![0];
        let mut structs = HashMap::new();
        let mut functions = HashMap::new();
        let mut at = start;
        while at < end {
            let (Some(name), Some(info)) = (word(at), word(at + 4)) else {
                return Err(malformed);
            };
            let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            let id = types.len() as u32;
            types.push(at);
            if kind == 4 || kind == 12 {
                let text = string(&bytes, strings, name);
                if kind == 4 && WANTED.contains(&text) {
                    structs.entry(text.to_owned()).or_insert(id);
                } else if kind == 12 && (text.starts_with("tcp_") || text.starts_with("unix_stream_")) {
                    functions.entry(text.to_owned()).or_insert(id);
                }
            }
            at += 12
                + match kind {
                    1 | 14 | 17 => 4,
                    3 => 12,
                    4 | 5 | 15 | 19 => count * 12,
                    6 | 13 => count * 8,
                    0 | 2 | 7..=12 | 16 | 18 => 0,
                    _ => return Err(Error::Malformed("a kind of type that is not known")),
                };
        }
        Ok(Btf {
            bytes,
            strings,
            types,
            structs,
            functions,
        })
    }

    fn word(&self, at: usize) -> u32 {
        self.bytes
            .get(at..at + 4)
            .map_or(0, |b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]))
    }

    /// Kind and offset of a type behind typedefs and qualifiers.
    fn resolve(&self, mut id: u32) -> Option<(u32, usize)> {
        for _ in 0..32 {
            let at = *self.types.get(id as usize).filter(|_| id != 0)?;
            let kind = self.word(at + 4) >> 24 & 0x1f;
            if matches!(kind, 8..=11 | 18) {
                id = self.word(at + 8);
            } else {
                return Some((kind, at));
            }
        }
        None
    }

    fn members(&self, at: usize) -> impl Iterator<Item = Member> {
        let info = self.word(at + 4);
        let (count, flagged) = ((info & 0xffff) as usize, info >> 31 == 1);
        (0..count).map(move |i| {
            let m = at + 12 + i * 12;
            let offset = self.word(m + 8);
            Member {
                name: self.word(m),
                kind: self.word(m + 4),
                bits: if flagged { offset & 0xff_ffff } else { offset },
            }
        })
    }

    /// Bit offset and type of a member, looked for in unnamed members too.
    fn find(&self, at: usize, name: &str, depth: u32) -> Option<(u32, u32)> {
        for member in self.members(at) {
            let text = string(&self.bytes, self.strings, member.name);
            if text == name {
                return Some((member.bits, member.kind));
            }
            if text.is_empty()
                && depth < 8
                && let Some((4 | 5, inner)) = self.resolve(member.kind)
                && let Some((bits, kind)) = self.find(inner, name, depth + 1)
            {
                return Some((member.bits + bits, kind));
            }
        }
        None
    }

    /// Byte offset of a member, given as `struct.member.member`.
    pub fn offset(&self, path: &str) -> Option<u32> {
        let mut parts = path.split('.');
        let mut at = *self.types.get(*self.structs.get(parts.next()?)? as usize)?;
        let mut bits = 0;
        let mut kind = 0;
        for (i, part) in parts.enumerate() {
            if i > 0 {
                at = self.resolve(kind)?.1;
            }
            let (more, of) = self.find(at, part, 0)?;
            bits += more;
            kind = of;
        }
        (bits % 8 == 0).then_some(bits / 8)
    }

    /// Number of parameters of a kernel function.
    pub fn parameters(&self, function: &str) -> Option<u32> {
        let at = *self.types.get(*self.functions.get(function)? as usize)?;
        let (_, proto) = self.resolve(self.word(at + 8))?;
        Some(self.word(proto + 4) & 0xffff)
    }

    /// All that the programs ask for.
    pub fn offsets(&self) -> Result<Offsets, Error> {
        let need = |path: &'static str| self.offset(path).ok_or(Error::Missing(path));
        let may = |path: &str| self.offset(path).unwrap_or(ABSENT);
        Ok(Offsets {
            sk_family: need("sock.__sk_common.skc_family")?,
            sk_dport: need("sock.__sk_common.skc_dport")?,
            sk_num: need("sock.__sk_common.skc_num")?,
            sk_daddr: need("sock.__sk_common.skc_daddr")?,
            sk_rcv_saddr: need("sock.__sk_common.skc_rcv_saddr")?,
            sk_v6_daddr: may("sock.__sk_common.skc_v6_daddr"),
            sk_v6_rcv_saddr: may("sock.__sk_common.skc_v6_rcv_saddr"),
            sk_net: need("sock.__sk_common.skc_net")?,
            sk_cookie: need("sock.__sk_common.skc_cookie")?,
            sk_state: need("sock.__sk_common.skc_state")?,
            net_inum: need("net.ns.inum")?,
            sk_type: need("sock.sk_type")?,
            sk_protocol: need("sock.sk_protocol")?,
            sk_err: need("sock.sk_err")?,
            sk_shutdown: may("sock.sk_shutdown"),
            tcp_write_seq: need("tcp_sock.write_seq")?,
            tcp_copied_seq: need("tcp_sock.copied_seq")?,
            tcp_rcv_nxt: need("tcp_sock.rcv_nxt")?,
            unix_peer: may("unix_sock.peer"),
            task_stack: need("task_struct.stack")?,
            task_files: need("task_struct.files")?,
            files_fdt: need("files_struct.fdt")?,
            fdt_fd: need("fdtable.fd")?,
            fdt_max_fds: need("fdtable.max_fds")?,
            file_op: need("file.f_op")?,
            file_private_data: need("file.private_data")?,
            socket_sk: need("socket.sk")?,
            socket_file: need("socket.file")?,
            file_flags: may("file.f_flags"),
            sk_socket: need("sock.sk_socket")?,
            file_inode: need("file.f_inode")?,
            inode_ino: need("inode.i_ino")?,
            task_signal: need("task_struct.signal")?,
            signal_live: need("signal_struct.live")?,
            task_exit_code: need("task_struct.exit_code")?,
            task_tgid: need("task_struct.tgid")?,
            task_pid: need("task_struct.pid")?,
            sk_sndbuf: may("sock.sk_sndbuf"),
            sk_wmem_queued: may("sock.sk_wmem_queued"),
            sk_prot: may("sock.__sk_common.skc_prot"),
            sk_flags: may("sock.__sk_common.skc_flags"),
            proto_memory_pressure: may("proto.memory_pressure"),
            task_sighand: may("task_struct.sighand"),
            sighand_action: may("sighand_struct.action"),
        })
    }
}

fn string(bytes: &[u8], (start, length): (usize, usize), at: u32) -> &str {
    let Some(rest) = bytes.get(start..start + length).and_then(|s| s.get(at as usize..)) else {
        return "";
    };
    let end = memchr::memchr(0, rest).unwrap_or(rest.len());
    std::str::from_utf8(&rest[..end]).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_has_what_the_programs_ask_for() {
        let Ok(btf) = Btf::kernel() else { return };
        let offsets = btf.offsets().map_err(|e| e.to_string());
        assert!(offsets.is_ok(), "{offsets:?}");
        assert_eq!(btf.offset("sock.__sk_common.skc_family"), Some(16));
        // Without it nobody knows whose signal SIGUSR1 is.
        assert!(btf.offset("sighand_struct.action").is_some());
    }

    #[test]
    fn garbage_is_an_error() {
        assert!(matches!(Btf::parse(vec![0; 64]), Err(Error::Malformed(_))));
        assert!(matches!(Btf::parse(vec![]), Err(Error::Malformed(_))));
    }
}
