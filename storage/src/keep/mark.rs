//! Marking what is named.

use std::collections::HashSet;

use shoal_state::Digest;

use super::Here;
use crate::chunk::List;
use crate::manifest::{self, Part, reachable_despite};
use crate::store::{self, Store};

/// What is needed by that which is named, with its size.
#[derive(Debug)]
pub struct Mark {
    store: Store,
    marked: HashSet<Digest>,
    /// Nodes of trees and lists whose names are marked too. The bytes of a file can be those of a node.
    walked: HashSet<Digest>,
    /// What counts as not here.
    lost: HashSet<Digest>,
    bytes: u64,
}

/// What marking one thing added.
#[derive(Debug, Default)]
pub struct Added {
    fresh: Vec<Digest>,
    walked: Vec<Digest>,
    /// The length on disk of what was not marked before, in bytes.
    pub bytes: u64,
    /// What the thing needs and is not here.
    pub missing: Vec<Digest>,
}

impl Mark {
    /// Begins with nothing marked.
    pub fn new(store: Store) -> Self {
        Self { store, marked: HashSet::new(), walked: HashSet::new(), lost: HashSet::new(), bytes: 0 }
    }

    /// Takes these chunks for missing: the store has them, and their bytes are damaged.
    pub fn without(self, lost: impl IntoIterator<Item = Digest>) -> Self {
        Self { lost: lost.into_iter().collect(), ..self }
    }

    /// Returns the length on disk of all that is marked, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns how many chunks are marked.
    pub fn len(&self) -> usize {
        self.marked.len()
    }

    /// Says whether nothing is marked.
    pub fn is_empty(&self) -> bool {
        self.marked.is_empty()
    }

    /// Says whether a chunk is marked.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.marked.contains(digest)
    }

    /// Returns a mark that goes on from this one, and walks again what this one walked: of that only some was marked.
    pub fn again(self) -> Self {
        Self { walked: HashSet::new(), ..self }
    }

    /// Marks one chunk.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn chunk(&mut self, digest: Digest, added: &mut Added) -> store::Result<()> {
        if !self.marked.insert(digest) {
            return Ok(());
        }
        added.fresh.push(digest);
        match self.store.stored_bytes(&digest)? {
            Some(bytes) if !self.lost.contains(&digest) => added.bytes += bytes,
            _ => added.missing.push(digest),
        }
        Ok(())
    }

    /// Marks a list of chunks with the chunks it names.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn list(&mut self, digest: Digest, added: &mut Added) -> store::Result<()> {
        self.chunk(digest, added)?;
        if !self.walk(digest, added) {
            return Ok(());
        }
        let list = match self.store.get(&digest) {
            Ok(bytes) => List::decode(&bytes).ok(),
            Err(store::Error::Missing { .. } | store::Error::Corrupt { .. }) => None,
            Err(error) => return Err(error),
        };
        list.unwrap_or_default().chunks.into_iter().try_for_each(|chunk| self.chunk(chunk, added))
    }

    /// Marks a tree with all that it needs.
    ///
    /// # Errors
    /// When the store cannot be read. That something is not here is no error: see [`Added::missing`].
    pub fn tree(&mut self, root: Digest, added: &mut Added) -> manifest::Result<()> {
        self.tree_of(root, |_| true, added)
    }

    /// Marks a tree with its objects, and of the chunks of its files those that are wanted.
    ///
    /// # Errors
    /// As [`Self::tree`].
    pub fn tree_of(&mut self, root: Digest, wanted: impl Fn(&Digest) -> bool, added: &mut Added) -> manifest::Result<()> {
        let store = self.store.clone();
        let mut failed = None;
        let mut visit = |object: Digest, part: Part| {
            if failed.is_none()
                && (part != Part::Chunk || wanted(&object))
                && let Err(error) = self.chunk(object, added)
            {
                failed = Some(error);
            }
            failed.is_none() && part != Part::Chunk && self.walk(object, added)
        };
        let mut lost = |_, error: manifest::Error| if error.is_absence() { Ok(()) } else { Err(error) };
        reachable_despite(&Here(&store), &root, &mut visit, &mut lost)?;
        failed.map_or(Ok(()), |error| Err(manifest::Error::Get { digest: root, source: error.into() }))
    }

    /// Notes that what an object names is marked; false when it was.
    fn walk(&mut self, object: Digest, added: &mut Added) -> bool {
        let fresh = self.walked.insert(object);
        if fresh {
            added.walked.push(object);
        }
        fresh
    }

    /// Counts what was added. What lacks something is walked again for the next thing that needs it, so that this is told of
    /// each.
    pub fn take(&mut self, added: &Added) {
        self.bytes += added.bytes;
        if added.missing.is_empty() {
            return;
        }
        for object in &added.walked {
            self.walked.remove(object);
        }
        for digest in &added.missing {
            self.marked.remove(digest);
        }
    }

    /// Takes marks back.
    pub fn undo(&mut self, added: &Added) {
        for digest in &added.fresh {
            self.marked.remove(digest);
        }
        for object in &added.walked {
            self.walked.remove(object);
        }
    }
}
