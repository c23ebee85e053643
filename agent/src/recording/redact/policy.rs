//! Which values a recording may hold. Bias: those that a span shows, or that
//! decide what a span shows, and no other.

use crate::protocol::fields::Allow;

/// In place of a value that is not kept.
pub(super) const REDACTED: &[u8] = b"REDACTED";

/// Fields whose values are kept as they are.
const KEPT: [&[u8]; 12] = [
    b":method",
    b":scheme",
    b":status",
    b":protocol",
    b"content-type",
    b"content-length",
    b"grpc-encoding",
    b"grpc-status",
    b"grpc-timeout",
    b"te",
    b"traceparent",
    b"tracestate",
];

/// The value that is written for a field of a request (or of a response, or of neither).
pub(super) fn value<'a>(name: &[u8], value: &'a [u8], request: Option<bool>, allow: &Allow) -> &'a [u8] {
    let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
    let asked = match request {
        Some(true) => allow.request.iter().any(|known| is(known.as_bytes())),
        Some(false) => allow.response.iter().any(|known| is(known.as_bytes())),
        None => false,
    };
    if asked || is(b"user-agent") || KEPT.iter().any(|known| is(known)) {
        value
    } else if name == b":path" {
        target(value)
    } else if name == b":authority" || is(b"host") {
        authority(value)
    } else {
        REDACTED
    }
}

/// A path or a request target in any form, without its query.
pub(super) fn target(value: &[u8]) -> &[u8] {
    let end = value
        .iter()
        .position(|b| matches!(b, b'?' | b'#'))
        .unwrap_or(value.len());
    value.get(..end).unwrap_or_default()
}

/// An authority without its user information (RFC 3986 §3.2.1).
pub(super) fn authority(value: &[u8]) -> &[u8] {
    let start = value.iter().rposition(|b| *b == b'@').map_or(0, |at| at + 1);
    value.get(start..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_spans_need_is_kept() {
        let allow = Allow {
            request: vec!["x-tenant".into()],
            response: Vec::new(),
        };
        let cases: [(&[u8], &[u8], &[u8]); 8] = [
            (b":path", b"/a/b?token=1", b"/a/b"),
            (b":authority", b"me:pw@shop:80", b"shop:80"),
            (b"Host", b"shop", b"shop"),
            (b"authorization", b"Bearer x", REDACTED),
            (b"cookie", b"a=b", REDACTED),
            (b"grpc-message", b"no such user bob", REDACTED),
            (b"User-Agent", b"curl/8", b"curl/8"),
            (b"X-Tenant", b"7", b"7"),
        ];
        for (name, given, kept) in cases {
            assert_eq!(value(name, given, Some(true), &allow), kept);
        }
        assert_eq!(value(b"x-tenant", b"7", Some(false), &allow), REDACTED);
        assert_eq!(value(b"x-tenant", b"7", None, &allow), REDACTED);
    }
}
