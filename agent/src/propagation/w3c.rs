//! `traceparent` and `tracestate` (W3C Trace Context level 2).

use tracewire_common::trace::{LENGTH, TraceParent};

/// `tracestate` members at most, §3.3.1.1; longer ones are not carried on.
const MEMBERS: usize = 32;
/// `tracestate` bytes that must be carried, §3.3.1.5.
const STATE: usize = 512;

/// Reads a `traceparent`, §3.2; None: it must be ignored.
pub fn trace_parent(value: &str) -> Option<TraceParent> {
    let bytes = value.trim_matches([' ', '\t']).as_bytes();
    let (first, rest) = bytes.split_first_chunk::<LENGTH>()?;
    // Version 00 has exactly these fields, later ones may have more (§4.3).
    if !rest.is_empty() && (first.starts_with(b"00") || !rest.starts_with(b"-")) {
        return None;
    }
    TraceParent::decode(first)
}

/// Reads a `sentry-trace`, `TRACE-SPAN[-SAMPLED]` (develop.sentry.dev, "Trace Propagation"): the
/// parent, and whether it left the decision to us. None: it must be ignored.
pub fn sentry_trace(value: &str) -> Option<(TraceParent, bool)> {
    let value = value.trim();
    let (trace, rest) = value.split_at_checked(32)?;
    let (span, rest) = rest.strip_prefix('-')?.split_at_checked(16)?;
    let flags = match rest {
        "" => "00",
        "-0" => "00",
        "-1" => "01",
        _ => return None,
    };
    let parent = trace_parent(&format!("00-{trace}-{span}-{flags}"))?;
    Some((parent, rest.is_empty()))
}

/// A `tracestate` that may be carried on: within the limits of §3.3.
pub fn trace_state(value: &str) -> Option<&str> {
    let value = value.trim();
    let fits = !value.is_empty()
        && value.len() <= STATE
        && value.split(',').count() <= MEMBERS
        && value
            .split(',')
            .all(|member| member.trim().is_empty() || member.contains('='));
    fits.then_some(value)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn sentry_s_own_header() {
        let good = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331";
        let (parent, deferred) = sentry_trace(good).unwrap();
        assert_eq!(
            (parent.trace_id[0], parent.span_id[7], parent.flags, deferred),
            (0x0a, 0x31, 0, true)
        );
        for (end, flags) in [("-1", 1), ("-0", 0)] {
            let (parent, deferred) = sentry_trace(&format!("{good}{end}")).unwrap();
            assert_eq!((parent.flags, deferred), (flags, false));
        }
        for bad in [
            "",
            "-",
            "0af7",
            &good[1..],
            &format!("{good}-2"),
            &format!("{good}-"),
            &good.to_uppercase(),
        ] {
            assert_eq!(sentry_trace(bad), None, "{bad}");
        }
    }

    #[test]
    fn good_and_bad() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let parsed = trace_parent(good).unwrap();
        assert_eq!((parsed.trace_id[0], parsed.span_id[7], parsed.flags), (0x0a, 0x31, 1));
        assert!(trace_parent(&format!("cc{}-more", &good[2..])).is_some());
        for bad in [
            "",
            "00",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01x",
            "00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(trace_parent(bad), None, "{bad}");
        }
        assert_eq!(trace_state(" a=1,b=2 "), Some("a=1,b=2"));
        assert_eq!(trace_state(&"a=1,".repeat(40)), None);
    }
}
