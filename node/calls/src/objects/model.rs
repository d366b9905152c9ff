//! The words of dicts and queues: what can be asked of them, and what they answer.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use shoal_state::{BlobId, DictId, ObjectId, QueueId};

use crate::calls::{Entry, Millis};

/// What can be asked of a dict or a queue. A `key` names a request: asked again with it, nothing is done twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ObjectRequest {
    /// It exists from now on; nothing happens when it does.
    Open {
        /// Which.
        object: ObjectId,
    },
    /// It exists no more, with all it holds.
    Close {
        /// Which.
        object: ObjectId,
    },
    /// Somebody uses an ephemeral one.
    Beat {
        /// Which.
        object: ObjectId,
    },
    /// Which of these, at home at the node that is asked, nobody has said for [`super::SILENCE_MAX_MS`] that they are used.
    Silent {
        /// Them.
        objects: Vec<ObjectId>,
    },
    /// Which objects there are at home at the node that is asked.
    All,
    /// Which of these blobs hold something that is kept. All are of one shard.
    Named {
        /// Them.
        blobs: Vec<BlobId>,
    },
    /// Sets entries. Answered with [`ObjectAnswer::Bool`]: whether any was set.
    Update {
        /// Of this dict.
        dict: DictId,
        /// Which, in the order of `content`.
        entries: Vec<NewEntry>,
        /// Key and value of each, one behind the other.
        content: Content,
        /// Entries that exist stay as they are.
        if_not_exists: bool,
        /// Names the request.
        key: u128,
    },
    /// Removes an entry. Answered with [`ObjectAnswer::Found`]: what it was, if it existed.
    Pop {
        /// Of this dict.
        dict: DictId,
        /// Which.
        entry: EntryKey,
        /// Names the request.
        key: u128,
    },
    /// Removes all entries of a dict, or all items of a queue's partition, or of all partitions (`partition` = none).
    Clear {
        /// Of this object.
        object: ObjectId,
        /// Of a queue: which.
        partition: Option<Bytes>,
        /// Names the request.
        key: u128,
    },
    /// Looks an entry up. Answered with [`ObjectAnswer::Found`].
    Get {
        /// Of this dict.
        dict: DictId,
        /// Which.
        entry: EntryKey,
    },
    /// Asks whether an entry exists. Answered with [`ObjectAnswer::Bool`].
    Has {
        /// Of this dict.
        dict: DictId,
        /// Which.
        entry: EntryKey,
    },
    /// Returns entries in the order of their keys' hashes. Answered with [`ObjectAnswer::Found`]; empty at the end.
    Page {
        /// Of this dict.
        dict: DictId,
        /// After this one.
        after: Option<EntryKey>,
        /// With their values, or their keys alone.
        values: bool,
    },
    /// Puts items at the end of a partition.
    Put {
        /// Of this queue.
        queue: QueueId,
        /// Which; empty = the default one.
        partition: Bytes,
        /// How long the partition stays after this.
        kept_ms: Millis,
        /// The length of each item.
        lengths: Vec<u32>,
        /// The items, one behind the other.
        content: Content,
        /// Names the request.
        key: u128,
    },
    /// Takes the first items of a partition, at least one; waits for it. Answered with [`ObjectAnswer::Found`]; empty when
    /// none came in time.
    Take {
        /// Of this queue.
        queue: QueueId,
        /// Which.
        partition: Bytes,
        /// How many at most.
        max: u32,
        /// How long to wait for the first.
        wait_ms: u64,
        /// Names the request.
        key: u128,
    },
    /// Returns items of a partition and leaves them there; waits for one. Answered with [`ObjectAnswer::Found`].
    Peek {
        /// Of this queue.
        queue: QueueId,
        /// Which.
        partition: Bytes,
        /// After this one.
        after: Entry,
        /// How long to wait.
        wait_ms: u64,
    },
    /// Counts entries, or items of a partition, or of all partitions (`partition` = none). Answered with
    /// [`ObjectAnswer::Count`].
    Count {
        /// Of this object.
        object: ObjectId,
        /// Of a queue: which.
        partition: Option<Bytes>,
    },
}

impl ObjectRequest {
    /// Returns the object that it is about, if it is about one.
    pub fn object(&self) -> Option<ObjectId> {
        Some(match self {
            Self::Open { object } | Self::Close { object } | Self::Beat { object } => *object,
            Self::Clear { object, .. } | Self::Count { object, .. } => *object,
            Self::Update { dict, .. } | Self::Pop { dict, .. } | Self::Get { dict, .. } => (*dict).into(),
            Self::Has { dict, .. } | Self::Page { dict, .. } => (*dict).into(),
            Self::Put { queue, .. } | Self::Take { queue, .. } | Self::Peek { queue, .. } => (*queue).into(),
            Self::Silent { .. } | Self::All | Self::Named { .. } => return None,
        })
    }

    /// Returns how long it may wait, in milliseconds.
    pub fn wait_ms(&self) -> u64 {
        match self {
            Self::Take { wait_ms, .. } | Self::Peek { wait_ms, .. } => *wait_ms,
            _ => 0,
        }
    }
}

/// A key of a dict: a hash of the bytes that the client made of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EntryKey(pub u128);

impl EntryKey {
    /// Hashes the bytes of a key.
    pub fn of(key: &[u8]) -> Self {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&blake3::hash(key).as_bytes()[..16]);
        Self(u128::from_le_bytes(bytes))
    }
}

/// An entry that is to be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewEntry {
    /// Which.
    pub entry: EntryKey,
    /// The length of its key.
    pub key_bytes: u32,
    /// The length of its value.
    pub value_bytes: u32,
}

/// Bytes of several things, one behind the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// Here: at most [`crate::calls::PAYLOAD_BYTES_MAX`].
    Inline(Bytes),
    /// In a blob, which is on the disks of its homes. Its id names the object's shard.
    Blob(BlobId),
}

/// The answer to an [`ObjectRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ObjectAnswer<P = Piece> {
    /// It is done.
    Done,
    /// Yes or no.
    Bool(bool),
    /// Entries or items.
    Found(Vec<Found<P>>),
    /// How many there are.
    Count {
        /// Entries, or items of what was asked about.
        items: u64,
        /// Partitions with items.
        partitions: u64,
    },
    /// Objects.
    Objects(Vec<ObjectId>),
    /// Blobs.
    Blobs(Vec<BlobId>),
}

/// An entry or an item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found<P = Piece> {
    /// Where to go on in a partition, for items.
    pub at: Entry,
    /// Where to go on in a dict, for entries.
    pub entry: EntryKey,
    /// How many bytes at the front are the entry's key; the rest is its value.
    pub key_bytes: u32,
    /// Its bytes.
    pub piece: P,
}

/// Bytes, or where to find them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Piece {
    /// Here.
    Inline(Bytes),
    /// A part of a blob.
    Blob {
        /// Which.
        blob: BlobId,
        /// From this byte on.
        offset: u64,
        /// How many bytes.
        bytes: u64,
    },
}

/// Where bytes stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Index of the record.
    pub record: u64,
    /// From this byte of its content on.
    pub offset: u64,
    /// How many bytes.
    pub bytes: u64,
    /// The blob that has the content, where the record has not.
    pub blob: Option<BlobId>,
}
