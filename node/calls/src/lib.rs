//! The data plane of a node: replicated record logs, and calls on them.
//!
//! - [`shards`] are small logs of records, each kept by a home and the nodes in sync with it; the rules are pure, the
//!   bytes stand in one [`shoal_storage::log::Log`] per node.
//! - [`objects`] are dicts and queues, what they hold, as records of shards; pure.
//! - [`calls`] are functions' calls with their inputs and outcomes, as records of shards.
//! - [`gangs`] give each input to all containers of a gang, and make one outcome of theirs.
//!
//! Start with [`Calls`], the handle. Nothing here knows gRPC, protobuf or containers: payloads and results are opaque bytes.

pub mod calls;
pub mod gangs;
pub mod objects;
pub mod shards;

pub use calls::{Calls, Error};
