//! Shards: small replicated logs of records, from which everything in the data plane is rebuilt.
//!
//! A shard has a **home**, the one node that orders its records, and a set of nodes that are **in sync**: each of them has
//! every record that counts. Who they are is decided by Raft and stands in [`shoal_state::model::Shard`] with an *epoch*
//! that grows at each change. A node takes records of the epoch it has applied and of no other; this check, made
//! by every other replica, is what stops a home that was replaced and does not know it yet. No clock and no lease is involved.
//!
//! | file | subject |
//! |---|---|
//! | [`replica`] | the rules for one shard at one node; pure |
//! | [`members`], [`presence`] | who should hold a shard, and who could; pure |
//! | [`hearing`] | whom a node hears, and who counts as lost; pure |
//! | [`told`] | what a node's calls are told when shards change; pure |
//! | [`record`] | what a record looks like in the node's log |
//! | [`index`] | where the live records stand, and which part of the log can be given back; pure |
//! | [`store`] | all shards of a node on one [`shoal_storage::log::Log`] |
//!
//! **What counts.** A record is *written* when every member has done write(2), *synced* when every member has done fdatasync
//! since. `.remote()` and `.map()` count at the first, `.spawn()` at the second. With one member both are about this node alone.
//!
//! **Marks.** A record has an index in its shard, from 1 and without holes while it is being written. The index is the cursor
//! that clients hold (`last_entry_id`): it survives moves of the shard, while the place in the node's log does not.
//!
//! **Owners.** Each record names what it belongs to (a call, later a dict or a queue). When the owner is dropped, all its
//! records are dead, on every replica, by one small record; space is given back by whole segments once little in them lives.
//!
//! After a restart of the process every written record is there. After a restart of the *machine*, unsynced ones may be
//! missing: a replica that has partners then takes no part until the partners have brought it up to date again.

pub mod hearing;
pub mod index;
pub mod members;
pub mod presence;
pub mod record;
pub mod replica;
mod slots;
pub mod store;
pub mod told;

pub use record::{Header, Kind};
pub use replica::{Counted, Mark, Replica, Role};
pub use store::{Ack, Append, Draft, Options, Replicas, ShardView, Shards, StoreError};
