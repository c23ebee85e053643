//! Unix connections whose socket nobody holds any more. Nothing tells of the close of a Unix
//! socket, so one looks now and then who holds which.
//!
//! Bias: a socket that is missed once may be on its way to another process (SCM_RIGHTS); it is
//! closed when the next look misses it too.

use rustc_hash::{FxHashMap, FxHashSet};

/// Pause between two looks while a request is open on a Unix connection, ns.
const BUSY: u64 = 500_000_000;
/// The same while none is.
const IDLE: u64 = 5_000_000_000;

/// A followed Unix connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Followed {
    /// Its name.
    pub connection: u64,
    /// A request is open on it.
    pub busy: bool,
}

/// What the last look missed.
#[derive(Debug, Default)]
pub struct Closes {
    looked_ns: u64,
    /// When each was missed first.
    missed: FxHashMap<u64, u64>,
}

impl Closes {
    /// Whether it may be time for a look, whatever is followed.
    pub fn may_be_due(&self, now_ns: u64) -> bool {
        now_ns >= self.looked_ns + BUSY
    }

    /// Whether it is time for a look at these.
    pub fn is_due(&self, followed: &[Followed], now_ns: u64) -> bool {
        let hurry = !self.missed.is_empty() || followed.iter().any(|f| f.busy);
        !followed.is_empty() && now_ns >= self.looked_ns + if hurry { BUSY } else { IDLE }
    }

    /// Takes what was followed before the look and what it found held; each that is closed by now,
    /// with the time by which it was.
    pub fn look(&mut self, followed: &[Followed], held: &FxHashSet<u64>, now_ns: u64) -> Vec<(u64, u64)> {
        self.looked_ns = now_ns;
        let before = std::mem::take(&mut self.missed);
        let mut closed = Vec::new();
        for followed in followed.iter().filter(|f| !held.contains(&f.connection)) {
            match before.get(&followed.connection) {
                Some(first) => closed.push((followed.connection, *first)),
                None => {
                    self.missed.insert(followed.connection, now_ns);
                }
            }
        }
        closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn followed(connections: &[u64], busy: bool) -> Vec<Followed> {
        let each = connections.iter();
        each.map(|connection| Followed {
            connection: *connection,
            busy,
        })
        .collect()
    }

    #[test]
    fn a_socket_is_closed_when_two_looks_miss_it() {
        let mut closes = Closes::default();
        let (both, first) = (FxHashSet::from_iter([1, 2]), FxHashSet::from_iter([1]));
        let all = followed(&[1, 2], true);
        assert_eq!(closes.look(&all, &both, 10 * S), []);
        assert_eq!(closes.look(&all, &first, 11 * S), []);
        assert_eq!(closes.look(&all, &first, 12 * S), [(2, 11 * S)]);
        assert_eq!(closes.look(&followed(&[1], true), &first, 13 * S), []);
    }

    #[test]
    fn a_socket_on_its_way_to_another_process_is_not_closed() {
        let mut closes = Closes::default();
        let all = followed(&[1], true);
        let (here, away) = (FxHashSet::from_iter([1]), FxHashSet::default());
        for (turn, held) in [&away, &here, &away, &here].into_iter().enumerate() {
            assert_eq!(closes.look(&all, held, turn as u64 * S), []);
        }
    }

    #[test]
    fn one_looks_seldom_while_nothing_is_open() {
        let mut closes = Closes::default();
        let (idle, busy) = (followed(&[1], false), followed(&[1], true));
        closes.look(&idle, &FxHashSet::from_iter([1]), 10 * S);
        assert!(!closes.may_be_due(10 * S + 1) && closes.may_be_due(11 * S));
        assert!(!closes.is_due(&idle, 11 * S) && closes.is_due(&idle, 15 * S));
        assert!(closes.is_due(&busy, 11 * S));
        assert!(!closes.is_due(&[], 99 * S));
        // What was missed once is looked for again soon.
        closes.look(&idle, &FxHashSet::default(), 20 * S);
        assert!(closes.is_due(&idle, 21 * S));
    }
}
