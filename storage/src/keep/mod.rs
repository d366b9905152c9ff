//! What is named is kept: promises before something is named, marks before anything is deleted.
//!
//! Chunks are named by other things: by a tree that a log's entry names, by the list of a blob. Two rules keep what is
//! named, with no lock between those who name and the one who deletes:
//!
//! 1. Whoever is about to name a tree asks [`Promises::tree`] first. It says what is missing, and promises to keep the rest
//!    for the store's [`keep`](crate::store::Options::keep). The name must be in the log before that time is over.
//! 2. Whoever deletes reads the names *after* that, [marks](Mark) all that they need, and lets the store
//!    [condemn](crate::store::Store::condemn) what is neither marked nor promised and then
//!    [sweep](crate::store::Store::sweep) what has not been promised since.
//!
//! So a chunk that somebody is about to name is promised before the sweep and stays, or is gone before the promise, and
//! then the promise says so.

/// What is on this node, and nothing from elsewhere: what is not here is not kept here.
struct Here<'a>(&'a Store);

impl Objects for Here<'_> {
    type Error = store::Error;

    fn get(&self, digest: &Digest) -> store::Result<Bytes> {
        self.0.get(digest)
    }

    fn put(&self, bytes: &[u8]) -> store::Result<Digest> {
        self.0.put(bytes)
    }
}

mod mark;
mod promise;
mod survey;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use shoal_state::Digest;

use crate::manifest::Objects;
use crate::store::{self, Store};

pub use mark::{Added, Mark};
pub use promise::{Looked, Promises};
pub use survey::Survey;
