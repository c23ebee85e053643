//! Which values a recording may hold. Bias: those that a span shows, or that
//! decide what a span shows, and no other.

use std::borrow::Cow;

use crate::privacy::Policy;
use crate::protocol::fields::{Allow, CONNECT};
use crate::span::route::private;
use crate::span::url::PATH_LIMIT;

/// In place of a value that is not kept.
pub(super) const REDACTED: &[u8] = b"REDACTED";

/// Fields whose values are kept as they are.
const KEPT: [&[u8]; 13] = [
    b":method",
    b":scheme",
    b":status",
    b":protocol",
    b"content-type",
    b"content-length",
    b"grpc-encoding",
    b"grpc-status",
    b"grpc-timeout",
    b"sentry-trace",
    b"te",
    b"traceparent",
    b"tracestate",
];

/// Whose field it is, as far as that decides what is kept of it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Side {
    /// A request's, a response's, or neither for sure.
    pub(super) request: Option<bool>,
    /// Of a call whose path is a method's name.
    pub(super) rpc: bool,
}

impl Side {
    /// Of the fields of one block: whose it is, and whether it says that it is a call.
    pub(super) fn of<'f>(request: Option<bool>, mut fields: impl Iterator<Item = (&'f [u8], &'f [u8])>) -> Self {
        let rpc = fields.any(|(name, value)| {
            (name.eq_ignore_ascii_case(b"content-type")
                && (value.starts_with(b"application/grpc") || value.starts_with(b"application/connect+")))
                || name.eq_ignore_ascii_case(CONNECT)
        });
        Side { request, rpc }
    }
}

/// The value that is written for a field.
pub(super) fn value<'a>(name: &[u8], value: &'a [u8], side: Side, allow: &Allow) -> Cow<'a, [u8]> {
    let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
    let asked = match side.request {
        Some(true) => allow.request.iter().any(|known| is(known.as_bytes())),
        Some(false) => allow.response.iter().any(|known| is(known.as_bytes())),
        None => false,
    };
    if KEPT.iter().any(|known| is(known)) {
        text(value, |policy, text| policy.exact(text).into_owned())
    } else if asked {
        let name = String::from_utf8_lossy(name);
        text(value, |policy, text| policy.field(&name, &text.into()).to_string())
    } else if is(b"user-agent") {
        text(value, |policy, text| policy.free(text).into_owned())
    } else if name == b":path" {
        path(target(value), side.rpc)
    } else if name == b":authority" || is(b"host") {
        text(authority(value), |policy, text| policy.exact(text).into_owned())
    } else {
        Cow::Borrowed(REDACTED)
    }
}

fn text<'a>(value: &'a [u8], scrub: impl FnOnce(&Policy, &str) -> String) -> Cow<'a, [u8]> {
    let text = String::from_utf8_lossy(value);
    let scrubbed = scrub(&Policy::default(), &text);
    if scrubbed == text {
        Cow::Borrowed(value)
    } else {
        Cow::Owned(scrubbed.into_bytes())
    }
}

/// A path without query, as a span would show it.
pub(super) fn path(value: &[u8], rpc: bool) -> Cow<'_, [u8]> {
    if rpc {
        return text(value, |policy, path| policy.exact(path).into_owned());
    }
    let whole = String::from_utf8_lossy(value);
    let (origin, path) = split(&whole);
    if path.len() > PATH_LIMIT {
        // It is not shown; that it was too long is.
        return Cow::Owned([origin, "/", &"x".repeat(PATH_LIMIT)].concat().into_bytes());
    }
    match private(path) {
        Some(redacted) => Cow::Owned([origin.as_bytes(), redacted.as_bytes()].concat()),
        None => Cow::Borrowed(value),
    }
}

/// An absolute target's scheme and authority, and its path (RFC 9112 §3.2.2).
fn split(target: &str) -> (&str, &str) {
    let Some(scheme) = target.find("://").filter(|_| !target.starts_with('/')) else {
        return ("", target);
    };
    let rest = target.get(scheme + 3..).unwrap_or_default();
    let at = rest.find('/').map_or(target.len(), |at| scheme + 3 + at);
    target.split_at_checked(at).unwrap_or(("", target))
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
        let side = |request| Side { request, rpc: false };
        let allow = Allow {
            request: vec!["x-tenant".into()],
            response: Vec::new(),
        };
        let cases: [(&[u8], &[u8], &[u8]); 10] = [
            (b":path", b"/a/alice@example.com/b?token=1", b"/a/REDACTED/b"),
            (b"user-agent", b"bot (alice@example.com)", b"bot (REDACTED)"),
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
            assert_eq!(&*value(name, given, side(Some(true)), &allow), kept);
        }
        assert_eq!(&*value(b"x-tenant", b"7", side(Some(false)), &allow), REDACTED);
        assert_eq!(&*value(b"x-tenant", b"7", side(None), &allow), REDACTED);
    }
}
