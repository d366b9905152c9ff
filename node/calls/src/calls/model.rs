//! The words of calls: what goes in, what comes out.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use shoal_state::{CallId, FunctionId, InputId, TaskId, Timestamp};

/// Milliseconds since 1970.
pub type Millis = u64;

/// Whether a call has one input or many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CallKind {
    /// Exactly one.
    Unary,
    /// Any number, put in pieces.
    Map,
}

/// Who waits for a call, and so what must last before it counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Invocation {
    /// A client waits: records count when they are written.
    Sync,
    /// Nobody may be waiting: records count when they are synced.
    Async,
    /// As [`Self::Async`]; older clients say it so.
    AsyncLegacy,
}

impl Invocation {
    /// Says whether records must be synced before they count.
    pub const fn durable(self) -> bool {
        !matches!(self, Self::Sync)
    }
}

/// How often an input that failed is tried again, and how long one try may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Policy {
    /// Tries after the first one.
    pub retries: u32,
    /// Wait before the first retry.
    pub initial_delay_ms: u64,
    /// Longest wait; 0 for no limit.
    pub max_delay_ms: u64,
    /// Growth of the wait from one retry to the next, in thousandths: 2,000 doubles it. 0 is taken for 1,000.
    pub backoff_permille: u32,
    /// How long a try may take once a task has the input; 0 for no limit. The worker kills at it, this crate is the backstop.
    pub timeout_ms: u64,
    /// The client of a [`Invocation::Sync`] call retries by itself, the server does not.
    pub sync_client_retries: bool,
}

impl Policy {
    /// Returns the wait before the retry that follows `retry_count` earlier ones.
    pub fn delay_ms(&self, retry_count: u32) -> u64 {
        let factor = if self.backoff_permille == 0 { 1000 } else { u128::from(self.backoff_permille) };
        let limit = if self.max_delay_ms == 0 { u64::MAX } else { self.max_delay_ms };
        let mut delay = u128::from(self.initial_delay_ms);
        for _ in 0..retry_count {
            let next = delay * factor / 1000;
            if next == delay || delay >= u128::from(limit) {
                break;
            }
            delay = next;
        }
        u64::try_from(delay).unwrap_or(u64::MAX).min(limit)
    }
}

/// Where a call was made from, if inside of another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// The input whose code made the call.
    pub input: InputId,
    /// The task that ran it, if known.
    pub task: Option<TaskId>,
}

/// A call to be opened. Equal ids are the same call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenCall {
    /// Derived from who asks and the request's idempotency key; names the shard.
    pub call: CallId,
    /// What was called.
    pub function: FunctionId,
    /// The function whose containers serve it: the bound one where there is one.
    pub pool: FunctionId,
    /// One input or many.
    pub kind: CallKind,
    /// Who waits.
    pub invocation: Invocation,
    /// Where from.
    pub parent: Option<Parent>,
    /// When.
    pub created_ms: Millis,
    /// Retries and timeout.
    pub policy: Policy,
}

impl OpenCall {
    /// Returns the call of a function for a time of its schedule; none where the function's id names no shard. The same time again is the
    /// same call.
    pub fn scheduled(function: FunctionId, due: Timestamp, created_ms: Millis, policy: Policy) -> Option<Self> {
        let call = CallId::derive_in(function.shard()?, &[b"schedule", &function.bits().to_le_bytes(), &due.0.to_le_bytes()]);
        Some(Self {
            call,
            function,
            pool: function,
            kind: CallKind::Unary,
            invocation: Invocation::Async,
            parent: None,
            created_ms,
            policy,
        })
    }
}

/// An input to be put. The payload is opaque here: the caller's encoding of arguments, method and format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewInput {
    /// Its place in the call, as the client counts.
    pub idx: u32,
    /// At most [`PAYLOAD_BYTES_MAX`].
    pub payload: Bytes,
}

/// The longest payload or result. What is longer is a blob, and the payload names it.
pub const PAYLOAD_BYTES_MAX: usize = (2 << 20) + (64 << 10);

/// An input that was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutInput {
    /// Its id, derived from (call, key, place in the request).
    pub input: InputId,
    /// As it was given.
    pub idx: u32,
}

/// An input to be tried again because the client says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryInput {
    /// Which.
    pub input: InputId,
    /// The number of this try as the client counts, from 1; 0 for "the next one".
    pub retry_count: u32,
    /// Takes the place of the earlier payload; empty keeps that.
    pub payload: Bytes,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// It returned.
    Success,
    /// It failed by the user's doing; tried again as the policy says.
    Failed,
    /// It took too long; tried again as the policy says.
    TimedOut,
    /// It was cancelled. Final.
    Terminated,
    /// Its container could not start. Final.
    InitFailed,
    /// The platform failed it. Final here; never beats a running attempt.
    Platform,
}

impl Status {
    /// Says whether the user's policy may try again.
    pub const fn retryable(self) -> bool {
        matches!(self, Self::Failed | Self::TimedOut)
    }
}

/// What a task says of an input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Which input.
    pub input: InputId,
    /// The try that it is about.
    pub retry_count: u32,
    /// How it ended.
    pub status: Status,
    /// The result, opaque here.
    pub result: Bytes,
}

/// A place among the outputs of a call: later outputs have greater ones. Written `INDEX-NUMBER`; `0-0` is before all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Entry {
    /// Index of the record in the shard.
    pub index: u64,
    /// Place within the record.
    pub number: u32,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.index, self.number)
    }
}

/// A text that is not a place among outputs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an entry id: expected two numbers with a dash, such as 0-0")]
pub struct NotAnEntry {
    text: String,
}

impl FromStr for Entry {
    type Err = NotAnEntry;

    /// Reads what [`fmt::Display`] wrote; the empty text is `0-0`.
    fn from_str(text: &str) -> Result<Self, NotAnEntry> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let refuse = || NotAnEntry { text: text.chars().take(64).collect() };
        let (index, number) = text.split_once('-').ok_or_else(refuse)?;
        let index = index.parse().map_err(|_| refuse())?;
        Ok(Self { index, number: number.parse().map_err(|_| refuse())? })
    }
}

/// The output of an input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// Place of the input in the call.
    pub idx: u32,
    /// The input.
    pub input: InputId,
    /// Place among the call's outputs.
    pub entry: Entry,
    /// The try that it came from.
    pub retry_count: u32,
    /// The try that a client asked for last, 0 if none did: what it expects to see here.
    pub client_count: u32,
    /// How it ended.
    pub status: Status,
    /// The result as the task brought it. Empty when nobody brought one (a cancelled input that waited, a timeout without a
    /// word from the worker): the reader then makes one from `status`.
    pub result: Bytes,
    /// When a task got the input; 0 if none did.
    pub started_ms: Millis,
    /// When the outcome came.
    pub at_ms: Millis,
    /// Who brought it.
    pub task: Option<TaskId>,
}

/// What a reader of a call sees.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Outputs {
    /// New outputs, in the order of their entries.
    pub items: Vec<Output>,
    /// Where to go on reading.
    pub last: Entry,
    /// Inputs without an output that counts; for a unary call at least 1 while its input is missing.
    pub unfinished: u32,
}

/// What a task is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leased {
    /// Inputs to work on; none when none came in time.
    Inputs(Vec<LeasedInput>),
    /// The task is to stop.
    Stop,
}

/// An input that a task is to work on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeasedInput {
    /// Its call.
    pub call: CallId,
    /// Itself.
    pub input: InputId,
    /// Its place in the call.
    pub idx: u32,
    /// The number of this try, from 0.
    pub retry_count: u32,
    /// Who waits for the call.
    pub invocation: Invocation,
    /// What was called.
    pub function: FunctionId,
    /// As it was put.
    pub payload: Bytes,
}

/// Asks for inputs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRequest {
    /// The function that the task serves.
    pub pool: FunctionId,
    /// Who asks.
    pub task: TaskId,
    /// How many at most; at least 1.
    pub max: u32,
    /// How long to wait for the first.
    pub wait_ms: u64,
    /// How long to wait for more after the first, for batches; 0 not at all.
    pub linger_ms: u64,
    /// The request's idempotency key: the same key gets the same inputs again.
    pub key: String,
}

/// How a task ended, for the inputs it had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lost {
    /// Not by the user's doing (its node went, it was stopped): its inputs go back to the front, as the same try. An input that
    /// lost [`super::rules::LOST_MAX`] tasks gets `result` with [`Status::Platform`].
    Platform {
        /// For those that lost too many.
        result: Bytes,
    },
    /// By the user's doing (out of memory, exit): its inputs have failed with `result`, and are tried again as their policy says.
    Crashed {
        /// What they failed with.
        result: Bytes,
    },
}

/// Who still runs inputs that were cancelled.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cancelled {
    /// Task and input. With `terminate_containers` the caller stops these tasks.
    pub running: Vec<(TaskId, InputId)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_grows_to_its_limit() {
        let policy = Policy { initial_delay_ms: 1000, backoff_permille: 2000, max_delay_ms: 60_000, ..Policy::default() };
        let waits: Vec<u64> = (0..8).map(|count| policy.delay_ms(count)).collect();
        assert_eq!(waits, [1000, 2000, 4000, 8000, 16000, 32000, 60000, 60000]);
        let fixed = Policy { initial_delay_ms: 500, backoff_permille: 1000, ..Policy::default() };
        assert_eq!(fixed.delay_ms(u32::MAX), 500);
        let wild = Policy { initial_delay_ms: u64::MAX, backoff_permille: u32::MAX, ..Policy::default() };
        assert_eq!(wild.delay_ms(u32::MAX), u64::MAX);
    }

    #[test]
    fn an_entry_reads_back_and_orders_by_record_then_number() {
        let entry = Entry { index: 12, number: 3 };
        assert_eq!("12-3".parse(), Ok(entry));
        assert_eq!(entry.to_string(), "12-3");
        assert_eq!("".parse(), Ok(Entry::default()));
        assert!(entry < Entry { index: 100, number: 0 });
        assert!("12".parse::<Entry>().is_err());
        assert!("a-b".parse::<Entry>().is_err());
    }
}
