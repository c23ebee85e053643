//! Query strings (RFC 3986 §3.4): names stay, values that are private don't.

use percent_encoding::percent_decode_str;

use super::{Policy, REDACTED, scan};

/// Names whose values never show: semantic conventions 1.45, `url.query` and `url.full`. Case-sensitive.
const CONVENTIONS: [&str; 7] = [
    "AWSAccessKeyId",
    "Signature",
    "sig",
    "X-Goog-Signature",
    "X-Amz-Signature",
    "X-Amz-Credential",
    "X-Amz-Security-Token",
];

/// Parts of names whose values never show. In any case.
const PARTS: [&str; 22] = [
    "token",
    "secret",
    "passw",
    "pwd",
    "auth",
    "session",
    "apikey",
    "api_key",
    "api-key",
    "signature",
    "credential",
    "email",
    "e-mail",
    "jwt",
    "otp",
    "cvv",
    "cvc",
    "ssn",
    "iban",
    "phone",
    "private",
    "cookie",
];

/// Whole names whose values never show. In any case.
const NAMES: [&str; 9] = ["key", "code", "state", "nonce", "sid", "pin", "card", "sig", "pass"];

/// Whether what has this name is taken for private whatever it looks like.
pub fn is_sensitive_name(name: &str) -> bool {
    CONVENTIONS.contains(&name) || NAMES.iter().any(|known| known.eq_ignore_ascii_case(name)) || {
        let lower = name.to_ascii_lowercase();
        PARTS.iter().any(|part| lower.contains(part))
    }
}

/// The query without private values.
pub(super) fn redacted(query: &str, policy: &Policy) -> String {
    let mut out = String::with_capacity(query.len());
    for (place, pair) in query.split('&').enumerate() {
        if place > 0 {
            out.push('&');
        }
        let (name, value) = match pair.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (pair, None),
        };
        let hidden = is_private(name, policy);
        out.push_str(if hidden { REDACTED } else { name });
        let Some(value) = value else { continue };
        out.push('=');
        let decoded = percent_decode_str(name).decode_utf8_lossy();
        let hides = hidden || is_sensitive_name(&decoded) || is_private(value, policy);
        out.push_str(if hides { REDACTED } else { value });
    }
    out
}

/// Whether a secret is in it, encoded or not.
fn is_private(part: &str, policy: &Policy) -> bool {
    let spaced = part.replace('+', " ");
    let decoded = percent_decode_str(&spaced).decode_utf8_lossy();
    [part, &spaced, &decoded]
        .into_iter()
        .any(|text| scan::is_private(text) || policy.patterns.iter().any(|pattern| pattern.is_match(text)))
}
