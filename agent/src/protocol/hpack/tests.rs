//! The decoder against RFC 7541 Appendix C, and what it does where the RFC does not reach: late, lossy, bounded.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::{Decoder, Error, encoder, integer};

/// A field as decoded.
pub(super) type Seen = (Option<Vec<u8>>, Option<Vec<u8>>);

pub(super) fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<Seen>, Error> {
    let mut fields = Vec::new();
    decoder
        .decode(block, |f| {
            fields.push((f.name.map(<[u8]>::to_vec), f.value.map(<[u8]>::to_vec)))
        })
        .map(|()| fields)
}

pub(super) fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks(2).map(|c| (c[0] << 4 | c[1]) as u8).collect()
}

fn known(pairs: &[(&str, &str)]) -> Vec<Seen> {
    pairs
        .iter()
        .map(|(n, v)| (Some(n.as_bytes().to_vec()), Some(v.as_bytes().to_vec())))
        .collect()
}

/// Decodes `blocks` of a connection and compares all fields.
fn check(blocks: &[(&str, &[(&str, &str)])]) {
    let mut decoder = Decoder::new(true);
    for (i, (block, fields)) in blocks.iter().enumerate() {
        assert_eq!(decode(&mut decoder, &hex(block)), Ok(known(fields)), "block {i}");
    }
    assert_eq!(decoder.unknown_indexes(), 0);
}

const REQUESTS: [&[(&str, &str)]; 3] = [
    &[
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "www.example.com"),
    ],
    &[
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "www.example.com"),
        ("cache-control", "no-cache"),
    ],
    &[
        (":method", "GET"),
        (":scheme", "https"),
        (":path", "/index.html"),
        (":authority", "www.example.com"),
        ("custom-key", "custom-value"),
    ],
];

const RESPONSES: [&[(&str, &str)]; 3] = [
    &[
        (":status", "302"),
        ("cache-control", "private"),
        ("date", "Mon, 21 Oct 2013 20:13:21 GMT"),
        ("location", "https://www.example.com"),
    ],
    &[
        (":status", "307"),
        ("cache-control", "private"),
        ("date", "Mon, 21 Oct 2013 20:13:21 GMT"),
        ("location", "https://www.example.com"),
    ],
    &[
        (":status", "200"),
        ("cache-control", "private"),
        ("date", "Mon, 21 Oct 2013 20:13:22 GMT"),
        ("location", "https://www.example.com"),
        ("content-encoding", "gzip"),
        ("set-cookie", "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"),
    ],
];

#[test]
fn appendix_c2_representations() {
    check(&[
        (
            "400a637573746f6d2d6b65790d637573746f6d2d686561646572",
            &[("custom-key", "custom-header")],
        ),
        ("040c2f73616d706c652f70617468", &[(":path", "/sample/path")]),
        ("100870617373776f726406736563726574", &[("password", "secret")]),
        ("82", &[(":method", "GET")]),
    ]);
    let mut sensitive = None;
    let block = hex("100870617373776f726406736563726574");
    Decoder::new(true)
        .decode(&block, |f| sensitive = Some(f.never_indexed))
        .unwrap();
    assert_eq!(sensitive, Some(true));
}

#[test]
fn appendix_c3_requests() {
    check(&[
        ("828684410f7777772e6578616d706c652e636f6d", REQUESTS[0]),
        ("828684be58086e6f2d6361636865", REQUESTS[1]),
        (
            "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
            REQUESTS[2],
        ),
    ]);
}

#[test]
fn appendix_c4_requests_in_huffman_code() {
    check(&[
        ("828684418cf1e3c2e5f23a6ba0ab90f4ff", REQUESTS[0]),
        ("828684be5886a8eb10649cbf", REQUESTS[1]),
        ("828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf", REQUESTS[2]),
    ]);
}

#[test]
fn appendix_c5_responses_with_eviction() {
    // The examples' table of 256 bytes is a setting; here a size update says so.
    let first = "3fe101 4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d54\
                 6e1768747470733a2f2f7777772e6578616d706c652e636f6d";
    check(&[
        (first, RESPONSES[0]),
        ("4803333037c1c0bf", RESPONSES[1]),
        (
            "88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f3d4153444a\
                 4b48514b425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b2076657273696f6e3d31",
            RESPONSES[2],
        ),
    ]);
}

#[test]
fn appendix_c6_responses_in_huffman_code() {
    check(&[
        (
            "3fe101 488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8\
                 e9ae82ae43d3",
            RESPONSES[0],
        ),
        ("4883640effc1c0bf", RESPONSES[1]),
        (
            "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960\
                 d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
            RESPONSES[2],
        ),
    ]);
}

/// A literal with incremental indexing.
fn indexed(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = vec![0x40];
    for text in [name, value] {
        integer::write(&mut out, 0, 7, text.len() as u32);
        out.extend_from_slice(text);
    }
    out
}

#[test]
fn a_late_decoder_learns_from_insertions() {
    let mut late = Decoder::new(false);
    // Index 62 is of a time before.
    assert_eq!(
        decode(&mut late, &[0x82, 0xbe]),
        Ok(vec![known(&[(":method", "GET")])[0].clone(), (None, None)])
    );
    assert_eq!(late.unknown_indexes(), 1);
    // A value under a name of that time: inserted, its name unknown.
    let (unnamed, named) = ((None, Some(b"v".to_vec())), known(&[("n", "w")])[0].clone());
    assert_eq!(decode(&mut late, b"\x7e\x01v"), Ok(vec![unnamed.clone()]));
    assert_eq!(decode(&mut late, &indexed(b"n", b"w")), Ok(vec![named.clone()]));
    assert_eq!(
        decode(&mut late, &[0xbe, 0xbf, 0xc0]),
        Ok(vec![named, unnamed, (None, None)])
    );
}

#[test]
fn a_late_decoder_is_sure_again_once_the_table_was_emptied() {
    let mut late = Decoder::new(false);
    assert_eq!(
        decode(&mut late, &[0x20, 0x3f, 0xe1, 0x1f, 0x82]),
        Ok(known(&[(":method", "GET")]))
    );
    assert_eq!(decode(&mut late, &[0xbe]), Err(Error::Index));
    // The error itself means that something was missed.
    assert_eq!(decode(&mut late, &[0xbe]), Ok(vec![(None, None)]));
}

#[test]
fn nothing_from_before_a_loss_is_used() {
    let mut decoder = Decoder::new(true);
    decode(&mut decoder, &indexed(b"n", b"v")).unwrap();
    decoder.lose();
    assert_eq!(decode(&mut decoder, &[0xbe]), Ok(vec![(None, None)]));
    decode(&mut decoder, &indexed(b"n", b"w")).unwrap();
    assert_eq!(
        decode(&mut decoder, &[0xbe, 0xbf]),
        Ok(vec![known(&[("n", "w")])[0].clone(), (None, None)])
    );
}

#[test]
fn a_table_larger_than_we_keep_turns_unknown_at_its_old_end() {
    let mut decoder = Decoder::new(true);
    decoder.set_limit(1 << 20);
    let mut block = Vec::new();
    integer::write(&mut block, 0x20, 5, 1 << 20);
    decode(&mut decoder, &block).unwrap();
    for i in 0..3000 {
        decode(&mut decoder, &indexed(b"number", format!("{i}").as_bytes())).unwrap();
    }
    let mut first = Vec::new();
    integer::write(&mut first, 0x80, 7, 61 + 3000);
    assert_eq!(decode(&mut decoder, &first), Ok(vec![(None, None)]));
    assert_eq!(decode(&mut decoder, &[0xbe]), Ok(known(&[("number", "2999")])));
}

#[test]
fn size_updates_are_bounded_and_come_first() {
    let mut decoder = Decoder::new(true);
    assert_eq!(
        decode(&mut decoder, &[0x3f, 0xe2, 0x1f]),
        Err(Error::SizeUpdate),
        "4097"
    );
    let mut decoder = Decoder::new(true);
    assert_eq!(
        decode(&mut decoder, &[0x82, 0x20]),
        Err(Error::SizeUpdate),
        "behind a field"
    );
    let mut decoder = Decoder::new(true);
    decoder.set_limit(100);
    assert_eq!(
        decode(&mut decoder, &[0x3f, 0x45, 0x3f, 0x46, 0x82]),
        Err(Error::SizeUpdate),
        "100, then 101"
    );
    assert_eq!(
        decode(&mut Decoder::new(false), &[0x3f, 0xe2, 0x1f]),
        Ok(vec![]),
        "unknown limit"
    );
}

#[test]
fn a_block_of_too_much_text_is_refused() {
    let mut block = Vec::new();
    for _ in 0..5 {
        encoder::literal(&mut block, b"n", &vec![b'v'; 16 * 1024]);
    }
    assert_eq!(decode(&mut Decoder::new(true), &block), Err(Error::TooLarge));
}

#[test]
fn octets_that_made_other_decoders_panic() {
    for fresh in [true, false] {
        assert_eq!(decode(&mut Decoder::new(fresh), &[0x3f]), Err(Error::Truncated));
        assert_eq!(decode(&mut Decoder::new(fresh), &[0x80]), Err(Error::Index));
        assert_eq!(decode(&mut Decoder::new(fresh), &[0x40, 0x7f]), Err(Error::Truncated));
        assert_eq!(
            decode(&mut Decoder::new(fresh), &[0x40, 0x7f, 0xff, 0xff, 0xff, 0xff, 0x0f]),
            Err(Error::Integer)
        );
    }
}

#[test]
fn a_redacted_block_reads_back() {
    let mut block = Vec::new();
    encoder::literal(&mut block, b"grpc-status", b"0");
    encoder::unknown(&mut block);
    encoder::unknown_value(&mut block, b"traceparent");
    let fields = vec![known(&[("grpc-status", "0")])[0].clone(), (None, None), (None, None)];
    let mut late = Decoder::new(false);
    for i in 0..3000 {
        assert_eq!(decode(&mut late, &block).as_ref(), Ok(&fields));
        decode(&mut late, &indexed(b"n", format!("{i}").as_bytes())).unwrap();
    }
}
