//! Functions by the strings they use. A log line names the function it stands
//! in, and the compiler refers to it by `lea reg, [rip+…]` (or, in programs of
//! fixed address, by an immediate).
//!
//! The scan looks at bytes; each hit is confirmed by decoding its function from
//! the start.

use memchr::{memchr_iter, memmem};
use rustc_hash::FxHashMap;

use super::{Binary, Function};

/// Hits of one string that are looked at; a string used more often names nothing.
const HITS: usize = 64;

impl Binary {
    /// For each text: the functions that refer to a C string which begins with it. A cold part that the compiler split off is a function here.
    pub fn functions_using(&self, texts: &[&[u8]]) -> Vec<Vec<Function>> {
        let mut wanted: FxHashMap<u64, Vec<usize>> = FxHashMap::default();
        for (index, text) in texts.iter().enumerate() {
            for address in self.strings(text) {
                wanted.entry(address).or_default().push(index);
            }
        }
        let mut found: Vec<Vec<Function>> = vec![Vec::new(); texts.len()];
        if wanted.is_empty() {
            return found;
        }
        for (at, target) in self.references_to(&|address| wanted.contains_key(&address)) {
            let Some(function) = self.function_at(at) else {
                continue;
            };
            if !self.code(function).is_some_and(|code| code.begins(at)) {
                continue;
            }
            for &index in wanted.get(&target).into_iter().flatten() {
                if let Some(list) = found.get_mut(index)
                    && list.len() < HITS
                    && !list.contains(&function)
                {
                    list.push(function);
                }
            }
        }
        found
    }

    /// Addresses of the C strings that begin with `text`: the byte before is a NUL.
    pub fn strings(&self, text: &[u8]) -> Vec<u64> {
        let mut found = Vec::new();
        if text.is_empty() {
            return found;
        }
        for segment in self.segments().iter().filter(|s| !s.writable) {
            let Some(bytes) = self.rest(segment.address) else {
                continue;
            };
            for at in memmem::find_iter(bytes, text).take(HITS) {
                let begins = at.checked_sub(1).is_none_or(|before| bytes.get(before) == Some(&0));
                if begins {
                    found.push(segment.address.saturating_add(at as u64));
                }
            }
        }
        found
    }

    /// Instructions (unconfirmed) that form an address which `wanted` accepts, with the address.
    fn references_to(&self, wanted: &dyn Fn(u64) -> bool) -> Vec<(u64, u64)> {
        let mut found = Vec::new();
        for segment in self.segments().iter().filter(|s| s.executable) {
            let Some(bytes) = self.rest(segment.address) else {
                continue;
            };
            for at in memchr_iter(0x8d, bytes) {
                // REX.W 8d /r with mod 00, rm 101: relative to the next instruction.
                let Some(&[modrm, a, b, c, d]) = bytes.get(at + 1..at + 6) else {
                    continue;
                };
                if modrm & 0xc7 != 5 || at == 0 || !matches!(bytes.get(at - 1), Some(0x48 | 0x4c)) {
                    continue;
                }
                let next = segment.address.wrapping_add(at as u64 + 6);
                let target = next.wrapping_add_signed(i64::from(i32::from_le_bytes([a, b, c, d])));
                if wanted(target) {
                    found.push((segment.address.wrapping_add(at as u64 - 1), target));
                }
            }
            if !self.fixed() {
                continue;
            }
            for (at, window) in bytes.windows(5).enumerate() {
                // b8+r: mov r32, imm32.
                if let &[0xb8..=0xbf, a, b, c, d] = window {
                    let target = u64::from(u32::from_le_bytes([a, b, c, d]));
                    if target >= 0x1_0000 && wanted(target) {
                        let at = segment.address.wrapping_add(at as u64);
                        found.push((at, target));
                        // With a REX prefix the instruction begins a byte earlier.
                        found.push((at.wrapping_sub(1), target));
                    }
                }
            }
        }
        found
    }

    /// Functions with a direct branch or call into `function` from outside.
    pub fn entered(&self, function: Function) -> Entered {
        let mut entered = Entered::default();
        for segment in self.segments().iter().filter(|s| s.executable) {
            let Some(bytes) = self.rest(segment.address) else {
                continue;
            };
            for (at, window) in bytes.windows(6).enumerate() {
                let (length, relative, list) = match *window {
                    [0x0f, 0x80..=0x8f, a, b, c, d] => (6, [a, b, c, d], &mut entered.jumps),
                    [0xe8, a, b, c, d, _] => (5, [a, b, c, d], &mut entered.calls),
                    [0xe9, a, b, c, d, _] => (5, [a, b, c, d], &mut entered.jumps),
                    _ => continue,
                };
                let at = segment.address.wrapping_add(at as u64);
                let target = at
                    .wrapping_add(length)
                    .wrapping_add_signed(i64::from(i32::from_le_bytes(relative)));
                if !function.contains(target) || function.contains(at) {
                    continue;
                }
                if let Some(from) = self.function_at(at)
                    && !list.contains(&from)
                    && self.code(from).is_some_and(|code| code.begins(at))
                {
                    list.push(from);
                }
            }
        }
        entered
    }

    /// Functions with a direct branch or call into `function` from outside.
    pub fn branches_into(&self, function: Function) -> Vec<Function> {
        let Entered { mut calls, jumps } = self.entered(function);
        calls.extend(jumps);
        calls.sort_unstable();
        calls.dedup();
        calls
    }

    /// The function that refers to a C string which begins with `text`, the split-off cold part of it taken for the
    /// whole. None where several do.
    pub fn function_using(&self, text: &[u8]) -> Option<Function> {
        let found = self.functions_using(&[text]).pop()?;
        let [function] = found[..] else { return None };
        let entered = self.entered(function);
        if !entered.calls.is_empty() {
            return Some(function);
        }
        // A cold part is jumped to, from its one hot part.
        match entered.jumps[..] {
            [hot] => Some(hot),
            _ => None,
        }
    }

    /// Addresses of instructions (unconfirmed) whose bytes match one of `patterns` in the code.
    pub fn occurrences(&self, pattern: &[u8]) -> Vec<u64> {
        let mut found = Vec::new();
        for segment in self.segments().iter().filter(|s| s.executable) {
            let Some(bytes) = self.rest(segment.address) else {
                continue;
            };
            found.extend(memmem::find_iter(bytes, pattern).map(|at| segment.address.wrapping_add(at as u64)));
        }
        found
    }
}

/// From where a function is entered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entered {
    /// Functions that call it.
    pub calls: Vec<Function>,
    /// Functions that jump into it.
    pub jumps: Vec<Function>,
}
