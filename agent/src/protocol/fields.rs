//! Header fields, sorted: those that spans need are kept, all others are
//! dropped where they are read.
//!
//! Bias: privacy. A value that nobody asked for is never copied.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::baggage;
use super::framing::digits;
use crate::request::{RequestHead, ResponseHead, Seen};

/// Fields that are kept beside those that spans need, by lower-case name.
#[derive(Clone, Debug, Default)]
pub struct Allow {
    /// Of requests.
    pub request: Vec<Arc<str>>,
    /// Of responses and their trailers.
    pub response: Vec<Arc<str>>,
}

/// Strings that come again and again, each kept once. They come from the wire, so the hash is
/// seeded: nobody outside can choose strings that fall together.
#[derive(Default)]
pub struct Interner {
    strings: HashMap<Arc<str>, (), foldhash::fast::RandomState>,
}

/// Strings kept; when there are more, the interner begins anew.
const STRINGS: usize = 4096;
/// Longest `tracestate` that may have to be carried on (W3C Trace Context §3.3.1.5), bytes.
const TRACE_STATE: usize = 512;
/// Captured fields of one head.
const CAPTURED: usize = 64;
/// Longest captured value, bytes; longer ones are cut, as OpenTelemetry cuts attributes.
const CAPTURED_VALUE: usize = 4096;
/// Captured values of one head together, bytes; an HPACK block of a few bytes can name a long one many times.
const CAPTURED_BYTES: usize = 32 * 1024;
/// Longest string worth keeping, bytes.
const STRING: usize = 256;

impl Interner {
    /// The string, shared if it was seen before; bytes that are no UTF-8 are replaced.
    pub fn get(&mut self, bytes: &[u8]) -> Arc<str> {
        let text = String::from_utf8_lossy(bytes);
        if let Some((known, ())) = self.strings.get_key_value(&*text) {
            return known.clone();
        }
        let new: Arc<str> = Arc::from(&*text);
        if new.len() <= STRING {
            if self.strings.len() >= STRINGS {
                self.strings.clear();
            }
            self.strings.insert(new.clone(), ());
        }
        new
    }

    /// The string, not kept: for values that hardly come twice.
    pub fn once(bytes: &[u8]) -> Arc<str> {
        Arc::from(&*String::from_utf8_lossy(bytes))
    }
}

fn seen(value: Option<&[u8]>, interner: &mut Interner) -> Seen<Arc<str>> {
    value.map_or(Seen::Unknown, |v| Seen::Value(interner.get(v)))
}

fn unless_seen<T>(field: &mut Seen<T>) {
    if matches!(field, Seen::Absent) {
        *field = Seen::Unknown;
    }
}

fn number<T: TryFrom<u64>>(value: &[u8]) -> Option<T> {
    digits(value.trim_ascii())?.try_into().ok()
}

/// `content-length`: a list of equal numbers is one (RFC 9112 §6.3), others are none.
fn length(value: Option<&[u8]>, lengths: &mut u32, into: &mut Option<u64>) {
    let mut list = value.unwrap_or_default().split(|b| *b == b',').map(number::<u64>);
    let first = list.next().flatten();
    let one = first.filter(|_| list.all(|other| other == first));
    *into = if *lengths == 0 || *into == one { one } else { None };
    *lengths += 1;
}

fn equal(name: &[u8], known: &str) -> bool {
    name.eq_ignore_ascii_case(known.as_bytes())
}

fn capture(
    list: &[Arc<str>],
    name: &[u8],
    value: Option<&[u8]>,
    into: &mut Vec<(Arc<str>, Arc<str>)>,
    interner: &mut Interner,
) {
    if let Some(key) = list.iter().find(|k| equal(name, k))
        && let Some(value) = value
        && into.len() < CAPTURED
    {
        let value = cut(value, CAPTURED_VALUE);
        let before: usize = into.iter().map(|(_, value)| value.len()).sum();
        if before + value.len() <= CAPTURED_BYTES {
            into.push((key.clone(), interner.get(value)));
        }
    }
}

/// The first `limit` bytes, less the part of a character at their end.
fn cut(value: &[u8], limit: usize) -> &[u8] {
    let Some(next) = value.get(limit) else { return value };
    let mut end = limit;
    if next & 0xc0 == 0x80 {
        while end > limit.saturating_sub(4) && value.get(end).is_some_and(|b| b & 0xc0 == 0x80) {
            end -= 1;
        }
    }
    value.get(..end).unwrap_or(value)
}

/// The fields of a request.
#[derive(Default)]
pub struct Request {
    head: RequestHead,
    unnamed: bool,
    forwarded: bool,
    /// Content-Lengths so far.
    lengths: u32,
}

impl Request {
    /// The request line of HTTP/1. In absolute form the target's authority counts (RFC 9112 §3.2.2).
    pub fn line(&mut self, method: &str, target: &str, interner: &mut Interner) {
        self.head.method = Seen::Value(interner.get(method.as_bytes()));
        let mut path = target;
        if method.eq_ignore_ascii_case("CONNECT") {
            self.head.authority = Seen::Value(interner.get(target.as_bytes()));
            return;
        }
        if let Some((scheme, rest)) = target.split_once("://")
            && !scheme.contains('/')
        {
            let end = rest.find(['/', '?']).unwrap_or(rest.len());
            let (authority, after) = rest.split_at(end);
            let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
            self.head.scheme = Seen::Value(interner.get(scheme.as_bytes()));
            self.head.authority = Seen::Value(interner.get(authority.as_bytes()));
            path = if after.is_empty() { "/" } else { after };
        }
        self.head.path = Seen::Value(interner.get(path.as_bytes()));
    }

    /// One field; None is unknown.
    pub fn field(&mut self, name: Option<&[u8]>, value: Option<&[u8]>, allow: &Allow, interner: &mut Interner) {
        let Some(name) = name else {
            self.unnamed = true;
            return;
        };
        let head = &mut self.head;
        match name.len() {
            4 if equal(name, "host") => {
                if matches!(head.authority, Seen::Absent) {
                    head.authority = seen(value, interner);
                }
            }
            5 if name == b":path" => head.path = seen(value, interner),
            7 if name == b":method" => head.method = seen(value, interner),
            7 if name == b":scheme" => head.scheme = seen(value, interner),
            10 if name == b":authority" => head.authority = seen(value, interner),
            7 if equal(name, "baggage") => {
                if let Some(value) = value {
                    head.sentry_baggage = baggage::sentry(value, head.sentry_baggage.as_ref());
                }
            }
            10 if equal(name, "user-agent") => head.user_agent = seen(value, interner),
            10 if equal(name, "tracestate") => {
                head.tracestate = match (&head.tracestate, value) {
                    // Too long to be carried on, whatever follows.
                    (Seen::Value(before), Some(_)) if before.trim().len() > TRACE_STATE => Seen::Value(before.clone()),
                    (Seen::Value(before), Some(more)) => {
                        Seen::Value(Arc::from(format!("{before},{}", String::from_utf8_lossy(more))))
                    }
                    (_, Some(first)) => Seen::Value(Interner::once(first)),
                    (_, None) => Seen::Unknown,
                };
            }
            11 if equal(name, "traceparent") => {
                head.traceparent = match (&head.traceparent, value) {
                    // Two of them are none (W3C Trace Context §3.2.1).
                    (Seen::Value(_), _) => Seen::Value(Arc::from("")),
                    (_, Some(v)) => Seen::Value(Interner::once(v)),
                    (_, None) => Seen::Unknown,
                };
            }
            12 if equal(name, "sentry-trace") => {
                head.sentry_trace = value.map_or(Seen::Unknown, |v| Seen::Value(Interner::once(v)));
            }
            12 if equal(name, "content-type") => head.content_type = seen(value, interner),
            12 if equal(name, "grpc-timeout") => {
                head.grpc_timeout = value.map_or(Seen::Unknown, |v| Seen::Value(Interner::once(v)));
            }
            14 if equal(name, "content-length") => length(value, &mut self.lengths, &mut head.content_length),
            9 if equal(name, "forwarded") => {
                if let Some(value) = value.and_then(|v| std::str::from_utf8(v).ok()) {
                    self.forwarded = true;
                    forwarded(value, head, interner);
                }
            }
            15 if equal(name, "x-forwarded-for") && !self.forwarded => {
                let first = value
                    .and_then(|v| std::str::from_utf8(v).ok())
                    .and_then(|v| v.split(',').next());
                head.forwarded_for = first.and_then(node);
            }
            16 if equal(name, "x-forwarded-host") && !self.forwarded => {
                let first = value.and_then(|v| v.split(|b| *b == b',').next());
                head.forwarded_host = first.map(|v| interner.get(v.trim_ascii()));
            }
            24 if equal(name, "connect-protocol-version") => self.connect(interner),
            _ => {}
        }
        capture(&allow.request, name, value, &mut self.head.captured, interner);
    }

    /// ConnectRPC's unary calls have ordinary content types; this header marks them.
    fn connect(&mut self, interner: &mut Interner) {
        if !matches!(self.head.content_type.value(), Some(t) if t.starts_with("application/connect+")) {
            self.head.captured.push((interner.get(CONNECT), interner.get(b"1")));
        }
    }

    /// The head; `damaged`: fields may be missing.
    pub fn finish(mut self, damaged: bool) -> RequestHead {
        if self.unnamed || damaged {
            let head = &mut self.head;
            unless_seen(&mut head.method);
            unless_seen(&mut head.path);
            unless_seen(&mut head.authority);
            unless_seen(&mut head.scheme);
            unless_seen(&mut head.content_type);
            unless_seen(&mut head.user_agent);
            unless_seen(&mut head.traceparent);
            unless_seen(&mut head.tracestate);
            unless_seen(&mut head.sentry_trace);
            unless_seen(&mut head.grpc_timeout);
        }
        self.head
    }
}

/// Marker of a ConnectRPC unary call among the captured fields.
pub const CONNECT: &[u8] = b"connect-protocol-version";

/// First element of `Forwarded` (RFC 7239 §4).
fn forwarded(value: &str, head: &mut RequestHead, interner: &mut Interner) {
    let Some(first) = value.split(',').next() else { return };
    for pair in first.split(';') {
        let Some((name, value)) = pair.split_once('=') else {
            continue;
        };
        let value = value.trim().trim_matches('"');
        match name.trim().to_ascii_lowercase().as_str() {
            "for" => head.forwarded_for = node(value),
            "host" => head.forwarded_host = Some(interner.get(value.as_bytes())),
            _ => {}
        }
    }
}

/// An address with or without port and brackets (RFC 7239 §6).
fn node(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    text.parse()
        .ok()
        .or_else(|| text.parse::<SocketAddr>().ok().map(|a| a.ip()))
        .or_else(|| text.trim_start_matches('[').trim_end_matches(']').parse().ok())
}

/// The fields of a response or of its trailers.
#[derive(Default)]
pub struct Response {
    head: ResponseHead,
    unnamed: bool,
    /// Content-Lengths so far.
    lengths: u32,
}

impl Response {
    /// The status line of HTTP/1.
    pub fn status(&mut self, code: u16) {
        self.head.status = Seen::Value(code);
    }

    /// One field; None is unknown.
    pub fn field(&mut self, name: Option<&[u8]>, value: Option<&[u8]>, allow: &Allow, interner: &mut Interner) {
        let Some(name) = name else {
            self.unnamed = true;
            return;
        };
        let head = &mut self.head;
        match name.len() {
            7 if name == b":status" => {
                head.status = value.map_or(Seen::Unknown, |v| number(v).map_or(Seen::Unknown, Seen::Value));
            }
            11 if equal(name, "grpc-status") => {
                head.grpc_status = value.map_or(Seen::Unknown, |v| number(v).map_or(Seen::Unknown, Seen::Value));
            }
            12 if equal(name, "grpc-message") => head.grpc_message = seen(value, interner),
            12 if equal(name, "content-type") => head.content_type = seen(value, interner),
            14 if equal(name, "content-length") => length(value, &mut self.lengths, &mut head.content_length),
            _ => {}
        }
        capture(&allow.response, name, value, &mut head.captured, interner);
    }

    /// Joins what was read to what earlier blocks of the same response said;
    /// `damaged`: fields may be missing.
    pub fn finish(self, damaged: bool, into: &mut ResponseHead) {
        let unknown = self.unnamed || damaged;
        join(&mut into.status, self.head.status, unknown);
        join(&mut into.content_type, self.head.content_type, unknown);
        join(&mut into.grpc_status, self.head.grpc_status, unknown);
        join(&mut into.grpc_message, self.head.grpc_message, unknown);
        into.content_length = self.head.content_length.or(into.content_length);
        into.captured.extend(self.head.captured);
    }
}

fn join<T>(into: &mut Seen<T>, new: Seen<T>, unknown: bool) {
    match new {
        Seen::Absent if unknown => unless_seen(into),
        Seen::Absent => {}
        // A value that was read is not made unknown by a later block.
        Seen::Unknown => unless_seen(into),
        new => *into = new,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn request(fields: &[(&str, &[u8])], allow: &Allow) -> RequestHead {
        let (mut request, mut interner) = (Request::default(), Interner::default());
        for (name, value) in fields {
            request.field(Some(name.as_bytes()), Some(value), allow, &mut interner);
        }
        request.finish(false)
    }

    #[test]
    fn a_length_that_is_said_in_two_ways_is_none() {
        let length = |values: &[&str]| {
            let fields: Vec<(&str, &[u8])> = values.iter().map(|v| ("content-length", v.as_bytes())).collect();
            request(&fields, &Allow::default()).content_length
        };
        assert_eq!(length(&["5"]), Some(5));
        assert_eq!(length(&["5", "5"]), Some(5));
        assert_eq!(length(&["5, 5"]), Some(5));
        for none in [
            &["5", "6"][..],
            &["5, 6"],
            &["5", "6", "5"],
            &["+5"],
            &["x", "5"],
            &[""],
        ] {
            assert_eq!(length(none), None, "{none:?}");
        }
    }

    #[test]
    fn captured_values_are_bounded() {
        let allow = Allow {
            request: vec!["x-long".into()],
            response: Vec::new(),
        };
        let long = "é".repeat(3000);
        let fields = vec![("x-long", long.as_bytes()); 100];
        let captured = request(&fields, &allow).captured;
        assert!(
            captured
                .iter()
                .all(|(_, v)| v.len() <= CAPTURED_VALUE && long.starts_with(&**v))
        );
        assert!(captured.iter().map(|(_, v)| v.len()).sum::<usize>() <= CAPTURED_BYTES);
        assert_eq!(cut("aé".as_bytes(), 2), b"a");
        assert_eq!(cut("aéb".as_bytes(), 3), "aé".as_bytes());
    }
}
