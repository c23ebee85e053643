//! W3C Baggage, of which only Sentry's sampling context is kept: what the head
//! of a trace said of it (develop.sentry.dev, "Dynamic Sampling Context").
//! Bias: privacy. Baggage is the application's own, all else in it is dropped here.

use std::sync::Arc;

/// The members of the context, without their prefix. Those that tell of a user are left out.
const MEMBERS: [&str; 10] = [
    "trace_id",
    "public_key",
    "sample_rate",
    "sample_rand",
    "sampled",
    "release",
    "environment",
    "transaction",
    "org_id",
    "replay_id",
];
/// Longest context, bytes: Sentry's SDKs keep to much less.
const LONGEST: usize = 1024;

/// Sentry's members of a `baggage` field, `name=value` without prefix and properties, values
/// percent-encoded as they came, joined by commas. `before`: those of an earlier field.
pub fn sentry(value: &[u8], before: Option<&Arc<str>>) -> Option<Arc<str>> {
    let text = std::str::from_utf8(value).unwrap_or_default();
    let mut kept = before.map_or(String::new(), |before| before.to_string());
    for member in text.split(',') {
        let Some((name, value)) = member.split_once('=') else {
            continue;
        };
        let Some(name) = name.trim().strip_prefix("sentry-") else {
            continue;
        };
        let value = value.split(';').next().unwrap_or_default().trim();
        let plain = value.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\');
        if MEMBERS.contains(&name) && plain && kept.len() + name.len() + value.len() + 2 <= LONGEST {
            if !kept.is_empty() {
                kept.push(',');
            }
            kept.push_str(name);
            kept.push('=');
            kept.push_str(value);
        }
    }
    (!kept.is_empty()).then(|| kept.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn only_what_sentry_s_head_says_is_kept() {
        let first = sentry(
            b"user=alice, sentry-trace_id=0af7; secret=1 ,sentry-user_id=7,sentry-sample_rate=0.25,other=x",
            None,
        );
        assert_eq!(first.as_deref(), Some("trace_id=0af7,sample_rate=0.25"));
        let both = sentry(b"sentry-release=shop%401.0", first.as_ref());
        assert_eq!(
            both.as_deref(),
            Some("trace_id=0af7,sample_rate=0.25,release=shop%401.0")
        );
    }

    #[test]
    fn nonsense_is_none() {
        for bad in [
            &b""[..],
            b"a=b",
            b"sentry-",
            b"sentry-trace_id",
            b"sentry-trace_id=\"x\"",
            b"\xff\xfe",
        ] {
            assert_eq!(sentry(bad, None), None);
        }
        let long = format!("sentry-release={}", "x".repeat(2000));
        assert_eq!(sentry(long.as_bytes(), None), None);
    }
}
