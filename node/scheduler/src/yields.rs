//! Whom a leader has asked to give way. Soft: a new one may ask others.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use shoal_state::{Command, FunctionId, State, TaskId};

use crate::Plan;

/// A task that was asked to give way is asked again after this time: the home of its function may have moved, and not know of it.
const AGAIN_AFTER: Duration = Duration::from_secs(10);

/// The tasks that were asked to give way to others, and when.
#[derive(Debug, Clone, Default)]
pub struct Yields {
    asked: BTreeMap<TaskId, Instant>,
}

impl Yields {
    /// Returns them.
    pub fn tasks(&self) -> BTreeSet<TaskId> {
        self.asked.keys().copied().collect()
    }

    /// Takes up what a plan says. Returns the tasks that are to get no more inputs from now on, since they are stopped or give way, each
    /// with its function.
    pub fn take_up(&mut self, state: &State, plan: &Plan, now: Instant) -> Vec<(TaskId, FunctionId)> {
        let stopping = plan.commands.iter().filter_map(|command| match command {
            Command::StopTask { id, .. } => Some(*id),
            _ => None,
        });
        self.asked.retain(|task, _| state.tasks.contains_key(task));
        let again = self.asked.iter().filter(|(_, at)| now >= **at + AGAIN_AFTER).map(|(task, _)| *task);
        let give_way: Vec<TaskId> = again.chain(plan.yields.iter().copied()).collect();
        self.asked.extend(give_way.iter().map(|task| (*task, now)));
        stopping.chain(give_way).filter_map(|id| Some((id, state.tasks.get(&id)?.function))).collect()
    }

    /// Forgets them: another node leads.
    pub fn clear(&mut self) {
        self.asked.clear();
    }
}

#[cfg(test)]
mod tests {
    use shoal_state::model::Task;
    use shoal_state::{AppId, BootId, NodeId, Timestamp};

    use super::*;

    #[test]
    fn who_is_asked_to_give_way_is_asked_again_after_a_while_and_only_while_there() {
        let (pool, [yields, stops, gone]) = (FunctionId::from_random(1), [1, 2, 3].map(TaskId::from_random));
        let mut state = State::default();
        for task in [yields, stops] {
            let place = (NodeId::from_random(1), BootId::from_random(1));
            state.tasks.insert(task, Task::new((pool, AppId::from_random(1)), place, Timestamp(0)));
        }
        let commands = vec![Command::StopTask { id: stops, why: String::new() }];
        let (plan, began) = (Plan { commands, yields: vec![yields, gone], ..Plan::default() }, Instant::now());
        let mut asked = Yields::default();
        assert_eq!(asked.take_up(&state, &plan, began), [(stops, pool), (yields, pool)]);
        let nothing = Plan::default();
        assert_eq!(asked.take_up(&state, &nothing, began + AGAIN_AFTER / 2), []);
        assert_eq!(asked.tasks(), BTreeSet::from([yields]), "one that is not there is not asked");
        assert_eq!(asked.take_up(&state, &nothing, began + AGAIN_AFTER), [(yields, pool)]);
        state.tasks.remove(&yields);
        assert_eq!(asked.take_up(&state, &nothing, began + 3 * AGAIN_AFTER), []);
    }
}
