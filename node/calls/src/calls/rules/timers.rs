//! What is to happen at a time. Pure.

use std::collections::BTreeMap;

use shoal_state::{CallId, InputId, ShardId, TaskId};

use super::Ticket;
use crate::calls::model::Millis;

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// A reader of outputs has waited long enough.
    Poll(Ticket),
    /// A task has waited long enough for an input.
    Lease(Ticket),
    /// A task has waited long enough for a fuller batch.
    Linger(Ticket),
    /// A heartbeat was held long enough.
    Heartbeat(TaskId),
    /// The next try of an input may begin.
    Retry(InputId),
    /// A try takes longer than the worker should have let it.
    Timeout(InputId),
    /// A cancelled input has still no outcome.
    CancelBackstop(InputId),
    /// A call may be over for long enough.
    Expire(CallId),
    /// Reports about inherited inputs have been waited for long enough.
    Reports(ShardId),
    /// Somebody has waited long enough for an item of a queue.
    Items(Ticket),
    /// Something of a shard's dicts or queues is due.
    Objects(ShardId),
}

/// Names a timer, to take it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TimerKey(Millis, u64);

/// All timers, in the order in which they are due.
#[derive(Debug, Default)]
pub(super) struct Timers {
    due: BTreeMap<TimerKey, Due>,
    made: u64,
}

impl Timers {
    pub(super) fn set(&mut self, at: Millis, due: Due) -> TimerKey {
        self.made += 1;
        let key = TimerKey(at, self.made);
        self.due.insert(key, due);
        key
    }

    pub(super) fn unset(&mut self, key: TimerKey) {
        self.due.remove(&key);
    }

    pub(super) fn next_at(&self) -> Option<Millis> {
        self.due.keys().next().map(|key| key.0)
    }

    /// Takes the first timer that is due.
    pub(super) fn take_due(&mut self, now: Millis) -> Option<Due> {
        let first = self.due.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }
}
