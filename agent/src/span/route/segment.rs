//! What one segment of a path looks like: a word of the API, or a value
//! someone put in, and whether that value may be shown. Where a segment could
//! be either it is a word, since counting (the trie) corrects that, and
//! nothing corrects an endpoint that was never named.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use super::vocabulary;
use crate::privacy::letters::{is_random, rare_pairs, turns};
use crate::privacy::{REDACTED, holds_secret, is_card, is_private};

/// Longest value that is shown, bytes.
const VALUE_LENGTH: usize = 128;
/// Longest segment that can be a word, bytes.
const WORD_LENGTH: usize = 48;

/// Looks of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A word of the API, versions (`v1`) included.
    Word,
    /// A decimal number, signs, points and commas allowed.
    Number,
    /// A date or a time.
    Date,
    /// 8-4-4-4-12 hexadecimal digits (RFC 9562).
    Uuid,
    /// Hexadecimal digits, up to 31 of them.
    Hex,
    /// A ULID: 26 characters of Crockford's base 32.
    Ulid,
    /// A name in words with numbers, or a long one.
    Slug,
    /// An e-mail address or a telephone number: private.
    Contact,
    /// Random characters, a long hash, a signed or keyed value, a card number: taken for a secret.
    Token,
}

impl Shape {
    /// Whether it is a value rather than a word.
    pub fn is_value(self) -> bool {
        self != Shape::Word
    }

    /// Whether the value must not leave.
    pub fn is_private(self) -> bool {
        matches!(self, Shape::Contact | Shape::Token)
    }
}

/// A segment taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Decoded text, without matrix parameters and custom verb.
    pub text: Cow<'a, str>,
    /// Matrix parameters as sent, `;` included (RFC 3986 §3.3), or empty.
    pub matrix: &'a str,
    /// Verb after a colon (`/jobs/7:cancel`), colon included, or empty.
    pub verb: &'a str,
    /// Its looks.
    pub shape: Shape,
    /// Whether its value must not show, by its looks or by the word before it.
    pub hidden: bool,
}

impl<'a> Segment<'a> {
    /// Takes apart what stands between two slashes.
    pub fn parse(raw: &'a str) -> Segment<'a> {
        let bytes = raw.as_bytes();
        // One look at all bytes decides for the many that are plain words.
        if bytes.iter().all(|b| b.is_ascii_lowercase() || matches!(b, b'-' | b'_')) && bytes.len() <= WORD_LENGTH {
            let shape = if bytes.len() < 8 {
                Shape::Word
            } else {
                shape_of_word(raw)
            };
            return Segment {
                text: Cow::Borrowed(raw),
                matrix: "",
                verb: "",
                shape,
                hidden: shape.is_private(),
            };
        }
        let (raw, matrix) = match raw.find(';') {
            Some(at) => raw.split_at_checked(at).unwrap_or((raw, "")),
            None => (raw, ""),
        };
        let (raw, verb) = match raw.rfind(':') {
            Some(at) if at > 0 => match raw.split_at_checked(at) {
                Some((stem, verb)) if is_verb(verb) => (stem, verb),
                _ => (raw, ""),
            },
            _ => (raw, ""),
        };
        if memchr::memchr(b'%', raw.as_bytes()).is_none() {
            let shape = shape(raw);
            return Segment {
                text: Cow::Borrowed(raw),
                matrix,
                verb,
                shape,
                hidden: shape.is_private(),
            };
        }
        let (text, shape) = match percent_decode_str(raw).decode_utf8() {
            Ok(text) => {
                let shape = shape(&text);
                (text, shape)
            }
            // Not text: a value, and nobody knows of what.
            Err(_) => (Cow::Borrowed(raw), Shape::Token),
        };
        Segment {
            text,
            matrix,
            verb,
            shape,
            hidden: shape.is_private(),
        }
    }

    /// The segments of a path, empty ones left out.
    pub fn all(path: &'a str) -> Vec<Segment<'a>> {
        let mut segments: Vec<Segment<'a>> = Vec::with_capacity(8);
        for raw in path.split('/').filter(|raw| !raw.is_empty()) {
            let mut segment = Segment::parse(raw);
            if segment.shape.is_value()
                && !segment.hidden
                && let Some(before) = segments.last()
            {
                segment.hidden = !before.shape.is_value() && vocabulary::is_secret(&before.text);
            }
            segments.push(segment);
        }
        segments
    }

    /// The value as it may be shown.
    pub fn shown(&self) -> &str {
        if self.hidden {
            REDACTED
        } else {
            crate::span::url::cut(&self.text, VALUE_LENGTH)
        }
    }
}

fn is_verb(verb: &str) -> bool {
    let Some(name) = verb.strip_prefix(':') else {
        return false;
    };
    (2..=32).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphabetic())
}

fn shape(text: &str) -> Shape {
    let shape = shape_by_letters(text);
    // More than one word, or part of a path that was encoded: free text.
    let free = || memchr::memchr3(b'/', b'+', b' ', text.as_bytes()).is_some() && is_private(text);
    if !shape.is_private() && (text == REDACTED || holds_secret(text) || free()) {
        // What was redacted before (a recording's paths) is as hidden as it was.
        return Shape::Token;
    }
    shape
}

fn shape_by_letters(text: &str) -> Shape {
    let bytes = text.as_bytes();
    if bytes.is_empty() || text == "." || text == ".." {
        return Shape::Word;
    }
    let digits = bytes.iter().filter(|b| b.is_ascii_digit()).count();
    if bytes.contains(&b'@') {
        return match text.split_once('@') {
            Some((name, domain)) if !name.is_empty() && domain.contains('.') => Shape::Contact,
            _ => Shape::Slug,
        };
    }
    if digits == bytes.len() {
        return if is_card(bytes) { Shape::Token } else { Shape::Number };
    }
    if let Some(rest) = text.strip_prefix('+')
        && digits >= 6
        && rest
            .bytes()
            .all(|b| b.is_ascii_digit() || matches!(b, b' ' | b'-' | b'(' | b')' | b'.'))
    {
        return Shape::Contact;
    }
    if digits > 0
        && bytes
            .iter()
            .all(|b| b.is_ascii_digit() || matches!(b, b'-' | b'.' | b',' | b':' | b'_' | b'T' | b'Z' | b'+'))
    {
        return if is_date(bytes) { Shape::Date } else { Shape::Number };
    }
    if is_uuid(bytes) {
        return Shape::Uuid;
    }
    if bytes.iter().all(u8::is_ascii_hexdigit) && digits >= 1 && (bytes.len() >= 8 || (bytes.len() >= 6 && digits >= 2))
    {
        return if bytes.len() >= 32 { Shape::Token } else { Shape::Hex };
    }
    if bytes
        .iter()
        .any(|b| !b.is_ascii_alphanumeric() && !matches!(b, b'-' | b'_' | b'.' | b'~' | b'=' | b'$'))
    {
        // Spaces, letters beyond ASCII, quotes: typed by someone.
        return if bytes.contains(&b'=') {
            Shape::Token
        } else {
            Shape::Slug
        };
    }
    if bytes.contains(&b'=') {
        return Shape::Token;
    }
    if let Some((stem, extension)) = text.rsplit_once('.')
        && is_extension(extension)
    {
        // A file is what its name is; a build's hash in it makes it a value.
        let whole = shape_by_letters(stem);
        if whole != Shape::Word {
            return whole;
        }
        return if stem.split('.').any(|part| shape_by_letters(part).is_value()) {
            Shape::Slug
        } else {
            Shape::Word
        };
    }
    if is_ulid(bytes) {
        return Shape::Ulid;
    }
    shape_of_word(text)
}

/// Letters, digits and `-_.~$`.
fn shape_of_word(text: &str) -> Shape {
    let bytes = text.as_bytes();
    let digits = bytes.iter().filter(|b| b.is_ascii_digit()).count();
    if text.starts_with("eyJ") && bytes.len() >= 20 {
        return Shape::Token; // a JSON Web Token, RFC 7519
    }
    if bytes.len() > WORD_LENGTH {
        return if is_random(bytes, digits) {
            Shape::Token
        } else {
            Shape::Slug
        };
    }
    // Each part between separators by itself: `pod-7f9c4d-x2x9z`, `cus_NffrFeUfNV2Hib`.
    let mut number = false;
    for part in bytes.split(|b| matches!(b, b'-' | b'_' | b'.' | b'~')) {
        let digits = part.iter().filter(|b| b.is_ascii_digit()).count();
        if digits > 0 && digits < part.len() && is_numbered_word(part, digits) {
            continue;
        }
        if is_random(part, digits) {
            return if part.len() >= 12 || part.len() == bytes.len() {
                Shape::Token
            } else {
                Shape::Slug
            };
        }
        if digits >= 2 && digits == part.len() && part.len() < bytes.len() {
            number = true;
        }
        if digits > 0 && digits < part.len() {
            let mixed = part.iter().any(u8::is_ascii_uppercase) && part.iter().any(u8::is_ascii_lowercase);
            if mixed && part.len() >= 12 {
                return Shape::Token;
            }
            number = true;
        }
    }
    if number || is_long_slug(bytes) {
        Shape::Slug
    } else {
        Shape::Word
    }
}

/// `v1`, `v1beta1`, `oauth2`, `sha256`, `x509`, `2fa`, `s3`: letters with few digits in few places.
fn is_numbered_word(part: &[u8], digits: usize) -> bool {
    const KNOWN: [&[u8]; 8] = [
        b"sha256", b"sha512", b"sha384", b"x509", b"base64", b"iso8601", b"rfc3339", b"utf16",
    ];
    if KNOWN.contains(&part) {
        return true;
    }
    if part.first().is_some_and(|b| matches!(b, b'v' | b'V')) && part.get(1).is_some_and(u8::is_ascii_digit) {
        return digits <= 4 && part.len() <= 10;
    }
    let runs = part
        .split(|b| !b.is_ascii_digit())
        .filter(|run| !run.is_empty())
        .count();
    digits <= 2
        && runs == 1
        && part.len() <= 32
        && rare_pairs(part) * 6 <= part.len()
        && (part.len() <= 8 || part.last().is_some_and(u8::is_ascii_digit) || rare_pairs(part) == 0)
        && turns(part) * 5 <= part.len().max(10)
}

/// Four dashes and more, or three and a number, are a title, not a name.
fn is_long_slug(bytes: &[u8]) -> bool {
    let joints = bytes.iter().filter(|b| matches!(b, b'-' | b'_')).count();
    joints >= 4 && bytes.len() >= 20
}

fn is_uuid(bytes: &[u8]) -> bool {
    bytes.len() == 36
        && bytes.iter().enumerate().all(|(i, b)| match i {
            8 | 13 | 18 | 23 => *b == b'-',
            _ => b.is_ascii_hexdigit(),
        })
}

/// 26 characters of Crockford's base 32, the first 0 to 7 (ulid/spec), all of one case.
fn is_ulid(bytes: &[u8]) -> bool {
    bytes.len() == 26
        && bytes.first().is_some_and(|b| (b'0'..=b'7').contains(b))
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() && !matches!(b.to_ascii_uppercase(), b'I' | b'L' | b'O' | b'U'))
        && (bytes.iter().all(|b| !b.is_ascii_lowercase()) || bytes.iter().all(|b| !b.is_ascii_uppercase()))
}

/// `2024-01`, `2024-01-31`, `2024-01-31T10:00:00Z`.
fn is_date(bytes: &[u8]) -> bool {
    let digit = |i: usize| bytes.get(i).is_some_and(u8::is_ascii_digit);
    (0..4).all(digit)
        && bytes.get(4) == Some(&b'-')
        && digit(5)
        && digit(6)
        && matches!(bytes.get(5), Some(b'0' | b'1'))
        && matches!(bytes.get(7), None | Some(b'-'))
}

/// Extensions under which things are asked for.
fn is_extension(text: &str) -> bool {
    const KNOWN: [&str; 42] = [
        "html", "htm", "php", "asp", "aspx", "jsp", "do", "action", "cgi", "js", "mjs", "css", "map", "json", "xml",
        "yaml", "yml", "txt", "md", "csv", "tsv", "pdf", "png", "jpg", "jpeg", "gif", "svg", "webp", "ico", "woff",
        "woff2", "ttf", "mp3", "mp4", "webm", "zip", "gz", "tar", "tgz", "diff", "patch", "wasm",
    ];
    KNOWN.iter().any(|known| known.eq_ignore_ascii_case(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes() {
        use Shape::*;
        let table: &[(Shape, &[&str])] = &[
            (
                Word,
                &[
                    "users",
                    "v1",
                    "v1beta1",
                    "v2alpha1",
                    "v10",
                    "oauth2",
                    "sha256",
                    "x509",
                    "2fa",
                    "s3",
                    "health-check",
                    "getUserProfile",
                    "GetUserProfileInformation",
                    "listAllTheThings",
                    "two-factor-authentication",
                    "code-scanning-default-setup",
                    "index.html",
                    "favicon.ico",
                    "robots.txt",
                    "openapi.json",
                    ".well-known",
                    "rbac.authorization.k8s.io",
                    "deadbeef",
                    "facade",
                    "me",
                    "ec2",
                    "PutItem",
                    "tracewire.v1.Greeter",
                    "_search",
                    "$metadata",
                    "MyCompanyAPIServiceV2",
                    "web3",
                    "openid-configuration",
                    "customresourcedefinitions",
                    "XMLHttpRequest",
                    "getJSONWebKeySetByID",
                    "createOrUpdateLDAPGroup",
                    "OAuth2TokenIntrospection",
                    "subscription_schedules",
                    "kubernetes",
                    "graphql",
                    "hgwebdir",
                    "mysql",
                    "horizontalpodautoscalers",
                    "mfa-devices",
                ],
            ),
            (
                Number,
                &[
                    "0",
                    "12345",
                    "-5",
                    "3.14",
                    "48.137,11.575",
                    "10.0.0.1",
                    "9999999999999",
                    "1_000",
                ],
            ),
            (
                Date,
                &[
                    "2024-01-31",
                    "2024-01",
                    "2024-12-31T10:00:00Z",
                    "2024-12-31T10:00:00.123+02:00",
                ],
            ),
            (
                Uuid,
                &[
                    "550e8400-e29b-41d4-a716-446655440000",
                    "550E8400-E29B-41D4-A716-446655440000",
                ],
            ),
            (Hex, &["a1b2c3d", "507f1f77bcf86cd799439011", "deadbee1", "0cafe1"]),
            (Ulid, &["01ARZ3NDEKTSV4RRFFQ69G5FAV", "01arz3ndektsv4rrffq69g5fav"]),
            (
                Slug,
                &[
                    "post-123",
                    "how-to-write-rust-like-a-pro",
                    "order_55",
                    "hello%20world",
                    "%C3%A9t%C3%A9",
                    "@angular",
                    "web-7f9c4d8b-x2x9z",
                    "user1234",
                    "O%27Neill",
                    "main.3f2a1bcd.js",
                ],
            ),
            (
                Contact,
                &[
                    "alice@example.com",
                    "alice%40example.com",
                    "+4915112345678",
                    "%2B49%20151%2012345678",
                ],
            ),
            (
                Token,
                &[
                    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.dozjgNryP4J3jVmNHl0w5N",
                    "dQw4w9WgXcQ",
                    "cus_NffrFeUfNV2Hib",
                    "sk_live_4eC39HqLyjWDarjtT1zdp7dc",
                    "0ujtsYcgvSTl8PAuAdqWYSMnLOv",
                    "cjld2cjxh0000qzrmn831i7rn",
                    "da39a3ee5e6b4b0d3255bfef95601890afd80709",
                    "aGVsbG8gd29ybGQhIQ==",
                    "VGhpcyBpcyBhIHNlY3JldA",
                    "cus_EqcKmsrRXYSxaAZIeZWPVhq",
                    "qzvkxwjrtplmhgfd",
                    "4111111111111111",
                    "sig=abc",
                    "%FF%FE",
                    "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
                ],
            ),
        ];
        let mut wrong = Vec::new();
        for (expected, texts) in table {
            for text in *texts {
                let got = Segment::parse(text).shape;
                if got != *expected {
                    wrong.push(format!("{text}: {got:?}, not {expected:?}"));
                }
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn verbs_and_matrix_parameters_are_not_the_value() {
        let segment = Segment::parse("123:cancel");
        assert_eq!(
            (&*segment.text, segment.verb, segment.shape),
            ("123", ":cancel", Shape::Number)
        );
        let segment = Segment::parse("users;jsessionid=4F2A");
        assert_eq!(
            (&*segment.text, segment.matrix, segment.shape),
            ("users", ";jsessionid=4F2A", Shape::Word)
        );
        let segment = Segment::parse("10:30");
        assert_eq!((segment.verb, segment.shape), ("", Shape::Number));
    }

    #[test]
    fn private_values_do_not_show() {
        assert_eq!(Segment::parse("alice%40example.com").shown(), REDACTED);
        assert_eq!(Segment::parse("sk_live_4eC39HqLyjWDarjtT1zdp7dc").shown(), REDACTED);
        assert_eq!(Segment::parse("42").shown(), "42");
        assert_eq!(Segment::parse("caf%C3%A9").shown(), "café");
    }
}
