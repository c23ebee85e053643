//! The instructions of one function.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, OpKind};

use super::Function;

/// A function's bytes and where they stand.
#[derive(Clone, Copy, Debug)]
pub struct Code<'a> {
    /// Of the first byte.
    pub address: u64,
    /// Its instructions.
    pub bytes: &'a [u8],
}

/// A direct call, or a jump out of the function (a call in tail position).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Address of the instruction.
    pub at: u64,
    /// Where it leads.
    pub target: u64,
    /// Whether it is a jump.
    pub tail: bool,
}

impl<'a> Code<'a> {
    /// Bytes that stand at an address.
    pub fn new(address: u64, bytes: &'a [u8]) -> Self {
        // So that the address after the last instruction can always be said.
        let room = usize::try_from(u64::MAX - address).unwrap_or(usize::MAX);
        Code {
            address,
            bytes: bytes.get(..room).unwrap_or(bytes),
        }
    }

    /// Its extent.
    pub fn function(&self) -> Function {
        Function {
            address: self.address,
            end: self.address.saturating_add(self.bytes.len() as u64),
        }
    }

    /// From the first byte on, one after the other, until one is no instruction.
    pub fn instructions(&self) -> impl Iterator<Item = Instruction> + use<'a> {
        let mut decoder = Decoder::with_ip(64, self.bytes, self.address, DecoderOptions::NONE);
        std::iter::from_fn(move || {
            if !decoder.can_decode() {
                return None;
            }
            let instruction = decoder.decode();
            (!instruction.is_invalid()).then_some(instruction)
        })
    }

    /// Whether an instruction begins at `address` when the function is read from its start.
    pub fn begins(&self, address: u64) -> bool {
        self.instructions()
            .take_while(|i| i.ip() <= address)
            .any(|i| i.ip() == address)
    }

    /// Direct calls and jumps out of the function, in order of address.
    pub fn calls(&self) -> Vec<Call> {
        let own = self.function();
        self.instructions()
            .filter_map(|i| {
                let direct = matches!(i.op0_kind(), OpKind::NearBranch64);
                let target = i.near_branch_target();
                match i.flow_control() {
                    FlowControl::Call if direct => Some(Call {
                        at: i.ip(),
                        target,
                        tail: false,
                    }),
                    FlowControl::UnconditionalBranch if direct && !own.contains(target) => Some(Call {
                        at: i.ip(),
                        target,
                        tail: true,
                    }),
                    _ => None,
                }
            })
            .collect()
    }

    /// Addresses of its RET instructions. Empty also where a byte could not be decoded: a return may be missing then.
    pub fn returns(&self) -> Vec<u64> {
        let (mut found, mut end) = (Vec::new(), self.address);
        for instruction in self.instructions() {
            end = instruction.next_ip();
            if instruction.flow_control() == FlowControl::Return {
                found.push(instruction.ip());
            }
        }
        if end != self.function().end {
            found.clear();
        }
        found
    }
}
