//! Reads of kernel and user memory.

use aya_ebpf::helpers::generated::{bpf_probe_read_kernel, bpf_probe_read_user};
pub use tracewire_ebpf::bound::opaque;

/// Another function works on `value` too, by way of its map: the compiler must neither keep
/// back what was written to it nor know what is in it.
#[inline(always)]
pub fn shared<T>(value: &mut T) {
    let mut at: *mut T = value;
    // SAFETY: a move of a register to itself, which the compiler must take for one that may write the value.
    unsafe {
        core::arch::asm!("{0} = {0}", inout(reg) at, options(nostack, preserves_flags));
    }
    let _ = at;
}

/// Eight bytes of a map's value, big-endian, at any alignment: the compiler would read them one by one.
///
/// # Safety
/// `at` points to eight bytes of a map's value, which the verifier checks too.
#[inline(always)]
pub unsafe fn load_word(at: *const u8) -> u64 {
    let word: u64;
    // SAFETY: a load of eight bytes, for which the caller vouches; the kernel of x86-64 allows any alignment.
    unsafe {
        core::arch::asm!("{0} = *(u64 *)({1} + 0)", out(reg) word, in(reg) at, options(nostack, readonly, preserves_flags));
    }
    u64::from_be(word)
}

/// Writes likewise.
///
/// # Safety
/// As for [`load_word`].
#[inline(always)]
pub unsafe fn store_word(at: *mut u8, word: u64) {
    let word = word.to_be();
    // SAFETY: a store of eight bytes, for which the caller vouches.
    unsafe {
        core::arch::asm!("*(u64 *)({0} + 0) = {1}", in(reg) at, in(reg) word, options(nostack, preserves_flags));
    }
}

/// A plain value at a kernel address.
#[inline(always)]
pub fn kernel<T: Copy>(address: u64) -> Option<T> {
    let mut value = core::mem::MaybeUninit::<T>::uninit();
    // SAFETY: writes at most `size_of::<T>()` bytes to `value`; a bad address is an error, not a fault.
    let result =
        unsafe { bpf_probe_read_kernel(value.as_mut_ptr().cast(), size_of::<T>() as u32, address as *const _) };
    if result != 0 {
        return None;
    }
    // SAFETY: the helper wrote all of it; only instantiated with integers and byte arrays.
    Some(unsafe { value.assume_init() })
}

/// The same at a user address of the current task.
#[inline(always)]
pub fn user<T: Copy>(address: u64) -> Option<T> {
    let mut value = core::mem::MaybeUninit::<T>::uninit();
    // SAFETY: writes at most `size_of::<T>()` bytes to `value`; a bad address is an error, not a fault.
    let result = unsafe { bpf_probe_read_user(value.as_mut_ptr().cast(), size_of::<T>() as u32, address as *const _) };
    if result != 0 {
        return None;
    }
    // SAFETY: the helper wrote all of it; only instantiated with integers and arrays of them.
    Some(unsafe { value.assume_init() })
}
