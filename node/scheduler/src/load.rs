//! What the leader is told between decisions. None of it is in the log; after an election all of it starts anew.

use std::collections::{BTreeMap, BTreeSet};

use crate::Placement;
use shoal_state::model::Gang;
use shoal_state::{FunctionId, NodeId, State, TaskId, Timestamp};

/// The work of one function, as the home of its shard reports it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolLoad {
    /// Inputs that no container has yet.
    pub waiting: u64,
    /// Inputs that containers have.
    pub running: u64,
    /// How long the oldest waiting input has waited, in milliseconds.
    pub oldest_waiting_ms: u64,
    /// How long its latest inputs took on average, in milliseconds; none while that is not known.
    pub input_ms: Option<u64>,
}

/// What is known of the work at this moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Load {
    /// Work by function. A function that is absent has no report yet: it is not scaled down.
    pub pools: BTreeMap<FunctionId, PoolLoad>,
    /// Since when a task is ready and has no input. A task that is absent is starting, or busy.
    pub idle_since: BTreeMap<TaskId, Timestamp>,
    /// Tasks that have asked for work: their start is over.
    pub asked: BTreeSet<TaskId>,
    /// Tasks that have done an input and have none: those whose function uses a container once are of no more use.
    pub used: BTreeSet<TaskId>,
    /// Functions that get no new container before a time, because their containers end as soon as they start.
    pub held_until: BTreeMap<FunctionId, Timestamp>,
    /// Where functions may run. A function that is absent may run anywhere.
    pub placements: BTreeMap<FunctionId, Placement>,
    /// Functions of which it is not known yet where they may run: they get no new container.
    pub unread: BTreeSet<FunctionId>,
    /// Tasks that were asked to give way: they get no more inputs, and end once they are done with those that they have. Of a gang it is
    /// the one of rank 0, which gets its inputs.
    pub yielding: BTreeSet<TaskId>,
    /// Nodes that are down. Their tasks are not counted on, and they get none.
    pub down: BTreeSet<NodeId>,
    /// Nodes that have not been heard for a moment, and may be down. They get no tasks. Theirs run, as far as anybody knows; where there
    /// is room, others are started that take their place should the node be lost.
    pub doubtful: BTreeSet<NodeId>,
}

impl Load {
    /// Says whether a task ends by itself soon because it, or its gang, was asked to give way.
    pub(crate) fn gives_way(&self, state: &State, task: TaskId) -> bool {
        // Mostly nobody was asked, and then no gang is looked for.
        let asked = |task: &TaskId| self.yielding.contains(task);
        !self.yielding.is_empty() && (asked(&task) || state.gang(task).and_then(|(_, gang)| Gang::first(gang)).as_ref().is_some_and(asked))
    }
}
