//! A message on its way out of a followed socket: the injector's [`Message`]
//! over the kernel's `sk_msg`.
//!
//! The program runs in the writer's context with the socket locked, but it may
//! be preempted by another on the same CPU: so it keeps nothing per CPU.

use aya_ebpf::bindings::{sk_action, sk_msg_md};
use aya_ebpf::helpers::generated::{
    bpf_get_current_pid_tgid, bpf_loop, bpf_msg_apply_bytes, bpf_msg_pop_data, bpf_msg_pull_data, bpf_msg_push_data,
    bpf_probe_read_kernel,
};
use tracewire_common::event::{Header, direction, kind};
use tracewire_common::inject::{self, Fate};
use tracewire_common::link::StreamKey;
use tracewire_common::settings::watch;
use tracewire_common::trace::{Injected, SAMPLED, mint};
use tracewire_ebpf::connection::{Flow, phase as seen};
use tracewire_ebpf::outbound::{FIELD, Inserted, Message, Outbound, PIECE, Told, phase, step, write};
use tracewire_ebpf::outbound1::{self, LINE};

use super::{count, followed, head, outbound, served};
use crate::kernel::maps::{self, offset};
use crate::kernel::memory::{kernel, opaque, shared};
use crate::kernel::{emit, probe};

/// Frames of one run at most; what follows gets a run of its own.
const FRAMES: u32 = 1024;
/// Steps over one piece of a block at most: each takes a byte or more.
const STEPS: u32 = PIECE as u32 + 1;
/// Bytes that are made contiguous after an insertion, so that they go out as one.
const CONTIGUOUS: u32 = 16 * 1024;
/// Largest distance from the start of the readable bytes.
const REACH: u64 = 0x7fff;
/// Bytes of send buffer that must be left beyond the frame.
const SLACK: i32 = 4096;

/// One run over a message.
#[repr(C)]
struct Run {
    msg: *mut sk_msg_md,
    out: *mut Outbound,
    cookie: u64,
    sk: u64,
    /// Process and thread.
    id: u64,
    /// 1: bytes were put in that could not be taken out.
    broken: u32,
    /// 1: this turn is the last.
    last: u32,
}

#[inline(always)]
fn bounds(msg: *const sk_msg_md) -> (usize, usize) {
    let data = member!(msg, __bindgen_anon_1.data);
    let end = member!(msg, __bindgen_anon_2.data_end);
    (data as usize, end as usize)
}

/// A message passes: what becomes of it.
#[inline(always)]
pub fn passes(msg: *mut sk_msg_md) -> u32 {
    let verdict = try_passes(msg);
    if verdict.is_none() {
        // SAFETY: the program's own context. What an earlier run said of the rest does not hold.
        unsafe { bpf_msg_apply_bytes(msg, 0) };
    }
    verdict.unwrap_or(sk_action::SK_PASS)
}

#[inline(always)]
fn try_passes(msg: *mut sk_msg_md) -> Option<u32> {
    let socket = member!(msg, __bindgen_anon_3.sk);
    // The verifier lets nobody calculate with a socket's address: read from memory it is just a number.
    let sk = kernel::<u64>((&raw const socket) as u64)?;
    let at = |offset: usize| sk.wrapping_add(offset as u64);
    let cookie = kernel::<u64>(at(offset!(sk_cookie)))?;
    let out_at = outbound(cookie)?;
    // SAFETY: a helper without arguments.
    let id = unsafe { bpf_get_current_pid_tgid() };
    match maps::watched((id >> 32) as u32) {
        // Nothing is written once it was turned off.
        Some(watch::WATCHED) if followed(0) != inject::followed::NONE => {}
        // Nobody has chosen yet.
        Some(watch::PENDING) => return None,
        _ => {
            // SAFETY: a live element of a map, which only the socket's holder writes.
            unsafe { (*out_at).phase = phase::DEAD };
            return None;
        }
    }
    let sequence = kernel::<u32>(at(offset!(tcp_write_seq)))?;
    let size = member!(msg, size);
    begins(cookie, size, sequence);
    // SAFETY: a live element of a map, which only the socket's holder writes.
    let out = unsafe { &mut *out_at };
    let mut run = Run {
        msg,
        out: out_at,
        cookie,
        sk,
        id,
        broken: 0,
        last: 0,
    };
    // SAFETY: `run_step` takes what is passed here; the run outlives the call.
    unsafe { bpf_loop(FRAMES, run_step as *mut _, (&raw mut run).cast(), 0) };
    if run.broken != 0 {
        return Some(sk_action::SK_DROP);
    }
    if out.apply == 0 && out.at < out.size && out.at != 0 {
        // More frames than one run takes, or the end of what is of interest.
        out.apply = if run.last == 0 { 0 } else { out.at };
    }
    out.end();
    // SAFETY: the program's own context.
    unsafe { bpf_msg_apply_bytes(msg, out.apply) };
    Some(sk_action::SK_PASS)
}

/// A run begins: a function of its own, so that the verifier walks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn begins(cookie: u64, size: u32, sequence: u32) -> u32 {
    let Some(out) = outbound(cookie) else { return 0 };
    // SAFETY: a live element of a map, which only the socket's holder writes.
    let out = unsafe { &mut *out };
    out.begin(size, sequence);
    if out.astray != 0 {
        match observed(cookie, sequence.wrapping_sub(out.injected)) {
            Some((left, blocks)) => out.resume(left, blocks),
            None => out.lose(),
        }
    }
    1
}

/// Where the observer stands, if that is at this position: bytes left of a frame or body, and header
/// blocks (HTTP/1: requests) before it.
#[inline(always)]
fn observed(cookie: u64, position: u32) -> Option<(u64, u32)> {
    let connection = maps::connection(cookie)?;
    // SAFETY: a live element of a map.
    let flows: *const Flow = unsafe { &raw const (*connection).flows }.cast();
    let flow = flows.wrapping_add(usize::from(direction::SEND));
    // SAFETY: as above; there are two flows.
    let flow = unsafe { &*flow };
    if flow.sequence != position {
        return None;
    }
    // SAFETY: a live element of a map.
    let requests = unsafe { (*connection).shared.requests };
    match flow.phase {
        seen::HEAD if flow.have == 0 => Some((0, flow.blocks)),
        seen::SKIP => Some((u64::from(flow.need), flow.blocks)),
        seen::DATA => Some((u64::from(flow.need.wrapping_add(flow.pad)), flow.blocks)),
        seen::HTTP1_HEAD if flow.http1.head == 0 => Some((0, requests)),
        seen::HTTP1_BODY => Some((flow.http1.left, requests)),
        _ => None,
    }
}

/// One turn of `bpf_loop`; 1 ends it.
unsafe extern "C" fn run_step(turn: u64, run: *mut Run) -> i64 {
    // SAFETY: `try_passes` passes its own run.
    let run = unsafe { &mut *run };
    // SAFETY: a live element of a map, as there.
    let out = unsafe { &mut *run.out };
    run.last = u32::from(turn + 1 >= u64::from(FRAMES));
    i64::from(!step(out, run))
}

/// One step over the piece that was copied. 0: it is over.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn walk_step(cookie: u64) -> u32 {
    let Some(out) = outbound(cookie) else { return 0 };
    // SAFETY: a live element of a map, which only the socket's holder writes.
    let out = unsafe { &mut *out };
    u32::from(out.walk_block())
}

/// The same of a head of HTTP/1.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn walk_head_step(cookie: u64) -> u32 {
    let Some(out) = outbound(cookie) else { return 0 };
    // SAFETY: a live element of a map, which only the socket's holder writes.
    let out = unsafe { &mut *out };
    u32::from(out.walk_head())
}

/// Walks the piece that was copied; functions of their own, so that the verifier walks each once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn walk_piece(cookie: u64, n: u32) -> u32 {
    let Some(out) = outbound(cookie) else { return 0 };
    // SAFETY: a live element of a map, which only the socket's holder writes.
    let out = unsafe { &mut *out };
    out.walked = 0;
    out.unwalked = n;
    let http1 = out.phase == phase::HTTP1;
    let mut i = 0;
    while i < STEPS {
        let more = if http1 {
            walk_head_step(cookie)
        } else {
            walk_step(cookie)
        };
        if more == 0 {
            break;
        }
        i += 1;
    }
    1
}

/// Finds the context of the request under way and makes a field of it. 0: nobody knows; 2: nobody
/// has decided whether it is sampled.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn prepare(cookie: u64) -> u32 {
    let Some(out) = outbound(cookie) else { return 0 };
    // SAFETY: a live element of a map, which only the socket's holder writes.
    let out = unsafe { &mut *out };
    let http1 = out.phase == phase::HTTP1;
    if http1 && !counted(cookie, out.requests) {
        return 0;
    }
    let request = match probe::parent_of_written(cookie, out.stream, http1) {
        Some(request) => request,
        None => StreamKey::NONE,
    };
    let injected = &mut out.told.injected;
    injected.child = StreamKey::made(cookie, out.stream);
    injected.parent = request;
    let key = [maps::key(0), maps::key(1)];
    let minted = mint(key, cookie, out.stream, u32::from(direction::SEND));
    injected.context.span_id = minted.span_id;
    injected.context.trace_id = minted.trace_id;
    injected.context.parent = [0; 8];
    if request.is_some() {
        let Some(served) = served(&request) else { return 0 };
        // SAFETY: a live element of a map, written once.
        let served = unsafe { &*served };
        if served.unknown != 0 {
            return 0;
        }
        injected.context.trace_id = served.trace_id;
        injected.context.parent = served.span_id;
        injected.context.flags = served.flags;
        if served.undecided != 0 {
            let Some(decided) = head::decided(&request) else {
                return 2;
            };
            // SAFETY: a live element of a map, which the agent writes once.
            let decided = unsafe { &*decided };
            // The agent may know of a caller that wrote no context.
            injected.context.trace_id = decided.trace_id;
            injected.context.flags = decided.flags;
        }
    } else {
        // SAFETY: a helper without arguments.
        let pid = (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32;
        let rule = head::rule(pid);
        if rule.is_undecided() {
            return 2;
        }
        injected.context.flags = u8::from(rule.keeps(&minted.trace_id)) * SAMPLED;
    }
    let context = injected.context;
    if http1 {
        // SAFETY: the first of the field's bytes, which have no alignment.
        outbound1::write(&context, unsafe { &mut *(&raw mut out.field).cast::<[u8; LINE]>() });
    } else {
        // SAFETY: as above.
        write(&context, unsafe { &mut *(&raw mut out.field).cast::<[u8; FIELD]>() });
    }
    1
}

/// Whether the observer has counted as many requests of HTTP/1 on a connection: it names them by
/// their number, and what it missed, or has not seen yet, would be called otherwise.
#[inline(always)]
fn counted(cookie: u64, requests: u32) -> bool {
    let Some(connection) = maps::connection(cookie) else {
        return requests == 0;
    };
    // SAFETY: a live element of a map.
    let flows: *const Flow = unsafe { &raw const (*connection).flows }.cast();
    let flow = flows.wrapping_add(usize::from(direction::SEND));
    // SAFETY: as above; there are two flows.
    let phase = unsafe { (*flow).phase };
    // SAFETY: a live element of a map.
    phase < seen::LOST && unsafe { (*connection).shared.requests } == requests
}

impl Run {
    #[inline(always)]
    fn pull(&mut self, from: u32, to: u32) -> bool {
        // SAFETY: the program's own context; the kernel checks the range.
        unsafe { bpf_msg_pull_data(self.msg, from, to, 0) == 0 }
    }

    /// Takes `n` bytes out again.
    #[inline(always)]
    fn back(&mut self, at: u32, n: usize) -> Inserted {
        // SAFETY: the program's own context; the kernel checks the range.
        if unsafe { bpf_msg_pop_data(self.msg, at, n as u32, 0) } != 0 {
            self.broken = 1;
        }
        Inserted::RolledBack
    }

    #[inline(always)]
    fn tell(&mut self, out: &mut Outbound) {
        out.told.header = Header {
            kind: kind::INJECTED,
            direction: direction::SEND,
            flags: 0,
            length: size_of::<Injected>() as u32,
            time_ns: emit::now(),
            connection: self.cookie,
            pid: (self.id >> 32) as u32,
            tid: self.id as u32,
        };
        // SAFETY: the record lies whole in a live element of a map.
        unsafe { maps::output((&raw const out.told).cast(), size_of::<Told>() as u64) };
    }
}

impl Message for Run {
    #[inline(always)]
    fn window(&self) -> u32 {
        let (data, end) = bounds(self.msg);
        let n = opaque(end as u64 - data as u64);
        if n > REACH { REACH as u32 } else { n as u32 }
    }

    #[inline(always)]
    fn linear(&mut self, n: u32) -> bool {
        u64::from(n) <= REACH && self.pull(0, n)
    }

    #[inline(always)]
    fn copy(&mut self, out: &mut Outbound, at: u32, n: u32) -> bool {
        let (data, _) = bounds(self.msg);
        let at = opaque(u64::from(at)) & REACH;
        let size = opaque(u64::from(n));
        if size > PIECE as u64 {
            return false;
        }
        let to = (&raw mut out.piece).cast();
        // SAFETY: writes at most PIECE bytes to the piece; the caller saw to it that they are there to be read.
        unsafe { bpf_probe_read_kernel(to, size as u32, (data + at as usize) as *const _) == 0 }
    }

    #[inline(always)]
    fn walk(&mut self, out: &mut Outbound, n: u32) {
        shared(out);
        walk_piece(self.cookie, n);
        shared(out);
    }

    #[inline(always)]
    fn room(&mut self, n: u32) -> bool {
        let at = |offset: usize| self.sk.wrapping_add(offset as u64);
        let (Some(limit), Some(queued)) = (
            kernel::<i32>(at(offset!(sk_sndbuf))),
            kernel::<i32>(at(offset!(sk_wmem_queued))),
        ) else {
            return false;
        };
        // Short of memory the kernel may take a part of a message.
        let pressure = kernel::<u64>(at(offset!(sk_prot)))
            .and_then(|proto| kernel::<u64>(proto.wrapping_add(offset!(proto_memory_pressure) as u64)))
            .and_then(kernel::<u64>);
        if pressure != Some(0) {
            return false;
        }
        limit.wrapping_sub(queued) > 2 * n as i32 + SLACK
    }

    #[inline(always)]
    fn context(&mut self, out: &mut Outbound) -> Result<(), Fate> {
        shared(out);
        let known = prepare(self.cookie);
        shared(out);
        match known {
            0 => Err(Fate::NoContext),
            2 => Err(Fate::Undecided),
            _ => Ok(()),
        }
    }

    #[inline(always)]
    fn insert(&mut self, out: &mut Outbound, at: u32, length: u32) -> Inserted {
        // SAFETY: the program's own context; the kernel checks the range.
        if unsafe { bpf_msg_push_data(self.msg, at, FIELD as u32, 0) } != 0 {
            return Inserted::Refused;
        }
        if !self.pull(at, at + FIELD as u32) {
            return self.back(at, FIELD);
        }
        let (data, end) = bounds(self.msg);
        if data + FIELD > end {
            return self.back(at, FIELD);
        }
        let mut i = 0;
        while i < FIELD {
            // SAFETY: inside the message (just checked, as the verifier asks).
            unsafe { *((data + i) as *mut u8) = out.field[i] };
            i += 1;
        }
        if !self.pull(0, 9) {
            return self.back(at, FIELD);
        }
        let (data, end) = bounds(self.msg);
        if data + 3 > end {
            return self.back(at, FIELD);
        }
        let bytes = [(length >> 16) as u8, (length >> 8) as u8, length as u8];
        // SAFETY: inside the message (just checked, as the verifier asks).
        unsafe { (data as *mut [u8; 3]).write_unaligned(bytes) };
        let size = member!(self.msg, size);
        let end = length + 9;
        // Bytes that lie apart would go out as segments of their own. If it fails they do.
        self.pull(0, if size <= CONTIGUOUS { size } else { end });
        self.tell(out);
        Inserted::Done
    }

    #[inline(always)]
    fn insert_line(&mut self, out: &mut Outbound, at: u32) -> Inserted {
        // SAFETY: the program's own context; the kernel checks the range.
        if unsafe { bpf_msg_push_data(self.msg, at, LINE as u32, 0) } != 0 {
            return Inserted::Refused;
        }
        if !self.pull(at, at + LINE as u32) {
            return self.back(at, LINE);
        }
        let (data, end) = bounds(self.msg);
        if data + LINE > end {
            return self.back(at, LINE);
        }
        let mut i = 0;
        while i < LINE {
            // SAFETY: inside the message (just checked, as the verifier asks).
            unsafe { *((data + i) as *mut u8) = out.field[i] };
            i += 1;
        }
        // Bytes that lie apart would go out as segments of their own. If it fails they do.
        let size = member!(self.msg, size);
        self.pull(0, if size <= CONTIGUOUS { size } else { at + LINE as u32 + 2 });
        self.tell(out);
        Inserted::Done
    }

    #[inline(always)]
    fn fate(&mut self, fate: Fate) {
        count(fate);
    }
}
