//! Virtual functions of a C++ class by the name in its type information
//! (Itanium C++ ABI 2.5 and 2.9): it is there in stripped files too.

use object::Endianness;
use object::elf;
use object::read::elf::{ElfFile64, SectionHeader as _};
use rustc_hash::{FxHashMap, FxHashSet};

use super::Binary;

/// Entries read of one table.
const ENTRIES: u64 = 64;
/// Bytes of a class in which its bases begin.
const BASES: i64 = 256;

impl Binary {
    /// The addresses in the primary virtual table of the class with this mangled name (`21grpc_chttp2_transport`),
    /// in order. A pure virtual function or a pointer elsewhere ends the list. `None` where the table is not unique.
    pub fn virtual_functions(&self, class: &str) -> Option<Vec<u64>> {
        let mut found = self.virtual_tables(class, 0..=0)?;
        match found.len() {
            1 => found.pop(),
            _ => None,
        }
    }

    /// The same of the tables for its other bases, all in a row: functions that take a pointer into the middle of the
    /// object. A compiler may give them bodies of their own.
    pub fn functions_of_bases(&self, class: &str) -> Vec<u64> {
        let found = self.virtual_tables(class, -BASES..=-1);
        found.unwrap_or_default().concat()
    }

    /// Virtual tables of a class by their offset to top.
    fn virtual_tables(&self, class: &str, tops: std::ops::RangeInclusive<i64>) -> Option<Vec<Vec<u64>>> {
        let pointers = self.pointers();
        let mut name = Vec::with_capacity(class.len() + 1);
        name.extend_from_slice(class.as_bytes());
        name.push(0);
        let names = self.strings(&name);
        // std::type_info: the virtual table's pointer, then the name.
        let infos: Vec<u64> = pointers
            .iter()
            .filter(|(_, target)| names.contains(target))
            .filter_map(|(at, _)| at.checked_sub(8))
            .collect();
        let [info] = infos[..] else { return None };
        // A virtual table: offset to top (0 in the primary one), type information, functions.
        let top = |at: u64| Some(self.u64_at(at.checked_sub(8)?)?.cast_signed());
        let tables: Vec<u64> = pointers
            .iter()
            .filter(|(at, target)| *target == info && top(*at).is_some_and(|top| tops.contains(&top)))
            .map(|(at, _)| *at)
            .collect();
        let mut found = Vec::new();
        for table in tables {
            let functions: Vec<u64> = (1..=ENTRIES)
                .map_while(|n| pointers.get(table.wrapping_add(8 * n)))
                .take_while(|address| self.executable(*address))
                .collect();
            if functions.len() >= 2 {
                found.push(functions);
            }
        }
        Some(found)
    }

    /// Words of the file's data that lead to one of these addresses, once loaded.
    pub(super) fn pointers_to(&self, addresses: &FxHashSet<u64>) -> FxHashMap<u64, u64> {
        let pointers = self.pointers();
        let leads = pointers.iter().filter(|(_, to)| addresses.contains(to));
        leads.copied().collect()
    }

    /// The words that follow any pointer to `target`, the first of each `count` places.
    pub(super) fn words_after_pointer_to(&self, target: u64, count: u64) -> Vec<u64> {
        let pointers = self.pointers();
        let mut found = Vec::new();
        for (at, _) in pointers.iter().filter(|(_, to)| *to == target) {
            for n in 1..count {
                let address = at.wrapping_add(8 * n);
                found.extend(pointers.get(address).filter(|word| self.executable(*word)));
            }
        }
        found.dedup();
        found
    }

    /// Tables of functions: runs of pointers to code, none before and none after, of so many as `lengths` says.
    /// Address of the first of them, and where they lead.
    pub fn tables_of(&self, lengths: std::ops::RangeInclusive<usize>) -> Vec<(u64, Vec<u64>)> {
        let pointers = self.pointers();
        let mut found = Vec::new();
        let mut run: Vec<(u64, u64)> = Vec::new();
        let code = pointers.iter().filter(|(_, to)| self.executable(*to)).copied();
        for (at, to) in code.chain([(0, 0)]) {
            if run.last().is_some_and(|(last, _)| at != last.wrapping_add(8)) {
                if let Some((first, _)) = run.first()
                    && lengths.contains(&run.len())
                {
                    found.push((*first, run.iter().map(|(_, to)| *to).collect()));
                }
                run.clear();
            }
            run.push((at, to));
        }
        found
    }

    /// Where the pointer at an address of the file's data leads, once loaded.
    pub fn pointers_at(&self, addresses: &[u64]) -> Vec<Option<u64>> {
        let pointers = self.pointers();
        addresses.iter().map(|at| pointers.get(*at)).collect()
    }

    /// Pointers in the file's data once it is loaded at its own addresses.
    fn pointers(&self) -> Pointers {
        let mut all = Vec::new();
        if let Some(elf) = self.elf() {
            relative(&elf, &mut all);
        }
        if self.fixed() {
            for segment in self.segments().iter().filter(|s| !s.executable) {
                let Some(bytes) = self.rest(segment.address) else {
                    continue;
                };
                for (at, word) in bytes.chunks_exact(8).enumerate() {
                    let Ok(word) = word.try_into().map(u64::from_le_bytes) else {
                        continue;
                    };
                    if word > 0x1000 && self.offset(word).is_some() {
                        all.push((segment.address.wrapping_add(at as u64 * 8), word));
                    }
                }
            }
        }
        all.sort_unstable();
        all.dedup_by_key(|(at, _)| *at);
        Pointers(all)
    }
}

struct Pointers(Vec<(u64, u64)>);

impl Pointers {
    fn iter(&self) -> impl Iterator<Item = &(u64, u64)> {
        self.0.iter()
    }

    fn get(&self, at: u64) -> Option<u64> {
        let index = self.0.binary_search_by_key(&at, |(address, _)| *address).ok()?;
        self.0.get(index).map(|(_, target)| *target)
    }
}

/// `R_X86_64_RELATIVE`, and relocations to symbols of the file's own.
fn relative(elf: &ElfFile64<'_, Endianness>, all: &mut Vec<(u64, u64)>) {
    let little = Endianness::Little;
    let data = elf.data();
    let symbols = elf.elf_dynamic_symbol_table();
    for section in elf.elf_section_table().iter() {
        let Ok(Some((entries, _))) = section.rela(little, data) else {
            continue;
        };
        for entry in entries {
            let addend = entry.r_addend.get(little).cast_unsigned();
            let at = entry.r_offset.get(little);
            match entry.r_type(little, false) {
                elf::R_X86_64_RELATIVE => all.push((at, addend)),
                elf::R_X86_64_64 | elf::R_X86_64_GLOB_DAT | elf::R_X86_64_JUMP_SLOT => {
                    let index = object::SymbolIndex(entry.r_sym(little, false) as usize);
                    if let Ok(symbol) = symbols.symbol(index) {
                        let value = symbol.st_value.get(little);
                        if value != 0 {
                            all.push((at, value.wrapping_add(addend)));
                        }
                    }
                }
                _ => {}
            }
        }
    }
}
