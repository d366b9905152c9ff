//! What the tasks of this node run: what a shard's new home must know before it leases inherited inputs again.
//!
//! A lease is not a record, so it is known by its home, which may be lost, and by the node of its task. An input belongs to its
//! task from the moment this node hears of the lease until it hears that an outcome counts.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use shoal_state::{FunctionId, InputId, ShardId, TaskId};

use super::model::LeasedInput;

/// The inputs that one task has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Held {
    pub(super) task: TaskId,
    pub(super) pool: FunctionId,
    /// Each with the number of its try.
    pub(super) inputs: Vec<(InputId, u32)>,
}

/// The inputs of this node's tasks.
#[derive(Debug, Default)]
pub(super) struct Running {
    tasks: Mutex<BTreeMap<TaskId, Task>>,
}

#[derive(Debug)]
struct Task {
    pool: FunctionId,
    inputs: BTreeMap<InputId, u32>,
}

impl Running {
    /// Notes what a task was given, be it nothing: it asks for more of its pool.
    pub(super) fn begin(&self, task: TaskId, pool: FunctionId, inputs: &[LeasedInput]) {
        let mut tasks = self.tasks.lock();
        let held = tasks.entry(task).or_insert_with(|| Task { pool, inputs: BTreeMap::new() });
        held.inputs.extend(inputs.iter().map(|input| (input.input, input.retry_count)));
    }

    /// Notes that outcomes of these inputs count.
    pub(super) fn end(&self, task: TaskId, inputs: &[InputId]) {
        if let Some(held) = self.tasks.lock().get_mut(&task) {
            held.inputs.retain(|input, _| !inputs.contains(input));
        }
    }

    /// Forgets a task that has ended.
    pub(super) fn ended(&self, task: TaskId) {
        self.tasks.lock().remove(&task);
    }

    /// Returns what the tasks have whose pools are in these shards.
    pub(super) fn of(&self, shards: &[ShardId]) -> Vec<Held> {
        let tasks = self.tasks.lock();
        let wanted = tasks.iter().filter(|(_, held)| held.pool.shard().is_some_and(|shard| shards.contains(&shard)));
        let held = wanted.map(|(task, held)| {
            let inputs = held.inputs.iter().map(|(input, retry_count)| (*input, *retry_count));
            Held { task: *task, pool: held.pool, inputs: inputs.collect() }
        });
        held.collect()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use shoal_state::CallId;

    use super::*;
    use crate::calls::model::Invocation;

    fn leased(number: u128) -> LeasedInput {
        LeasedInput {
            call: CallId::from_random(1),
            input: InputId::from_random(number),
            idx: 0,
            retry_count: 2,
            invocation: Invocation::Sync,
            function: FunctionId::from_random(1),
            payload: Bytes::new(),
        }
    }

    #[test]
    fn an_input_is_held_from_its_lease_to_its_outcome() {
        let (running, task) = (Running::default(), TaskId::from_random(1));
        let shard = |number| ShardId::new(number).unwrap();
        let pool = FunctionId::in_shard(shard(3), 9);
        running.begin(task, pool, &[leased(1), leased(2)]);
        running.begin(task, pool, &[]);
        let held = |inputs: &[u128]| Held { task, pool, inputs: inputs.iter().map(|number| (InputId::from_random(*number), 2)).collect() };
        assert_eq!(running.of(&[shard(3)]), [held(&[1, 2])]);
        assert_eq!(running.of(&[shard(4)]), []);
        running.end(task, &[InputId::from_random(1)]);
        assert_eq!(running.of(&[shard(3), shard(4)]), [held(&[2])]);
        running.ended(task);
        assert_eq!(running.of(&[shard(3)]), []);
    }
}
