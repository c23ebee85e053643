//! Go's own function table (`runtime.pclntab`, Go 1.16 to 1.26): complete, and
//! there in stripped programs too.
//!
//! Where the text begins is not taken on trust (since Go 1.26 the table does
//! not say it, and with cgo it is not the section's start): the table's
//! functions must begin as Go's functions do.

use std::fmt;

use memchr::memmem;
use object::read::{Object as _, ObjectSection as _};

use super::{Binary, Function};

/// Functions whose first bytes are looked at to confirm the start of the text.
const SAMPLE: usize = 512;

/// Version of the Go toolchain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// 1
    pub major: u32,
    /// 26 in 1.26.8
    pub minor: u32,
    /// 8 in 1.26.8
    pub patch: u32,
}

impl Version {
    /// Of `go1.26.8`, `go1.22rc1`, `go1.24-custom`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.strip_prefix("go")?.split('.').map(|part| {
            let digits: &str = part.split(|c: char| !c.is_ascii_digit()).next().unwrap_or("");
            digits.parse::<u32>().ok()
        });
        Some(Version {
            major: parts.next()??,
            minor: parts.next()??,
            patch: parts.next().flatten().unwrap_or(0),
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "go{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// The functions of a Go program.
pub struct Go<'a> {
    binary: &'a Binary,
    table: Table<'a>,
    text: u64,
    /// Of the toolchain, where the program says it.
    pub version: Option<Version>,
}

#[derive(Clone, Copy)]
struct Table<'a> {
    /// Entries are 32-bit offsets from the text's start (Go 1.18 and later), else 64-bit addresses.
    relative: bool,
    count: usize,
    stated_text: u64,
    names: &'a [u8],
    functions: &'a [u8],
}

impl Binary {
    /// The Go program in this file, if it is one whose table can be read and confirmed.
    pub fn go(&self) -> Option<Go<'_>> {
        let (at, table) = self.pclntab()?;
        let mut go = Go {
            binary: self,
            table,
            text: 0,
            version: self.go_version(),
        };
        if !table.relative {
            return go.confirmed().then_some(go);
        }
        let mut candidates = vec![table.stated_text];
        candidates.extend(self.section(".text").map(|(address, _)| address));
        candidates.extend(self.symbol("runtime.text").map(|text| text.address));
        for candidate in candidates {
            go.text = candidate;
            if go.confirmed() {
                return Some(go);
            }
        }
        // runtime.moduledata begins with a pointer to the table, and holds one to the text.
        for candidate in self.words_after_pointer_to(at, 40) {
            go.text = candidate;
            if go.confirmed() {
                return Some(go);
            }
        }
        None
    }

    /// The toolchain's version by `.go.buildinfo`.
    pub fn go_version(&self) -> Option<Version> {
        const MAGIC: &[u8] = b"\xff Go buildinf:";
        let bytes = match self.section(".go.buildinfo") {
            Some((_, bytes)) => bytes,
            None => self.segments().iter().filter(|s| !s.executable).find_map(|s| {
                memmem::find(self.rest(s.address)?, MAGIC).and_then(|at| self.rest(s.address)?.get(at..))
            })?,
        };
        let bytes = bytes.get(memmem::find(bytes, MAGIC)?..)?;
        let text = if bytes.get(15)? & 2 != 0 {
            // Strings stand inline, each after its length (varint); a version is shorter than 128 bytes.
            let length = usize::from(*bytes.get(32)?);
            bytes.get(33..33usize.checked_add(length.min(127))?)?
        } else {
            let header = u64::from_le_bytes(bytes.get(16..24)?.try_into().ok()?);
            let length = self.u64_at(header.checked_add(8)?)?;
            self.at(self.u64_at(header)?, usize::try_from(length.min(127)).ok()?)?
        };
        Version::parse(std::str::from_utf8(text).ok()?)
    }

    fn section(&self, name: &str) -> Option<(u64, &[u8])> {
        let elf = self.elf()?;
        let section = elf.section_by_name(name)?;
        let address = section.address();
        let (offset, size) = section.file_range()?;
        let end = offset.checked_add(size)?;
        let bytes = self
            .bytes()
            .get(usize::try_from(offset).ok()?..usize::try_from(end).ok()?)?;
        Some((address, bytes))
    }

    fn pclntab(&self) -> Option<(u64, Table<'_>)> {
        for name in [".gopclntab", ".data.rel.ro.gopclntab"] {
            if let Some((address, bytes)) = self.section(name)
                && let Some(table) = Table::parse(bytes)
            {
                return Some((address, table));
            }
        }
        for segment in self.segments().iter().filter(|s| !s.executable) {
            let Some(bytes) = self.rest(segment.address) else {
                continue;
            };
            for magic in [0xffff_fff1u32, 0xffff_fff0, 0xffff_fffa] {
                let mut start = [0; 8];
                start.split_at_mut(4).0.copy_from_slice(&magic.to_le_bytes());
                (start[6], start[7]) = (1, 8);
                for at in memmem::find_iter(bytes, &start).take(16) {
                    if let Some(table) = bytes.get(at..).and_then(Table::parse) {
                        return Some((segment.address.checked_add(at as u64)?, table));
                    }
                }
            }
        }
        None
    }
}

impl<'a> Table<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (words, relative) = match bytes.get(..8)? {
            // Magic, two zeros, the smallest instruction, the size of a pointer.
            [0xfa, 0xff, 0xff, 0xff, 0, 0, 1, 8] => (7, false),
            [0xf0 | 0xf1, 0xff, 0xff, 0xff, 0, 0, 1, 8] => (8, true),
            _ => return None,
        };
        let word = |n: usize| {
            let at = 8 + 8 * n;
            bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
        };
        let part = |n: usize| bytes.get(usize::try_from(word(n)?).ok()?..);
        let count = usize::try_from(word(0)?).ok()?;
        let names = part(words - 5)?;
        let functions = part(words - 1)?;
        let entry = if relative { 8 } else { 16 };
        if count == 0 || functions.len() < count.checked_mul(entry)?.checked_add(entry / 2)? {
            return None;
        }
        Some(Table {
            relative,
            count,
            stated_text: if relative { word(2)? } else { 0 },
            names,
            functions,
        })
    }

    /// Where function `index` begins (or the last one ends), and where its description is in `functions`.
    fn entry(&self, index: usize) -> Option<u64> {
        let (size, half) = if self.relative { (8, 4) } else { (16, 8) };
        little(self.functions, index.checked_mul(size)?, half)
    }

    fn name(&self, index: usize) -> Option<&'a str> {
        let (size, half) = if self.relative { (8, 4) } else { (16, 8) };
        let at = index.checked_mul(size)?.checked_add(half)?;
        let description = usize::try_from(little(self.functions, at, half)?).ok()?;
        // struct _func: the entry again, then the offset of the name.
        if little(self.functions, description, half)? != self.entry(index)? {
            return None;
        }
        let name_at = usize::try_from(little(self.functions, description.checked_add(half)?, 4)?).ok()?;
        let name = self.names.get(name_at..)?;
        std::str::from_utf8(name.get(..memchr::memchr(0, name)?)?).ok()
    }
}

fn little(bytes: &[u8], at: usize, size: usize) -> Option<u64> {
    let part = bytes.get(at..at.checked_add(size)?)?;
    Some(part.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

impl<'a> Go<'a> {
    /// Every function with its full name (`google.golang.org/grpc/internal/transport.(*http2Client).NewStream`).
    pub fn functions(&self) -> impl Iterator<Item = (&'a str, Function)> {
        let (table, text) = (self.table, self.text);
        (0..table.count).filter_map(move |index| {
            let function = extent(&table, text, index)?;
            Some((table.name(index)?, function))
        })
    }

    /// The function of this name. Go's linker gives each name once; where it stands twice, none.
    pub fn function(&self, name: &str) -> Option<Function> {
        let mut found = self.functions().filter(|(candidate, _)| *candidate == name);
        let (_, function) = found.next()?;
        (found.next().is_none() && self.binary.executable(function.address)).then_some(function)
    }

    /// At least a quarter of the functions begin with the check of the stack, and none is outside the code.
    fn confirmed(&self) -> bool {
        let step = (self.table.count / SAMPLE).max(1);
        let (mut looked_at, mut alike) = (0usize, 0usize);
        for index in (0..self.table.count).step_by(step) {
            let Some(function) = extent(&self.table, self.text, index) else {
                continue;
            };
            if !self.binary.executable(function.address) {
                return false;
            }
            looked_at += 1;
            let start = self.binary.at(function.address, 16).unwrap_or(&[]);
            alike += usize::from(matches!(
                start,
                // cmp rsp, [r14+16]; lea r12, [rsp-n]; mov r12, rsp; mov rcx, fs:[-8] (before registers were arguments)
                [0x49, 0x3b, 0x66, 0x10, ..]
                    | [0x4c, 0x8d, 0x64, 0x24, ..]
                    | [0x4c, 0x8d, 0xa4, 0x24, ..]
                    | [0x49, 0x89, 0xe4, ..]
                    | [0x64, 0x48, 0x8b, 0x0c, 0x25, 0xf8, 0xff, 0xff, 0xff, ..]
            ));
        }
        looked_at > 0 && alike * 4 >= looked_at
    }
}

fn extent(table: &Table<'_>, text: u64, index: usize) -> Option<Function> {
    let function = Function {
        address: text.checked_add(table.entry(index)?)?,
        end: text.checked_add(table.entry(index.checked_add(1)?)?)?,
    };
    (!function.is_empty()).then_some(function)
}
