//! A leader, however new, stops no container that works, ends none of a node that is there, and takes no shard from such a node.

use std::collections::BTreeMap;
use std::time::Duration;

use shoal_state::model::{ShardChange, Task};
use shoal_state::{Command, InputId, NodeId, ShardId, TaskId};

use super::{Events, Ranks, Troubles};
use crate::history::Event;
use crate::operators::BEING_REMOVED;

/// A container that has worked for so long is known to.
const WORKS_FOR: Duration = Duration::from_secs(5);
/// A node that was there without any trouble for so long is there for everybody.
const THERE_FOR: Duration = Duration::from_secs(10);
/// The tasks of one that was lost before that may be ended until so long after.
const ENDED_AFTER: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Known {
    /// Since when each container has what it works on.
    works: BTreeMap<(TaskId, InputId), Duration>,
    node_of: BTreeMap<TaskId, usize>,
    numbers: BTreeMap<NodeId, usize>,
    homes: BTreeMap<ShardId, usize>,
    ranks: Ranks,
    trouble: Troubles,
    /// When the process of each node was gone last.
    stopped: BTreeMap<usize, Duration>,
    /// Since when a node runs without any trouble. A node whose machine restarted may miss records, and is not counted.
    there: BTreeMap<usize, Duration>,
}

impl Known {
    fn is_there(&self, node: usize, for_long: Duration, at: Duration) -> bool {
        self.there.get(&node).is_some_and(|since| *since + for_long <= at) && !self.trouble.since(node, at.saturating_sub(for_long))
    }

    fn decided(&self, by: usize, command: &Command, at: Duration) -> Result<(), String> {
        match command {
            // That is said by the node of its gang's rank 0, whoever leads.
            Command::StopTask { why, .. } if why.starts_with("the container of rank") => Ok(()),
            Command::StopTask { why, .. } if why == BEING_REMOVED => Ok(()),
            Command::StopTask { id, why } => {
                let works = self.works.range((*id, InputId::MIN)..=(*id, InputId::MAX)).map(|(_, since)| *since).min();
                // What it has may have been given to others while its node was taken for lost.
                let was_gone = |node: &usize, since| self.stopped.get(node).is_some_and(|at| *at >= since);
                let is_wrong = |of: &TaskId, node: &usize, since| self.trouble.since(*node, since) || of != id && was_gone(node, since);
                let was_wrong = |of: &TaskId, since| self.node_of.get(of).is_some_and(|node| is_wrong(of, node, since));
                // A gang ends as one.
                let all = self.ranks.gang(*id).unwrap_or(std::slice::from_ref(id));
                let trouble = |since: Duration| all.iter().any(|of| was_wrong(of, since.saturating_sub(THERE_FOR)));
                let known = |since: &Duration| *since + WORKS_FOR <= at && !trouble(*since);
                match works.filter(known) {
                    Some(since) => Err(format!("{id} is stopped ({why}) while it works, since {since:?}")),
                    None => Ok(()),
                }
            }
            Command::EndTask { id, end, .. } if end.how == "its node is lost" => match self.node_of.get(id) {
                Some(node) if self.is_there(*node, ENDED_AFTER, at) => Err(format!("{id} is ended as lost, and its node {node} is there")),
                _ => Ok(()),
            },
            Command::ChangeShard { shard, change: ShardChange::Promote(_), .. } => {
                let home = self.homes.get(shard).copied().unwrap_or_default();
                let is_taken = home != by && self.is_there(home, THERE_FOR, at);
                if is_taken { Err(format!("node {by} takes {shard} from its home, node {home}, which is there")) } else { Ok(()) }
            }
            _ => Ok(()),
        }
    }
}

pub(super) fn check(events: &Events) -> Result<(), String> {
    let mut known = Known::default();
    for (at, event) in events {
        known.ranks.hear(event);
        match event {
            Event::NodeStarted { node, id, machine_restarted } => {
                known.numbers.insert(*id, *node);
                if !machine_restarted {
                    known.there.insert(*node, *at);
                }
            }
            Event::NodeStopped { node } => {
                known.there.remove(node);
                known.stopped.insert(*node, *at);
                let node_of = &known.node_of;
                known.works.retain(|(task, _), _| node_of.get(task) != Some(node));
            }
            Event::Trouble { node, what } => known.trouble.hear(*node, what, *at),
            Event::ContainerBegan { task, node } => drop(known.node_of.insert(*task, *node)),
            Event::ContainerEnded { task, .. } => known.works.retain(|(of, _), _| of != task),
            Event::RunBegan { task, input, .. } => drop(known.works.insert((*task, *input), *at)),
            // Whoever else has it has it in vain.
            Event::WorkDone { input, .. } | Event::RunEnded { input, .. } => known.works.retain(|(_, of), _| of != input),
            Event::RunStopped { task, input } => drop(known.works.remove(&(*task, *input))),
            Event::Decided { by, command, taken: true } => {
                known.decided(*by, command, *at).map_err(|why| format!("at {at:?} {why}"))?;
                if let Command::AssignGang { tasks, .. } = &**command {
                    let numbered = |(id, task): &(TaskId, Task)| Some((*id, *known.numbers.get(&task.node)?));
                    known.node_of.extend(tasks.iter().filter_map(numbered));
                }
                if let Command::ChangeShard { shard, change: ShardChange::Promote(to), .. } = &**command {
                    let home = known.numbers.get(to).copied().unwrap_or_default();
                    known.homes.insert(*shard, home);
                }
            }
            _ => {}
        }
    }
    Ok(())
}
