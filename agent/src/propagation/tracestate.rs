//! The `ot` member of `tracestate` (OpenTelemetry, "TraceState Handling"): the
//! threshold `th` and the randomness `rv` of consistent sampling. Bias: other
//! vendors' members and unknown keys of `ot` are carried on as they are.

use tracewire_common::sampling::{Threshold, decode_randomness};

/// Longest value of the `ot` member, bytes.
const LONGEST: usize = 256;

fn members(state: &str) -> impl Iterator<Item = &str> {
    state.split(',').map(str::trim).filter(|m| !m.is_empty())
}

fn ot(state: &str) -> Option<&str> {
    members(state)
        .find_map(|m| m.strip_prefix("ot="))
        .filter(|v| v.len() <= LONGEST)
}

fn value<'a>(state: &'a str, key: &str) -> Option<&'a str> {
    ot(state)?
        .split(';')
        .find_map(|pair| pair.split_once(':').filter(|(k, _)| *k == key))
        .map(|(_, v)| v)
}

/// The threshold at which this trace was kept.
pub fn threshold(state: &str) -> Option<Threshold> {
    Threshold::decode(value(state, "th")?.as_bytes())
}

/// The explicit randomness, which stands in for the trace id's.
pub fn randomness(state: &str) -> Option<u64> {
    decode_randomness(value(state, "rv")?.as_bytes())
}

/// `state` with that threshold, or with none; `None` if nothing is left. The member that
/// changed goes first (W3C Trace Context §3.5).
pub fn with_threshold(state: Option<&str>, threshold: Option<Threshold>) -> Option<String> {
    let state = state.unwrap_or_default();
    let encoded = threshold.and_then(Threshold::encode);
    let kept = ot(state)
        .unwrap_or_default()
        .split(';')
        .filter(|pair| !pair.is_empty() && !pair.starts_with("th:"));
    let mut text = String::with_capacity(state.len() + 20);
    if let Some(encoded) = &encoded {
        text.push_str("th:");
        text.push_str(encoded.as_str());
    }
    for pair in kept {
        if !text.is_empty() {
            text.push(';');
        }
        text.push_str(pair);
    }
    let mut whole = String::with_capacity(state.len() + 20);
    if !text.is_empty() {
        whole.push_str("ot=");
        whole.push_str(&text);
    }
    for member in members(state).filter(|m| !m.starts_with("ot=")) {
        if !whole.is_empty() {
            whole.push(',');
        }
        whole.push_str(member);
    }
    (!whole.is_empty()).then_some(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_member_is_read_among_others() {
        let state = "vendor=x, ot=p:8;th:fd70a4;rv:00000000000010";
        assert_eq!(threshold(state), Threshold::decode(b"fd70a4"));
        assert_eq!(randomness(state), Some(16));
        for bad in ["", "ot=", "ot=th:", "ot=th:XYZ", "ot=th:123456789abcdef0", "xot=th:8"] {
            assert_eq!(threshold(bad), None, "{bad}");
        }
        assert_eq!(randomness("ot=rv:12"), None);
    }

    #[test]
    fn only_the_threshold_changes() {
        let eighth = Threshold::decode(b"e");
        let state = "vendor=x,ot=p:8;th:fd70a4;rv:00000000000010,b=c";
        assert_eq!(
            with_threshold(Some(state), eighth).as_deref(),
            Some("ot=th:e;p:8;rv:00000000000010,vendor=x,b=c")
        );
        assert_eq!(
            with_threshold(Some(state), None).as_deref(),
            Some("ot=p:8;rv:00000000000010,vendor=x,b=c")
        );
        assert_eq!(with_threshold(Some("ot=th:8"), None), None);
        assert_eq!(with_threshold(Some("a=1"), None).as_deref(), Some("a=1"));
        assert_eq!(with_threshold(None, eighth).as_deref(), Some("ot=th:e"));
        assert_eq!(with_threshold(None, Some(Threshold::NEVER)), None);
    }
}
