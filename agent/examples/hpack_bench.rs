//! Prints what decoding one gRPC header block costs, ns: `cargo run --release --example hpack_bench`.
//! A rough figure to compare changes by on one machine; nothing asserts it.

use std::hint::black_box;
use std::time::Instant;

use tracewire::protocol::hpack::Decoder;

const ROUNDS: u32 = 200_000;

/// The fields that a gRPC client sends; the last value changes with each call.
const FIELDS: [(&str, &str); 10] = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/helloworld.Greeter/SayHello"),
    (":authority", "greeter.default.svc.cluster.local:50051"),
    ("content-type", "application/grpc"),
    ("user-agent", "grpc-go/1.76.0"),
    ("te", "trailers"),
    ("grpc-accept-encoding", "gzip"),
    ("grpc-timeout", "999m"),
    ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
];

/// `traceparent`'s value in the Huffman code.
const TRACEPARENT: [u8; 39] = [
    0x00, 0x16, 0x00, 0xe5, 0x75, 0xc6, 0xc2, 0xf8, 0x5c, 0x24, 0x8d, 0x33, 0x24, 0x8f, 0x34, 0xd3, 0xc5, 0x8c, 0x41,
    0x09, 0x1e, 0x03, 0x21, 0x7c, 0x8b, 0x46, 0xe8, 0xe4, 0x72, 0x37, 0x42, 0xe3, 0xe2, 0x03, 0x2c, 0xb2, 0x15, 0x80,
    0x1f,
];

fn main() {
    let insert: Vec<u8> = FIELDS.iter().flat_map(|(n, v)| literal(0x40, n, v)).collect();
    // 83 86 are static; the insertions above stand at 62 (the newest) to 71.
    let indexed = [0x83, 0x86, 0xc5, 0xc4, 0xc3, 0xc2, 0xc1, 0xc0, 0xbf, 0xbe];
    let mut fresh = indexed[..9].to_vec();
    fresh.extend(literal(0x00, FIELDS[9].0, FIELDS[9].1));
    let mut inserting = indexed[..9].to_vec();
    inserting.extend(literal(0x40, FIELDS[9].0, FIELDS[9].1));
    let mut coded = vec![0x0f, 0x2f, 0x80 | TRACEPARENT.len() as u8];
    coded.extend(TRACEPARENT);

    run("10 fields, all indexed", &insert, &indexed);
    run("9 indexed, traceparent as it is", &insert, &fresh);
    run("9 indexed, traceparent inserted", &insert, &inserting);
    run("traceparent alone in Huffman code", &insert, &coded);
    run("10 fields, all literal", &insert, &insert);
}

fn literal(high: u8, name: &str, value: &str) -> Vec<u8> {
    [
        &[high, name.len() as u8],
        name.as_bytes(),
        &[value.len() as u8],
        value.as_bytes(),
    ]
    .concat()
}

fn run(what: &str, first: &[u8], block: &[u8]) {
    let mut decoder = Decoder::new(true);
    let mut octets = 0;
    let mut ok = decoder.decode(first, |_| {}).is_ok();
    let start = Instant::now();
    for _ in 0..ROUNDS {
        ok &= decoder
            .decode(black_box(block), |field| {
                octets += field.name.map_or(0, <[u8]>::len) + field.value.map_or(0, <[u8]>::len);
            })
            .is_ok();
    }
    let ns = start.elapsed().as_nanos() / u128::from(ROUNDS);
    black_box(octets);
    println!("{ns:6} ns  {what}{}", if ok { "" } else { "  (malformed!)" });
}
