//! One function a parser, for any bytes: it must neither panic nor make up
//! what another reading of the same bytes would not say. `fuzz_targets/` hands
//! them to libFuzzer, `tests/stand_in.rs` to a small generator of its own.
//!
//! Bias: a target says what holds for all input, not only that nothing breaks.

pub mod wire;

use std::collections::VecDeque;

use tracewire::connection::record::Event;
use tracewire::protocol::fields::Allow;
use tracewire::protocol::hpack::Decoder;
use tracewire::protocol::{framing, http1 as head};
use tracewire::recording::file::Reader;
use tracewire::recording::{Entry, MAGIC};
use tracewire::request::assemble::Assembler;

use wire::Direction;

/// The framers: whole and cut as the first bytes say, the same elided stream, and not much longer
/// than the input.
pub fn framer(data: &[u8]) {
    let (cuts, data) = data.split_at(data.len().min(8));
    let mut whole = Direction::default();
    let framed = whole.feed(data);
    assert!(
        whole.elided.len() <= 4 * data.len() + 256,
        "{} bytes of {}",
        whole.elided.len(),
        data.len()
    );
    // A direction that is seen first and begins with less than a frame header is left alone.
    let mut cut = Direction::default();
    let (first, mut rest) = data.split_at(data.len().min(wire::BEGINNING));
    let mut going = cut.feed(first);
    let mut cuts: VecDeque<u8> = cuts.iter().copied().collect();
    while going && !rest.is_empty() {
        let next = cuts.pop_front().unwrap_or(1);
        cuts.push_back(next);
        let (piece, more) = rest.split_at(rest.len().min(usize::from(next).max(1)));
        going = cut.feed(piece);
        rest = more;
    }
    // What a piece that turns out malformed gave before that depends on where it began.
    if framed {
        assert_eq!(wire::joined(&whole.elided), wire::joined(&cut.elided));
    }
}

/// HPACK: blocks of up to 255 bytes against `loona-hpack`, and against a decoder that came late.
pub fn hpack(data: &[u8]) {
    let (mut ours, mut late) = (Decoder::new(true), Decoder::new(false));
    let mut theirs = loona_hpack::Decoder::new();
    let mut rest = data;
    let mut agree = true;
    while let Some((length, more)) = rest.split_first() {
        let (block, more) = more.split_at(more.len().min(usize::from(*length)));
        rest = more;
        let mut fields = Vec::new();
        let decoded = ours.decode(block, |f| {
            fields.push((f.name.map(<[u8]>::to_vec), f.value.map(<[u8]>::to_vec)))
        });
        let mut seen = Vec::new();
        let joined = late.decode(block, |f| {
            seen.push((f.name.map(<[u8]>::to_vec), f.value.map(<[u8]>::to_vec)))
        });
        if decoded.is_ok() {
            // A late joiner knows less and nothing else.
            if joined.is_ok() {
                assert_eq!(seen.len(), fields.len());
                for ((name, value), (known_name, known_value)) in seen.iter().zip(&fields) {
                    assert!(name.is_none() || name == known_name, "{name:?} is not {known_name:?}");
                    assert!(
                        value.is_none() || value == known_value,
                        "{value:?} is not {known_value:?}"
                    );
                }
            }
        } else {
            // The tables may differ from here on.
            return;
        }
        if !agree {
            continue;
        }
        match theirs.decode(block) {
            Ok(list) => {
                let list: Vec<_> = list.into_iter().map(|(n, v)| (Some(n), Some(v))).collect();
                assert_eq!(fields, list);
            }
            Err(_) => agree = false,
        }
    }
}

/// Heads of HTTP/1: never a panic; unfolding is done once and for all.
pub fn http1(data: &[u8]) {
    let plain = framing::unfold(data);
    assert_eq!(framing::unfold(&plain), plain);
    framing::is_doubtful(data);
    if let Ok(request) = head::parse_request(&plain) {
        assert!(!request.method.is_empty());
        assert!(request.headers().all(|(name, _)| !name.is_empty()));
    }
    if let Ok(response) = head::parse_response(&plain) {
        assert!(response.status < 1000);
        assert!(response.headers().all(|(name, _)| !name.is_empty()));
    }
}

fn assembler() -> Assembler {
    Assembler::new(Allow {
        request: vec!["x-call-id".into()],
        response: vec!["x-call-id".into()],
    })
}

/// Records of the ring buffer, each with two bytes of length before it.
pub fn records(data: &[u8]) {
    let (mut assembler, mut out) = (assembler(), Vec::new());
    let mut rest = data;
    while let Some(([low, high], more)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_le_bytes([*low, *high]));
        let (record, more) = more.split_at(more.len().min(length));
        rest = more;
        match Event::parse(record) {
            Some(event) => assembler.event(event, &mut out),
            None => assembler.unknown_record(),
        }
    }
    assembler.stop(u64::MAX, &mut out);
    assert_eq!(assembler.connections(), 0);
}

/// A recording's entries.
pub fn recording(data: &[u8]) {
    let file = [MAGIC, data].concat();
    let Ok(mut reader) = Reader::new(&file[..]) else {
        unreachable!("it begins as one")
    };
    let (mut assembler, mut out) = (assembler(), Vec::new());
    while let Ok(Some(entry)) = reader.entry() {
        match entry {
            Entry::Event(event) => assembler.event(event, &mut out),
            Entry::Exited { pid, time_ns } => assembler.exited(pid, time_ns, &mut out),
            _ => {}
        }
    }
    assembler.stop(u64::MAX, &mut out);
}
