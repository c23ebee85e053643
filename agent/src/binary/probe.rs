//! Where in a function's prologue a uprobe is cheap.
//!
//! The kernel emulates `push`, `jcc`, `jmp`, `call` (relative) and the one-byte
//! `nop` (arch/x86/kernel/uprobes.c); every other instruction is single-stepped
//! out of line, which costs many times as much. So a probe stands on the first
//! emulated instruction that every entry passes exactly once and before which
//! no wanted register was changed.

use iced_x86::{FlowControl, Instruction, InstructionInfoFactory, OpAccess, OpKind, Register};

use super::{Binary, Code, Function};

/// Registers of the first arguments in the System V ABI.
pub const SYSV_ARGUMENTS: &[Register] = &[
    Register::RDI,
    Register::RSI,
    Register::RDX,
    Register::RCX,
    Register::R8,
    Register::R9,
];

/// Registers of the first arguments in Go's ABIInternal, and the goroutine.
pub const GO_ARGUMENTS: &[Register] = &[
    Register::RAX,
    Register::RBX,
    Register::RCX,
    Register::RDI,
    Register::RSI,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
    Register::R14,
];

/// Instructions looked at before the entry itself is taken.
const PROLOGUE: usize = 48;

/// Where to attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// Address in the file.
    pub address: u64,
    /// Whether the kernel emulates the instruction; else it is the function's first one, whatever that is.
    pub cheap: bool,
    /// Bytes by which the stack pointer is lower than at the entry: the return address stands at `rsp + pushed`.
    pub pushed: u32,
}

impl Binary {
    /// Where to attach to a function, and the offset of that place in the file.
    pub fn probe(&self, function: Function, arguments: &[Register]) -> Option<(Point, u64)> {
        let point = probe_point(&self.code(function)?, arguments)?;
        Some((point, self.offset(point.address)?))
    }
}

/// The cheapest place at which these registers still are what the caller passed, and that each entry passes once.
pub fn probe_point(code: &Code<'_>, arguments: &[Register]) -> Option<Point> {
    let first = code.instructions().next()?;
    let entry = Point {
        address: first.ip(),
        cheap: false,
        pushed: 0,
    };
    Some(cheap_point(code, arguments).unwrap_or(entry))
}

fn cheap_point(code: &Code<'_>, arguments: &[Register]) -> Option<Point> {
    let mut targets: Option<Vec<u64>> = None;
    let mut facts = InstructionInfoFactory::new();
    let mut pushed = 0u32;
    for instruction in code.instructions().take(PROLOGUE) {
        if instruction.ip() != code.address {
            let inner = targets.get_or_insert_with(|| targets_within(code));
            // Something jumps to here: from here on an entry may pass more than once.
            if inner.binary_search(&instruction.ip()).is_ok() {
                return None;
            }
        }
        let again = instruction.flow_control() == FlowControl::ConditionalBranch
            && leads_back(code, instruction.near_branch_target());
        if !again {
            if emulated(code, &instruction) {
                return Some(Point {
                    address: instruction.ip(),
                    cheap: true,
                    pushed,
                });
            }
            if instruction.flow_control() != FlowControl::Next {
                return None;
            }
        }
        let used = facts.info(&instruction).used_registers();
        let written = |register: Register| {
            used.iter().any(|use_of| {
                use_of.register().full_register() == register
                    && !matches!(
                        use_of.access(),
                        OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess
                    )
            })
        };
        if arguments.iter().any(|register| written(*register)) {
            return None;
        }
        if written(Register::RSP) {
            pushed = pushed.checked_add(u32::try_from(-i64::from(instruction.stack_pointer_increment())).ok()?)?;
            if instruction.stack_pointer_increment() == 0 {
                pushed = pushed.checked_add(lowered(&instruction)?)?;
            }
        }
    }
    None
}

/// By how much `sub rsp, n` lowers the stack pointer.
fn lowered(instruction: &Instruction) -> Option<u32> {
    if instruction.mnemonic() != iced_x86::Mnemonic::Sub || instruction.op1_kind() == OpKind::Register {
        return None;
    }
    u32::try_from(instruction.try_immediate(1).ok()?).ok()
}

fn emulated(code: &Code<'_>, instruction: &Instruction) -> bool {
    let at = usize::try_from(instruction.ip().wrapping_sub(code.address)).unwrap_or(usize::MAX);
    let bytes = at
        .checked_add(instruction.len())
        .and_then(|end| code.bytes.get(at..end))
        .unwrap_or(&[]);
    matches!(
        bytes,
        [0x50..=0x57]
            | [0x41, 0x50..=0x57]
            | [0x90]
            | [0x70..=0x7f | 0xeb, _]
            | [0x0f, 0x80..=0x8f, ..]
            | [0xe8 | 0xe9, ..]
    )
}

/// Addresses inside the function, past its entry, that its branches lead to; sorted.
fn targets_within(code: &Code<'_>) -> Vec<u64> {
    let own = code.function();
    let mut targets: Vec<u64> = code
        .instructions()
        .filter(|i| i.op_count() > 0 && i.op0_kind() == OpKind::NearBranch64)
        .map(|i| i.near_branch_target())
        .filter(|target| *target != own.address && own.contains(*target))
        .collect();
    targets.sort_unstable();
    targets
}

/// Whether a branch leads, past a call at most, back to the entry: Go's check of the stack.
fn leads_back(code: &Code<'_>, target: u64) -> bool {
    let Some(bytes) = target
        .checked_sub(code.address)
        .and_then(|skip| code.bytes.get(usize::try_from(skip).ok()?..))
    else {
        return false;
    };
    for instruction in Code::new(target, bytes).instructions().take(64) {
        match instruction.flow_control() {
            FlowControl::Next | FlowControl::Call => {}
            FlowControl::UnconditionalBranch => return instruction.near_branch_target() == code.address,
            _ => return false,
        }
    }
    false
}
