//! What a client writes, cut into writes at every byte: what goes out is the
//! same but for one field in each request whose frame is whole in one write.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

extern crate std;

use std::vec::Vec;

use tracewire_common::elided::{Head, flag, frame};
use tracewire_common::inject::Fate;
use tracewire_common::trace::Context;

use super::{FIELD, Inserted, Message, Outbound, phase, step, write};
use crate::http2::PREFACE;
use crate::outbound1::{self, LINE};

fn context(stream: u32) -> Context {
    Context {
        trace_id: [stream as u8; 16],
        span_id: [stream as u8; 8],
        flags: 3,
        ..Context::default()
    }
}

fn field(context: &Context) -> [u8; FIELD] {
    let mut bytes = [0; FIELD];
    write(context, &mut bytes);
    bytes
}

/// A write as the kernel holds it: pieces of `element` bytes, the first one readable.
struct Write {
    bytes: Vec<u8>,
    window: usize,
    room: bool,
    works: Inserted,
    fates: Vec<Fate>,
}

impl Message for Write {
    fn window(&self) -> u32 {
        self.window as u32
    }
    fn linear(&mut self, n: u32) -> bool {
        assert!(n as usize <= self.bytes.len());
        self.window = self.window.max(n as usize);
        true
    }
    fn copy(&mut self, out: &mut Outbound, at: u32, n: u32) -> bool {
        let (at, n) = (at as usize, n as usize);
        assert!(at + n <= self.window);
        out.piece[..n].copy_from_slice(&self.bytes[at..at + n]);
        true
    }
    fn walk(&mut self, out: &mut Outbound, n: u32) {
        out.walked = 0;
        out.unwalked = n;
        if out.phase == phase::HTTP1 {
            while out.walk_head() {}
        } else {
            while out.walk_block() {}
        }
    }
    fn room(&mut self, _n: u32) -> bool {
        self.room
    }
    fn context(&mut self, out: &mut Outbound) -> Result<(), Fate> {
        if out.phase == phase::HTTP1 {
            let mut line = [0; LINE];
            outbound1::write(&context(out.stream), &mut line);
            out.field[..LINE].copy_from_slice(&line);
            return Ok(());
        }
        out.field[..FIELD].copy_from_slice(&field(&context(out.stream)));
        if out.stream == 99 { Err(Fate::NoContext) } else { Ok(()) }
    }
    fn insert(&mut self, out: &mut Outbound, at: u32, length: u32) -> Inserted {
        if self.works == Inserted::Done {
            let at = at as usize;
            self.bytes.splice(at..at, out.field[..FIELD].iter().copied());
            self.bytes[..3].copy_from_slice(&length.to_be_bytes()[1..]);
            self.window = self.bytes.len();
        }
        self.works
    }
    fn insert_line(&mut self, out: &mut Outbound, at: u32) -> Inserted {
        if self.works == Inserted::Done {
            let at = at as usize;
            self.bytes.splice(at..at, out.field[..LINE].iter().copied());
            self.window = self.bytes.len();
        }
        self.works
    }
    fn fate(&mut self, fate: Fate) {
        self.fates.push(fate);
    }
}

#[derive(Default)]
pub(crate) struct Sent {
    pub(crate) bytes: Vec<u8>,
    pub(crate) fates: Vec<Fate>,
}

/// What goes out if all goes well.
pub(crate) fn send_all(writes: &[&[u8]], element: usize) -> Vec<u8> {
    send(&mut Outbound::EMPTY.clone(), writes, element, true, Inserted::Done).bytes
}

/// Sends writes as the kernel does: each run speaks for a part, the rest gets a run of its own.
pub(crate) fn send(out: &mut Outbound, writes: &[&[u8]], element: usize, room: bool, works: Inserted) -> Sent {
    let mut sent = Sent::default();
    for write in writes {
        let mut rest = write.to_vec();
        let mut runs = 0;
        while !rest.is_empty() {
            runs += 1;
            assert!(runs < 10_000);
            let mut message = Write {
                window: element.min(rest.len()),
                bytes: std::mem::take(&mut rest),
                room,
                works,
                fates: Vec::new(),
            };
            out.begin(message.bytes.len() as u32, sent.bytes.len() as u32);
            while step(out, &mut message) {}
            out.end();
            assert_eq!(out.size as usize, message.bytes.len());
            let speaks = if out.apply == 0 {
                message.bytes.len()
            } else {
                out.apply as usize
            };
            rest = message.bytes.split_off(speaks);
            sent.bytes.extend(message.bytes);
            sent.fates.extend(message.fates);
        }
    }
    sent
}

fn put(to: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let head = Head {
        length: payload.len() as u32,
        kind,
        flags,
        stream,
    };
    to.extend(head.bytes());
    to.extend(payload);
}

const BLOCK: &[u8] = &[0x83, 0x86, 0x04, 4, b'/', b'a', b'/', b'b', 0x41, 3, b'x', b'y', b'z'];
/// The authority by its index now.
const AGAIN: &[u8] = &[0x83, 0x86, 0x04, 4, b'/', b'a', b'/', b'b', 0xbe];

/// A connection's bytes, and where requests' blocks end: (first byte of the frame with END_HEADERS, end of its fragment, stream).
fn connection() -> (Vec<u8>, Vec<(usize, usize, u32)>) {
    let mut bytes = PREFACE.to_vec();
    let mut ends = Vec::new();
    put(&mut bytes, frame::SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]);
    put(&mut bytes, frame::WINDOW_UPDATE, 0, 0, &[0, 0, 1, 0]);
    ends.push((bytes.len(), bytes.len() + 9 + BLOCK.len(), 1));
    put(&mut bytes, frame::HEADERS, flag::END_HEADERS, 1, BLOCK);
    put(&mut bytes, frame::DATA, flag::END_STREAM, 1, b"\0\0\0\0\x05hello");
    // Trailers of a client, and a request without a body, padded and with a priority.
    put(
        &mut bytes,
        frame::HEADERS,
        flag::END_HEADERS | flag::END_STREAM,
        1,
        &[0x40, 1, b'a', 1, b'b'],
    );
    let mut padded = std::vec![3, 0, 0, 0, 0, 7];
    padded.extend([0x83, 0x86, 0x04, 1, b'/', 0xbf]);
    padded.extend([0, 0, 0]);
    ends.push((bytes.len(), bytes.len() + 9 + padded.len() - 3, 3));
    put(&mut bytes, frame::HEADERS, 0x2d, 3, &padded);
    // In three frames.
    put(&mut bytes, frame::HEADERS, 0, 5, &AGAIN[..3]);
    put(&mut bytes, frame::CONTINUATION, 0, 5, &[]);
    ends.push((bytes.len(), bytes.len() + 9 + 5, 5));
    put(&mut bytes, frame::CONTINUATION, flag::END_HEADERS, 5, &AGAIN[3..8]);
    put(&mut bytes, frame::PING, 0, 0, &[0; 8]);
    put(&mut bytes, frame::RST_STREAM, 0, 5, &[0; 4]);
    (bytes, ends)
}

/// What must come of it if written in these pieces.
fn expected(bytes: &[u8], ends: &[(usize, usize, u32)], cuts: &[usize], padding: impl Fn(u32) -> usize) -> Vec<u8> {
    let mut expected = bytes.to_vec();
    for (first, end, stream) in ends.iter().rev() {
        let last = end + padding(*stream);
        if cuts.iter().any(|cut| first < cut && *cut < last) {
            continue;
        }
        expected.splice(*end..*end, field(&context(*stream)));
        let length = u32::from_be_bytes([0, bytes[*first], bytes[first + 1], bytes[first + 2]]) + FIELD as u32;
        expected[*first..first + 3].copy_from_slice(&length.to_be_bytes()[1..]);
    }
    expected
}

fn pad(stream: u32) -> usize {
    if stream == 3 { 3 } else { 0 }
}

#[test]
fn every_request_of_a_write_is_given_its_context() {
    let (bytes, ends) = connection();
    for element in [1, 9, 24, 50, 10_000] {
        let mut out = Outbound::EMPTY;
        let sent = send(&mut out, &[&bytes], element, true, Inserted::Done);
        assert_eq!(sent.bytes, expected(&bytes, &ends, &[], pad), "{element}");
        assert_eq!(sent.fates, [Fate::Injected; 3]);
        assert_eq!(out.injected as usize, 3 * FIELD);
        assert_eq!(out.next as usize, sent.bytes.len());
        assert_eq!(out.phase, phase::HEAD);
    }
}

#[test]
fn no_cut_changes_more() {
    let (bytes, ends) = connection();
    for cut in 1..bytes.len() {
        // Frames with a padding or priority that is cut in its first bytes lose the connection's rest.
        let mut out = Outbound::EMPTY;
        let sent = send(&mut out, &[&bytes[..cut], &bytes[cut..]], 10_000, true, Inserted::Done);
        if out.phase == phase::HEAD {
            assert_eq!(sent.bytes, expected(&bytes, &ends, &[cut], pad), "cut at {cut}");
        } else {
            assert_eq!(out.phase, phase::LOST, "cut at {cut}");
            assert_eq!(sent.bytes, expected(&bytes, &ends[..1], &[], pad), "cut at {cut}");
        }
    }
    // Byte by byte there is nothing to be put anywhere.
    let single: Vec<&[u8]> = bytes.chunks(1).collect();
    let sent = send(&mut Outbound::EMPTY.clone(), &single, 10_000, true, Inserted::Done);
    assert_eq!(sent.bytes, bytes);
}

#[test]
fn what_fails_changes_nothing() {
    let (bytes, _) = connection();
    for works in [Inserted::Refused, Inserted::RolledBack] {
        assert_eq!(
            send(&mut Outbound::EMPTY.clone(), &[&bytes], 50, true, works).bytes,
            bytes
        );
    }
    let sent = send(&mut Outbound::EMPTY.clone(), &[&bytes], 50, false, Inserted::Done);
    assert_eq!((sent.bytes, sent.fates), (bytes, std::vec![Fate::NoRoom; 3]));
}

#[test]
fn requests_with_a_context_are_left_alone_one_by_one() {
    let (mut bytes, mut ends) = connection();
    let mut own = AGAIN[..8].to_vec();
    own.extend([0x40, 11]);
    own.extend(b"traceparent\x02zz");
    put(&mut bytes, frame::HEADERS, 5, 7, &own);
    let mut again = AGAIN[..8].to_vec();
    again.push(0xbe);
    put(&mut bytes, frame::HEADERS, 5, 9, &again);
    let mut other = AGAIN[..8].to_vec();
    other.push(0xbf);
    ends.push((bytes.len(), bytes.len() + 9 + other.len(), 11));
    put(&mut bytes, frame::HEADERS, 5, 11, &other);
    // An index that was never inserted, and one whose context nobody knows.
    let mut unknown = AGAIN[..8].to_vec();
    unknown.push(0xc9);
    put(&mut bytes, frame::HEADERS, 5, 13, &unknown);
    put(&mut bytes, frame::HEADERS, 5, 99, &other);
    let sent = send(&mut Outbound::EMPTY.clone(), &[&bytes], 10_000, true, Inserted::Done);
    assert_eq!(sent.bytes, expected(&bytes, &ends, &[], pad));
    assert_eq!(
        sent.fates[3..],
        [Fate::Own, Fate::Own, Fate::Injected, Fate::Unnamed, Fate::NoContext]
    );
}

#[test]
fn look_alikes_are_left_alone() {
    let mut response = PREFACE.to_vec();
    put(&mut response, frame::SETTINGS, 0, 0, &[]);
    put(&mut response, frame::HEADERS, 4, 1, &[0x88]);
    let mut pushed = PREFACE.to_vec();
    put(&mut pushed, frame::SETTINGS, 0, 0, &[]);
    put(&mut pushed, frame::PUSH_PROMISE, 4, 1, &[0, 0, 0, 2, 0x82, 0x86, 0x84]);
    put(&mut pushed, frame::HEADERS, 4, 1, BLOCK);
    let mut even = PREFACE.to_vec();
    put(&mut even, frame::SETTINGS, 0, 0, &[]);
    put(&mut even, frame::HEADERS, 4, 2, BLOCK);
    let mut bare = PREFACE.to_vec();
    put(&mut bare, frame::HEADERS, 4, 1, BLOCK);
    let mut headless = Vec::new();
    put(&mut headless, frame::SETTINGS, 0, 0, &[]);
    put(&mut headless, frame::HEADERS, 4, 1, BLOCK);
    let mut bad = PREFACE.to_vec();
    put(&mut bad, frame::SETTINGS, 0, 0, &[]);
    put(&mut bad, frame::HEADERS, 4, 1, &[0x83, 0x86, 0x80]);
    // yamux: version 0, type 0, flags 1, stream 1, length 13; then what looks like frames.
    let mut yamux = std::vec![0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 13];
    yamux.extend(&bare[24..]);
    for bytes in [response, pushed, even, bare, headless, bad, yamux] {
        for element in [1, 10_000] {
            let sent = send(&mut Outbound::EMPTY.clone(), &[&bytes], element, true, Inserted::Done);
            assert_eq!(sent.bytes, bytes);
            assert!(!sent.fates.contains(&Fate::Injected));
        }
    }
}

#[test]
fn bytes_that_go_by_unseen_end_it_unless_nobody_needed_them() {
    let mut bytes = PREFACE.to_vec();
    put(&mut bytes, frame::SETTINGS, 0, 0, &[]);
    put(&mut bytes, frame::DATA, 0, 1, &[7; 100]);
    let mut rest = Vec::new();
    put(&mut rest, frame::HEADERS, 5, 3, BLOCK);
    for unseen in [100, 99, 101] {
        let mut out = Outbound::EMPTY;
        let seen = bytes.len() - 100;
        send(&mut out, &[&bytes[..seen]], 1000, true, Inserted::Done);
        let mut message = Write {
            window: 1000,
            bytes: rest.clone(),
            room: true,
            works: Inserted::Done,
            fates: Vec::new(),
        };
        out.begin(rest.len() as u32, seen as u32 + unseen);
        while step(&mut out, &mut message) {}
        assert_eq!(message.fates == [Fate::Injected], unseen == 100, "{unseen}");
        assert_eq!(message.bytes == rest, unseen != 100);
    }
}

#[test]
fn limits_of_the_peer_are_kept() {
    let mut bytes = PREFACE.to_vec();
    put(&mut bytes, frame::SETTINGS, 0, 0, &[]);
    put(&mut bytes, frame::HEADERS, 5, 1, BLOCK);
    let mut large = bytes.clone();
    let mut block = AGAIN[..8].to_vec();
    block.extend([0, 1, b'x', 0x7f, 0xbd, 0x7e]);
    block.extend(std::vec![b'v'; 127 + 0x3d + (0x7e << 7)]);
    put(&mut large, frame::HEADERS, 5, 3, &block);
    let sent = send(&mut Outbound::EMPTY.clone(), &[&large], 50_000, true, Inserted::Done);
    assert_eq!(sent.fates, [Fate::Injected, Fate::TooLong]);
    for (limit, fate) in [(100, Fate::TooLong), (4096, Fate::Injected)] {
        let mut out = Outbound::EMPTY;
        out.list_limit = limit;
        assert_eq!(send(&mut out, &[&bytes], 1000, true, Inserted::Done).fates, [fate]);
    }
}

proptest::proptest! {
    #[test]
    fn any_bytes_after_a_preface_go_out_as_they_were_or_longer(
        bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300),
        cut in 0usize..300,
        element in 1usize..100,
    ) {
        let mut all = PREFACE.to_vec();
        put(&mut all, frame::SETTINGS, 0, 0, &[]);
        all.extend(&bytes);
        let cut = cut.min(all.len());
        let sent = send(&mut Outbound::EMPTY.clone(), &[&all[..cut], &all[cut..]], element, true, Inserted::Done);
        let injected = sent.fates.iter().filter(|f| **f == Fate::Injected).count();
        assert_eq!(sent.bytes.len(), all.len() + injected * FIELD);
    }
}

/// A connection whose large message was cut by a full send buffer: what was sent passed unseen in part, and
/// the observer alone knows where it stands.
#[test]
fn after_a_write_that_ended_early_requests_get_theirs_again() {
    let mut bytes = PREFACE.to_vec();
    put(&mut bytes, frame::SETTINGS, 0, 0, &[]);
    put(&mut bytes, frame::HEADERS, flag::END_HEADERS, 1, BLOCK);
    let begin = bytes.len();
    for n in 0..20u8 {
        put(&mut bytes, frame::DATA, 0, 1, &[n; 100]);
    }
    let end = bytes.len();
    let mut next = Vec::new();
    put(&mut next, frame::HEADERS, flag::END_HEADERS, 3, AGAIN);
    let mut out = Outbound::EMPTY;
    // Its last bytes were not taken, or more was sent that it did not see.
    for seen in [end - 500, end - 50] {
        let first = send(&mut out, &[&bytes[..seen]], 10_000, true, Inserted::Done);
        assert_eq!(first.fates, [Fate::Injected]);
        for stands in begin + 1..=end {
            let mut out = out;
            let at = (FIELD + stands) as u32;
            let inside = (stands - begin) % 109;
            let left = if inside == 0 { 0 } else { 109 - inside };
            let rest = [&bytes[stands..], &next].concat();
            let mut message = Write {
                window: rest.len(),
                bytes: rest,
                room: true,
                works: Inserted::Done,
                fates: Vec::new(),
            };
            out.begin(message.bytes.len() as u32, at);
            if out.astray != 0 {
                let mut lost = out;
                lost.resume(left as u64, 2);
                assert_eq!(lost.phase, phase::LOST);
                if (1..9).contains(&inside) {
                    continue;
                }
                out.resume(left as u64, 1);
            } else if (1..9).contains(&inside) && stands != seen {
                panic!("{stands}");
            }
            while step(&mut out, &mut message) {}
            // The request begins a run of its own.
            assert_eq!(out.apply as usize, end - stands, "{stands}");
            assert_eq!(out.phase, phase::HEAD);
        }
        out = Outbound::EMPTY;
    }
}

/// What was in a block may have come again differently: its table is not known.
#[test]
fn a_write_that_ended_within_a_request_loses_the_rest() {
    let mut bytes = PREFACE.to_vec();
    put(&mut bytes, frame::SETTINGS, 0, 0, &[]);
    let begin = bytes.len();
    put(&mut bytes, frame::HEADERS, flag::END_HEADERS, 1, BLOCK);
    for accepted in 1..=begin + 8 {
        let mut out = Outbound::EMPTY;
        send(&mut out, &[&bytes], 10_000, true, Inserted::Done);
        out.begin(1, accepted as u32);
        // The observer has seen none.
        out.resume(0, 0);
        assert_eq!(out.phase, phase::LOST, "{accepted}");
    }
}
