//! Header blocks for recordings that had values taken out. Stateless: nothing
//! it writes touches a dynamic table, so a block can be replaced by itself.
//!
//! *Unknown* is written as an index that a [`super::Decoder`] which has not
//! seen its direction from the first byte can never hold. A decoder that has
//! seen it takes that index for an error; it never yields an unknown either.

use super::integer;

/// Beyond any table that the decoder keeps (its entries are at least 32 bytes each).
const FAR: u32 = 1 << 20;

/// Appends a literal that is never indexed (RFC 7541 §6.2.3), without Huffman coding.
pub fn literal(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.push(0x10);
    string(out, name);
    string(out, value);
}

/// Appends the same with the name at `index` (1 to 14) of the static table (RFC 7541 Appendix A).
pub fn indexed_name(out: &mut Vec<u8>, index: u32, value: &[u8]) {
    integer::write(out, 0x10, 4, index);
    string(out, value);
}

/// Appends a field of which neither name nor value is known.
pub fn unknown(out: &mut Vec<u8>) {
    integer::write(out, 0x80, 7, FAR);
}

/// Appends a field whose value is not known. HPACK has no form that names a field and keeps its
/// value back, so this decodes as [`unknown`] does: the name is lost too, which only widens the doubt.
pub fn unknown_value(out: &mut Vec<u8>, _name: &[u8]) {
    unknown(out);
}

fn string(out: &mut Vec<u8>, text: &[u8]) {
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    integer::write(out, 0, 7, length);
    out.extend_from_slice(text.get(..length as usize).unwrap_or(text));
}
