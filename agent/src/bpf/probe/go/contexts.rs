//! Where calls have their `context.Context`. Bias: a place that the code does
//! not show is none.

use crate::binary::decoder::{Instruction, Mnemonic, OpKind, Register};
use crate::binary::{Code, Version};

/// Offset of `http.Request.ctx`, from the sources of each version.
pub fn in_request(version: Version) -> u32 {
    match (version.major, version.minor) {
        (1, 17..=22) => 232,
        // `Pattern` came before it.
        (1, 23..=26) => 248,
        _ => 0,
    }
}

/// A method whose first argument is a context saves it at the places that ABIInternal has for it in the caller's
/// frame: 8 and 16 bytes above the return address and the receiver.
///
/// # Errors
/// When its code does not show that.
pub fn saves_its_context(code: &Code<'_>) -> Result<(), String> {
    let mut frame = 0u64;
    let mut saved = [false; 2];
    for instruction in code.instructions().take(32) {
        match instruction.mnemonic() {
            Mnemonic::Call => break,
            Mnemonic::Push => frame += 8,
            Mnemonic::Sub if instruction.op0_register() == Register::RSP => {
                frame += instruction.try_immediate(1).unwrap_or(0);
            }
            Mnemonic::Mov
                if instruction.memory_base() == Register::RSP && instruction.op1_kind() == OpKind::Register =>
            {
                saved[0] |= stores(&instruction, Register::RBX, frame + 16);
                saved[1] |= stores(&instruction, Register::RCX, frame + 24);
            }
            _ => {}
        }
    }
    if saved == [true; 2] {
        Ok(())
    } else {
        Err("createHeaderFields does not save its context where it should".to_owned())
    }
}

fn stores(instruction: &Instruction, register: Register, displacement: u64) -> bool {
    instruction.op0_kind() == OpKind::Memory
        && instruction.op1_register() == register
        && instruction.memory_displacement64() == displacement
}
