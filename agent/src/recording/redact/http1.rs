//! Heads of HTTP/1 messages, written anew from what a parser reads of them:
//! what it does not read, the file does not hold.

use tracewire_common::elided::BLOCK_LIMIT;

use super::policy::{self, Side};
use crate::privacy::Policy;
use crate::protocol::fields::Allow;
use crate::protocol::framing;
use crate::protocol::http1::{Malformed, parse_request, parse_response};

/// A head that no parser reads, in place of one.
const UNREADABLE: &[u8] = b"\0\r\n\r\n";
/// A field that makes the length of a body doubtful.
const DOUBT: &[u8] = b"Content-Length: ?\r\n";
/// Longest payload of one frame that the head is cut to, bytes.
pub(super) const PIECE: usize = BLOCK_LIMIT as usize;

/// The head as it may be kept, and whether it is a request's, if it could be read.
pub(super) fn head(bytes: &[u8], allow: &Allow) -> (Vec<u8>, Option<bool>) {
    // The test that the core makes, too.
    let is_request = !bytes.trim_ascii_start().starts_with(b"HTTP/");
    let plain = framing::unfold(bytes);
    let result = if is_request {
        request(&plain, allow)
    } else {
        response(&plain, allow)
    };
    match result {
        Ok(mut head) => {
            if framing::is_doubtful(bytes) && !framing::is_doubtful(&head) {
                // Folds are gone: what they made doubtful is doubtful otherwise.
                let start = memchr::memchr(b'\n', &head).map_or(head.len(), |at| at + 1);
                head.splice(start..start, DOUBT.iter().copied());
            }
            (head, Some(is_request))
        }
        Err(Malformed) => (UNREADABLE.to_vec(), None),
    }
}

fn request(bytes: &[u8], allow: &Allow) -> Result<Vec<u8>, Malformed> {
    let head = parse_request(bytes)?;
    let mut out = Vec::with_capacity(bytes.len());
    out.extend_from_slice(Policy::default().exact(head.method).as_bytes());
    out.push(b' ');
    let side = Side::of(Some(true), head.headers());
    target(&mut out, head.method, head.target, side.rpc);
    out.extend_from_slice(if head.minor_version == 0 {
        b" HTTP/1.0\r\n"
    } else {
        b" HTTP/1.1\r\n"
    });
    fields(&mut out, head.headers(), side, head.truncated, allow);
    Ok(out)
}

fn response(bytes: &[u8], allow: &Allow) -> Result<Vec<u8>, Malformed> {
    let head = parse_response(bytes)?;
    let mut out = format!("HTTP/1.1 {:03}\r\n", head.status).into_bytes();
    let side = Side {
        request: Some(false),
        rpc: false,
    };
    fields(&mut out, head.headers(), side, head.truncated, allow);
    Ok(out)
}

/// The request target in any of its forms (RFC 9112 §3.2), without query and user information.
fn target(out: &mut Vec<u8>, method: &str, target: &str, rpc: bool) {
    let kept = policy::target(target.as_bytes());
    let scheme = memchr::memmem::find(kept, b"://").map(|at| kept.split_at(at + 3));
    match scheme {
        _ if method.eq_ignore_ascii_case("CONNECT") => {
            let authority = String::from_utf8_lossy(policy::authority(kept));
            out.extend_from_slice(Policy::default().exact(&authority).as_bytes());
        }
        Some((scheme, rest)) if !scheme.starts_with(b"/") => {
            let end = memchr::memchr(b'/', rest).unwrap_or(rest.len());
            let (authority, path) = rest.split_at(end);
            out.extend_from_slice(scheme);
            out.extend_from_slice(policy::authority(authority));
            out.extend_from_slice(&policy::path(path, rpc));
        }
        _ if kept.is_empty() => out.push(b'/'),
        _ => out.extend_from_slice(&policy::path(kept, rpc)),
    }
}

fn fields<'a>(
    out: &mut Vec<u8>,
    fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    side: Side,
    truncated: bool,
    allow: &Allow,
) {
    for (name, value) in fields {
        out.extend_from_slice(name);
        out.extend_from_slice(b": ");
        out.extend_from_slice(&policy::value(name, value, side, allow));
        out.extend_from_slice(b"\r\n");
    }
    // A head without its empty line reads as truncated again.
    if !truncated {
        out.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redacted(head_bytes: &[u8]) -> String {
        String::from_utf8_lossy(&head(head_bytes, &Allow::default()).0).into_owned()
    }

    #[test]
    fn heads_keep_what_spans_need() {
        assert_eq!(
            redacted(b"GET /a?k=secret HTTP/1.1\r\nHost: me:pw@x\r\nCookie: s\r\nContent-Length: 3\r\n\r\n"),
            "GET /a HTTP/1.1\r\nHost: x\r\nCookie: REDACTED\r\nContent-Length: 3\r\n\r\n"
        );
        assert_eq!(
            redacted(b"GET http://me:pw@x/a@b?q HTTP/1.0\r\n\r\n"),
            "GET http://x/a@b HTTP/1.0\r\n\r\n"
        );
        assert_eq!(
            redacted(b"CONNECT me:pw@x:443 HTTP/1.1\r\n\r\n"),
            "CONNECT x:443 HTTP/1.1\r\n\r\n"
        );
        assert_eq!(
            redacted(b"HTTP/1.1 404 Bob not found\r\nSet-Cookie: s\r\n\r\n"),
            "HTTP/1.1 404\r\nSet-Cookie: REDACTED\r\n\r\n"
        );
    }

    #[test]
    fn folded_fields_are_joined_and_doubt_stays() {
        assert_eq!(
            redacted(b"GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n"),
            "GET / HTTP/1.1\r\nHost: a b\r\n\r\n"
        );
        let folded = redacted(b"POST / HTTP/1.1\r\nContent-Length:\r\n 5\r\n\r\n");
        assert!(framing::is_doubtful(folded.as_bytes()), "{folded}");
        let twice = redacted(b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n");
        assert_eq!(
            twice,
            "POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n"
        );
    }

    #[test]
    fn what_is_odd_stays_as_odd_as_it_was() {
        assert!(parse_request(&head(b"\xff\xfe secret\r\n\r\n", &Allow::default()).0).is_err());
        assert!(parse_response(&head(b"HTTP/9 x\r\n\r\n", &Allow::default()).0).is_err());
        let (cut, _) = head(b"GET / HTTP/1.1\r\nA: 1\r\nB: 2", &Allow::default());
        assert!(parse_request(&cut).is_ok_and(|h| h.truncated && h.headers().count() == 1));
        assert!(parse_response(b"HTTP/1.1 404\r\n\r\n").is_ok());
    }
}
