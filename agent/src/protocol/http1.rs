//! Heads of HTTP/1 messages (RFC 9112), whole as the kernel's framer cut them.
//!
//! Bias: what can be read of an odd head is read; a head whose start line is
//! odd is none.

use httparse::{EMPTY_HEADER, Header, Status};

/// Header fields read of one head; the rest is left out and said.
const FIELDS: usize = 100;

/// The head can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an HTTP/1 head")]
pub struct Malformed;

/// A request's head.
pub struct RequestHead<'a> {
    /// Method as sent.
    pub method: &'a str,
    /// Request target as sent (RFC 9112 §3.2).
    pub target: &'a str,
    /// 0 or 1.
    pub minor_version: u8,
    /// There were more fields than are here.
    pub truncated: bool,
    fields: Fields<'a>,
}

/// A response's head.
pub struct ResponseHead<'a> {
    /// Status code.
    pub status: u16,
    /// There were more fields than are here.
    pub truncated: bool,
    fields: Fields<'a>,
}

struct Fields<'a>([Header<'a>; FIELDS], usize);

impl<'a> Fields<'a> {
    fn iter(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        self.0.iter().take(self.1).map(|h| (h.name.as_bytes(), h.value))
    }
}

impl<'a> RequestHead<'a> {
    /// Name and value of each field.
    pub fn headers(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        self.fields.iter()
    }
}

impl<'a> ResponseHead<'a> {
    /// Name and value of each field.
    pub fn headers(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        self.fields.iter()
    }
}

fn parser() -> httparse::ParserConfig {
    let mut parser = httparse::ParserConfig::default();
    parser
        .allow_spaces_after_header_name_in_responses(true)
        .ignore_invalid_headers_in_requests(true)
        .ignore_invalid_headers_in_responses(true);
    parser
}

/// Reads a request's head, without folded lines ([`super::framing::unfold`]).
pub fn parse_request(head: &[u8]) -> Result<RequestHead<'_>, Malformed> {
    let mut fields = [EMPTY_HEADER; FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let result = parser().parse_request(&mut request, head);
    let truncated = match result {
        Ok(Status::Complete(_)) => false,
        // The start line and the fields before it are there all the same.
        Ok(Status::Partial) | Err(httparse::Error::TooManyHeaders) => true,
        Err(_) => return Err(Malformed),
    };
    let (Some(method), Some(target), Some(minor_version)) = (request.method, request.path, request.version) else {
        return Err(Malformed);
    };
    let count = request.headers.iter().take_while(|h| !h.name.is_empty()).count();
    Ok(RequestHead {
        method,
        target,
        minor_version,
        truncated,
        fields: Fields(fields, count),
    })
}

/// Reads a response's head, without folded lines ([`super::framing::unfold`]).
pub fn parse_response(head: &[u8]) -> Result<ResponseHead<'_>, Malformed> {
    let mut fields = [EMPTY_HEADER; FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    let result = parser().parse_response(&mut response, head);
    let truncated = match result {
        Ok(Status::Complete(_)) => false,
        Ok(Status::Partial) | Err(httparse::Error::TooManyHeaders) => true,
        Err(_) => return Err(Malformed),
    };
    let Some(status) = response.code else {
        return Err(Malformed);
    };
    let count = response.headers.iter().take_while(|h| !h.name.is_empty()).count();
    Ok(ResponseHead {
        status,
        truncated,
        fields: Fields(fields, count),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn heads_are_read() {
        let head = parse_request(b"GET /a?b HTTP/1.0\r\nHost: x\r\nBad Header: y\r\nA: 1\r\n\r\n").unwrap();
        assert_eq!((head.method, head.target, head.minor_version), ("GET", "/a?b", 0));
        let names: Vec<&[u8]> = head.headers().map(|(n, _)| n).collect();
        assert_eq!(names, [&b"Host"[..], b"A"]);
        assert_eq!(parse_response(b"HTTP/1.1 404 Not Found\r\n\r\n").unwrap().status, 404);
    }

    #[test]
    fn many_fields_and_garbage() {
        let mut head = b"GET / HTTP/1.1\r\n".to_vec();
        for i in 0..200 {
            head.extend(format!("h{i}: v\r\n").bytes());
        }
        head.extend(b"\r\n");
        let head = parse_request(&head).unwrap();
        assert!(head.truncated);
        assert_eq!(head.headers().count(), FIELDS);
        assert!(parse_request(b"\xff\xfe\r\n\r\n").is_err());
        assert!(parse_response(b"").is_err());
    }
}
