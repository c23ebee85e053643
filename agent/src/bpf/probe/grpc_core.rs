//! grpc-core in a program or library, with symbols or without: the function
//! that starts a call's batch, the making of a stream, the one place where a
//! client's stream gets its identifier, and how an endpoint holds its socket.
//!
//! Bias: every place is found by what the code there does, and must be unique.

use std::path::Path;

use tracewire_common::link::grpc_core::{FROM_TRANSPORT, MANY_THREADS, layout};
use tracewire_common::link::runtime;

use super::{Ability, Found, Layout, Point, Runtime};
use crate::binary::decoder::{FlowControl, Instruction, Mnemonic, OpKind, Register};
use crate::binary::{Binary, Function, SYSV_ARGUMENTS};

/// Functions of `grpc_endpoint_vtable`: 11 of them until 1.64, then no `shutdown`. The last but one gives the descriptor.
const TABLE: std::ops::RangeInclusive<usize> = 10..=11;
/// One below the last identifier of a stream: the transport compares the next one with it.
const LAST: u32 = 0x7fff_fffe;

/// See the module.
pub struct GrpcCore;

impl Runtime for GrpcCore {
    fn number(&self) -> u32 {
        runtime::GRPC_CORE
    }

    fn may_be_in(&self, path: &Path, main: bool) -> bool {
        let name = path.file_name().map(|name| name.to_string_lossy());
        main || name.is_some_and(|name| name.starts_with("libgrpc.so") || name.starts_with("cygrpc"))
    }

    fn look(&self, binary: &Binary) -> Option<Found> {
        look(binary)
    }
}

fn look(binary: &Binary) -> Option<Found> {
    // Every build has this message; nothing else does.
    if binary.strings(b"grpc_call_start_batch(call=").is_empty() {
        return None;
    }
    let python = binary.symbol("PyInit_cygrpc").is_some();
    let mut numbers: Layout = [0; runtime::LAYOUT];
    numbers[layout::FLAGS] = if python { 0 } else { MANY_THREADS };
    let points = places(binary, &mut numbers, python);
    Some(Found {
        what: if python {
            "grpc-core of Python's grpcio"
        } else {
            "grpc-core"
        }
        .to_owned(),
        layout: numbers,
        abilities: vec![Ability {
            name: "grpc-core calls",
            points,
        }],
    })
}

fn places(binary: &Binary, numbers: &mut Layout, python: bool) -> Result<Vec<Point>, String> {
    let batch = binary
        .symbol("grpc_call_start_batch")
        .or_else(|| binary.function_using(b"grpc_call_start_batch(call="))
        .ok_or("grpc_call_start_batch is not found")?;
    let made = stream(binary);
    let made = made.first().map(|first| (first.identifier, &made));
    let (written, made) = made.ok_or("the making of a stream is not found")?;
    let given = identifier(binary, written).ok_or("the giving of a stream's identifier is not found")?;
    endpoints(binary, numbers)?;
    let place = |program, function| {
        let (point, offset) = binary
            .probe(function, SYSV_ARGUMENTS)
            .ok_or_else(|| format!("{program} has no place in its function"))?;
        let address = u32::try_from(point.address).map_err(|_| "the file is too large")?;
        Ok::<_, String>((
            address,
            Point {
                program,
                offset,
                cookie: 0,
            },
        ))
    };
    let (_, batch) = place("grpc_batch", batch)?;
    let mut points = Vec::new();
    for made in made {
        let (address, mut stream) = place("grpc_stream", made.function)?;
        let swapped = if made.from_transport { FROM_TRANSPORT } else { 0 };
        stream.cookie = swapped | u64::from(address) << 32;
        points.push(stream);
    }
    numbers[layout::IDENTIFIER] = u32::try_from(given.address).map_err(|_| "the file is too large")?;
    let identifier = Point {
        program: "grpc_stream_id",
        offset: binary.offset(given.address).ok_or("no offset")?,
        cookie: given.cookie,
    };
    points.extend([identifier, batch]);
    if !python {
        let next = binary
            .symbol("grpc_completion_queue_next")
            .or_else(|| binary.function_using(b"grpc_completion_queue_next(cq="))
            .ok_or("grpc_completion_queue_next is not found")?;
        points.push(place("grpc_next", next)?.1);
    }
    Ok(points)
}

/// The function that makes a stream, and where it writes a server's identifier.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Made {
    function: Function,
    /// Its first argument is the transport, the second the stream; else the other way round.
    from_transport: bool,
    /// Offset of the identifier in a stream.
    identifier: u32,
}

/// More than one where the class of transports has several bases, and the compiler gave each a body of its own. Empty
/// where it is not clear.
fn stream(binary: &Binary) -> Vec<Made> {
    const CLASS: &str = "21grpc_chttp2_transport";
    let constructors = binary.symbols(|name| name.starts_with("_ZN18grpc_chttp2_streamC"));
    let mut found: Vec<Made> = constructors
        .iter()
        .filter_map(|symbol| made(binary, symbol.function, false))
        .collect();
    let begins = |address: u64| binary.function_at(address).filter(|f| f.address == address);
    if found.is_empty() {
        for function in binary
            .virtual_functions(CLASS)
            .unwrap_or_default()
            .into_iter()
            .filter_map(begins)
        {
            found.extend(match exchanged(binary, function) {
                Some(constructor) => made(binary, constructor, false),
                None => made(binary, function, true),
            });
        }
    }
    found.sort_by_key(|made| made.function);
    found.dedup();
    let [only] = found[..] else { return Vec::new() };
    if only.from_transport {
        let others = binary.functions_of_bases(CLASS).into_iter().filter_map(begins);
        let mut others: Vec<Made> = others
            .filter_map(|function| made(binary, function, true))
            .filter(|other| other.identifier == only.identifier)
            .collect();
        others.retain(|other| *other != only);
        others.sort_by_key(|made| made.function);
        others.dedup();
        if others.len() > 1 {
            return Vec::new();
        }
        found.extend(others);
    }
    found
}

/// Where a function goes on that does nothing but exchange its first two arguments.
fn exchanged(binary: &Binary, function: Function) -> Option<Function> {
    let code: Vec<Instruction> = binary.code(function)?.instructions().take(4).collect();
    let [.., last] = code[..] else { return None };
    let moves = |i: &Instruction| i.mnemonic() == Mnemonic::Mov && i.op1_kind() == OpKind::Register;
    let (head, _) = code.split_at(3.min(code.len()));
    let gives = |to, from| {
        head.iter()
            .any(|i| i.op0_register() == to && (from == Register::None || i.op1_register() == from))
    };
    if !head.iter().all(moves) || !gives(Register::RDI, Register::RSI) || !gives(Register::RSI, Register::None) {
        return None;
    }
    if last.flow_control() != FlowControl::UnconditionalBranch || last.op0_kind() != OpKind::NearBranch64 {
        return None;
    }
    let target = last.near_branch_target();
    binary.function_at(target).filter(|f| f.address == target)
}

/// Whether a function keeps its fourth argument and writes the lower half of it to its stream.
fn made(binary: &Binary, function: Function, from_transport: bool) -> Option<Made> {
    let of_stream = if from_transport { Register::RSI } else { Register::RDI };
    let code = binary.code(function)?;
    let kept = |argument: Register| {
        code.instructions().take(24).find_map(|i| {
            (i.mnemonic() == Mnemonic::Mov && i.op1_kind() == OpKind::Register && i.op1_register() == argument)
                .then(|| i.op0_register())
        })
    };
    let (data, stream) = (kept(Register::RCX)?, kept(of_stream)?);
    let mut tested = false;
    for i in code.instructions() {
        tested |= i.mnemonic() == Mnemonic::Test && i.op0_register() == data && i.op1_register() == data;
        if tested
            && stores(&i)
            && i.memory_base() == stream
            && i.op1_register() != Register::None
            && i.op1_register().full_register() == data
        {
            return Some(Made {
                function,
                from_transport,
                identifier: u32::try_from(i.memory_displacement64()).ok()?,
            });
        }
    }
    None
}

/// `mov dword [register + displacement], register`
fn stores(i: &Instruction) -> bool {
    i.mnemonic() == Mnemonic::Mov
        && i.op0_kind() == OpKind::Memory
        && i.op1_kind() == OpKind::Register
        && i.op1_register().size() == 4
        && i.memory_index() == Register::None
}

/// A branch at which registers hold a stream, its transport and the next identifier.
#[derive(Clone, Copy)]
struct Given {
    address: u64,
    /// Numbers of the three registers, four bits each.
    cookie: u64,
}

/// The place where the transport compares its next identifier, right after the last one was written to a stream.
fn identifier(binary: &Binary, offset: u32) -> Option<Given> {
    let mut found = Vec::new();
    for at in binary.occurrences(&LAST.to_le_bytes()) {
        let Some(function) = binary.function_at(at) else {
            continue;
        };
        let Some(code) = binary.code(function) else { continue };
        let all: Vec<Instruction> = code.instructions().collect();
        let comparison = all.iter().position(|i| {
            i.ip() < at && at < i.next_ip() && i.mnemonic() == Mnemonic::Cmp && i.op0_kind() == OpKind::Register
        });
        if let Some(index) = comparison
            && let Some(given) = given(&all, index, offset)
        {
            found.push(given);
        }
    }
    match found[..] {
        [given] => Some(given),
        _ => None,
    }
}

fn given(all: &[Instruction], index: usize, offset: u32) -> Option<Given> {
    let comparison = all.get(index)?;
    let branch = all.get(index + 1)?;
    if branch.flow_control() != FlowControl::ConditionalBranch {
        return None;
    }
    let next = comparison.op0_register();
    let before = all.get(index.checked_sub(6)?..index)?;
    let written = |i: &&Instruction| stores(i) && i.memory_displacement64() == u64::from(offset);
    let place = before.iter().position(|i| written(&i))?;
    let stream = before.get(place)?.memory_base();
    let after = before.get(place + 1..)?;
    // The transport's own member, written with the next identifier.
    let transport = after
        .iter()
        .find(|i| stores(i) && i.op1_register() == next)?
        .memory_base();
    let by_two = after.iter().any(|i| match i.mnemonic() {
        Mnemonic::Add => i.op0_register() == next && i.try_immediate(1).is_ok_and(|n| n == 2),
        Mnemonic::Lea => i.op0_register().full_register() == next.full_register() && i.memory_displacement64() == 2,
        _ => false,
    });
    let overwritten = after
        .iter()
        .any(|i| i.op0_kind() == OpKind::Register && [stream, transport].contains(&i.op0_register().full_register()));
    if !by_two || overwritten {
        return None;
    }
    let number = |r: Register| u64::try_from(r.full_register().number()).ok().filter(|n| *n < 16);
    Some(Given {
        address: branch.ip(),
        cookie: number(stream)? | number(transport)? << 4 | number(next)? << 8,
    })
}

/// The types of endpoints over sockets, and how each holds its descriptor.
fn endpoints(binary: &Binary, numbers: &mut Layout) -> Result<(), String> {
    let mut room = numbers
        .get_mut(layout::TABLE..layout::TABLE + 3 * layout::TABLES)
        .ok_or("no room")?
        .chunks_exact_mut(3);
    let mut any = false;
    for (table, functions) in binary.tables_of(TABLE) {
        let Some((through, at)) = functions.iter().rev().nth(1).and_then(|f| descriptor(binary, *f)) else {
            continue;
        };
        let (Ok(table), Some([first, second, third])) = (u32::try_from(table), room.next()) else {
            return Err("the types of endpoints are not clear".to_owned());
        };
        (*first, *second, *third) = (table, through, at);
        any = true;
    }
    if any {
        Ok(())
    } else {
        Err("no type of endpoint is found".to_owned())
    }
}

/// How a function reads a descriptor: offset of a pointer in its argument (0: none), offset of the descriptor.
fn descriptor(binary: &Binary, address: u64) -> Option<(u32, u32)> {
    let function = binary
        .function_at(address)
        .filter(|f| f.address == address && f.len() < 128)?;
    let code: Vec<Instruction> = binary.code(function)?.instructions().take(16).collect();
    let loads = |i: &Instruction, size: usize| {
        i.mnemonic() == Mnemonic::Mov
            && i.op0_kind() == OpKind::Register
            && i.op0_register().size() == size
            && i.op1_kind() == OpKind::Memory
            && i.memory_index() == Register::None
    };
    let small = |i: &Instruction, limit: u64| {
        let at = i.memory_displacement64();
        (at != 0 && at < limit).then(|| u32::try_from(at).ok()).flatten()
    };
    match &code[..] {
        // iomgr's TCP: the descriptor itself, close to the beginning.
        [load, end, ..] if end.flow_control() == FlowControl::Return => {
            (loads(load, 4) && load.memory_base() == Register::RDI).then_some(())?;
            Some((0, small(load, 0x20)?))
        }
        // EventEngine's wrapper, under a lock.
        _ => {
            let pointer = code
                .iter()
                .take(6)
                .find(|i| loads(i, 8) && i.memory_base() == Register::RDI)?;
            let value = code
                .iter()
                .find(|i| loads(i, 4) && i.memory_base() == pointer.op0_register())?;
            (small(pointer, 16)? == 8).then_some(())?;
            let locks = code.iter().any(|i| i.flow_control() == FlowControl::Call);
            locks.then(|| Some((8, small(value, 0x200)?)))?
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Libraries at hand: Debian's, and wheels of grpcio where `TRACEWIRE_LIBRARIES` lists them (`:` between).
    fn libraries() -> Vec<String> {
        let mut paths: Vec<String> = std::env::var("TRACEWIRE_LIBRARIES")
            .map(|list| list.split(':').map(str::to_owned).collect())
            .unwrap_or_default();
        paths.push("/usr/lib/x86_64-linux-gnu/libgrpc.so.29".to_owned());
        paths.retain(|path| Path::new(path).exists());
        paths
    }

    #[test]
    fn all_places_are_found_in_libraries_with_and_without_symbols() {
        for path in libraries() {
            let binary = Binary::open(&path).unwrap_or_else(|e| unreachable!("{path}: {e}"));
            let start = std::time::Instant::now();
            let found = look(&binary).unwrap_or_else(|| unreachable!("{path}"));
            println!(
                "{path} {:?}\n  {:x?}\n  {:x?}",
                start.elapsed(),
                found.layout,
                found.abilities
            );
            for ability in &found.abilities {
                assert!(ability.points.is_ok(), "{path}: {ability:?}");
            }
            assert_ne!(found.layout[layout::TABLE], 0, "{path}");
        }
    }
}
