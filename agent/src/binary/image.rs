//! The file itself: its segments, its identity, and the way between addresses
//! and offsets.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use memmap2::Mmap;
use object::Endianness;
use object::elf;
use object::read::elf::{ElfFile64, FileHeader as _, ProgramHeader as _};

use super::{Code, Function};

/// Why a file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be opened or mapped.
    #[error("{0}")]
    File(#[from] std::io::Error),
    /// It is no 64-bit little-endian ELF file for x86-64.
    #[error("not an ELF file for x86-64")]
    NotElf,
}

/// What tells one content of a file from another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// The linker's or Go's build id.
    BuildId(Vec<u8>),
    /// Device, inode, size and time of the last change (ns).
    File(u64, u64, u64, i128),
    /// Neither is there: bytes in memory.
    None,
}

/// A part of the file that is mapped into memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub address: u64,
    pub offset: u64,
    /// Bytes that come from the file.
    pub size: u64,
    pub executable: bool,
    pub writable: bool,
}

enum Data {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

/// An executable or shared library, open for looking things up.
pub struct Binary {
    data: Data,
    segments: Vec<Segment>,
    fixed: bool,
    entry: u64,
    identity: Identity,
    frame_header: Option<u64>,
}

impl Binary {
    /// Opens and maps a file: `/proc/PID/exe`, `/proc/PID/root/…`, `/proc/PID/map_files/…`.
    ///
    /// # Errors
    /// When it can't be read or is no ELF file for x86-64.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::from_file(&File::open(path)?)
    }

    /// Maps an open file.
    ///
    /// # Errors
    /// When it can't be mapped or is no ELF file for x86-64.
    pub fn from_file(file: &File) -> Result<Self, Error> {
        let facts = file.metadata()?;
        if !facts.is_file() {
            return Err(Error::NotElf);
        }
        // SAFETY: the mapping is private and read-only, and the bytes are only ever read as bytes. A file that
        // somebody cuts short while it is mapped takes down the process that runs it as well.
        let map = unsafe { Mmap::map(file) }?;
        let when = i128::from(facts.mtime()) * 1_000_000_000 + i128::from(facts.mtime_nsec());
        let identity = Identity::File(facts.dev(), facts.ino(), facts.size(), when);
        Self::new(Data::Mapped(map), identity)
    }

    /// Bytes that are in memory already.
    ///
    /// # Errors
    /// When they are no ELF file for x86-64.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, Error> {
        Self::new(Data::Owned(bytes), Identity::None)
    }

    fn new(data: Data, identity: Identity) -> Result<Self, Error> {
        let mut binary = Binary {
            data,
            segments: Vec::new(),
            fixed: false,
            entry: 0,
            identity,
            frame_header: None,
        };
        let bytes = binary.bytes();
        let header = elf::FileHeader64::<Endianness>::parse(bytes).map_err(|_| Error::NotElf)?;
        if header.endian().ok() != Some(Endianness::Little) {
            return Err(Error::NotElf);
        }
        let little = Endianness::Little;
        if header.e_machine.get(little) != elf::EM_X86_64 {
            return Err(Error::NotElf);
        }
        let (fixed, entry) = (header.e_type.get(little) == elf::ET_EXEC, header.e_entry.get(little));
        let mut segments = Vec::new();
        let (mut frame_header, mut build_id) = (None, None);
        for program in header.program_headers(little, bytes).map_err(|_| Error::NotElf)? {
            match program.p_type(little) {
                elf::PT_LOAD => {
                    let offset = program.p_offset(little);
                    let room = (bytes.len() as u64).saturating_sub(offset);
                    let address = program.p_vaddr(little);
                    segments.push(Segment {
                        address,
                        offset,
                        size: program.p_filesz(little).min(room).min(u64::MAX - address),
                        executable: program.p_flags(little).0 & elf::PF_X.0 != 0,
                        writable: program.p_flags(little).0 & elf::PF_W.0 != 0,
                    });
                }
                elf::PT_GNU_EH_FRAME => frame_header = Some(program.p_vaddr(little)),
                elf::PT_NOTE => {
                    let Ok(Some(mut notes)) = program.notes(little, bytes) else {
                        continue;
                    };
                    while let Ok(Some(note)) = notes.next() {
                        let gnu = note.name() == b"GNU" && note.n_type(little) == elf::NT_GNU_BUILD_ID;
                        let go = note.name() == b"Go" && note.n_type(little).0 == 4;
                        if (gnu || (go && build_id.is_none())) && !note.desc().is_empty() {
                            build_id = Some(note.desc().to_vec());
                        }
                    }
                }
                _ => {}
            }
        }
        (binary.fixed, binary.entry, binary.segments) = (fixed, entry, segments);
        binary.frame_header = frame_header;
        if let Some(id) = build_id {
            binary.identity = Identity::BuildId(id);
        }
        Ok(binary)
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        match &self.data {
            Data::Mapped(map) => map,
            Data::Owned(bytes) => bytes,
        }
    }

    /// Build id: the linker's, or else Go's (which is text).
    pub fn build_id(&self) -> Option<&[u8]> {
        match &self.identity {
            Identity::BuildId(id) => Some(id),
            _ => None,
        }
    }

    /// By what its content is known.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Address of the first instruction of the program; 0 in most libraries.
    pub fn entry(&self) -> u64 {
        self.entry
    }

    /// Whether it runs at the addresses of the file (`ET_EXEC`).
    pub fn fixed(&self) -> bool {
        self.fixed
    }

    pub(super) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    pub(super) fn frame_header(&self) -> Option<u64> {
        self.frame_header
    }

    pub(super) fn elf(&self) -> Option<ElfFile64<'_, Endianness>> {
        ElfFile64::parse(self.bytes()).ok()
    }

    fn segment(&self, address: u64) -> Option<&Segment> {
        self.segments
            .iter()
            .find(|s| address >= s.address && address - s.address < s.size)
    }

    /// File offset of an address.
    pub fn offset(&self, address: u64) -> Option<u64> {
        let segment = self.segment(address)?;
        segment.offset.checked_add(address - segment.address)
    }

    /// Address of a file offset.
    pub fn address(&self, offset: u64) -> Option<u64> {
        let segment = self
            .segments
            .iter()
            .find(|s| offset >= s.offset && offset - s.offset < s.size)?;
        segment.address.checked_add(offset - segment.offset)
    }

    /// The bytes from an address to the end of its segment.
    pub fn rest(&self, address: u64) -> Option<&[u8]> {
        let segment = self.segment(address)?;
        let skip = address - segment.address;
        let from = segment.offset.checked_add(skip)?;
        let to = segment.offset.checked_add(segment.size)?;
        self.bytes().get(usize::try_from(from).ok()?..usize::try_from(to).ok()?)
    }

    /// `length` bytes at an address.
    pub fn at(&self, address: u64, length: usize) -> Option<&[u8]> {
        self.rest(address)?.get(..length)
    }

    /// Eight bytes at an address.
    pub fn u64_at(&self, address: u64) -> Option<u64> {
        self.at(address, 8)?.try_into().ok().map(u64::from_le_bytes)
    }

    /// Whether code may stand at an address.
    pub fn executable(&self, address: u64) -> bool {
        self.segment(address).is_some_and(|s| s.executable)
    }

    /// The instructions of a function.
    pub fn code(&self, function: Function) -> Option<Code<'_>> {
        if function.is_empty() || !self.executable(function.address) {
            return None;
        }
        let bytes = self.at(function.address, usize::try_from(function.len()).ok()?)?;
        Some(Code::new(function.address, bytes))
    }
}
