//! What callers of this crate are told when something fails.

use std::io;
use std::path::PathBuf;

/// Why a mount could not be made, or a tree not be bound.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each field is named in the sentence of its variant")]
pub enum Error {
    /// A system call about the mount failed.
    #[error("cannot {action} {}", path.display())]
    Mount {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },

    /// A thread could not be started.
    #[error("cannot start the thread {name}")]
    Thread {
        name: String,
        #[source]
        source: io::Error,
    },

    /// A name cannot be that of a directory.
    #[error("a tree cannot be bound as {name:?}: it is not the name of a directory")]
    BadName { name: String },

    /// There is a tree of this name.
    #[error("a tree is bound as {name:?} already")]
    NameTaken { name: String },

    /// A room cannot show a tree.
    #[error(
        "the room {room:?} cannot show the tree {tree:?}: one of them is gone, or the tree lacks something that the room has, or has a link there"
    )]
    Unfit { room: String, tree: String },

    /// A tree must be a directory.
    #[error("the tree to be bound as {name:?} is not a directory")]
    NotADirectory { name: String },
}

/// A result of this crate.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;
