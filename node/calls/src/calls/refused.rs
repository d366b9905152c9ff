//! What the rules say no to, in words.

use serde::{Deserialize, Serialize};
use shoal_state::{CallId, FunctionId, InputId, NodeId, ObjectId, QueueId, ShardId, TaskId};

use super::model::PAYLOAD_BYTES_MAX;

/// A no from the rules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Refused {
    /// The id names no shard.
    #[error("no call has the id {id}: it names no shard")]
    NoShard {
        /// The id.
        id: String,
    },
    /// Another node is home of the shard, or none yet.
    #[error("{shard} of {what} is not at home at this node but at {}", home.map_or("none yet".to_owned(), |home| home.to_string()))]
    NotHome {
        /// The shard.
        shard: ShardId,
        /// What was asked about.
        what: String,
        /// Its home as far as this node knows.
        home: Option<NodeId>,
    },
    /// There is no such call (any more: results are kept for 7 days).
    #[error("call {call} does not exist; calls are forgotten 7 days after they ended, or 10 minutes after their outputs were cleared")]
    NoCall {
        /// Its id.
        call: CallId,
    },
    /// There is no such input (any more).
    #[error("input {input} does not exist")]
    NoInput {
        /// Its id.
        input: InputId,
    },
    /// A task brought the outcome of an input that its function was never given.
    #[error("input {input} is not one of function {pool}, which task {task} serves")]
    OfAnotherPool {
        /// The input.
        input: InputId,
        /// Who brought it.
        task: TaskId,
        /// What the task serves.
        pool: FunctionId,
    },
    /// More inputs are put than a unary call has.
    #[error("call {call} takes one input and has it")]
    OneInput {
        /// Its id.
        call: CallId,
    },
    /// A payload or result is too long to be inline.
    #[error("{bytes} bytes are too long for {what}: the limit is {PAYLOAD_BYTES_MAX}; larger ones go into a blob")]
    TooLong {
        /// Of what.
        what: String,
        /// How long it is.
        bytes: usize,
    },
    /// Too many inputs wait. Trying again later helps.
    #[error("{waiting} inputs wait for function {pool} already, and the limit is {max}: try again when some of them are done")]
    TooMany {
        /// The pool.
        pool: FunctionId,
        /// How many wait.
        waiting: usize,
        /// How many may.
        max: usize,
    },
    /// There is no such dict or queue here: it was not opened, or it was closed.
    #[error("{} '{object}' not found: it was deleted, or has ended", object.kind())]
    NoObject {
        /// Which.
        object: ObjectId,
    },
    /// A partition of a queue has no room. Trying again later helps, once items were taken.
    #[error("partition {partition:?} of queue {queue} is full: {why}")]
    QueueFull {
        /// The queue.
        queue: QueueId,
        /// Its partition; empty = the default one.
        partition: String,
        /// What it has.
        why: String,
    },
}
