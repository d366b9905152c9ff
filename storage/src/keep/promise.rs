//! Promising to keep a tree.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use shoal_state::Digest;

use super::Here;
use crate::manifest::{self, Part, reachable_despite};
use crate::store::Store;

/// How many objects are remembered as promised. Beyond it all are forgotten, and looked at again when they are named.
const KNOWN_MAX: usize = 1 << 18;

/// How long the parts of a tree that are on other nodes are waited for.
const BRING_WAIT: Duration = Duration::from_secs(300);

/// Promises to keep whole trees; remembers what it promised lately, so that the next step of a build looks only at what
/// that step changed. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Promises {
    store: Store,
    /// Nodes of trees and lists: until when (seconds of the store's clock) what was promised of them, and of all that they
    /// name, is good for a new name.
    known: Arc<Mutex<HashMap<Digest, u64>>>,
}

impl Promises {
    /// Promises what is in `store`.
    pub fn new(store: Store) -> Self {
        Self { store, known: Arc::default() }
    }

    /// Returns what is missing of a tree, and promises to keep the rest: its objects and all chunks of its files.
    ///
    /// The promise is on disk when this returns. Nothing missing: the tree may be named for half of the time that the store
    /// keeps what it promised. Blocks on the disk.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub fn tree(&self, root: &Digest) -> manifest::Result<Vec<Digest>> {
        let deadline = Instant::now() + BRING_WAIT;
        let mut missing = self.promised(root)?;
        // What this node names it has: what another node has of it is brought here first, as deep as it goes.
        while !missing.is_empty() && Instant::now() < deadline && self.store.bring(missing.clone(), deadline) {
            let left = self.promised(root)?;
            if left == missing {
                break;
            }
            missing = left;
        }
        Ok(missing)
    }

    /// Promises what is here of a tree, and returns what is not.
    fn promised(&self, root: &Digest) -> manifest::Result<Vec<Digest>> {
        let now = self.store.now();
        let (mut found, mut walked) = (HashSet::new(), HashSet::new());
        let mut visit = |object: Digest, part: Part| {
            let names_more = part != Part::Chunk;
            if names_more && self.known.lock().get(&object).is_some_and(|until| *until > now) {
                return false;
            }
            found.insert(object);
            names_more && walked.insert(object)
        };
        // What cannot be read is missing: asking the store says so.
        let mut lost = |_, error: manifest::Error| if error.is_absence() { Ok(()) } else { Err(error) };
        reachable_despite(&Here(&self.store), root, &mut visit, &mut lost)?;
        let promised = self.store.missing(&found.into_iter().collect::<Vec<_>>());
        let missing = promised.map_err(|source| manifest::Error::Get { digest: *root, source: source.into() })?;
        if missing.is_empty() {
            self.remember(walked, now + self.store.keep().as_secs() / 2);
        }
        Ok(missing)
    }

    fn remember(&self, objects: HashSet<Digest>, until: u64) {
        let mut known = self.known.lock();
        if known.len() + objects.len() > KNOWN_MAX {
            known.clear();
        }
        known.extend(objects.into_iter().map(|object| (object, until)));
    }
}
