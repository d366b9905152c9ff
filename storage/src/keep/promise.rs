//! Promising to keep a tree.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;
use shoal_state::Digest;

use super::Here;
use crate::manifest::{self, Part, reachable_despite};
use crate::store::Store;

/// How many objects are remembered as promised. Beyond it all are forgotten, and looked at again when they are named.
const KNOWN_MAX: usize = 1 << 18;

/// Promises to keep whole trees; remembers what it promised lately, so that the next step of a build looks only at what
/// that step changed. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Promises {
    store: Store,
    /// Nodes of trees and lists: until when (seconds of the store's clock) what was promised of them, and of all that they
    /// name, is good for a new name.
    known: Arc<Mutex<HashMap<Digest, u64>>>,
}

/// What was found of a tree.
#[derive(Debug, Default)]
pub struct Looked {
    /// Its objects and all chunks of its files, but for what was promised lately.
    pub found: Vec<Digest>,
    /// Those of them that are not here.
    pub missing: Vec<Digest>,
    /// Those of the missing ones that name others: what they name was not looked at.
    pub structure: Vec<Digest>,
    walked: HashSet<Digest>,
    since: u64,
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
        let looked = self.look(root)?;
        if looked.missing.is_empty() {
            self.remember(&looked);
        }
        Ok(looked.missing)
    }

    /// Promises what is here of a tree, durably, and tells what was found of it. Parts that were [remembered](Self::remember)
    /// lately are left out. Blocks on the disk.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub fn look(&self, root: &Digest) -> manifest::Result<Looked> {
        let since = self.store.now();
        let (mut found, mut walked) = (HashSet::new(), HashSet::new());
        let mut visit = |object: Digest, part: Part| {
            let names_more = part != Part::Chunk;
            if names_more && self.known.lock().get(&object).is_some_and(|until| *until > since) {
                return false;
            }
            found.insert(object);
            names_more && walked.insert(object)
        };
        let mut structure = Vec::new();
        // What cannot be read is missing: asking the store says so.
        let mut lost = |object, error: manifest::Error| {
            structure.push(object);
            if error.is_absence() { Ok(()) } else { Err(error) }
        };
        reachable_despite(&Here(&self.store), root, &mut visit, &mut lost)?;
        let found: Vec<Digest> = found.into_iter().collect();
        let promised = self.store.missing(&found);
        let missing = promised.map_err(|source| manifest::Error::Get { digest: *root, source: source.into() })?;
        Ok(Looked { found, missing, structure, walked, since })
    }

    /// Remembers that all that was found of a tree is kept, here or elsewhere, for as long as it would be here.
    pub fn remember(&self, looked: &Looked) {
        let until = looked.since + self.store.keep().as_secs() / 2;
        let mut known = self.known.lock();
        if known.len() + looked.walked.len() > KNOWN_MAX {
            known.clear();
        }
        known.extend(looked.walked.iter().map(|object| (*object, until)));
    }

    /// Forgets what was promised lately: all is looked at again.
    pub fn forget(&self) {
        self.known.lock().clear();
    }
}
