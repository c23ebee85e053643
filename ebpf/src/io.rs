//! What a framer needs of its surroundings: contiguous pieces of the call's
//! bytes, a place to put the elided stream, and the states of open streams.

use tracewire_common::elided::Head;
use tracewire_common::fault::Fault;

use crate::connection::{Http1, Message};
use crate::http1::{Bytes, Turn};

/// Most bytes that [`Io::look`] is asked for, and that [`Io::scan`] takes.
pub const SIGHT: u32 = 64;

/// The surroundings of a framer. In the kernel: user memory, the ring buffer
/// and maps; in tests: slices.
pub trait Io {
    /// Contiguous bytes at hand, at least 1 while a step runs.
    fn available(&mut self) -> u32;
    /// Has the next `n` ≤ [`SIGHT`] of the bytes at hand in sight, or all of them if they
    /// are fewer, without moving on; how many are in sight, 0 when they could not be read.
    fn look(&mut self, n: u32) -> u32;
    /// A byte in sight, `at` ≤ [`SIGHT`].
    fn byte(&self, at: u32) -> u8;
    /// Eight bytes in sight, big-endian; those beyond what is in sight are anything.
    fn word(&self, at: u32) -> u64;
    /// Gives the first `n` ≤ [`SIGHT`] bytes in sight to a machine until it has its last one;
    /// how many it took, and what the last one led to.
    fn scan<B: Bytes>(&mut self, n: u32, http1: &mut Http1) -> (u32, Turn);
    /// Moves on by `n` ≤ available bytes.
    fn skip(&mut self, n: u32);
    /// Appends up to `n` ≤ available bytes to the elided stream and moves on; how many, 0 when they could not be read.
    fn copy(&mut self, n: u32) -> u32;
    /// Appends a frame header to the elided stream.
    fn put(&mut self, head: Head);
    /// Appends a big-endian integer to the elided stream.
    fn put_u64(&mut self, value: u64);
    /// Appends the first five bytes, a message prefix, to the elided stream.
    fn put_prefix(&mut self, prefix: &[u8; 8]);
    /// Appends one byte to the elided stream.
    fn put_byte(&mut self, byte: u8);
    /// Reads the stored state of a stream of this direction.
    fn load(&mut self, stream: u32) -> Option<Message>;
    /// Stores the state of a stream of this direction. False: there was no room.
    fn store(&mut self, stream: u32, message: &Message) -> bool;
    /// Forgets the state of a stream of this direction.
    fn forget(&mut self, stream: u32);
    /// Counts a fault.
    fn fault(&mut self, fault: Fault);
}
