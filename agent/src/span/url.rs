//! The parts of a request's target: which host and port it names, which path
//! it asks for. Leaves out what may be private (userinfo, query, fragment)
//! before anything else sees it.

use std::sync::Arc;

/// Longest path that a span shows, bytes.
pub const PATH_LIMIT: usize = 2048;

/// Host and port of an authority (RFC 3986 §3.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Name or address, IPv6 without its brackets; a Unix path where gRPC wrote one percent-encoded.
    pub address: Arc<str>,
    /// Port, if one was written.
    pub port: Option<u16>,
}

impl Host {
    /// Splits an authority; `None` if it names no host.
    pub fn parse(authority: &str) -> Option<Host> {
        let authority = authority.trim();
        // RFC 9110 §4.2.4: userinfo has no place here, and may be a password.
        let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let (address, port) = if let Some(rest) = authority.strip_prefix('[') {
            let (address, rest) = rest.split_once(']')?;
            (address, rest.strip_prefix(':'))
        } else {
            match authority.rsplit_once(':') {
                // An IPv6 address that lacks its brackets has no port that could be told from it.
                Some((address, _)) if address.contains(':') => (authority, None),
                Some((address, port)) => (address, Some(port)),
                None => (authority, None),
            }
        };
        if address.is_empty() {
            return None;
        }
        let port = match port {
            None | Some("") => None,
            Some(digits) => Some(digits.parse().ok()?),
        };
        let address = if address.starts_with("%2F") || address.starts_with("%2f") {
            Arc::from(&*percent_encoding::percent_decode_str(address).decode_utf8_lossy())
        } else {
            Arc::from(address)
        };
        Some(Host { address, port })
    }
}

/// A request target taken apart (RFC 9112 §3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// Scheme of the absolute form.
    pub scheme: Option<&'a str>,
    /// Authority of the absolute form, userinfo removed.
    pub authority: Option<&'a str>,
    /// Path without query and fragment; `None` where the target has none (`CONNECT`, `OPTIONS *`).
    pub path: Option<&'a str>,
}

impl<'a> Target<'a> {
    /// Takes a target apart; never fails, the worst case is that nothing is found.
    pub fn parse(target: &'a str) -> Target<'a> {
        if target.starts_with('/') {
            return Target {
                scheme: None,
                authority: None,
                path: Some(bare(target)),
            };
        }
        if let Some((scheme, rest)) = target.split_once("://")
            && matches!(scheme, "http" | "https")
        {
            let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            let (authority, rest) = rest.split_at_checked(end).unwrap_or((rest, ""));
            let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
            let path = if rest.starts_with('/') { bare(rest) } else { "/" };
            return Target {
                scheme: Some(scheme),
                authority: Some(authority),
                path: Some(path),
            };
        }
        Target {
            scheme: None,
            authority: None,
            path: None,
        }
    }
}

/// The query, without its question mark.
pub fn query(target: &str) -> Option<&str> {
    let target = target.split_once('#').map_or(target, |(target, _)| target);
    target.split_once('?').map(|(_, query)| query)
}

/// Without query and fragment.
pub fn bare(path: &str) -> &str {
    match memchr::memchr2(b'?', b'#', path.as_bytes()) {
        Some(end) => path.get(..end).unwrap_or(path),
        None => path,
    }
}

/// At most `limit` bytes, cut between characters.
pub fn cut(text: &str, limit: usize) -> &str {
    if text.len() <= limit {
        return text;
    }
    let mut end = limit;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or("")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn hosts() {
        for (authority, address, port) in [
            ("example.com", "example.com", None),
            ("example.com:8080", "example.com", Some(8080)),
            ("example.com:", "example.com", None),
            ("127.0.0.1:50051", "127.0.0.1", Some(50051)),
            ("[::1]:443", "::1", Some(443)),
            ("[fe80::1]", "fe80::1", None),
            ("fe80::1", "fe80::1", None),
            ("user:secret@example.com:80", "example.com", Some(80)),
            ("%2Ftmp%2Fgreeter.sock", "/tmp/greeter.sock", None),
        ] {
            let host = Host::parse(authority).unwrap();
            assert_eq!((&*host.address, host.port), (address, port), "{authority}");
        }
        for bad in ["", ":80", "[::1", "host:http", "host:99999", "user@"] {
            assert_eq!(Host::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn targets() {
        for (target, scheme, authority, path) in [
            ("/a/b?q=1#x", None, None, Some("/a/b")),
            ("/", None, None, Some("/")),
            ("/a#b?c", None, None, Some("/a")),
            (
                "http://u:p@example.com/x?y",
                Some("http"),
                Some("example.com"),
                Some("/x"),
            ),
            ("https://example.com?y", Some("https"), Some("example.com"), Some("/")),
            ("example.com:443", None, None, None),
            ("*", None, None, None),
            ("", None, None, None),
        ] {
            assert_eq!(
                Target::parse(target),
                Target {
                    scheme,
                    authority,
                    path
                },
                "{target}"
            );
        }
    }

    #[test]
    fn cuts_between_characters() {
        assert_eq!(cut("aé", 2), "a");
        assert_eq!(cut("aé", 3), "aé");
    }
}
