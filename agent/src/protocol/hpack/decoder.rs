//! Decodes header blocks of one direction (RFC 7541 §3). Bias: an error or an
//! unknown field rather than a field that might not be what the peer read.

use std::ops::Range;

use super::table::{self, Name, Table};
use super::{Error, huffman, integer};

/// Octets that the literals of one block may decode to. The kernel programs let no block of more than
/// 16 KiB through, which Huffman coding can make 26 KiB of.
const LITERALS: usize = 64 * 1024;

/// Initial table size and limit of a connection (SETTINGS_HEADER_TABLE_SIZE, RFC 9113 §6.5.2), bytes.
const DEFAULT_SIZE: u32 = 4096;

/// One field of a block; `None` = unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// Name as sent.
    pub name: Option<&'a [u8]>,
    /// Value as sent.
    pub value: Option<&'a [u8]>,
    /// The sender asked that it be in no table (RFC 7541 §7.1.3): it is likely a secret.
    pub never_indexed: bool,
}

/// Decoder of one direction of a connection.
///
/// Unknown fields come only from indexes of a time that was not seen, and end as soon as the table
/// is known to hold nothing of that time (see the table's own documentation for the proof).
pub struct Decoder {
    table: Table,
    /// The peer's SETTINGS_HEADER_TABLE_SIZE, if it is known.
    limit: Option<u32>,
    /// Huffman-coded strings of the field at hand, decoded.
    scratch: Vec<u8>,
    unknown: u64,
}

impl Decoder {
    /// `fresh`: this direction was seen from its first byte, so every index can be resolved or is an error.
    pub fn new(fresh: bool) -> Self {
        let size = fresh.then_some(DEFAULT_SIZE);
        Decoder {
            table: Table::new(size),
            limit: size,
            scratch: Vec::new(),
            unknown: 0,
        }
    }

    /// Bytes (perhaps header blocks) of this direction were lost: nothing inserted before is trusted
    /// from here on, and the limit is unknown until [`Decoder::set_limit`].
    pub fn lose(&mut self) {
        self.table.lose();
        self.limit = None;
    }

    /// The limit for size updates, bytes: SETTINGS_HEADER_TABLE_SIZE of the peer that *receives* this
    /// direction. Raise it when the SETTINGS frame is seen, lower it when its acknowledgement is seen
    /// (RFC 9113 §6.5.3): the encoder may use the old value until then. It does not resize the table,
    /// the encoder's size update does (RFC 7541 §4.2). Heeded only while the table is whole.
    pub fn set_limit(&mut self, bytes: u32) {
        self.limit = Some(bytes);
    }

    /// Number of fields so far that were given with name or value unknown.
    pub fn unknown_indexes(&self) -> u64 {
        self.unknown
    }

    /// Decodes a whole header block (a HEADERS or PUSH_PROMISE fragment with its CONTINUATIONs) and
    /// gives its fields in their order.
    ///
    /// # Errors
    /// Fields before the malformed one were given already. The table is lost, as by [`Decoder::lose`]:
    /// insertions of the rest of the block are missing.
    pub fn decode(&mut self, block: &[u8], mut each: impl FnMut(Field<'_>)) -> Result<(), Error> {
        let result = self.fields(block, &mut each);
        if result.is_err() {
            self.lose();
        }
        result
    }

    fn fields(&mut self, block: &[u8], each: &mut impl FnMut(Field<'_>)) -> Result<(), Error> {
        let mut rest = block;
        let mut literals = LITERALS;
        let mut start = true;
        while let Some(&first) = rest.first() {
            match first {
                // Indexed, RFC 7541 §6.1.
                0x80.. => {
                    let index = integer::read(&mut rest, 7)?;
                    let (name, value) = match self.table.get(index)? {
                        Some((name, value)) => (name, Some(value)),
                        None => (None, None),
                    };
                    self.unknown += u64::from(name.is_none());
                    each(Field {
                        name,
                        value,
                        never_indexed: false,
                    });
                }
                // Size update, §6.3: at the beginning of a block only, §4.2.
                0x20..0x40 => {
                    let size = integer::read(&mut rest, 5)?;
                    let over = self.table.is_whole() && self.limit.is_some_and(|limit| size > limit);
                    if !start || over {
                        return Err(Error::SizeUpdate);
                    }
                    self.table.resize(size);
                    continue;
                }
                // Literals: with indexing §6.2.1, never indexed §6.2.3, without indexing §6.2.2.
                0x40..0x80 => self.literal(&mut rest, 6, &mut literals, each)?,
                _ => self.literal(&mut rest, 4, &mut literals, each)?,
            }
            start = false;
        }
        Ok(())
    }

    fn literal(
        &mut self,
        rest: &mut &[u8],
        prefix: u32,
        literals: &mut usize,
        each: &mut impl FnMut(Field<'_>),
    ) -> Result<(), Error> {
        let first = rest.first().copied().unwrap_or_default();
        let index = integer::read(rest, prefix)?;
        self.scratch.clear();
        let own = if index == 0 {
            Some(string(rest, &mut self.scratch, literals)?)
        } else {
            None
        };
        let value = string(rest, &mut self.scratch, literals)?.text(&self.scratch);
        let (name, source) = match own {
            Some(own) => {
                let text = own.text(&self.scratch);
                (Some(text), Name::Text(text))
            }
            None => match (table::static_name(index), self.table.get(index)?) {
                (Some(name), _) => (Some(name), Name::Text(name)),
                (None, Some((Some(name), _))) => (Some(name), Name::Entry(index)),
                _ => (None, Name::Unknown),
            },
        };
        self.unknown += u64::from(name.is_none());
        each(Field {
            name,
            value: Some(value),
            never_indexed: first & 0xf0 == 0x10,
        });
        if prefix == 6 {
            self.table.insert(source, value);
        }
        Ok(())
    }
}

/// A string: octets of the block, or of the scratch buffer if it was Huffman-coded.
enum Text<'a> {
    Plain(&'a [u8]),
    Decoded(Range<usize>),
}

impl<'a> Text<'a> {
    fn text(self, scratch: &'a [u8]) -> &'a [u8] {
        match self {
            Text::Plain(text) => text,
            Text::Decoded(range) => scratch.get(range).unwrap_or_default(),
        }
    }
}

/// Reads a string (RFC 7541 §5.2) and takes its decoded length from `left`.
fn string<'a>(rest: &mut &'a [u8], scratch: &mut Vec<u8>, left: &mut usize) -> Result<Text<'a>, Error> {
    let coded = rest.first().is_some_and(|first| first & 0x80 != 0);
    let length = integer::read(rest, 7)?;
    let (octets, tail) = rest.split_at_checked(length as usize).ok_or(Error::Truncated)?;
    *rest = tail;
    let from = scratch.len();
    let text = if coded {
        // No decoded string is shorter than a quarter of its code, so that this bounds the work.
        if octets.len() / 4 > *left {
            return Err(Error::TooLarge);
        }
        huffman::decode(octets, scratch)?;
        Text::Decoded(from..scratch.len())
    } else {
        Text::Plain(octets)
    };
    let takes = if coded { scratch.len() - from } else { octets.len() };
    *left = left.checked_sub(takes).ok_or(Error::TooLarge)?;
    Ok(text)
}
