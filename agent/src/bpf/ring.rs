//! Reads the ring buffer, without spinning and without a wake-up a record.
//!
//! While records come the reader looks every few milliseconds and the kernel
//! wakes nobody. When none came for a while it raises a flag and sleeps in
//! `poll`; the first record then wakes it.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use aya::maps::{Array, MapData, RingBuf};

/// How often a busy reader looks: a wake-up and what follows it cost as much as some spans, but a new
/// process may end a few milliseconds after it began.
const BUSY: Duration = Duration::from_millis(4);
/// Quiet time after which the reader asks to be woken.
const QUIET: Duration = Duration::from_millis(40);
/// Longest sleep: a wake-up that was missed by a hair costs no more than this.
const SLEEP: Duration = Duration::from_millis(200);

/// The reader's end.
pub struct Reader {
    ring: RingBuf<MapData>,
    sleeping: Array<MapData, u32>,
    last: Instant,
}

impl Reader {
    /// Takes the two maps of a loaded kernel side.
    pub fn new(ring: RingBuf<MapData>, sleeping: Array<MapData, u32>) -> Self {
        Reader {
            ring,
            sleeping,
            last: Instant::now(),
        }
    }

    /// Gives every record that is there to `each`; how many there were.
    pub fn drain(&mut self, mut each: impl FnMut(&[u8])) -> usize {
        let mut count = 0;
        while let Some(item) = self.ring.next() {
            each(&item);
            count += 1;
        }
        if count > 0 {
            self.last = Instant::now();
        }
        count
    }

    /// Waits until it is worth looking again, at most `limit`.
    pub fn wait(&mut self, limit: Duration) {
        if self.last.elapsed() < QUIET {
            std::thread::sleep(BUSY.min(limit));
            return;
        }
        if self.sleeping.set(0, 1, 0).is_err() {
            std::thread::sleep(BUSY.min(limit));
            return;
        }
        let mut fd = libc::pollfd {
            fd: self.ring.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let timeout = SLEEP.min(limit).as_millis() as libc::c_int;
        // SAFETY: one valid pollfd on the stack.
        unsafe { libc::poll(&raw mut fd, 1, timeout) };
    }
}
