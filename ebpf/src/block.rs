//! A walk over header blocks (RFC 7541) that looks for trace contexts and for
//! nothing else: `traceparent`, and `sentry-trace` for where there is none.
//!
//! It can be cut at any byte and keeps no header: of strings it reads only
//! those that are as long as the names and values it looks for. What lies in
//! the dynamic table is known by counting insertions: index *i* is always the
//! *i*-th latest. Bias: a field that can't be named is *unknown*, and so is a
//! context that may be in it.
//!
//! ```text
//!   FIELD --literal, new name--> NAME_LENGTH > NAME > VALUE_LENGTH > VALUE --> FIELD
//!         --literal, index------------------------> VALUE_LENGTH
//!         --indexed, size update--> FIELD          (MORE: an integer of several bytes)
//! ```

use tracewire_common::trace::{LENGTH, TraceParent};

use crate::bound::opaque;

/// Values of [`Field::state`].
pub mod state {
    /// It is not there.
    pub const ABSENT: u8 = 0;
    /// It is there and valid.
    pub const VALUE: u8 = 1;
    /// It is there, and no valid value, or there twice.
    pub const MALFORMED: u8 = 2;
    /// It is there, and what it says is not known.
    pub const UNKNOWN: u8 = 3;
}

/// Names of fields.
pub mod name {
    /// `traceparent`.
    pub const TRACEPARENT: u8 = 0;
    /// `sentry-trace`.
    pub const SENTRY: u8 = 1;
    /// None of these.
    pub const OTHER: u8 = 2;
    /// An index from before the walk.
    pub const UNKNOWN: u8 = 3;
}

/// Bits of [`Block::signs`].
pub mod sign {
    /// A pseudo-header of requests was there (RFC 9113 §8.3.1).
    pub const REQUEST: u8 = 1;
    /// `:status` was there (RFC 9113 §8.3.2).
    pub const RESPONSE: u8 = 2;
    /// A field was there that can't be named.
    pub const UNNAMED: u8 = 4;
    /// The block is no valid HPACK.
    pub const MALFORMED: u8 = 8;
}

mod phase {
    pub const FIELD: u8 = 0;
    pub const NAME_LENGTH: u8 = 1;
    pub const VALUE_LENGTH: u8 = 2;
    pub const NAME: u8 = 3;
    pub const VALUE: u8 = 4;
    pub const MORE: u8 = 5;
}

/// Representations, RFC 7541 §6.
mod kind {
    pub const INDEXED: u8 = 0;
    pub const INCREMENTAL: u8 = 1;
    pub const WITHOUT: u8 = 2;
    pub const SIZE: u8 = 3;
}

/// Entries of the static table, RFC 7541 appendix A.
const STATIC: u32 = 61;
/// Latest insertions whose names are known.
const WINDOW: u32 = 256;
/// Latest contexts in the table whose values are kept.
const KEPT: usize = 4;
/// Characters of a value that are read: one more than version 00 has.
const READ: u8 = LENGTH as u8 + 1;

/// Both names, plain and by Huffman's code (RFC 7541 appendix B).
static NAMES: [u8; 64] = *b"traceparent\0\0\0\0\0\x4d\x83\x21\x6b\x1d\x85\xa9\x3f\0\0\0\0\0\0\0\0\
sentry-trace\0\0\0\0\x41\x6a\x4d\x9e\x96\x4d\x83\x21\x7f\0\0\0\0\0\0\0";

/// What a field said.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Field {
    /// In the table: number of its insertion.
    pub number: u32,
    /// One of [`state`].
    pub state: u8,
    /// Trace flags.
    pub flags: u8,
    /// One of [`name`].
    pub name: u8,
    /// 1: `flags` leave the head decision to whoever comes next.
    pub open: u8,
    /// Trace id.
    pub trace_id: [u8; 16],
    /// Span id.
    pub span_id: [u8; 8],
}

/// What is known of one direction's dynamic table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Insertions since the walk began.
    pub inserted: u32,
    /// Where the next one goes in `kept`.
    next: u32,
    /// Bit *i* of the four words from 4·name on: the *i*-th latest insertion has that name.
    names: [u64; 8],
    kept: [Field; KEPT],
}

/// A header block under way.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// By [`name`]: what was found.
    pub found: [Field; 2],
    /// Bits of [`sign`].
    pub signs: u8,
    phase: u8,
    kind: u8,
    name: u8,
    /// What an integer of several bytes is for: FIELD, NAME_LENGTH, VALUE_LENGTH.
    target: u8,
    huffman: u8,
    shift: u8,
    /// Characters read of the string.
    have: u8,
    /// 0: the string is passed over, 1: it is read; a name: 2 and more, which of `NAMES`.
    reading: u8,
    /// Bits in `code`.
    bits: u8,
    reserved: [u8; 2],
    integer: u32,
    /// Bytes left of the string.
    need: u32,
    /// Bits of Huffman's code that are no character yet.
    code: u32,
    text: [u8; 64],
}

/// Contiguous bytes of a block.
pub trait Piece {
    /// The byte at `at`, which is below the piece's length.
    fn byte(&self, at: u32) -> u8;
}

impl Block {
    /// Before the first byte.
    pub const EMPTY: Block = Block {
        found: [Field::EMPTY; 2],
        signs: 0,
        phase: phase::FIELD,
        kind: kind::INDEXED,
        name: name::OTHER,
        target: 0,
        huffman: 0,
        shift: 0,
        have: 0,
        reading: 0,
        bits: 0,
        reserved: [0; 2],
        integer: 0,
        need: 0,
        code: 0,
        text: [0; 64],
    };

    /// A new block begins.
    #[inline(always)]
    pub fn begin(&mut self) {
        self.found[0].state = state::ABSENT;
        self.found[1].state = state::ABSENT;
        self.signs = 0;
        self.phase = phase::FIELD;
        self.reading = 0;
        self.need = 0;
    }

    /// Whether the block may end here.
    #[inline(always)]
    pub fn whole(&self) -> bool {
        self.phase == phase::FIELD && self.signs & sign::MALFORMED == 0
    }

    /// One step over a piece of which `left` ≥ 1 bytes follow from `at`: how many it took.
    #[inline(always)]
    pub fn step<P: Piece>(&mut self, table: &mut Table, piece: &P, at: u32, left: u32) -> u32 {
        if self.phase == phase::NAME || self.phase == phase::VALUE {
            if self.reading == 0 {
                let n = if self.need < left { self.need } else { left };
                self.need -= n;
                if self.need == 0 {
                    self.string_end(table);
                }
                return n;
            }
            self.character(piece.byte(at));
            self.need = self.need.wrapping_sub(1);
            if self.need == 0 {
                self.string_end(table);
            }
            return 1;
        }
        let c = piece.byte(at);
        if self.phase == phase::MORE {
            self.integer = self.integer.wrapping_add(u32::from(c & 127) << (self.shift & 31));
            self.shift = self.shift.wrapping_add(7);
            if self.shift > 21 {
                self.signs |= sign::MALFORMED;
            }
            if c & 128 != 0 {
                return 1;
            }
        } else {
            let prefix = if self.phase == phase::FIELD {
                let (kind, prefix) = if c & 0x80 != 0 {
                    (kind::INDEXED, 0x7f)
                } else if c & 0x40 != 0 {
                    (kind::INCREMENTAL, 0x3f)
                } else if c & 0x20 != 0 {
                    (kind::SIZE, 0x1f)
                } else {
                    (kind::WITHOUT, 0x0f)
                };
                self.kind = kind;
                prefix
            } else {
                self.huffman = c >> 7;
                0x7f
            };
            self.target = self.phase;
            self.integer = u32::from(c & prefix);
            if c & prefix == prefix {
                self.shift = 0;
                self.phase = phase::MORE;
                return 1;
            }
        }
        self.integer_end(table);
        1
    }

    #[inline(always)]
    fn integer_end(&mut self, table: &mut Table) {
        match self.target {
            phase::FIELD => {
                self.phase = phase::FIELD;
                if self.kind == kind::SIZE {
                    return;
                }
                if self.integer == 0 {
                    if self.kind == kind::INDEXED {
                        self.signs |= sign::MALFORMED;
                    }
                    self.phase = phase::NAME_LENGTH;
                    return;
                }
                self.name = self.named(table);
                if self.kind != kind::INDEXED {
                    self.phase = phase::VALUE_LENGTH;
                    return;
                }
                if self.name == name::UNKNOWN {
                    self.signs |= sign::UNNAMED;
                } else if self.name < name::OTHER {
                    let number = table.inserted.wrapping_sub(self.integer - STATIC - 1);
                    let mut field = Field {
                        state: state::UNKNOWN,
                        ..Field::EMPTY
                    };
                    let mut i = 0;
                    while i < KEPT {
                        let kept = &table.kept[i];
                        if kept.state != state::ABSENT && kept.number == number {
                            field = *kept;
                        }
                        i += 1;
                    }
                    self.find(field);
                }
            }
            phase::NAME_LENGTH => {
                self.need = self.integer;
                self.have = 0;
                self.name = name::OTHER;
                self.reading = match (self.huffman, self.integer) {
                    (0, 11) => 2,
                    (1, 8) => 3,
                    (0, 12) => 4,
                    (1, 9) => 5,
                    _ => 0,
                };
                if self.reading != 0 {
                    self.name = if self.reading < 4 {
                        name::TRACEPARENT
                    } else {
                        name::SENTRY
                    };
                }
                self.phase = phase::NAME;
                if self.need == 0 {
                    self.string_end(table);
                }
            }
            _ => {
                self.need = self.integer;
                self.have = 0;
                self.bits = 0;
                self.code = 0;
                // An unknown name is told by a value that only `traceparent` has.
                let may_be = if self.huffman == 0 {
                    self.integer == LENGTH as u32
                } else {
                    self.integer > 34 && self.integer < 43
                };
                self.reading = u8::from(self.name < name::OTHER || self.name == name::UNKNOWN && may_be);
                if self.name == name::SENTRY {
                    // Its ids then stand where they do in a `traceparent`.
                    self.text[0] = b'0';
                    self.text[1] = b'0';
                    self.text[2] = b'-';
                    self.have = 3;
                }
                self.phase = phase::VALUE;
                if self.need == 0 {
                    self.string_end(table);
                }
            }
        }
    }

    /// The name of the entry at the index that was read.
    #[inline(always)]
    fn named(&mut self, table: &Table) -> u8 {
        let index = self.integer;
        if index <= STATIC {
            if index < 8 {
                self.signs |= sign::REQUEST;
            } else if index < 15 {
                self.signs |= sign::RESPONSE;
            }
            return name::OTHER;
        }
        let n = index - STATIC - 1;
        if n >= WINDOW || n >= table.inserted {
            return name::UNKNOWN;
        }
        let word = (n >> 6) as usize & 3;
        let bit = n & 63;
        if table.names[word] >> bit & 1 != 0 {
            name::TRACEPARENT
        } else if table.names[4 + word] >> bit & 1 != 0 {
            name::SENTRY
        } else {
            name::OTHER
        }
    }

    /// A byte of a string that is read.
    #[inline(always)]
    fn character(&mut self, c: u8) {
        if self.reading > 1 {
            let at = (self.reading as usize - 2) * 16 + (self.have as usize & 15);
            if c != NAMES[(opaque(at as u64) & 63) as usize] {
                self.name = name::OTHER;
                self.reading = 0;
            }
            self.have = self.have.wrapping_add(1);
            return;
        }
        if self.huffman == 0 {
            self.put(c);
            return;
        }
        self.code = self.code << 8 | u32::from(c);
        self.bits = self.bits.wrapping_add(8);
        // At most two characters end in one byte: none of them has fewer than five bits.
        self.decode();
        self.decode();
    }

    /// Takes a character of Huffman's code, of those that a context has.
    #[inline(always)]
    fn decode(&mut self) {
        if self.bits < 5 {
            return;
        }
        let five = self.code >> (u32::from(self.bits - 5) & 31) & 31;
        let short = match five {
            0..=2 => b'0' + five as u8,
            3 => b'a',
            4 => b'c',
            5 => b'e',
            _ => 0,
        };
        if short != 0 {
            self.bits -= 5;
            self.put(short);
            return;
        }
        if self.bits < 6 {
            return;
        }
        let six = self.code >> (u32::from(self.bits - 6) & 31) & 63;
        let long = match six {
            0x16 => b'-',
            0x19..=0x1f => b'3' + (six as u8 - 0x19),
            0x23 => b'b',
            0x24 => b'd',
            0x25 => b'f',
            // The padding, or a character that no context has.
            _ => 0,
        };
        self.bits -= 6;
        if long != 0 || six != 0x3f || self.need > 1 {
            self.put(long);
        }
    }

    #[inline(always)]
    fn put(&mut self, c: u8) {
        if self.have < 63 {
            self.text[self.have as usize & 63] = c;
            self.have += 1;
        }
    }

    #[inline(always)]
    fn string_end(&mut self, table: &mut Table) {
        if self.phase == phase::NAME {
            self.phase = phase::VALUE_LENGTH;
            self.reading = 0;
            return;
        }
        self.phase = phase::FIELD;
        let mut field = Field::EMPTY;
        if self.reading != 0 {
            field = self.field();
            if self.name == name::UNKNOWN && field.state == state::VALUE {
                self.name = name::TRACEPARENT;
            }
        } else if self.name < name::OTHER {
            field.state = state::MALFORMED;
        }
        self.reading = 0;
        let known = self.name < name::OTHER;
        field.name = self.name;
        if self.kind == kind::INCREMENTAL {
            table.insert(self.name);
            if known {
                field.number = table.inserted;
                table.keep(field);
            }
        }
        if known {
            self.find(field);
        }
    }

    /// HTTP/1: the value of a field begins, one of [`name`].
    #[inline(always)]
    pub fn value_begins(&mut self, name: u8) {
        self.name = name;
        self.have = 0;
        if name == name::SENTRY {
            self.text[0] = b'0';
            self.text[1] = b'0';
            self.text[2] = b'-';
            self.have = 3;
        }
    }

    /// HTTP/1: a byte of the value.
    #[inline(always)]
    pub fn value_byte(&mut self, c: u8) {
        self.put(c);
    }

    /// HTTP/1: whatever the value says, it is malformed.
    #[inline(always)]
    pub fn value_odd(&mut self) {
        self.have = 1;
    }

    /// HTTP/1: the value is over.
    #[inline(always)]
    pub fn value_ends(&mut self) {
        let mut field = self.field();
        field.name = self.name;
        self.find(field);
    }

    /// What the value says.
    #[inline(always)]
    fn field(&mut self) -> Field {
        let mut fits = self.have == LENGTH as u8;
        let mut open = 0;
        if self.name == name::SENTRY {
            // `{trace}-{span}` or `{trace}-{span}-{0|1}`: Sentry, "Distributed Tracing".
            let decided = self.have == 3 + 51;
            fits = decided || self.have == 3 + 49;
            open = u8::from(!decided);
            self.text[54] = if decided { self.text[53] } else { b'1' };
            self.text[53] = b'0';
            if !decided {
                self.text[52] = b'-';
            }
        } else if self.have >= READ {
            // A later version may have more (W3C Trace Context §4.3).
            fits = self.text[LENGTH] == b'-' && !(self.text[0] == b'0' && self.text[1] == b'0');
        }
        let mut field = Field {
            state: state::MALFORMED,
            open,
            ..Field::EMPTY
        };
        // SAFETY: the text has 64 bytes, an array of bytes has no alignment.
        let text = unsafe { &*(&raw const self.text).cast::<[u8; LENGTH]>() };
        if fits && let Some(parent) = TraceParent::decode(text) {
            field.state = state::VALUE;
            field.trace_id = parent.trace_id;
            field.span_id = parent.span_id;
            field.flags = parent.flags;
        }
        field
    }

    /// Notes a context. Twice there is as good as malformed (W3C Trace Context §3.2.1).
    #[inline(always)]
    fn find(&mut self, field: Field) {
        let slot = &mut self.found[(opaque(u64::from(self.name)) & 1) as usize];
        let again = slot.state != state::ABSENT;
        *slot = field;
        if again {
            slot.state = state::MALFORMED;
        }
    }
}

impl Field {
    /// Nothing.
    pub const EMPTY: Field = Field {
        number: 0,
        state: state::ABSENT,
        flags: 0,
        name: name::OTHER,
        open: 0,
        trace_id: [0; 16],
        span_id: [0; 8],
    };
}

impl Table {
    /// Before the first insertion, or after a gap.
    pub const EMPTY: Table = Table {
        inserted: 0,
        next: 0,
        names: [0; 8],
        kept: [Field::EMPTY; KEPT],
    };

    #[inline(always)]
    fn insert(&mut self, name: u8) {
        self.inserted = self.inserted.wrapping_add(1);
        let mut i = 8;
        while i > 0 {
            i -= 1;
            let carry = if i & 3 == 0 { 0 } else { self.names[i - 1] >> 63 };
            self.names[i] = self.names[i] << 1 | carry;
        }
        if name == name::TRACEPARENT {
            self.names[0] |= 1;
        } else if name == name::SENTRY {
            self.names[4] |= 1;
        }
    }

    /// Bytes went by unseen: what is in the table is not known.
    #[inline(always)]
    pub fn lose(&mut self) {
        self.inserted = 0;
        self.names = [0; 8];
        let mut i = 0;
        while i < KEPT {
            self.kept[i].state = state::ABSENT;
            i += 1;
        }
    }

    #[inline(always)]
    fn keep(&mut self, field: Field) {
        self.kept[self.next as usize & (KEPT - 1)] = field;
        self.next = self.next.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests;
