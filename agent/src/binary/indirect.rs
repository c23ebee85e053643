//! Calls by way of a pointer in the file's data. Rust's compiler calls what is
//! in another crate so (`call [rip + slot]`, or a register loaded from there),
//! where the linker has not made it a direct call.

use iced_x86::{FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};
use rustc_hash::{FxHashMap, FxHashSet};

use super::{Binary, Code, Function};

/// Registers that a callee may change (System V ABI).
const CLOBBERED: &[Register] = &[
    Register::RAX,
    Register::RCX,
    Register::RDX,
    Register::RSI,
    Register::RDI,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
];

/// Addresses that are looked for, and the words of the file's data that hold them once it is loaded.
#[derive(Clone, Debug, Default)]
pub struct Targets {
    addresses: FxHashSet<u64>,
    slots: FxHashMap<u64, u64>,
}

impl Targets {
    /// The target that an instruction calls or jumps to, or whose address it loads, without a register's help.
    fn named(&self, instruction: &Instruction) -> Option<u64> {
        let direct = instruction.op_count() > 0 && instruction.op0_kind() == OpKind::NearBranch64;
        if direct {
            let target = instruction.near_branch_target();
            return self.addresses.contains(&target).then_some(target);
        }
        if !instruction.is_ip_rel_memory_operand() {
            return None;
        }
        let at = instruction.ip_rel_memory_address();
        if instruction.mnemonic() == Mnemonic::Lea {
            return self.addresses.contains(&at).then_some(at);
        }
        self.slots.get(&at).copied()
    }
}

impl Binary {
    /// Makes ready to look for references to functions.
    pub fn targets(&self, functions: &[Function]) -> Targets {
        let addresses: FxHashSet<u64> = functions.iter().map(|f| f.address).collect();
        let slots = self.pointers_to(&addresses);
        Targets { addresses, slots }
    }

    /// Functions whose code names one of the targets, as far as frame descriptions tell where they are.
    pub fn users_of(&self, targets: &Targets) -> Vec<Function> {
        let mut found: Vec<Function> = Vec::new();
        for segment in self.segments().iter().filter(|s| s.executable) {
            let Some(bytes) = self.rest(segment.address) else {
                continue;
            };
            for (at, window) in bytes.windows(5).enumerate() {
                let &[first, a, b, c, d] = window else { continue };
                // call and jmp, or a ModRM byte of mod 00, rm 101: relative to the instruction's end, behind these four bytes.
                if !matches!(first, 0xe8 | 0xe9) && first & 0xc7 != 5 {
                    continue;
                }
                let next = segment.address.wrapping_add(at as u64 + 5);
                let target = next.wrapping_add_signed(i64::from(i32::from_le_bytes([a, b, c, d])));
                if !targets.addresses.contains(&target) && !targets.slots.contains_key(&target) {
                    continue;
                }
                let Some(function) = self.function_at(next.wrapping_sub(5)) else {
                    continue;
                };
                let named = |code: Code<'_>| code.instructions().any(|i| targets.named(&i).is_some());
                if !found.contains(&function) && self.code(function).is_some_and(named) {
                    found.push(function);
                }
            }
        }
        found
    }
}

impl Code<'_> {
    /// Addresses of the instructions that call one of the targets: directly, through its slot, or through a
    /// register that was loaded from there and not changed since, read from the start to the end.
    pub fn calls_of(&self, targets: &Targets) -> Vec<u64> {
        let mut loaded: FxHashSet<Register> = FxHashSet::default();
        let mut facts = InstructionInfoFactory::new();
        let mut found = Vec::new();
        for instruction in self.instructions() {
            let called = matches!(
                instruction.flow_control(),
                FlowControl::Call | FlowControl::IndirectCall
            );
            let by_register = instruction.op0_kind() == OpKind::Register;
            if called {
                if targets.named(&instruction).is_some() || by_register && loaded.contains(&instruction.op0_register())
                {
                    found.push(instruction.ip());
                }
                loaded.retain(|register| !CLOBBERED.contains(register));
                continue;
            }
            for used in facts.info(&instruction).used_registers() {
                if !matches!(
                    used.access(),
                    OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess
                ) {
                    loaded.remove(&used.register().full_register());
                }
            }
            let loads = matches!(instruction.mnemonic(), Mnemonic::Mov | Mnemonic::Lea) && by_register;
            if loads && targets.named(&instruction).is_some() {
                loaded.insert(instruction.op0_register());
            }
        }
        found
    }

    /// The first conditional branch behind an instruction, if each of `kept` holds there what it held before:
    /// the kernel emulates it. None where anything else but straight code comes first.
    pub fn branch_after(&self, address: u64, kept: &[Register]) -> Option<u64> {
        let mut facts = InstructionInfoFactory::new();
        for instruction in self.instructions().skip_while(|i| i.ip() <= address).take(8) {
            if instruction.flow_control() == FlowControl::ConditionalBranch {
                return Some(instruction.ip());
            }
            let holds = instruction.flow_control() == FlowControl::Next
                && facts
                    .info(&instruction)
                    .used_registers()
                    .iter()
                    .filter(|used| kept.contains(&used.register().full_register()))
                    .all(|used| matches!(used.access(), OpAccess::Read | OpAccess::CondRead));
            if !holds {
                return None;
            }
        }
        None
    }
}
