//! Dicts and queues: what they hold, as records of shards.
//!
//! *That* an object exists is in Raft's state; its contents are in the shard that its id names. Everything here is pure: the
//! home of the shard decides in `calls/rules/objects.rs` what is written, and applies it as any replica would.
//!
//! | file | subject |
//! |---|---|
//! | [`model`] | the words: what can be asked, what is answered |
//! | [`record`] | what is written to the shard's log |
//! | [`state`] | what follows from the records |
//! | `dict`, `queue` | the two kinds of contents |
//! | `life` | which records are still needed |
//! | `value` | the ids of blobs with values that are too long for a record |
//!
//! **What counts.** An operation is answered once its record is synced by all members of the shard. A read is answered once all
//! that it saw is, and once the members have confirmed that this node is still their home: dicts and queues are linearizable.
//!
//! **Once.** Each request that changes something has a key, and its record has it too: asked again, it is answered from what
//! the first one did. What an answer needs is kept for [`ANSWERS_KEPT_MS`], or until [`ANSWERS_MAX`] others are newer.
//!
//! **Which records live.** Memory holds where a value stands and not the value, about 200 bytes an entry. A record lives as long
//! as something in it is current, an answer needs it, or an older record that it overrides is still in the log: without it the
//! older one would come back when the state is built anew. A record is dropped only after what took its place is synced everywhere.
//!
//! Caveats: one record may hold many entries, and stays whole until the last of them is gone.

mod dict;
mod life;
pub mod model;
mod queue;
pub mod record;
pub mod state;
mod value;

pub use model::*;
pub use state::ObjectsState;
pub use value::{is_value, value_id};

use crate::calls::Millis;

/// How long what a request did is remembered for the same request.
pub const ANSWERS_KEPT_MS: Millis = 2 * 60 * 1000;

/// How many answers a shard remembers at most; the oldest go first.
pub const ANSWERS_MAX: usize = 100_000;

/// How many bytes of values the remembered answers of a shard keep in the log; the oldest go first.
pub const ANSWERS_BYTES_MAX: u64 = 256 << 20;

/// How long an entry of a dict stays that nobody reads or writes.
pub const ENTRY_KEPT_MS: Millis = 7 * 24 * 3600 * 1000;

/// How long a partition of a queue stays after the last put, unless the put says less.
pub const PARTITION_KEPT_MS: Millis = 24 * 3600 * 1000;

/// The most items of a partition.
pub const ITEMS_MAX: usize = 5000;

/// The longest item of a queue, in bytes.
pub const ITEM_BYTES_MAX: u64 = 1 << 20;

/// The most that the items of a partition may have together, in bytes.
pub const PARTITION_BYTES_MAX: u64 = 64 << 20;

/// The most partitions of a queue.
pub const PARTITIONS_MAX: usize = 100_000;

/// The longest name of a partition, in bytes.
pub const PARTITION_NAME_BYTES_MAX: usize = 64;

/// How long an ephemeral object stays of which nobody says that it is used: clients say so every five minutes.
pub const SILENCE_MAX_MS: Millis = 11 * 60 * 1000;

/// How often unused entries are looked for, and what was read lately is noted.
pub const SWEEP_EVERY_MS: Millis = 3600 * 1000;
