//! What names a stream, what is in it, and what can go wrong with it.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use shoal_state::{CallId, InputId};

use super::{CHUNK_BYTES_MAX, STREAM_BYTES_MAX};

/// Which way a stream runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Direction {
    /// To the container.
    In,
    /// From the container.
    Out,
}

/// Names a stream.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StreamKey {
    /// The call it belongs to.
    pub call: CallId,
    /// The input, where it belongs to one.
    pub input: Option<InputId>,
    /// The attempt: each begins anew. Empty where there is only one.
    pub attempt: String,
    /// Which way it runs.
    pub direction: Direction,
}

impl StreamKey {
    /// Names the data of a try.
    pub fn of_try(call: CallId, retry_count: u32, direction: Direction) -> Self {
        Self { call, input: None, attempt: retry_count.to_string(), direction }
    }
}

/// A chunk with its number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataChunk {
    /// From 1.
    pub index: u64,
    /// Its bytes.
    pub data: Bytes,
}

/// What went wrong with a stream.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The chunk does not follow the ones before.
    #[error("chunk {index} of a stream of call {call} was put where chunk {expected} belongs")]
    OutOfOrder {
        /// The call.
        call: CallId,
        /// The number it came with.
        index: u64,
        /// The number it should have.
        expected: u64,
    },
    /// A chunk is too long.
    #[error("a chunk of call {call} has {bytes} bytes: the limit is {CHUNK_BYTES_MAX}")]
    TooLong {
        /// The call.
        call: CallId,
        /// Its length.
        bytes: usize,
    },
    /// Readers did not catch up in time.
    #[error("waited {waited:?} for readers of a stream of call {call}, which are {STREAM_BYTES_MAX} bytes behind")]
    Full {
        /// The call.
        call: CallId,
        /// How long.
        waited: Duration,
    },
    /// The call was removed while someone waited.
    #[error("the streams of call {call} were removed")]
    Unknown {
        /// The call.
        call: CallId,
    },
    /// The file of a long stream failed.
    #[error("cannot {what} {}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}
