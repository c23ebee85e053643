//! A corpus of secrets is sent through every protocol, in every place of a
//! message that a span is made of; none may come out of any exporter, nor
//! reach a recording.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prost::Message as _;
use tracewire_common::elided::{HEAD_END, Head, flag, frame};
use tracewire_common::event::{Close, Header, Open, Plain as _, direction, flags, kind, role};

use super::{Core, Processes};
use crate::connection::record::Event;
use crate::discover::Resource;
use crate::export::Exporter;
use crate::export::console::{ConsoleExporter, Look};
use crate::export::json::JsonExporter;
use crate::export::otlp;
use crate::metrics::{Metrics, prometheus};
use crate::privacy::corpus::{DRAWN, EXACT, PHRASES};
use crate::privacy::{Policy, Query};
use crate::protocol::fields::Allow;
use crate::recording::redact::Redactor;
use crate::span::Span;
use crate::span::build::Builder;
use crate::span::conventions::Conventions;
use crate::span::route;
use crate::telemetry::Counters;

struct One(Arc<Resource>);

impl Processes for One {
    fn resource(&mut self, _pid: u32) -> Arc<Resource> {
        self.0.clone()
    }
}

type Record = (Header, Vec<u8>);
type Fields = Vec<(String, String)>;

/// One exchange in all its texts.
struct Talk {
    request: Fields,
    response: Fields,
    http1: Option<(String, String)>,
}

fn fields(list: &[(&str, &str)]) -> Fields {
    list.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
}

fn encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// The secret wherever a caller or a service could put it.
fn talks(secret: &str) -> Vec<Talk> {
    let safe = encoded(secret);
    let in_query = format!("a=1&q={safe}&token={safe}");
    let common = [
        ("user-agent", format!("bot/1 ({secret})")),
        ("authorization", format!("Bearer {secret}")),
        ("cookie", format!("sid={secret}")),
        ("x-other", secret.to_owned()),
        ("x-asked", secret.to_owned()),
        ("x-forwarded-host", format!("{secret}.example.com")),
        ("tracestate", format!("a={safe}")),
        (
            "baggage",
            format!("user={safe},sentry-user_id={safe},sentry-transaction={safe}"),
        ),
    ];
    let common: Fields = common.into_iter().map(|(n, v)| (n.to_owned(), v)).collect();
    let mut talks = Vec::new();
    for path in [
        format!("/accounts/{safe}/orders?{in_query}"),
        format!("/v1/{safe}"),
        format!("/a;session={safe}/b"),
        format!("/files/{safe}.pdf#{safe}"),
    ] {
        let mut request = fields(&[
            (":method", "GET"),
            (":scheme", "http"),
            (":path", &path),
            (":authority", &format!("me:{safe}@shop.example:80")),
        ]);
        request.extend(common.clone());
        let response = fields(&[(":status", "500"), ("x-asked", secret), ("set-cookie", secret)]);
        let lines: String = common.iter().map(|(n, v)| format!("{n}: {v}\r\n")).collect();
        talks.push(Talk {
            request,
            response,
            http1: Some((
                format!("GET {path} HTTP/1.1\r\nHost: me:{safe}@shop.example\r\n{lines}\r\n"),
                format!("HTTP/1.1 500 {secret}\r\nContent-Length: 0\r\nSet-Cookie: {secret}\r\n\r\n"),
            )),
        });
    }
    for kind in [
        "application/grpc",
        "application/grpc-web+proto",
        "application/connect+json",
    ] {
        for (path, status) in [
            ("/shop.v1.Cart/Add".to_owned(), "13"),
            (format!("/shop/{safe}"), "12"),
            (format!("/shop/{safe}"), "0"),
        ] {
            let mut request = fields(&[
                (":method", "POST"),
                (":scheme", "http"),
                (":path", &path),
                (":authority", "shop"),
                ("content-type", kind),
            ]);
            request.extend(common.clone());
            let response = fields(&[
                (":status", "200"),
                ("content-type", kind),
                ("grpc-status", status),
                ("grpc-message", &encoded(&format!("no access for {secret}, go away"))),
                ("x-asked", secret),
            ]);
            talks.push(Talk {
                request,
                response,
                http1: None,
            });
        }
    }
    talks
}

fn push(wire: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = payload.len() as u32;
    wire.extend(
        Head {
            length,
            kind,
            flags,
            stream,
        }
        .bytes(),
    );
    wire.extend_from_slice(payload);
}

fn record(header: Header, payload: &[u8]) -> Record {
    let length = payload.len() as u32;
    (Header { length, ..header }, payload.to_vec())
}

/// What the kernel would say of the talks, seen from one side.
fn records(talks: &[Talk], side: u16) -> Vec<Record> {
    let mut records = Vec::new();
    let (asks, answers) = if side == role::CLIENT {
        (direction::SEND, direction::RECEIVE)
    } else {
        (direction::RECEIVE, direction::SEND)
    };
    let mut encoders = [loona_hpack::Encoder::new(), loona_hpack::Encoder::new()];
    let mut time_ns = 1_000;
    let open = |connection: u64, port: u16| {
        Record::from({
            let open = Open {
                family: 2,
                local_port: port,
                peer_port: port + 1,
                role: side,
                ..Open::EMPTY
            };
            let base = Header {
                kind: kind::OPEN,
                flags: flags::ORIGIN,
                connection,
                pid: 7,
                time_ns: 900,
                ..Header::EMPTY
            };
            record(base, open.bytes())
        })
    };
    records.push(open(1, 80));
    for (i, talk) in talks.iter().enumerate() {
        let stream = 2 * i as u32 + 1;
        for (turn, (fields, way)) in [(&talk.request, asks), (&talk.response, answers)]
            .into_iter()
            .enumerate()
        {
            time_ns += 1_000;
            let pairs = fields.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes()));
            let block = encoders[turn].encode(pairs);
            let mut wire = Vec::new();
            push(
                &mut wire,
                frame::HEADERS,
                flag::END_HEADERS | flag::END_STREAM,
                stream,
                &block,
            );
            let base = Header {
                kind: kind::FRAMES,
                flags: flags::ORIGIN,
                direction: way,
                connection: 1,
                pid: 7,
                time_ns,
                ..Header::EMPTY
            };
            records.push(record(base, &wire));
        }
    }
    for (i, (request, response)) in talks.iter().filter_map(|t| t.http1.as_ref()).enumerate() {
        let connection = 100 + i as u64;
        records.push(open(connection, 8000 + 2 * i as u16));
        for (head, way) in [(request, asks), (response, answers)] {
            time_ns += 1_000;
            let mut wire = Vec::new();
            push(&mut wire, frame::HEAD, HEAD_END, 0, head.as_bytes());
            push(&mut wire, frame::BODY_END, 0, 0, &0u64.to_be_bytes());
            let base = Header {
                kind: kind::FRAMES,
                flags: flags::ORIGIN | flags::HTTP1,
                direction: way,
                connection,
                pid: 7,
                time_ns,
                ..Header::EMPTY
            };
            records.push(record(base, &wire));
        }
        let base = Header {
            kind: kind::CLOSE,
            connection,
            pid: 7,
            time_ns,
            ..Header::EMPTY
        };
        records.push(record(base, Close { error: 0 }.bytes()));
    }
    records
}

fn bytes((header, payload): &Record) -> Vec<u8> {
    [header.bytes(), payload].concat()
}

fn spans(records: &[Record], query: Query) -> Vec<Span> {
    let builder = Builder::new(Conventions::default(), route::Config::default()).with_privacy(Policy {
        query,
        ..Policy::default()
    });
    let allow = allow();
    let mut core = Core::new(allow, builder, [7, 7], 0);
    let mut processes = One(Arc::new(Resource {
        id: 1,
        service_name: "shop".into(),
        attributes: Vec::new(),
    }));
    let mut spans = Vec::new();
    for record in records {
        let bytes = bytes(record);
        core.event(Event::parse(&bytes).unwrap(), &mut processes, &mut spans);
    }
    core.stop(u64::MAX / 2, &mut processes, &mut spans);
    spans
}

fn allow() -> Allow {
    Allow {
        request: vec!["x-asked".into(), "authorization".into(), "cookie".into()],
        response: vec!["x-asked".into(), "set-cookie".into()],
    }
}

#[derive(Clone, Default)]
struct Page(Arc<Mutex<Vec<u8>>>);

impl Write for Page {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Everything that any exporter makes of the spans.
fn shown(spans: &[Span]) -> String {
    let page = Page::default();
    let counters = Arc::new(Counters::default());
    let look = Look {
        width: 200,
        ..Look::default()
    };
    let mut exporters: Vec<Box<dyn Exporter>> = vec![
        Box::new(ConsoleExporter::new(page.clone(), look, counters.clone())),
        Box::new(JsonExporter::new(page.clone(), counters)),
    ];
    for exporter in &mut exporters {
        exporter.export(spans);
        exporter.shutdown(Duration::ZERO);
    }
    let metrics = Arc::new(Metrics::new(true));
    metrics.record(spans);
    let numbers = prometheus::text(&metrics, &Arc::default()).into_bytes();
    let all = [
        page.0.lock().unwrap().clone(),
        otlp::request(spans).encode_to_vec(),
        numbers,
    ]
    .concat();
    format!("{}{spans:?}", String::from_utf8_lossy(&all))
}

fn assert_hidden(text: &str, secret: &str, whole: &str) {
    for form in [secret.to_owned(), encoded(secret)] {
        let at = text
            .find(&form)
            .map(|at| text.get(at.saturating_sub(200)..).unwrap_or_default());
        if let Some(place) = at {
            let place: String = place.chars().take(400).collect();
            assert!(at.is_none(), "{secret} of {whole} in …{place}…");
        }
    }
}

#[test]
fn no_secret_comes_out_of_a_span_whatever_the_protocol() {
    for side in [role::SERVER, role::CLIENT] {
        for query in [Query::Off, Query::Redacted] {
            for secret in EXACT {
                let talks = talks(secret);
                let made = spans(&records(&talks, side), query);
                assert_eq!(made.len(), talks.len() + 4, "every exchange is a span");
                assert_hidden(&shown(&made), secret, secret);
            }
        }
    }
}

#[test]
fn what_looks_drawn_comes_out_of_no_path_and_no_message() {
    // Methods of calls and fields that were asked for may look like anything.
    for secret in DRAWN {
        let mut talks = talks(secret);
        for talk in &mut talks {
            talk.request.retain(|(name, value)| {
                !matches!(name.as_str(), "x-asked" | "tracestate" | "x-forwarded-host") && !value.starts_with("/shop/")
            });
            talk.response.retain(|(name, _)| name != "x-asked");
            if let Some((request, _)) = &mut talk.http1 {
                let lines = request.split_inclusive("\r\n");
                *request = lines
                    .filter(|l| !l.starts_with("x-asked") && !l.starts_with("tracestate") && !l.starts_with("x-forw"))
                    .collect();
            }
        }
        for side in [role::SERVER, role::CLIENT] {
            assert_hidden(&shown(&spans(&records(&talks, side), Query::Redacted)), secret, secret);
        }
    }
}

#[test]
fn what_a_word_announces_comes_out_of_no_message() {
    for (phrase, secret) in PHRASES {
        let mut talks = talks("nothing");
        for talk in &mut talks {
            for (name, value) in talk.response.iter_mut().chain(&mut talk.request) {
                match name.as_str() {
                    "grpc-message" => *value = encoded(phrase),
                    "user-agent" | "x-asked" => *value = phrase.replace('\n', " "),
                    _ => {}
                }
            }
        }
        for side in [role::SERVER, role::CLIENT] {
            assert_hidden(&shown(&spans(&records(&talks, side), Query::Off)), secret, phrase);
        }
    }
}

#[test]
fn no_secret_reaches_a_recording_and_its_replay_says_the_same() {
    for secret in EXACT {
        for side in [role::SERVER, role::CLIENT] {
            let raw = records(&talks(secret), side);
            let mut redactor = Redactor::new(allow());
            let mut kept = Vec::new();
            for record in &raw {
                redactor.record(&bytes(record), |header, payload| kept.push((header, payload.to_vec())));
            }
            for (_, payload) in &kept {
                assert_hidden(&String::from_utf8_lossy(payload), secret, secret);
            }
            let name = |spans: Vec<Span>| spans.iter().map(|s| s.name.to_string()).collect::<Vec<_>>();
            assert_eq!(
                name(spans(&raw, Query::Off)),
                name(spans(&kept, Query::Off)),
                "{secret}"
            );
        }
    }
}
