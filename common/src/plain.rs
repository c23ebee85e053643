//! Types that may be read from and written as bytes.

/// A type whose every bit pattern is a value and which has no padding.
///
/// # Safety
/// `#[repr(C)]`, no padding, no invalid bit pattern.
pub unsafe trait Plain: Copy {
    /// The value at the start of `bytes`, if there are enough of them.
    fn read(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < size_of::<Self>() {
            return None;
        }
        // SAFETY: long enough (checked), any alignment, and every bit pattern is a value.
        Some(unsafe { core::ptr::read_unaligned(bytes.as_ptr().cast::<Self>()) })
    }

    /// The value's bytes.
    fn bytes(&self) -> &[u8] {
        // SAFETY: no padding, so all bytes are initialised; the borrow lasts as long as `self`.
        unsafe { core::slice::from_raw_parts(core::ptr::from_ref(self).cast::<u8>(), size_of::<Self>()) }
    }
}
