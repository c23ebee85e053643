//! A binary as runtimes' modules look at it: its symbols, its code by
//! address. Bias: a malformed file is an answer of nothing, never a panic.

use std::collections::HashMap;
use std::fs::File;
use std::io;

use object::read::elf::ElfFile64;
use object::read::{ReadCache, ReadRef};
use object::{Object, ObjectSection, ObjectSegment, ObjectSymbol, SymbolKind};

/// A function by its symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// Virtual address in the file.
    pub address: u64,
    /// Bytes of code, 0 if the symbol does not say.
    pub size: u64,
}

/// An ELF file.
pub struct Image {
    cache: ReadCache<File>,
    functions: HashMap<String, Function>,
    /// Executable segments: address, bytes in the file, offset in the file.
    code: Vec<(u64, u64, u64)>,
}

impl Image {
    /// Reads what is asked for often.
    ///
    /// # Errors
    /// When it can't be read or is no 64-bit ELF file.
    pub fn new(file: File) -> io::Result<Self> {
        let cache = ReadCache::new(file);
        let invalid = |e: object::Error| io::Error::new(io::ErrorKind::InvalidData, e.to_string());
        let (functions, code) = {
            let elf = ElfFile64::<object::Endianness, _>::parse(&cache).map_err(invalid)?;
            let mut functions = HashMap::new();
            for symbol in elf.symbols().chain(elf.dynamic_symbols()) {
                if symbol.kind() == SymbolKind::Text
                    && symbol.is_definition()
                    && let Ok(name) = symbol.name()
                {
                    let function = Function {
                        address: symbol.address(),
                        size: symbol.size(),
                    };
                    functions.entry(name.to_owned()).or_insert(function);
                }
            }
            let code = elf
                .segments()
                .filter(|s| matches!(s.flags(), object::SegmentFlags::Elf { p_flags, .. } if p_flags.0 & object::elf::PF_X.0 != 0))
                .map(|s| (s.address(), s.file_range().1, s.file_range().0))
                .collect();
            (functions, code)
        };
        Ok(Image { cache, functions, code })
    }

    /// A function by the name of its symbol.
    pub fn function(&self, name: &str) -> Option<Function> {
        self.functions.get(name).copied()
    }

    /// All functions that have symbols.
    pub fn functions(&self) -> impl Iterator<Item = (&str, Function)> {
        self.functions.iter().map(|(name, f)| (name.as_str(), *f))
    }

    /// Offset in the file of a code address.
    pub fn offset(&self, address: u64) -> Option<u64> {
        self.code.iter().find_map(|(start, size, offset)| {
            let within = address.checked_sub(*start).filter(|w| w < size)?;
            offset.checked_add(within)
        })
    }

    /// Up to `length` bytes of code from an address on.
    pub fn code(&self, address: u64, length: u64) -> Option<&[u8]> {
        let (start, size, offset) = self
            .code
            .iter()
            .find(|(start, size, _)| address.checked_sub(*start).is_some_and(|within| within < *size))?;
        let within = address - start;
        let length = length.min(size - within);
        (&self.cache).read_bytes_at(offset.checked_add(within)?, length).ok()
    }

    /// The bytes of a section by its name.
    pub fn section(&self, name: &str) -> Option<(u64, &[u8])> {
        let elf = ElfFile64::<object::Endianness, _>::parse(&self.cache).ok()?;
        let section = elf.section_by_name(name)?;
        Some((section.address(), section.data().ok()?))
    }
}
