//! Huffman-coded strings (RFC 7541 §5.2, Appendix B). Strict: EOS inside a
//! string and padding that is not the start of EOS are errors.
//!
//! The code is canonical (within one length, codes ascend with the symbol;
//! longer codes follow shorter ones), so that the lengths alone define it and
//! the tables are made of them at compile time. Codes of up to eight bits,
//! which is nearly all of real header text, are found by one lookup.

use super::Error;

/// Bits of the code of every octet, and of EOS last (RFC 7541 Appendix B).
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

/// The longest code, bits.
const LONGEST: usize = 30;
/// The shortest code, bits.
const SHORTEST: u32 = 5;
/// Symbol number of EOS.
const EOS: u16 = 256;

/// All that decoding needs.
struct Tables {
    /// By the next eight bits: symbol and length of the code they start with; length 0 = a longer code.
    short: [(u8, u8); 256],
    /// Symbols in the order of their codes.
    symbols: [u16; 257],
    /// By length: the first code beyond those of that length, left-aligned to 32 bits.
    beyond: [u64; LONGEST + 1],
    /// By length: the first code of that length.
    first: [u32; LONGEST + 1],
    /// By length: place of its first code's symbol in `symbols`.
    place: [u16; LONGEST + 1],
}

static TABLES: Tables = tables();

const fn tables() -> Tables {
    let mut t = Tables {
        short: [(0, 0); 256],
        symbols: [0; 257],
        beyond: [0; LONGEST + 1],
        first: [0; LONGEST + 1],
        place: [0; LONGEST + 1],
    };
    let (mut code, mut place, mut length) = (0_u32, 0_usize, 1_usize);
    while length <= LONGEST {
        code <<= 1;
        t.first[length] = code;
        t.place[length] = place as u16;
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] as usize == length {
                t.symbols[place] = symbol as u16;
                place += 1;
                if length <= 8 {
                    let from = (code as usize) << (8 - length);
                    let mut at = from;
                    while at < from + (1 << (8 - length)) {
                        t.short[at] = (symbol as u8, length as u8);
                        at += 1;
                    }
                }
                code += 1;
            }
            symbol += 1;
        }
        t.beyond[length] = (code as u64) << (32 - length);
        length += 1;
    }
    t
}

/// Symbol and length of a code of more than eight bits at the top of `window`.
#[cold]
fn long(window: u32) -> (u16, u32) {
    for length in 9..=LONGEST {
        let (Some(&beyond), Some(&first), Some(&place)) = (
            TABLES.beyond.get(length),
            TABLES.first.get(length),
            TABLES.place.get(length),
        ) else {
            break;
        };
        if u64::from(window) < beyond {
            let code = window >> (32 - length);
            let at = usize::from(place) + code.wrapping_sub(first) as usize;
            return (TABLES.symbols.get(at).copied().unwrap_or(EOS), length as u32);
        }
    }
    (EOS, LONGEST as u32)
}

/// Decodes `coded` onto the end of `out`.
///
/// # Errors
/// [`Error::Huffman`]: EOS in the string, more than 7 bits of padding, or padding other than ones.
pub(super) fn decode(coded: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
    out.reserve(coded.len() * 8 / SHORTEST as usize + 1);
    // `bits` holds `count` unread bits at its top. Below them there may be copies of bits that the
    // next refill brings again, so it only ever ORs the same values in.
    let (mut bits, mut count, mut rest) = (0_u64, 0_u32, coded);
    loop {
        if let Some((eight, _)) = rest.split_first_chunk::<8>() {
            bits |= u64::from_be_bytes(*eight) >> count;
            rest = rest.get((63 - count) as usize / 8..).unwrap_or_default();
            count |= 56;
        } else {
            while count <= 56 {
                let Some((&octet, tail)) = rest.split_first() else {
                    break;
                };
                bits |= u64::from(octet) << (56 - count);
                count += 8;
                rest = tail;
            }
        }
        // Every code fits into what is there, until the last few octets.
        while count >= LONGEST as u32 {
            let (symbol, length) = next(bits);
            out.push(u8::try_from(symbol).map_err(|_| Error::Huffman)?);
            bits <<= length;
            count -= length;
        }
        if rest.is_empty() {
            break;
        }
    }
    while count >= SHORTEST {
        let (symbol, length) = next(bits);
        if length > count {
            break;
        }
        out.push(u8::try_from(symbol).map_err(|_| Error::Huffman)?);
        bits <<= length;
        count -= length;
    }
    // RFC 7541 §5.2: padding is the most significant bits of EOS, at most 7 of them.
    if count > 7 || bits != !(u64::MAX >> count) {
        return Err(Error::Huffman);
    }
    Ok(())
}

#[inline(always)]
fn next(bits: u64) -> (u16, u32) {
    let (symbol, length) = TABLES.short.get((bits >> 56) as usize).copied().unwrap_or_default();
    if length == 0 {
        long((bits >> 32) as u32)
    } else {
        (u16::from(symbol), u32::from(length))
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::sync::LazyLock;

    use super::*;

    /// The encoder that the tests need: bit by bit from the code's definition.
    pub(in super::super) fn encode(text: &[u8]) -> Vec<u8> {
        static CODES: LazyLock<Vec<(u32, u8)>> = LazyLock::new(|| {
            let code = |symbol: usize| {
                let length = LENGTHS[symbol];
                let at = TABLES.symbols.iter().position(|&s| usize::from(s) == symbol).unwrap() as u32;
                let nth = at - u32::from(TABLES.place[usize::from(length)]);
                (TABLES.first[usize::from(length)] + nth, length)
            };
            (0..256).map(code).collect()
        });
        let bits: Vec<u8> = text
            .iter()
            .flat_map(|&o| {
                let (code, length) = CODES[usize::from(o)];
                (0..length).rev().map(move |i| (code >> i & 1) as u8)
            })
            .collect();
        bits.chunks(8)
            .map(|c| (0..8).fold(0, |octet, i| octet << 1 | c.get(i).copied().unwrap_or(1)))
            .collect()
    }

    fn decoded(coded: &[u8]) -> Result<Vec<u8>, Error> {
        let mut out = Vec::new();
        decode(coded, &mut out).map(|()| out)
    }

    #[test]
    fn the_code_is_that_of_appendix_b() {
        // Sample rows of the table: '0' is 0x0, 'z' 0x7b|7, '!' 0x3f8|10, 0xff 0x3ffffee|26, EOS 30 ones.
        assert_eq!(TABLES.first[5], 0);
        assert_eq!(encode(b"z"), [0xf7]);
        assert_eq!(encode(b"!"), [0xfe, 0x3f]);
        assert_eq!(encode(&[0xff]), [0xff, 0xff, 0xfb, 0xbf]);
        assert_eq!(TABLES.beyond[LONGEST], 1 << 32, "the code is complete");
    }

    #[test]
    fn every_octet_survives_in_every_place() {
        for octet in 0..=255 {
            for pad in 0..9 {
                let text = [vec![b'0'; pad], vec![octet; 3], vec![b'a'; pad]].concat();
                assert_eq!(decoded(&encode(&text)), Ok(text));
            }
        }
    }

    #[test]
    fn strict_about_the_end() {
        assert_eq!(decoded(&[]), Ok(vec![]));
        assert_eq!(decoded(&[0xff]), Err(Error::Huffman), "eight bits of padding");
        assert_eq!(decoded(&[0b0000_0111]), Ok(b"0".to_vec()));
        assert_eq!(decoded(&[0b0000_0110]), Err(Error::Huffman), "padding that is not EOS");
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xff]), Err(Error::Huffman), "EOS");
        assert_eq!(decoded(&[0xff; 40]), Err(Error::Huffman), "EOS in a long string");
        assert_eq!(decoded(&[0xfe]), Err(Error::Huffman), "a code cut short");
    }
}
