//! A redacted recording against the records it was made of: the same
//! exchanges at the same times, whatever the records were.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use proptest::prelude::*;
use tracewire_common::elided::{Head, flag, frame};
use tracewire_common::event::{Header, Open, Plain as _, flags, kind};

use super::redact::Redactor;
use crate::connection::record::Event;
use crate::protocol::fields::Allow;
use crate::request::Seen;
use crate::request::assemble::{Assembler, Counts, Output};

const REDACTED: &str = "REDACTED";

type Record = (Header, Vec<u8>);

/// One thing that a peer writes.
#[derive(Clone, Debug)]
enum Step {
    /// A header block of fields by number, cut to a HEADERS and some CONTINUATIONs.
    Block {
        fields: Vec<usize>,
        end: bool,
        cuts: usize,
        pad: bool,
        promise: bool,
    },
    /// A header block of any bytes.
    Odd { bytes: Vec<u8>, end: bool },
    /// A frame as it is.
    Frame { kind: u8, flags: u8, payload: Vec<u8> },
    /// An HTTP/1 head by number, cut in two.
    Head { which: usize, cut: usize, flags: u8 },
    /// Bytes that are no frame.
    Noise,
}

const FIELDS: [(&str, &str); 24] = [
    (":method", "POST"),
    (":method", "GET"),
    (":path", "/shop.Cart/Add"),
    (":path", "/items/7?token=hunter2"),
    (":authority", "shop:50051"),
    (":authority", "bob:hunter2@shop"),
    (":scheme", "http"),
    (":status", "200"),
    (":status", "404"),
    ("content-type", "application/grpc"),
    ("content-length", "12"),
    ("te", "trailers"),
    ("user-agent", "grpc-go/1.71"),
    ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ("tracestate", "a=1"),
    ("grpc-timeout", "1S"),
    ("grpc-status", "0"),
    ("grpc-status", "5"),
    ("grpc-message", "no user hunter2"),
    ("authorization", "Bearer hunter2"),
    ("x-forwarded-for", "10.9.8.7"),
    ("x-keep", "kept"),
    ("x-other", "hunter2"),
    ("connect-protocol-version", "1"),
];

const HEADS: [&str; 12] = [
    "GET /a?token=hunter2 HTTP/1.1\r\nHost: x\r\nCookie: hunter2\r\n\r\n",
    "POST http://bob:hunter2@x/a HTTP/1.0\r\nContent-Length: 3\r\nX-Keep: kept\r\n\r\n",
    "CONNECT x:443 HTTP/1.1\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n",
    "HTTP/1.1 100 Continue\r\n\r\n",
    "HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\n\r\n",
    "HTTP/1.1 404 hunter2\r\nGrpc-Message: hunter2\r\n\r\n",
    "\r\nGET /b HTTP/1.1\r\nA: 1\r\nB: 2",
    "POST /c HTTP/1.1\r\nX-Keep: a\r\n b\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
    "PUT /d HTTP/1.1\r\nTransfer-Encoding:\r\n chunked\r\n\r\n",
    "HTTP/1.1 200 OK\r\nX-Other: hunter2\r\n hunter2\r\nContent-Length: 3\r\n 4\r\n\r\n",
    "\u{1}\u{2} nonsense hunter2\r\n\r\n",
];

fn step() -> impl Strategy<Value = Step> {
    let block = (
        prop::collection::vec(0..FIELDS.len(), 0..8),
        any::<bool>(),
        0..3_usize,
        any::<bool>(),
        0..12_u8,
    );
    let block = block.prop_map(|(fields, end, cuts, pad, promise)| Step::Block {
        fields,
        end,
        cuts,
        pad,
        promise: promise == 11,
    });
    let request = Just(Step::Block {
        fields: vec![0, 6, 2, 4, 9, 13, 22],
        end: false,
        cuts: 0,
        pad: false,
        promise: false,
    });
    let trailers = Just(Step::Block {
        fields: vec![16, 18],
        end: true,
        cuts: 0,
        pad: false,
        promise: false,
    });
    let odd =
        (prop::collection::vec(any::<u8>(), 0..12), any::<bool>()).prop_map(|(bytes, end)| Step::Odd { bytes, end });
    let kinds = prop_oneof![
        Just(frame::DATA),
        Just(frame::MESSAGE),
        Just(frame::RST_STREAM),
        Just(frame::GOAWAY),
        Just(frame::SETTINGS),
        Just(frame::TRUNCATED),
        Just(frame::CONTINUATION),
        Just(frame::HEADERS),
        Just(frame::PUSH_PROMISE),
        Just(frame::BODY_END),
        Just(frame::TUNNEL),
    ];
    let flags = prop_oneof![Just(0_u8), Just(4), Just(5), Just(13), any::<u8>()];
    let any_frame = (kinds, flags, prop::collection::vec(any::<u8>(), 0..14))
        .prop_map(|(kind, flags, payload)| Step::Frame { kind, flags, payload });
    let trailer = prop_oneof![
        Just("grpc-status:5\r\ngrpc-message:hunter2\r\n"),
        Just(":::\nx"),
        Just("grpc-status: 0")
    ]
    .prop_map(|text| Step::Frame {
        kind: frame::WEB_TRAILER,
        flags: 0,
        payload: text.as_bytes().to_vec(),
    });
    let head = (
        0..HEADS.len(),
        0..40_usize,
        prop_oneof![4 => Just(1_u8), 1 => Just(3_u8)],
    )
        .prop_map(|(which, cut, flags)| Step::Head { which, cut, flags });
    prop_oneof![
        6 => block,
        6 => request,
        4 => trailers,
        2 => odd,
        4 => any_frame,
        1 => trailer,
        4 => head,
        1 => Just(Step::Noise),
    ]
}

fn push(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend(
        Head {
            length: payload.len() as u32,
            kind,
            flags,
            stream,
        }
        .bytes(),
    );
    out.extend(payload);
}

fn write(step: &Step, stream: u32, encoder: &mut loona_hpack::Encoder<'_>, out: &mut Vec<u8>) {
    match step {
        Step::Block {
            fields,
            end,
            cuts,
            pad,
            promise,
        } => {
            let block = encoder.encode(
                fields
                    .iter()
                    .map(|i| (FIELDS[*i].0.as_bytes(), FIELDS[*i].1.as_bytes())),
            );
            let end = if *end { flag::END_STREAM } else { 0 };
            let mut pieces: Vec<&[u8]> = block.chunks(block.len() / (cuts + 1) + 1).collect();
            if pieces.is_empty() {
                pieces.push(&[]);
            }
            let last = pieces.len() - 1;
            for (i, piece) in pieces.into_iter().enumerate() {
                let whole = if i == last { flag::END_HEADERS } else { 0 };
                let mut payload = piece.to_vec();
                let mut flags = whole;
                if i == 0 {
                    flags |= end;
                    if *promise {
                        payload.splice(0..0, [0, 0, 0, 2]);
                    }
                    if *pad {
                        flags |= flag::PADDED;
                        payload.insert(0, 2);
                        payload.extend([0, 0]);
                    }
                }
                let first = if *promise { frame::PUSH_PROMISE } else { frame::HEADERS };
                push(
                    out,
                    if i == 0 { first } else { frame::CONTINUATION },
                    flags,
                    stream,
                    &payload,
                );
            }
        }
        Step::Odd { bytes, end } => {
            let flags = flag::END_HEADERS | if *end { flag::END_STREAM } else { 0 };
            push(out, frame::HEADERS, flags, stream, bytes);
        }
        Step::Frame { kind, flags, payload } => push(out, *kind, *flags, stream, payload),
        Step::Head { which, cut, flags } => {
            let bytes = HEADS[*which].as_bytes();
            let (first, rest) = bytes.split_at((*cut).min(bytes.len()));
            push(out, frame::HEAD, 0, 0, first);
            push(out, frame::HEAD, *flags, 0, rest);
        }
        Step::Noise => out.extend([0xff; 12]),
    }
}

#[derive(Clone, Debug)]
struct Turn {
    send: bool,
    stream: u32,
    step: Step,
    /// Where the bytes are cut to two records.
    cut: usize,
    gap: bool,
    end: bool,
}

fn turn() -> impl Strategy<Value = Turn> {
    let rare = |n: u32| (0..n).prop_map(move |v| v == n - 1);
    (any::<bool>(), 0..3_u32, step(), 0..60_usize, rare(20), rare(30)).prop_map(
        |(send, stream, step, cut, gap, end)| Turn {
            send,
            stream: 2 * stream + 1,
            step,
            cut,
            gap,
            end,
        },
    )
}

fn records(turns: &[Turn], origin: bool) -> Vec<Record> {
    let origin = if origin { flags::ORIGIN } else { 0 };
    let base = Header {
        connection: 9,
        pid: 3,
        ..Header::EMPTY
    };
    let open = Open {
        family: 2,
        local_port: 1,
        peer_port: 2,
        socket: 0xffff_8000_1234,
        ..Open::EMPTY
    };
    let mut records = vec![(
        Header {
            kind: kind::OPEN,
            flags: origin,
            ..base
        },
        open.bytes().to_vec(),
    )];
    let mut encoders = [loona_hpack::Encoder::new(), loona_hpack::Encoder::new()];
    for (i, turn) in turns.iter().enumerate() {
        let mut bytes = Vec::new();
        write(
            &turn.step,
            turn.stream,
            &mut encoders[usize::from(turn.send)],
            &mut bytes,
        );
        let (first, rest) = bytes.split_at(turn.cut.min(bytes.len()));
        let header = Header {
            kind: kind::FRAMES,
            direction: turn.send.into(),
            time_ns: 100 * i as u64,
            ..base
        };
        let gap = if turn.gap { flags::GAP } else { 0 };
        let end = if turn.end { flags::END } else { 0 };
        records.push((
            Header {
                flags: origin | gap,
                ..header
            },
            first.to_vec(),
        ));
        records.push((
            Header {
                flags: origin | end,
                time_ns: header.time_ns + 50,
                ..header
            },
            rest.to_vec(),
        ));
    }
    records.push((
        Header {
            kind: kind::CLOSE,
            time_ns: 100_000,
            ..base
        },
        0_u32.to_ne_bytes().to_vec(),
    ));
    records
}

fn bytes((header, payload): &Record) -> Vec<u8> {
    let header = Header {
        length: payload.len() as u32,
        ..*header
    };
    [header.bytes(), payload].concat()
}

fn redacted(records: &[Record]) -> Vec<Record> {
    let mut redactor = Redactor::new(allow());
    let mut out = Vec::new();
    for record in records {
        redactor.record(&bytes(record), |header, payload| out.push((header, payload.to_vec())));
    }
    out
}

fn allow() -> Allow {
    Allow {
        request: vec!["x-keep".into(), "x-other".into()],
        response: vec!["grpc-message".into()],
    }
}

/// What the core makes of the records, each value that a recording does not hold replaced.
fn made(records: &[Record]) -> (Vec<String>, Counts) {
    // Values are asked for that the recording was not to keep, so that they show.
    let mut assembler = Assembler::new(Allow {
        request: vec!["x-keep".into()],
        response: Vec::new(),
    });
    let mut out = Vec::new();
    for record in records {
        assembler.event(Event::parse(&bytes(record)).unwrap(), &mut out);
    }
    let seen = out.into_iter().filter_map(|mut output| match output {
        Output::Ended(mut exchange) => {
            let cut = |value: &mut Seen<Arc<str>>, f: fn(&str) -> &str| {
                if let Seen::Value(text) = value {
                    *value = Seen::Value(Arc::from(f(text)));
                }
            };
            cut(&mut exchange.request.path, |path| {
                path.split(['?', '#']).next().unwrap()
            });
            cut(&mut exchange.request.authority, |host| host.rsplit('@').next().unwrap());
            cut(&mut exchange.response.grpc_message, |_| REDACTED);
            exchange.request.forwarded_for = None;
            exchange.request.forwarded_host = None;
            Some(format!("{exchange:?}"))
        }
        Output::Opened { .. } => None,
        Output::Begun { ref mut path, .. } => {
            if let Seen::Value(text) = path {
                *path = Seen::Value(Arc::from(text.split(['?', '#']).next().unwrap()));
            }
            Some(format!("{output:?}"))
        }
        other => Some(format!("{other:?}")),
    });
    (seen.collect(), assembler.counts())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn a_redacted_recording_makes_the_same_exchanges(
        turns in prop::collection::vec(turn(), 1..30),
        origin in any::<bool>(),
    ) {
        let raw = records(&turns, origin);
        let kept = redacted(&raw);
        prop_assert_eq!(made(&raw), made(&kept));
    }

    #[test]
    fn secrets_do_not_reach_the_file(turns in prop::collection::vec(turn(), 1..30), origin in any::<bool>()) {
        let mut redactor = Redactor::new(Allow::default());
        for record in records(&turns, origin) {
            redactor.record(&bytes(&record), |_, payload| {
                let found = memchr::memmem::find(payload, b"hunter2");
                assert!(found.is_none(), "{}", String::from_utf8_lossy(payload));
            });
        }
    }
}

#[test]
fn a_block_of_a_thousand_indexes_stays_readable() {
    let mut encoder = loona_hpack::Encoder::new();
    let mut wire = Vec::new();
    let value = "v".repeat(3000);
    let fields: Vec<(&[u8], &[u8])> = [(&b":method"[..], &b"POST"[..])]
        .into_iter()
        .chain((0..1000).map(|_| (&b"tracestate"[..], value.as_bytes())))
        .collect();
    push(&mut wire, frame::HEADERS, flag::END_HEADERS, 1, &encoder.encode(fields));
    let base = Header {
        connection: 9,
        pid: 3,
        ..Header::EMPTY
    };
    let records = [
        (
            Header {
                kind: kind::OPEN,
                flags: flags::ORIGIN,
                ..base
            },
            Open::EMPTY.bytes().to_vec(),
        ),
        (
            Header {
                kind: kind::FRAMES,
                flags: flags::ORIGIN,
                direction: 1,
                ..base
            },
            wire,
        ),
    ];
    let kept = redacted(&records);
    assert!(kept[1].1.len() < 70_000, "{}", kept[1].1.len());
    let (seen, counts) = made(&kept);
    assert_eq!((seen.len(), counts.malformed), (1, 0));
}

#[test]
fn a_block_of_ten_thousand_indexes_costs_little() {
    let names = ["tracestate", "x-keep", "x-y"];
    for name in names {
        let mut encoder = loona_hpack::Encoder::new();
        let value = "v".repeat(3000);
        let repeated = (0..10_000).map(|_| (name.as_bytes(), value.as_bytes()));
        let fields: Vec<(&[u8], &[u8])> = repeated.chain([(&b":method"[..], &b"POST"[..])]).collect();
        let mut wire = Vec::new();
        push(&mut wire, frame::HEADERS, flag::END_HEADERS, 1, &encoder.encode(fields));
        let base = Header {
            connection: 9,
            pid: 3,
            ..Header::EMPTY
        };
        let open = Header {
            kind: kind::OPEN,
            ..base
        };
        let frames = Header {
            kind: kind::FRAMES,
            flags: flags::ORIGIN,
            direction: 1,
            ..base
        };
        let (seen, _) = made(&[(open, Open::EMPTY.bytes().to_vec()), (frames, wire)]);
        let longest = seen.iter().map(String::len).max().unwrap_or_default();
        assert!(longest < 1_000_000, "{name}: {longest}");
    }
}

#[test]
fn addresses_of_the_kernel_are_not_written() {
    let records = records(&[], true);
    let kept = redacted(&records);
    let open = Open::read(&kept[0].1).unwrap();
    assert_ne!(open.socket, 0xffff_8000_1234);
    assert_ne!(open.socket, 0);
    assert_eq!(open.peer_socket, 0);
    assert_eq!((open.local_port, open.peer_port), (1, 2));
}
