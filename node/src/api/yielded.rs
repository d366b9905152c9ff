//! What calls yield, on its way to who reads it; and how a failure is kept back until they have it.
//!
//! Clients that hear of a failure drop what they have not taken yet. When they have taken something is told by what they ask for next:
//! so at a failure their streams end behind the last item, and the failure is told once they ask for what comes after it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message as _;
use shoal_calls::calls::streams::{Direction, StreamKey};
use shoal_proto::modal_client as pb;
use shoal_state::CallId;
use tokio::sync::watch;
use tonic::Status as Refusal;

use super::call::refused;
use super::error::Error;
use super::{Api, Caller};

/// How long a failure waits for the readers of another node, and how long for those of this one.
const READ_WAIT: Duration = Duration::from_secs(1);
const TAKEN_WAIT: Duration = Duration::from_secs(3);
/// How long a reader of a call's data is served before it asks again.
const DATA_STREAM: Duration = Duration::from_secs(55);
/// How much data is read from disk at once, in bytes.
const DATA_BYTES_MAX: u64 = 8 << 20;
/// Answers of a data stream that may wait for the client.
const DATA_QUEUE: usize = 8;

/// Who reads what a call yields through this node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Readers {
    streams: usize,
    /// How many failures wait for them.
    failures: usize,
    /// Up to which item somebody has all: what comes after it was asked for.
    has: u64,
    /// The last item, once that is known.
    last: Option<u64>,
}

impl Readers {
    fn have_all(&self) -> bool {
        self.last.is_some_and(|last| self.has >= last)
    }
}

/// Who reads through this node what calls yield. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Yielded(Arc<watch::Sender<HashMap<CallId, Readers>>>);

/// One that reads, or a failure that waits, until this is dropped.
struct Noted {
    of: Yielded,
    call: CallId,
    is_failure: bool,
}

impl Yielded {
    fn change(&self, call: CallId, change: impl FnOnce(&mut Readers)) {
        self.0.send_modify(|calls| {
            let readers = calls.entry(call).or_default();
            change(readers);
            if readers.streams == 0 && readers.failures == 0 {
                calls.remove(&call);
            }
        });
    }

    /// Notes somebody who asks for what comes after item `has`.
    fn begin(&self, call: CallId, has: u64) -> Noted {
        self.change(call, |readers| {
            readers.streams += 1;
            readers.has = readers.has.max(has);
        });
        Noted { of: self.clone(), call, is_failure: false }
    }

    /// Waits until a failure of this call waits for its readers.
    async fn fails(&self, call: CallId) {
        let fails = |calls: &HashMap<CallId, Readers>| calls.get(&call).is_some_and(|readers| readers.failures > 0);
        // The sender is part of this.
        let _ = self.0.subscribe().wait_for(fails).await;
    }

    /// Waits until those who read a call have all of it, at most so long; not at all where nobody reads it.
    async fn taken(&self, call: CallId, patience: Duration) {
        let mut calls = self.0.subscribe();
        if !calls.borrow().contains_key(&call) {
            return;
        }
        self.change(call, |readers| readers.failures += 1);
        let _noted = Noted { of: self.clone(), call, is_failure: true };
        let all = |calls: &HashMap<CallId, Readers>| calls.get(&call).is_none_or(Readers::have_all);
        let _ = tokio::time::timeout(patience, calls.wait_for(all)).await;
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        self.of.change(self.call, |readers| match self.is_failure {
            true => readers.failures -= 1,
            false => readers.streams -= 1,
        });
    }
}

/// Waits until those who read what a call has yielded have all of it, within reason.
pub(super) async fn taken(api: &Api, call: CallId) -> Result<(), Error> {
    api.calls.read_up(call, READ_WAIT).await.map_err(refused)?;
    api.yielded.taken(call, TAKEN_WAIT).await;
    Ok(())
}

/// Finds the data of an attempt, by the token that went with its input.
pub(super) fn data_of_attempt(token: &str, direction: Direction) -> Result<StreamKey, Error> {
    let mut parts = token.split('/');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(call), Some(_), Some(attempt)) => Ok(StreamKey { call: call.parse()?, input: None, attempt: attempt.to_owned(), direction }),
        _ => Err(Error::Invalid(format!("{token:?} is not an attempt's token"))),
    }
}

/// Finds the data of the attempt of a call that counts.
pub(super) async fn data_of_call(api: &Api, id: &str, direction: Direction) -> Result<StreamKey, Error> {
    api.calls.data_key(id.parse()?, direction).await.map_err(refused)
}

/// Finds the data that a reader asks for.
pub(super) async fn data_key(
    api: &Api,
    of: Option<&pb::function_call_get_data_request::CallInfo>,
    direction: Direction,
) -> Result<StreamKey, Error> {
    use pb::function_call_get_data_request::CallInfo;
    match of {
        Some(CallInfo::AttemptToken(token)) => data_of_attempt(token, direction),
        Some(CallInfo::FunctionCallId(id)) => data_of_call(api, id, direction).await,
        None => Err(Error::Invalid("this request for data names no call".to_owned())),
    }
}

/// Streams a call's data to a reader, from after the index that it has.
pub(super) fn read_data(api: &Api, key: StreamKey, has: u64) -> tonic::codegen::BoxStream<pb::DataChunk> {
    let (send, receive) = tokio::sync::mpsc::channel(DATA_QUEUE);
    let (calls, yielded) = (api.calls.clone(), api.yielded.clone());
    let reads = (key.direction == Direction::Out).then(|| yielded.begin(key.call, has));
    tokio::spawn(async move {
        let (until, mut after, mut fails) = (Instant::now() + DATA_STREAM, has, false);
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            let wait = if fails { Duration::ZERO } else { left };
            let got = tokio::select! {
                got = calls.get_data(&key, after, DATA_BYTES_MAX, wait) => got,
                () = yielded.fails(key.call), if !fails && reads.is_some() => {
                    fails = true;
                    continue;
                }
                // The reader has left.
                () = send.closed() => return,
            };
            let chunks = match got {
                Ok(chunks) => chunks,
                Err(error) => {
                    let _ = send.send(Err(Refusal::from(Error::Unavailable(error.to_string())))).await;
                    return;
                }
            };
            if fails && chunks.is_empty() {
                yielded.change(key.call, |readers| readers.last = Some(after));
                if after > has {
                    return;
                }
                // It has all: there is nothing to tell it until it hears of the failure.
                tokio::select! {
                    () = tokio::time::sleep(left) => {}
                    () = send.closed() => {}
                }
                return;
            }
            for chunk in chunks {
                after = chunk.index;
                let decoded = pb::DataChunk::decode(chunk.data).map_err(|error| Refusal::internal(format!("cannot read data: {error}")));
                if send.send(decoded).await.is_err() {
                    return;
                }
            }
        }
    });
    Box::pin(tokio_stream::wrappers::ReceiverStream::new(receive))
}

pub(super) async fn data_out(
    api: &Api,
    _caller: &Caller,
    request: pb::FunctionCallGetDataRequest,
) -> Result<tonic::codegen::BoxStream<pb::DataChunk>, Error> {
    use pb::function_call_get_data_request::CallInfo;
    // Whoever reads what an attempt yields wants what the try yields that counts: others may have come before it.
    let of = request.call_info.map(|of| match of {
        CallInfo::AttemptToken(token) => CallInfo::FunctionCallId(token.split('/').next().unwrap_or_default().to_owned()),
        by_id @ CallInfo::FunctionCallId(_) => by_id,
    });
    let key = data_key(api, of.as_ref(), Direction::Out).await?;
    Ok(read_data(api, key, request.last_index))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: CallId = CallId::from_random(1);
    const SOON: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_failure_is_told_when_what_comes_after_the_last_item_is_asked_for() {
        let yielded = Yielded::default();
        let first = yielded.begin(CALL, 0);
        let failure = tokio::spawn({
            let yielded = yielded.clone();
            async move { yielded.taken(CALL, SOON).await }
        });
        tokio::time::timeout(SOON, yielded.fails(CALL)).await.expect("a failure waits");
        yielded.change(CALL, |readers| readers.last = Some(3));
        drop(first);
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!failure.is_finished(), "nobody has said that it has the third item");
        let second = yielded.begin(CALL, 3);
        failure.await.unwrap();
        drop(second);
        assert!(yielded.0.borrow().is_empty());
    }

    #[tokio::test]
    async fn a_failure_does_not_wait_where_nobody_reads_nor_for_ever() {
        let yielded = Yielded::default();
        tokio::time::timeout(SOON, yielded.taken(CALL, SOON * 9)).await.expect("nobody reads");
        let reader = yielded.begin(CALL, 0);
        yielded.taken(CALL, Duration::from_millis(10)).await;
        drop(reader);
        assert!(yielded.0.borrow().is_empty());
    }
}
