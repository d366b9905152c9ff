//! Looking through trees for all that they need, whoever keeps it.

use std::collections::HashSet;

use shoal_state::Digest;

use super::Here;
use crate::chunk::List;
use crate::manifest::{self, Part, reachable_despite};
use crate::store::{self, Store};

/// Shows each object of many trees once.
#[derive(Debug)]
pub struct Survey {
    store: Store,
    seen: HashSet<Digest>,
    walked: HashSet<Digest>,
    /// Objects that name others, and could not be read here: what they name was not seen.
    pub unread: Vec<Digest>,
}

impl Survey {
    /// Begins with nothing seen. What names others is read from `store` alone.
    pub fn new(store: Store) -> Self {
        Self { store, seen: HashSet::new(), walked: HashSet::new(), unread: Vec::new() }
    }

    /// Returns how many objects were seen.
    pub fn len(&self) -> usize {
        self.seen.len()
    }

    /// Says whether nothing was seen.
    pub fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }

    /// Says whether an object was seen.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.seen.contains(digest)
    }

    /// Shows one chunk, if it was not seen.
    pub fn chunk(&mut self, digest: Digest, see: &mut impl FnMut(Digest, Part)) {
        if self.seen.insert(digest) {
            see(digest, Part::Chunk);
        }
    }

    /// Shows what a tree needs and was not seen: its objects, lists and chunks of files.
    ///
    /// # Errors
    /// When the store cannot be read; what is not there is no error, see [`Self::unread`].
    pub fn tree(&mut self, root: Digest, see: &mut impl FnMut(Digest, Part)) -> manifest::Result<()> {
        let Self { store, seen, walked, unread } = self;
        let mut visit = |object: Digest, part: Part| {
            if seen.insert(object) {
                see(object, part);
            }
            part != Part::Chunk && walked.insert(object)
        };
        let mut lost = |object, error: manifest::Error| {
            unread.push(object);
            if error.is_absence() { Ok(()) } else { Err(error) }
        };
        reachable_despite(&Here(store), &root, &mut visit, &mut lost)
    }

    /// Shows what a list of chunks needs and was not seen: itself, and its chunks.
    ///
    /// # Errors
    /// When the store cannot be read; what is not there is no error, see [`Self::unread`].
    pub fn list(&mut self, digest: Digest, see: &mut impl FnMut(Digest, Part)) -> store::Result<()> {
        if self.seen.insert(digest) {
            see(digest, Part::List);
        }
        if !self.walked.insert(digest) {
            return Ok(());
        }
        match self.store.get(&digest) {
            Ok(bytes) => List::decode(&bytes).unwrap_or_default().chunks.into_iter().for_each(|chunk| self.chunk(chunk, see)),
            Err(store::Error::Missing { .. } | store::Error::Corrupt { .. }) => self.unread.push(digest),
            Err(error) => return Err(error),
        }
        Ok(())
    }
}
