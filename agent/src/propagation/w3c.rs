//! `traceparent` and `tracestate` (W3C Trace Context level 2).

use crate::span::{SpanId, TraceId};

/// What a `traceparent` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// Trace id.
    pub trace_id: TraceId,
    /// The sender's span id.
    pub span_id: SpanId,
    /// Trace flags.
    pub flags: u8,
}

/// The sampled flag, §3.2.2.5.1.
pub const SAMPLED: u8 = 1;
/// The random trace id flag, level 2 §3.2.2.5.2.
pub const RANDOM: u8 = 2;
/// `tracestate` members at most, §3.3.1.1; longer ones are not carried on.
const MEMBERS: usize = 32;
/// `tracestate` bytes that must be carried, §3.3.1.5.
const STATE: usize = 512;

impl TraceParent {
    /// Parses a header value, §3.2; None: it must be ignored.
    pub fn parse(value: &str) -> Option<Self> {
        let bytes = value.trim_matches([' ', '\t']).as_bytes();
        let version = hex::<1>(bytes.get(..2)?)?[0];
        // Version ff is forbidden; 00 has exactly these fields, later ones may have more (§4.3).
        if version == 0xff || bytes.len() < 55 || version == 0 && bytes.len() != 55 {
            return None;
        }
        if bytes.len() > 55 && bytes.get(55) != Some(&b'-') {
            return None;
        }
        if bytes.get(2) != Some(&b'-') || bytes.get(35) != Some(&b'-') || bytes.get(52) != Some(&b'-') {
            return None;
        }
        let trace_id = hex::<16>(bytes.get(3..35)?)?;
        let span_id = hex::<8>(bytes.get(36..52)?)?;
        let flags = hex::<1>(bytes.get(53..55)?)?[0];
        if trace_id == [0; 16] || span_id == [0; 8] {
            return None;
        }
        Some(TraceParent {
            trace_id,
            span_id,
            flags,
        })
    }
}

/// Lower-case hexadecimal digits only, §3.2.2.
fn hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let mut out = [0; N];
    if digits.len() != 2 * N {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        let &[high, low] = pair else { return None };
        *byte = digit(high)? << 4 | digit(low)?;
    }
    Some(out)
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
    fn good_and_bad() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let parsed = TraceParent::parse(good).unwrap();
        assert_eq!((parsed.trace_id[0], parsed.span_id[7], parsed.flags), (0x0a, 0x31, 1));
        assert!(TraceParent::parse(&format!("cc{}-more", &good[2..])).is_some());
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
            assert_eq!(TraceParent::parse(bad), None, "{bad}");
        }
        assert_eq!(trace_state(" a=1,b=2 "), Some("a=1,b=2"));
        assert_eq!(trace_state(&"a=1,".repeat(40)), None);
    }
}
