//! Route naming: a name of low cardinality for a path, or none. Patterns that
//! the user gave go first; what they leave is learned segment by segment
//! ([`trie`]). Never gives the path itself as a name once it has seen that
//! it varies, never shows a value that looks private, and never forgets a
//! generalisation: a path's name may get shorter of words, not flip.
//!
//! Parameters are called after the word before them: `/users/{user_id}`.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHasher};

use crate::privacy::REDACTED;

pub mod pattern;
pub mod segment;
pub mod trie;
pub mod vocabulary;

#[cfg(test)]
mod evaluation;
#[cfg(test)]
mod tests;

pub use pattern::{Pattern, PatternError};
use segment::Segment;
use trie::Trie;

/// Services whose routes are learned; the one unused for longest makes room.
const SERVICE_LIMIT: usize = 512;
/// Nodes of all services.
const NODE_LIMIT: usize = 64 * 1024;
/// Paths remembered with their name; a power of two.
const CACHE: usize = 1024;

/// What becomes of a path that no pattern matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Its route is learned.
    #[default]
    Heuristic,
    /// It has no route.
    Strict,
}

/// What the user chose.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// For paths without a pattern.
    pub mode: Mode,
    /// Patterns, the more exact ones first whatever their order here.
    pub patterns: Vec<Pattern>,
}

/// A path's name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// `/users/{user_id}`
    pub template: Option<Arc<str>>,
    /// Parameters and their values, private ones redacted.
    pub params: Vec<(Arc<str>, Arc<str>)>,
    /// The path with private values redacted; `None` if it holds none.
    pub path: Option<Arc<str>>,
}

#[derive(Debug)]
struct Service {
    trie: Trie,
    used: u64,
}

#[derive(Debug)]
struct Cached {
    service: u64,
    method: Box<str>,
    path: Box<str>,
    epoch: u32,
    named: Named,
}

/// Names paths.
#[derive(Debug)]
pub struct Routes {
    mode: Mode,
    patterns: Vec<Pattern>,
    services: FxHashMap<u64, Service>,
    cache: Vec<Option<Cached>>,
    nodes: usize,
    clock: u64,
}

impl Routes {
    /// Knows the patterns and nothing else.
    pub fn new(config: Config) -> Self {
        let mut patterns = config.patterns;
        patterns.sort_by_key(|pattern| std::cmp::Reverse(pattern.weight()));
        Routes {
            mode: config.mode,
            patterns,
            services: FxHashMap::default(),
            cache: std::iter::repeat_with(|| None).take(CACHE).collect(),
            nodes: 0,
            clock: 0,
        }
    }

    /// Takes the patterns and the mode of others; what was learned stays.
    pub fn change(&mut self, other: Routes) {
        self.patterns = other.patterns;
        self.mode = other.mode;
        self.cache.iter_mut().for_each(|place| *place = None);
    }

    /// The name of a path (no query) of a service, which is learned from.
    pub fn name(&mut self, service: u64, method: &str, path: &str) -> Named {
        let mut hasher = FxHasher::default();
        (service, method, path).hash(&mut hasher);
        let hash = hasher.finish();
        // FxHash is at its best in the high bits.
        let slot = (hash >> 48) as usize % CACHE;
        if let Some(Some(hit)) = self.cache.get(slot)
            && hit.service == service
            && *hit.path == *path
            && *hit.method == *method
            && self.services.get(&service).is_none_or(|s| s.trie.epoch == hit.epoch)
        {
            return hit.named.clone();
        }
        let named = self.find(service, method, path, true);
        if !named.params.is_empty() {
            // Values seldom come again: to remember them costs more than it saves.
            return named;
        }
        let epoch = self.services.get(&service).map_or(0, |s| s.trie.epoch);
        if let Some(place) = self.cache.get_mut(slot) {
            *place = Some(Cached {
                service,
                method: method.into(),
                path: path.into(),
                epoch,
                named: named.clone(),
            });
        }
        named
    }

    /// The same, but only a route that is known already, and nothing is
    /// learned: for answers like 404 that speak against the path.
    pub fn recall(&mut self, service: u64, method: &str, path: &str) -> Named {
        self.find(service, method, path, false)
    }

    /// Drops what was learned of a service.
    pub fn forget(&mut self, service: u64) {
        if let Some(gone) = self.services.remove(&service) {
            self.nodes = self.nodes.saturating_sub(gone.trie.size());
        }
    }

    fn find(&mut self, service: u64, method: &str, path: &str, learn: bool) -> Named {
        let segments = Segment::all(path);
        let mut named = Named {
            path: redacted(path, &segments),
            ..Named::default()
        };
        if let Some((pattern, params)) = self
            .patterns
            .iter()
            .find_map(|p| Some((p, p.matches(method, &segments)?)))
        {
            named.template = Some(Arc::clone(&pattern.template));
            named.params = params;
            return named;
        }
        if self.mode == Mode::Strict {
            return named;
        }
        self.clock += 1;
        if !self.services.contains_key(&service) {
            if !learn {
                return named;
            }
            self.make_room();
        }
        let room = self.nodes + 2 * segments.len() < NODE_LIMIT;
        let known = self.services.entry(service).or_insert_with(|| Service {
            trie: Trie::default(),
            used: 0,
        });
        known.used = self.clock;
        let before = known.trie.size();
        let found = known.trie.walk(&segments, learn, room);
        self.nodes = (self.nodes + known.trie.size()).saturating_sub(before);
        if let Some(found) = found {
            named.template = Some(Arc::clone(&found.template.text));
            named.params = found
                .template
                .names
                .iter()
                .zip(&found.values)
                .filter_map(|(name, number)| Some((Arc::clone(name), segments.get(*number)?.shown().into())))
                .collect();
        }
        named
    }

    fn make_room(&mut self) {
        if self.services.len() < SERVICE_LIMIT {
            return;
        }
        if let Some(oldest) = self
            .services
            .iter()
            .min_by_key(|(_, service)| service.used)
            .map(|(id, _)| *id)
        {
            self.forget(oldest);
        }
    }
}

/// A path (no query) as it may be shown; `None`: as it is.
pub fn private(path: &str) -> Option<Arc<str>> {
    redacted(path, &Segment::all(path))
}

/// The path without its private values and without the values of matrix
/// parameters (session ids, in practice); `None` if there are none.
fn redacted(path: &str, segments: &[Segment<'_>]) -> Option<Arc<str>> {
    if segments
        .iter()
        .all(|segment| segment.matrix.is_empty() && !segment.hidden)
    {
        return None;
    }
    let mut out = String::with_capacity(path.len() + 16);
    let mut segments = segments.iter();
    for (place, raw) in path.split('/').enumerate() {
        if place > 0 {
            out.push('/');
        }
        if raw.is_empty() {
            continue;
        }
        let Some(segment) = segments.next() else { break };
        if segment.hidden {
            out.push_str(REDACTED);
            out.push_str(segment.verb);
        } else {
            let end = raw.len() - segment.matrix.len();
            out.push_str(raw.get(..end).unwrap_or(REDACTED));
        }
        for parameter in segment.matrix.split(';').skip(1) {
            out.push(';');
            match parameter.split_once('=') {
                Some((name, _)) => {
                    out.push_str(name);
                    out.push('=');
                    out.push_str(REDACTED);
                }
                None => out.push_str(REDACTED),
            }
        }
    }
    Some(out.into())
}
