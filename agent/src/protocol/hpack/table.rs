//! The static and the dynamic table (RFC 7541 §2.3), for one who may have come
//! late. Prefers *unknown* to an entry that might be another.
//!
//! # Why a late table is exact
//! A dynamic index counts back from the newest insertion (§2.3.3), and
//! eviction takes the oldest (§4.4). So the entries of a true table are always
//! the newest few insertions without a hole, and whoever has seen the last
//! *n* insertions knows indexes 1 to *n* exactly; what lies beyond is unknown.
//! Two things follow that the code leans on:
//!
//! * Keeping an entry longer than the true table does is harmless: no valid
//!   block refers to it, and it shifts no other index.
//! * Dropping the oldest kept entries early is harmless too, if `whole` is
//!   cleared: they turn unknown.
//!
//! # What is known of the size
//! `size` is the table size the encoder uses: 4096 at the start of a
//! connection (RFC 9113 §6.5.2), else what the last size update said, else
//! `None`. The eviction of §4.4 is done with it exactly; an entry whose name
//! is unknown counts with what is known of it, that is too little, which keeps
//! too much (harmless, see above). With or without `size` at most
//! [`KEEP`]/[`KEEP_LATE`] bytes are kept.
//!
//! # How a late table becomes whole
//! When the kept entries leave less than the 32 bytes that the smallest entry
//! takes (§4.1), there can be none older. A size update to 0 is the plainest
//! case. From then on an index beyond the table is an error and not unknown.

use std::collections::VecDeque;

use super::Error;

/// Most bytes (by the count of RFC 7541 §4.1) kept of a table whose size is known.
const KEEP: u32 = 64 * 1024;
/// The same while the size is not known: most peers use 4096 bytes.
const KEEP_LATE: u32 = 16 * 1024;
/// What an entry counts beside its octets (RFC 7541 §4.1).
const OVERHEAD: u32 = 32;
/// Dead octets that are not worth moving the living for.
const SLACK: usize = 256;
/// Length of a name that is not known.
const UNKNOWN: u32 = u32::MAX;

/// An entry: name, if it is known, and value.
pub(super) type Entry<'a> = (Option<&'a [u8]>, &'a [u8]);

/// Where the name of an insertion comes from.
#[derive(Clone, Copy)]
pub(super) enum Name<'a> {
    Text(&'a [u8]),
    /// An entry of the dynamic table, by its index in the common address space.
    Entry(u32),
    Unknown,
}

#[derive(Clone, Copy)]
struct Slot {
    /// Octet of the stream of all insertions at which the name starts.
    start: u32,
    /// Octets of the name, or [`UNKNOWN`].
    name: u32,
    /// Octets of the value, which follows the name.
    value: u32,
}

impl Slot {
    fn octets(self) -> u32 {
        self.value + if self.name == UNKNOWN { 0 } else { self.name }
    }
}

/// The dynamic table of one direction.
pub(super) struct Table {
    /// Oldest first.
    slots: VecDeque<Slot>,
    /// The octets of all slots, in their order, after some dead ones.
    octets: Vec<u8>,
    /// Number in the stream of all insertions (mod 2³²) of the first of `octets`.
    base: u32,
    /// Size of the kept entries by RFC 7541 §4.1, or less where names are unknown.
    used: u32,
    /// Size that the encoder uses, if it is known.
    size: Option<u32>,
    /// Whether the true table has no entries but these.
    whole: bool,
}

impl Table {
    /// An empty table: of a new connection if `size` is known, else of an old one.
    pub(super) fn new(size: Option<u32>) -> Self {
        Table {
            slots: VecDeque::new(),
            octets: Vec::new(),
            base: 0,
            used: 0,
            size,
            whole: size.is_some(),
        }
    }

    /// Forgets everything.
    pub(super) fn lose(&mut self) {
        self.evict(0);
        self.compact();
        self.size = None;
        self.whole = false;
    }

    /// Whether the true table has no entries but those kept.
    pub(super) fn is_whole(&self) -> bool {
        self.whole
    }

    /// The entry at `index` of the common address space (RFC 7541 §2.3.3); `None` = not known.
    ///
    /// # Errors
    /// [`Error::Index`]: there is no such entry.
    #[inline]
    pub(super) fn get(&self, index: u32) -> Result<Option<Entry<'_>>, Error> {
        if let Some(entry) = STATIC.get((index as usize).wrapping_sub(1)) {
            return Ok(Some((Some(entry.0.as_bytes()), entry.1.as_bytes())));
        }
        let back = (index as usize).wrapping_sub(STATIC.len());
        match self
            .slots
            .len()
            .checked_sub(back)
            .filter(|_| index != 0)
            .and_then(|i| self.slots.get(i))
        {
            Some(slot) => Ok(self.entry(*slot)),
            None if index == 0 || self.whole => Err(Error::Index),
            None => Ok(None),
        }
    }

    fn entry(&self, slot: Slot) -> Option<Entry<'_>> {
        let octets = self.octets.get(slot.start.wrapping_sub(self.base) as usize..)?;
        if slot.name == UNKNOWN {
            return Some((None, octets.get(..slot.value as usize)?));
        }
        let (name, octets) = octets.split_at_checked(slot.name as usize)?;
        Some((Some(name), octets.get(..slot.value as usize)?))
    }

    /// Inserts an entry, evicting what has to go (RFC 7541 §4.4).
    pub(super) fn insert(&mut self, name: Name<'_>, value: &[u8]) {
        // The octets first: the name may belong to an entry that has to go.
        let from = self.octets.len();
        let name_length = match name {
            Name::Text(name) => {
                self.octets.extend_from_slice(name);
                name.len() as u32
            }
            Name::Entry(index) => self.copy_name(index),
            Name::Unknown => UNKNOWN,
        };
        self.octets.extend_from_slice(value);
        let slot = Slot {
            start: self.base.wrapping_add(from as u32),
            name: name_length,
            value: value.len() as u32,
        };
        let takes = slot.octets() + OVERHEAD;

        let size = self.size.unwrap_or(u32::MAX);
        self.evict(size.saturating_sub(takes));
        let keep = if self.size.is_some() { KEEP } else { KEEP_LATE };
        if self.used > keep.saturating_sub(takes) || takes > keep {
            self.whole = false;
            self.evict(keep.saturating_sub(takes));
        }
        if takes > size {
            // Larger than the table: an empty table is the result, not an error.
            self.octets.truncate(from);
            self.whole = true;
        } else if takes > keep {
            // Not worth its memory. All that is older than the next insertion is now unknown.
            self.octets.truncate(from);
        } else {
            self.slots.push_back(slot);
            self.used += takes;
            self.settle();
        }
        self.compact();
    }

    /// Follows a size update (RFC 7541 §6.3).
    pub(super) fn resize(&mut self, size: u32) {
        self.size = Some(size);
        self.evict(size);
        self.settle();
        self.compact();
    }

    /// Appends the name of the entry at `index` to `octets`; returns its length.
    fn copy_name(&mut self, index: u32) -> u32 {
        let back = (index as usize).wrapping_sub(STATIC.len());
        let slot = self
            .slots
            .len()
            .checked_sub(back)
            .and_then(|i| self.slots.get(i))
            .copied();
        let Some(slot) = slot.filter(|s| s.name != UNKNOWN) else {
            return UNKNOWN;
        };
        let start = slot.start.wrapping_sub(self.base) as usize;
        let end = start + slot.name as usize;
        if end > self.octets.len() {
            return UNKNOWN;
        }
        self.octets.extend_from_within(start..end);
        slot.name
    }

    /// Drops the oldest entries until at most `most` bytes are used.
    fn evict(&mut self, most: u32) {
        while self.used > most {
            let Some(slot) = self.slots.pop_front() else { break };
            self.used -= slot.octets() + OVERHEAD;
        }
    }

    /// Finds out whether there is room for entries that were never seen.
    fn settle(&mut self) {
        if self.size.is_some_and(|size| size.saturating_sub(self.used) < OVERHEAD) {
            self.whole = true;
        }
    }

    /// Gives back the octets of evicted entries, once they are the greater part.
    fn compact(&mut self) {
        let dead = match self.slots.front() {
            Some(slot) => slot.start.wrapping_sub(self.base) as usize,
            None => self.octets.len(),
        };
        if dead > SLACK && dead * 2 >= self.octets.len() {
            self.octets.drain(..dead);
            self.base = self.base.wrapping_add(dead as u32);
        }
    }
}

/// The name at `index` of the static table.
pub(super) fn static_name(index: u32) -> Option<&'static [u8]> {
    STATIC
        .get((index as usize).wrapping_sub(1))
        .map(|entry| entry.0.as_bytes())
}

/// The static table, RFC 7541 Appendix A; index 1 comes first.
pub(super) static STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];
