//! What can be asked of the rules, what they answer, and what they want done.

use std::ops::RangeInclusive;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use shoal_state::{CallId, FunctionId, InputId, ShardId, TaskId};

use crate::calls::info::{CallInfo, InputInfo};
use crate::calls::model::{Cancelled, Entry, Invocation, LeaseRequest, Lost, NewInput, OpenCall, Outcome, PutInput, RetryInput, Status};
use crate::calls::record::Record;
use crate::calls::refused::Refused;
use crate::objects::record::ObjectRecord;
use crate::objects::{ObjectAnswer, ObjectRequest, Place};

/// Names a request.
pub type Ticket = u64;

/// What can be asked of the calls of a node. See [`Calls`](crate::Calls) for what each means.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[expect(missing_docs, reason = "each is a method of `Calls`, where its fields are explained")]
pub enum Request {
    Open(OpenCall),
    Put {
        call: CallId,
        items: Vec<NewInput>,
        key: String,
    },
    FinishInputs {
        call: CallId,
    },
    Retry {
        items: Vec<RetryInput>,
        key: String,
    },
    Outputs {
        call: CallId,
        after: Entry,
        max: usize,
        wait_ms: u64,
        clear: bool,
        only: Option<RangeInclusive<u32>>,
    },
    Lease(LeaseRequest),
    /// The answer to a lease found nobody: what was leased goes back.
    Undelivered {
        task: TaskId,
        key: String,
    },
    Finish {
        from: Option<(TaskId, FunctionId)>,
        outcomes: Vec<Outcome>,
    },
    TaskLost {
        task: TaskId,
        pool: FunctionId,
        lost: Lost,
    },
    StopTask {
        task: TaskId,
        pool: FunctionId,
    },
    FailPool {
        pool: FunctionId,
        status: Status,
        result: Bytes,
    },
    CancelCall {
        call: CallId,
    },
    CancelInputs {
        inputs: Vec<InputId>,
    },
    CancelPools {
        pools: Vec<FunctionId>,
    },
    HeldCancels {
        task: TaskId,
        pool: FunctionId,
        wait_ms: u64,
    },
    Adopt {
        task: TaskId,
        pool: FunctionId,
        inputs: Vec<(InputId, u32)>,
    },
    /// Nobody else runs what these shards inherited.
    ReportsComplete {
        shards: Vec<ShardId>,
    },
    Info {
        call: CallId,
    },
    /// Which call an input is of.
    CallOf {
        input: InputId,
    },
    Inputs {
        call: CallId,
    },
    CallsOf {
        function: FunctionId,
    },
    Children {
        input: InputId,
    },
    /// Something of dicts and queues.
    Object(ObjectRequest),
    /// Opens a call and puts its first inputs: one request, one write, one answer.
    OpenWith {
        open: OpenCall,
        items: Vec<NewInput>,
        key: String,
    },
}

/// The answer to a [`Request`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is what a method of `Calls` returns")]
pub enum Answer {
    Done,
    Refused(Refused),
    Put(Vec<PutInput>),
    Retried(Vec<(InputId, u32)>),
    Outputs(OutputsAt),
    Leased(Vec<LeasedAt>),
    Stop,
    Cancelled(Cancelled),
    HeldCancels(Vec<InputId>),
    Infos(Vec<CallInfo>),
    Inputs(Vec<InputInfo>),
    Objects {
        shard: ShardId,
        /// Nothing was changed: it tells how things stand.
        looked: bool,
        answer: ObjectAnswer<Place>,
    },
}

/// Outputs whose results are still in the log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OutputsAt {
    /// The outputs.
    pub items: Vec<OutputAt>,
    /// Where to go on reading.
    pub last: Entry,
    /// Inputs without an output that counts.
    pub unfinished: u32,
}

/// An output whose result stands in the record of its entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in `Output`")]
pub struct OutputAt {
    pub idx: u32,
    pub input: InputId,
    pub entry: Entry,
    pub retry_count: u32,
    pub client_count: u32,
    pub status: Status,
}

/// A leased input whose payload stands in a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in `LeasedInput`")]
pub struct LeasedAt {
    pub call: CallId,
    pub input: InputId,
    pub idx: u32,
    pub retry_count: u32,
    pub invocation: Invocation,
    pub function: FunctionId,
    /// Index of the record in the input's shard.
    pub payload: u64,
}

/// What the owner of the rules must do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Write a record.
    Append {
        /// To this shard.
        shard: ShardId,
        /// The index it must get.
        index: u64,
        /// What it says.
        record: Record,
        /// What follows it.
        payload: Bytes,
    },
    /// Write that all records of a call are dead.
    Drop {
        /// To this shard.
        shard: ShardId,
        /// The index it must get.
        index: u64,
        /// The call.
        call: CallId,
    },
    /// Write a record of a dict or a queue.
    AppendObject {
        /// To this shard.
        shard: ShardId,
        /// The index it must get.
        index: u64,
        /// What it says.
        record: ObjectRecord,
        /// What follows it.
        payload: Bytes,
    },
    /// Write that the record of a dict or a queue is dead.
    DropObject {
        /// To this shard.
        shard: ShardId,
        /// The index it must get.
        index: u64,
        /// What the record is known by.
        owner: u128,
    },
    /// Answer a request.
    Answer {
        /// Which.
        ticket: Ticket,
        /// With this.
        answer: Answer,
    },
}
