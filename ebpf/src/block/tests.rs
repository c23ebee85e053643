//! Blocks as encoders write them, cut at every byte.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

extern crate std;

use std::string::String;
use std::vec::Vec;

use super::{Block, Field, Piece, Table, name, sign, state};

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const OTHER: &str = "00-1bf7651916cd43dd8448eb211c80319c-c7ad6b7169203331-00";
const SENTRY: &str = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331";

struct Bytes<'a>(&'a [u8]);

impl Piece for Bytes<'_> {
    fn byte(&self, at: u32) -> u8 {
        self.0[at as usize]
    }
}

/// Walks one piece.
fn feed(block: &mut Block, table: &mut Table, bytes: &[u8]) {
    let mut at = 0;
    while at < bytes.len() {
        let n = block.step(table, &Bytes(bytes), at as u32, (bytes.len() - at) as u32) as usize;
        assert!(n >= 1 && at + n <= bytes.len());
        at += n;
    }
}

/// Walks a block whole, and cut in two at every byte: always the same.
fn walk(table: &mut Table, bytes: &[u8]) -> Block {
    let before = *table;
    let mut whole = Block::EMPTY;
    whole.begin();
    feed(&mut whole, table, bytes);
    for cut in 0..=bytes.len() {
        let mut again = before;
        let mut block = Block::EMPTY;
        block.begin();
        feed(&mut block, &mut again, &bytes[..cut]);
        feed(&mut block, &mut again, &bytes[cut..]);
        assert_eq!((block.found, block.signs), (whole.found, whole.signs), "cut at {cut}");
        assert_eq!(again, *table);
    }
    whole
}

fn huffman(text: &str) -> Vec<u8> {
    let mut bits = String::new();
    for c in text.bytes() {
        let (code, length) = match c {
            b'0'..=b'2' => (u32::from(c - b'0'), 5),
            b'a' => (3, 5),
            b'c' => (4, 5),
            b'e' => (5, 5),
            b's' => (8, 5),
            b't' => (9, 5),
            b'-' => (0x16, 6),
            b'3'..=b'9' => (u32::from(c - b'3') + 0x19, 6),
            b'b' => (0x23, 6),
            b'd' => (0x24, 6),
            b'f' => (0x25, 6),
            b'n' => (0x2a, 6),
            b'p' => (0x2b, 6),
            b'r' => (0x2c, 6),
            b'y' => (0x7a, 7),
            b'z' => (0x7b, 7),
            _ => panic!("{c}"),
        };
        bits += &std::format!("{code:0length$b}");
    }
    while !bits.len().is_multiple_of(8) {
        bits.push('1');
    }
    bits.as_bytes()
        .chunks(8)
        .map(|b| u8::from_str_radix(std::str::from_utf8(b).unwrap(), 2).unwrap())
        .collect()
}

fn integer(out: &mut Vec<u8>, high: u8, prefix: u8, value: usize) {
    let mask = (1usize << prefix) - 1;
    if value < mask {
        out.push(high | value as u8);
        return;
    }
    out.push(high | mask as u8);
    let mut rest = value - mask;
    while rest >= 128 {
        out.push(rest as u8 | 128);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn string(out: &mut Vec<u8>, text: &str, coded: bool) {
    if coded {
        let code = huffman(text);
        integer(out, 0x80, 7, code.len());
        out.extend(code);
    } else {
        integer(out, 0, 7, text.len());
        out.extend(text.bytes());
    }
}

/// With, without, never: the first byte's high bits and the bits of the index.
const LITERALS: [(u8, u8); 3] = [(0x40, 6), (0, 4), (0x10, 4)];

fn literal(out: &mut Vec<u8>, (high, prefix): (u8, u8), index: usize, name: (&str, bool), value: (&str, bool)) {
    integer(out, high, prefix, index);
    if index == 0 {
        string(out, name.0, name.1);
    }
    string(out, value.0, value.1);
}

fn check(field: &Field, flags: u8) {
    assert_eq!(field.state, state::VALUE);
    assert_eq!(
        (field.trace_id[1], field.trace_id[15], field.span_id[7]),
        (0xf7, 0x9c, 0x31)
    );
    assert_eq!(field.flags, flags);
}

#[test]
fn every_form_of_a_literal_is_read() {
    for form in LITERALS {
        for name_coded in [false, true] {
            for value_coded in [false, true] {
                let mut bytes = std::vec![0x3f, 0xe1, 0x1f, 0x83, 0x86];
                literal(&mut bytes, form, 4, ("", false), ("/a/b", false));
                literal(&mut bytes, form, 0, ("x-other-one", false), ("traceparent", false));
                literal(&mut bytes, form, 0, ("traceparent", name_coded), (PARENT, value_coded));
                literal(&mut bytes, (0, 4), 0, ("x", false), ("", false));
                let block = walk(&mut Table::default(), &bytes);
                check(&block.found[0], 1);
                assert_eq!(block.signs, sign::REQUEST);
                assert!(block.whole());
            }
        }
    }
}

#[test]
fn references_are_counted() {
    let mut table = Table::EMPTY;
    let mut bytes = Vec::new();
    literal(&mut bytes, LITERALS[0], 0, ("traceparent", true), (PARENT, true));
    for _ in 0..70 {
        literal(&mut bytes, LITERALS[0], 0, ("x-a", false), ("b", false));
    }
    check(&walk(&mut table, &bytes).found[0], 1);
    // The whole field, and its name alone.
    let mut bytes = Vec::new();
    integer(&mut bytes, 0x80, 7, 62 + 70);
    check(&walk(&mut table, &bytes).found[0], 1);
    for form in LITERALS {
        let mut bytes = Vec::new();
        literal(&mut bytes, form, 62 + 70, ("", false), (OTHER, false));
        let mut table = table;
        check(&walk(&mut table, &bytes).found[0], 0);
        let mut bytes = Vec::new();
        integer(&mut bytes, 0x80, 7, 62 + 69);
        let block = walk(&mut table, &bytes);
        // One further on, if the literal was inserted.
        assert_eq!(block.found[0].state, state::ABSENT);
        assert_eq!(block.signs, 0);
    }
}

#[test]
fn values_that_are_forgotten_are_unknown() {
    let mut table = Table::EMPTY;
    for _ in 0..6 {
        let mut bytes = Vec::new();
        literal(&mut bytes, LITERALS[0], 0, ("traceparent", false), (PARENT, false));
        walk(&mut table, &bytes);
    }
    for (index, expected) in [
        (62, state::VALUE),
        (65, state::VALUE),
        (66, state::UNKNOWN),
        (67, state::UNKNOWN),
    ] {
        let mut bytes = Vec::new();
        integer(&mut bytes, 0x80, 7, index);
        assert_eq!(walk(&mut table, &bytes).found[0].state, expected, "{index}");
    }
    // From before the walk.
    let mut bytes = Vec::new();
    integer(&mut bytes, 0x80, 7, 68);
    let block = walk(&mut table, &bytes);
    assert_eq!((block.found[0].state, block.signs), (state::ABSENT, sign::UNNAMED));
}

#[test]
fn an_unknown_name_is_told_by_its_value() {
    for coded in [false, true] {
        let mut table = Table::EMPTY;
        let mut bytes = Vec::new();
        literal(&mut bytes, LITERALS[0], 80, ("", false), (PARENT, coded));
        check(&walk(&mut table, &bytes).found[0], 1);
        let mut bytes = std::vec![0xbe];
        check(&walk(&mut table, &bytes).found[0], 1);
        bytes = Vec::new();
        literal(
            &mut bytes,
            LITERALS[0],
            80,
            ("", false),
            (&PARENT.replace('f', "z"), coded),
        );
        assert_eq!(walk(&mut table, &bytes).found[0].state, state::ABSENT);
    }
}

#[test]
fn bad_values_are_malformed() {
    let long = std::format!("{PARENT}-01");
    let later = std::format!("cc{}-01", &PARENT[2..]);
    let zero = PARENT.replace("b7ad6b7169203331", "0000000000000000");
    for (value, expected) in [
        (PARENT, state::VALUE),
        (&long, state::MALFORMED),
        (&later, state::VALUE),
        (&later.replace("-01-01", "-0101"), state::MALFORMED),
        (&zero, state::MALFORMED),
        (&PARENT[..54], state::MALFORMED),
        (&std::format!("{PARENT}z"), state::MALFORMED),
        (&std::format!("{PARENT}0"), state::MALFORMED),
        (&std::format!("z{}", &PARENT[1..]), state::MALFORMED),
        ("", state::MALFORMED),
    ] {
        for coded in [false, true] {
            let mut bytes = Vec::new();
            literal(&mut bytes, (0, 4), 0, ("traceparent", false), (value, coded));
            let block = walk(&mut Table::default(), &bytes);
            assert_eq!(block.found[0].state, expected, "{value} {coded}");
        }
    }
    let mut twice = Vec::new();
    literal(&mut twice, (0, 4), 0, ("traceparent", false), (PARENT, false));
    literal(&mut twice, (0, 4), 0, ("traceparent", false), (PARENT, false));
    assert_eq!(walk(&mut Table::default(), &twice).found[0].state, state::MALFORMED);
}

#[test]
fn sentry_trace_is_read_beside_it() {
    for (value, flags) in [
        (SENTRY.into(), 1),
        (std::format!("{SENTRY}-0"), 0),
        (std::format!("{SENTRY}-1"), 1),
    ] {
        for coded in [false, true] {
            let mut table = Table::EMPTY;
            let mut bytes = Vec::new();
            literal(&mut bytes, LITERALS[0], 0, ("sentry-trace", coded), (&value, coded));
            let block = walk(&mut table, &bytes);
            check(&block.found[usize::from(name::SENTRY)], flags);
            assert_eq!(block.found[0].state, state::ABSENT);
            let mut bytes = std::vec![0xbe];
            literal(&mut bytes, LITERALS[1], 62, ("", false), (&value, coded));
            let twice = walk(&mut table, &bytes);
            assert_eq!(twice.found[1].state, state::MALFORMED);
        }
    }
}

#[test]
fn responses_are_told() {
    assert_eq!(
        walk(&mut Table::default(), &[0x88, 0x5f, 1, b'x']).signs,
        sign::RESPONSE
    );
    assert_eq!(walk(&mut Table::default(), &[0x5f, 1, b'x']).signs, 0);
    assert_eq!(walk(&mut Table::default(), &[0x80]).signs, sign::MALFORMED);
    assert_eq!(
        walk(&mut Table::default(), &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]).signs & sign::MALFORMED,
        sign::MALFORMED
    );
    assert!(!walk(&mut Table::default(), &[0, 11, b't']).whole());
}

proptest::proptest! {
    #[test]
    fn any_bytes_do_no_harm(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        walk(&mut Table::default(), &bytes);
    }
}
