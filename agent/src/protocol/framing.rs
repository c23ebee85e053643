//! What the observer and the peer may read differently in an HTTP/1 head: folded
//! lines, and what frames the body.
//!
//! Bias: where two readings are possible, the connection is not followed past it.

use std::borrow::Cow;

/// The head with each folded line joined to the one before by a space (RFC 9112 §5.2).
pub fn unfold(head: &[u8]) -> Cow<'_, [u8]> {
    let is_fold = |at: usize| matches!(head.get(at + 1), Some(b' ' | b'\t'));
    if !memchr::memchr_iter(b'\n', head).any(is_fold) {
        return Cow::Borrowed(head);
    }
    let mut out = Vec::with_capacity(head.len());
    let mut rest = head;
    let mut at = 0;
    for end in memchr::memchr_iter(b'\n', head) {
        if is_fold(end) {
            let (line, more) = rest.split_at(end - at);
            out.extend_from_slice(line.trim_ascii_end());
            out.push(b' ');
            let after = after_blanks(more.get(1..).unwrap_or_default());
            at = head.len() - after.len();
            rest = after;
        }
    }
    out.extend_from_slice(rest);
    Cow::Owned(out)
}

/// Without spaces and tabs at the start; a line end is none.
fn after_blanks(bytes: &[u8]) -> &[u8] {
    let start = bytes.iter().position(|b| !matches!(b, b' ' | b'\t'));
    bytes.get(start.unwrap_or(bytes.len())..).unwrap_or_default()
}

/// Whether the body's length could be read in more than one way, so that a peer may see the next
/// message begin elsewhere (RFC 9112 §6.3, §11.2): Content-Lengths that differ or are no numbers,
/// framing fields that are folded or have blanks before their colon.
pub fn is_doubtful(head: &[u8]) -> bool {
    let mut length: Option<u64> = None;
    let mut framing = false;
    for line in head.split(|b| *b == b'\n').skip(1) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if matches!(line.first(), Some(b' ' | b'\t')) {
            if framing {
                return true;
            }
            continue;
        }
        framing = false;
        let Some(colon) = memchr::memchr(b':', line) else {
            continue;
        };
        let (name, value) = line.split_at(colon);
        let bare = name.trim_ascii();
        let is_length = bare.eq_ignore_ascii_case(b"content-length");
        framing = is_length || bare.eq_ignore_ascii_case(b"transfer-encoding");
        if framing && bare.len() != name.len() {
            return true;
        }
        if is_length {
            let value = value.get(1..).unwrap_or_default();
            for one in value.split(|b| *b == b',') {
                let Some(number) = digits(one.trim_ascii()) else {
                    return true;
                };
                if *length.get_or_insert(number) != number {
                    return true;
                }
            }
        }
    }
    false
}

/// A number of digits alone, as RFC 9110 §8.6 has it.
pub fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folded_lines_are_one_line() {
        let head = b"GET / HTTP/1.1\r\nA: 1,\r\n\t  2,\r\n 3\r\nB: x\r\n\r\n";
        assert_eq!(&*unfold(head), b"GET / HTTP/1.1\r\nA: 1, 2, 3\r\nB: x\r\n\r\n");
        let empty = b"GET / HTTP/1.1\r\nA:\r\n \r\n x\r\n\r\n";
        assert_eq!(&*unfold(empty), b"GET / HTTP/1.1\r\nA:  x\r\n\r\n");
        assert!(matches!(unfold(b"GET / HTTP/1.1\r\nA: 1\r\n\r\n"), Cow::Borrowed(_)));
        for cut in 0..head.len() {
            unfold(&head[..cut]);
        }
    }

    #[test]
    fn framing_that_two_may_read_in_two_ways_is_doubtful() {
        let doubtful = |fields: &str| is_doubtful(format!("POST / HTTP/1.1\r\n{fields}\r\n").as_bytes());
        for clear in [
            "",
            "Content-Length: 5\r\n",
            "Content-Length: 5\r\ncontent-length:5\r\n",
            "Content-Length: 5, 5\r\n",
            "Transfer-Encoding: chunked\r\nA: b\r\n c\r\n",
            "X: y\r\n Content-Length: 7\r\n",
        ] {
            assert!(!doubtful(clear), "{clear}");
        }
        for other in [
            "Content-Length: 5\r\nContent-Length: 6\r\n",
            "Content-Length: 5, 6\r\n",
            "Content-Length: +5\r\n",
            "Content-Length: \r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Content-Length:\r\n 5\r\n",
            "Content-Length : 5\r\n",
            "Transfer-Encoding: gzip,\r\n chunked\r\n",
            "Transfer-Encoding : chunked\r\n",
        ] {
            assert!(doubtful(other), "{other}");
        }
    }
}
