//! The barrier that keeps a bound where the verifier sees it: the compiler
//! drops a mask that it can prove to do nothing, or moves it to another value,
//! and verifiers of older kernels can't follow its proof.

/// Hides a value from the optimiser, so that a mask or comparison that
/// follows stays, on the register that is then used.
#[inline(always)]
#[cfg_attr(not(target_arch = "bpf"), allow(unused_mut))]
pub fn opaque(mut value: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    // SAFETY: a move of a register to itself; an empty text would leave two line records at one instruction, which the kernel refuses.
    unsafe {
        core::arch::asm!("{0} = {0}", inout(reg) value, options(nomem, nostack, preserves_flags));
    }
    value
}
