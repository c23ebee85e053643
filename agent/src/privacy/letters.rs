//! Whether characters were written by someone or drawn at random. Leans to
//! *drawn* where both are possible: a secret shown is worse than a word hidden.

/// Changes between lower case, upper case and digits, the start of a
/// capitalised word not counted.
pub fn turns(bytes: &[u8]) -> usize {
    let class = |b: &u8| match b {
        b'a'..=b'z' => 0u8,
        b'A'..=b'Z' => 1,
        _ => 2,
    };
    bytes
        .iter()
        .zip(bytes.iter().skip(1))
        .filter(|(a, b)| {
            let (a, b) = (class(a), class(b));
            a != b && !(a == 1 && b == 0)
        })
        .count()
}

/// Whether the characters look drawn, not written: by changes of class, and
/// by letters that words don't put side by side.
pub fn is_random(part: &[u8], digits: usize) -> bool {
    let length = part.len();
    if length < 8 {
        return false;
    }
    let upper = part.iter().any(u8::is_ascii_uppercase);
    let lower = part.iter().any(u8::is_ascii_lowercase);
    let (turns, rare) = (turns(part), rare_pairs(part));
    if upper && lower && length >= 12 && (2 * rare + turns) * 5 >= length * 2 {
        return true;
    }
    if (2 * rare + turns) * 2 >= length && (length >= 12 || digits > 0 || (upper && lower) || rare * 5 >= length * 2) {
        return true;
    }
    if length < 16 {
        digits >= 2 && turns >= 3
    } else {
        digits >= 3 && turns >= 3
    }
}

/// Pairs of neighbouring letters that hardly occur in English or in identifiers.
pub fn rare_pairs(part: &[u8]) -> usize {
    /// By first letter, a bit for each second letter that is usual after it: pairs with at
    /// least one in 4,500 of all in the words of a large body of source text.
    const USUAL: [u32; 26] = [
        0x1febd7f, 0x11edb3f, 0x13efdbf, 0x17ef9ff, 0x1fffdff, 0x11ef97f, 0x01ef9f5, 0x15ef91f, 0x2aefc7f, 0x0004011,
        0x01c6911, 0x13cfd7f, 0x01cf93f, 0x17efdff, 0x0fefd7f, 0x17efdff, 0x0100000, 0x17efd7f, 0x37efdff, 0x1fef9ff,
        0x00ef97f, 0x004d115, 0x006f9bd, 0x00c8135, 0x00cf915, 0x204811d,
    ];
    let letter = |b: &u8| b.is_ascii_alphabetic().then(|| b.to_ascii_lowercase() - b'a');
    part.iter()
        .zip(part.iter().skip(1))
        // A capital after a small letter starts a word: what stands before it does not matter.
        .filter(|(a, b)| !(a.is_ascii_lowercase() && b.is_ascii_uppercase()))
        .filter(|(a, b)| match (letter(a), letter(b)) {
            (Some(a), Some(b)) => USUAL.get(usize::from(a)).is_some_and(|usual| usual >> b & 1 == 0),
            _ => false,
        })
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawn_and_written() {
        let random = |text: &str| is_random(text.as_bytes(), text.bytes().filter(u8::is_ascii_digit).count());
        for text in [
            "qzvkxwjrtplmhgfd",
            "EqcKmsrRXYSxaAZIeZWPVhq",
            "dQw4w9WgXcQ",
            "7JGglidiBtowyg3x",
            "x7k2m9qp4",
        ] {
            assert!(random(text), "{text}");
        }
        for text in [
            "customresourcedefinitions",
            "getUserProfileInformation",
            "XMLHttpRequest",
            "hgwebdir",
            "a7",
        ] {
            assert!(!random(text), "{text}");
        }
    }
}
