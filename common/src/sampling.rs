//! The head decision: one comparison, the same in the kernel and in the agent.
//! Bias: consistent. Whoever asks with the same trace id and a lower ratio
//! keeps a subset of what the higher ratio keeps.
//!
//! OpenTelemetry, "TraceState: Probability Sampling": the randomness R of a
//! trace is the low 56 bits of its id (W3C Trace Context level 2, the random
//! flag), the rejection threshold is T = (1 − p)·2⁵⁶, and the trace is kept if
//! R ≥ T. `ot=th:` carries T as hexadecimal digits without trailing zeros.

/// One more than the largest randomness.
pub const MAX: u64 = 1 << 56;

/// Hexadecimal digits of a threshold, leading `f`s aside: the ratio's relative error
/// stays below 2⁻¹⁶.
#[cfg(not(target_arch = "bpf"))]
const PRECISION: u32 = 5;

/// Digits of a whole threshold.
const DIGITS: u32 = 14;

/// R: the low 56 bits of a trace id.
#[inline(always)]
pub const fn randomness(trace_id: &[u8; 16]) -> u64 {
    let low = [
        0,
        trace_id[9],
        trace_id[10],
        trace_id[11],
        trace_id[12],
        trace_id[13],
        trace_id[14],
        trace_id[15],
    ];
    u64::from_be_bytes(low)
}

/// Whether a trace is kept at threshold `threshold` (0: each, [`MAX`] and above: none).
#[inline(always)]
pub const fn sampled(trace_id: &[u8; 16], threshold: u64) -> bool {
    randomness(trace_id) >= threshold
}

/// A rejection threshold, 0 to [`MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Threshold(u64);

impl Threshold {
    /// Keeps everything.
    pub const ALWAYS: Threshold = Threshold(0);
    /// Keeps nothing.
    pub const NEVER: Threshold = Threshold(MAX);

    /// The threshold of that number; what is above [`MAX`] is [`Threshold::NEVER`].
    pub const fn new(threshold: u64) -> Self {
        Threshold(if threshold > MAX { MAX } else { threshold })
    }

    /// T, as it goes to the kernel.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Whether a trace is kept.
    pub const fn keeps(self, trace_id: &[u8; 16]) -> bool {
        sampled(trace_id, self.0)
    }

    /// Whether that randomness (an explicit `rv`, or a trace id's) is kept.
    pub const fn keeps_randomness(self, randomness: u64) -> bool {
        randomness >= self.0
    }

    /// The threshold of a ratio, 0 to 1, at the precision that `th` is written with. What is
    /// no number is [`Threshold::NEVER`]; ratios beyond the ends are the ends.
    #[cfg(not(target_arch = "bpf"))]
    pub fn of_ratio(ratio: f64) -> Self {
        if ratio >= 1.0 {
            return Threshold::ALWAYS;
        }
        // Smaller ones round to nothing (the specification's smallest probability is 2⁻⁵⁶).
        #[expect(clippy::cast_precision_loss, reason = "a power of two")]
        let range = MAX as f64;
        if ratio.is_nan() || ratio * range < 1.0 {
            return Threshold::NEVER;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 0 and 2⁵⁶"
        )]
        let kept = (ratio * range) as u64;
        let exact = MAX - kept;
        // Each leading `f` is a sixteenth of the ratio that the next digits must tell.
        let leading = ((exact << 8) | 0xff).leading_ones() / 4;
        let digits = (leading + PRECISION).min(DIGITS);
        let unit = 1u64 << (4 * (DIGITS - digits));
        let rounded = (exact + unit / 2) & !(unit - 1);
        Threshold(if rounded >= MAX { exact } else { rounded })
    }

    /// The ratio that is kept, 0 to 1.
    #[cfg(not(target_arch = "bpf"))]
    pub fn ratio(self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "53 bits of a probability are enough")]
        let ratio = (MAX - self.0) as f64 / MAX as f64;
        ratio
    }

    /// What one kept trace stands for: 2⁵⁶ ÷ (2⁵⁶ − T). `None` if nothing is kept.
    #[cfg(not(target_arch = "bpf"))]
    pub fn adjusted_count(self) -> Option<f64> {
        (self.0 < MAX).then(|| 1.0 / self.ratio())
    }

    /// The value of `th`. `None` if nothing is kept: that has no threshold in `tracestate`.
    pub const fn encode(self) -> Option<Encoded> {
        if self.0 >= MAX {
            return None;
        }
        let mut text = [b'0'; DIGITS as usize];
        let mut len = 1;
        let mut i = 0;
        while i < DIGITS as usize {
            let digit = (self.0 >> (4 * (DIGITS as usize - 1 - i))) & 15;
            text[i] = HEX[digit as usize];
            if digit != 0 {
                len = i + 1;
            }
            i += 1;
        }
        Some(Encoded { text, len })
    }

    /// Reads the value of `th`: 1 to 14 lower-case hexadecimal digits, missing ones are
    /// zeros. `None`: it is none and must be ignored.
    pub const fn decode(text: &[u8]) -> Option<Self> {
        match hex(text) {
            Some(value) => Some(Threshold(value << (4 * (DIGITS as usize - text.len())))),
            None => None,
        }
    }
}

/// How the head decision is made over the requests of a process, in one number for the kernel:
/// the threshold, and what the kernel can't decide by it alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule(u64);

impl Rule {
    const UNDECIDED: u64 = 1 << 62;
    const UNTRUSTED: u64 = 1 << 63;

    /// `undecided`: whether a trace that begins here is kept depends on more than its id, and the
    /// threshold means nothing. `untrusted`: so does that of one which a caller began.
    pub const fn new(threshold: Threshold, undecided: bool, untrusted: bool) -> Self {
        let mut bits = threshold.0;
        if undecided {
            bits |= Self::UNDECIDED;
        }
        if untrusted {
            bits |= Self::UNTRUSTED;
        }
        Rule(bits)
    }

    /// As it lies in the map.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Of what lies in the map.
    #[inline(always)]
    pub const fn of(bits: u64) -> Self {
        Rule(bits)
    }

    /// Whether a trace that begins here is kept, if the id alone decides.
    #[inline(always)]
    pub const fn keeps(self, trace_id: &[u8; 16]) -> bool {
        sampled(trace_id, self.0 & !(Self::UNDECIDED | Self::UNTRUSTED))
    }

    /// Whether the id does not decide over a trace that begins here.
    #[inline(always)]
    pub const fn is_undecided(self) -> bool {
        self.0 & Self::UNDECIDED != 0
    }

    /// Whether a caller's flag is not simply obeyed.
    #[inline(always)]
    pub const fn is_untrusted(self) -> bool {
        self.0 & Self::UNTRUSTED != 0
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Reads the value of `rv`: an explicit randomness of exactly 14 lower-case digits.
pub const fn decode_randomness(text: &[u8]) -> Option<u64> {
    if text.len() == DIGITS as usize { hex(text) } else { None }
}

/// Up to 14 lower-case hexadecimal digits.
const fn hex(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > DIGITS as usize {
        return None;
    }
    let mut value = 0;
    let mut i = 0;
    while i < text.len() {
        let digit = match text[i] {
            c @ b'0'..=b'9' => c - b'0',
            c @ b'a'..=b'f' => c - b'a' + 10,
            _ => return None,
        };
        value = (value << 4) | digit as u64;
        i += 1;
    }
    Some(value)
}

/// The digits of a threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoded {
    text: [u8; DIGITS as usize],
    len: usize,
}

impl Encoded {
    /// ASCII, 1 to 14 bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.text.get(..self.len).unwrap_or(&[])
    }

    /// The same as text.
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(self.as_bytes()).unwrap_or("")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn id(low: u64) -> [u8; 16] {
        let mut id = [0xaa; 16];
        id[8..].copy_from_slice(&(low | 0xbb << 56).to_be_bytes());
        id
    }

    #[test]
    fn the_low_56_bits_decide() {
        assert_eq!(randomness(&id(0x00_1234_5678_9abc)), 0x00_1234_5678_9abc);
        let half = MAX / 2;
        assert!(sampled(&id(half), half) && !sampled(&id(half - 1), half));
        assert!(sampled(&id(0), 0) && !sampled(&id(MAX - 1), MAX));
    }

    #[test]
    fn the_specification_s_own_examples() {
        for (ratio, text) in [
            (1.0, "0"),
            (0.75, "4"),
            (0.5, "8"),
            (0.25, "c"),
            (0.125, "e"),
            (0.01, "fd70a4"),
        ] {
            let threshold = Threshold::of_ratio(ratio);
            assert_eq!(threshold.encode().unwrap().as_str(), text, "{ratio}");
            assert_eq!(Threshold::decode(text.as_bytes()), Some(threshold));
            assert!((threshold.ratio() / ratio - 1.0).abs() < 1e-4, "{ratio}");
        }
        assert_eq!(Threshold::of_ratio(0.25).adjusted_count(), Some(4.0));
    }

    #[test]
    fn what_is_out_of_range_is_at_its_end() {
        assert_eq!(Threshold::of_ratio(2.0), Threshold::ALWAYS);
        for none in [0.0, -1.0, f64::NAN, 1e-18] {
            assert_eq!(Threshold::of_ratio(none), Threshold::NEVER, "{none}");
        }
        assert_eq!(Threshold::NEVER.encode(), None);
        assert_eq!(Threshold::NEVER.adjusted_count(), None);
        assert_eq!(Threshold::new(u64::MAX), Threshold::NEVER);
    }

    #[test]
    fn small_ratios_keep_their_precision() {
        for power in 1..56 {
            let ratio = 1.0 / (1u64 << power) as f64;
            assert_eq!(Threshold::of_ratio(ratio).ratio(), ratio, "2^-{power}");
        }
        for ratio in [0.999, 0.3, 0.07, 0.001, 0.000_37, 1.3e-9] {
            let error = (Threshold::of_ratio(ratio).ratio() / ratio - 1.0).abs();
            assert!(error < 1.0 / 65_536.0, "{ratio}: {error}");
        }
    }

    #[test]
    fn a_rule_of_a_process_is_one_number() {
        for (undecided, untrusted) in [(false, false), (true, false), (false, true), (true, true)] {
            let rule = Rule::of(Rule::new(Threshold::of_ratio(0.5), undecided, untrusted).get());
            assert_eq!((rule.is_undecided(), rule.is_untrusted()), (undecided, untrusted));
            assert!(rule.keeps(&id(MAX / 2)) && !rule.keeps(&id(MAX / 2 - 1)));
        }
        assert!(!Rule::new(Threshold::NEVER, false, true).keeps(&id(MAX - 1)));
    }

    #[test]
    fn malformed_values_are_none() {
        for bad in ["", "C", "123456789abcdef", "-1", "0x8", "8 "] {
            assert_eq!(Threshold::decode(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(decode_randomness(b"8"), None);
        assert_eq!(decode_randomness(b"00000000000010"), Some(16));
    }

    /// 100,000 roots: the share is within four standard deviations, and each lower ratio
    /// keeps a subset.
    #[test]
    fn shares_are_binomial_and_consistent() {
        const ROOTS: u32 = 100_000;
        let ratios = [0.01, 0.1, 0.5];
        let mut kept = [0u32; 3];
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        for _ in 0..ROOTS {
            // splitmix64
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let id = id((z ^ (z >> 31)) % MAX);
            let decisions = ratios.map(|r| Threshold::of_ratio(r).keeps(&id));
            assert!(!decisions[0] || decisions[1], "kept at 1 % and not at 10 %");
            assert!(!decisions[1] || decisions[2], "kept at 10 % and not at 50 %");
            for (kept, decision) in kept.iter_mut().zip(decisions) {
                *kept += u32::from(decision);
            }
        }
        for (kept, ratio) in kept.into_iter().zip(ratios) {
            let mean = f64::from(ROOTS) * ratio;
            let bound = 4.0 * (mean * (1.0 - ratio)).sqrt();
            assert!((f64::from(kept) - mean).abs() < bound, "{kept} of {ROOTS} at {ratio}");
        }
    }
}
