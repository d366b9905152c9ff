//! One entry of a tree.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shoal_state::Digest;

use super::Path;

/// Extended attributes by name, both any bytes.
pub type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// Whatever a name in a tree stands for, with everything `lstat` and `listxattr` say about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky: at most `0o7777`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of the contents, in nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Extended attributes.
    pub xattrs: Xattrs,
}

/// What an entry is. The order of the variants is part of the encoding: new ones go to the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A directory.
    Dir,
    /// A regular file.
    File {
        /// Length in bytes.
        size: u64,
        /// Where the bytes are.
        content: Content,
    },
    /// A symbolic link.
    Symlink {
        /// The text of the link.
        #[serde(with = "serde_bytes")]
        target: Vec<u8>,
    },
    /// One more name of another entry, which is no directory and no such link itself.
    Hardlink {
        /// The entry this is a name of: the first of all its names in the order of paths.
        to: Path,
    },
    /// A character device; `rdev` is what `makedev` returns.
    Char {
        /// Major and minor number.
        rdev: u64,
    },
    /// A block device; `rdev` is what `makedev` returns.
    Block {
        /// Major and minor number.
        rdev: u64,
    },
    /// A named pipe.
    Fifo,
    /// A socket's name.
    Socket,
}

/// Where the bytes of a file are, in chunks of [`CHUNK_BYTES`](crate::chunk::CHUNK_BYTES).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Content {
    /// The chunks themselves, at most [`INLINE_CHUNKS_MAX`] of them.
    Chunks(Vec<Digest>),
    /// Objects that each list the next [`LIST_CHUNKS`] chunks (as [`chunk::List`](crate::chunk::List) encodes them).
    Lists(Vec<Digest>),
}

/// The time of files that come without one: 2000-01-01, in nanoseconds since 1970. It is constant, so that equal files give
/// equal trees, and not 1970, because archives in ZIP form begin in 1980.
pub const UNDATED_NS: i64 = 946_684_800_000_000_000;

/// How many chunks of a file its entry names itself. A file with more has list objects, so that leaves stay small.
pub const INLINE_CHUNKS_MAX: usize = 64;

/// How many chunks one list object of a long file names: 8 GiB of file in 256 KiB of list.
pub const LIST_CHUNKS: usize = 8192;

impl Entry {
    /// Returns an entry of this kind that root owns, without extended attributes, changed in 1970.
    pub fn new(kind: Kind, mode: u32) -> Self {
        Self { kind, mode, uid: 0, gid: 0, mtime_ns: 0, xattrs: Xattrs::new() }
    }

    /// Returns a directory as one is made for a path that needs it: root's, mode `0o755`.
    pub fn dir() -> Self {
        Self::new(Kind::Dir, 0o755)
    }

    /// Returns a symbolic link.
    pub fn symlink(target: impl Into<Vec<u8>>) -> Self {
        Self::new(Kind::Symlink { target: target.into() }, 0o777)
    }

    /// Says if this is a directory.
    pub fn is_dir(&self) -> bool {
        matches!(self.kind, Kind::Dir)
    }

    /// Returns how many bytes of content the entry itself has; other names of it have none.
    pub fn content_bytes(&self) -> u64 {
        match self.kind {
            Kind::File { size, .. } => size,
            _ => 0,
        }
    }

    /// Returns a digest of everything the entry says: equal entries have equal digests.
    pub fn digest(&self) -> Digest {
        Digest::of(&postcard::to_stdvec(self).expect("an entry can be encoded"))
    }

    /// Takes over everything but the kind.
    pub(super) fn set_attributes(&mut self, from: &Entry) {
        let Entry { kind: _, mode, uid, gid, mtime_ns, xattrs } = from;
        (self.mode, self.uid, self.gid, self.mtime_ns) = (*mode, *uid, *gid, *mtime_ns);
        self.xattrs.clone_from(xattrs);
    }
}

impl Content {
    /// The content of an empty file.
    pub const EMPTY: Self = Self::Chunks(Vec::new());

    /// Returns where the digest of chunk `number` is written, or None beyond the end.
    pub fn find(&self, number: u64) -> Option<Place> {
        let number = usize::try_from(number).ok()?;
        match self {
            Self::Chunks(chunks) => chunks.get(number).copied().map(Place::Chunk),
            Self::Lists(lists) => lists.get(number / LIST_CHUNKS).map(|list| Place::InList { list: *list, index: number % LIST_CHUNKS }),
        }
    }
}

/// Where the digest of a chunk is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Here: this is the chunk.
    Chunk(Digest),
    /// In a list object, at this index.
    InList {
        /// The list object.
        list: Digest,
        /// Which of its chunks.
        index: usize,
    },
}
