//! A tree of files as digests: images, mounts and versions of volumes.
//!
//! A [`Tree`] is a whole file system's worth of names: a sorted map of [`Path`] to [`Entry`], where an entry holds
//! everything but the bytes of files, which it names by their digests. It is a value: build it with
//! [`from_dir`](Tree::from_dir) or from layers ([`from_tar`] and [`Tree::apply_layer`]), put trees over each other
//! ([`Tree::overlay`], [`Tree::graft`]), write it with [`Tree::write`], and from then on its digest is its name.
//!
//! Written, a tree is a sorted list of entries cut into *leaves* under *index* objects. Where a leaf begins depends
//! on the hash of the path alone, so equal trees have equal digests however they came about, a change of one file
//! writes one leaf and the index objects above it, and [`diff()`] reads only the leaves in which two trees differ.
//!
//! Two names of one file (hard links) are one entry with the content, under the first of the names, and
//! [`Kind::Hardlink`] at the others. The tree keeps that true when names come and go.
//!
//! Everything here is pure but [`walk`](Tree::from_dir) and [`export`](Tree::to_dir), which read and write a
//! directory of the host. Objects are kept by whoever implements [`Objects`].
//!
//! Caveats: holes of sparse files are stored as zeros (one chunk for all of them); access and change times are not
//! kept; a time outside the years 1677 to 2262 is cut to them.

mod archive;
mod content;
mod diff;
mod encode;
mod entry;
mod export;
mod layer;
mod merge;
mod path;
mod reach;
mod tar;
mod tree;
mod walk;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::PathBuf;
use std::{error, io};

use bytes::Bytes;
use parking_lot::Mutex;
use shoal_state::Digest;

use crate::store::{self, Store};

pub use content::{put_content, read_content};
pub use diff::{Difference, diff};
pub use encode::{Summary, summary};
pub use entry::{Content, Entry, INLINE_CHUNKS_MAX, Kind, LIST_CHUNKS, Place, UNDATED_NS, Xattrs};
pub use layer::Change;
pub use path::{BadPath, Path, is_name};
pub use reach::{Part, reachable, reachable_despite};
pub use tar::from_tar;
pub use tree::{AttributesMut, Tree};

/// Where the objects of trees are kept: bytes by their digest.
pub trait Objects {
    /// Why an object could not be had or kept.
    type Error: error::Error + Send + Sync + 'static;

    /// Returns the bytes of an object, which hash to `digest`.
    fn get(&self, digest: &Digest) -> std::result::Result<Bytes, Self::Error>;

    /// Keeps bytes and returns their digest. They can be read at once; when they are durable is the keeper's rule.
    fn put(&self, bytes: &[u8]) -> std::result::Result<Digest, Self::Error>;
}

/// Objects in memory: for trees that live no longer than the process, and for tests.
#[derive(Debug, Default)]
pub struct Memory {
    objects: Mutex<HashMap<Digest, Bytes>>,
}

/// An object that is not here.
#[derive(Debug, thiserror::Error)]
#[error("object {digest} is not in memory")]
pub struct NotInMemory {
    digest: Digest,
}

impl Memory {
    /// Returns how many objects there are.
    pub fn len(&self) -> usize {
        self.objects.lock().len()
    }

    /// Says if there is none.
    pub fn is_empty(&self) -> bool {
        self.objects.lock().is_empty()
    }

    /// Forgets an object and says if it was there.
    pub fn remove(&self, digest: &Digest) -> bool {
        self.objects.lock().remove(digest).is_some()
    }
}

impl Objects for Memory {
    type Error = NotInMemory;

    fn get(&self, digest: &Digest) -> std::result::Result<Bytes, NotInMemory> {
        self.objects.lock().get(digest).cloned().ok_or(NotInMemory { digest: *digest })
    }

    fn put(&self, bytes: &[u8]) -> std::result::Result<Digest, NotInMemory> {
        let digest = Digest::of(bytes);
        self.objects.lock().entry(digest).or_insert_with(|| Bytes::copy_from_slice(bytes));
        Ok(digest)
    }
}

/// Why a tree could not be read, written or put together.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each field is named in the sentence of its variant")]
pub enum Error {
    /// An object could not be had. Another attempt, or another node, may have it.
    #[error("object {digest} cannot be read")]
    Get {
        digest: Digest,
        #[source]
        source: Box<dyn error::Error + Send + Sync>,
    },

    /// An object could not be kept.
    #[error("an object of {bytes} bytes cannot be stored")]
    Put {
        bytes: usize,
        #[source]
        source: Box<dyn error::Error + Send + Sync>,
    },

    /// An object is not what a tree says it is: it was written by a newer version, or is not part of a tree.
    #[error("object {digest} is not {expected} of a tree: {why}")]
    Malformed { digest: Digest, expected: &'static str, why: String },

    /// A path is not one.
    #[error(transparent)]
    BadPath(#[from] BadPath),

    /// A hard link names an entry that is not in the tree, or that no hard link may name.
    #[error("{path} is a hard link to {to}, which {why}")]
    BadLink { path: Path, to: Path, why: &'static str },

    /// Symbolic links lead in circles.
    #[error("{path} leads through more than {} symbolic links", tree::SYMLINKS_MAX)]
    TooManySymlinks { path: Path },

    /// There is nothing at a path.
    #[error("{path} is not in the tree")]
    NotFound { path: Path },

    /// A file of the host could not be read.
    #[error("cannot {action} {}", path.display())]
    Host {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },

    /// A file of the host became shorter or longer while it was read. Reading again may help.
    #[error("{} has {found} bytes, but had {expected} when it was opened", path.display())]
    HostChanged { path: PathBuf, expected: u64, found: u64 },

    /// An archive cannot be read on.
    #[error("the archive cannot be read after entry {after:?}")]
    Tar {
        after: String,
        #[source]
        source: io::Error,
    },

    /// An entry of an archive has a form that is not supported.
    #[error("entry {entry:?} of the archive {why}")]
    TarEntry { entry: String, why: String },

    /// The content of a file could not be read.
    #[error("cannot read the content of {what}")]
    Content {
        what: String,
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Says whether an object is not there or is not what it should be, so that reading it again would not help.
    pub fn is_absence(&self) -> bool {
        match self {
            Self::Malformed { .. } => true,
            Self::Get { source, .. } => {
                source.is::<NotInMemory>()
                    || matches!(source.downcast_ref(), Some(store::Error::Missing { .. } | store::Error::Corrupt { .. }))
            }
            _ => false,
        }
    }
}

/// A result of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

fn get(objects: &impl Objects, digest: &Digest) -> Result<Bytes> {
    objects.get(digest).map_err(|source| Error::Get { digest: *digest, source: source.into() })
}

fn put(objects: &impl Objects, bytes: &[u8]) -> Result<Digest> {
    objects.put(bytes).map_err(|source| Error::Put { bytes: bytes.len(), source: source.into() })
}

impl Objects for Store {
    type Error = store::Error;

    fn get(&self, digest: &Digest) -> std::result::Result<Bytes, store::Error> {
        self.get_anywhere(digest, None)
    }

    fn put(&self, bytes: &[u8]) -> std::result::Result<Digest, store::Error> {
        Store::put(self, bytes)
    }
}
