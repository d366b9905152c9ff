//! Tasks that are gone without having said so to the homes of their inputs: of which it is to be told that what they had goes elsewhere,
//! and when a lost node's tasks have ended. Pure; the loops that ask the homes and the log are the node's.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use shoal_state::model::TaskEnd;
use shoal_state::{Command, FunctionId, NodeId, State, TaskId, Timestamp};

use super::info::Load;

/// How long the home of inputs may take to have them leased elsewhere before it is asked again: others wait for that too.
pub const LEASED_ELSEWHERE_WITHIN: Duration = Duration::from_secs(2);
/// How long the tasks of a lost node count: what may not run twice is not started elsewhere meanwhile.
pub const FENCE_AFTER: Duration = Duration::from_secs(20);
// A node that is cut off has ended what may not run twice by then.
const _: () = assert!(crate::gangs::alone::STOPS_AFTER.as_secs() < FENCE_AFTER.as_secs());

/// Tasks that have inputs by the books of this node and have ended in the state, without a word to this node: their node was removed from
/// the cluster, or this node did not answer whoever gave them up.
#[derive(Debug, Default)]
pub struct EndedTasks {
    told: BTreeSet<TaskId>,
}

impl EndedTasks {
    /// Returns those of which the calls are to be told, each with its pool. That a task has begun may not have come here yet: before they
    /// are told it is looked again, with the latest state.
    pub fn untold(&mut self, load: &Load, state: &State) -> Vec<(TaskId, FunctionId)> {
        self.told.retain(|task| load.tasks.contains_key(task));
        load.ended(state).into_iter().filter(|(task, _)| !self.told.contains(task)).collect()
    }

    /// Notes that the calls were told of one.
    pub fn told(&mut self, task: TaskId) {
        self.told.insert(task);
    }
}

/// The tasks of nodes that count as lost, for the node that leads.
#[derive(Debug, Default)]
pub struct LostTasks {
    nodes: BTreeMap<NodeId, (Instant, BTreeSet<TaskId>)>,
}

impl LostTasks {
    /// Notes which nodes, besides the one that leads, count as lost now.
    pub fn look(&mut self, lost: &BTreeSet<NodeId>, now: Instant) {
        self.nodes.retain(|node, _| lost.contains(node));
        for node in lost {
            self.nodes.entry(*node).or_insert_with(|| (now, BTreeSet::new()));
        }
    }

    /// Returns the tasks of a node of which the homes of their inputs are to be told, each with its function.
    pub fn untold(&self, node: NodeId, state: &State) -> Vec<(TaskId, FunctionId)> {
        let is_told = |task: &TaskId| self.nodes.get(&node).is_some_and(|(_, told)| told.contains(task));
        let of_node = state.tasks.iter().filter(|(id, task)| task.node == node && !is_told(id));
        of_node.map(|(id, task)| (*id, task.function)).collect()
    }

    /// Notes that the home of a task's inputs was told.
    pub fn told(&mut self, node: NodeId, task: TaskId) {
        if let Some((_, told)) = self.nodes.get_mut(&node) {
            told.insert(task);
        }
    }

    /// Returns what ends the tasks of a node, once they cannot run any more.
    pub fn ends(&self, node: NodeId, state: &State, now: Instant, at: Timestamp) -> Vec<Command> {
        if self.nodes.get(&node).is_none_or(|(since, _)| now.saturating_duration_since(*since) < FENCE_AFTER) {
            return Vec::new();
        }
        let end = || TaskEnd { at, how: "its node is lost".to_owned() };
        let of_node = state.tasks.iter().filter(|(_, task)| task.node == node);
        of_node.map(|(id, task)| Command::EndTask { id: *id, generation: task.generation, end: end() }).collect()
    }

    /// Forgets all: whoever leads next gives everybody the whole time anew.
    pub fn clear(&mut self) {
        self.nodes.clear();
    }
}

#[cfg(test)]
mod tests {
    use shoal_state::model::Task;
    use shoal_state::{AppId, BootId};

    use super::super::info::TaskLoad;
    use super::*;

    fn pool() -> FunctionId {
        FunctionId::from_random(1)
    }

    fn state(tasks: &[(TaskId, NodeId)]) -> State {
        let task = |node| Task::new((pool(), AppId::from_random(1)), (node, BootId::from_random(1)), Timestamp(0));
        let mut state = State::default();
        state.tasks.extend(tasks.iter().map(|(id, node)| (*id, task(*node))));
        state
    }

    #[test]
    fn the_calls_are_told_once_of_a_task_that_has_ended() {
        let [lives, ended] = [1, 2].map(TaskId::from_random);
        let busy = TaskLoad { pool: Some(pool()), running: 1, idle_since_ms: None, used: true };
        let load = Load { tasks: [(lives, busy), (ended, busy)].into(), ..Load::default() };
        let (mut tasks, state) = (EndedTasks::default(), state(&[(lives, NodeId::from_random(1))]));
        assert_eq!(tasks.untold(&load, &state), [(ended, pool())]);
        assert_eq!(tasks.untold(&load, &state), [(ended, pool())], "nobody was told yet");
        tasks.told(ended);
        assert_eq!(tasks.untold(&load, &state), []);
        // Its home moved away and came back: what it says now is news.
        assert_eq!(tasks.untold(&Load::default(), &state), []);
        assert_eq!(tasks.untold(&load, &state), [(ended, pool())]);
    }

    #[test]
    fn a_lost_nodes_tasks_end_once_it_was_lost_for_long_without_a_break() {
        let (task, node, began) = (TaskId::from_random(1), NodeId::from_random(2), Instant::now());
        let (at, lost) = (|seconds| began + Duration::from_secs(seconds), BTreeSet::from([node]));
        let (mut tasks, state) = (LostTasks::default(), state(&[(task, node), (TaskId::from_random(9), NodeId::from_random(3))]));
        let ends = |tasks: &LostTasks, seconds| tasks.ends(node, &state, at(seconds), Timestamp(5)).len();
        tasks.look(&lost, at(0));
        assert_eq!((tasks.untold(node, &state), ends(&tasks, 19)), (vec![(task, pool())], 0));
        tasks.told(node, task);
        tasks.look(&lost, at(20));
        assert_eq!((tasks.untold(node, &state), ends(&tasks, 20)), (vec![], 1));
        tasks.look(&BTreeSet::new(), at(21));
        tasks.look(&lost, at(22));
        assert_eq!((tasks.untold(node, &state), ends(&tasks, 41)), (vec![(task, pool())], 0), "all of it begins anew");
        tasks.clear();
        assert_eq!(ends(&tasks, 60), 0);
    }
}
