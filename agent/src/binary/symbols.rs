//! Functions by name: `.symtab` and `.dynsym`, mangled or not.

use object::read::{Object as _, ObjectSymbol as _, SymbolKind};
use object::{Endianness, read::elf::ElfFile64};

use super::{Binary, Function};

/// A function's name and extent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// As in the file, mangled.
    pub name: String,
    /// Where it is.
    pub function: Function,
}

impl Symbol {
    /// The name as it is in the source, for Rust (either mangling, hash left out) and C++; else unchanged.
    pub fn demangled(&self) -> String {
        demangle(&self.name)
    }
}

fn demangle(name: &str) -> String {
    if let Ok(rust) = rustc_demangle::try_demangle(name) {
        return format!("{rust:#}");
    }
    if name.starts_with("_Z")
        && name.len() < 4096
        && let Ok(symbol) = cpp_demangle::Symbol::new(name)
        && let Ok(text) = symbol.demangle()
    {
        return text;
    }
    name.to_owned()
}

impl Binary {
    /// The function of this exact (mangled) name. Two different addresses of one name are none.
    pub fn symbol(&self, name: &str) -> Option<Function> {
        let mut found = self.symbols(|candidate| candidate == name).into_iter();
        let first = found.next()?.function;
        found
            .all(|other| other.function.address == first.address)
            .then_some(first)
    }

    /// The address of a variable by its exact name.
    pub fn variable(&self, name: &str) -> Option<u64> {
        let elf = self.elf()?;
        elf.symbols()
            .chain(elf.dynamic_symbols())
            .find(|symbol| symbol.kind() == SymbolKind::Data && symbol.is_definition() && symbol.name() == Ok(name))
            .map(|symbol| symbol.address())
    }

    /// All functions whose mangled name `wanted` accepts, each address once for each name. Fast: give it a cheap
    /// test first (a part of the mangled name), and demangle what is left.
    pub fn symbols(&self, wanted: impl Fn(&str) -> bool) -> Vec<Symbol> {
        let Some(elf) = self.elf() else {
            return Vec::new();
        };
        let mut found = Vec::new();
        self.collect(&elf, &wanted, &mut found);
        found.sort_by(|a, b| (a.function.address, &a.name).cmp(&(b.function.address, &b.name)));
        found.dedup_by(|a, b| a.function.address == b.function.address && a.name == b.name);
        found
    }

    /// The source names of functions, where the file has them.
    pub fn names_of(&self, functions: &[Function]) -> Vec<String> {
        let Some(elf) = self.elf() else {
            return Vec::new();
        };
        let mut found: Vec<String> = elf
            .symbols()
            .chain(elf.dynamic_symbols())
            .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_definition())
            .filter(|symbol| functions.iter().any(|f| f.address == symbol.address()))
            .filter_map(|symbol| symbol.name().ok().map(demangle))
            .collect();
        found.sort();
        found.dedup();
        found
    }

    /// All functions whose source name `wanted` accepts; `part` must be in the mangled name.
    pub fn demangled(&self, part: &str, wanted: impl Fn(&str) -> bool) -> Vec<Symbol> {
        let mut found = self.symbols(|name| memchr::memmem::find(name.as_bytes(), part.as_bytes()).is_some());
        found.retain(|symbol| wanted(&symbol.demangled()));
        found
    }

    fn collect(&self, elf: &ElfFile64<'_, Endianness>, wanted: &impl Fn(&str) -> bool, found: &mut Vec<Symbol>) {
        for symbol in elf.symbols().chain(elf.dynamic_symbols()) {
            if symbol.kind() != SymbolKind::Text || symbol.is_undefined() {
                continue;
            }
            let Ok(name) = symbol.name() else { continue };
            if !wanted(name) || !self.executable(symbol.address()) {
                continue;
            }
            let Some(end) = symbol.address().checked_add(symbol.size()) else {
                continue;
            };
            let stated = Function {
                address: symbol.address(),
                end,
            };
            let function = if stated.is_empty() {
                match self.function_at(stated.address) {
                    Some(framed) if framed.address == stated.address => framed,
                    _ => continue,
                }
            } else {
                stated
            };
            found.push(Symbol {
                name: name.to_owned(),
                function,
            });
        }
    }
}
