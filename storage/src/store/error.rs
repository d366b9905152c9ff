//! What can go wrong in a store.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use shoal_state::Digest;

use super::OBJECT_BYTES_MAX;
use crate::file::Failed;
use crate::group::Unserved;
use crate::kv;

/// What went wrong in a [`Store`](super::Store).
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The chunk is not here. A peer may have it.
    #[error("chunk {digest} is not in this node's store")]
    Missing {
        /// The chunk.
        digest: Digest,
    },
    /// The chunk is not here, and whether another node has it could not be found out. Trying again may help.
    #[error("chunk {digest} is not on this node, and cannot be had from another: {why}")]
    Unreached {
        /// The chunk.
        digest: Digest,
        /// Who was asked, and what stood in the way.
        why: String,
    },
    /// The bytes on disk were not those of the chunk. It was dropped, unless the store is only looked at; a peer may have it.
    #[error("chunk {digest} was damaged at offset {offset} of {} and is dropped: {what}", pack.display())]
    Corrupt {
        /// The chunk.
        digest: Digest,
        /// The pack file.
        pack: PathBuf,
        /// Where in the pack the chunk's record begins.
        offset: u64,
        /// How the damage shows.
        what: &'static str,
    },
    /// The disk is too full for new chunks. Deleting something helps.
    #[error("the disk under {} is {used_percent} % full, and new chunks are refused from {limit_percent} % on (disk.full_percent): free some space", dir.display())]
    Full {
        /// The folder of the store.
        dir: PathBuf,
        /// How full the disk is.
        used_percent: u8,
        /// From where on chunks are refused.
        limit_percent: u8,
    },
    /// The store was opened to be looked at.
    #[error("the chunk store in {} was opened to be looked at, and takes nothing", dir.display())]
    LookOnly {
        /// The folder of the store.
        dir: PathBuf,
    },
    /// Too many bytes for one chunk.
    #[error("{bytes} bytes are too many for one chunk: the limit is {OBJECT_BYTES_MAX}")]
    TooLong {
        /// How many there were.
        bytes: usize,
    },
    /// An object that should be a list of chunks is something else.
    #[error("blob {digest} is not a list of chunks")]
    NotABlob {
        /// The object.
        digest: Digest,
        /// What is wrong with it.
        #[source]
        source: crate::chunk::NotAList,
    },
    /// A system call failed.
    #[error(transparent)]
    File(#[from] Failed),
    /// The index failed.
    #[error("the index of the chunk store failed")]
    Index(#[from] kv::Error),
    /// What was to be stored could not be read.
    #[error("cannot read what was to be stored, after {read_bytes} bytes")]
    Source {
        /// How much was read and stored before.
        read_bytes: u64,
        /// Why reading failed.
        #[source]
        source: Arc<io::Error>,
    },
    /// The disk did not answer in time. Trying again may help.
    #[error("waited {waited:?} for the chunk store in {} to reach the disk", dir.display())]
    Late {
        /// The folder of the store.
        dir: PathBuf,
        /// How long the caller waited.
        waited: Duration,
    },
    /// The thread that syncs is gone.
    #[error("the thread that syncs the chunk store in {} has ended", dir.display())]
    Ended {
        /// The folder of the store.
        dir: PathBuf,
    },
}

/// A result of a [`Store`](super::Store).
pub type Result<T> = std::result::Result<T, Error>;

pub(super) fn explain(why: Unserved<Error>, dir: &Path) -> Error {
    match why {
        Unserved::Failed(error) => error,
        Unserved::Late(waited) => Error::Late { dir: dir.to_owned(), waited },
        Unserved::Ended => Error::Ended { dir: dir.to_owned() },
    }
}
