//! Where in a text the secrets are. Each finder knows one form; a text that
//! has none of the bytes that the forms need is given back unread.

use std::borrow::Cow;
use std::ops::Range;

use percent_encoding::percent_decode_str;

use super::REDACTED;
use super::card::card;
use super::letters::is_random;
use super::mark::{Mark, PEM, PREFIXES, marks};

/// Shortest text in which anything is looked for: `a@b.co`.
const SHORTEST: usize = 6;
/// Shortest run of characters that can look drawn at random.
const DRAWN: usize = 16;
/// Hexadecimal digits that are a key or a digest rather than a name.
const HEX: usize = 32;
/// Length of AWS's secret access keys.
const AWS_SECRET: usize = 40;
/// Longest text that is looked through, bytes. Of a longer one nothing is shown.
const LONGEST: usize = 16 * 1024;

/// The text without what has the form of a secret.
pub(super) fn exact(text: &str) -> Cow<'_, str> {
    replace(text, find_exact)
}

/// The text without that, and without what looks drawn at random.
pub(super) fn free(text: &str) -> Cow<'_, str> {
    replace(text, |text, found| {
        find_exact(text, found);
        find_drawn(text, found);
    })
}

/// Whether something in it has the form of a secret.
pub fn holds_secret(text: &str) -> bool {
    if !is_suspect(text) {
        return false;
    }
    let mut found = Vec::new();
    find_exact(text, &mut found);
    !found.is_empty()
}

/// Whether anything in it would be hidden in free text.
pub fn is_private(text: &str) -> bool {
    matches!(free(text), Cow::Owned(_))
}

fn replace(text: &str, find: impl Fn(&str, &mut Vec<Range<usize>>)) -> Cow<'_, str> {
    if !is_suspect(text) {
        return Cow::Borrowed(text);
    }
    if text.len() > LONGEST {
        return Cow::Borrowed(REDACTED);
    }
    let mut found = Vec::new();
    find(text, &mut found);
    find_encoded(text, &find, &mut found);
    if found.is_empty() {
        return Cow::Borrowed(text);
    }
    found.sort_unstable_by_key(|range| (range.start, std::cmp::Reverse(range.end)));
    let mut out = String::with_capacity(text.len());
    let mut end = 0;
    for range in found {
        if range.start >= end {
            out.push_str(text.get(end..range.start).unwrap_or_default());
            out.push_str(REDACTED);
        }
        end = end.max(range.end);
    }
    out.push_str(text.get(end..).unwrap_or_default());
    Cow::Owned(out)
}

/// A look at each byte: whether any form could be there. A text of short
/// lower-case words holds none but what a word announces, for which it needs
/// one of `=:` or a space.
fn is_suspect(text: &str) -> bool {
    let bytes = text.as_bytes();
    if bytes.len() < SHORTEST {
        return false;
    }
    let mut run = 0;
    bytes.iter().any(|byte| {
        if byte.is_ascii_lowercase() || *byte == b'/' {
            run = if *byte == b'/' { 0 } else { run + 1 };
            return run >= DRAWN;
        }
        !matches!(byte, b'.' | b'_' | b'{' | b'}') || {
            run = 0;
            false
        }
    })
}

/// Pieces that are percent-encoded (RFC 3986 §2.1) and hold a secret once they are decoded, twice if need be.
fn find_encoded(text: &str, find: &impl Fn(&str, &mut Vec<Range<usize>>), found: &mut Vec<Range<usize>>) {
    if memchr::memchr(b'%', text.as_bytes()).is_none() {
        return;
    }
    let ends = |c: char| c.is_whitespace() || matches!(c, '/' | '?' | '&' | '=' | ';' | ',' | '"' | '\'' | '(' | ')');
    let mut start = 0;
    for piece in text.split_inclusive(ends) {
        let range = start..start + piece.trim_end_matches(ends).len();
        start += piece.len();
        let mut layer = Cow::Borrowed(text.get(range.clone()).unwrap_or_default());
        for _ in 0..2 {
            let decoded = percent_decode_str(&layer).decode_utf8_lossy().into_owned();
            if decoded == layer {
                break;
            }
            let mut inside = Vec::new();
            find(&decoded, &mut inside);
            if !inside.is_empty() {
                push(text, range, found);
                break;
            }
            layer = Cow::Owned(decoded);
        }
    }
}

fn find_exact(text: &str, found: &mut Vec<Range<usize>>) {
    find_mail(text, found);
    find_cards(text, found);
    find_userinfo(text, found);
    for (mark, range) in marks(text) {
        match mark {
            Mark::Prefix(number) => find_key(text, range, number, found),
            Mark::Word => find_value(text, range, found),
            Mark::Scheme => find_credential(text, range, found),
            Mark::Pem => {
                let rest = text.get(range.end..).unwrap_or_default();
                let end = rest
                    .rfind("-----")
                    .map_or(text.len(), |at| range.end + at + PEM.len().min(5));
                found.push(range.start..end);
            }
        }
    }
}

/// E-mail addresses (RFC 5322 §3.4.1, as people write them), `%40` for `@` too.
fn find_mail(text: &str, found: &mut Vec<Range<usize>>) {
    let bytes = text.as_bytes();
    let is_local = |b: &u8| b.is_ascii_alphanumeric() || b"._%+-!#$&'*/=?^`{|}~".contains(b) || *b >= 0x80;
    let is_domain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-') || *b >= 0x80;
    let plain = memchr::memchr_iter(b'@', bytes).map(|at| at..at + 1);
    let encoded = memchr::memmem::find_iter(bytes, b"%40").map(|at| at..at + 3);
    for at in plain.chain(encoded) {
        let before = bytes.get(..at.start).unwrap_or_default();
        let mut local = before.iter().rev().take_while(|b| is_local(b)).count();
        // What separates is not part of the address, where it can be told: `mail=a@b.c`, `/a@b.c`.
        let name = before.get(at.start - local..).unwrap_or_default();
        if let Some(cut) = name.iter().rposition(|b| matches!(b, b'/' | b'=' | b'?' | b'&')) {
            local -= cut + 1;
        }
        let after = bytes.get(at.end..).unwrap_or_default();
        let domain = after.iter().take_while(|b| is_domain(b)).count();
        let domain = after.get(..domain).unwrap_or_default();
        let domain = domain.strip_suffix(b".").unwrap_or(domain);
        let Some(dot) = domain.iter().rposition(|b| *b == b'.') else {
            continue;
        };
        let top = domain.get(dot + 1..).unwrap_or_default();
        if local > 0 && dot > 0 && top.len() >= 2 && top.iter().all(|b| b.is_ascii_alphabetic() || *b >= 0x80) {
            push(text, at.start - local..at.end + domain.len(), found);
        }
    }
}

fn find_cards(text: &str, found: &mut Vec<Range<usize>>) {
    let bytes = text.as_bytes();
    if bytes.len() < 13 || bytes.iter().filter(|b| b.is_ascii_digit()).count() < 13 {
        return;
    }
    let mut at = 0;
    while at < bytes.len() {
        let inside = at > 0 && bytes.get(at - 1).is_some_and(u8::is_ascii_digit);
        match (!inside).then(|| card(bytes.get(at..).unwrap_or_default())).flatten() {
            Some(length) => {
                found.push(at..at + length);
                at += length;
            }
            None => at += 1,
        }
    }
}

/// What stands before the `@` of a URL's authority (RFC 3986 §3.2.1).
fn find_userinfo(text: &str, found: &mut Vec<Range<usize>>) {
    for scheme in memchr::memmem::find_iter(text.as_bytes(), b"://") {
        let start = scheme + 3;
        let rest = text.get(start..).unwrap_or_default();
        let end = rest
            .find(|c: char| c == '/' || c == '?' || c == '#' || c.is_whitespace() || c == '"')
            .unwrap_or(rest.len());
        if let Some(at) = rest.get(..end).and_then(|authority| authority.rfind('@')) {
            found.push(start..start + at);
        }
    }
}

fn is_key_byte(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'/' | b'+' | b'=' | b'~' | b'%')
}

/// A key with a known prefix that does not begin in the middle of a word.
fn find_key(text: &str, range: Range<usize>, number: usize, found: &mut Vec<Range<usize>>) {
    let bytes = text.as_bytes();
    if range.start > 0 && bytes.get(range.start - 1).is_some_and(u8::is_ascii_alphanumeric) {
        return;
    }
    let rest = bytes.get(range.end..).unwrap_or_default();
    let length = rest.iter().take_while(|b| is_key_byte(b)).count();
    let Some((_, least)) = PREFIXES.get(number) else { return };
    let key = rest.get(..length).unwrap_or_default();
    let strong = key.iter().filter(|b| b.is_ascii_alphanumeric()).count();
    // A name may begin so; a key has a digit or a capital in it.
    let drawn = key.iter().any(|b| b.is_ascii_digit() || b.is_ascii_uppercase());
    if strong >= *least && drawn {
        found.push(range.start..range.end + length);
    }
}

/// `word=value`, `"word": "value"`, `word: value`, `word is value` not.
fn find_value(text: &str, range: Range<usize>, found: &mut Vec<Range<usize>>) {
    let bytes = text.as_bytes();
    let mut at = range.end;
    let skip = |mut at: usize, set: &[u8]| {
        while bytes.get(at).is_some_and(|b| set.contains(b)) {
            at += 1;
        }
        at
    };
    // The rest of the word: `tokenId=`, `secret_key:`.
    while at < range.end + 16
        && bytes
            .get(at)
            .is_some_and(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
    {
        at += 1;
    }
    at = skip(at, b"\"' ]");
    let encoded = text
        .get(at..at + 3)
        .is_some_and(|s| s.eq_ignore_ascii_case("%3d") || s.eq_ignore_ascii_case("%3a"));
    match bytes.get(at) {
        Some(b'=' | b':') => at = skip(at + 1, b">"),
        Some(b'%') if encoded => at += 3,
        _ => return,
    }
    at = skip(at, b" ");
    let quote = bytes.get(at).filter(|b| matches!(b, b'"' | b'\'')).copied();
    if let Some(quote) = quote {
        let rest = bytes.get(at + 1..).unwrap_or_default();
        let length = memchr::memchr(quote, rest).unwrap_or(rest.len());
        push(text, at + 1..at + 1 + length, found);
        return;
    }
    let rest = text.get(at..).unwrap_or_default();
    let mut length = rest
        .find(|c: char| c.is_whitespace() || matches!(c, ',' | ';' | '&' | '"' | '\'' | ')' | ']' | '}' | '<'))
        .unwrap_or(rest.len());
    // `authorization: Bearer abc`
    let scheme = rest.get(..length).unwrap_or_default();
    if ["bearer", "basic", "digest", "token", "negotiate"]
        .iter()
        .any(|s| s.eq_ignore_ascii_case(scheme))
    {
        let more = rest.get(length + 1..).unwrap_or_default();
        length += 1 + more
            .find(|c: char| c.is_whitespace() || c == '"' || c == ',')
            .unwrap_or(more.len());
    }
    push(text, at..(at + length).min(text.len()), found);
}

/// `Bearer TOKEN`: a word that is none.
fn find_credential(text: &str, range: Range<usize>, found: &mut Vec<Range<usize>>) {
    let rest = text.as_bytes().get(range.end..).unwrap_or_default();
    let length = rest.iter().take_while(|b| is_key_byte(b)).count();
    let word = rest.get(..length).unwrap_or_default();
    let plain = word.iter().all(u8::is_ascii_lowercase) || word.iter().skip(1).all(u8::is_ascii_lowercase);
    if length >= 6 && (!plain || length >= 20) {
        found.push(range.end..range.end + length);
    }
}

/// Runs that look drawn at random, and long hexadecimal numbers. UUIDs are
/// names of things and stay.
fn find_drawn(text: &str, found: &mut Vec<Range<usize>>) {
    let bytes = text.as_bytes();
    let mut start = 0;
    let part = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'+' | b'/' | b'=' | b'.' | b'~');
    while start < bytes.len() {
        let rest = bytes.get(start..).unwrap_or_default();
        let length = rest.iter().take_while(|b| part(b)).count();
        if length >= DRAWN && is_drawn(rest.get(..length).unwrap_or_default()) {
            found.push(start..start + length);
        }
        start += length.max(1);
    }
}

fn is_drawn(run: &[u8]) -> bool {
    let digits = |part: &[u8]| part.iter().filter(|b| b.is_ascii_digit()).count();
    let whole = |part: &[u8]| part.len() == AWS_SECRET && is_base64(part);
    if run.split(|b| matches!(b, b'.' | b'=')).any(whole) {
        return true;
    }
    for part in run.split(|b| !b.is_ascii_alphanumeric()) {
        if part.len() >= HEX && part.iter().all(u8::is_ascii_hexdigit) {
            return true;
        }
        let number = digits(part);
        if part.len() >= DRAWN && number < part.len() && is_random(part, number) {
            return true;
        }
        // Shorter ones only with all three kinds of characters: `a8F3kQ9x2LmZ`.
        let mixed = part.iter().any(u8::is_ascii_uppercase) && part.iter().any(u8::is_ascii_lowercase);
        if part.len() >= 12 && mixed && number >= 2 && is_random(part, number) {
            return true;
        }
    }
    false
}

/// Characters of base 64 (RFC 4648 §4), capitals, small letters and digits among them.
fn is_base64(run: &[u8]) -> bool {
    let count = |is: fn(&u8) -> bool| run.iter().filter(|b| is(b)).count();
    run.iter()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'+'))
        && count(u8::is_ascii_uppercase) >= 6
        && count(u8::is_ascii_lowercase) >= 6
        && count(u8::is_ascii_digit) >= 1
}

/// Adds a range that is not empty and not hidden yet.
fn push(text: &str, range: Range<usize>, found: &mut Vec<Range<usize>>) {
    if range.start < range.end && text.get(range.clone()) != Some(REDACTED) {
        found.push(range);
    }
}
