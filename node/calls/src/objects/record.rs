//! What is written to a shard's log about dicts and queues.
//!
//! The body of a record is as that of a record of calls: the length of the head (4 bytes, little-endian), the head (postcard),
//! then the content, unless it is in a blob. New variants go to the end: older logs stay readable.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use shoal_state::{BlobId, DictId, ObjectId, QueueId};

use super::model::{EntryKey, NewEntry};
use crate::calls::record::{NotARecord, decode_head, encode_head};
use crate::calls::{Entry, Millis};

/// The head of a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ObjectRecord {
    /// An object exists.
    Opened {
        /// Which.
        object: ObjectId,
        /// When.
        at_ms: Millis,
    },
    /// An object exists no more, nor what it held.
    Closed {
        /// Which.
        object: ObjectId,
        /// When.
        at_ms: Millis,
    },
    /// Entries were set; their keys and values follow.
    Updated {
        /// Of this dict.
        dict: DictId,
        /// In the order of the content; each with whether it was set.
        entries: Vec<(NewEntry, bool)>,
        /// Where the content is, if not here.
        blob: Option<BlobId>,
        /// The request.
        key: u128,
        /// When.
        at_ms: Millis,
    },
    /// Entries were removed: one by a request, or unused ones by time (`key` = 0).
    Removed {
        /// Of this dict.
        dict: DictId,
        /// Which.
        entries: Vec<EntryKey>,
        /// The request.
        key: u128,
        /// When.
        at_ms: Millis,
    },
    /// Entries were used last at these times.
    Touched {
        /// Of this dict.
        dict: DictId,
        /// Which, and when.
        entries: Vec<(EntryKey, Millis)>,
    },
    /// Items were put; they follow.
    Put {
        /// Into this queue.
        queue: QueueId,
        /// Into this partition.
        partition: Bytes,
        /// When the partition ends.
        until_ms: Millis,
        /// How long each is.
        lengths: Vec<u32>,
        /// Where the content is, if not here.
        blob: Option<BlobId>,
        /// The request.
        key: u128,
        /// When.
        at_ms: Millis,
    },
    /// Items were taken: all of a partition up to one.
    Taken {
        /// From this queue.
        queue: QueueId,
        /// From this partition.
        partition: Bytes,
        /// The first that the request got: those before were taken earlier.
        first: Entry,
        /// The last of them.
        upto: Entry,
        /// The request.
        key: u128,
        /// When.
        at_ms: Millis,
    },
    /// All is gone: of a dict; of a queue's partition, or of all (none). By a request, or by time (`key` = 0).
    Cleared {
        /// Of this object.
        object: ObjectId,
        /// Of a queue: which.
        partition: Option<Bytes>,
        /// The request.
        key: u128,
        /// When.
        at_ms: Millis,
    },
}

impl ObjectRecord {
    /// Returns the object it belongs to.
    pub fn object(&self) -> ObjectId {
        match self {
            Self::Opened { object, .. } | Self::Closed { object, .. } | Self::Cleared { object, .. } => *object,
            Self::Updated { dict, .. } | Self::Removed { dict, .. } | Self::Touched { dict, .. } => (*dict).into(),
            Self::Put { queue, .. } | Self::Taken { queue, .. } => (*queue).into(),
        }
    }

    /// Returns what the record with this index is known by among the owners of records: no two have the same.
    pub fn owner(object: ObjectId, index: u64) -> u128 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(object.kind().as_bytes()).update(&object.bits().to_le_bytes()).update(&index.to_le_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        u128::from_le_bytes(bytes)
    }

    /// Returns what stands before the content.
    pub fn encode(&self) -> Bytes {
        encode_head(self)
    }

    /// Reads the head of a body, and returns where the content begins.
    pub fn decode(body: &[u8]) -> Result<(Self, usize), NotARecord> {
        decode_head(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_that_version_6_wrote_are_read() {
        shoal_state::written::hold::<ObjectRecord>("a record", include_str!("../../tests/written/6/objects-record.txt"), 0);
    }
}
