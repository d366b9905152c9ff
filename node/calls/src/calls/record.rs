//! What is written to a shard's log about calls.
//!
//! The body of a record is the length of the head (4 bytes, little-endian), the head (postcard), then the payload or result,
//! which nothing here looks into. New variants go to the end: older logs stay readable.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use shoal_state::{CallId, InputId, TaskId};

use super::model::{Millis, OpenCall, Status};

/// The head of a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// A call was opened.
    Opened(Box<OpenCall>),
    /// An input was put; its payload follows.
    Input {
        /// Its call.
        call: CallId,
        /// Itself.
        input: InputId,
        /// Its place in the call.
        idx: u32,
        /// When.
        at_ms: Millis,
    },
    /// Nothing more is put.
    InputsFinished {
        /// The call.
        call: CallId,
        /// When.
        at_ms: Millis,
    },
    /// An input is tried again. A new payload may follow.
    Retried {
        /// Its call.
        call: CallId,
        /// Itself.
        input: InputId,
        /// The number of the new try.
        retry_count: u32,
        /// When it may begin.
        due_ms: Millis,
        /// When.
        at_ms: Millis,
        /// Hash of the request's key when a client asked; 0 when the policy did.
        key: u64,
        /// A new payload follows.
        payload: bool,
    },
    /// Inputs have their output; the result, the same for all of them, follows.
    Outcome {
        /// Their call.
        call: CallId,
        /// Each with the number of the try that ended.
        of: Vec<(InputId, u32)>,
        /// How.
        status: Status,
        /// When a task got it; 0 if none did.
        started_ms: Millis,
        /// When.
        at_ms: Millis,
        /// Who said so.
        task: Option<TaskId>,
    },
    /// Inputs are cancelled; what still runs gets its output by its task or later.
    Cancelled {
        /// Their call.
        call: CallId,
        /// Which; none for the whole call, with what is still to be put.
        inputs: Vec<InputId>,
        /// When.
        at_ms: Millis,
    },
    /// A reader has all outputs: the call is kept only a little longer.
    Cleared {
        /// The call.
        call: CallId,
        /// When.
        at_ms: Millis,
    },
}

/// Bytes that are not a record of calls.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotARecord {
    /// The body ends too early.
    #[error("a record of calls ends after {bytes} bytes, amid its head")]
    Short {
        /// How many bytes there were.
        bytes: usize,
    },
    /// The head is of a version that this one does not know, or damaged.
    #[error("the head of a record of calls cannot be read")]
    Head(#[source] postcard::Error),
}

impl Record {
    /// Returns the call it belongs to.
    pub fn call(&self) -> CallId {
        match self {
            Self::Opened(open) => open.call,
            Self::Input { call, .. }
            | Self::InputsFinished { call, .. }
            | Self::Retried { call, .. }
            | Self::Outcome { call, .. }
            | Self::Cancelled { call, .. }
            | Self::Cleared { call, .. } => *call,
        }
    }

    /// Returns what stands before the payload.
    pub fn encode(&self) -> Bytes {
        encode_head(self)
    }

    /// Reads the head of a body, and returns where the payload begins.
    pub fn decode(body: &[u8]) -> Result<(Self, usize), NotARecord> {
        decode_head(body)
    }
}

/// Writes the head of a record, of whatever it tells, behind its length.
pub(crate) fn encode_head(head: &impl Serialize) -> Bytes {
    let out = postcard::to_extend(head, vec![0; 4]);
    let mut out = out.expect("a record has nothing that postcard cannot write");
    let length = u32::try_from(out.len() - 4).expect("a head is far below 4 GiB");
    out[..4].copy_from_slice(&length.to_le_bytes());
    out.into()
}

/// Reads the head of a body, and returns where what follows it begins.
pub(crate) fn decode_head<T: DeserializeOwned>(body: &[u8]) -> Result<(T, usize), NotARecord> {
    let short = NotARecord::Short { bytes: body.len() };
    let (length, rest) = body.split_first_chunk::<4>().ok_or(short.clone())?;
    let length = u32::from_le_bytes(*length) as usize;
    let head = rest.get(..length).ok_or(short)?;
    Ok((postcard::from_bytes(head).map_err(NotARecord::Head)?, 4 + length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_that_version_6_wrote_are_read() {
        shoal_state::written::hold::<Record>("a record", include_str!("../../tests/written/6/record.txt"), 0);
    }

    #[test]
    fn a_record_reads_back_and_its_payload_follows() {
        let (call, input) = (CallId::from_random(1), InputId::from_random(2));
        let record = Record::Input { call, input, idx: 7, at_ms: 1 << 41 };
        let body = [&record.encode()[..], b"payload"].concat();
        let (read, at) = Record::decode(&body).unwrap();
        assert_eq!((read, &body[at..]), (record, &b"payload"[..]));
        assert!(matches!(Record::decode(&body[..10]), Err(NotARecord::Short { bytes: 10 })));
    }
}
