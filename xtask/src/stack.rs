//! How deep the kernel programs' stacks are by the rule of the oldest kernel:
//! along no chain of calls may they have more than 512 bytes, each function's
//! share rounded up. Newer kernels count less, so loading here shows nothing.
//! Bias: the compiled code is asked, and nothing that runs.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget, SymbolKind};

/// Bytes along one chain of calls (MAX_BPF_STACK).
const LIMIT: u32 = 512;
/// Functions of one chain (MAX_CALL_FRAMES).
const FRAMES: usize = 8;
/// To what each function's share is rounded up; also its least.
const ROUND: u32 = 32;

/// Opcodes (instruction set of BPF, RFC 9669).
mod opcode {
    pub const LOAD_WIDE: u8 = 0x18;
    pub const MOVE: u8 = 0xbf;
    pub const ADD: u8 = 0x07;
    pub const CALL: u8 = 0x85;
    /// Classes, the three low bits.
    pub const CLASS: u8 = 7;
    pub const LDX: u8 = 1;
    pub const ST: u8 = 2;
    pub const STX: u8 = 3;
}

/// The frame pointer.
const FRAME: u8 = 10;

/// A function: what it takes of the stack, and whom it calls.
#[derive(Debug, Default)]
struct Function {
    name: String,
    program: bool,
    bytes: u32,
    calls: Vec<Place>,
}

/// Section and offset.
type Place = (usize, u64);

/// The deepest chain of an object's programs: bytes, and its functions.
///
/// # Errors
/// When it is no object of BPF, or a chain is too deep or too long.
pub fn check(object: &[u8]) -> Result<(u32, String)> {
    let functions = functions(object)?;
    let mut deepest = (0, String::new());
    for (place, function) in functions.iter().filter(|(_, function)| function.program) {
        let (bytes, chain) = chain(&functions, *place, &mut Vec::new())?;
        ensure!(bytes <= LIMIT, "{bytes} bytes of stack, {LIMIT} are allowed: {chain}");
        if (bytes, &function.name) > (deepest.0, &deepest.1) {
            deepest = (bytes, chain);
        }
    }
    ensure!(deepest.0 > 0, "no programs");
    Ok(deepest)
}

fn chain(functions: &HashMap<Place, Function>, at: Place, above: &mut Vec<Place>) -> Result<(u32, String)> {
    let function = functions.get(&at).context("a call to no function")?;
    ensure!(!above.contains(&at), "{} calls itself", function.name);
    ensure!(above.len() < FRAMES, "more than {FRAMES} calls to {}", function.name);
    above.push(at);
    let mut deepest = (0, String::new());
    for call in &function.calls {
        let found = chain(functions, *call, above)?;
        if found.0 > deepest.0 {
            deepest = found;
        }
    }
    above.pop();
    let own = function.bytes.next_multiple_of(ROUND).max(ROUND);
    let rest = if deepest.0 == 0 { "" } else { " > " };
    let name = format!("{} {}{rest}{}", function.name, function.bytes, deepest.1);
    Ok((own + deepest.0, name))
}

fn functions(object: &[u8]) -> Result<HashMap<Place, Function>> {
    let file = object::File::parse(object).context("not an object file")?;
    let mut functions = HashMap::new();
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text) {
        let Some(index) = symbol.section_index() else { continue };
        let section = file.section_by_index(index).context("a symbol of no section")?;
        let code = section
            .data_range(symbol.address(), symbol.size())
            .context("a section")?
            .context("a function outside of its section")?;
        let mut function = Function {
            name: symbol.name().unwrap_or_default().to_owned(),
            // Of the shared functions none is a program.
            program: section.name() != Ok(".text"),
            ..Function::default()
        };
        measure(code, &mut function);
        let range = symbol.address()..symbol.address() + symbol.size();
        for (at, relocation) in section.relocations().filter(|(at, _)| range.contains(at)) {
            let instruction = word(code, at - symbol.address());
            if instruction[0] == opcode::CALL
                && let RelocationTarget::Symbol(target) = relocation.target()
            {
                let target = file.symbol_by_index(target).context("a symbol")?;
                let Some(of) = target.section_index() else { continue };
                // Its immediate is in instructions, from the one behind the call.
                let behind = i64::from(immediate(instruction)) + 1;
                let to = target.address().wrapping_add_signed(behind * 8);
                function.calls.push((of.0, to));
            }
        }
        functions.insert((index.0, symbol.address()), function);
    }
    Ok(functions)
}

fn word(code: &[u8], at: u64) -> [u8; 8] {
    let words = code.as_chunks().0;
    words.get((at / 8) as usize).copied().unwrap_or_default()
}

fn immediate(instruction: [u8; 8]) -> i32 {
    let [.., a, b, c, d] = instruction;
    i32::from_le_bytes([a, b, c, d])
}

/// The lowest byte below the frame pointer that is named.
fn measure(code: &[u8], function: &mut Function) {
    let mut copied = None;
    let mut wide = false;
    for instruction in code.as_chunks::<8>().0 {
        if std::mem::take(&mut wide) {
            continue;
        }
        let [operation, registers, low, high, ..] = *instruction;
        let (to, from) = (registers & 15, registers >> 4);
        let offset = i32::from(i16::from_le_bytes([low, high]));
        let class = operation & opcode::CLASS;
        let named = match operation {
            opcode::ADD if copied == Some(to) => immediate(*instruction),
            _ if class == opcode::LDX && from == FRAME => offset,
            _ if matches!(class, opcode::ST | opcode::STX) && to == FRAME => offset,
            _ => 0,
        };
        function.bytes = function.bytes.max(named.min(0).unsigned_abs());
        copied = (operation == opcode::MOVE && from == FRAME).then_some(to);
        wide = operation == opcode::LOAD_WIDE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_byte_counts_however_it_is_named() {
        // *(u64 *)(r10 - 16) = r1; r2 = r10; r2 += -40; r0 = 0 ll (two words); exit
        let code = [
            [0x7b, 0x1a, 0xf0, 0xff, 0, 0, 0, 0],
            [0xbf, 0xa2, 0, 0, 0, 0, 0, 0],
            [0x07, 0x02, 0, 0, 0xd8, 0xff, 0xff, 0xff],
            [0x18, 0, 0, 0, 0, 0, 0, 0],
            [0x7b, 0xaa, 0, 0x80, 0, 0, 0, 0],
            [0x95, 0, 0, 0, 0, 0, 0, 0],
        ];
        let mut function = Function::default();
        measure(code.as_flattened(), &mut function);
        assert_eq!(function.bytes, 40);
    }

    #[test]
    fn a_chain_is_as_deep_as_its_functions_rounded_up() {
        let function = |name: &str, bytes, calls: &[Place]| Function {
            name: name.to_owned(),
            program: true,
            bytes,
            calls: calls.to_vec(),
        };
        let functions = HashMap::from([
            ((1, 0), function("a", 33, &[(1, 8), (1, 16)])),
            ((1, 8), function("b", 0, &[])),
            ((1, 16), function("c", 1, &[(1, 8)])),
            ((1, 24), function("d", 1, &[(1, 24)])),
        ]);
        let (bytes, chain) = chain(&functions, (1, 0), &mut Vec::new()).expect("a chain");
        assert_eq!((bytes, chain.as_str()), (128, "a 33 > c 1 > b 0"));
        assert!(super::chain(&functions, (1, 24), &mut Vec::new()).is_err());
    }
}
