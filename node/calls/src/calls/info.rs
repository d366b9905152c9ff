//! What others are told: people of calls and inputs, the scheduler of how busy everything is.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use shoal_scheduler as scheduler;
use shoal_state::{FunctionId, InputId, NodeId, ShardId, State, TaskId, Timestamp};

use super::model::{Millis, OpenCall, Status};

/// How many inputs ended how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Returned.
    pub succeeded: u32,
    /// Failed, by the user's doing or the platform's.
    pub failed: u32,
    /// Took too long.
    pub timed_out: u32,
    /// Were cancelled.
    pub cancelled: u32,
}

impl Counts {
    /// Returns the number that a status counts towards.
    pub fn of(&mut self, status: Status) -> &mut u32 {
        match status {
            Status::Success => &mut self.succeeded,
            Status::Failed | Status::InitFailed | Status::Platform => &mut self.failed,
            Status::TimedOut => &mut self.timed_out,
            Status::Terminated => &mut self.cancelled,
        }
    }
}

/// The state of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum InputStatus {
    /// Waits for a task.
    Waiting,
    /// Waits for its next try.
    Delayed {
        /// When that is due.
        due_ms: Millis,
    },
    /// A task has it.
    Running {
        /// Which.
        task: TaskId,
        /// Since when.
        since_ms: Millis,
    },
    /// Has its output.
    Done(Status),
}

/// An input, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputInfo {
    /// Its id.
    pub input: InputId,
    /// Its place in the call.
    pub idx: u32,
    /// The number of the current try.
    pub retry_count: u32,
    /// Where it stands.
    pub status: InputStatus,
}

/// A call, for people and for the graph of calls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallInfo {
    /// As it was opened.
    pub open: OpenCall,
    /// How many inputs it has.
    pub inputs: u32,
    /// How many of them have no output.
    pub unfinished: u32,
    /// How the others ended.
    pub ended: Counts,
    /// Nothing more is put.
    pub inputs_finished: bool,
    /// The whole call was cancelled.
    pub cancelled: bool,
    /// When something happened to it last.
    pub changed_ms: Millis,
}

/// How busy a pool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PoolLoad {
    /// Inputs that a task could have now.
    pub waiting: u32,
    /// Inputs that wait for their next try.
    pub delayed: u32,
    /// Inputs that a task has.
    pub running: u32,
    /// Since when the oldest of the waiting waits.
    pub oldest_waiting_ms: Option<Millis>,
    /// Requests of tasks that wait for an input.
    pub parked: u32,
    /// How long the latest inputs were with their tasks, on average; none before the first is done.
    pub input_ms: Option<Millis>,
}

/// How busy a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskLoad {
    /// The pool it serves; none until it asked for an input.
    pub pool: Option<FunctionId>,
    /// Inputs it has.
    pub running: u32,
    /// Since when it has none, if it has none.
    pub idle_since_ms: Option<Millis>,
    /// It was given an input before.
    pub used: bool,
}

/// How busy everything is: what the scheduler plans by. Soft state.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Load {
    /// Pools with anything in them.
    pub pools: BTreeMap<FunctionId, PoolLoad>,
    /// Tasks that have asked for work.
    pub tasks: BTreeMap<TaskId, TaskLoad>,
    /// The shards that this is about: they are at home here, and what they inherited is known to run or to wait.
    pub homes: BTreeSet<ShardId>,
}

impl Load {
    /// Puts together what nodes told: of each shard what its home says.
    pub fn at_homes<'a>(state: &State, told: impl IntoIterator<Item = (NodeId, &'a Self)>) -> Self {
        let mut all = Self::default();
        for (node, load) in told {
            let is_home = |shard: &ShardId| state.shards.get(shard).is_some_and(|shard| shard.home == node);
            all.homes.extend(load.homes.iter().copied().filter(is_home));
            let at_home = |function: &FunctionId| function.shard().is_some_and(|shard| is_home(&shard));
            all.pools.extend(load.pools.iter().filter(|(pool, _)| at_home(pool)).map(|(pool, load)| (*pool, *load)));
            let of_home = |task: &TaskLoad| task.pool.is_some_and(|pool| at_home(&pool));
            all.tasks.extend(load.tasks.iter().filter(|(_, task)| of_home(task)).map(|(task, load)| (*task, *load)));
        }
        all
    }

    /// Returns what the scheduler plans by of this. A function whose home has not told has no report.
    pub fn reported(&self, state: &State, now: Timestamp) -> scheduler::Load {
        let pool = |function: &FunctionId| {
            let load = self.pools.get(function).copied().unwrap_or_default();
            scheduler::PoolLoad {
                waiting: load.waiting.into(),
                running: load.running.into(),
                input_ms: load.input_ms,
                oldest_waiting_ms: load.oldest_waiting_ms.map_or(0, |since| now.0.saturating_sub(since)),
            }
        };
        let is_told = |function: &&FunctionId| function.shard().is_some_and(|shard| self.homes.contains(&shard));
        let idle = self.tasks.iter().filter_map(|(task, load)| Some((*task, Timestamp(load.idle_since_ms?))));
        scheduler::Load {
            pools: state.functions.keys().filter(is_told).map(|function| (*function, pool(function))).collect(),
            idle_since: idle.collect(),
            asked: self.tasks.keys().copied().collect(),
            used: self.tasks.iter().filter(|(_, load)| load.used && load.running == 0).map(|(task, _)| *task).collect(),
            ..scheduler::Load::default()
        }
    }

    /// Returns the tasks that have inputs and are not in a state that is later than this: they have ended, with what they have still
    /// leased to them.
    pub fn ended(&self, state: &State) -> Vec<(TaskId, FunctionId)> {
        let has_inputs = self.tasks.iter().filter(|(id, task)| task.running > 0 && !state.tasks.contains_key(*id));
        has_inputs.filter_map(|(id, task)| Some((*id, task.pool?))).collect()
    }

    /// Says whether a function whose home is the node that told this has inputs that wait, and no container.
    pub fn wakes(&self, state: &State, home: NodeId) -> bool {
        let asleep = |pool: &FunctionId| state.tasks_of.get(pool).is_none_or(|tasks| tasks.is_empty());
        let at_home = |pool: &FunctionId| pool.shard().and_then(|shard| state.shards.get(&shard)).is_some_and(|shard| shard.home == home);
        self.pools.iter().any(|(pool, load)| load.waiting > 0 && asleep(pool) && at_home(pool))
    }
}

#[cfg(test)]
mod tests {
    use shoal_state::model::{Function, Task};
    use shoal_state::{AppId, BootId};

    use super::*;

    #[test]
    fn a_function_has_a_report_once_its_home_has_told() {
        let [told, silent] = [3, 70].map(|shard| FunctionId::in_shard(ShardId::new(shard).unwrap(), 1));
        let [busy, used, fresh] = [1, 2, 3].map(TaskId::from_random);
        let mut state = State::default();
        for id in [told, silent] {
            state.functions.insert(id, Function::new(AppId::from_random(1), "f", Timestamp(0)));
        }
        let task = |running, used, idle_since_ms| TaskLoad { pool: Some(told), running, idle_since_ms, used };
        let load = Load {
            pools: [(told, PoolLoad { waiting: 2, running: 1, oldest_waiting_ms: Some(700), ..PoolLoad::default() })].into(),
            tasks: [(busy, task(1, true, None)), (used, task(0, true, Some(600))), (fresh, task(0, false, Some(500)))].into(),
            homes: told.shard().into_iter().collect(),
        };
        let reported = load.reported(&state, Timestamp(1_000));
        let pool = scheduler::PoolLoad { waiting: 2, running: 1, oldest_waiting_ms: 300, input_ms: None };
        assert_eq!(reported.pools, [(told, pool)].into(), "of the other nobody has told");
        assert_eq!(reported.idle_since, [(used, Timestamp(600)), (fresh, Timestamp(500))].into());
        assert_eq!((reported.asked.len(), reported.used), (3, [used].into()), "one that never had an input is not used up");
    }

    #[test]
    fn tasks_that_the_state_does_not_know_have_ended_with_their_inputs() {
        let pool = FunctionId::from_random(1);
        let load = |running| TaskLoad { pool: Some(pool), running, idle_since_ms: None, used: true };
        let [lives, ended, idle] = [1, 2, 3].map(TaskId::from_random);
        let load = Load { tasks: [(lives, load(1)), (ended, load(2)), (idle, load(0))].into(), ..Load::default() };
        let mut state = State::default();
        state.tasks.insert(lives, Task::new((pool, AppId::from_random(1)), (NodeId::from_random(1), BootId::from_random(1)), Timestamp(0)));
        assert_eq!(load.ended(&state), [(ended, pool)]);
    }
}
