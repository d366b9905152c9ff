//! Why a request to the calls of a node has no answer.

use std::time::Duration;

use shoal_storage::log;

use super::record::NotARecord;
use super::refused::Refused;

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The answer is no.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The answer did not come in time. Trying again may help.
    #[error("waited {waited:?} for the calls of this node to {what}")]
    Late {
        /// What was asked.
        what: &'static str,
        /// How long the caller waited.
        waited: Duration,
    },
    /// Fewer nodes than are required have the records of some shards. It may have been done, and counts once there are enough.
    #[error(
        "waited {waited:?} for the calls of this node to {what}: {shards} of the shards at home here have fewer than {required} copies, \
         which the setting calls.min_copies requires; they are copied as soon as another node of the cluster is there"
    )]
    FewCopies {
        /// What was asked.
        what: &'static str,
        /// How long the caller waited.
        waited: Duration,
        /// How many shards lack copies.
        shards: usize,
        /// How many copies each must have.
        required: usize,
    },
    /// The data of a call cannot be put or read.
    #[error(transparent)]
    Data(#[from] super::streams::Error),
    /// The node where the calls are at home gave no answer. It may have done what was asked.
    #[error("cannot {what} at node {home}, where the calls are at home: {why}")]
    Away {
        /// Where.
        home: shoal_state::NodeId,
        /// What was asked.
        what: &'static str,
        /// What stood in the way.
        why: String,
    },
    /// What this node knows may be out of date: it is home of a shard as far as it knows, and cannot make sure that it still is.
    #[error("cannot {what}: node {node} has not confirmed for {waited:?} that {shard} is still at home here ({why})")]
    Unconfirmed {
        /// What was asked.
        what: &'static str,
        /// The shard.
        shard: shoal_state::ShardId,
        /// Who was asked.
        node: shoal_state::NodeId,
        /// What stood in the way.
        why: String,
        /// How long it was tried.
        waited: Duration,
    },
    /// The calls of this node have ended, and the node must start anew.
    #[error("the calls of this node have ended: {why}")]
    Ended {
        /// Why.
        why: String,
    },
    /// A payload cannot be read from the log.
    #[error("the payload of {what} cannot be read")]
    Payload {
        /// Of what.
        what: String,
        /// Why.
        #[source]
        source: log::Error,
    },
    /// A payload cannot be understood.
    #[error("the record of {what} cannot be understood")]
    Record {
        /// Of what.
        what: String,
        /// Why.
        #[source]
        source: NotARecord,
    },
    /// Another home's records are refused.
    #[error(transparent)]
    Replica(#[from] crate::shards::replica::Refused),
}
