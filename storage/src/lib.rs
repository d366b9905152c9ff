//! Bytes on this node's disk: chunks by digest, and logs of records.
//!
//! Everything in Shoal that says "on disk" goes through one of three writers:
//!
//! - [`kv`] keeps small values by key. It is the only place that knows sled, and wraps it so that a sync
//!   survives a power cut.
//! - [`log`] keeps records in order, in segment files: Raft's log, and the log of a node's shards.
//! - [`store`] keeps chunks by their digest: bytes in pack files, what lies where in a [`kv`].
//!
//! [`chunk`] says how files and blobs are cut, and [`manifest`] how a tree of files becomes chunks; both are pure.
//!
//! [`keep`] says what of the store may be deleted, and what is promised to stay; [`replicate`] which nodes keep a chunk.
//!
//! All writers share one shape: a write is readable at once and lasts only after `sync`, and one thread per
//! writer makes a single fsync serve all callers that wait at that moment. After a failed fsync nobody knows what the
//! disk holds, so the writer refuses everything until the process starts anew and reads what is really there.

pub mod chunk;
pub mod file;
mod group;
pub mod keep;
pub mod kv;
pub mod log;
pub mod manifest;
pub mod replicate;
pub mod store;

pub use group::Synced;
