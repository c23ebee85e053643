//! The file around the entries. Reading is bounded by what the file really
//! holds: a length that lies costs nothing.

use std::io::{self, BufWriter, Read, Write};

use tracewire_common::event::Header;
use tracewire_common::event::Plain;

use super::{ENTRY_LIMIT, Entry, MAGIC};

/// Buffer of the writer, bytes.
const BUFFER: usize = 64 * 1024;

/// Why a recording can't be read on.
#[derive(Debug, thiserror::Error)]
pub enum Bad {
    /// It does not begin as one.
    #[error("not a recording of this version (byte 0)")]
    Magic,
    /// It ends inside an entry.
    #[error("ends inside the entry at byte {at}")]
    Truncated {
        /// Where the entry begins.
        at: u64,
    },
    /// An entry makes no sense.
    #[error("bad entry at byte {at}")]
    Entry {
        /// Where it begins.
        at: u64,
    },
    /// The file can't be read.
    #[error("can't be read at byte {at}: {error}")]
    Io {
        /// Where it was read.
        at: u64,
        /// What went wrong.
        error: io::Error,
    },
}

/// Reads entries.
pub struct Reader<R> {
    input: R,
    entry: Vec<u8>,
    /// Where the next entry begins.
    at: u64,
}

impl<R: Read> Reader<R> {
    /// A reader of `input`, which should be buffered.
    ///
    /// # Errors
    /// When it does not begin with [`MAGIC`].
    pub fn new(mut input: R) -> Result<Self, Bad> {
        let mut start = [0; MAGIC.len()];
        match input.read_exact(&mut start) {
            Ok(()) if start == MAGIC => {}
            Ok(()) => return Err(Bad::Magic),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(Bad::Magic),
            Err(error) => return Err(Bad::Io { at: 0, error }),
        }
        Ok(Reader {
            input,
            entry: Vec::new(),
            at: MAGIC.len() as u64,
        })
    }

    /// The bytes of the next entry; None at the end of the file.
    ///
    /// # Errors
    /// When the file ends inside an entry, or one is too long, or the input fails.
    pub fn bytes(&mut self) -> Result<Option<&[u8]>, Bad> {
        let at = self.at;
        if self.take(4)? == 0 {
            return Ok(None);
        }
        let Some(length) = self.entry.first_chunk().map(|b| u32::from_le_bytes(*b)) else {
            return Err(Bad::Truncated { at });
        };
        if length > ENTRY_LIMIT {
            return Err(Bad::Entry { at });
        }
        if self.take(length.into())? < length as usize {
            return Err(Bad::Truncated { at });
        }
        self.at = at + 4 + u64::from(length);
        Ok(Some(&self.entry))
    }

    /// The next entry; None at the end of the file.
    ///
    /// # Errors
    /// As [`Reader::bytes`], and when the bytes are no entry.
    pub fn entry(&mut self) -> Result<Option<Entry<'_>>, Bad> {
        let at = self.at;
        match self.bytes()? {
            None => Ok(None),
            Some(bytes) => Entry::parse(bytes).map(Some).ok_or(Bad::Entry { at }),
        }
    }

    /// Reads up to `length` bytes to `entry`; how many there were.
    fn take(&mut self, length: u64) -> Result<usize, Bad> {
        self.entry.clear();
        let read = self.input.by_ref().take(length).read_to_end(&mut self.entry);
        read.map_err(|error| Bad::Io { at: self.at, error })
    }
}

/// Writes entries, buffered.
pub struct Writer<W: Write> {
    out: BufWriter<W>,
}

impl<W: Write> Writer<W> {
    /// Begins a recording.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn new(out: W) -> io::Result<Self> {
        let mut out = BufWriter::with_capacity(BUFFER, out);
        out.write_all(MAGIC)?;
        Ok(Writer { out })
    }

    /// Appends an entry; its header's length is made to fit. How many bytes it takes.
    ///
    /// # Errors
    /// Those of the output; [`io::ErrorKind::InvalidInput`] when the entry is too long to be read again.
    pub fn write(&mut self, header: &Header, payload: &[u8]) -> io::Result<u64> {
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let whole = length.saturating_add(size_of::<Header>() as u32);
        if whole > ENTRY_LIMIT {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.out.write_all(&whole.to_le_bytes())?;
        self.out.write_all(Header { length, ..*header }.bytes())?;
        self.out.write_all(payload)?;
        Ok(u64::from(whole) + 4)
    }

    /// Hands all to the output.
    ///
    /// # Errors
    /// Those of the output.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::recording::kind;

    fn file() -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes).unwrap();
        writer
            .write(
                &Header {
                    kind: kind::TICK,
                    time_ns: 5,
                    ..Header::EMPTY
                },
                &[],
            )
            .unwrap();
        writer
            .write(
                &Header {
                    kind: kind::CLOCK,
                    ..Header::EMPTY
                },
                &7_i64.to_le_bytes(),
            )
            .unwrap();
        writer.flush().unwrap();
        drop(writer);
        bytes
    }

    #[test]
    fn what_was_written_is_read() {
        let bytes = file();
        let mut reader = Reader::new(&bytes[..]).unwrap();
        assert_eq!(reader.entry().unwrap(), Some(Entry::Tick(5)));
        assert_eq!(reader.entry().unwrap(), Some(Entry::Clock(7)));
        assert_eq!(reader.entry().unwrap(), None);
    }

    #[test]
    fn a_file_cut_short_says_where() {
        let bytes = file();
        let second = MAGIC.len() as u64 + 36;
        for end in second as usize + 1..bytes.len() {
            let mut reader = Reader::new(&bytes[..end]).unwrap();
            reader.entry().unwrap();
            assert!(
                matches!(reader.entry(), Err(Bad::Truncated { at }) if at == second),
                "cut at {end}"
            );
        }
    }

    #[test]
    fn garbage_says_where() {
        assert!(matches!(Reader::new(&b"\x7fELF"[..]), Err(Bad::Magic)));
        let mut bytes = file();
        bytes[MAGIC.len() + 4] = 0x7f;
        let error = Reader::new(&bytes[..]).unwrap().entry().unwrap_err();
        assert_eq!(error.to_string(), "bad entry at byte 22");
        bytes[MAGIC.len() + 3] = 0xff;
        assert!(matches!(
            Reader::new(&bytes[..]).unwrap().entry(),
            Err(Bad::Entry { at: 22 })
        ));
    }
}
