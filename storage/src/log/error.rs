//! What can go wrong with a log.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Position, RECORD_BYTES_MAX};
use crate::file::Failed;
use crate::group::Unserved;

/// What went wrong in a [`Log`](super::Log).
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error(transparent)]
    File(#[from] Failed),
    /// Bytes of a record are not what was written. No retry helps; the records from here on are lost on this disk.
    #[error("the record at offset {offset} of {} (position {position}) is damaged: {what}", segment.display())]
    Damaged {
        /// The segment file.
        segment: PathBuf,
        /// Where in the file the record begins.
        offset: u64,
        /// The position of the record.
        position: Position,
        /// How the damage shows.
        what: &'static str,
    },
    /// No record begins there: it was truncated, or never written.
    #[error("no record stands at position {position}: the log ends at {end}")]
    NoRecord {
        /// The position that was asked for.
        position: Position,
        /// Where the next record would stand.
        end: Position,
    },
    /// The record was released.
    #[error("the record at position {position} was released: the log begins at {front}")]
    Released {
        /// The position that was asked for.
        position: Position,
        /// Where the log begins now.
        front: Position,
    },
    /// A record is too long.
    #[error("a record of {bytes} bytes is too long: the limit is {RECORD_BYTES_MAX}")]
    TooLong {
        /// Length of the record.
        bytes: usize,
    },
    /// The disk did not answer in time. Trying again may help.
    #[error("waited {waited:?} for the log in {} to reach the disk", dir.display())]
    Late {
        /// The folder of the log.
        dir: PathBuf,
        /// How long the caller waited.
        waited: Duration,
    },
    /// The thread that syncs is gone.
    #[error("the thread that syncs the log in {} has ended", dir.display())]
    Ended {
        /// The folder of the log.
        dir: PathBuf,
    },
}

impl Error {
    /// Says whether the disk is full. Releasing records, or deleting something else, then helps.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::File(failed) if failed.is_full())
    }
}

/// A result of a [`Log`](super::Log).
pub type Result<T> = std::result::Result<T, Error>;

/// Says why a sync did not come about.
pub(super) fn explain(why: Unserved<Error>, dir: &Path) -> Error {
    match why {
        Unserved::Failed(error) => error,
        Unserved::Late(waited) => Error::Late { dir: dir.to_owned(), waited },
        Unserved::Ended => Error::Ended { dir: dir.to_owned() },
    }
}
