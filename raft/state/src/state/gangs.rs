//! Containers of clustered functions: placed all or none, and ended as one.

use super::{Applied, State};
use crate::model::{Gang, Task};
use crate::{Event, GangId, Refused, TaskId};

impl State {
    pub(super) fn assign_gang(&mut self, id: GangId, tasks: &[(TaskId, Task)]) -> Applied {
        if self.gangs.contains_key(&id) {
            return Ok(vec![]);
        }
        let Some((_, first)) = tasks.first() else { return Err(Refused::NotAGang { id }) };
        if tasks.iter().any(|(task, about)| about.function != first.function || self.tasks.contains_key(task)) {
            return Err(Refused::NotAGang { id });
        }
        // A clone is free: what the last of them is refused for must leave nothing of the others.
        let mut with = self.clone();
        let mut events = Vec::new();
        for (task, about) in tasks {
            for event in with.assign(*task, about)? {
                if !events.contains(&event) {
                    events.push(event);
                }
            }
            with.gang_of.insert(*task, id);
        }
        let tasks = tasks.iter().map(|(task, _)| *task).collect();
        with.gangs.insert(id, Gang { function: first.function, tasks, created: first.created });
        *self = with;
        Ok(events)
    }

    /// Finds the gang of a task, if it is of one.
    pub fn gang(&self, task: TaskId) -> Option<(GangId, &Gang)> {
        let id = self.gang_of.get(&task)?;
        self.gangs.get(id).map(|gang| (*id, gang))
    }

    /// Returns the other tasks of a task's gang that are still there.
    pub(super) fn others_of(&self, task: TaskId) -> Vec<TaskId> {
        let all = self.gang(task).map(|(_, gang)| gang.tasks.as_slice()).unwrap_or_default();
        all.iter().copied().filter(|other| *other != task && self.tasks.contains_key(other)).collect()
    }

    /// Asks those to stop that a task was one with, and forgets a gang that has no containers any more.
    pub(super) fn gang_task_ended(&mut self, task: TaskId, how: &str) -> Vec<Event> {
        let others = self.others_of(task);
        let Some(id) = self.gang_of.remove(&task) else { return vec![] };
        if others.is_empty() {
            self.gangs.remove(&id);
        }
        let why = format!("container {task} of its gang has ended: {how}");
        let stopped = others.into_iter().filter_map(|other| self.stop_alone(other, &why).ok());
        stopped.collect::<Vec<_>>().concat()
    }
}
