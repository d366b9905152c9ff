//! What waits: inputs for entrypoints, outputs for clients.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::Context as _;
use parking_lot::Mutex;
use shoal_proto::modal_client as pb;
use tokio::sync::{Notify, Semaphore};

/// How long a request for inputs is held, as by a node.
const INPUTS_WAIT: Duration = Duration::from_secs(55);
/// How long entrypoints may take to ask for their first input: many at once take each other's cores.
const START_DEADLINE: Duration = Duration::from_secs(120);

/// The inputs of one function that wait for an entrypoint.
#[derive(Debug)]
pub(super) struct Pool {
    waiting: Mutex<VecDeque<pb::FunctionGetInputsItem>>,
    came: Notify,
    /// The processes through which entrypoints have asked.
    pub(super) known: Mutex<HashSet<i32>>,
    /// One for each entrypoint that has asked for its first input.
    asked: Semaphore,
}

impl Default for Pool {
    fn default() -> Self {
        Self { waiting: Mutex::default(), came: Notify::new(), known: Mutex::default(), asked: Semaphore::new(0) }
    }
}

impl Pool {
    /// Puts inputs behind the others.
    pub(super) fn put(&self, items: Vec<pb::FunctionGetInputsItem>) {
        let count = items.len();
        self.waiting.lock().extend(items);
        (0..count).for_each(|_| self.came.notify_one());
    }

    /// Counts an entrypoint that asks, the first time it does.
    pub(super) fn asks(&self, process: i32) {
        if self.known.lock().insert(process) {
            self.asked.add_permits(1);
        }
    }

    /// Waits until so many more entrypoints have asked for their first input.
    pub(super) async fn all_asked(&self, count: usize) -> anyhow::Result<()> {
        let all = self.asked.acquire_many(u32::try_from(count)?);
        let late = || format!("{count} entrypoints did not all ask for an input within {START_DEADLINE:?}");
        tokio::time::timeout(START_DEADLINE, all).await.with_context(late)??.forget();
        Ok(())
    }

    /// Takes up to `max` inputs: the first when it comes, the others as they come within `linger` after it.
    pub(super) async fn take_batch(&self, max: usize, linger: Duration) -> Vec<pb::FunctionGetInputsItem> {
        let Some(first) = self.take().await else { return vec![] };
        let (mut taken, until) = (vec![first], tokio::time::Instant::now() + linger);
        loop {
            {
                let mut waiting = self.waiting.lock();
                let more = waiting.len().min(max.saturating_sub(taken.len()));
                taken.extend(waiting.drain(..more));
            }
            if taken.len() >= max || tokio::time::timeout_at(until, self.came.notified()).await.is_err() {
                return taken;
            }
        }
    }

    async fn take(&self) -> Option<pb::FunctionGetInputsItem> {
        let until = tokio::time::Instant::now() + INPUTS_WAIT;
        loop {
            if let Some(item) = self.waiting.lock().pop_front() {
                return Some(item);
            }
            tokio::time::timeout_at(until, self.came.notified()).await.ok()?;
        }
    }
}

/// The outputs of one call.
#[derive(Debug, Default)]
pub(super) struct Call {
    pub(super) inputs: AtomicU64,
    pub(super) outputs: Mutex<Vec<pb::FunctionGetOutputsItem>>,
    came: Notify,
}

impl Call {
    /// Puts an output behind the others.
    pub(super) fn put(&self, output: pb::FunctionGetOutputsItem) {
        self.outputs.lock().push(output);
        self.came.notify_waiters();
    }

    /// Returns the outputs after the first `after`, when there are some or the time is over.
    pub(super) async fn read(&self, after: usize, wait: Duration) -> Vec<pb::FunctionGetOutputsItem> {
        let until = tokio::time::Instant::now() + wait;
        loop {
            let mut came = std::pin::pin!(self.came.notified());
            came.as_mut().enable();
            if let Some(fresh) = self.outputs.lock().get(after..).filter(|fresh| !fresh.is_empty()) {
                return fresh.to_vec();
            }
            if tokio::time::timeout_at(until, came).await.is_err() {
                return vec![];
            }
        }
    }
}
