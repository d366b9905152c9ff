//! What a task runs is given to no other task while that task lives, whatever becomes of its shard's home; unless something was wrong
//! with the node of either meanwhile, so that others may have taken it for lost, or an operator has taken it out of the cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shoal_state::{Command, InputId, TaskId};

use super::{Events, Troubles};
use crate::history::Event;

/// What was wrong with a node excuses what follows within this time.
const EXCUSED: Duration = Duration::from_secs(10);

struct Run {
    task: TaskId,
    node: usize,
    began: Duration,
}

pub(super) fn check(events: &Events) -> Result<(), String> {
    let mut runs: BTreeMap<(InputId, u32), Run> = BTreeMap::new();
    let (mut trouble, mut ids, mut removed) = (Troubles::default(), BTreeMap::new(), BTreeSet::new());
    for (at, event) in events {
        match event {
            Event::Trouble { node, what } => trouble.hear(*node, what, *at),
            Event::NodeStarted { node, id, .. } => drop(ids.insert(*id, *node)),
            Event::Decided { command, taken: true, .. } => {
                if let Command::RemoveNode { id, .. } = &**command {
                    removed.extend(ids.get(id).copied());
                }
            }
            Event::NodeStopped { node } => runs.retain(|_, run| run.node != *node),
            Event::ContainerEnded { task, .. } => runs.retain(|_, run| run.task != *task),
            Event::RunEnded { task, input, retry_count } => {
                let of = (*input, *retry_count);
                runs.retain(|known, run| *known != of || run.task != *task);
            }
            Event::RunBegan { task, node, input, retry_count } => {
                let now = Run { task: *task, node: *node, began: *at };
                let Some(run) = runs.insert((*input, *retry_count), now).filter(|run| run.task != *task) else { continue };
                // One that stood still may begin with what it was given before.
                let in_trouble = |node: &usize| removed.contains(node) || trouble.since(*node, run.began.saturating_sub(EXCUSED));
                let excused = in_trouble(&run.node) || in_trouble(node);
                if !excused {
                    return Err(format!(
                        "at {at:?} try {retry_count} of {input} begins in {task} on node {node}, while {} on node {} has had it since {:?}",
                        run.task, run.node, run.began
                    ));
                }
            }
            _ => {}
        }
    }
    Ok(())
}
