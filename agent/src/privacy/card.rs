//! Payment card numbers: 13 to 19 digits with Luhn's check digit, in one piece
//! or in the groups in which they are printed.

/// Luhn's check of 13 to 19 digits (ISO/IEC 7812-1).
pub fn is_card(digits: &[u8]) -> bool {
    if !(13..=19).contains(&digits.len()) {
        return false;
    }
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(i, d)| {
            let d = u32::from(d.saturating_sub(b'0'));
            match (i % 2, d) {
                (0, d) => d,
                (_, d) if d > 4 => d * 2 - 9,
                (_, d) => d * 2,
            }
        })
        .sum();
    sum.is_multiple_of(10)
}

/// Length in bytes of the card number that begins with the first byte of
/// `text`; `None` if none does. Numbers that no network issues (first digit 0,
/// 1, 7, 8, 9: times, for one) are none.
pub(super) fn card(text: &[u8]) -> Option<usize> {
    if !matches!(text.first(), Some(b'2'..=b'6')) {
        return None;
    }
    let mut digits = [0; 20];
    let (mut count, mut end) = (0, 0);
    let mut groups = [0usize; 6];
    let mut group = 0;
    let mut separator = None;
    while let Some(byte) = text.get(end) {
        if byte.is_ascii_digit() {
            *digits.get_mut(count)? = *byte;
            count += 1;
            *groups.get_mut(group)? += 1;
        } else if matches!(byte, b' ' | b'-' | b'.' | b'_')
            && text.get(end + 1).is_some_and(u8::is_ascii_digit)
            && separator.is_none_or(|s| s == *byte)
            && group + 1 < groups.len()
            && (count == 4 || separator.is_some())
        {
            separator = Some(*byte);
            group += 1;
        } else {
            break;
        }
        end += 1;
    }
    let grouped = match groups.get(..=group) {
        Some([_]) => true,
        Some([4, 6, 4 | 5]) => true,
        Some([first @ .., last]) => first.iter().all(|length| *length == 4) && (1..=4).contains(last),
        _ => false,
    };
    (grouped && is_card(digits.get(..count)?)).then_some(end)
}
