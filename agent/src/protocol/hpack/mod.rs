//! HPACK (RFC 7541) for an observer: what was not seen is unknown, never a wrong value.

mod decoder;
#[cfg(test)]
mod differential;
pub mod encoder;
mod huffman;
mod integer;
#[cfg(test)]
mod stories;
mod table;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod through_h2;

pub use decoder::{Decoder, Field};

/// Why a header block cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The block ends inside a field.
    #[error("header block ends inside a field")]
    Truncated,
    /// An integer that does not fit 32 bits (RFC 7541 §5.1).
    #[error("integer too large")]
    Integer,
    /// Index 0, or beyond a table that is known whole (RFC 7541 §2.3.3).
    #[error("no such index")]
    Index,
    /// EOS or bad padding in a Huffman-coded string (RFC 7541 §5.2).
    #[error("malformed Huffman code")]
    Huffman,
    /// A size update behind a field, or above the limit (RFC 7541 §4.2, §6.3).
    #[error("size update out of place or above the limit")]
    SizeUpdate,
    /// The literals of one block are longer than we are ready to hold.
    #[error("header block too large")]
    TooLarge,
}
