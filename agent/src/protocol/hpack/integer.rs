//! Integers of RFC 7541 §5.1. Refuses what does not fit 32 bits: no length,
//! index or table size of a real peer is larger.

use super::Error;

/// Continuation octets that 32 bits can need.
const CONTINUATIONS: u32 = 5;

/// Reads an integer whose first octet holds `prefix` (1..=8) low bits of it, and moves `rest` past it.
///
/// # Errors
/// [`Error::Truncated`] when the octets end inside it, [`Error::Integer`] when it exceeds 32 bits or is
/// longer than 32 bits can need.
#[inline]
pub(super) fn read(rest: &mut &[u8], prefix: u32) -> Result<u32, Error> {
    let (&first, tail) = rest.split_first().ok_or(Error::Truncated)?;
    let mask = 0xff_u32 >> (8 - prefix);
    let low = u32::from(first) & mask;
    *rest = tail;
    if low < mask { Ok(low) } else { continued(rest, mask) }
}

fn continued(rest: &mut &[u8], base: u32) -> Result<u32, Error> {
    let mut value = u64::from(base);
    for step in 0..CONTINUATIONS {
        let (&octet, tail) = rest.split_first().ok_or(Error::Truncated)?;
        *rest = tail;
        value += u64::from(octet & 0x7f) << (7 * step);
        if octet & 0x80 == 0 {
            return u32::try_from(value).map_err(|_| Error::Integer);
        }
    }
    Err(Error::Integer)
}

/// Writes `value` with a first octet that holds `prefix` (1..=8) low bits of it and `high` above them.
pub(super) fn write(out: &mut Vec<u8>, high: u8, prefix: u32, value: u32) {
    let mask = 0xff_u8 >> (8 - prefix);
    if value < u32::from(mask) {
        out.push(high | value as u8);
        return;
    }
    out.push(high | mask);
    let mut left = value - u32::from(mask);
    while left >= 0x80 {
        out.push(left as u8 | 0x80);
        left >>= 7;
    }
    out.push(left as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_of_the_rfc() {
        // RFC 7541 C.1.1 to C.1.3.
        assert_eq!(read(&mut &[0b1110_1010][..], 5), Ok(10));
        assert_eq!(read(&mut &[0b0001_1111, 0b1001_1010, 0b0000_1010][..], 5), Ok(1337));
        assert_eq!(read(&mut &[0b0010_1010][..], 8), Ok(42));
    }

    #[test]
    fn what_is_written_reads_back() {
        for prefix in 1..=8 {
            for value in [
                0,
                1,
                30,
                31,
                126,
                127,
                128,
                254,
                255,
                256,
                1337,
                1 << 20,
                u32::MAX - 1,
                u32::MAX,
            ] {
                let mut out = Vec::new();
                write(&mut out, 0, prefix, value);
                let mut rest = &out[..];
                assert_eq!(read(&mut rest, prefix), Ok(value));
                assert!(rest.is_empty());
            }
        }
    }

    #[test]
    fn too_long_and_cut_short_are_told_apart() {
        assert_eq!(read(&mut &[0x3f][..], 5), Err(Error::Truncated));
        assert_eq!(read(&mut &[][..], 5), Err(Error::Truncated));
        assert_eq!(
            read(&mut &[0xff, 0xff, 0xff, 0xff, 0xff, 0x0f][..], 8),
            Err(Error::Integer)
        );
        assert_eq!(
            read(&mut &[0xff, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00][..], 8),
            Err(Error::Integer)
        );
    }
}
