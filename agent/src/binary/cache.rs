//! What was found in a file is kept by the file's identity: many processes run
//! the same one, and scanning it costs up to a second.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Binary, Identity};

/// Files remembered at a time; all are forgotten when one more comes.
const FILES: usize = 256;

/// Results of one kind of search.
pub struct Cache<T> {
    found: Mutex<HashMap<Identity, Arc<T>>>,
}

impl<T> Default for Cache<T> {
    fn default() -> Self {
        Cache {
            found: Mutex::new(HashMap::new()),
        }
    }
}

impl<T> Cache<T> {
    /// What is known of this file, or else what `search` finds.
    pub fn of(&self, binary: &Binary, search: impl FnOnce(&Binary) -> T) -> Arc<T> {
        let identity = binary.identity();
        if *identity == Identity::None {
            return Arc::new(search(binary));
        }
        if let Some(known) = self.lock().get(identity) {
            return Arc::clone(known);
        }
        let found = Arc::new(search(binary));
        let mut all = self.lock();
        if all.len() >= FILES {
            all.clear();
        }
        all.insert(identity.clone(), Arc::clone(&found));
        found
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Identity, Arc<T>>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
